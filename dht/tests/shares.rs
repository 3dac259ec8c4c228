//! What one member can make a witness keep, and what it can put into sets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use aerie_dht_proto::limits::{MAX_KEYS_PER_HOLDER, MAX_SET_TTL, MAX_SETS_PER_PUBLISHER};
use aerie_types::{GridId, Instance, Key};

mod common;

use common::wire::{self, Answer, Entry, Refusal, Request, SignedEntry};
use common::{HOLDER, LIAR, World};

#[test]
fn one_member_fills_no_more_than_its_share_with_claims() {
    let mut world = World::new();
    for index in 0..100 {
        let terms = world.terms(LIAR, world.addr(index));
        let answer = world.claim(LIAR, &terms, u64::from(index), None);
        if (index as usize) < MAX_KEYS_PER_HOLDER {
            assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
        } else {
            assert_eq!(answer, Answer::Refused(Refusal::Busy));
        }
    }
    assert_eq!(world.stats().over_bound, 100 - MAX_KEYS_PER_HOLDER as u64);
    let answer = world.claim(HOLDER, &world.terms(HOLDER, world.addr(200)), 1, None);
    assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
}

#[test]
fn one_member_fills_no_more_than_its_share_with_releases_of_what_it_never_had() {
    let mut world = World::new();
    let key = |number: u32| Key::of("anything", &[&number.to_be_bytes()]);
    for number in 0..9000 {
        let (key, instance, seq) = (key(number), Instance(1), 1);
        world.ask(
            LIAR,
            &Request::Release {
                key,
                instance,
                seq,
                held: true,
            },
        );
    }
    let kept = (0..9000)
        .filter(|number| world.node.explain(key(*number)) != "nothing")
        .count();
    assert!(kept <= MAX_KEYS_PER_HOLDER, "{kept} kept");
    assert!(world.stats().over_bound >= 9000 - MAX_KEYS_PER_HOLDER as u64);
    let answer = world.claim(HOLDER, &world.terms(HOLDER, world.addr(1)), 1, None);
    assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
}

/// An entry of a set with this member's signature, unless the signer is another.
fn entry(world: &World, publisher: usize, signer: usize, adjust: impl FnOnce(&mut Entry)) -> SignedEntry {
    let mut entry = Entry {
        grid: world.grid(),
        set: "anything".to_owned(),
        publisher: world.peer(publisher),
        seq: 5,
        ttl_ms: 1000,
        value: Some(vec![1]),
    };
    adjust(&mut entry);
    let message = wire::entry_message(&entry);
    let signature = world.members[signer].keys.overlay_signer().sign(&message).into();
    SignedEntry { entry, signature }
}

#[test]
fn an_entry_of_a_set_that_its_publisher_may_not_make_or_did_not_sign_is_counted() {
    let mut world = World::new();
    let credential = |world: &World| Some(world.members[LIAR].der.to_vec());
    let put = |world: &mut World, entry: SignedEntry| {
        let credential = credential(world);
        world.ask(LIAR, &Request::Put { entry, credential })
    };
    let right = entry(&world, LIAR, LIAR, |_| {});
    assert_eq!(put(&mut world, right), Answer::Done);
    assert_eq!(world.node.set("anything", world.now).len(), 1);
    let others = entry(&world, HOLDER, LIAR, |_| {});
    assert_eq!(put(&mut world, others), Answer::Malformed);
    assert_eq!(world.stats().malformed, 1);
    let later = |signer: usize, adjust: fn(&mut Entry)| {
        entry(&world, LIAR, signer, |entry| {
            entry.seq = 6;
            adjust(entry);
        })
    };
    let forged = [
        later(HOLDER, |_| {}),
        later(LIAR, |entry| entry.grid = GridId([9; 16])),
        later(LIAR, |entry| entry.set = "managers".to_owned()),
        later(LIAR, |entry| entry.set = "s".repeat(65)),
        later(LIAR, |entry| entry.value = Some(vec![0; 1025])),
    ];
    for (counted, signed) in forged.into_iter().enumerate() {
        put(&mut world, signed);
        assert_eq!(world.stats().bad_entries, counted as u64 + 1);
    }
    let set = world.node.set("anything", world.now);
    assert_eq!((set.len(), set[0].value.as_slice()), (1, [1].as_slice()));
    assert_eq!(world.node.set("managers", world.now), []);
    // An older one does not come back, and no life is longer than the bound.
    let older = entry(&world, LIAR, LIAR, |entry| entry.seq = 4);
    assert_eq!(put(&mut world, older), Answer::Stale { seq: 5 });
    let long = entry(&world, LIAR, LIAR, |entry| {
        (entry.seq, entry.ttl_ms) = (u64::MAX, u32::MAX);
    });
    assert_eq!(put(&mut world, long), Answer::Done);
    let left = world.node.set("anything", world.now)[0].remaining;
    assert_eq!(left, MAX_SET_TTL);
}

#[test]
fn one_member_fills_no_more_than_its_share_of_the_sets() {
    let mut world = World::new();
    for number in 0..100 {
        let entry = entry(&world, LIAR, LIAR, |entry| entry.set = format!("s{number}"));
        let credential = Some(world.members[LIAR].der.to_vec());
        world.ask(LIAR, &Request::Put { entry, credential });
    }
    let kept = (0..100)
        .filter(|number| !world.node.set(&format!("s{number}"), world.now).is_empty())
        .count();
    assert_eq!(kept, MAX_SETS_PER_PUBLISHER);
    assert_eq!(world.stats().over_bound, 100 - kept as u64);
}
