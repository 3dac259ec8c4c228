//! Nodes that nobody looks after: HTCondor dies under the daemon, the clock steps. The node mends what it can, and
//! nothing that it had is lost.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use aerie_lab::grid::Join;
use aerie_lab::pool::{Job, JobSpec};
use aerie_lab::wait::wait_until;
use aerie_lab::{Nat, Node, Place};
use aerie_scenarios::{GROUP, SOON, join_all, lab, small_grid};

/// Ends all of a node's HTCondor at once, as a fault or a full memory does.
fn kill_htcondor(node: &Node) {
    node.sh("root", "pkill -KILL '^condor_'").unwrap();
    wait_until(SOON, "HTCondor to have ended", || {
        // Those that nobody has waited for yet are listed, and have ended.
        let left = node.sh("root", "ps -eo stat=,comm= | grep '^[^Z].* condor_' || true")?;
        Ok(left.is_empty().then_some(()))
    })
    .unwrap();
}

#[test]
fn htcondor_that_is_killed_is_started_again_and_its_jobs_are_run() {
    let lab = lab("heal").unwrap();
    let site = Place::from(&lab.site("home", Nat::PortRestricted).unwrap());
    let grid = small_grid(&lab).unwrap();
    let [manager, submitter, worker] = join_all(
        &grid,
        &site,
        [("m1", "manager"), ("s1", "submit"), ("w1", "worker")],
    )
    .unwrap();
    // Nobody can run it yet: it waits in the queue.
    kill_htcondor(&worker.node);
    let spec = JobSpec::whereabouts("waits", Some(&grid.fqdn("w1")));
    let job = Job::submit(&submitter.node, "alice", &spec).unwrap();
    kill_htcondor(&submitter.node);
    kill_htcondor(&manager.node);

    for member in [&manager, &submitter, &worker] {
        let name = member.node.name();
        wait_until(SOON, &format!("HTCondor to run again on {name}"), || {
            Ok(member.node.run("root", &["pgrep", "-x", "condor_master"]).ok())
        })
        .unwrap();
    }
    grid.wait_ready([&manager, &submitter, &worker]).unwrap();
    let done = job.wait(2 * SOON).unwrap();
    assert_eq!(done.out.trim(), "w1", "{}", done.log);
}

#[test]
fn a_clock_that_steps_costs_neither_address_nor_tunnel() {
    const CLOCK: &str = "/root/clock";
    let lab = lab("steps").unwrap();
    let site = Place::from(&lab.site("home", Nat::PortRestricted).unwrap());
    let grid = small_grid(&lab).unwrap();
    let client = |name: &str| Join::new(name, site.clone(), GROUP, "client").option("--no-condor");
    let node = lab.node("steps", site.clone()).unwrap();
    node.put(CLOCK, b"+0").unwrap();
    let stepping = grid.join_node(node, &client("steps").clock_file(CLOCK)).unwrap();
    let steady = grid.join(&client("steady")).unwrap();
    grid.wait_ready([&stepping, &steady]).unwrap();
    let before = stepping.status().unwrap();
    let addr = before.addr.clone().unwrap();
    // As of a machine whose battery is empty, of one that stood still, and of a host that was wrong. With a clock that is
    // behind nobody new can be judged: their credentials are of the future.
    for (step, judges) in [("+1d", true), ("+0", true), ("-1d", false), ("+0", true)] {
        stepping.node.put(CLOCK, step.as_bytes()).unwrap();
        if judges {
            // A new tunnel as well as the one that is up.
            steady.daemon().unwrap().kill9().unwrap();
            steady.start().unwrap();
            grid.wait_ready([&steady]).unwrap();
        }
        let what = format!("an answer after a step to {step}");
        wait_until(SOON, &what, || steady.ping(&addr).map(Some)).unwrap();
        let after = stepping.status().unwrap();
        assert_eq!((&after.peer, &after.addr), (&before.peer, &before.addr), "{step}");
        assert!(after.ready, "{step}: {}", after.summary());
    }
}
