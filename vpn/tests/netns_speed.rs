//! How fast the tunnel is: a measurement, to be asked for by name with `--release --run-ignored all`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aerie_vpn::Vpn;
use aerie_vpn::io::UdpSocket;
use aerie_vpn::io::memory::MemoryTun;
use common::memory::packet;
use common::netns::{Namespace, block_on, cpu_time, transfer};
use common::{Switchboard, addr, check, config, identity, peer};

/// Seconds of each run.
const SECONDS: u32 = 5;
/// Seconds before that which do not count.
const WARM_UP: u32 = 1;

/// Ends with the test, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "a measurement"]
fn iperf3_between_two_hosts() {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    let board = Switchboard::default();
    let (node_a, node_b) = (a.node(1, &board, None), b.node(2, &board, None));
    a.ping(2);
    let _server = Server(b.command("iperf3 -s").stdout(Stdio::null()).spawn().unwrap());
    thread::sleep(Duration::from_millis(500));
    let to = addr(2).v4().unwrap();
    for (name, options) in [
        ("one stream", ""),
        ("four streams", "-P 4"),
        ("reverse", "-R"),
        ("one stream", ""),
        ("UDP of 1,200 bytes", "-u -b 0 -l 1200"),
        ("UDP of 64 bytes", "-u -b 0 -l 64"),
    ] {
        let before = cpu_time();
        let output = a
            .command(&format!(
                "iperf3 -c {to} -t {SECONDS} -O {WARM_UP} -f m {options}"
            ))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = if options.contains("-P") { "[SUM]" } else { "[ " };
        let line = text
            .lines()
            .rfind(|line| line.contains("receiver") && line.starts_with(sum));
        let Some((rate, rest)) = line.and_then(|line| line.split_once(" Mbits/sec")) else {
            panic!("{name}: {text}");
        };
        let rate: f64 = rate.split_whitespace().last().unwrap().parse().unwrap();
        let gibibytes = rate * 1e6 / 8.0 * f64::from(SECONDS + WARM_UP) / f64::from(1 << 30);
        let cost = (cpu_time() - before) / gibibytes;
        eprintln!(
            "{name}: {rate:.0} Mb/s {}, {cost:.2} s/GiB in both nodes",
            rest.trim_end_matches("receiver").trim()
        );
    }
    let ping = a
        .command(&format!("ping -c 200 -i 0.005 -q {to}"))
        .output()
        .unwrap();
    eprintln!("{}", String::from_utf8_lossy(&ping.stdout));
    block_on(node_a.shutdown());
    block_on(node_b.shutdown());
}

/// Tunnels that a node has beside the busy one.
const MANY: u16 = 1000;
/// The number of the first of their nodes.
const FIRST: u16 = 1000;
/// Each of their nodes sends a packet so often.
const TALKS_EVERY: Duration = Duration::from_secs(2);

/// Many nodes with sockets of their own and no device, on one thread of a namespace. Each sends a little to the node
/// whose number it is told.
fn many(namespace: &Namespace, board: &Switchboard) -> tokio::sync::watch::Sender<u16> {
    let (to, told) = tokio::sync::watch::channel(0);
    let board = board.clone();
    namespace.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            for n in FIRST..FIRST + MANY {
                let tun = MemoryTun::default();
                let udp = UdpSocket::bind(0, true).unwrap();
                let (handle, events, _) = Vpn::start_with(
                    config(n),
                    identity(n),
                    check(),
                    &mut rand::rng(),
                    tun.clone(),
                    udp,
                )
                .unwrap();
                board.join(peer(n), handle.clone());
                tokio::spawn(board.clone().serve(n, handle, events));
                let told = told.clone();
                tokio::spawn(async move {
                    // Spread over the time between two.
                    tokio::time::sleep(TALKS_EVERY * u32::from(n - FIRST) / u32::from(MANY)).await;
                    loop {
                        let to = *told.borrow();
                        if to != 0 {
                            tun.host_sends(packet(n, to, &[7; 100]));
                        }
                        tokio::time::sleep(TALKS_EVERY).await;
                    }
                });
            }
            // Until the sender is dropped.
            let mut told = told;
            while told.changed().await.is_ok() {}
        });
    });
    to
}

/// The speed of one flow between two nodes, while a thousand tunnels end at one of them and while they end at a third
/// node, which takes as much of the machine.
#[test]
#[ignore = "a measurement"]
fn a_busy_flow_beside_a_thousand_tunnels() {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    let board = Switchboard::default();
    let mut beside = config(3);
    beside.port = 4243;
    let nodes = [
        a.node(1, &board, None),
        b.node(2, &board, None),
        a.start(3, &board, beside),
    ];
    a.ping(2);
    let talk_to = many(&b, &board);
    for _ in 0..3 {
        let rates = [3, 1].map(|n: u16| {
            talk_to.send_replace(n);
            let hub = if n == 1 { &nodes[0] } else { &nodes[2] };
            let connected = || {
                let peers = block_on(hub.peers());
                peers.iter().filter(|peer| peer.handshake_age.is_some()).count()
            };
            let began = Instant::now();
            while connected() < usize::from(MANY) {
                assert!(
                    began.elapsed() < Duration::from_secs(120),
                    "{} of {MANY} after two minutes",
                    connected()
                );
                thread::sleep(Duration::from_millis(200));
            }
            transfer(&a, &b, addr(2).v4().unwrap(), 2000)
        });
        let [without, with] = rates;
        eprintln!(
            "{with:.0} MB/s with {MANY} tunnels, {without:.0} without: {:.2}",
            with / without
        );
    }
    drop(talk_to);
    for node in nodes {
        block_on(node.shutdown());
    }
}

/// Sends as fast as it goes until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    ends: [thread::JoinHandle<()>; 2],
}

impl Load {
    fn start(from: &Namespace, to: &Namespace, to_addr: Ipv4Addr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (send, ready) = std::sync::mpsc::channel();
        let receiver = to.spawn(move || {
            let listener = TcpListener::bind((to_addr, 5002)).unwrap();
            send.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 16];
            while stream.read(&mut buffer).is_ok_and(|len| len > 0) {}
        });
        ready.recv_timeout(Duration::from_secs(5)).unwrap();
        let told = Arc::clone(&stop);
        let sender = from.spawn(move || {
            let mut stream = TcpStream::connect((to_addr, 5002)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            // Where the link is full for longer, the next attempt does as well.
            while !told.load(Ordering::Relaxed) {
                let _ = stream.write(&[7; 1 << 16]);
            }
        });
        Self {
            stop,
            ends: [receiver, sender],
        }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let [receiver, sender] = self.ends;
        sender.join().unwrap();
        receiver.join().unwrap();
    }
}

/// The speed of a flow to one peer while another flow fills a link of 20 Mbit/s: one of this host's own, and one
/// further on.
#[test]
#[ignore = "a measurement"]
fn a_fast_peer_beside_a_slow_one() {
    for own in [true, false] {
        let [a, b, c, router] = [(); 4].map(|()| Namespace::new());
        a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
        a.link("eth1", "10.2.0.1/24", &router, "near", "10.2.0.2/24");
        router.link("far", "10.3.0.1/24", &c, "eth0", "10.3.0.2/24");
        router.run("sysctl -qw net.ipv4.ip_forward=1");
        a.run("ip route add 10.3.0.0/24 via 10.2.0.2");
        c.run("ip route add default via 10.3.0.1");
        let (slow, device) = if own { (&a, "eth1") } else { (&router, "far") };
        slow.run(&format!(
            "tc qdisc add dev {device} root tbf rate 20mbit burst 64kb limit 4mb"
        ));
        let board = Switchboard::default();
        let nodes = [
            a.node(1, &board, None),
            b.node(2, &board, None),
            c.node(3, &board, None),
        ];
        a.ping(2);
        a.ping(3);
        for _ in 0..3 {
            let fast = || transfer(&a, &b, addr(2).v4().unwrap(), 2000);
            let without = fast();
            let load = Load::start(&a, &c, addr(3).v4().unwrap());
            // Until the slow link's queue is full.
            thread::sleep(Duration::from_secs(3));
            let with = fast();
            load.stop();
            let whose = if own { "its own" } else { "a far" };
            eprintln!(
                "{with:.0} MB/s beside a flow that fills {whose} link of 20 Mbit/s, {without:.0} without: {:.2}",
                with / without
            );
        }
        for node in nodes {
            block_on(node.shutdown());
        }
    }
}
