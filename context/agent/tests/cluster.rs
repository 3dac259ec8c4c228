//! Whole clusters: a real broker over TLS on loopback, and a real agent process for each member, with a root folder
//! and scripts of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_context::{Broker, Server, system_clock};
use aerie_context_client::{Client, Form};
use aerie_context_proto::wire::{CreateQuery, Created};
use aerie_context_proto::{BrokerFile, Phase, Status, xml};
use tokio::net::TcpListener;

/// The paper's section 4.1: a server, and two clients that require it.
const NFS: &str = "<cluster>
  <workspace><name>server</name><image>nfs</image><ctx>
    <provides><identity/><role>nfsserver</role><data name='exports'/></provides>
    <requires><role name='nfsclient'/></requires>
  </ctx></workspace>
  <workspace><name>client</name><image>nfs</image><quantity>2</quantity><ctx>
    <provides><identity/><role>nfsclient</role></provides>
    <requires><role name='nfsserver' hostname='true' pubkey='true'/><data name='exports'/></requires>
  </ctx></workspace>
</cluster>";

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

/// How long anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Site {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    creator: Client,
}

impl Site {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker_dir = dir.path().join("broker");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let server = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            let broker = Arc::new(Broker::open(&broker_dir, &url).unwrap());
            Server::on(listener, broker, system_clock()).unwrap()
        });
        let file = fs::read(broker_dir.join("broker.json")).unwrap();
        let file: BrokerFile = serde_json::from_slice(&file).unwrap();
        Self {
            creator: Client::creator(&file).unwrap(),
            dir,
            runtime,
            server: Some(server),
        }
    }

    fn create(&self, query: &CreateQuery) -> Created {
        self.creator.create(NFS, Form::Xml, query).unwrap()
    }

    /// A machine of a set with the scripts of the NFS example.
    fn machine(&self, created: &Created, set: &str, name: &str, ip: &str) -> Machine {
        let root = self.dir.path().join(name);
        fs::create_dir_all(root.join("etc/ssh")).unwrap();
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(
            root.join("etc/ssh/ssh_host_ed25519_key.pub"),
            format!("{KEY} root@{name}\n"),
        )
        .unwrap();
        fs::create_dir_all(root.join("provide")).unwrap();
        fs::write(root.join("provide/exports"), "/srv/nfs").unwrap();
        let data = self
            .creator
            .user_data(created.id, &set.parse().unwrap(), None)
            .unwrap();
        fs::write(root.join("user-data"), xml::write_user_data(&data)).unwrap();
        let machine = Machine {
            root,
            name: name.to_owned(),
            ip: ip.to_owned(),
        };
        machine.script(
            "0-etchosts",
            "rm -f $AERIE_CONTEXT_ROOT/exports $AERIE_CONTEXT_ROOT/fstab",
        );
        machine.script(
            "1-ipandhost/nfsclient",
            "echo \"/srv/nfs $1(rw)\" >> $AERIE_CONTEXT_ROOT/exports",
        );
        machine.script(
            "1-ipandhost/nfsserver",
            "echo \"$3:$(cat $AERIE_CONTEXT_DIR/data/exports) /mnt nfs\" >> $AERIE_CONTEXT_ROOT/fstab",
        );
        machine.script("2-thishost", "echo \"$1 $2 $3 $4\" > $AERIE_CONTEXT_ROOT/this");
        machine.script("3-data/exports", "cp $1 $AERIE_CONTEXT_ROOT/exported");
        machine.script("4-restarts/nfsserver", "echo restarted by $AERIE_CONTEXT_MEMBER");
        machine.script(
            "5-finalize",
            "echo v$AERIE_CONTEXT_VERSION.$AERIE_CONTEXT_ATTEMPT >> $AERIE_CONTEXT_ROOT/final",
        );
        machine.script("problem", "echo \"$1\" >> $AERIE_CONTEXT_ROOT/problem");
        machine
    }

    /// Waits until the context is as told.
    fn until(&self, created: &Created, good: impl Fn(&Status) -> bool) -> Status {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.creator.status(created.id).unwrap();
            if good(&status) {
                return status;
            }
            assert!(Instant::now() < until, "{:?}", status.waits);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let server = self.server.take();
        let _inside = self.runtime.enter();
        drop(server);
    }
}

struct Machine {
    root: PathBuf,
    name: String,
    ip: String,
}

impl Machine {
    fn script(&self, name: &str, text: &str) {
        let path = self.root.join("scripts").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh -e\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aerie-context-agent"));
        let arg = |path: &str| self.root.join(path);
        command
            .arg("--user-data")
            .arg(arg("user-data"))
            .arg("--root")
            .arg(&self.root)
            .arg("--scripts")
            .arg(arg("scripts"))
            .arg("--provide")
            .arg(arg("provide"))
            .args(["--identity", &format!("eth0={}", self.ip)])
            .args(["--hostname", &format!("{}.lab", self.name)])
            .args(more)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self) -> Agent {
        Agent(Some(self.command(&[]).spawn().unwrap()))
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    fn lines(&self, path: &str) -> Vec<String> {
        self.text(path).lines().map(str::to_owned).collect()
    }
}

/// An agent's process; it is killed when dropped.
struct Agent(Option<Child>);

impl Agent {
    /// Waits for its end; gives its exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_papers_nfs_cluster_configures_itself_and_a_fourth_member_joins_it() {
    let site = Site::start();
    let created = site.create(&CreateQuery::default());
    let server = site.machine(&created, "server", "server", "10.0.0.1");
    let first = site.machine(&created, "client", "c1", "10.0.0.2");
    let second = site.machine(&created, "client", "c2", "10.0.0.3");
    let agents = [server.start(), first.start(), second.start()];
    let status = site.until(&created, |status| status.all_ok);
    assert_eq!(status.version, 1);
    // They stand in the order of the members' names, which is that of their reports.
    let mut exports = server.lines("exports");
    exports.sort();
    assert_eq!(exports, ["/srv/nfs 10.0.0.2(rw)", "/srv/nfs 10.0.0.3(rw)"]);
    for client in [&first, &second] {
        assert_eq!(client.lines("fstab"), ["server.lab:/srv/nfs /mnt nfs"]);
        assert_eq!(client.text("exported"), "/srv/nfs");
        let hosts = client.text("etc/hosts");
        assert!(hosts.starts_with("127.0.0.1 localhost\n# begin"), "{hosts}");
        assert!(hosts.contains("\n10.0.0.1 server.lab server\n"), "{hosts}");
        let known = client.text("etc/ssh/ssh_known_hosts");
        assert!(
            known.contains(&format!("server.lab,server,10.0.0.1 {KEY}\n")),
            "{known}"
        );
        let state = client.root.join("var/lib/aerie-context-agent");
        assert_eq!((mode(&state), mode(&state.join("state.json"))), (0o700, 0o600));
        assert_eq!(
            client.text("var/lib/aerie-context-agent/current/roles/nfsserver"),
            "10.0.0.1 server.lab\n"
        );
    }
    assert_eq!(first.text("this"), "10.0.0.2 c1 c1.lab eth0\n");
    let steps = &status.members[0].exit.as_ref().unwrap().steps;
    let log = |name: &str| &steps.iter().find(|step| step.name.as_str() == name).unwrap().log;
    assert!(
        log("4-restarts.nfsserver").starts_with("restarted by server"),
        "{steps:?}"
    );

    site.creator
        .expect(created.id, &"client".parse().unwrap(), 3)
        .unwrap();
    let third = site.machine(&created, "client", "c3", "10.0.0.4");
    let fourth = third.start();
    let status = site.until(&created, |status| status.all_ok && status.version == 2);
    assert_eq!(status.total_nodes, 4);
    assert_eq!(server.lines("exports").len(), 3);
    assert_eq!(server.lines("final"), ["v1.1", "v2.1"]);
    assert_eq!(third.lines("final"), ["v2.1"]);
    assert_eq!(
        first.lines("final"),
        ["v1.1"],
        "a client requires nothing that changed"
    );

    let left = third.command(&["--leave"]).output().unwrap();
    assert!(left.status.success(), "{left:?}");
    let (code, said) = fourth.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no member of the context any more"), "{said}");
    site.until(&created, |status| status.all_ok && status.version == 3);
    assert_eq!(server.lines("exports").len(), 2);

    site.creator.destroy(created.id).unwrap();
    for agent in agents {
        let (code, said) = agent.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("the context was destroyed"), "{said}");
    }
}

#[test]
fn one_that_fails_a_phase_and_one_that_never_reports_are_named_with_why() {
    let site = Site::start();
    let query = CreateQuery {
        report_secs: Some(4),
        attempts: Some(2),
        retry_secs: Some(0),
        ..CreateQuery::default()
    };
    let created = site.create(&query);
    let server = site.machine(&created, "server", "server", "10.0.0.1");
    let broken = site.machine(&created, "client", "c1", "10.0.0.2");
    broken.script("3-data/exports", "echo cannot mount $1; exit 7");
    let _agents = [server.start(), broken.start()];
    let status = site.until(&created, |status| status.ok == 1 && status.failed == 2);
    assert!(status.complete && status.error_present && !status.all_ok);
    let [_, failed, missing] = status.members.as_slice() else {
        panic!("{status:?}");
    };
    assert_eq!(
        (missing.phase, missing.reason.as_str()),
        (Phase::Missing, "did not report within 4 s")
    );
    assert!(
        failed.reason.starts_with("failed at attempt 2: 3-data/exports /"),
        "{}",
        failed.reason
    );
    assert!(failed.reason.ends_with("ended with code 7"), "{}", failed.reason);
    let steps = &failed.exit.as_ref().unwrap().steps;
    let step = steps
        .iter()
        .find(|step| step.name.as_str() == "3-data.exports")
        .unwrap();
    assert_eq!(step.code, Some(7));
    assert!(step.log.starts_with("cannot mount /"), "{}", step.log);
    assert_eq!(steps.last().unwrap().name.as_str(), "problem");
    assert_eq!(broken.lines("problem").len(), 2, "once for each attempt");
    assert_eq!(server.lines("exports"), ["/srv/nfs 10.0.0.2(rw)"]);
}

#[test]
fn a_phase_that_fails_once_is_tried_again_and_one_over_its_time_is_ended() {
    let site = Site::start();
    let query = CreateQuery {
        retry_secs: Some(0),
        ..CreateQuery::default()
    };
    let created = site.create(&query);
    let server = site.machine(&created, "server", "server", "10.0.0.1");
    server.script("4-restarts/nfsserver", "[ $AERIE_CONTEXT_ATTEMPT != 1 ]");
    let slow = site.machine(&created, "client", "c1", "10.0.0.2");
    slow.script("5-finalize", "[ $AERIE_CONTEXT_ATTEMPT != 1 ] || sleep 600");
    let other = site.machine(&created, "client", "c2", "10.0.0.3");
    let slow_agent = Agent(Some(slow.command(&["--step-timeout", "1"]).spawn().unwrap()));
    let _agents = [server.start(), slow_agent, other.start()];
    let status = site.until(&created, |status| status.all_ok);
    // Which client is which depends on who reported first.
    let mut attempts: Vec<_> = status
        .members
        .iter()
        .map(|member| {
            (
                member.identities[0].ip.to_string(),
                member.exit.as_ref().unwrap().attempt,
            )
        })
        .collect();
    attempts.sort();
    let expected = [("10.0.0.1", 2), ("10.0.0.2", 2), ("10.0.0.3", 1)];
    assert_eq!(attempts, expected.map(|(ip, attempt)| (ip.to_owned(), attempt)));
    assert_eq!(
        slow.lines("problem"),
        ["5-finalize 10.0.0.2 c1 c1.lab eth0 took more than 1 s"]
    );
}

#[test]
fn an_agent_that_is_killed_in_a_phase_goes_on_as_the_same_member() {
    let site = Site::start();
    let created = site.create(&CreateQuery::default());
    let server = site.machine(&created, "server", "server", "10.0.0.1");
    let killed = site.machine(&created, "client", "c1", "10.0.0.2");
    let other = site.machine(&created, "client", "c2", "10.0.0.3");
    killed.script(
        "2-thishost",
        "if [ ! -e $AERIE_CONTEXT_ROOT/once ]; then touch $AERIE_CONTEXT_ROOT/once; kill -9 $PPID; sleep 1; fi",
    );
    let _agents = [server.start(), other.start()];
    let (code, _) = killed.start().end();
    assert_eq!(code, None, "by a signal");
    let _again = killed.start();
    let status = site.until(&created, |status| status.all_ok);
    assert_eq!(status.total_nodes, 3);
    assert_eq!(killed.lines("fstab").len(), 1, "scripts bring about a state");
}

#[test]
fn a_second_machine_with_the_address_of_another_is_refused_and_says_so() {
    let site = Site::start();
    let created = site.create(&CreateQuery::default());
    let first = site.machine(&created, "client", "c1", "10.0.0.2");
    let _first = first.start();
    site.until(&created, |status| status.registered == 1);
    let copy = site.machine(&created, "client", "c2", "10.0.0.2");
    let (code, said) = copy.start().end();
    assert_eq!(code, Some(1));
    assert!(
        said.contains("the address 10.0.0.2 is of 'client-1' already"),
        "{said}"
    );
}

/// A metadata service with EC2's tokens, for so many requests.
fn metadata_service(user_data: String, requests: usize) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(requests) {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let (status, body) = if request.starts_with("PUT /latest/api/token ") {
                ("200 OK", "token-1")
            } else if request.starts_with("GET /latest/user-data ") && request.contains("token-1") {
                ("200 OK", user_data.as_str())
            } else {
                ("401 Unauthorized", "")
            };
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
            .unwrap();
        }
    });
    base
}

#[test]
fn user_data_of_a_metadata_service_is_found_and_an_agent_may_run_once() {
    let site = Site::start();
    let document = "{\"workspaces\": [{\"name\": \"lone\", \"provides\": {\"identities\": [{}]}}]}";
    let created = site
        .creator
        .create(document, Form::Json, &CreateQuery::default())
        .unwrap();
    let machine = site.machine(&created, "lone", "lone", "10.0.0.1");
    let base = metadata_service(machine.text("user-data"), 2);
    let output = Command::new(env!("CARGO_BIN_EXE_aerie-context-agent"))
        .args(["--once", "--metadata-url", &base, "--identity", "10.0.0.1"])
        .arg("--root")
        .arg(&machine.root)
        .arg("--scripts")
        .arg(machine.root.join("scripts"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("configured by version 1"), "{said}");
    assert_eq!(machine.lines("final"), ["v1.1"]);
    assert!(site.creator.status(created.id).unwrap().all_ok);
}

#[test]
fn without_user_data_every_place_that_was_tried_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_aerie-context-agent"))
        .args(["--network-timeout", "0", "--metadata-url", "http://127.0.0.1:1"])
        .arg("--root")
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for place in [
        "/etc/aerie/context",
        "/var/nimbus-metadata-server-url",
        "http://127.0.0.1:1: no token",
    ] {
        assert!(said.contains(place), "{place}: {said}");
    }
}
