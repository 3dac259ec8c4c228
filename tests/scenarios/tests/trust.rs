//! Credentials are revoked, disks are copied: who is cut off is cut off, and no address has two holders.

use std::time::{Duration, Instant};

use aerie_lab::grid::{AERIE, Member};
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

#[test]
fn cloned_disk_never_two_holders() {
    let lab = lab("clone").unwrap();
    let home = lab.site("home", Nat::PortRestricted).unwrap();
    let away = lab.site("away", Nat::PortRestricted).unwrap();
    let grid = small_grid(&lab).unwrap();
    let [_manager, original] =
        join_all(&grid, &Place::from(&home), [("m1", "manager"), ("w1", "worker")]).unwrap();
    let addr = original.addr().unwrap();

    let copy = original.node.clone_disk("w1-copy", &away).unwrap();
    let copy = original.on(copy);
    copy.start().unwrap();

    // Both may hold the address for as long as it takes the witnesses to see the second instance, not longer: what
    // is looked for is that the copy never gets a certificate for it, and that it says why.
    let end = Instant::now() + Duration::from_secs(30);
    let mut explained = None;
    while Instant::now() < end {
        let (first, second) = (original.status(), copy.status());
        if let (Ok(first), Ok(second)) = (first, second) {
            assert!(
                first.addr.is_none() || first.addr != second.addr,
                "both hold {:?}\n{}\n{}",
                first.addr,
                original.node.run("root", &[AERIE, "status"]).unwrap_or_default(),
                copy.node.run("root", &[AERIE, "status"]).unwrap_or_default()
            );
            if first.addr.as_deref() == Some(addr.as_str()) && second.pending().is_some() {
                explained = explained.or_else(|| second.pending().cloned());
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let stage = explained.expect("the copy never said what it waits for");
    assert!(!stage.reason.is_empty(), "{stage:?}");
}
