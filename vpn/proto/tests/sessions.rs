//! Sessions under renewal, replay, forgery and misuse.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::time::Duration;

use aerie_types::WallMillis;
use aerie_vpn_proto::{Event, PathKind, REPLAY_WINDOW};
use common::{NatKind, World, udp, virt};
use proptest::prelude::*;

const DATA: u8 = 3;

fn connected(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(seed);
    let (a, b) = (world.public(), world.public());
    world.send(a, b, b"hello");
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"hello"]);
    world.nodes[b].delivered.clear();
    (world, a, b)
}

#[test]
fn the_first_packet_arrives_by_itself_within_a_second() {
    let mut world = World::new(1);
    let (a, b) = (world.public(), world.public());
    world.send(a, b, b"first");
    let took = world.run_until(Duration::from_secs(2), |world| {
        !world.nodes[b].delivered.is_empty()
    });
    assert!(took <= Duration::from_millis(300), "{took:?}");
}

#[test]
fn packets_to_an_unknown_address_wait_within_bounds_and_arrive_in_order() {
    let mut world = World::new(2);
    let (a, b) = (world.public(), world.public());
    for n in 0..50u8 {
        world.send(a, b, &[n]);
    }
    world.run(Duration::from_secs(1));
    let expected: Vec<_> = (0..16u8).map(|n| vec![n]).collect();
    assert_eq!(world.received(b), expected);
    assert_eq!(world.nodes[a].core.counters().queue_full, 34);
}

#[test]
fn both_sides_opening_at_once_end_with_one_session() {
    let mut world = World::new(3);
    let (a, b) = (world.public(), world.public());
    world.send(a, b, b"from a");
    world.send(b, a, b"from b");
    world.run(Duration::from_secs(2));
    assert_eq!(world.received(b), [b"from a"]);
    assert_eq!(world.received(a), [b"from b"]);
    assert_eq!(world.nodes[a].core.counters().handshakes, 1);
    assert_eq!(world.nodes[b].core.counters().handshakes, 1);
}

#[test]
fn sessions_are_renewed_without_losing_or_reordering_a_packet() {
    let (mut world, a, b) = connected(4);
    let mut sent = Vec::new();
    for n in 0..4000u32 {
        world.send(a, b, &n.to_be_bytes());
        sent.push(n.to_be_bytes().to_vec());
        world.run(Duration::from_millis(100));
    }
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), sent);
    let handshakes = world.nodes[a].core.counters().handshakes;
    assert!(
        (4..=5).contains(&handshakes),
        "400 s need a renewal each 120 s: {handshakes}"
    );
}

#[test]
fn packets_in_flight_during_a_renewal_still_open() {
    let (mut world, a, b) = connected(5);
    world.run(Duration::from_secs(119));
    // Held back on the wire, and let go after the new session is in use.
    world.drop_if = Some(Box::new(|seen| seen.bytes[1] == DATA));
    world.send(a, b, b"late");
    let late = world.wire.last().unwrap().clone();
    world.drop_if = None;
    world.run(Duration::from_secs(2));
    world.send(a, b, b"now");
    world.run(Duration::from_secs(2));
    assert!(world.nodes[a].core.counters().handshakes >= 2);
    world.inject(late.from, late.to, late.bytes);
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"now".to_vec(), b"late".to_vec()]);
}

#[test]
fn a_replayed_datagram_is_dropped_exactly_from_the_windows_edge_on() {
    let (mut world, a, b) = connected(6);
    world.wire.clear();
    world.drop_if = Some(Box::new(|seen| seen.bytes[1] == DATA));
    for n in 0..=REPLAY_WINDOW {
        world.send(a, b, &n.to_be_bytes());
    }
    world.drop_if = None;
    let target = world.nodes[b].host;
    let held: Vec<_> = world
        .wire
        .iter()
        .filter(|seen| seen.bytes[1] == DATA && seen.to == target)
        .cloned()
        .collect();
    let deliver = |world: &mut World, n: u64| {
        let seen = &held[n as usize];
        world.nodes[b].delivered.clear();
        world.inject(seen.from, seen.to, seen.bytes.clone());
        world.run(Duration::from_millis(11));
        !world.nodes[b].delivered.is_empty()
    };
    assert!(deliver(&mut world, REPLAY_WINDOW), "the newest");
    assert!(!deliver(&mut world, REPLAY_WINDOW), "the newest again");
    assert!(!deliver(&mut world, 0), "one outside the window");
    assert!(deliver(&mut world, 1), "the oldest inside");
    assert!(!deliver(&mut world, 1), "the oldest inside again");
    assert_eq!(world.nodes[b].core.counters().replayed, 3);
}

#[test]
fn a_recorded_handshake_is_not_answered_again() {
    let mut world = World::new(7);
    let (a, b) = (world.public(), world.public());
    world.send(a, b, b"x");
    world.run(Duration::from_secs(1));
    let init = world.wire.iter().find(|seen| seen.bytes[1] == 1).unwrap().clone();
    let answers = world.wire.iter().filter(|seen| seen.bytes[1] == 2).count();
    for _ in 0..5 {
        world.inject("203.0.113.9:9".parse().unwrap(), init.to, init.bytes.clone());
    }
    world.run(Duration::from_secs(1));
    assert_eq!(
        world.wire.iter().filter(|seen| seen.bytes[1] == 2).count(),
        answers
    );
    assert_eq!(world.nodes[b].core.counters().replayed, 5);
}

#[test]
fn a_packet_from_an_address_its_sender_does_not_hold_is_dropped() {
    let mut world = World::new(8);
    let (a, b, c) = (world.public(), world.public(), world.public());
    world.send(a, b, b"x");
    world.send(c, b, b"y");
    world.run(Duration::from_secs(1));
    world.nodes[b].delivered.clear();
    // The sender's core is made to believe that it holds the third node's address: a member that cheats.
    let now = world.moment();
    world.nodes[a].core.readdress(virt(3), now).unwrap();
    let forged = udp(virt(3), virt(2), b"forged");
    world.send_raw(a, &forged);
    world.run(Duration::from_secs(1));
    assert!(world.nodes[b].delivered.is_empty());
    assert_eq!(world.nodes[b].core.counters().spoofed_source, 1);
    // An address that nobody holds does not pass either, nor one whose holder is still to be found.
    world.nodes[a].core.readdress(virt(77), now).unwrap();
    world.send_raw(a, &udp(virt(77), virt(2), b"nobody's"));
    world.run(Duration::from_secs(1));
    assert!(world.nodes[b].delivered.is_empty());
    assert_eq!(world.nodes[b].core.counters().spoofed_source, 2);
}

#[test]
fn a_member_that_changes_its_address_is_heard_once_the_lease_proves_it() {
    let (mut world, a, b) = connected(9);
    let now = world.moment();
    world.nodes[a].core.readdress(virt(50), now).unwrap();
    world.holders.insert(virt(50), a);
    world.send_raw(a, &udp(virt(50), virt(2), b"moved"));
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"moved"]);
}

#[test]
fn packets_that_are_not_this_hosts_own_are_not_sent() {
    let (mut world, a, _) = connected(10);
    let before = world.nodes[a].core.counters();
    world.send_raw(a, &udp(virt(9), virt(2), b"not ours"));
    world.send_raw(
        a,
        &udp(
            virt(1),
            "192.0.2.1".parse::<std::net::Ipv4Addr>().unwrap().into(),
            b"outside",
        ),
    );
    world.send_raw(a, b"no packet");
    let after = world.nodes[a].core.counters();
    assert_eq!(after.misdirected - before.misdirected, 3);
    assert_eq!(after.sent, before.sent);
}

#[test]
fn an_expired_credential_gets_no_session_and_the_reason_is_told() {
    let mut world = World::new(11);
    let a = world.public();
    let b = world.add(None, None, WallMillis(1_700_000_000_000 - 1));
    world.send(a, b, b"x");
    world.run(Duration::from_secs(2));
    assert!(world.nodes[b].delivered.is_empty());
    let status = world.nodes[a].core.peers(world.moment()).remove(0);
    assert!(status.why.unwrap().contains("expired"));
    assert!(world.nodes[a].core.counters().credential_refused > 0);
    // The other way round: the responder refuses the initiator.
    world.send(b, a, b"y");
    world.run(Duration::from_secs(2));
    assert!(world.nodes[a].delivered.is_empty());
}

#[test]
fn a_credential_that_expires_ends_its_sessions_by_the_next_renewal() {
    let mut world = World::new(12);
    let a = world.public();
    let b = world.add(None, None, WallMillis(1_700_000_000_000 + 60_000));
    world.send(a, b, b"x");
    world.run(Duration::from_secs(1));
    assert_eq!(world.received(b), [b"x"]);
    for _ in 0..200 {
        world.send(a, b, b"y");
        world.run(Duration::from_secs(1));
    }
    world.nodes[b].delivered.clear();
    world.send(a, b, b"z");
    world.run(Duration::from_secs(2));
    assert!(world.nodes[b].delivered.is_empty());
}

#[test]
fn a_revoked_member_is_cut_off_at_once() {
    let (mut world, a, b) = connected(13);
    let (peer, now) = (world.nodes[a].peer, world.moment());
    world.nodes[b].core.revoke(peer, now);
    world.settle(b);
    assert!(world.nodes[b].events.iter().any(|event| matches!(
        event,
        Event::PathChanged { path: PathKind::None, why: Some(why), .. } if why.contains("revoked")
    )));
    world.send(a, b, b"x");
    world.run(Duration::from_millis(100));
    assert!(world.nodes[b].delivered.is_empty());
}

#[test]
fn an_address_that_nobody_holds_is_answered_as_unreachable() {
    let mut world = World::new(14);
    let a = world.public();
    world.send_raw(a, &udp(virt(1), virt(200), b"anybody there?"));
    world.run(Duration::from_secs(1));
    let answer = world.nodes[a].delivered.pop().unwrap();
    assert_eq!(answer[9], 1, "ICMP");
    assert_eq!(answer[20..22], [3, 1], "host unreachable");
    world.send_raw(a, &udp(virt(1), virt(200), b"and now?"));
    assert_eq!(
        world.nodes[a].delivered.len(),
        1,
        "at once, without another look-up"
    );
}

#[test]
fn a_peer_without_any_way_is_answered_as_unreachable() {
    let mut world = World::new(15);
    let (a, b) = (world.public(), world.public());
    world.nodes[b].online = false;
    world.send(a, b, b"x");
    world.run(Duration::from_secs(12));
    assert_eq!(world.nodes[a].delivered.len(), 1);
    assert_eq!(world.nodes[a].delivered[0][20], 3);
}

#[test]
fn a_ping_measures_the_round_trip_or_says_why_not() {
    let mut world = World::new(16);
    let (a, b) = (world.public(), world.public());
    let now = world.moment();
    world.nodes[a].core.ping(7, virt(2), now);
    world.nodes[a].core.ping(8, virt(99), now);
    world.run(Duration::from_secs(15));
    let events = &world.nodes[a].events;
    assert!(
        events.iter().any(|event| matches!(
            event, Event::Pong { id: 7, rtt, path: PathKind::Direct(_) } if *rtt == Duration::from_millis(20)
        )),
        "{events:?}"
    );
    assert!(events.iter().any(|event| matches!(
        event, Event::PingFailed { id: 8, why } if why.contains("no member holds 100.96.0.99")
    )));
    let _ = b;
}

#[test]
fn frames_of_strangers_are_not_relayed() {
    let mut world = World::new(17);
    let relay = world.relay();
    let (a, b) = (
        world.behind(NatKind::Symmetric),
        world.behind(NatKind::PortRestricted),
    );
    world.announce_relays(&[relay]);
    world.send(a, b, b"x");
    world.run(Duration::from_secs(2));
    assert!(matches!(world.path(a, b), PathKind::Relayed { .. }));
    let to_relay = world.nodes[relay].host;
    let frame = world
        .wire
        .iter()
        .find(|seen| seen.to == to_relay && seen.bytes[1] == 10)
        .unwrap()
        .clone();
    let before = world.nodes[relay].core.counters();
    world.inject("203.0.113.5:5".parse().unwrap(), to_relay, frame.bytes.clone());
    let mut nested = frame.bytes.clone();
    nested.truncate(16);
    nested.extend(&frame.bytes);
    world.inject(frame.from, to_relay, nested);
    world.run(Duration::from_secs(1));
    let after = world.nodes[relay].core.counters();
    assert_eq!(
        after.relay_refused - before.relay_refused,
        2,
        "a stranger's frame, and a frame in a frame"
    );
}

#[test]
fn nothing_readable_is_on_the_wire() {
    let mut world = World::new(18);
    let relay = world.relay();
    let (a, b) = (world.behind(NatKind::Symmetric), world.behind(NatKind::Symmetric));
    world.announce_relays(&[relay]);
    world.send(a, b, b"a very secret message");
    world.run(Duration::from_secs(2));
    assert_eq!(world.received(b), [b"a very secret message"]);
    for seen in &world.wire {
        for needle in [&b"very secret"[..], b"node2", b"node3"] {
            assert!(!seen.bytes.windows(needle.len()).any(|window| window == needle));
        }
    }
}

#[test]
fn a_spoofed_source_gains_nothing_from_any_datagram() {
    let (mut world, a, b) = connected(19);
    world.send(b, a, b"x");
    world.run(Duration::from_secs(1));
    let target = world.nodes[b].host;
    let recorded: Vec<_> = world
        .wire
        .iter()
        .filter(|seen| seen.to == target)
        .cloned()
        .collect();
    let victim: std::net::SocketAddr = "203.0.113.200:53".parse().unwrap();
    for seen in recorded {
        world.wire.clear();
        world.inject(victim, target, seen.bytes.clone());
        world.run(Duration::from_millis(50));
        let gained: usize = world
            .wire
            .iter()
            .filter(|out| out.to == victim)
            .map(|out| out.bytes.len())
            .sum();
        // A recorded probe is answered and probed back once: as many bytes again.
        assert!(gained <= 2 * seen.bytes.len(), "kind {}: {gained}", seen.bytes[1]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn tampered_and_truncated_datagrams_do_no_harm(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 40),
    ) {
        let mut world = World::new(20);
        let relay = world.relay();
        let (a, b) = (world.behind(NatKind::Symmetric), world.behind(NatKind::PortRestricted));
        world.announce_relays(&[relay]);
        world.send(a, b, b"x");
        world.run(Duration::from_secs(1));
        world.send(b, a, b"y");
        world.run(Duration::from_secs(1));
        let recorded = world.wire.clone();
        for (which, at, byte) in cuts {
            let seen = which.get(&recorded);
            let mut bytes = seen.bytes.clone();
            let at = at.index(bytes.len());
            if byte & 1 == 0 {
                bytes.truncate(at);
            } else {
                bytes[at] ^= byte;
            }
            world.inject(seen.from, seen.to, bytes);
        }
        world.run(Duration::from_secs(1));
        prop_assert_eq!(world.received(b), [b"x"]);
        world.nodes[b].delivered.clear();
        world.send(a, b, b"still here");
        world.run(Duration::from_secs(1));
        prop_assert_eq!(world.received(b), [b"still here"]);
    }
}

/// A holder goes without a word to anybody, and another node has its address.
fn hand_over(world: &mut World, from: usize, to: usize) {
    let addr = world.nodes[from].virt;
    world.nodes[from].online = false;
    world.nodes[to].virt = addr;
    world.holders.insert(addr, to);
    let now = world.moment();
    world.nodes[to].core.readdress(addr, now).unwrap();
}

#[test]
fn an_address_that_has_changed_hands_is_its_new_holders_within_a_second() {
    let mut world = World::new(17);
    let (a, b, c) = (world.public(), world.public(), world.public());
    world.send(a, b, b"to the first");
    world.run(Duration::from_secs(2));
    assert_eq!(world.nodes[b].delivered.len(), 1);
    hand_over(&mut world, b, c);
    for _ in 0..10 {
        world.send(c, a, b"from the second");
        world.run(Duration::from_millis(100));
    }
    assert!(!world.nodes[a].delivered.is_empty());
    world.send(a, c, b"to the second");
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[c].delivered.len(), 1);
}

#[test]
fn a_holder_that_cannot_be_reached_is_asked_for_anew() {
    let mut world = World::new(18);
    let (a, b, c) = (world.public(), world.public(), world.public());
    world.send(a, b, b"to the first");
    world.run(Duration::from_secs(2));
    hand_over(&mut world, b, c);
    let begun = world.now;
    while world.nodes[c].delivered.is_empty() {
        world.send(a, b, b"to whoever has it");
        world.run(Duration::from_millis(200));
        assert!(world.now - begun < Duration::from_secs(20));
    }
}

/// Each question may have the caller wait for a member that is not there.
#[test]
fn who_holds_an_address_is_not_asked_with_every_packet() {
    let mut world = World::new(19);
    let (a, b, liar) = (world.public(), world.public(), world.public());
    for to in [b, liar] {
        world.send(a, to, b"hello");
    }
    world.send(liar, a, b"hello");
    world.run(Duration::from_secs(5));
    world.nodes[b].online = false;
    world.nodes[a].events.clear();
    let forged = udp(world.nodes[b].virt, world.nodes[a].virt, b"from somebody else");
    let now = world.moment();
    let own = world.nodes[b].virt;
    world.nodes[liar].core.readdress(own, now).unwrap();
    for _ in 0..3000 {
        world.send(a, b, b"to nobody");
        world.send_raw(liar, &forged);
        world.run(Duration::from_millis(10));
    }
    let asked = |event: &&Event| matches!(event, Event::Resolve(addr) if *addr == own);
    let asked = world.nodes[a].events.iter().filter(asked).count();
    assert!((1..=20).contains(&asked), "{asked} times in half a minute");
}
