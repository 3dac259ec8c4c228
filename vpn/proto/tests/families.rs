//! IPv6 beside IPv4: the same holder, the same session, the same refusals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::net::Ipv6Addr;
use std::time::Duration;

use aerie_vpn_proto::Event;
use common::{World, udp, udp6, ula, virt, virt6};

const ECHO_REQUEST: u8 = 128;

fn changed(addr: Ipv6Addr, byte: usize) -> Ipv6Addr {
    let mut octets = addr.octets();
    octets[byte] ^= 1;
    octets.into()
}

fn v6(v4: &str) -> Ipv6Addr {
    let v4: std::net::Ipv4Addr = v4.parse().unwrap();
    ula().addr(v4.into()).unwrap()
}

/// Where an ICMPv6 error says that an address is unreachable: from where to where.
fn address_unreachable(packet: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let at = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
    (packet[0] >> 4 == 6 && packet[6] == 58 && packet[40..42] == [1, 3]).then(|| (at(8), at(24)))
}

#[test]
fn both_families_go_over_one_session_after_one_look_up() {
    let mut world = World::new(1);
    let (a, b) = (world.public(), world.public());
    world.send_raw(a, &udp6(virt6(1), virt6(2), b"six"));
    world.send(a, b, b"four");
    world.run(Duration::from_secs(1));
    world.send_raw(b, &udp6(virt6(2), virt6(1), b"back"));
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"six".to_vec(), b"four".to_vec()]);
    assert_eq!(world.received(a), [b"back"]);
    let asked = |n: usize| {
        let resolve = |event: &&Event| matches!(event, Event::Resolve(_));
        world.nodes[n].events.iter().filter(resolve).count()
    };
    assert_eq!((asked(a), asked(b)), (1, 1));
    assert_eq!(world.nodes[a].core.counters().handshakes, 1);
    assert_eq!(
        world.nodes[b].core.peers(world.moment()).remove(0).addrs,
        [virt(1)]
    );
}

#[test]
fn extension_headers_and_fragments_pass() {
    let mut world = World::new(2);
    let (a, b) = (world.public(), world.public());
    for first in [0, 43, 44, 60, 59, 58] {
        let mut packet = udp6(virt6(1), virt6(2), &[first; 16]);
        packet[6] = first;
        world.send_raw(a, &packet);
    }
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b).len(), 6);
}

#[test]
fn a_packet_from_an_ipv6_address_that_its_sender_does_not_hold_is_dropped() {
    let mut world = World::new(3);
    let (a, b, c) = (world.public(), world.public(), world.public());
    world.send(a, b, b"x");
    world.send(c, b, b"y");
    world.run(Duration::from_secs(1));
    world.nodes[b].delivered.clear();
    // The sender's core is made to believe that it holds the address: a member that cheats.
    let now = world.moment();
    for (n, spoofed) in [(1, 3), (2, 77)] {
        world.nodes[a].core.readdress(virt(spoofed), now).unwrap();
        world.send_raw(a, &udp6(virt6(spoofed), virt6(2), b"forged"));
        world.run(Duration::from_secs(1));
        assert!(world.nodes[b].delivered.is_empty());
        assert_eq!(world.nodes[b].core.counters().spoofed_source, n);
    }
}

#[test]
fn what_is_not_for_a_node_or_not_from_this_one_is_dropped_without_a_word() {
    let mut world = World::new(5);
    let a = world.public();
    let (own, peer) = (virt6(1), virt6(2));
    let astray = [
        (own, "ff02::16"),
        (own, "ff05::2"),
        (own, "fe80::1"),
        (own, "2001:db8::1"),
    ]
    .map(|(source, to)| (source, to.parse().unwrap()))
    .into_iter()
    .chain([
        ("fe80::9".parse().unwrap(), peer),
        (Ipv6Addr::UNSPECIFIED, peer),
        (changed(own, 15), peer),
        (own, own),
        (own, changed(peer, 7)),
        (own, v6("192.0.2.1")),
    ]);
    for (n, (source, destination)) in astray.enumerate() {
        world.send_raw(a, &udp6(source, destination, b"astray"));
        assert_eq!(
            world.nodes[a].core.counters().misdirected,
            n as u64 + 1,
            "{destination}"
        );
    }
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[a].events, []);
    assert!(world.nodes[a].delivered.is_empty() && world.wire.is_empty());
}

#[test]
fn a_packet_for_an_address_that_nobody_holds_is_answered_with_icmpv6() {
    let mut world = World::new(6);
    let a = world.public();
    world.send_raw(a, &udp6(virt6(1), virt6(77), b"nobody's"));
    world.run(Duration::from_secs(5));
    let answers: Vec<_> = world.nodes[a]
        .delivered
        .iter()
        .map(|packet| address_unreachable(packet))
        .collect();
    assert_eq!(answers, [Some((virt6(77), virt6(1)))]);
}

#[test]
fn a_host_without_ipv6_says_so_to_who_sends_it_and_goes_on_with_ipv4() {
    let mut world = World::new(7);
    let (a, b) = (world.public(), world.public());
    world.nodes[b].core.set_ipv6(false);
    let mut echo = udp6(virt6(1), virt6(2), &[ECHO_REQUEST, 0, 0, 0, 0, 0, 0, 0]);
    echo[6] = 58;
    // The first waits for its look-up, the second does not.
    for _ in 0..2 {
        world.nodes[a].delivered.clear();
        world.send_raw(a, &echo);
        world.run(Duration::from_secs(1));
        let answers: Vec<_> = world.nodes[a]
            .delivered
            .iter()
            .map(|packet| address_unreachable(packet))
            .collect();
        assert_eq!(answers, [Some((virt6(2), virt6(1)))]);
        assert_eq!(world.nodes[a].delivered[0][48..], echo);
    }
    world.send_raw(a, &udp(virt(1), virt(2), b"four"));
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"four"]);
    assert_eq!(world.nodes[b].core.counters().undeliverable, 2);
}

#[test]
fn an_address_that_moves_takes_its_ipv6_address_along() {
    let mut world = World::new(8);
    let (a, b) = (world.public(), world.public());
    world.send_raw(b, &udp6(virt6(2), virt6(1), b"x"));
    world.run(Duration::from_secs(1));
    let now = world.moment();
    world.nodes[a].core.readdress(virt(50), now).unwrap();
    world.holders.insert(virt(50), a);
    world.send_raw(a, &udp6(virt6(50), virt6(2), b"moved"));
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"moved"]);
    let before = world.nodes[a].core.counters().misdirected;
    world.send_raw(a, &udp6(virt6(1), virt6(2), b"from the old one"));
    assert_eq!(world.nodes[a].core.counters().misdirected - before, 1);
}
