//! What a claim costs in round trips.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::time::Duration;

use aerie_sim::{Conditions, World};

const SECOND: Duration = Duration::from_secs(1);
const ONE_WAY: Duration = Duration::from_millis(100);

#[test]
fn a_claim_that_nobody_contends_takes_two_round_trips() {
    for seed in 0..5 {
        let even = Conditions {
            delay: (ONE_WAY, ONE_WAY),
            ..Conditions::default()
        };
        let mut world = World::new(seed, "10.0.0.0/16".parse().unwrap(), even);
        for index in 0..20 {
            world.add();
            world.start(index);
            world.acquire(index, None);
        }
        let end = world.now() + SECOND * 30;
        let all = |world: &World| world.nodes.iter().all(|node| node.addr().is_some());
        assert!(world.run_until(end, all), "seed {seed}");

        let newcomer = world.add();
        world.start(newcomer);
        world.run(SECOND * 10);
        world.acquire(newcomer, None);
        // Beside those of the votes there is one for the locating of the witnesses.
        let end = world.now() + ONE_WAY * 6 + ONE_WAY / 2;
        let held = world.run_until(end, |world| world.nodes[newcomer].addr().is_some());
        assert!(held, "seed {seed}: {:?}", world.nodes[newcomer].told);
    }
}
