//! When sets are read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

mod common;

use std::time::Duration;

use aerie_dht_proto::{Input, MemoryStore, Now, Output, Register};
use aerie_types::PeerId;
use common::{Credulous, now, register};

fn after(start: Now, seconds: u64) -> Now {
    Now {
        instant: start.instant + Duration::from_secs(seconds),
        wall: start.wall.plus(Duration::from_secs(seconds)),
    }
}

/// The second after `from` at which the replicas are next located, which in a small grid begins each reading.
fn next_reading(node: &mut Register<MemoryStore, Credulous>, start: Now, from: u64) -> u64 {
    for second in from..from + 600 {
        let now = after(start, second);
        node.handle_timeout(now);
        let mut located = false;
        while let Some(output) = node.poll_output() {
            if let Output::Locate { query, .. } = output {
                located = true;
                let peers = Vec::new();
                node.handle_input(Input::Located { query, peers }, now);
            }
        }
        if located && second > from {
            return second;
        }
    }
    panic!("not read for ten minutes");
}

#[test]
fn a_watched_set_is_read_each_minute_and_sooner_after_a_member_came() {
    let start = now();
    let mut node = register(1, true, start);
    node.handle_input(
        Input::MemberUp {
            peer: PeerId([2; 32]),
        },
        start,
    );
    node.watch("managers", start);
    let first = next_reading(&mut node, start, 0);
    assert!((50..=70).contains(&first), "after {first} s");
    node.handle_input(
        Input::MemberUp {
            peer: PeerId([3; 32]),
        },
        after(start, first + 1),
    );
    let second = next_reading(&mut node, start, first + 1);
    assert!(second <= first + 20, "after {} s", second - first);
}
