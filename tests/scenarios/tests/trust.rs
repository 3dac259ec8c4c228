//! Credentials are revoked, disks are copied: who is cut off is cut off, and no address has two holders.

use std::time::{Duration, Instant};

use aerie_lab::grid::{Join, Member};
use aerie_lab::wait::wait_until;
use aerie_lab::{Nat, Place};
use aerie_scenarios::{GROUP, SOON, join_all, lab, small_grid};
use anyhow::Context;

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
    says_so(&worker).unwrap();
    worker.daemon().unwrap().kill9().unwrap();
    worker.start().unwrap();
    says_so(&worker).unwrap();
    assert!(submitter.ping(&addr).is_err());
}

#[test]
fn credentials_are_renewed_in_time_without_a_restart() {
    let lab = lab("renew").unwrap();
    let grid = small_grid(&lab).unwrap();
    let node = lab.node("c1", Place::Internet).unwrap();
    node.put("/root/clock", b"+0").unwrap();
    let join = Join::new("c1", Place::Internet, GROUP, "client")
        .option("--no-condor")
        .clock_file("/root/clock");
    let member = grid.join_node(node, &join).unwrap();
    grid.wait_ready([&member]).unwrap();
    let before = member.status().unwrap();
    let process = member.daemon().unwrap().process();

    // Two thirds of a life of thirty days later.
    member.node.put("/root/clock", b"+21d").unwrap();
    let portal = || Ok(grid.portal_log().contains("credentials renewed").then_some(()));
    wait_until(SOON, "the portal to renew the credentials", portal).unwrap();
    member.node.put("/root/clock", b"+0").unwrap();
    assert_eq!(member.daemon().unwrap().process(), process);
    assert_eq!(member.status().unwrap().addr, before.addr);
    // The tunnel speaks with the new one.
    grid.hub.ping(&before.addr.unwrap()).unwrap();
}

/// Waits until a node says that it is revoked. It may have to ask the enrolment service, since nobody else talks to it.
fn says_so(member: &Member) -> anyhow::Result<()> {
    wait_until(SOON, "the node to say that it is revoked", || {
        Ok(member.status()?.summary().contains("revoked").then_some(()))
    })
    .with_context(|| said_by(member))
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

    // The running one keeps the address, and the copy explains itself and takes none.
    let end = Instant::now() + Duration::from_secs(30);
    let mut explained = None;
    while Instant::now() < end {
        let (Ok(first), Ok(second)) = (original.status(), copy.status()) else {
            std::thread::sleep(Duration::from_millis(200));
            continue;
        };
        assert_eq!(
            first.addr.as_deref(),
            Some(addr.as_str()),
            "{}",
            said_by(&original)
        );
        assert_eq!(second.addr, None, "{}", said_by(&copy));
        explained = second
            .pending()
            .cloned()
            .filter(|stage| stage.reason.contains("copy"))
            .or(explained);
        std::thread::sleep(Duration::from_millis(200));
    }
    let stage = explained.expect("the copy never said that it is one");
    assert!(stage.hint.contains("fresh blob"), "{stage:?}");
}

/// The end of a daemon's log, to be read where a test fails.
fn said_by(member: &Member) -> String {
    member.daemon().map(|daemon| daemon.tail(40)).unwrap_or_default()
}
