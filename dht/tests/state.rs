//! What one member tells another of the register's state, page by page.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_dht_proto::limits::{MAX_KEYS_PER_HOLDER, MAX_SUMMARIES};
use aerie_types::{Key, Role};

mod common;

use common::wire::{Answer, Request};
use common::{LIAR, World};

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
