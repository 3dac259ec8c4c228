//! Which way two nodes find to each other, through every NAT that matters, and what happens when it changes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use aerie_types::UnderlayAddr;
use aerie_vpn_proto::{Mapping, PathKind, Reason};
use common::{NatKind, World};

const SOON: Duration = Duration::from_secs(10);

fn is_direct(path: PathKind) -> bool {
    matches!(path, PathKind::Direct(_) | PathKind::Lan(_))
}

fn is_relayed(path: PathKind) -> bool {
    matches!(path, PathKind::Relayed { .. })
}

/// Two nodes and two relays; the first sends, the second answers.
fn talk(a: NatKind, b: NatKind) -> (World, usize, usize) {
    let mut world = World::new(1);
    let (relay, other) = (world.relay(), world.relay());
    let (a, b) = (world.behind(a), world.behind(b));
    world.announce_relays(&[relay, other]);
    world.send(a, b, b"ping");
    let took = world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
    assert!(took < Duration::from_secs(1), "the first packet took {took:?}");
    world.send(b, a, b"pong");
    world.run_until(SOON, |world| !world.nodes[a].delivered.is_empty());
    world.run(Duration::from_secs(3));
    assert_eq!(world.received(a), [b"pong"]);
    assert_eq!(world.received(b), [b"ping"]);
    (world, a, b)
}

#[test]
fn two_port_restricted_nats_are_punched() {
    let (world, a, b) = talk(NatKind::PortRestricted, NatKind::PortRestricted);
    assert!(
        is_direct(world.path(a, b)) && is_direct(world.path(b, a)),
        "{}",
        world.path(a, b)
    );
    assert_eq!(world.nodes[a].core.nat(world.moment()).0, Mapping::Independent);
}

#[test]
fn a_full_cone_is_reached_from_behind_a_symmetric_nat() {
    let (world, a, b) = talk(NatKind::Symmetric, NatKind::FullCone);
    assert!(is_direct(world.path(a, b)) && is_direct(world.path(b, a)));
    let (world, a, b) = talk(NatKind::FullCone, NatKind::Symmetric);
    assert!(is_direct(world.path(a, b)) && is_direct(world.path(b, a)));
}

#[test]
fn a_symmetric_and_a_port_restricted_nat_talk_through_a_relay_and_say_why() {
    let (world, a, b) = talk(NatKind::Symmetric, NatKind::PortRestricted);
    assert!(is_relayed(world.path(a, b)) && is_relayed(world.path(b, a)));
    assert_eq!(world.nodes[a].core.nat(world.moment()).0, Mapping::Dependent);
    let why = |node: usize| {
        world.nodes[node]
            .core
            .peers(world.moment())
            .remove(0)
            .why
            .unwrap()
    };
    assert!(
        why(a).contains("our NAT") && why(a).contains("symmetric"),
        "{}",
        why(a)
    );
    assert!(why(b).contains("the peer's NAT"), "{}", why(b));
}

#[test]
fn an_address_that_was_tried_is_named_with_the_reason() {
    let (mut world, a, b) = talk(NatKind::Symmetric, NatKind::Symmetric);
    world.run(Duration::from_secs(8));
    let why = world.nodes[a].core.peers(world.moment()).remove(0).why.unwrap();
    assert!(why.contains("10.1.0.4:4242 (host): no answer to"), "{why}");
    assert!(why.contains("both NATs"), "{why}");
    assert!(is_relayed(world.path(a, b)));
}

#[test]
fn two_hosts_of_one_network_use_their_own_addresses() {
    let mut world = World::new(2);
    let relay = world.relay();
    let nat = world.nat(NatKind::Symmetric);
    let never = aerie_types::WallMillis(u64::MAX);
    let (a, b) = (
        world.add(Some(nat), None, never),
        world.add(Some(nat), None, never),
    );
    world.announce_relays(&[relay]);
    world.send(a, b, b"x");
    world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
    world.run(Duration::from_secs(2));
    assert!(
        matches!(world.path(a, b), PathKind::Lan(_)),
        "{}",
        world.path(a, b)
    );
}

#[test]
fn a_relayed_path_moves_up_when_the_direct_one_opens() {
    let mut world = World::new(3);
    let relay = world.relay();
    let (a, b) = (
        world.behind(NatKind::PortRestricted),
        world.behind(NatKind::PortRestricted),
    );
    // A firewall between the two for the first half minute.
    let until = world.now + Duration::from_secs(30);
    world.drop_if = Some(Box::new(move |seen| {
        seen.at < until
            && seen.from.ip() != seen.to.ip()
            && [seen.from, seen.to].iter().all(|a| a.port() > 20_000)
    }));
    world.announce_relays(&[relay]);
    world.send(a, b, b"0");
    world.run(Duration::from_secs(10));
    assert!(is_relayed(world.path(a, b)), "{}", world.path(a, b));
    let mut sent = 1;
    while !is_direct(world.path(a, b)) || !is_direct(world.path(b, a)) {
        world.send(a, b, sent.to_string().as_bytes());
        sent += 1;
        world.run(Duration::from_secs(1));
        assert!(sent < 120, "no upgrade");
    }
    let expected: Vec<_> = (0..sent).map(|n: u32| n.to_string().into_bytes()).collect();
    assert_eq!(
        world.received(b),
        expected,
        "nothing lost, nothing twice, in order"
    );
}

#[test]
fn a_direct_path_that_dies_is_replaced_by_a_relay_within_seconds() {
    let (mut world, a, b) = talk(NatKind::PortRestricted, NatKind::PortRestricted);
    // Long enough that the relayed way is no longer held ready.
    for _ in 0..80 {
        world.send(a, b, b"x");
        world.send(b, a, b"y");
        world.run(Duration::from_secs(1));
    }
    assert!(is_direct(world.path(a, b)));
    world.drop_if = Some(Box::new(|seen| {
        [seen.from, seen.to].iter().all(|a| a.port() > 20_000)
    }));
    world.nodes[b].delivered.clear();
    let began = world.now;
    while world.nodes[b].delivered.is_empty() {
        world.send(a, b, b"z");
        world.run(Duration::from_millis(200));
        assert!(world.now - began < Duration::from_secs(8), "a long silence");
    }
    assert!(is_relayed(world.path(a, b)));
}

#[test]
fn a_node_that_moves_keeps_its_session() {
    let mut world = World::new(4);
    let (a, b) = (world.public(), world.public());
    world.send(a, b, b"1");
    world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
    world.run(Duration::from_secs(1));
    let handshakes = world.nodes[b].core.counters().handshakes;
    // The node's address changes under it, without its knowledge: as if its NAT had been restarted.
    world.nodes[a].host = "203.0.113.77:999".parse().unwrap();
    world.send(a, b, b"2");
    world.run(Duration::from_secs(4));
    world.send(b, a, b"3");
    world.run(Duration::from_secs(3));
    assert_eq!(world.received(b), [b"1", b"2"]);
    assert_eq!(world.received(a), [b"3"]);
    assert!(
        world.path(b, a).to_string().contains("203.0.113.77:999"),
        "{}",
        world.path(b, a)
    );
    assert_eq!(
        world.nodes[b].core.counters().handshakes,
        handshakes,
        "the same session"
    );
}

#[test]
fn a_datagram_sent_on_from_elsewhere_does_not_move_the_path() {
    let mut world = World::new(5);
    let (a, b) = (world.public(), world.public());
    world.send(a, b, b"1");
    world.run(Duration::from_secs(1));
    let before = world.path(b, a);
    // Somebody keeps a datagram from its receiver and sends it from another address.
    let target = world.nodes[b].host;
    world.drop_if = Some(Box::new(move |seen| seen.to == target && seen.bytes[1] == 3));
    world.send(a, b, b"2");
    let caught = world.wire.last().unwrap().clone();
    world.drop_if = None;
    world.inject("203.0.113.66:6".parse().unwrap(), target, caught.bytes);
    world.run(Duration::from_secs(10));
    assert_eq!(world.received(b), [b"1", b"2"], "it is genuine");
    assert_eq!(world.path(b, a), before);
}

#[test]
fn an_idle_pair_sends_nothing_and_wakes_at_once() {
    let (mut world, a, b) = talk(NatKind::PortRestricted, NatKind::PortRestricted);
    world.run(Duration::from_secs(400));
    world.wire.clear();
    world.run(Duration::from_secs(60));
    let between = world
        .wire
        .iter()
        .filter(|seen| seen.to.port() > 20_000 && seen.from.port() > 20_000);
    assert_eq!(between.count(), 0);
    world.nodes[b].delivered.clear();
    world.send(a, b, b"again");
    let took = world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_restarted_peer_is_reached_again_within_seconds() {
    let mut world = World::new(6);
    let (a, b) = (world.public(), world.public());
    world.send(a, b, b"1");
    world.run(Duration::from_secs(5));
    world.restart(b);
    world.nodes[b].delivered.clear();
    let began = world.now;
    while world.nodes[b].delivered.is_empty() {
        world.send(a, b, b"2");
        world.run(Duration::from_millis(500));
        assert!(
            world.now - began < Duration::from_secs(10),
            "the old session is held on to"
        );
    }
}

#[test]
fn the_number_of_a_probe_says_nothing_of_the_next() {
    const PROBE: u8 = 4;
    let (mut world, a, b) = talk(NatKind::PortRestricted, NatKind::PortRestricted);
    for _ in 0..20 {
        world.send(a, b, b"on");
        world.run(Duration::from_secs(5));
    }
    let mut numbers: Vec<u64> = world
        .wire
        .iter()
        .filter(|seen| seen.bytes[1] == PROBE)
        .map(|seen| u64::from_be_bytes(seen.bytes[12..20].try_into().unwrap()))
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert!(numbers.len() > 10, "{}", numbers.len());
    let nearest = numbers.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
    assert!(nearest > 1 << 32, "two are only {nearest} apart");
}

#[test]
fn a_peer_that_cannot_be_reached_is_probed_with_less_than_a_kilobyte_a_second() {
    let mut world = World::new(5);
    let relay = world.relay();
    let (a, b) = (world.public(), world.public());
    // As many addresses as a member may announce, of which none will answer.
    let hosts = (0..12).map(|n| UnderlayAddr(([203, 0, 113, n], 4242).into()));
    let now = world.moment();
    world.nodes[b].core.set_hosts(hosts.collect(), now);
    world.announce_relays(&[relay]);
    // Nothing of the two comes through any more, but for signals.
    let own = world.nodes[a].host;
    world.drop_if = Some(Box::new(move |seen| seen.from == own || seen.to == own));
    world.wire.clear();
    let began = world.now;
    for _ in 0..60 {
        world.send(a, b, b"anybody there?");
        world.run(Duration::from_secs(1));
    }
    // An IPv4 and a UDP header each.
    let bytes = |from: Duration, to: Duration| -> usize {
        let seen = world.wire.iter().filter(|seen| seen.from == own);
        let within = seen.filter(|seen| (began + from..began + to).contains(&seen.at));
        within.map(|seen| seen.bytes.len() + 28).sum()
    };
    let minute = bytes(Duration::ZERO, Duration::from_secs(60));
    assert!(minute > 10_000, "it was tried: {minute}");
    assert!(minute < 60 * 1024, "{minute} bytes in a minute");
    for second in 0..60 {
        let second = Duration::from_secs(second);
        let bytes = bytes(second, second + Duration::from_secs(1));
        assert!(bytes < 6 * 1024, "{bytes} bytes in second {second:?}");
    }
}

#[test]
fn a_port_that_the_router_leads_to_a_node_is_reached_from_behind_any_nat() {
    for late in [false, true] {
        let mut world = World::new(31);
        let relay = world.relay();
        let (a, b) = (world.behind(NatKind::Symmetric), world.behind(NatKind::Symmetric));
        world.announce_relays(&[relay]);
        if !late {
            world.give_port(a);
        }
        world.send(a, b, b"ping");
        world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
        if late {
            world.echo(50, a, b, Duration::from_secs(5));
            assert!(matches!(world.path(b, a), PathKind::Relayed { .. }));
        }
        let outside = UnderlayAddr(world.give_port(a));
        world.echo(50, a, b, Duration::from_secs(3));
        assert_eq!(world.path(b, a), PathKind::Direct(outside));
        assert!(matches!(world.path(a, b), PathKind::Direct(_)));
        let at = world.moment();
        let said = world.nodes[b].core.path(world.nodes[a].peer, at).unwrap();
        assert_eq!(said.reason, Reason::Mapped);
    }
}
