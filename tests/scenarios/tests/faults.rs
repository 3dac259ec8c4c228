//! Daemons and managers die, the enrolment service is away: nothing is lost, and the status says what is waited for.

use std::time::{Duration, Instant};

use aerie_lab::grid::Join;
use aerie_lab::pool::{Job, JobSpec};
use aerie_lab::wait::wait_until;
use aerie_lab::{Nat, Place};
use aerie_scenarios::{GROUP, SOON, join_all, lab, small_grid};

#[test]
fn daemon_killed_keeps_identity_address_and_jobs() {
    let lab = lab("kill").unwrap();
    let site = Place::from(&lab.site("home", Nat::PortRestricted).unwrap());
    let grid = small_grid(&lab).unwrap();
    let [_manager, submitter, worker] = join_all(
        &grid,
        &site,
        [("m1", "manager"), ("s1", "submit"), ("w1", "worker")],
    )
    .unwrap();
    let spec = JobSpec {
        script: "sleep 25\nhostname\ncp input result\n".to_owned(),
        ..JobSpec::whereabouts("long", Some(&grid.fqdn("w1")))
    };
    let job = Job::submit(&submitter.node, "alice", &spec).unwrap();
    job.wait_started(SOON).unwrap();

    for member in [&worker, &submitter] {
        let before = member.status().unwrap();
        member.daemon().unwrap().kill9().unwrap();
        member.start().unwrap();
        let what = "every stage done after a kill";
        let after = grid.wait_for(member, SOON, what, |status| status.ready).unwrap();
        assert_eq!(
            (after.peer, after.addr),
            (before.peer, before.addr),
            "of {}",
            before.node
        );
    }

    let done = job.wait(SOON).unwrap();
    assert_eq!(done.out.trim(), "w1");
    assert_eq!(done.starts, 1, "the job was started again");
}

#[test]
fn manager_killed_new_match_within_30_s() {
    let lab = lab("manager").unwrap();
    let site = Place::from(&lab.site("home", Nat::PortRestricted).unwrap());
    let grid = small_grid(&lab).unwrap();
    let [first, second, submitter, _worker] = join_all(
        &grid,
        &site,
        [
            ("m1", "manager"),
            ("m2", "manager"),
            ("s1", "submit"),
            ("w1", "worker"),
        ],
    )
    .unwrap();
    let spec = JobSpec::whereabouts("before", Some(&grid.fqdn("w1")));
    Job::submit(&submitter.node, "alice", &spec)
        .unwrap()
        .wait(SOON)
        .unwrap();

    let primary = submitter.primary().unwrap();
    let manager = if primary == "m1" { first } else { second };
    manager.node.kill9();
    let killed = Instant::now();
    let spec = JobSpec::whereabouts("after", Some(&grid.fqdn("w1")));
    let job = Job::submit(&submitter.node, "alice", &spec).unwrap();
    job.wait_started(SOON).unwrap();
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(30), "the new match took {took:?}");
    assert_eq!(job.wait(SOON).unwrap().starts, 1);
    // Flocking brought the match; that the submitter gives its primary up may come later.
    wait_until(SOON, "another primary", || {
        Ok((submitter.primary()? != primary).then_some(()))
    })
    .unwrap();
}

#[test]
fn enrolment_down_retries_and_status_says_so() {
    let lab = lab("enrol").unwrap();
    let grid = small_grid(&lab).unwrap();
    let join = Join::new("w1", Place::Internet, GROUP, "client").option("--no-condor");
    grid.stop_portal().unwrap();
    let member = grid.join(&join).unwrap();
    let status = grid
        .wait_for(&member, SOON, "said why it has no certificate", |status| {
            status
                .stage("certificate")
                .is_some_and(|stage| stage.state != "done" && !stage.hint.is_empty())
        })
        .unwrap();
    let stage = status.stage("certificate").unwrap();
    assert!(
        stage.reason.contains("8443"),
        "the reason does not name the service: {stage:?}"
    );
    assert!(!status.ready);

    grid.start_portal().unwrap();
    grid.wait_ready([&member]).unwrap();
}
