//! Strict mode on real daemons: a majority of three named nodes grants every address, and nobody else does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use aerie_lab::grid::{Grid, Join};
use aerie_lab::{Lab, Place};
use aerie_scenarios::{GROUP, SOON, lab};

fn light(name: &str) -> Join {
    Join::new(name, Place::Internet, GROUP, "client")
        .option("--no-condor")
        .option("--no-upnp")
}

fn strict_grid(lab: &Lab) -> Grid<'_> {
    let options = [
        "--witnesses",
        "hub,a1,a2",
        "--reserve",
        "100.96.0.0/24",
        "--exclude",
        "100.97.0.0/16",
    ];
    Grid::create(lab, "strict", &options, &[GROUP]).unwrap()
}

#[test]
fn named_witnesses_grant_by_majority_and_a_newcomer_is_told_whom_it_misses() {
    let lab = lab("strict").unwrap();
    let grid = strict_grid(&lab);
    let founder = |name: &str| grid.join(&light(name).option("--founder")).unwrap();
    let (first, second) = (founder("a1"), founder("a2"));
    let client = grid.join(&light("c1")).unwrap();
    grid.wait_ready([&grid.hub, &first, &second, &client]).unwrap();
    let before = client.addr().unwrap();

    first.daemon().unwrap().kill9().unwrap();
    second.daemon().unwrap().kill9().unwrap();
    let late = grid.join(&light("late")).unwrap();
    let told = |reason: &str| reason.contains("2 of the named witnesses have to grant each address");
    let status = grid
        .wait_for(&late, SOON, "the reason why it waits", |status| {
            status.stage("address").is_some_and(|stage| told(&stage.reason))
        })
        .unwrap();
    let reason = &status.stage("address").unwrap().reason;
    assert!(reason.contains("not connected: a1, a2"), "{reason}");
    assert_eq!(client.addr().unwrap(), before, "a lease that is held stays");

    first.start().unwrap();
    grid.wait_ready([&first, &late]).unwrap();
    client.ping(&late.addr().unwrap()).unwrap();
    lab.destroy().unwrap();
}
