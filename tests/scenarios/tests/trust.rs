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

    // It learns why, even where nobody talks to it any more, and a restart does not bring it back.
    says_so(&worker);
    worker.daemon().unwrap().kill9().unwrap();
    worker.start().unwrap();
    says_so(&worker);
    assert!(submitter.ping(&addr).is_err());
}

/// Waits until a node says that it is revoked. It may have to ask the enrolment service, since nobody else talks to it.
fn says_so(member: &Member) {
    wait_until(SOON, "the node to say that it is revoked", || {
        Ok(member.status()?.summary().contains("revoked").then_some(()))
    })
    .unwrap();
}
