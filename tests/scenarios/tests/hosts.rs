//! Machines that are not as they should be: the status says what is wrong and what to do.

use aerie_lab::grid::Join;
use aerie_lab::{Nat, Place};
use aerie_scenarios::{GROUP, SOON, lab, small_grid};

#[test]
fn overlapping_route_is_refused_with_alternative() {
    let lab = lab("overlap").unwrap();
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let grid = small_grid(&lab).unwrap();
    let node = lab.node("w1", &site).unwrap();
    // Another VPN of this machine has part of the default range 100.96.0.0/11.
    node.sh(
        "root",
        "ip link add other type veth peer name another; ip link set other up; ip route add 100.100.0.0/16 dev other",
    )
    .unwrap();
    let member = grid
        .join_node(
            node,
            &Join::new("w1", &site, GROUP, "client").option("--no-condor"),
        )
        .unwrap();
    let status = grid
        .wait_for(&member, SOON, "refused the range", |status| {
            status.pending().is_some_and(|stage| stage.state == "failed")
        })
        .unwrap();
    let stage = status.pending().unwrap();
    assert!(
        stage.reason.contains("100.100.0.0/16") && stage.reason.contains("other"),
        "{stage:?}"
    );
    assert!(
        stage.hint.contains("--range"),
        "no alternative is named: {stage:?}"
    );
    assert_eq!(status.addr, None);

    // Once the way is free, the node goes on by itself.
    member.node.sh("root", "ip link del other").unwrap();
    grid.wait_ready([&member]).unwrap();
}

#[test]
fn clock_wrong_by_a_day_is_explained() {
    let lab = lab("clock").unwrap();
    let grid = small_grid(&lab).unwrap();
    // Behind: every certificate of today is of tomorrow for it.
    let member = grid
        .join(&Join::new("w1", Place::Internet, GROUP, "client").clock("-1d"))
        .unwrap();
    let status = grid
        .wait_for(&member, SOON, "explained its clock", |status| {
            status.summary().contains("clock")
        })
        .unwrap();
    assert!(!status.ready);
    let stage = status.pending().unwrap();
    assert!(!stage.hint.is_empty(), "nothing is said of what to do: {stage:?}");
}
