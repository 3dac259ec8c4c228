//! What is made of what hosts say is on them.

use std::collections::BTreeSet;

use aerie_cluster_manager_proto::{GuestId, MemberState, What};

use crate::behaviour::{MINUTE, started, states, why};
use crate::sim::{Sim, caller, description, request};

#[test]
fn guests_of_others_are_left_alone_and_orphans_of_ones_own_are_removed() {
    let mut sim = started(&[("w", 1, "debian")]);
    let own = sim.host("h1").guests.clone();
    let guest = own.values().next().unwrap().clone();
    let foreign = aerie_cluster_manager_proto::GuestId([9; 16]);
    let orphan = aerie_cluster_manager_proto::GuestId::new(crate::sim::MANAGER, 0);
    sim.kill();
    sim.host("h1").guests.insert(foreign, guest.clone());
    sim.host("h1").guests.insert(orphan, guest);
    // Not looked at meanwhile: neither is held for anybody.
    sim.unchecked = true;
    sim.run(MINUTE);
    assert!(sim.host("h1").guests.contains_key(&foreign));
    assert!(!sim.host("h1").guests.contains_key(&orphan));
    assert_eq!(sim.host("h1").guests.len(), own.len() + 1);
}

#[test]
fn guests_made_since_the_copy_that_was_restored_are_left_alone_and_told_of_and_their_numbers_are_not_given_again()
 {
    let mut sim = started(&[("w", 1, "debian")]);
    let copy = sim.journal.clone();
    sim.command(
        &caller("ada"),
        request("later", description("started", true, &[("w", 2, "debian")])),
    )
    .unwrap();
    sim.run(MINUTE);
    let guests = |sim: &Sim| -> BTreeSet<GuestId> {
        let hosts = sim.hosts.values();
        hosts.flat_map(|host| host.guests.keys().copied()).collect()
    };
    let before = guests(&sim);
    assert_eq!(before.len(), 3);
    sim.kill();
    sim.journal = copy;
    sim.unchecked = true;
    sim.run(MINUTE);
    assert_eq!(guests(&sim), before);
    let told = |sim: &Sim| {
        let events = sim.core().events(&caller("root"), 0).events;
        events
            .iter()
            .filter(|event| event.what.to_string().contains("it is left alone"))
            .count()
    };
    assert_eq!(told(&sim), 2);
    sim.command(
        &caller("ada"),
        request("anew", description("started", true, &[("w", 1, "debian")])),
    )
    .unwrap();
    sim.kill();
    sim.run(2 * MINUTE);
    let after = guests(&sim);
    assert!(after.is_superset(&before) && after.len() == 4, "{after:?}");
}

#[test]
fn a_members_guest_is_left_alone_where_its_host_goes_by_another_name() {
    let mut sim = started(&[("w", 1, "debian")]);
    sim.unchecked = true;
    let moved = std::mem::take(&mut sim.host("h1").guests);
    assert_eq!(moved.len(), 1);
    sim.host("h1").up = false;
    sim.host("h2").guests.extend(moved.clone());
    sim.run(5 * MINUTE);
    assert!(sim.host("h2").guests.keys().eq(moved.keys()));
}

#[test]
fn guests_of_others_crowd_none_out_of_an_inventory() {
    let mut sim = started(&[("w", 1, "debian")]);
    let guest = sim.host("h1").guests.values().next().unwrap().clone();
    sim.unchecked = true;
    for number in 0..5000_u16 {
        let mut foreign = [0; 16];
        foreign[14..].copy_from_slice(&number.to_be_bytes());
        sim.host("h1").guests.insert(GuestId(foreign), guest.clone());
    }
    sim.run(MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Started]);
}

#[test]
fn an_inventory_that_is_full_is_no_answer() {
    let mut sim = started(&[("w", 1, "debian")]);
    let guest = sim.host("h1").guests.values().next().unwrap().clone();
    sim.unchecked = true;
    let ahead = (0..4096).map(|number| GuestId::new(crate::sim::MANAGER, 1000 + number));
    sim.host("h1")
        .guests
        .extend(ahead.map(|ahead| (ahead, guest.clone())));
    sim.run(MINUTE / 2);
    let suspected = What::HostSuspected {
        host: "h1".parse().unwrap(),
    };
    let events = sim.core().events(&caller("root"), 0).events;
    assert!(events.iter().any(|event| event.what == suspected), "{events:?}");
    assert_eq!(states(&sim, "c"), [MemberState::Started]);
}

#[test]
fn a_guest_that_was_missing_and_is_found_running_is_corrupted_no_more() {
    let mut sim = started(&[("w", 1, "debian")]);
    sim.unchecked = true;
    let hidden = std::mem::take(&mut sim.host("h1").guests);
    sim.run(MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Corrupted]);
    assert_eq!(why(&sim, "c", "w"), "host 'h1' has nothing of it any more");
    sim.host("h1").guests = hidden;
    sim.run(MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Started]);
}
