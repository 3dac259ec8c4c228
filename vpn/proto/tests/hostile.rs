//! Datagrams that strangers, other members and wrong clocks make, and what they must not do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use aerie_types::WallMillis;
use common::{Seen, World};

const INIT: u8 = 1;
const DATA: u8 = 3;
const KINDS: std::ops::RangeInclusive<u8> = 1..=10;
/// The longest payload of UDP over IPv4.
const LONGEST: usize = 65_507;

fn connected(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(seed);
    let (a, b) = (world.public(), world.public());
    connect(&mut world, a, b);
    (world, a, b)
}

fn connect(world: &mut World, a: usize, b: usize) {
    world.send(a, b, b"hello");
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"hello"]);
    world.nodes[b].delivered.clear();
}

/// Whether a packet goes from one to the other now.
fn passes(world: &mut World, from: usize, to: usize, payload: &[u8]) -> bool {
    world.nodes[to].delivered.clear();
    world.send(from, to, payload);
    world.run(Duration::from_millis(100));
    world.received(to) == [payload]
}

/// The address of one of many strangers.
fn stranger(n: u16) -> SocketAddr {
    let [high, low] = n.to_be_bytes();
    (Ipv4Addr::new(203, 0, high, low), 5000).into()
}

fn recorded(world: &World, kind: u8, from: usize, to: usize) -> Vec<Seen> {
    let (from, to) = (world.nodes[from].host, world.nodes[to].host);
    let between = |seen: &&Seen| (seen.from, seen.to, seen.bytes[1]) == (from, to, kind);
    world.wire.iter().filter(between).cloned().collect()
}

/// A sealed packet that is kept from its receiver.
fn held_back(world: &mut World, from: usize, to: usize, payload: &[u8]) -> Seen {
    world.drop_if = Some(Box::new(|seen| seen.bytes[1] == DATA));
    world.send(from, to, payload);
    world.drop_if = None;
    recorded(world, DATA, from, to).pop().unwrap()
}

/// How many datagrams went to strangers.
fn answers_to_strangers(world: &World) -> usize {
    let strange = |seen: &&Seen| seen.to.to_string().starts_with("203.0.");
    world.wire.iter().filter(strange).count()
}

/// Datagrams that a node has dropped, for whatever reason.
fn dropped(world: &World, node: usize) -> u64 {
    let counters = world.nodes[node].core.counters();
    counters.malformed + counters.forged + counters.replayed + counters.unknown + counters.relay_refused
}

#[test]
fn a_packet_under_the_index_of_another_peers_session_moves_neither_window_nor_path() {
    let (mut world, a, b) = connected(1);
    let c = world.public();
    connect(&mut world, c, b);
    let of_c = recorded(&world, DATA, c, b).pop().unwrap().bytes[4..8].to_vec();
    let held = held_back(&mut world, a, b, b"held");
    let paths = [world.path(b, a), world.path(b, c)];
    let before = world.nodes[b].core.counters();
    world.wire.clear();
    let mut nobodys = held.bytes.clone();
    nobodys[4..8].copy_from_slice(&[0xee; 4]);
    let mut others = held.bytes.clone();
    others[4..8].copy_from_slice(&of_c);
    let mut far_ahead = others.clone();
    far_ahead[8..16].copy_from_slice(&(1u64 << 40).to_be_bytes());
    for bytes in [nobodys, others, far_ahead] {
        for from in [held.from, stranger(1)] {
            world.inject(from, held.to, bytes.clone());
        }
    }
    world.run(Duration::from_secs(5));
    let after = world.nodes[b].core.counters();
    assert_eq!(after.unknown - before.unknown, 2, "an index that nobody has");
    assert_eq!(after.forged - before.forged, 4, "an index of another's");
    assert!(world.nodes[b].delivered.is_empty());
    assert_eq!([world.path(b, a), world.path(b, c)], paths);
    assert_eq!(answers_to_strangers(&world), 0);
    world.inject(held.from, held.to, held.bytes);
    world.run(Duration::from_millis(100));
    assert_eq!(world.received(b), [b"held"]);
    assert!(passes(&mut world, c, b, b"next"));
}

#[test]
fn a_packet_of_a_session_that_has_ended_is_not_opened() {
    let (mut world, a, b) = connected(2);
    let held = held_back(&mut world, a, b, b"held");
    // As long as a session may live, and no renewal comes through.
    world.drop_if = Some(Box::new(|_| true));
    world.run(Duration::from_secs(200));
    world.drop_if = None;
    let before = world.nodes[b].core.counters().unknown;
    world.inject(held.from, held.to, held.bytes);
    world.run(Duration::from_millis(100));
    assert!(world.nodes[b].delivered.is_empty());
    assert_eq!(world.nodes[b].core.counters().unknown, before + 1);
}

#[test]
fn a_datagram_as_long_as_udp_takes_is_dropped_and_counted_whatever_its_kind() {
    let (mut world, a, b) = connected(3);
    world.run(Duration::from_secs(5));
    let target = world.nodes[b].host;
    let genuine = world.wire.iter().filter(|seen| seen.to == target);
    let mut long: Vec<Vec<u8>> = genuine.map(|seen| seen.bytes.clone()).collect();
    let kinds: std::collections::BTreeSet<u8> = long.iter().map(|bytes| bytes[1]).collect();
    assert!(kinds.is_superset(&[INIT, DATA, 4, 5].into()), "{kinds:?}");
    long.extend(KINDS.map(|kind| vec![1, kind, 1, 0]));
    let (count, before) = (long.len() as u64, dropped(&world, b));
    for mut bytes in long {
        bytes.resize(LONGEST, 0x5a);
        world.inject(stranger(1), target, bytes);
    }
    world.run(Duration::from_secs(1));
    assert_eq!(dropped(&world, b) - before, count);
    assert_eq!(answers_to_strangers(&world), 0);
    assert!(world.nodes[b].delivered.is_empty());
    assert!(passes(&mut world, a, b, b"still here"));
}

#[test]
fn a_flood_of_forged_inits_costs_no_handshake_and_keeps_no_member_out() {
    for sources in [1, 3000] {
        let (mut world, a, b) = connected(4);
        let c = world.public();
        let genuine = recorded(&world, INIT, a, b).pop().unwrap();
        let before = world.nodes[b].core.counters();
        world.wire.clear();
        let mut unknown = 0;
        for n in 0..3000u16 {
            let mut bytes = genuine.bytes.clone();
            // Newer than any of the member's own.
            bytes[16..24].copy_from_slice(&(u64::MAX - u64::from(n)).to_be_bytes());
            if n % 3 == 0 {
                bytes[8..16].copy_from_slice(&u64::from(n).to_be_bytes());
                unknown += 1;
            }
            world.inject(stranger(n % sources), genuine.to, bytes);
            if n == 1500 {
                world.send(c, b, b"first of c");
            }
            if n % 100 == 0 {
                world.run(Duration::from_millis(10));
            }
        }
        world.run(Duration::from_secs(1));
        assert_eq!(world.received(b), [b"first of c"]);
        let after = world.nodes[b].core.counters();
        assert_eq!(after.handshakes - before.handshakes, 1, "that of c");
        assert_eq!(after.unknown - before.unknown, unknown);
        assert_eq!(after.forged - before.forged, 3000 - unknown);
        assert_eq!(after.handshakes_limited, 0, "none came so far");
        assert_eq!(answers_to_strangers(&world), 0);
        // The member in whose name they came renews its session as ever.
        world.run(Duration::from_secs(120));
        assert!(passes(&mut world, a, b, b"a"));
        world.run(Duration::from_secs(2));
        assert_eq!(world.nodes[b].core.counters().handshakes, after.handshakes + 1);
    }
}

#[test]
fn recorded_inits_do_nothing_from_wherever_they_are_replayed() {
    let (mut world, a, b) = connected(5);
    // Some that never arrived, and the one after them that did.
    let target = world.nodes[b].host;
    world.drop_if = Some(Box::new(move |seen| seen.to == target && seen.bytes[1] == INIT));
    world.run(Duration::from_secs(121));
    world.send(a, b, b"x");
    world.run(Duration::from_secs(3));
    world.drop_if = None;
    world.run(Duration::from_secs(10));
    let inits = recorded(&world, INIT, a, b);
    assert!(inits.len() >= 4, "{}", inits.len());
    world.wire.clear();
    world.nodes[b].delivered.clear();
    let before = world.nodes[b].core.counters();
    for n in 0..1000u16 {
        for init in &inits {
            world.inject(stranger(n), init.to, init.bytes.clone());
        }
    }
    let c = world.public();
    world.send(c, b, b"first of c");
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"first of c"]);
    let after = world.nodes[b].core.counters();
    assert_eq!(after.replayed - before.replayed, 1000 * inits.len() as u64);
    assert_eq!(after.handshakes - before.handshakes, 1, "that of c");
    assert_eq!(after.handshakes_limited, 0);
    assert_eq!(answers_to_strangers(&world), 0);
    assert!(passes(&mut world, a, b, b"a"));
}

#[test]
fn an_init_that_was_refused_is_not_looked_at_again_when_it_is_replayed() {
    let mut world = World::new(6);
    let a = world.add(None, None, WallMillis(1_700_000_000_000 - 1));
    let b = world.public();
    world.send(a, b, b"x");
    world.run(Duration::from_millis(500));
    let init = recorded(&world, INIT, a, b).pop().unwrap();
    assert_eq!(world.nodes[b].core.counters().credential_refused, 1);
    for n in 0..100 {
        world.inject(stranger(n), init.to, init.bytes.clone());
    }
    world.run(Duration::from_millis(100));
    let counters = world.nodes[b].core.counters();
    assert_eq!((counters.credential_refused, counters.replayed), (1, 100));
}

#[test]
fn a_wall_clock_that_goes_back_an_hour_stops_no_handshake() {
    const HOUR: Duration = Duration::from_secs(3600);
    for behind in [[true, false], [false, true], [true, true]] {
        let (mut world, a, b) = connected(7);
        for (n, behind) in [a, b].into_iter().zip(behind) {
            world.nodes[n].behind = if behind { HOUR } else { Duration::ZERO };
        }
        let mut sent = Vec::new();
        for n in 0..400u32 {
            world.send(a, b, &n.to_be_bytes());
            sent.push(n.to_be_bytes().to_vec());
            world.run(Duration::from_secs(1));
        }
        assert_eq!(world.received(b), sent);
        assert!(world.nodes[b].core.counters().handshakes >= 4);
        let inits = recorded(&world, INIT, a, b);
        let timestamps: Vec<_> = inits.iter().map(|init| init.bytes[16..24].to_vec()).collect();
        assert!(
            timestamps.windows(2).all(|pair| pair[0] < pair[1]),
            "{timestamps:?}"
        );
    }
}

#[test]
fn a_member_that_starts_again_with_an_earlier_clock_is_let_in() {
    let (mut world, a, b) = connected(8);
    world.nodes[a].behind = Duration::from_secs(3600);
    world.restart(a);
    world.send(a, b, b"again");
    world.run_until(Duration::from_secs(5), |world| world.received(b) == [b"again"]);
    assert_eq!(world.nodes[b].core.counters().replayed, 0);
}
