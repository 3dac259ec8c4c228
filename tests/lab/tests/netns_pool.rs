//! The nodes carry a real HTCondor: a plain pool on one LAN, without Aerie, runs a job with file transfer.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use aerie_lab::pool::{self, Job, JobSpec};
use aerie_lab::{Lab, Nat, Node};

const LIMIT: Duration = Duration::from_secs(60);

fn configure(node: &Node, hosts: &str, daemons: &str) {
    let config = format!(
        "use security:host_based\nCONDOR_HOST = m.flat.grid\nDAEMON_LIST = MASTER, {daemons}\n\
         ALLOW_WRITE = 192.168.*\nALLOW_DAEMON = 192.168.*\nSEC_DEFAULT_AUTHENTICATION = OPTIONAL\n\
         NETWORK_INTERFACE = {}\nENABLE_IPV6 = False\nMAIL = /bin/true\nUPDATE_INTERVAL = 5\n\
         NEGOTIATOR_INTERVAL = 5\nNEGOTIATOR_MIN_INTERVAL = 1\nNEGOTIATOR_CYCLE_DELAY = 1\nSCHEDD_INTERVAL = 5\n\
         RUNBENCHMARKS = False\nUID_DOMAIN = flat.grid\n",
        node.addr()
    );
    node.put("/etc/condor/config.d/00-htcondor-9.0.config", config.as_bytes())
        .unwrap();
    node.put("/etc/hosts", hosts.as_bytes()).unwrap();
    node.spawn("root", "condor", &["condor_master", "-f"], &[])
        .unwrap();
}

#[test]
fn a_plain_pool_on_one_lan_runs_a_job_with_file_transfer() {
    let lab = Lab::new("pool").unwrap();
    let site = lab.site("campus", Nat::PortRestricted).unwrap();
    let nodes = ["m", "s", "w"].map(|name| lab.node(name, &site).unwrap());
    let lines = nodes
        .iter()
        .map(|node| format!("{} {n}.flat.grid {n}\n", node.addr(), n = node.name()));
    let hosts = format!("127.0.0.1 localhost\n{}", lines.collect::<String>());
    let [manager, submitter, worker] = &nodes;
    configure(manager, &hosts, "COLLECTOR, NEGOTIATOR");
    configure(submitter, &hosts, "SCHEDD");
    configure(worker, &hosts, "STARTD");
    lab.wait_until(LIMIT, "the worker in the pool", || {
        Ok((pool::machines(submitter, "alice")? == ["w.flat.grid"]).then_some(()))
    })
    .unwrap();
    let spec = JobSpec::whereabouts("first", Some("w.flat.grid"));
    // The schedd may still be on its way up.
    let job = lab
        .wait_until(LIMIT, "a schedd", || {
            Job::submit(submitter, "alice", &spec).map(Some)
        })
        .unwrap();
    let done = job.wait(LIMIT).unwrap();
    assert_eq!(done.out, "w\n");
    assert_eq!(done.starts, 1);
    let sum = submitter.sh("alice", "sha256sum <first/input").unwrap();
    assert_eq!(done.result, sum);
}
