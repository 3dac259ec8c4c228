//! A grid comes together across NATs and runs jobs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_lab::campus::{Campus, SUBMITTER};
use aerie_lab::{Lab, wait::wait_until};
use aerie_scenarios::{SOON, lab, wait_for_name};

fn assembled(lab: &Lab) -> Campus<'_> {
    let mut campus = Campus::found(lab).unwrap();
    campus.assemble(&|_, _| ()).unwrap();
    campus
}

#[test]
fn grid_assembles_across_nats() {
    let lab = lab("assembly").unwrap();
    let campus = assembled(&lab);

    let addrs: BTreeSet<_> = campus
        .members
        .values()
        .map(|member| member.addr().unwrap())
        .collect();
    assert_eq!(
        addrs.len(),
        campus.members.len(),
        "an address is held twice: {addrs:?}"
    );

    // The first packet opens the tunnel, so each is asked once and has to answer at once.
    let submitter = campus.member(SUBMITTER).unwrap();
    for worker in campus.workers() {
        wait_for_name(submitter, &campus.grid.fqdn(worker)).unwrap();
        submitter.ping(&campus.grid.fqdn(worker)).unwrap();
    }

    // Two port-restricted NATs can be punched, and then no relay is in the way.
    wait_until(SOON, "a direct path from s1 to w3", || {
        submitter.ping(&campus.grid.fqdn("w3"))?;
        let peers = submitter.peers()?;
        let path = peers
            .iter()
            .find(|peer| peer.node == "w3")
            .map(|peer| peer.path.clone());
        match path.as_deref() {
            Some("direct") => Ok(Some(())),
            other => anyhow::bail!("its path is {other:?}"),
        }
    })
    .unwrap();
}

#[test]
fn job_pinned_to_each_worker_with_one_start() {
    let lab = lab("jobs").unwrap();
    let campus = assembled(&lab);
    let jobs = campus.run_pinned_jobs("job", Duration::from_secs(90)).unwrap();
    assert_eq!(jobs.len(), campus.workers().count());
    let submitter = &campus.member(SUBMITTER).unwrap().node;
    for (worker, done) in jobs {
        assert_eq!(done.out.trim(), worker, "the job of {worker} ran elsewhere");
        assert_eq!(done.starts, 1, "the job of {worker} was started again");
        let sum = submitter
            .sh("alice", &format!("sha256sum <job-{worker}/input"))
            .unwrap();
        assert_eq!(
            done.result, sum,
            "the input of {worker}'s job did not arrive whole"
        );
    }
}
