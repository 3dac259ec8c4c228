//! The lab itself: NATs behave as their names say, nodes boot and run commands, nothing is left behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use aerie_lab::grid::Join;
use aerie_lab::process::Process;
use aerie_lab::wait::wait_until;
use aerie_lab::{Host, Lab, Nat, Place, state};
use anyhow::{Result, ensure};

/// Long enough for a datagram across two routers, short enough for the many that do not come.
const ARRIVES: Duration = Duration::from_millis(400);

/// How often a datagram is sent that does not arrive.
const ATTEMPTS: usize = 3;

fn udp(host: &Host, port: u16) -> UdpSocket {
    let socket = host
        .net()
        .enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?))
        .unwrap();
    socket.set_read_timeout(Some(ARRIVES)).unwrap();
    socket
}

/// Sends a datagram, again where it does not arrive, and returns from where it does.
fn send(from: &UdpSocket, to: &UdpSocket, at: SocketAddr) -> Option<SocketAddr> {
    // What came late for an earlier look is not what this one waits for.
    to.set_nonblocking(true).unwrap();
    while receive(to).is_some() {}
    to.set_nonblocking(false).unwrap();
    // What is admitted is only late on a busy machine; what is not never comes.
    (0..ATTEMPTS).find_map(|_| {
        // A refusal that came back for an earlier datagram is reported once, by the next call on the socket.
        let _ = from.send_to(b"ping", at).or_else(|_| from.send_to(b"ping", at));
        receive(to)
    })
}

fn receive(socket: &UdpSocket) -> Option<SocketAddr> {
    let mut buffer = [0; 16];
    socket.recv_from(&mut buffer).ok().map(|(_, from)| from)
}

/// What was seen of a NAT: whether one mapping serves all destinations, and who may send to a mapping that was
/// opened towards one address and port: that one, another port of its address, another address.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    one_mapping: bool,
    admitted: [bool; 3],
}

fn observe(nat: Nat) -> Option<Seen> {
    let lab = Lab::new("nat").unwrap();
    let site = lab.site("home", nat).unwrap();
    let inside = lab.host("inside", &site).unwrap();
    let (x, y) = (
        lab.host("x", Place::Internet).unwrap(),
        lab.host("y", Place::Internet).unwrap(),
    );
    let (x1, x2, y1) = (udp(&x, 1001), udp(&x, 1002), udp(&y, 1001));
    let at = |host: &Host, port| SocketAddr::from((host.addr(), port));

    let first = udp(&inside, 5000);
    let mapped = send(&first, &x1, at(&x, 1001))?;
    let outside = if nat.translates() {
        site.wan()
    } else {
        inside.addr()
    };
    assert_eq!(mapped.ip(), outside, "{nat:?} shows the wrong address");
    let others = [send(&first, &x2, at(&x, 1002)), send(&first, &y1, at(&y, 1001))];

    let second = udp(&inside, 5001);
    let mapped_second = send(&second, &x1, at(&x, 1001))?;
    let admitted = [&x1, &x2, &y1].map(|from| send(from, &second, mapped_second).is_some());
    Some(Seen {
        one_mapping: others == [Some(mapped); 2],
        admitted,
    })
}

fn assert_nat(nat: Nat, one_mapping: bool, admitted: [bool; 3]) {
    assert_eq!(
        observe(nat),
        Some(Seen {
            one_mapping,
            admitted
        }),
        "{nat:?}"
    );
}

#[test]
fn an_open_site_translates_nothing_and_admits_anybody() {
    assert_nat(Nat::Open, true, [true, true, true]);
}

#[test]
fn a_full_cone_has_one_mapping_and_admits_anybody() {
    assert_nat(Nat::FullCone, true, [true, true, true]);
}

#[test]
fn an_address_restricted_cone_has_one_mapping_and_admits_the_contacted_address() {
    assert_nat(Nat::AddressRestricted, true, [true, true, false]);
}

#[test]
fn a_port_restricted_cone_has_one_mapping_and_admits_the_contacted_port() {
    assert_nat(Nat::PortRestricted, true, [true, false, false]);
}

#[test]
fn a_symmetric_nat_has_a_mapping_per_destination() {
    assert_nat(Nat::Symmetric, false, [true, false, false]);
}

#[test]
fn where_udp_is_blocked_tcp_passes() {
    assert_eq!(observe(Nat::UdpBlocked), None);
    let lab = Lab::new("tcp").unwrap();
    let inside = lab
        .host("inside", &lab.site("office", Nat::UdpBlocked).unwrap())
        .unwrap();
    let server = lab.host("server", Place::Internet).unwrap();
    tcp(&inside, &server).unwrap();
}

fn tcp(client: &Host, server: &Host) -> Result<()> {
    let addr = SocketAddr::from((server.addr(), 443));
    let listener = server.net().enter(|| Ok(TcpListener::bind(addr)?))?;
    let mut stream = client
        .net()
        .enter(|| Ok(TcpStream::connect_timeout(&addr, Duration::from_secs(5))?))?;
    let (mut accepted, _) = listener.accept()?;
    accepted.write_all(b"hello")?;
    let mut buffer = [0; 5];
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.read_exact(&mut buffer)?;
    ensure!(&buffer == b"hello");
    Ok(())
}

#[test]
fn a_site_behind_a_site_is_translated_twice() {
    let lab = Lab::new("cgnat").unwrap();
    let carrier = lab.site("carrier", Nat::PortRestricted).unwrap();
    let home = lab.site_behind(&carrier, "home", Nat::PortRestricted).unwrap();
    let inside = lab.host("inside", &home).unwrap();
    let server = lab.host("server", Place::Internet).unwrap();
    let seen = send(
        &udp(&inside, 5000),
        &udp(&server, 1001),
        (server.addr(), 1001).into(),
    );
    assert_eq!(seen.map(|addr| addr.ip()), Some(carrier.wan().into()));
}

#[test]
fn nobody_outside_reaches_a_private_address() {
    let lab = Lab::new("private").unwrap();
    let inside = lab
        .host("inside", &lab.site("home", Nat::FullCone).unwrap())
        .unwrap();
    let server = lab.host("server", Place::Internet).unwrap();
    assert_eq!(
        send(
            &udp(&server, 1001),
            &udp(&inside, 5000),
            (inside.addr(), 5000).into()
        ),
        None
    );
}

#[test]
fn a_cut_link_carries_nothing_until_it_is_restored() {
    let lab = Lab::new("cut").unwrap();
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let (inside, server) = (
        lab.host("inside", &site).unwrap(),
        lab.host("server", Place::Internet).unwrap(),
    );
    let (from, to) = (udp(&inside, 5000), udp(&server, 1001));
    let at = SocketAddr::from((server.addr(), 1001));
    let arrives = || Ok(send(&from, &to, at).map(|_| ()));
    wait_until(Duration::from_secs(5), "the first datagram", arrives).unwrap();
    site.cut().unwrap();
    assert_eq!(send(&from, &to, at), None);
    site.restore().unwrap();
    wait_until(
        Duration::from_secs(5),
        "a datagram over the restored uplink",
        arrives,
    )
    .unwrap();
    inside.cut().unwrap();
    assert_eq!(send(&from, &to, at), None);
    inside.restore().unwrap();
    wait_until(
        Duration::from_secs(5),
        "a datagram over the restored cable",
        arrives,
    )
    .unwrap();
}

#[test]
fn a_torn_site_reaches_one_service_elsewhere_and_nothing_else() {
    let lab = Lab::new("torn").unwrap();
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let (inside, neighbour) = (
        lab.host("inside", &site).unwrap(),
        lab.host("neighbour", &site).unwrap(),
    );
    let server = lab.host("server", Place::Internet).unwrap();
    let (from, to) = (udp(&inside, 5000), udp(&server, 1001));
    let at = SocketAddr::from((server.addr(), 1001));
    let arrives = || Ok(send(&from, &to, at).map(|_| ()));
    wait_until(Duration::from_secs(5), "the first datagram", arrives).unwrap();
    let service = |port| {
        let listener = server
            .net()
            .enter(|| Ok(TcpListener::bind((server.addr(), port))?))
            .unwrap();
        let at = listener.local_addr().unwrap();
        let connected = inside
            .net()
            .enter(|| Ok(TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_ok()));
        connected.unwrap()
    };
    assert!(service(2001) && service(2002));
    site.only(2001).unwrap();
    assert_eq!(send(&from, &to, at), None);
    assert!(service(2001) && !service(2002));
    tcp(&inside, &neighbour).unwrap();
    site.everything().unwrap();
    wait_until(Duration::from_secs(5), "a datagram of the whole site", arrives).unwrap();
    assert!(service(2002));
}

#[test]
fn two_labs_run_side_by_side_with_the_same_addresses() {
    let labs = [Lab::new("left").unwrap(), Lab::new("right").unwrap()];
    let pairs = labs.each_ref().map(|lab| {
        let site = lab.site("home", Nat::PortRestricted).unwrap();
        (
            lab.host("inside", &site).unwrap(),
            lab.host("server", Place::Internet).unwrap(),
        )
    });
    assert_eq!(pairs[0].1.addr(), pairs[1].1.addr());
    for (inside, server) in &pairs {
        tcp(inside, server).unwrap();
    }
    assert_ne!(labs[0].id(), labs[1].id());
}

#[test]
fn a_node_is_a_machine_of_its_own() {
    let lab = Lab::new("node").unwrap();
    let site = lab.site("home", Nat::Symmetric).unwrap();
    let node = lab.node("w1", &site).unwrap();
    let server = lab.node("server", Place::Internet).unwrap();
    assert_eq!(node.run("alice", &["id", "-un"]).unwrap(), "alice\n");
    assert_eq!(node.run("alice", &["pwd"]).unwrap(), "/home/alice\n");
    assert_eq!(node.run("root", &["hostname"]).unwrap(), "w1\n");
    assert!(node.run("root", &["condor_version"]).unwrap().contains("23.9"));
    node.run("alice", &["ping", "-c1", "-W2", &server.addr().to_string()])
        .unwrap();
    node.sh(
        "root",
        "test -c /dev/net/tun && ip tuntap add mode tun name t0 && ip link set t0 up",
    )
    .unwrap();
    assert!(
        !node
            .exec("alice", &["sh", "-c", "echo x >/etc/x"])
            .unwrap()
            .success()
    );
    let processes = node.run("root", &["ps", "-e", "-o", "pid="]).unwrap();
    assert!(
        processes.lines().count() < 6,
        "it sees other processes than its own: {processes}"
    );
    let mounts = node.run("root", &["cat", "/proc/mounts"]).unwrap();
    assert!(
        !mounts.contains(" /mnt"),
        "it sees the host's file systems: {mounts}"
    );
    let groups = node.run("root", &["cat", "/proc/self/cgroup"]).unwrap();
    let own = |line: &&str| ["memory", "freezer", "pids"].contains(&line.split(':').nth(1).unwrap());
    assert!(
        groups.lines().filter(own).all(|line| line.ends_with(":/")),
        "its control groups are shared: {groups}"
    );
    let failure = node
        .run("root", &["sh", "-c", "echo why >&2; exit 3"])
        .unwrap_err()
        .to_string();
    assert!(failure.contains("on w1") && failure.contains("why"), "{failure}");
}

#[test]
fn a_command_that_hangs_is_ended() {
    let lab = Lab::new("hang").unwrap();
    let node = lab.node("w1", Place::Internet).unwrap();
    let error = node
        .exec_for(Duration::from_secs(1), "alice", &["sleep", "100"], &[])
        .unwrap_err();
    assert!(error.to_string().contains("did not end within 1.0 s"), "{error}");
    let sleeps = node.exec("root", &["pgrep", "-x", "sleep"]).unwrap();
    assert!(!sleeps.success(), "the command goes on: {}", sleeps.stdout);
}

#[test]
fn a_disk_survives_a_power_cut_and_can_be_copied() {
    let lab = Lab::new("disk").unwrap();
    let node = lab.node("w1", Place::Internet).unwrap();
    let addr = node.addr();
    node.put("/var/lib/thing/state", b"kept").unwrap();
    node.put("/run/thing", b"lost").unwrap();
    let service = node.spawn("root", "sleeper", &["sleep", "1000"], &[]).unwrap();
    assert!(service.running());
    node.restart().unwrap();
    assert!(!service.running());
    assert_eq!(node.get("/var/lib/thing/state").unwrap(), b"kept");
    assert!(node.get("/run/thing").is_err());
    assert_eq!(node.addr(), addr);

    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let clone = node.clone_disk("w2", &site).unwrap();
    assert_eq!(clone.get("/var/lib/thing/state").unwrap(), b"kept");
    clone
        .run("root", &["ping", "-c1", "-W2", &addr.to_string()])
        .unwrap();
}

#[test]
fn a_background_process_has_a_log_and_can_be_killed() {
    let lab = Lab::new("service").unwrap();
    let node = lab.node("w1", Place::Internet).unwrap();
    let argv = ["sh", "-c", "echo $WORD; exec sleep 1000"];
    let service = node
        .spawn("alice", "talker", &argv, &[("WORD", "hello there")])
        .unwrap();
    wait_until(Duration::from_secs(5), "its output", || {
        Ok(service.log().contains("hello there").then_some(()))
    })
    .unwrap();
    service.kill9().unwrap();
    assert!(!service.running());
    let error = lab
        .wait_until(Duration::ZERO, "nothing", || Ok(None::<()>))
        .unwrap_err();
    assert!(format!("{error:#}").contains("talker on w1 (ended)"), "{error:#}");
}

#[test]
fn user_data_reaches_only_its_host_and_only_with_a_session() {
    let lab = Lab::new("cloud").unwrap();
    let site = lab.site("cloud", Nat::PortRestricted).unwrap();
    let host = lab.host("vm", &site).unwrap();
    let metadata = lab.metadata(&site).unwrap();
    metadata.set_user_data(host.addr(), b"the blob".to_vec());
    let ask = |request: &str| {
        host.net()
            .enter(|| {
                let mut stream = TcpStream::connect("169.254.169.254:80")?;
                stream.write_all(request.as_bytes())?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            })
            .unwrap()
    };
    assert!(ask("GET /latest/user-data HTTP/1.1\r\n\r\n").contains("401"));
    let token = ask("PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n");
    let token = token.rsplit("\r\n").next().unwrap();
    let head = format!("GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
    assert!(ask(&head).ends_with("\r\n\r\nthe blob"));
    assert_eq!(metadata.served(), 1);
}

#[test]
fn a_lab_leaves_nothing_behind() {
    let lab = Lab::new("clean").unwrap();
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let node = lab.node("w1", &site).unwrap();
    node.spawn("alice", "sleeper", &["sleep", "1000"], &[]).unwrap();
    let id = lab.id();
    let dir = lab.dir().to_owned();
    let state = state::labs()
        .unwrap()
        .into_iter()
        .find(|lab| lab.id == id)
        .unwrap();
    let processes: Vec<Process> = state
        .holders
        .iter()
        .chain(state.nodes.values())
        .copied()
        .collect();
    assert_eq!(processes.len(), 3);
    let namespaces: Vec<_> = processes
        .iter()
        .map(|process| std::fs::read_link(format!("/proc/{}/ns/net", process.pid)).unwrap())
        .collect();
    drop(node);
    drop(lab);
    assert!(!dir.exists());
    assert!(
        !std::path::Path::new("/sys/fs/cgroup/memory/aerie-lab")
            .join(&id)
            .exists()
    );
    assert!(processes.iter().all(|process| !process.alive()));
    let mine = Process::own();
    wait_until(Duration::from_secs(5), "the end of every child", || {
        Ok(mine.child().is_none().then_some(()))
    })
    .unwrap();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let net = entry.unwrap().path().join("ns/net");
        let used = std::fs::read_link(net).is_ok_and(|net| namespaces.contains(&net));
        assert!(!used, "a process is still in a namespace of the lab");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*dir.to_string_lossy()), "{mounts}");
}

#[test]
fn what_a_crashed_lab_left_is_reaped_and_a_kept_one_is_not() {
    let kept = Lab::builder("kept").keep(true).start().unwrap();
    let id = kept.id();
    let running = Lab::new("running").unwrap();
    let find = |id: &str| state::labs().unwrap().into_iter().find(|lab| lab.id == id);
    // A state whose maker is gone, with a process that is not: as a crash of a kept lab's removal leaves it.
    let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let orphan = Process::find(i32::try_from(sleeper.id()).unwrap()).unwrap();
    let mut crashed = find(&id).unwrap();
    crashed.id = format!("{}-crashed", std::process::id());
    crashed.keep = false;
    crashed.owner.start += 1;
    crashed.holders = vec![orphan];
    let dir = state::run_dir().join(&crashed.id);
    // Made elsewhere and moved there whole: other labs reap at any time.
    let made = tempfile::tempdir().unwrap();
    std::fs::write(
        made.path().join("state.json"),
        serde_json::to_vec(&crashed).unwrap(),
    )
    .unwrap();
    std::process::Command::new("mv")
        .args([made.path(), &dir])
        .status()
        .unwrap();

    state::reap().unwrap();
    assert!(!dir.exists());
    assert!(!orphan.alive());
    sleeper.wait().unwrap();

    drop(kept);
    assert!(!state::reap().unwrap().contains(&id));
    let kept = find(&id).unwrap();
    assert!(kept.in_use());
    state::remove(&kept).unwrap();
    assert!(find(&id).is_none() && find(&running.id()).is_some());
}

/// Set for the process that makes a lab and is killed.
const VICTIM: &str = "LAB_TEST_VICTIM";

#[test]
fn a_lab_ends_with_its_process_however_that_ends() {
    if std::env::var_os(VICTIM).is_some() {
        let lab = Lab::new("victim").unwrap();
        let node = lab
            .node("w1", &lab.site("home", Nat::PortRestricted).unwrap())
            .unwrap();
        node.spawn("alice", "sleeper", &["sleep", "1000"], &[]).unwrap();
        println!("victim {}", lab.id());
        loop {
            std::thread::park();
        }
    }
    let name = "a_lab_ends_with_its_process_however_that_ends";
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(VICTIM, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(victim.stdout.take().unwrap()).lines();
    let id = lines
        .map(Result::unwrap)
        .find_map(|line| line.split_once("victim ").map(|(_, id)| id.to_owned()))
        .unwrap();
    let lab = state::labs()
        .unwrap()
        .into_iter()
        .find(|lab| lab.id == id)
        .unwrap();
    let processes: Vec<_> = lab.holders.iter().chain(lab.nodes.values()).copied().collect();
    assert!(processes.len() == 3 && processes.iter().all(|process| process.alive()));
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_until(Duration::from_secs(10), "the lab's processes to end", || {
        Ok((!processes.iter().any(|process| process.alive())).then_some(()))
    })
    .unwrap();
    state::reap().unwrap();
    assert!(!state::run_dir().join(&id).exists());
}

#[test]
fn a_process_can_be_given_a_wrong_clock() {
    let lab = Lab::new("clock").unwrap();
    let node = lab.node("w1", Place::Internet).unwrap();
    let join = Join::new("w1", Place::Internet, "chem", "worker").clock("-1d");
    let env: Vec<_> = join
        .env
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let clock = node
        .spawn("root", "clock", &["sh", "-c", "date +%s; exec sleep 1000"], &env)
        .unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let seen = wait_until(Duration::from_secs(5), "the time", || {
        Ok(clock.log().trim().parse::<u64>().ok())
    })
    .unwrap();
    assert!(
        (86_400 - 60..86_400 + 60).contains(&(now - seen)),
        "it is {now}, and it sees {seen}"
    );
}
