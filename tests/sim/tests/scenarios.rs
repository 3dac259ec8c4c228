//! The scenarios of the simulator with few seeds and small grids; `cargo xtask sim leases` plays them at length.

#![allow(clippy::expect_used, reason = "helpers of tests fail the test")]

use aerie_sim::Routing;
use aerie_sim::scenario::{Report, Scenario};

#[track_caller]
fn play(name: &str, nodes: usize, seeds: std::ops::Range<u64>) -> Vec<Report> {
    let scenario = Scenario::named(name).expect("a scenario");
    play_with(scenario, scenario.routing, nodes, seeds)
}

#[track_caller]
fn play_with(
    scenario: &Scenario,
    routing: Routing,
    nodes: usize,
    seeds: std::ops::Range<u64>,
) -> Vec<Report> {
    let name = scenario.name;
    let reports: Vec<_> = seeds.map(|seed| scenario.run(seed, nodes, routing)).collect();
    for report in &reports {
        assert!(
            report.violations.is_empty(),
            "cargo xtask sim leases --scenario {name} --nodes {nodes} --routing {routing} --seeds 1 --first {} \
             fails: {:#?}",
            report.seed,
            report.violations
        );
    }
    reports
}

#[test]
fn everything_at_once_violates_nothing_and_every_kind_of_fault_strikes() {
    let reports = play("mixed", 16, 0..3);
    let mut all = aerie_sim::Tally::default();
    reports.iter().for_each(|report| all.add(&report.tally));
    let wanted = [
        "lost",
        "doubled",
        "swallowed",
        "partitions",
        "heals",
        "crashes",
        "restarts",
        "amnesias",
        "joins",
        "leaves",
        "pauses",
        "skewed",
        "drifting",
        "contested",
        "renewed",
        "answered",
    ];
    for (name, text, count) in all.named() {
        assert!(count > 0 || !wanted.contains(&name), "no {text} in {all:?}");
    }
}

#[test]
fn everything_at_once_violates_nothing_where_nodes_know_what_messages_tell_them() {
    let mixed = Scenario::named("mixed").expect("a scenario");
    let reports = play_with(mixed, Routing::Kademlia, 16, 0..3);
    for report in &reports {
        assert!(report.tally.dials > 0 && report.tally.heals > 0, "{report:?}");
    }
    let again = play_with(mixed, Routing::Kademlia, 16, 2..3);
    assert_eq!(reports[2..], again);
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    let once = play("mixed", 5, 7..9);
    let twice = play("mixed", 5, 7..9);
    assert_eq!(once, twice);
    assert_ne!(once[0].trace, once[1].trace);
}

#[test]
fn a_herd_that_fits_closely_is_served_and_what_is_too_much_is_refused() {
    let reports = play("herd24", 28, 0..2);
    for report in reports {
        assert_eq!(report.tally.refused, 8, "{:?}", report.tally);
    }
}

#[test]
fn a_herd_on_a_wide_range_is_served() {
    play("herd16", 100, 0..1);
}

#[test]
fn torn_halves_agree_after_the_healing_and_losers_move() {
    let reports = play("halves", 80, 0..1);
    assert!(
        reports[0].tally.torn > 0,
        "nothing to agree on: {:?}",
        reports[0].tally
    );
}

#[test]
fn steady_churn_loses_no_lease_and_answers_look_ups() {
    play("churn", 60, 0..1);
}

#[test]
fn two_liars_among_nine_witnesses_neither_forge_a_holder_nor_evict_one() {
    let reports = play("liars", 30, 0..4);
    assert!(reports.iter().all(|report| report.tally.lies > 0));
}

#[test]
fn a_disk_set_back_takes_nothing_from_the_present_holder() {
    play("revenant", 20, 0..4);
}

#[test]
fn a_claimant_that_chooses_its_witnesses_gets_no_held_address() {
    play("chooser", 40, 0..4);
}
