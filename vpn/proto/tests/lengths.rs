//! Packets that are too long for the way to their peer, and how it is found out what fits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::{NatKind, Seen, World, udp, udp6, virt, virt6};

const DATA: u8 = 3;
const PROBE: u8 = 4;
const FRAME: u8 = 10;
/// Bytes of a probe without padding.
const SHORT: usize = 54;

/// A path on which nothing passes that is longer, nor any fragment of it.
fn narrow(world: &mut World, longest: usize) {
    world.drop_if = Some(Box::new(move |seen| seen.bytes.len() > longest));
}

/// Two nodes with such a path between them, which know of it.
fn connected(seed: u64, longest: usize) -> (World, usize, usize) {
    let mut world = World::new(seed);
    let (a, b) = (world.public(), world.public());
    narrow(&mut world, longest);
    world.send(a, b, b"hello");
    world.run(Duration::from_secs(1));
    world.nodes[b].delivered.clear();
    (world, a, b)
}

fn mtu(world: &World, from: usize) -> Option<usize> {
    world.nodes[from].core.peers(world.moment()).remove(0).mtu
}

fn padded(bytes: &[u8]) -> bool {
    let inside = if bytes[1] == FRAME { &bytes[16..] } else { bytes };
    inside[1] == PROBE && inside.len() > SHORT
}

fn is_data(seen: &&Seen) -> bool {
    seen.bytes[1] == DATA
}

/// A packet of IPv4 with UDP of this length in all, that may not be cut.
fn uncut(len: usize) -> Vec<u8> {
    let mut packet = udp(virt(1), virt(2), &vec![7; len - 20]);
    packet[6] = 0x40;
    packet
}

#[test]
fn a_packet_that_does_not_fit_is_answered_with_the_length_that_does() {
    let (mut world, a, b) = connected(1, 1372);
    assert_eq!(mtu(&world, a), Some(1340));
    world.wire.clear();
    world.send_raw(a, &uncut(1341));
    let told = world.nodes[a].delivered.pop().unwrap();
    assert_eq!(told[20..22], [3, 4], "fragmentation needed");
    assert_eq!(told[24..28], 1340u32.to_be_bytes());
    assert_eq!(told[28..], uncut(1341)[..28]);
    world.send_raw(a, &udp6(virt6(1), virt6(2), &[7; 1301]));
    let told = world.nodes[a].delivered.pop().unwrap();
    assert_eq!(told[40..42], [2, 0], "packet too big");
    assert_eq!(told[44..48], 1340u32.to_be_bytes());
    assert_eq!(world.nodes[a].core.counters().too_long, 2);
    assert_eq!(world.wire.iter().filter(is_data).count(), 0);
    for fitting in [uncut(1340), udp6(virt6(1), virt6(2), &[7; 1300])] {
        world.send_raw(a, &fitting);
        world.run(Duration::from_millis(100));
        assert_eq!(world.nodes[b].delivered.pop().unwrap(), fitting);
    }
}

#[test]
fn answers_are_made_at_a_bounded_rate() {
    let (mut world, a, _) = connected(2, 1372);
    for _ in 0..1000 {
        world.send_raw(a, &uncut(1400));
    }
    assert_eq!(world.nodes[a].delivered.len(), 50);
}

#[test]
fn a_packet_that_may_be_cut_arrives_in_pieces_that_fit() {
    let (mut world, a, b) = connected(3, 1272);
    assert_eq!(mtu(&world, a), Some(1240));
    let payload: Vec<u8> = (0..1380u32).map(|n| (n * 7) as u8).collect();
    world.send_raw(a, &udp(virt(1), virt(2), &payload));
    // As short as every link of IPv6 takes it, and too long for this one.
    world.send_raw(a, &udp6(virt6(1), virt6(2), &payload[..1240]));
    world.run(Duration::from_millis(100));
    let got = std::mem::take(&mut world.nodes[b].delivered);
    assert_eq!(got.len(), 4);
    assert!(got.iter().all(|piece| piece.len() <= 1240));
    let joined: Vec<u8> = got[..2].iter().flat_map(|piece| piece[20..].to_vec()).collect();
    assert_eq!(joined, payload);
    let joined: Vec<u8> = got[2..].iter().flat_map(|piece| piece[48..].to_vec()).collect();
    assert_eq!(joined, payload[..1240]);
    assert_eq!(world.nodes[a].core.counters().cut, 2);
    assert!(world.nodes[a].delivered.is_empty(), "nobody is told");
}

#[test]
fn until_a_length_is_found_packets_go_as_they_are() {
    let mut world = World::new(4);
    let (a, b) = (world.public(), world.public());
    // A peer that answers no padded probe.
    world.drop_if = Some(Box::new(|seen| padded(&seen.bytes)));
    world.send(a, b, b"hello");
    world.run(Duration::from_secs(20));
    assert_eq!(mtu(&world, a), None);
    world.send_raw(a, &uncut(1420));
    world.run(Duration::from_millis(100));
    assert_eq!(world.nodes[b].delivered.pop().unwrap(), uncut(1420));
}

#[test]
fn there_is_room_for_what_the_interface_takes_or_the_path() {
    let room = |world: &World, n: usize, to: IpAddr| {
        let mut packet = match to {
            IpAddr::V4(_) => udp(virt(1), virt(2), b""),
            IpAddr::V6(_) => udp6(virt6(1), virt6(2), b""),
        };
        match to {
            IpAddr::V4(v4) => packet[16..20].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => packet[24..40].copy_from_slice(&v6.octets()),
        }
        // As long as a super-packet is, whose end is not looked at.
        world.nodes[n].core.room_for(&packet)
    };
    let (world, a, _) = connected(5, 1372);
    assert_eq!(room(&world, a, virt(2).0), 1340);
    assert_eq!(room(&world, a, virt6(2).into()), 1340);
    assert_eq!(room(&world, a, virt(3).0), 1420, "nobody is known there");
    assert_eq!(room(&world, a, IpAddr::from([192, 0, 2, 1])), 1420);
    assert_eq!(world.nodes[a].core.room_for(&[0x45]), 1420);
    let (world, a, _) = connected(6, 9000);
    assert_eq!(room(&world, a, virt(2).0), 1420);
}

#[test]
fn a_relay_counts_its_frame_and_its_far_side_counts_too() {
    let mut world = World::new(7);
    let relay = world.relay();
    let (a, b) = (world.behind(NatKind::Symmetric), world.behind(NatKind::Symmetric));
    world.announce_relays(&[relay]);
    world.send(a, b, b"hello");
    world.run(Duration::from_secs(5));
    assert_eq!((mtu(&world, a), mtu(&world, b)), (Some(1420), Some(1420)));
    // Between the relay and one of them only.
    let host = world.nodes[relay].host;
    let far = world
        .wire
        .iter()
        .rfind(|seen| seen.from != host && seen.to == host)
        .unwrap()
        .from;
    world.drop_if = Some(Box::new(move |seen| seen.to == far && seen.bytes.len() > 1372));
    world.wire.clear();
    for n in 0..60u8 {
        world.send_raw(a, &udp(virt(2), virt(3), &[n; 1400]));
        world.send_raw(b, &udp(virt(3), virt(2), &[n; 1400]));
        world.run(Duration::from_secs(1));
    }
    let mut found = [mtu(&world, a), mtu(&world, b)];
    found.sort();
    assert_eq!(found, [Some(1372 - 16 - 32), Some(1420)]);
    let relayed = world
        .wire
        .iter()
        .filter(|seen| seen.from == host && padded(&seen.bytes));
    assert!(relayed.count() > 10);
    for seen in &world.wire {
        assert_eq!(
            seen.whole,
            padded(&seen.bytes),
            "from {} to {}",
            seen.from,
            seen.to
        );
    }
}

#[test]
fn a_way_that_turns_narrow_is_noticed_and_one_that_widens_is_used_again() {
    let (mut world, a, b) = connected(8, 9000);
    assert_eq!(mtu(&world, a), Some(1420));
    narrow(&mut world, 1372);
    for n in 0..40u8 {
        world.send_raw(a, &uncut(1400));
        world.send(b, a, &[n]);
        world.run(Duration::from_secs(1));
    }
    assert_eq!(mtu(&world, a), Some(1340));
    world.drop_if = None;
    for n in 0..11u8 {
        world.send(a, b, &[n]);
        world.run(Duration::from_secs(60));
    }
    assert_eq!(mtu(&world, a), Some(1420));
}

#[test]
fn a_padded_probe_from_elsewhere_is_answered_with_less_than_it_has() {
    let (mut world, a, b) = connected(9, 9000);
    let probe = world
        .wire
        .iter()
        .find(|seen| padded(&seen.bytes) && seen.to == world.nodes[b].host);
    let probe = probe.unwrap().clone();
    world.wire.clear();
    let victim = "203.0.113.66:6".parse().unwrap();
    world.inject(victim, world.nodes[b].host, probe.bytes.clone());
    let mut shorter = probe.bytes.clone();
    shorter.truncate(SHORT);
    world.inject(victim, world.nodes[b].host, shorter);
    world.run(Duration::from_millis(50));
    let answers = world.wire.iter().filter(|seen| seen.to == victim);
    let answers: usize = answers.map(|seen| seen.bytes.len()).sum();
    assert!(answers < probe.bytes.len() / 4, "{answers}");
    assert_eq!(world.nodes[b].core.counters().forged, 1, "the shorter one");
    let _ = a;
}

#[test]
fn a_scan_of_empty_addresses_does_not_silence_what_tells_lengths() {
    let (mut world, a, _) = connected(2, 1372);
    let empty = udp(virt(1), virt(200), b"anybody?");
    world.send_raw(a, &empty);
    world.run(Duration::from_secs(1));
    for _ in 0..1000 {
        world.send_raw(a, &empty);
    }
    world.nodes[a].delivered.clear();
    world.send_raw(a, &empty);
    assert!(
        world.nodes[a].delivered.is_empty(),
        "no more is answered of these"
    );
    world.send_raw(a, &uncut(1400));
    let told = world.nodes[a].delivered.pop().unwrap();
    assert_eq!(told[20..22], [3, 4], "fragmentation needed");
}
