//! A small part of each world, and every weakening.

use aerie_model::{Order, WEAKENINGS, explore, worlds};

/// States of each world: seconds without optimisation. The whole is `cargo run --release -p aerie-model`.
const FEW: usize = 2_000;

fn found(name: &str) {
    let weakening = WEAKENINGS.iter().find(|weakening| weakening.name == name);
    let Some(weakening) = weakening else {
        panic!("no weakening is called {name}");
    };
    let verdict = explore((weakening.world)(), weakening.order, 1, 1_000_000);
    assert!(verdict.violation.is_some(), "{verdict:?}");
}

#[test]
fn the_first_states_of_every_world_are_safe() {
    for world in worlds() {
        let verdict = explore(world, Order::Depth, 1, FEW);
        assert!(verdict.violation.is_none(), "{verdict:#?}");
        assert!(verdict.unique > 100, "{verdict:?}");
    }
}

#[test]
fn quorums_that_need_not_intersect_are_found() {
    found("quorum-3-of-5");
}

#[test]
fn a_witness_that_answers_before_it_has_written_is_found() {
    found("answer-before-persisting");
}

#[test]
fn a_witness_that_votes_without_its_memory_is_found() {
    found("no-readiness-rule");
}

#[test]
fn a_new_witness_that_does_not_hear_of_earlier_certificates_is_found() {
    found("new-witness-ignores-certificates");
}

#[test]
fn a_look_up_that_falls_back_to_a_lease_given_up_is_found() {
    found("no-fencing");
}
