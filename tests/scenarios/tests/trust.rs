//! Credentials are revoked: who is cut off is cut off, and stays so.

use std::time::{Duration, Instant};

use aerie_lab::grid::Member;
use aerie_lab::wait::wait_until;
use aerie_lab::{Nat, Place};
use aerie_scenarios::{SOON, join_all, lab, small_grid};

#[test]
fn revoked_node_is_cut_off() {
    let lab = lab("revoke").unwrap();
    let site = Place::from(&lab.site("home", Nat::PortRestricted).unwrap());
    let grid = small_grid(&lab).unwrap();
    let [_manager, submitter, worker] = join_all(
        &grid,
        &site,
        [("m1", "manager"), ("s1", "submit"), ("w1", "worker")],
    )
    .unwrap();
    let addr = worker.addr().unwrap();
    submitter.ping(&addr).unwrap();

    grid.revoke("w1").unwrap();
    let revoked = Instant::now();
    wait_until(SOON, "the tunnel to be cut", || {
        Ok(submitter.ping(&addr).is_err().then_some(()))
    })
    .unwrap();
    // A ping that is not answered takes two of these seconds.
    let took = revoked.elapsed();
    assert!(took < Duration::from_secs(7), "the tunnel was cut after {took:?}");

    // Nor does a restart bring it back.
    worker.daemon().unwrap().kill9().unwrap();
    worker.start().unwrap();
    let says_so = |member: &Member| {
        wait_until(SOON, "w1 to say that it is revoked", || {
            let summary = member.status()?.summary();
            Ok(summary.contains("revoked").then_some(()))
        })
    };
    says_so(&worker).unwrap();
    assert!(submitter.ping(&addr).is_err());
}
