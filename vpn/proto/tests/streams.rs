//! Where UDP does not pass: over TLS to relays, and back to UDP when it passes again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use aerie_types::UnderlayAddr;
use aerie_vpn_proto::{PathKind, Reason};
use common::{NatKind, World};

const SOON: Duration = Duration::from_secs(10);

/// Two relays, a member whose network drops UDP, and one behind a NAT.
fn blocked() -> (World, [usize; 2], usize, usize) {
    let mut world = World::new(17);
    let relays = [world.relay(), world.relay()];
    let (a, b) = (
        world.behind(NatKind::PortRestricted),
        world.behind(NatKind::PortRestricted),
    );
    world.nodes[a].udp_blocked = true;
    world.announce_relays(&relays);
    (world, relays, a, b)
}

/// A packet there and one back.
fn talk(world: &mut World, a: usize, b: usize) -> Duration {
    let before = (world.nodes[a].delivered.len(), world.nodes[b].delivered.len());
    let began = world.now;
    world.send(a, b, b"question");
    world.run_until(SOON, |world| world.nodes[b].delivered.len() > before.1);
    world.send(b, a, b"answer");
    world.run_until(SOON, |world| world.nodes[a].delivered.len() > before.0);
    world.now - began
}

fn over_tls(world: &World, from: usize, to: usize) -> bool {
    match world.path(from, to) {
        PathKind::Relayed { stream, .. } => stream,
        PathKind::Stream { .. } => true,
        _ => false,
    }
}

#[test]
fn a_member_without_udp_is_reached_through_a_relay_over_tls() {
    let (mut world, _, a, b) = blocked();
    world.run(Duration::from_secs(3));
    let took = talk(&mut world, a, b);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(over_tls(&world, a, b), "{}", world.path(a, b));
    assert!(
        matches!(world.path(b, a), PathKind::Relayed { stream: false, .. }),
        "the other end has UDP: {}",
        world.path(b, a)
    );
    let path = world.nodes[a]
        .core
        .path(world.nodes[b].peer, world.moment())
        .unwrap();
    assert_eq!(path.reason, Reason::UdpSilent);
    let other = world.nodes[b].core.path(world.nodes[a].peer, world.moment());
    assert_eq!(
        other.unwrap().reason,
        Reason::PeerUdpSilent,
        "the other end knows it too"
    );
    let PathKind::Relayed { addr, .. } = path.peer.path else {
        panic!()
    };
    assert_eq!(addr.0.port(), 443, "a person is told where it goes");
}

#[test]
fn two_members_without_udp_talk_to_each_other() {
    let (mut world, relays, a, b) = blocked();
    world.nodes[b].udp_blocked = true;
    world.announce_relays(&[]);
    world.announce_relays(&relays);
    world.run(Duration::from_secs(3));
    let took = talk(&mut world, b, a);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(over_tls(&world, a, b) && over_tls(&world, b, a));
}

/// Also where it is the only one, so that there is no relay between.
#[test]
fn the_relay_itself_is_reached_over_the_connection() {
    let mut world = World::new(18);
    let relay = world.relay();
    let a = world.behind(NatKind::PortRestricted);
    world.nodes[a].udp_blocked = true;
    world.announce_relays(&[relay]);
    world.run(Duration::from_secs(3));
    talk(&mut world, a, relay);
    let there = PathKind::Stream {
        to: Some(UnderlayAddr((world.nodes[relay].host.ip(), 443).into())),
    };
    assert_eq!(world.path(a, relay), there);
    assert_eq!(world.path(relay, a), PathKind::Stream { to: None });
    let of = |world: &World, from: usize, to: usize| {
        let path = world.nodes[from].core.path(world.nodes[to].peer, world.moment());
        path.unwrap().reason
    };
    assert_eq!(of(&world, a, relay), Reason::UdpSilent);
    assert_eq!(of(&world, relay, a), Reason::PeerUdpSilent);
}

/// Talks to some until the way from one node to another is direct.
fn until_direct(world: &mut World, a: usize, b: usize, talking_to: &[usize]) {
    let began = world.now;
    while !matches!(world.path(a, b), PathKind::Direct(_)) {
        assert!(
            world.now - began < Duration::from_secs(30),
            "{}",
            world.path(a, b)
        );
        for to in talking_to {
            talk(world, a, *to);
        }
        world.run(Duration::from_millis(200));
    }
}

#[test]
fn udp_that_passes_again_is_used_again() {
    let (mut world, _, a, b) = blocked();
    world.run(Duration::from_secs(3));
    talk(&mut world, a, b);
    assert!(over_tls(&world, a, b));
    world.nodes[a].udp_blocked = false;
    until_direct(&mut world, a, b, &[b]);
    world.run(Duration::from_secs(1));
    assert!(world.streams.is_empty(), "the connections are closed");
}

/// A peer's answer shows that UDP passes, and not how this host looks from outside.
#[test]
fn a_peer_that_answers_first_does_not_keep_relays_from_being_asked() {
    let (mut world, relays, a, b) = blocked();
    world.run(Duration::from_secs(3));
    talk(&mut world, a, b);
    talk(&mut world, a, relays[0]);
    // Just after relays were asked in vain, so that they are not asked again soon.
    let asked = |world: &World| {
        let host = world.nodes[a].host;
        let to_relays = world
            .wire
            .iter()
            .filter(|seen| relays.iter().any(|relay| world.nodes[*relay].host == seen.to));
        to_relays
            .filter(|seen| seen.bytes.len() < 64 && seen.from.ip() != host.ip())
            .count()
    };
    let before = asked(&world);
    world.run_until(Duration::from_secs(40), |world| asked(world) >= before + 10);
    world.run(Duration::from_secs(4));
    world.nodes[a].udp_blocked = false;
    until_direct(&mut world, a, b, &[b, relays[0]]);
}

/// Nothing tells this host that its network has begun to drop UDP.
#[test]
fn udp_that_stops_to_pass_costs_a_few_seconds() {
    let (mut world, _, a, b) = blocked();
    world.nodes[a].udp_blocked = false;
    world.run(Duration::from_secs(1));
    talk(&mut world, a, b);
    world.run(Duration::from_secs(3));
    talk(&mut world, a, b);
    assert!(
        matches!(world.path(a, b), PathKind::Direct(_)),
        "{}",
        world.path(a, b)
    );
    world.nodes[a].udp_blocked = true;
    let (began, before) = (world.now, world.nodes[b].delivered.len());
    while world.nodes[b].delivered.len() == before {
        world.send(a, b, b"question");
        world.run(Duration::from_millis(100));
        let outage = world.now - began;
        assert!(outage < Duration::from_secs(15), "{outage:?}");
    }
    assert!(over_tls(&world, a, b));
}

/// A member that was idle has not noticed that UDP passes no more.
#[test]
fn the_first_packet_after_udp_has_stopped_finds_that_out() {
    let (mut world, _, a, b) = blocked();
    world.nodes[a].udp_blocked = false;
    world.run(Duration::from_secs(5));
    world.nodes[a].udp_blocked = true;
    let took = talk(&mut world, a, b);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn a_connection_that_breaks_is_opened_again_and_another_one_stands_in() {
    let (mut world, _, a, b) = blocked();
    world.run(Duration::from_secs(3));
    talk(&mut world, a, b);
    // Until a second relay is at hand.
    for _ in 0..100 {
        talk(&mut world, a, b);
        world.run(Duration::from_millis(50));
    }
    assert_eq!(world.streams.len(), 4, "two connections, two ends each");
    let first = world.streams.iter().find(|(_, (node, _))| *node == a);
    let (_, far) = *first.unwrap().1;
    world.close(far);
    // What is on its way over it is lost.
    let (began, before) = (world.now, world.nodes[b].delivered.len());
    while world.nodes[b].delivered.len() == before {
        world.send(a, b, b"question");
        world.run(Duration::from_millis(50));
    }
    let outage = world.now - began;
    assert!(outage < Duration::from_secs(2), "{outage:?}");
    world.run(Duration::from_secs(5));
    assert_eq!(world.streams.len(), 4, "opened again");
}

#[test]
fn connections_that_fail_are_tried_ever_more_rarely() {
    let (mut world, ..) = blocked();
    world.tcp_up = false;
    world.run(Duration::from_secs(600));
    let tried = world.connects;
    assert!((10..60).contains(&tried), "{tried} in ten minutes, at two relays");
    world.tcp_up = true;
    world.run(Duration::from_secs(61));
    assert_eq!(world.streams.len(), 4);
}

/// Each of these would have cost every connection, while nothing had answered over UDP.
#[test]
fn news_of_relays_leaves_connections_alone() {
    let (mut world, relays, a, b) = blocked();
    world.run(Duration::from_secs(3));
    talk(&mut world, a, b);
    let (before, connects) = (world.streams.clone(), world.connects);
    let third = world.relay();
    world.announce_relays(&[relays[0], relays[1], third]);
    for _ in 0..40 {
        talk(&mut world, a, b);
        world.run(Duration::from_millis(50));
    }
    assert_eq!((world.streams.clone(), world.connects), (before, connects));
}

/// A port that is somebody else's, or a box that cuts what it does not know: it opens, and ends at once.
#[test]
fn a_connection_that_ends_at_once_each_time_is_tried_ever_more_rarely() {
    let (mut world, ..) = blocked();
    let end = world.now + Duration::from_secs(300);
    while world.now < end {
        world.run(Duration::from_millis(100));
        for far in world
            .streams
            .iter()
            .filter(|(number, _)| **number % 2 == 0)
            .map(|(n, _)| *n)
            .collect::<Vec<_>>()
        {
            world.close(far);
        }
    }
    assert!(
        (8..40).contains(&world.connects),
        "{} in five minutes, at two relays",
        world.connects
    );
}

/// Somebody could otherwise have this node send to a connection of somebody else.
#[test]
fn nobody_can_name_a_connection_as_an_address() {
    let (mut world, _, a, b) = blocked();
    world.run(Duration::from_secs(3));
    let now = world.moment();
    let mut stream = UnderlayAddr::of_stream(1);
    stream.0.set_port(4242);
    world.nodes[b].core.set_hosts(vec![stream], now);
    talk(&mut world, b, a);
    let path = world.nodes[a]
        .core
        .path(world.nodes[b].peer, world.moment())
        .unwrap();
    assert!(
        path.pairs.iter().all(|pair| pair.addr.stream().is_none()),
        "{path:?}"
    );
    assert_eq!(UnderlayAddr(([192, 0, 2, 1], 443).into()).stream(), None);
    assert_eq!(stream.stream(), Some(1));
}
