//! The stand-in and libp2p on the same small grid.

use std::time::Duration;

use aerie_kad_compare::compare::Comparison;
use aerie_sim::kad::{Plan, Settings};

#[ignore = "libp2p runs in real time and wants the machine for itself; `aerie-kad-compare compare` is the measurement"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stand_in_asks_and_finds_like_libp2p_in_a_grid_of_a_hundred() {
    let mut plan = Plan::new(aerie_kad_compare::members(100).unwrap(), 7);
    plan.join_every = Duration::from_millis(80);
    plan.settle = Duration::from_secs(12);
    plan.lookups = 60;
    plan.lookup_every = Duration::from_millis(50);
    plan.pause = Duration::from_secs(3);
    let settings = Settings {
        // Small enough that members have to find and dial others.
        limit: 32,
        ..Settings::default()
    };
    let comparison = Comparison {
        members: 100,
        real: aerie_kad_compare::run(&plan, &settings).await.unwrap(),
        stand_in: plan.simulate(settings),
    };
    let differences = comparison.differences();
    assert!(differences.is_empty(), "{differences:#?}\n{}", comparison.table());
}
