//! The manager is killed at every write and every effect of a day's work, and started again.

use std::time::Duration;

use aerie_cluster_manager_proto::{Operation, Scope};

use crate::sim::{SECOND, Sim, UNDEPLOY, amounts, caller, description, operate, request};

/// A day's work: clusters of all kinds, operations, hosts that die while they stage, boot and save, and guests that
/// end. Then everything is left alone, and at last taken away.
fn day(seed: u64, crash_at: Option<u64>) -> Sim {
    let mut sim = Sim::new(
        seed,
        &[
            ("h1", amounts(6, 16, 100)),
            ("h2", amounts(6, 16, 100)),
            ("h3", amounts(6, 16, 100)),
        ],
    );
    sim.crash_at = crash_at;
    sim.fail_one_in = 40;
    let (ada, bob) = (caller("ada"), caller("bob"));
    sim.run(2 * SECOND);
    let part = |count| description("started", false, &[("w", count, "debian")]);
    let whole = description("started", true, &[("head", 1, "head"), ("node", 4, "debian")]);
    let disks = description("propagated", true, &[("d", 2, "debian")]);
    sim.ask_later(SECOND, &ada, request("whole", whole));
    sim.ask_later(2 * SECOND, &bob, request("part", part(5)));
    sim.ask_later(3 * SECOND, &ada, request("disks", disks));
    let member = |name: &str| Scope::Member(name.parse().unwrap());
    let works = [
        (20, &ada, "whole", Scope::Cluster, Operation::Pause),
        (30, &ada, "whole", Scope::Cluster, Operation::Unpause),
        (35, &bob, "part", Scope::Cluster, Operation::Suspend),
        (50, &bob, "part", member("w-2"), Operation::Start),
        (
            55,
            &ada,
            "whole",
            Scope::Set("node".parse().unwrap()),
            Operation::Stop,
        ),
        (70, &ada, "whole", Scope::Cluster, Operation::Start),
        (75, &bob, "part", member("w-3"), UNDEPLOY),
        (80, &ada, "disks", Scope::Cluster, Operation::Start),
        (150, &ada, "whole", Scope::Cluster, Operation::Deploy),
        (160, &bob, "part", Scope::Cluster, Operation::Deploy),
    ];
    for (at, who, cluster, scope, operation) in works {
        sim.ask_later(at * SECOND, who, operate(cluster, scope, operation));
    }
    let kind = seed % 4;
    let host = ["h1", "h2", "h3"][usize::try_from(seed / 4 % 3).unwrap()];
    match kind {
        // While it stages, boots, and saves; the last for so long that it is lost.
        0 => sim.die_later(4 * SECOND, host, 15 * SECOND),
        1 => sim.die_later(11 * SECOND, host, 40 * SECOND),
        2 => sim.die_later(37 * SECOND, host, 200 * SECOND),
        _ => {}
    }
    sim.run(400 * SECOND);
    sim.fail_one_in = 0;
    sim.run(600 * SECOND);
    sim
}

fn ends(mut sim: Sim, what: &str) {
    if sim.core.is_none() {
        // It was killed just now.
        sim.run(120 * SECOND);
    }
    let settled = sim.is_settled();
    assert!(settled.is_ok(), "{what}: {settled:?}");
    let (ada, bob) = (caller("ada"), caller("bob"));
    for (who, cluster) in [(&ada, "whole"), (&bob, "part"), (&ada, "disks")] {
        sim.ask_later(SECOND, who, operate(cluster, Scope::Cluster, UNDEPLOY));
    }
    sim.run(Duration::from_secs(600));
    let empty = sim.is_empty();
    assert!(empty.is_ok(), "{what}: {empty:?}");
}

#[test]
fn a_manager_killed_at_any_write_or_effect_leaves_nobody_stuck_and_nothing_behind() {
    let seeds: u64 = std::env::var("AERIE_MANAGER_SEEDS").map_or(12, |text| text.parse().unwrap());
    // Every so many of a seed's boundaries, so that a run of the tests stays short; 1 for all.
    let stride: u64 = std::env::var("AERIE_MANAGER_STRIDE").map_or(97, |text| text.parse().unwrap());
    let mut points = 0;
    for seed in 0..seeds {
        let sim = day(seed, None);
        let boundaries = sim.boundaries;
        ends(sim, &format!("seed {seed}, not killed"));
        for at in (1 + seed % stride..=boundaries).step_by(usize::try_from(stride).unwrap()) {
            ends(
                day(seed, Some(at)),
                &format!("seed {seed}, killed at {at} of {boundaries}"),
            );
            points += 1;
        }
    }
    println!("{points} crash points over {seeds} seeds");
    assert!(
        points >= 500 || seeds < 12 || stride > 97,
        "{points} crash points are too few"
    );
}
