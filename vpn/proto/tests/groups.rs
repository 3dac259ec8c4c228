//! Packets to all members of a group: off unless wanted, and bounded.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use aerie_vpn_proto::MAX_COPIES;
use common::{NatKind, World, udp, udp6, virt, virt6};

const SOON: Duration = Duration::from_secs(10);
const MDNS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

/// A relay, and members behind NATs.
fn members(count: usize) -> World {
    let mut world = World::new(5);
    let relay = world.relay();
    for _ in 0..count {
        world.behind(NatKind::PortRestricted);
    }
    world.announce_relays(&[relay]);
    world
}

/// Puts each of the nodes in one group with the others.
fn group(world: &mut World, nodes: &[usize]) {
    let addrs: Vec<_> = nodes.iter().map(|n| world.nodes[*n].virt).collect();
    let now = world.moment();
    for n in nodes {
        world.nodes[*n].core.set_group(Some(addrs.clone()), now);
    }
}

fn send_to(world: &mut World, from: usize, to: Ipv4Addr) -> Vec<u8> {
    let packet = udp(world.nodes[from].virt, to.into(), b"who is there?");
    world.send_raw(from, &packet);
    packet
}

fn who_got(world: &World, packet: &[u8]) -> Vec<usize> {
    let got = |n: &usize| world.nodes[*n].delivered.iter().any(|got| got == packet);
    (0..world.nodes.len()).filter(got).collect()
}

#[test]
fn a_packet_to_all_reaches_the_members_of_the_group_and_nobody_else() {
    let mut world = members(5);
    group(&mut world, &[1, 2, 3]);
    group(&mut world, &[4, 5]);
    let broadcast = Ipv4Addr::new(100, 127, 255, 255);
    for to in [MDNS, Ipv4Addr::BROADCAST, broadcast] {
        let packet = send_to(&mut world, 1, to);
        world.run(SOON);
        assert_eq!(who_got(&world, &packet), [2, 3], "{to}");
    }
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
    let packet = udp6(virt6(2), all, b"and by IPv6?");
    world.send_raw(1, &packet);
    world.run(SOON);
    assert_eq!(who_got(&world, &packet), [2, 3]);
}

#[test]
fn a_packet_to_all_goes_nowhere_where_nobody_wants_it() {
    let mut world = members(2);
    send_to(&mut world, 1, MDNS);
    world.run(SOON);
    assert_eq!(world.nodes[1].core.counters().misdirected, 1);
    assert!(world.nodes[2].delivered.is_empty());
    // One side alone wants it.
    group(&mut world, &[1, 2]);
    let now = world.moment();
    world.nodes[2].core.set_group(None, now);
    let packet = send_to(&mut world, 1, MDNS);
    world.run(SOON);
    assert_eq!(who_got(&world, &packet), [0_usize; 0]);
    assert_eq!(world.nodes[2].core.counters().misdirected, 1);
}

#[test]
fn a_packet_to_all_is_taken_from_the_own_group_alone() {
    let mut world = members(5);
    group(&mut world, &[4, 5]);
    let now = world.moment();
    let wide = vec![world.nodes[2].virt, world.nodes[4].virt];
    world.nodes[1].core.set_group(Some(wide), now);
    group(&mut world, &[2, 3]);
    let mates = vec![world.nodes[1].virt, world.nodes[3].virt];
    world.nodes[2].core.set_group(Some(mates), now);
    let packet = send_to(&mut world, 1, MDNS);
    world.run(SOON);
    assert_eq!(who_got(&world, &packet), [2]);
    assert_eq!(world.nodes[4].core.counters().misdirected, 1);
}

#[test]
fn what_a_host_says_of_its_groups_wakes_nobody() {
    let mut world = members(2);
    group(&mut world, &[1, 2]);
    let mut report = udp(world.nodes[1].virt, Ipv4Addr::new(224, 0, 0, 22).into(), &[0; 8]);
    report[9] = 2;
    world.wire.clear();
    world.send_raw(1, &report);
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[1].core.counters().copies, 0);
}

#[test]
fn copies_are_bounded_in_number_and_in_bytes() {
    let mut world = members(2);
    let now = world.moment();
    let many = (1..=200).map(virt).collect();
    world.nodes[1].core.set_group(Some(many), now);
    send_to(&mut world, 1, MDNS);
    let counters = world.nodes[1].core.counters();
    assert_eq!((counters.copies, counters.copies_limited), (MAX_COPIES as u64, 0));

    group(&mut world, &[1, 2]);
    world.send(1, 2, b"a session is there");
    world.run(SOON);
    let begun = world.nodes[1].core.counters();
    let packet = udp(world.nodes[1].virt, MDNS.into(), &[0; 1000]);
    for _ in 0..2000 {
        world.send_raw(1, &packet);
    }
    let counters = world.nodes[1].core.counters();
    let copies = counters.copies - begun.copies;
    assert!((400..600).contains(&copies), "{copies}");
    assert_eq!(copies + counters.copies_limited - begun.copies_limited, 2000);
    // Other packets are not held up by that.
    let sent = udp(world.nodes[1].virt, world.nodes[2].virt, b"alone");
    world.send_raw(1, &sent);
    world.run(Duration::from_secs(1));
    assert!(who_got(&world, &sent).contains(&2));
}
