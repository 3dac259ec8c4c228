//! How many addresses one member may have: what it can try so as to get more, at a witness with real keys.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::time::Duration;

use aerie_dht_proto::Terms;
use aerie_dht_proto::limits::MAX_LEASES_PER_HOLDER;

mod common;

use common::wire::{Answer, Refusal, Request};
use common::{LIAR, LONG, OTHERS, World};

/// A little more than what counts as a vote in a race.
const MOMENT: u32 = 11_000;

/// Asks for the name with an address, for so many milliseconds.
fn name(world: &mut World, index: u32, ttl_ms: u32) -> Answer {
    let terms = world.name_terms(LIAR, world.addr(index));
    let mut claim = world.claim_of(LIAR, &terms, index.into(), None);
    claim.ttl_ms = ttl_ms;
    world.ask(LIAR, &Request::Claim(claim))
}

fn is_granted(answer: &Answer) -> bool {
    matches!(answer, Answer::Granted { .. })
}

fn is_moved(answer: &Answer) -> bool {
    matches!(answer, Answer::Refused(Refusal::Moved { .. }))
}

#[test]
fn a_name_leased_for_a_moment_opens_no_longer_lease() {
    let mut world = World::new();
    let terms = world.terms(LIAR, world.addr(1));
    let right = world.certify(&terms, &OTHERS, |_| {});
    let since = Terms {
        since: Some(right.since()),
        ..terms.clone()
    };
    let named = world.name_terms(LIAR, world.addr(1));
    let short = world.certify(&named, &OTHERS, |receipt| receipt.ttl_ms = MOMENT);
    let mut claim = world.claim_of(LIAR, &since, 1, Some(world.proof(&right)));
    claim.home = Some(world.proof(&short));
    claim.ttl_ms = LONG;
    let answer = world.ask(LIAR, &Request::Claim(claim.clone()));
    assert_eq!(answer, Answer::Refused(Refusal::BadProof));
    claim.ttl_ms = MOMENT;
    let answer = world.ask(LIAR, &Request::Claim(claim));
    assert!(is_granted(&answer), "{answer:?}");
}

#[test]
fn a_name_leased_for_a_moment_is_counted_for_as_long_as_what_it_opens_lasts() {
    let mut world = World::new();
    for index in 0..MAX_LEASES_PER_HOLDER {
        let answer = name(&mut world, u32::try_from(index).unwrap(), MOMENT);
        assert!(is_granted(&answer), "{index}: {answer:?}");
        // The grant ends.
        world.pass(Duration::from_secs(12));
    }
    let answer = name(&mut world, 90, MOMENT);
    assert!(is_moved(&answer), "{answer:?}");
    world.pass(Duration::from_secs(330));
    let answer = name(&mut world, 91, MOMENT);
    assert!(is_granted(&answer), "{answer:?}");
}

#[test]
fn an_address_is_counted_until_what_the_name_opens_at_its_very_end_has_ended() {
    let mut world = World::new();
    for index in 0..MAX_LEASES_PER_HOLDER {
        let answer = name(&mut world, u32::try_from(index).unwrap(), LONG);
        assert!(is_granted(&answer), "{index}: {answer:?}");
    }
    let life = Duration::from_millis(LONG.into());
    world.pass(life * 2);
    let answer = name(&mut world, 90, LONG);
    assert!(is_moved(&answer), "{answer:?}");
    world.pass(Duration::from_secs(301));
    let answer = name(&mut world, 91, LONG);
    assert!(is_granted(&answer), "{answer:?}");
}

#[test]
fn a_restarted_witness_counts_the_address_that_its_grant_names() {
    let mut world = World::new();
    for index in 0..MAX_LEASES_PER_HOLDER {
        let answer = name(&mut world, u32::try_from(index).unwrap(), LONG);
        assert!(is_granted(&answer), "{index}: {answer:?}");
    }
    let store = world.node.store_mut().clone();
    world.restart(true, store);
    // Only the last of the grants is left.
    for index in 10..10 + u32::try_from(MAX_LEASES_PER_HOLDER).unwrap() - 1 {
        let answer = name(&mut world, index, LONG);
        assert!(is_granted(&answer), "{index}: {answer:?}");
    }
    let answer = name(&mut world, 90, LONG);
    assert!(is_moved(&answer), "{answer:?}");
}
