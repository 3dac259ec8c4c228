//! What one member tells another of the register's state, page by page, by an honest member and by one that is not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_dht_proto::limits::{MAX_KEYS, MAX_KEYS_PER_HOLDER, MAX_SUMMARIES};
use aerie_dht_proto::{Input, Output, Terms};
use aerie_types::{Instance, Key, Role};

mod common;

use common::wire::{self, Answer, Refusal, Request, State, Told};
use common::{HOLDER, LIAR, OTHERS, World};

fn merge(world: &World, after: Option<Key>) -> Request {
    Request::Merge {
        credential: world.members[LIAR].der.to_vec(),
        votes: false,
        members: Vec::new(),
        after,
    }
}

#[test]
fn no_key_is_left_out_where_a_page_of_state_ends() {
    let mut world = World::new();
    let life = Duration::from_secs(3600);
    let mut all = BTreeSet::new();
    let holders = 2 * MAX_SUMMARIES / MAX_KEYS_PER_HOLDER - 2;
    for holder in 6..6 + holders {
        let member = common::enrol(
            &world.ca,
            holder as u64,
            Role::Worker.into(),
            world.now.wall,
            life,
        );
        world.members.push(member);
        for _ in 0..MAX_KEYS_PER_HOLDER {
            let terms = world.terms(holder, world.addr(all.len() as u32));
            let answer = world.claim(holder, &terms, 1, None);
            assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
            all.insert(terms.key);
        }
    }
    assert!(all.len() > MAX_SUMMARIES);
    let (mut told, mut after) = (BTreeSet::new(), None);
    loop {
        let Answer::State(state) = world.ask(LIAR, &merge(&world, after)) else {
            panic!("no state");
        };
        assert!(state.summaries.len() <= MAX_SUMMARIES);
        told.extend(state.summaries.iter().map(|summary| summary.key));
        match state.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let missing: Vec<_> = all.difference(&told).collect();
    assert!(
        missing.is_empty(),
        "{} of {} keys missing",
        missing.len(),
        all.len()
    );
}

#[test]
fn a_claim_of_a_restarted_holder_that_fell_short_leaves_its_lease_alone() {
    let (mut world, lease) = World::with_lease();
    let terms = Terms {
        instance: Instance(lease.terms.instance.0 + 1),
        since: Some(lease.since()),
        ..lease.terms.clone()
    };
    let answer = world.claim(HOLDER, &terms, 1, Some(world.proof(&lease)));
    assert!(
        matches!(answer, Answer::Refused(Refusal::Restarting { .. })),
        "{answer:?}"
    );
    world.pass_nothing(Duration::from_secs(3));
    let answer = world.claim(HOLDER, &terms, 2, Some(world.proof(&lease)));
    assert!(matches!(answer, Answer::Granted { .. }), "{answer:?}");
    // Other witnesses did not answer: the round is lost, and what it was granted is given back.
    let release = Request::Release {
        key: terms.key,
        instance: terms.instance,
        seq: 2,
        held: false,
    };
    assert!(matches!(world.ask(HOLDER, &release), Answer::Done));
    let theirs = world.terms(LIAR, world.addr(0));
    let answer = world.claim(LIAR, &theirs, 1, None);
    assert!(
        matches!(&answer, Answer::Refused(Refusal::Taken { holder, certified: true, .. }) if *holder == lease.terms.holder),
        "{answer:?}"
    );
    // Its next attempt is heard as the first one was.
    world.claim(HOLDER, &terms, 3, Some(world.proof(&lease)));
    world.pass_nothing(Duration::from_secs(3));
    let answer = world.claim(HOLDER, &terms, 4, Some(world.proof(&lease)));
    let Answer::Granted { receipt, .. } = &answer else {
        panic!("{answer:?}");
    };
    assert!(receipt.ttl_ms > 10_000, "the lease goes on: {receipt:?}");
}

#[test]
fn a_state_without_end_neither_keeps_a_newcomer_from_voting_nor_is_asked_for_for_ever() {
    let world = World::new();
    let mut newcomer = world.start(OTHERS[0], false);
    let state = |member: usize, next: Option<Key>| State {
        whole: true,
        credential: world.members[member].der.to_vec(),
        members: [1, 2, 4]
            .map(|other| Told {
                credential: world.members[other].der.to_vec(),
                age_ms: 0,
            })
            .to_vec(),
        summaries: Vec::new(),
        next,
    };
    for member in [1, LIAR, 4] {
        let peer = world.peer(member);
        newcomer.handle_input(Input::MemberUp { peer }, world.now);
    }
    let (mut now, mut pages) = (world.now, 0);
    for _ in 0..60 {
        while let Some(output) = newcomer.poll_output() {
            let Output::Send { to, id, bytes } = output else {
                continue;
            };
            let Some(Request::Merge { .. }) = wire::from_bytes(&bytes) else {
                continue;
            };
            let member = (0..6).find(|member| world.peer(*member) == to).unwrap();
            let lies = member == LIAR;
            pages += u64::from(lies);
            assert!(pages < 20_000, "asked for ever within one turn");
            let next = lies.then(|| Key::of("next", &[&pages.to_be_bytes()]));
            let result = Ok(wire::to_bytes(&Answer::State(state(member, next))));
            newcomer.handle_input(Input::Reply { id, result }, now);
        }
        if newcomer.is_ready() {
            break;
        }
        now = common::after(now, Duration::from_secs(1));
        newcomer.handle_timeout(now);
    }
    assert!(newcomer.is_ready(), "two whole states of four members suffice");
    assert!(newcomer.stats().over_bound > 0);
    let most = 4 * MAX_KEYS.div_ceil(MAX_SUMMARIES) as u64;
    assert!(pages <= most, "{pages} pages asked for");
}

#[test]
fn an_exchange_of_state_under_another_members_credential_is_counted() {
    let mut world = World::new();
    let counted = world.stats();
    let merge = |credential: Vec<u8>| Request::Merge {
        credential,
        votes: true,
        members: Vec::new(),
        after: None,
    };
    let theirs = world.members[HOLDER].der.to_vec();
    assert_eq!(world.ask(LIAR, &merge(theirs)), Answer::Malformed);
    assert_eq!(world.stats().malformed, counted.malformed + 1);
    assert_eq!(world.ask(LIAR, &merge(vec![0; 5000])), Answer::Malformed);
    assert_eq!(world.node.members_known(world.now), 1);
}
