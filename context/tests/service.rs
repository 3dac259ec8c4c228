//! Brokers over real TLS on loopback, with real clients, restarts and kills.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aerie_context::{Broker, Clock, Server};
use aerie_context_client::{Client, Error, Form};
use aerie_context_proto::wire::{CreateQuery, Created, ExitAnswer, Report};
use aerie_context_proto::{
    BrokerFile, Contact, Exit, Fingerprint, Identity, Instance, Phase, Provided, View,
};
use aerie_types::WallMillis;
use tokio::net::TcpListener;

const NFS: &str = "<cluster>
  <workspace><name>server</name><ctx>
    <provides><identity/><role>nfsserver</role></provides><requires><role name='nfsclient'/></requires>
  </ctx></workspace>
  <workspace><name>client</name><quantity>2</quantity><ctx>
    <provides><identity/><role>nfsclient</role></provides><requires><role name='nfsserver'/></requires>
  </ctx></workspace>
</cluster>";

/// A clock that tests move.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn clock(&self) -> Clock {
        let hands = self.clone();
        Arc::new(move || WallMillis(1_900_000_000_000 + hands.0.load(Ordering::SeqCst)))
    }

    fn forward(&self, secs: u64) {
        self.0.fetch_add(secs * 1000, Ordering::SeqCst);
    }
}

/// A broker on a runtime of its own, so that tests may block as agents do.
struct Site {
    runtime: tokio::runtime::Runtime,
    server: Option<Server>,
    hands: Hands,
    _dir: tempfile::TempDir,
    file: BrokerFile,
}

impl Site {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let hands = Hands::default();
        let server = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            let broker = Arc::new(Broker::open(dir.path(), &url).unwrap());
            Server::on(listener, broker, hands.clock()).unwrap()
        });
        Self {
            file: broker_file(dir.path()),
            runtime,
            server: Some(server),
            hands,
            _dir: dir,
        }
    }

    fn creator(&self) -> Client {
        Client::creator(&self.file).unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let server = self.server.take();
        let _inside = self.runtime.enter();
        drop(server);
    }
}

fn broker_file(dir: &Path) -> BrokerFile {
    serde_json::from_slice(&std::fs::read(dir.join("broker.json")).unwrap()).unwrap()
}

fn nfs(creator: &Client) -> Created {
    creator.create(NFS, Form::Xml, &CreateQuery::default()).unwrap()
}

/// A member as its agent is one.
struct Member {
    client: Client,
    contact: Contact,
    instance: Instance,
    report: Report,
    name: Option<aerie_context_proto::MemberName>,
}

impl Member {
    fn new(contact: &Contact, set: &str, ip: &str, proof: u8) -> Self {
        Self {
            client: Client::member(contact).unwrap(),
            contact: contact.clone(),
            instance: Instance::new([proof; 32]),
            report: Report {
                member: None,
                set: set.parse().unwrap(),
                provided: Provided {
                    identities: vec![Identity {
                        interface: None,
                        ip: ip.parse().unwrap(),
                        hostname: None,
                        pubkey: None,
                    }],
                    data: std::collections::BTreeMap::new(),
                },
            },
            name: None,
        }
    }

    fn register(&mut self) -> Result<String, Error> {
        let name = self
            .client
            .register(self.contact.context, &self.instance, &self.report)?;
        self.name = Some(name.clone());
        Ok(name.to_string())
    }

    fn view(&self, after: u32, wait: u64) -> Result<Option<View>, Error> {
        let name = self.name.as_ref().unwrap();
        let wait = Duration::from_secs(wait);
        self.client
            .retrieve(self.contact.context, &self.instance, name, after, wait)
    }

    fn exit(&self, version: u32, ok: bool) -> Result<ExitAnswer, Error> {
        let exit = Exit {
            version,
            attempt: 1,
            ok,
            message: String::new(),
            steps: Vec::new(),
        };
        let name = self.name.as_ref().unwrap();
        self.client
            .exit(self.contact.context, &self.instance, name, &exit)
    }
}

fn cluster(contact: &Contact) -> [Member; 3] {
    [
        Member::new(contact, "server", "10.0.0.1", 1),
        Member::new(contact, "client", "10.0.0.2", 2),
        Member::new(contact, "client", "10.0.0.3", 3),
    ]
}

fn refused(error: Error) -> (u16, String) {
    match error {
        Error::Refused { status, code, .. } => (status, code),
        other => panic!("{other}"),
    }
}

#[test]
fn a_cluster_is_contextualized_over_https_and_waiting_members_are_woken() {
    let site = Site::start();
    let creator = site.creator();
    let created = nfs(&creator);
    assert_eq!(created.members.len(), 3);
    let [mut server, mut first, mut second] = cluster(&created.contact);
    server.register().unwrap();
    first.register().unwrap();
    assert_eq!(first.view(0, 0).unwrap(), None);
    let view = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| first.view(0, 40).unwrap().expect("woken by the last report"));
        second.register().unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(
        view.roles[&"nfsserver".parse().unwrap()][0].ip.to_string(),
        "10.0.0.1"
    );
    for member in [&server, &first, &second] {
        assert_eq!(member.exit(1, true).unwrap(), ExitAnswer::Accepted);
    }
    let status = creator.status(created.id).unwrap();
    assert!(status.complete && status.all_ok, "{status:?}");
    assert_eq!(creator.list().unwrap().len(), 1);
    let names = creator.expect(created.id, &"client".parse().unwrap(), 3).unwrap();
    assert_eq!(names.last().unwrap().as_str(), "client-3");
    let mut third = Member::new(&created.contact, "client", "10.0.0.4", 4);
    assert_eq!(third.register().unwrap(), "client-3");
    assert_eq!(server.view(1, 40).unwrap().unwrap().version, 2);
    assert_eq!(first.view(1, 0).unwrap(), None, "nothing new for a client");
    first
        .client
        .leave(created.id, &first.instance, first.name.as_ref().unwrap())
        .unwrap();
    assert_eq!(server.view(2, 40).unwrap().unwrap().version, 3);
    creator.remove(created.id, third.name.as_ref().unwrap()).unwrap();
    assert_eq!(
        refused(third.view(0, 0).unwrap_err()),
        (404, "unknown-member".to_owned())
    );
}

#[test]
fn nobody_gets_in_without_the_token_or_the_contexts_key() {
    let site = Site::start();
    let creator = site.creator();
    let created = nfs(&creator);
    let other = nfs(&creator);
    // A member of one context is a stranger in another.
    let mut stranger = Member::new(&other.contact, "server", "10.0.0.1", 1);
    stranger.contact.context = created.id;
    assert_eq!(
        refused(stranger.register().unwrap_err()),
        (403, "stranger".to_owned())
    );
    // The key of a context is not enough to change what its creator decides.
    let member = Client::member(&created.contact).unwrap();
    for error in [
        member.destroy(created.id).unwrap_err(),
        member.close(created.id).unwrap_err(),
        member.list().unwrap_err(),
        member
            .expect(created.id, &"client".parse().unwrap(), 9)
            .unwrap_err(),
        member
            .create(NFS, Form::Xml, &CreateQuery::default())
            .unwrap_err(),
        member
            .user_data(created.id, &"client".parse().unwrap(), None)
            .unwrap_err(),
    ] {
        assert_eq!(refused(error), (403, "stranger".to_owned()));
    }
    assert!(member.status(created.id).is_ok(), "members may look");
    let wrong = BrokerFile {
        token: aerie_context_proto::Token::new("0".repeat(64)),
        ..site.file.clone()
    };
    let wrong = Client::creator(&wrong).unwrap();
    assert_eq!(refused(wrong.list().unwrap_err()).0, 403);
    // One that has the certificate, which is no secret, and not its key.
    let mut forged = created.contact.clone();
    forged.secret = other.contact.secret.clone();
    let forged = Client::member(&forged).and_then(|client| client.status(created.id));
    assert!(
        matches!(forged, Err(Error::Tls(_) | Error::Unreachable { .. })),
        "{forged:?}"
    );
}

#[test]
fn a_member_says_nothing_to_a_broker_with_another_certificate() {
    let site = Site::start();
    let created = nfs(&site.creator());
    let mut contact = created.contact;
    contact.fingerprint = Fingerprint([9; 32]);
    let error = Client::member(&contact).unwrap().status(created.id).unwrap_err();
    assert!(matches!(error, Error::WrongBroker { .. }), "{error}");
    assert!(error.to_string().contains("is not the broker"), "{error}");
}

#[test]
fn bad_documents_and_bodies_are_refused_with_what_is_wrong() {
    let site = Site::start();
    let creator = site.creator();
    let error = creator
        .create(
            &NFS.replace("<role>nfsserver</role>", ""),
            Form::Xml,
            &CreateQuery::default(),
        )
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("line 6: workspace 'client' requires the role 'nfsserver'"),
        "{error}"
    );
    let error = creator
        .create("{}", Form::Json, &CreateQuery::default())
        .unwrap_err();
    assert!(
        error.to_string().contains("missing field `workspaces`"),
        "{error}"
    );
    let laughs = "<!DOCTYPE l [<!ENTITY a 'ha'>]><cluster>&a;</cluster>";
    let error = creator
        .create(laughs, Form::Xml, &CreateQuery::default())
        .unwrap_err();
    assert!(error.to_string().contains("document type"), "{error}");
    let long = " ".repeat(1024 * 1024 + 1);
    let error = creator
        .create(&long, Form::Xml, &CreateQuery::default())
        .unwrap_err();
    assert_eq!(refused(error).0, 413);
    let query = CreateQuery {
        report_secs: Some(0),
        ..CreateQuery::default()
    };
    let error = creator.create(NFS, Form::Xml, &query).unwrap_err();
    assert!(error.to_string().contains("report_secs is not usable"), "{error}");
    let created = nfs(&creator);
    let mut member = Member::new(&created.contact, "server", "127.0.0.1", 1);
    assert_eq!(refused(member.register().unwrap_err()).0, 400);
}

#[test]
fn the_deadline_passes_without_anybody_asking_and_wakes_those_who_wait() {
    let site = Site::start();
    let created = nfs(&site.creator());
    let [mut server, mut first, _] = cluster(&created.contact);
    server.register().unwrap();
    first.register().unwrap();
    let view = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.view(0, 40).unwrap().expect("woken by the deadline"));
        site.hands.forward(901);
        waiting.join().unwrap()
    });
    assert_eq!(view.roles[&"nfsclient".parse().unwrap()].len(), 1);
    let status = site.creator().status(created.id).unwrap();
    assert!(status.complete && status.error_present);
    assert_eq!(status.members[2].phase, Phase::Missing);
}

#[test]
fn an_agent_of_a_destroyed_context_is_told_so_even_while_it_waits() {
    let site = Site::start();
    let creator = site.creator();
    let created = nfs(&creator);
    let [mut server, ..] = cluster(&created.contact);
    server.register().unwrap();
    let error = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.view(0, 40).unwrap_err());
        creator.destroy(created.id).unwrap();
        waiting.join().unwrap()
    });
    assert!(error.is_destroyed(), "{error}");
    assert!(server.register().unwrap_err().is_destroyed());
    creator.destroy(created.id).unwrap();
    assert_eq!(refused(creator.status(created.id).unwrap_err()).0, 410);
    // Who never had its key learns nothing of it.
    let other = nfs(&creator);
    let error = Client::member(&other.contact)
        .unwrap()
        .status(created.id)
        .unwrap_err();
    assert_eq!(refused(error).0, 403);
}

/// Not a test: what the next one starts as a process of its own and kills.
#[test]
#[ignore = "a broker that another test starts"]
fn serve_until_killed() {
    let Ok(dir) = std::env::var("AERIE_TEST_BROKER_DIR") else {
        return;
    };
    let listen = std::env::var("AERIE_TEST_BROKER_LISTEN").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(&listen).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let broker = Arc::new(Broker::open(Path::new(&dir), &url).unwrap());
        let mut server = Server::on(listener, broker, aerie_context::system_clock()).unwrap();
        eprintln!("listening at {url}");
        server.wait().await;
    });
}

struct Killable(Child);

impl Killable {
    fn start(dir: &Path, listen: &str) -> Self {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["serve_until_killed", "--exact", "--ignored", "--nocapture"])
            .env("AERIE_TEST_BROKER_DIR", dir)
            .env("AERIE_TEST_BROKER_LISTEN", listen)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.any(|line| line.unwrap().starts_with("listening at"));
        assert!(ready, "the broker did not start");
        Self(child)
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_broker_that_is_killed_after_each_answer_has_lost_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Killable::start(dir.path(), "127.0.0.1:0");
    let file = broker_file(dir.path());
    let listen = file.url.strip_prefix("https://").unwrap().to_owned();
    let creator = Client::creator(&file).unwrap();
    let created = nfs(&creator);
    let mut again = || {
        broker.kill();
        broker = Killable::start(dir.path(), &listen);
        assert_eq!(broker_file(dir.path()), file, "the same keys");
    };
    let mut members = cluster(&created.contact);
    for member in &mut members {
        again();
        let name = member.register().unwrap();
        again();
        assert_eq!(
            member.register().unwrap(),
            name,
            "asked twice, since the answer may be lost"
        );
    }
    for member in &members {
        again();
        let view = member.view(0, 0).unwrap().unwrap();
        assert_eq!(member.exit(view.version, true).unwrap(), ExitAnswer::Accepted);
    }
    again();
    let status = creator.status(created.id).unwrap();
    assert!(status.complete && status.all_ok, "{:?}", status.waits);
    creator.destroy(created.id).unwrap();
    again();
    assert!(members[0].register().unwrap_err().is_destroyed());
}

#[test]
fn members_that_come_while_the_broker_is_killed_again_and_again_are_never_stuck() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Killable::start(dir.path(), "127.0.0.1:0");
    let file = broker_file(dir.path());
    let listen = file.url.strip_prefix("https://").unwrap().to_owned();
    let creator = Client::creator(&file).unwrap();
    let document = NFS.replace("<quantity>2<", "<quantity>11<");
    let created = creator
        .create(&document, Form::Xml, &CreateQuery::default())
        .unwrap();
    let finished = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for index in 0..12u8 {
            let (contact, finished) = (&created.contact, &finished);
            scope.spawn(move || {
                let set = if index == 0 { "server" } else { "client" };
                let mut member = Member::new(contact, set, &format!("10.0.1.{}", index + 1), index + 1);
                let patient = |error: Error| assert!(error.is_retryable(), "{error}");
                while let Err(error) = member.register() {
                    patient(error);
                }
                let view = loop {
                    match member.view(0, 2) {
                        Ok(Some(view)) => break view,
                        Ok(None) => {}
                        Err(error) => patient(error),
                    }
                };
                assert!(view.missing.is_empty());
                while let Err(error) = member.exit(view.version, true) {
                    patient(error);
                }
                finished.fetch_add(1, Ordering::SeqCst);
            });
        }
        let mut kills = 0;
        while finished.load(Ordering::SeqCst) < 12 {
            broker.kill();
            broker = Killable::start(dir.path(), &listen);
            kills += 1;
            // Each life long enough for some of them, since it waits for the broker itself.
            for _ in 0..3 {
                creator.status(created.id).unwrap();
            }
            assert!(kills < 1000, "members are stuck");
        }
    });
    assert!(creator.status(created.id).unwrap().all_ok);
}

#[test]
fn two_brokers_do_not_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Broker::open(dir.path(), "https://127.0.0.1:1").unwrap();
    let error = Broker::open(dir.path(), "https://127.0.0.1:2").unwrap_err();
    assert!(error.to_string().starts_with("another broker runs on"), "{error}");
}

/// As fast as two cores do a thousand machines' handshakes, on a database that syncs each report.
#[test]
#[ignore = "it takes long in a build without optimisation: cargo test --release -p aerie-context --test service -- \
            --ignored a_thousand --nocapture"]
fn a_thousand_members_over_https_are_all_told_of_each_other() {
    let site = Site::start();
    let creator = site.creator();
    let document = NFS.replace("<quantity>2<", "<quantity>999<");
    let created = creator
        .create(&document, Form::Xml, &CreateQuery::default())
        .unwrap();
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for index in 0..1000u16 {
            let contact = &created.contact;
            scope.spawn(move || {
                let set = if index == 0 { "server" } else { "client" };
                let ip = format!("10.1.{}.{}", index / 250, index % 250 + 1);
                let mut member = Member::new(contact, set, &ip, 0);
                let mut proof = [0; 32];
                proof[..2].copy_from_slice(&index.to_be_bytes());
                member.instance = Instance::new(proof);
                let patient = |error: Error| assert!(error.is_retryable(), "{error}");
                while let Err(error) = member.register() {
                    patient(error);
                }
                let view = loop {
                    match member.view(0, 50) {
                        Ok(Some(view)) => break view,
                        Ok(None) => {}
                        Err(error) => patient(error),
                    }
                };
                while let Err(error) = member.exit(view.version, true) {
                    patient(error);
                }
            });
        }
    });
    println!("a thousand members: {:.1} s", started.elapsed().as_secs_f64());
    assert!(creator.status(created.id).unwrap().all_ok);
}
