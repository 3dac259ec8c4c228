//! Real drivers with real TUN devices and sockets, in network namespaces that end with the test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aerie_types::UnderlayAddr;
use aerie_vpn::{Handle, Mapping, PathKind, RelayInfo, RelayLimits, Vpn};
use common::{Switchboard, addr, check, config, identity, peer};
use nix::sched::{CloneFlags, setns};

/// A network namespace, held by a process that ends when the test does.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "network namespaces need root");
        Self { holder }
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path()))
            .args(words.split_whitespace());
        command
    }

    fn run(&self, words: &str) {
        let output = self.command(words).output().unwrap();
        assert!(
            output.status.success(),
            "{words}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn rules(&self, rules: &str) {
        let mut child = self.command("nft -f -").stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{rules}");
    }

    /// Joins two namespaces by a pair of interfaces with addresses.
    fn link(&self, name: &str, net: &str, other: &Self, other_name: &str, other_net: &str) {
        self.run(&format!(
            "ip link add {name} type veth peer name {other_name} netns {}",
            other.holder.id()
        ));
        for (side, name, net) in [(self, name, net), (other, other_name, other_net)] {
            side.run(&format!("ip addr add {net} dev {name}"));
            side.run(&format!("ip link set {name} up"));
        }
    }

    /// Starts work on a thread inside the namespace.
    fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = File::open(self.path()).unwrap();
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Starts a node. Its driver runs on a thread inside the namespace until it is shut down.
    fn node(&self, n: u8, board: &Switchboard, relay: Option<RelayLimits>) -> Handle {
        let (send, receive) = std::sync::mpsc::channel();
        let board = board.clone();
        self.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let mut config = config(n);
                config.relay = relay;
                let (handle, events) = Vpn::start(config, identity(n), check(), &mut rand::rng()).unwrap();
                board.join(peer(n), handle.clone());
                send.send(handle.clone()).unwrap();
                board.serve(n, handle, events).await;
            });
        });
        receive.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn ping(&self, to: u8) {
        let output = self
            .command(&format!("ping -c 3 -i 0.2 -W 5 {}", addr(to)))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(" 0% packet loss"), "{text}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing left to do.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// Sends so many megabytes of a pattern over TCP and compares each byte. The rate in megabytes a second.
fn transfer(from: &Namespace, to: &Namespace, to_addr: Ipv4Addr, megabytes: usize) -> f64 {
    let (send, ready) = std::sync::mpsc::channel();
    let receiver = to.spawn(move || {
        let listener = TcpListener::bind(SocketAddr::from((to_addr, 5001))).unwrap();
        send.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let pattern = pattern();
        let mut buffer = vec![0; pattern.len()];
        for block in 0..megabytes {
            stream.read_exact(&mut buffer).unwrap();
            assert!(buffer == pattern, "block {block} is damaged");
        }
    });
    ready.recv_timeout(Duration::from_secs(5)).unwrap();
    let began = Instant::now();
    let sender = from.spawn(move || {
        let mut stream = TcpStream::connect((to_addr, 5001)).unwrap();
        let pattern = pattern();
        for _ in 0..megabytes {
            stream.write_all(&pattern).unwrap();
        }
    });
    sender.join().unwrap();
    receiver.join().unwrap();
    megabytes as f64 / began.elapsed().as_secs_f64()
}

fn pattern() -> Vec<u8> {
    (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn two_hosts_ping_and_move_data_intact() {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    let board = Switchboard::default();
    let (node_a, node_b) = (a.node(1, &board, None), b.node(2, &board, None));
    a.ping(2);
    b.ping(1);
    let path = block_on(node_a.peers()).remove(0).path;
    assert!(matches!(path, PathKind::Lan(_)), "{path}");
    let rate = transfer(&a, &b, addr(2).v4().unwrap(), 200);
    eprintln!("{rate:.0} MB/s");
    let pong = block_on(node_a.ping(addr(2))).unwrap();
    assert!(pong.rtt < Duration::from_millis(500));
    block_on(node_a.shutdown());
    block_on(node_b.shutdown());
    assert!(
        !a.command("ip link show aerie-t1")
            .output()
            .unwrap()
            .status
            .success(),
        "the interface is gone"
    );
}

/// An internet with two relays, and two hosts behind routers that translate.
struct Internet {
    inet: Namespace,
    server: Namespace,
    _routers: Vec<Namespace>,
    hosts: [Namespace; 2],
}

impl Internet {
    fn new(masquerade: [&str; 2]) -> Self {
        let inet = Namespace::new();
        inet.run("sysctl -qw net.ipv4.ip_forward=1");
        let server = Namespace::new();
        server.link("eth0", "198.51.9.2/24", &inet, "to9", "198.51.9.1/24");
        server.run("ip route add default via 198.51.9.1");
        let mut routers = Vec::new();
        let hosts = [1, 2].map(|n: u8| {
            let (router, host) = (Namespace::new(), Namespace::new());
            let (wan, lan) = (format!("198.51.{n}"), format!("10.{n}.0"));
            router.link(
                "wan",
                &format!("{wan}.2/24"),
                &inet,
                &format!("to{n}"),
                &format!("{wan}.1/24"),
            );
            router.link(
                "lan",
                &format!("{lan}.1/24"),
                &host,
                "eth0",
                &format!("{lan}.2/24"),
            );
            router.run("sysctl -qw net.ipv4.ip_forward=1");
            router.run(&format!("ip route add default via {wan}.1"));
            host.run(&format!("ip route add default via {lan}.1"));
            router.rules(&format!(
                "table ip nat {{
                    chain postrouting {{ type nat hook postrouting priority 100;
                        oifname wan {}
                    }}
                    chain forward {{ type filter hook forward priority 0;
                        iifname wan ct state new drop
                    }}
                    chain input {{ type filter hook input priority 0;
                        iifname wan ct state new drop
                    }}
                }}\n",
                masquerade[usize::from(n) - 1]
            ));
            routers.push(router);
            host
        });
        Self {
            inet,
            server,
            _routers: routers,
            hosts,
        }
    }

    /// Starts the relays and both nodes, and pings across.
    fn connect(&self) -> ([Handle; 2], Handle, Handle) {
        let board = Switchboard::default();
        let relays = [(&self.inet, 8), (&self.server, 9)]
            .map(|(namespace, n)| namespace.node(n, &board, Some(RelayLimits::default())));
        let [a, b] = [1, 2].map(|n| self.hosts[usize::from(n) - 1].node(n, &board, None));
        for (node, n) in [(&a, 1), (&b, 2)] {
            let info = |n: u8, addr: Ipv4Addr| RelayInfo {
                peer: peer(n),
                addr: UnderlayAddr((addr, 4242).into()),
            };
            let near = info(8, Ipv4Addr::new(198, 51, n, 1));
            block_on(node.set_relays(vec![near, info(9, Ipv4Addr::new(198, 51, 9, 2))]));
            let began = Instant::now();
            while block_on(node.status()).unwrap().nat == Mapping::Unknown {
                assert!(
                    began.elapsed() < Duration::from_secs(10),
                    "the relays do not answer"
                );
                thread::sleep(Duration::from_millis(20));
            }
        }
        self.hosts[0].ping(2);
        self.hosts[1].ping(1);
        (relays, a, b)
    }
}

#[test]
fn two_hosts_behind_nats_that_keep_ports_go_direct() {
    let internet = Internet::new(["masquerade", "masquerade"]);
    let (_relays, a, b) = internet.connect();
    let direct = |node: &Handle| matches!(block_on(node.peers()).remove(0).path, PathKind::Direct(_));
    let began = Instant::now();
    while !(direct(&a) && direct(&b)) {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}",
            block_on(a.peers())
        );
        thread::sleep(Duration::from_millis(100));
    }
    transfer(&internet.hosts[0], &internet.hosts[1], addr(2).v4().unwrap(), 20);
}

#[test]
fn a_host_behind_a_symmetric_nat_talks_through_the_relay_and_says_why() {
    let internet = Internet::new(["masquerade fully-random", "masquerade"]);
    let (relays, a, b) = internet.connect();
    let status = block_on(a.peers()).remove(0);
    assert!(matches!(status.path, PathKind::Relayed { .. }), "{status:?}");
    let why = status.why.unwrap();
    assert!(why.contains("symmetric"), "{why}");
    transfer(&internet.hosts[0], &internet.hosts[1], addr(2).v4().unwrap(), 20);
    let carried: u64 = relays
        .iter()
        .map(|relay| block_on(relay.status()).unwrap().counters.relayed)
        .sum();
    assert!(carried > 10_000, "{carried}");
    drop(b);
}
