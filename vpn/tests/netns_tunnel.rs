//! Real drivers with real TUN devices and sockets, in network namespaces that end with the test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use aerie_types::UnderlayAddr;
use aerie_vpn::io::Offloads;
use aerie_vpn::{Handle, Mapping, PathKind, RelayInfo, RelayLimits};
use common::netns::{Namespace, block_on, cpu_time, transfer};
use common::{Switchboard, addr, addr6, config, peer};

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

/// TCP both ways and UDP of several lengths, each byte compared, between nodes with and without offloads.
#[test]
fn offloads_on_or_off_on_either_side_change_no_byte() {
    for offload in [[true, true], [true, false], [false, true], [false, false]] {
        let hosts = [Namespace::new(), Namespace::new()];
        let [a, b] = &hosts;
        a.link("eth0", "10.1.0.1/24", b, "eth0", "10.1.0.2/24");
        let board = Switchboard::default();
        let nodes = [1, 2].map(|n: u16| {
            let side = usize::from(n) - 1;
            let mut config = config(n);
            config.offload = offload[side];
            hosts[side].start(n, &board, config)
        });
        a.ping(2);
        for (node, offload) in nodes.iter().zip(offload) {
            let found = block_on(node.status()).unwrap().offloads;
            eprintln!("{found}");
            assert!(offload || found == Offloads::default(), "{found}");
        }
        let [to_a, to_b] = [1, 2].map(|n| addr(n).v4().unwrap());
        let there = transfer(a, b, to_b, 50);
        let back = transfer(b, a, to_a, 50);
        eprintln!("{offload:?}: {there:.0} and {back:.0} MB/s");
        datagrams(a, b, to_b);
        let [there, back] = [transfer(a, b, addr6(2), 50), transfer(b, a, addr6(1), 50)];
        eprintln!("{offload:?}: {there:.0} and {back:.0} MB/s over IPv6");
        datagrams(a, b, addr6(2));
        datagrams(b, a, addr6(1));
        for node in nodes {
            block_on(node.shutdown());
        }
    }
}

/// The link takes less than a full packet of the tunnel, which the kernel then refuses to send in runs.
#[test]
fn a_link_with_a_small_mtu_is_no_black_hole() {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    for side in [&a, &b] {
        side.run("ip link set eth0 mtu 1300");
    }
    let board = Switchboard::default();
    let nodes = [a.node(1, &board, None), b.node(2, &board, None)];
    a.ping(2);
    transfer(&a, &b, addr(2).v4().unwrap(), 20);
    transfer(&b, &a, addr(1).v4().unwrap(), 20);
    for node in nodes {
        block_on(node.shutdown());
    }
}

/// The kernel takes our word for the checksum of what was put together: only a comparison finds a fault of ours, and
/// loss is what makes runs end in odd places.
#[test]
fn a_lossy_link_loses_no_byte_of_a_stream() {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    let board = Switchboard::default();
    let nodes = [a.node(1, &board, None), b.node(2, &board, None)];
    a.ping(2);
    for side in [&a, &b] {
        side.lose(10);
    }
    thread::scope(|scope| {
        scope.spawn(|| transfer(&a, &b, addr(2).v4().unwrap(), 50));
        scope.spawn(|| transfer(&b, &a, addr(1).v4().unwrap(), 50));
    });
    for node in nodes {
        block_on(node.shutdown());
    }
}

#[test]
fn a_node_whose_interface_was_removed_stays_calm_and_can_be_asked() {
    let a = Namespace::new();
    let node = a.node(1, &Switchboard::default(), None);
    a.run("ip link del aerie-t1");
    let before = cpu_time();
    thread::sleep(Duration::from_secs(1));
    let taken = cpu_time() - before;
    assert!(taken < 0.3, "{taken} s of processor time");
    assert_eq!(block_on(node.status()).unwrap().addr, addr(1));
    block_on(node.shutdown());
}

#[test]
fn a_new_address_takes_the_place_of_the_old_one() {
    let a = Namespace::new();
    let node = a.node(1, &Switchboard::default(), None);
    block_on(node.readdress(addr(7))).unwrap();
    let output = a.command("ip -4 -brief addr show dev aerie-t1").output().unwrap();
    let addrs = String::from_utf8(output.stdout).unwrap();
    let addrs: Vec<_> = addrs.split_whitespace().skip(2).collect();
    assert_eq!(addrs, [format!("{}/11", addr(7))]);
    block_on(node.shutdown());
}

/// Sends datagrams of several lengths, the longest in fragments, and compares each.
fn datagrams(from: &Namespace, to: &Namespace, to_addr: impl Into<IpAddr>) {
    let to_addr = to_addr.into();
    let lengths = [1, 2, 100, 101, 1200, 1371, 1372, 1373, 1391, 1392, 1393, 3000];
    let (send, ready) = std::sync::mpsc::channel();
    let receiver = to.spawn(move || {
        let socket = UdpSocket::bind((to_addr, 5002)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        send.send(()).unwrap();
        let mut buffer = [0; 4000];
        for (n, len) in (0..5).flat_map(|n| lengths.map(|len| (n, len))) {
            let got = socket.recv(&mut buffer).unwrap();
            assert!(
                buffer[..got] == vec![n; len],
                "datagram {n} of {len} bytes: got {got}"
            );
        }
    });
    ready.recv_timeout(Duration::from_secs(5)).unwrap();
    let sender = from.spawn(move || {
        let any: IpAddr = if to_addr.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect((to_addr, 5002)).unwrap();
        for (n, len) in (0..5).flat_map(|n| lengths.map(|len| (n, len))) {
            socket.send(&vec![n; len]).unwrap();
        }
    });
    sender.join().unwrap();
    receiver.join().unwrap();
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
        let hosts = [1, 2].map(|n: u16| {
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
            let info = |n: u16, addr: Ipv4Addr| RelayInfo {
                tls: None,
                peer: peer(n),
                addr: UnderlayAddr((addr, 4242).into()),
            };
            let near = info(8, Ipv4Addr::new(198, 51, n as u8, 1));
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
