//! Paths that take less than the tunnel's interface, and drop what is cut into fragments: real drivers with real TUN
//! devices in network namespaces that end with the test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use aerie_vpn::Handle;
use common::netns::{Namespace, block_on, transfer};
use common::{Switchboard, addr, addr6, config};

/// What a stream may take from its first packet on, which opens the tunnel, to its last.
const SOON: Duration = Duration::from_secs(10);

/// Two hosts with a router each, and a link between the routers. The routers drop fragments, as they come in.
struct Narrow {
    hosts: [Namespace; 2],
    routers: [Namespace; 2],
}

impl Narrow {
    /// The MTU of the hosts' links, and of that between the routers.
    fn new(hosts_mtu: u16, middle: u16, v6: bool) -> Self {
        let narrow = Self {
            hosts: [Namespace::new(), Namespace::new()],
            routers: [Namespace::new(), Namespace::new()],
        };
        let (net, len) = if v6 { ("2001:db8:", "64") } else { ("10.1", "24") };
        let at = |link: u8, last: u8| {
            if v6 {
                format!("{net}{link}::{last}")
            } else {
                format!("{net}.{link}.{last}")
            }
        };
        let with_len = |addr: String| format!("{addr}/{len}");
        let [first, second] = &narrow.routers;
        let [from, to] = [1, 2].map(|last| with_len(at(9, last)));
        first.link("middle", &from, second, "middle", &to);
        for (n, (host, router)) in (1u8..).zip(narrow.hosts.iter().zip(&narrow.routers)) {
            let [gateway, own] = [1, 2].map(|last| with_len(at(n, last)));
            router.link("edge", &gateway, host, "eth0", &own);
            router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
            router.run(&format!(
                "ip route add {} via {}",
                with_len(at(3 - n, 0)),
                at(9, 3 - n)
            ));
            host.run(&format!("ip route add default via {}", at(n, 1)));
            router.run(&format!("ip link set edge mtu {hosts_mtu}"));
            host.run(&format!("ip link set eth0 mtu {hosts_mtu}"));
            router.rules(
                "table inet fragments {
                    chain in { type filter hook prerouting priority -500;
                        ip frag-off & 0x3fff != 0 counter drop
                        exthdr frag exists counter drop
                    }
                }\n",
            );
        }
        narrow.set_middle(middle);
        narrow
    }

    fn set_middle(&self, mtu: u16) {
        for router in &self.routers {
            router.run(&format!("ip link set middle mtu {mtu}"));
        }
    }

    /// A node on each host, with an interface of this MTU.
    fn start(&self, mtu: u16) -> [Handle; 2] {
        let board = Switchboard::default();
        [1, 2].map(|n: u16| {
            let mut config = config(n);
            config.mtu = mtu;
            self.hosts[usize::from(n) - 1].start(n, &board, config)
        })
    }

    /// Moves data both ways; each has to be through soon.
    fn move_data(&self, v6: bool) {
        let [a, b] = &self.hosts;
        let to = |n: u16| -> IpAddr { if v6 { addr6(n).into() } else { addr(n).0 } };
        for (from, into, to) in [(a, b, to(2)), (b, a, to(1))] {
            let began = Instant::now();
            transfer(from, into, to, 5);
            let took = began.elapsed();
            eprintln!("5 MB to {to} took {took:?}");
            assert!(took < SOON, "{took:?}");
        }
    }
}

/// Waits until a node knows that packets of this length go whole to its only peer.
fn found(node: &Handle, expected: usize) {
    let began = Instant::now();
    loop {
        let mtu = block_on(node.peers()).first().and_then(|peer| peer.mtu);
        if mtu == Some(expected) {
            return;
        }
        assert!(began.elapsed() < SOON, "{mtu:?} instead of {expected}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// What a ping with a packet of `len` bytes says.
fn ping(host: &Namespace, to: impl Into<IpAddr>, len: usize, cut: &str) -> String {
    let to = to.into();
    let payload = len - if to.is_ipv4() { 28 } else { 48 };
    let output = host
        .command(&format!("ping -c 2 -i 0.2 -W 3 -M {cut} -s {payload} {to}"))
        .output()
        .unwrap();
    [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat()
}

fn passes(host: &Namespace, to: impl Into<IpAddr>, len: usize, cut: &str) {
    let said = ping(host, to, len, cut);
    assert!(said.contains(" 0% packet loss"), "{len} bytes: {said}");
}

/// What the path takes, inside and out.
fn a_narrow_path(link: u16, outer_v6: bool, inner: usize) {
    let narrow = Narrow::new(1500, link, outer_v6);
    let nodes = narrow.start(1420);
    let [a, b] = &narrow.hosts;
    // The first packets of the tunnel are those of a stream.
    let began = Instant::now();
    transfer(a, b, addr(2).0, 5);
    let took = began.elapsed();
    eprintln!("link {link}: 5 MB took {took:?} from the first packet on");
    assert!(took < SOON, "{took:?}");
    nodes.iter().for_each(|node| found(node, inner));

    // The other host has sent nothing that is too long yet.
    let said = ping(b, addr(1).0, 1420, "do");
    assert!(
        said.contains(&format!("Frag needed and DF set (mtu = {inner})")),
        "{said}"
    );
    let said = ping(b, addr6(1), 1420, "do");
    let told = inner.max(1280);
    assert!(said.contains(&format!("Packet too big: mtu={told}")), "{said}");
    passes(b, addr(1).0, inner, "do");
    passes(b, addr6(1), told, "do");
    passes(a, addr(2).0, 1420, "dont");
    passes(b, addr(1).0, 4000, "dont");
    // The host cuts it at what it was told, by the first that it sends.
    ping(b, addr6(1), 4000, "dont");
    passes(b, addr6(1), 4000, "dont");

    narrow.move_data(false);
    narrow.move_data(true);
    for node in nodes {
        block_on(node.shutdown());
    }
}

#[test]
fn a_stream_passes_a_link_of_1400_bytes_that_drops_fragments() {
    a_narrow_path(1400, false, 1340);
}

#[test]
fn a_stream_passes_a_link_of_1300_bytes_that_drops_fragments() {
    a_narrow_path(1300, false, 1240);
}

#[test]
fn a_stream_passes_a_narrow_link_of_ipv6_that_drops_fragments() {
    a_narrow_path(1400, true, 1320);
}

#[test]
fn a_path_that_turns_narrow_under_its_streams_is_followed() {
    let narrow = Narrow::new(1500, 1500, false);
    let nodes = narrow.start(1420);
    narrow.move_data(false);
    nodes.iter().for_each(|node| found(node, 1420));
    narrow.set_middle(1400);
    narrow.move_data(false);
    // The other one's host makes shorter packets by itself: its stream was told so by the first one's.
    found(&nodes[0], 1340);
    for node in nodes {
        block_on(node.shutdown());
    }
}

#[test]
fn a_path_mtu_that_the_kernel_was_told_falsely_cuts_nothing() {
    let narrow = Narrow::new(1500, 1500, false);
    for (n, host) in (1..).zip(&narrow.hosts) {
        host.run(&format!("ip route replace default via 10.1.{n}.1 mtu 700"));
    }
    let _nodes = narrow.start(1420);
    narrow.move_data(false);
}

#[test]
fn a_large_mtu_is_used_where_it_passes_and_does_no_harm_where_it_does_not() {
    for (edge, middle, inner) in [(9000, 9000, 8900), (9000, 1500, 1440), (1500, 1500, 1440)] {
        let narrow = Narrow::new(edge, middle, false);
        let nodes = narrow.start(8900);
        narrow.move_data(false);
        nodes.iter().for_each(|node| found(node, inner));
        let [a, b] = &narrow.hosts;
        passes(a, addr(2).0, inner, "do");
        passes(b, addr(1).0, 8900, "dont");
        narrow.move_data(true);
        for node in nodes {
            block_on(node.shutdown());
        }
    }
}
