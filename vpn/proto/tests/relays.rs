//! Two relays are held for a pair that cannot be direct, the nearest ones, and one takes over when the other dies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use aerie_types::UnderlayAddr;
use aerie_vpn_proto::{CandidateKind, Event, PairState, PathKind};
use common::{NatKind, World};

const SOON: Duration = Duration::from_secs(10);

/// So many relays, and two nodes that need one and have talked for a while.
fn relayed(relays: usize) -> (World, usize, usize) {
    let mut world = World::new(11);
    let relays: Vec<usize> = (0..relays).map(|_| world.relay()).collect();
    let (a, b) = (world.behind(NatKind::Symmetric), world.behind(NatKind::Symmetric));
    world.announce_relays(&relays);
    world.send(a, b, b"ping");
    world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
    world.echo(20, a, b, Duration::from_secs(10));
    (world, a, b)
}

/// The relay that a node's packets to another go by.
fn relay_of(world: &World, from: usize, to: usize) -> usize {
    let PathKind::Relayed { via, .. } = world.path(from, to) else {
        panic!("the path is {}", world.path(from, to));
    };
    world.nodes.iter().position(|node| node.peer == via).unwrap()
}

fn alive_relays(world: &World, from: usize, to: usize) -> usize {
    let path = world.nodes[from].core.path(world.nodes[to].peer, world.moment());
    let pairs = path.unwrap().pairs;
    let alive = pairs
        .iter()
        .filter(|pair| pair.kind == CandidateKind::Relayed && pair.state == PairState::Alive);
    alive.count()
}

/// Packets in both directions that do not wait for each other, as of a TCP flow.
fn stream(world: &mut World, a: usize, b: usize, duration: Duration) {
    let end = world.now + duration;
    while world.now < end {
        world.send(a, b, b"one");
        world.run(Duration::from_millis(10));
        world.send(b, a, b"other");
        world.run(Duration::from_millis(10));
    }
}

#[test]
fn a_second_relay_is_held_and_takes_over_within_a_second() {
    let (mut world, a, b) = relayed(2);
    assert_eq!((alive_relays(&world, a, b), alive_relays(&world, b, a)), (2, 2));
    let dead = relay_of(&world, a, b);
    world.nodes[dead].online = false;
    let outage = world.echo(20, a, b, Duration::from_secs(5));
    assert!(outage < Duration::from_secs(1), "{outage:?}");
    assert_ne!(relay_of(&world, a, b), dead);
    assert_ne!(relay_of(&world, b, a), dead);
    // And there it stays.
    let outage = world.echo(20, a, b, Duration::from_secs(60));
    assert!(outage < Duration::from_millis(200), "{outage:?}");
}

#[test]
fn a_relay_that_is_dead_is_replaced_as_the_second_one() {
    let (mut world, a, b) = relayed(3);
    let dead = relay_of(&world, a, b);
    world.nodes[dead].online = false;
    world.echo(20, a, b, Duration::from_secs(60));
    assert_eq!(alive_relays(&world, a, b), 2);
    let second = relay_of(&world, a, b);
    world.nodes[second].online = false;
    let outage = world.echo(20, a, b, Duration::from_secs(5));
    assert!(outage < Duration::from_secs(1), "{outage:?}");
}

/// The budget of probes is for addresses that a peer names, not for the relay that may be the only way.
#[test]
fn many_dead_addresses_do_not_keep_a_relay_waiting() {
    let mut world = World::new(3);
    let (a, b) = (world.behind(NatKind::Symmetric), world.behind(NatKind::Symmetric));
    let now = world.moment();
    for node in [a, b] {
        let hosts = (0..12).map(|n| UnderlayAddr(([203, 0, 113, n], 4242).into()));
        world.nodes[node].core.set_hosts(hosts.collect(), now);
    }
    for _ in 0..5 {
        world.send(a, b, b"lost");
        world.run(Duration::from_secs(1));
    }
    let relay = world.relay();
    world.announce_relays(&[relay]);
    world.send(a, b, b"ping");
    let took = world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn the_only_relay_that_dies_is_not_waited_for_when_another_comes() {
    let (mut world, a, b) = relayed(1);
    let dead = relay_of(&world, a, b);
    let other = world.relay();
    world.nodes[dead].online = false;
    world.announce_relays(&[other]);
    let outage = world.echo(20, a, b, Duration::from_secs(20));
    assert!(outage < Duration::from_secs(8), "{outage:?}");
    assert_eq!(relay_of(&world, a, b), other);
}

/// Each of the two dies first for one of them: who notices, and who follows, depends on the ids.
#[test]
fn either_member_may_ask_and_either_relay_may_die() {
    for swapped in [false, true] {
        let (mut world, a, b) = relayed(2);
        let (a, b) = if swapped { (b, a) } else { (a, b) };
        world.echo(20, a, b, Duration::from_secs(2));
        let dead = relay_of(&world, a, b);
        world.nodes[dead].online = false;
        let outage = world.echo(20, a, b, Duration::from_secs(5));
        assert!(outage < Duration::from_secs(1), "{swapped}: {outage:?}");
    }
}

#[test]
fn two_members_with_a_relay_each_agree_on_one() {
    let (mut world, a, b) = relayed(2);
    let own = relay_of(&world, a, b);
    // For one direction the first relay becomes slow, so that the two judge differently.
    let changes = |world: &World| {
        let events = world.nodes[a].events.iter().chain(&world.nodes[b].events);
        let changed = |event: &&Event| matches!(event, Event::PathChanged { .. });
        events.filter(changed).count()
    };
    let slow = world.nodes[own].host;
    world.delay(slow, Duration::from_millis(30));
    stream(&mut world, a, b, Duration::from_secs(60));
    let before = changes(&world);
    stream(&mut world, a, b, Duration::from_secs(60));
    assert!(
        changes(&world) - before <= 2,
        "{} changes",
        changes(&world) - before
    );
    assert_eq!(relay_of(&world, a, b), relay_of(&world, b, a));
}

#[test]
fn one_direction_alone_does_not_pass_for_a_dead_relay() {
    let (mut world, a, b) = relayed(2);
    let before = relay_of(&world, a, b);
    for _ in 0..200 {
        world.send(a, b, b"one way");
        world.run(Duration::from_millis(50));
    }
    assert_eq!(relay_of(&world, a, b), before);
}

#[test]
fn a_nearer_relay_is_preferred() {
    for seed in 0..8 {
        let mut world = World::new(seed);
        let (far, near) = (world.relay(), world.relay());
        let (a, b) = (world.behind(NatKind::Symmetric), world.behind(NatKind::Symmetric));
        let host = world.nodes[far].host;
        world.delay(host, Duration::from_millis(80));
        world.announce_relays(&[far, near]);
        world.send(a, b, b"ping");
        world.run_until(SOON, |world| !world.nodes[b].delivered.is_empty());
        assert_eq!(relay_of(&world, a, b), near, "seed {seed}");
        world.echo(20, a, b, Duration::from_secs(10));
        assert_eq!(relay_of(&world, a, b), near, "seed {seed}");
    }
}
