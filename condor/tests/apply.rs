//! Which action leads from one plan to the next, and that a host gets there.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may panic as the test itself does"
)]

mod common;

use std::net::Ipv4Addr;
use std::path::Path;

use aerie_condor::{Action, Condor, Host, Intent, MemoryHost, Plan, lightest_action};
use common::{intent, manager};

fn plan(intent: &Intent) -> Plan {
    Plan::new(intent).unwrap()
}

fn change(roles: &str, edit: impl FnOnce(&mut Intent)) -> Action {
    let mut intent = intent(roles);
    let old = plan(&intent);
    edit(&mut intent);
    lightest_action(Some(&old), &plan(&intent))
}

#[test]
fn nothing_changed_needs_nothing() {
    for roles in ["manager", "submit", "worker", "client", "relay"] {
        assert_eq!(change(roles, |_| ()), Action::None, "{roles}");
    }
}

#[test]
fn another_primary_or_manager_needs_a_reconfig() {
    assert_eq!(
        change("worker", |i| i.primary = Some("m2".parse().unwrap())),
        Action::Reconfig
    );
    assert_eq!(
        change("submit", |i| i.primary = Some("m2".parse().unwrap())),
        Action::Reconfig
    );
    assert_eq!(
        change("submit", |i| i.managers.push(manager("m3", 3, "bio"))),
        Action::Reconfig
    );
}

#[test]
fn another_manager_is_nothing_to_a_worker() {
    assert_eq!(
        change("worker", |i| i.managers.push(manager("m3", 3, "bio"))),
        Action::None
    );
}

#[test]
fn another_role_program_group_or_account_needs_a_reconfig() {
    assert_eq!(
        change("worker", |i| i.roles = "submit".parse().unwrap()),
        Action::Reconfig
    );
    assert_eq!(
        change("worker", |i| i.roles = "manager,worker".parse().unwrap()),
        Action::Reconfig
    );
    assert_eq!(change("worker", |i| i.programs.clear()), Action::Reconfig);
    assert_eq!(change("worker", |i| i.group = None), Action::Reconfig);
    assert_eq!(change("submit", |i| i.account_groups.clear()), Action::Reconfig);
}

#[test]
fn another_address_or_name_needs_a_restart() {
    assert_eq!(
        change("worker", |i| i.addr = Ipv4Addr::new(10, 77, 0, 77).into()),
        Action::Restart
    );
    assert_eq!(
        change("submit", |i| i.node = "n2".parse().unwrap()),
        Action::Restart
    );
    assert_eq!(
        change("worker", |i| i.layout.spool = "/srv/spool".into()),
        Action::Restart
    );
}

#[test]
fn daemons_start_and_stop_with_their_roles() {
    let (client, worker) = (plan(&intent("client")), plan(&intent("worker")));
    assert_eq!(lightest_action(None, &worker), Action::Start);
    assert_eq!(lightest_action(Some(&client), &worker), Action::Start);
    assert_eq!(lightest_action(Some(&worker), &client), Action::Stop);
    assert_eq!(lightest_action(None, &client), Action::None);
}

#[test]
fn losing_the_last_manager_stops_nothing_that_runs() {
    assert_eq!(change("worker", |i| i.managers.clear()), Action::Keep);
    let mut alone = intent("worker");
    alone.managers.clear();
    assert_eq!(lightest_action(None, &plan(&alone)), Action::None);
    assert_eq!(
        lightest_action(Some(&plan(&alone)), &plan(&intent("worker"))),
        Action::Start
    );
}

#[tokio::test]
async fn a_worker_waits_starts_and_follows_another_manager() {
    let mut condor = Condor::new(MemoryHost::new());
    let mut intent = intent("worker");
    let managers = std::mem::take(&mut intent.managers);
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::None);
    intent.managers = managers;
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::Start);
    intent.primary = Some("m2".parse().unwrap());
    assert_eq!(
        condor.apply(plan(&intent)).await.unwrap().action,
        Action::Reconfig
    );
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::None);
    assert_eq!(condor.host().deeds(), ["start", "reconfig"]);
    let file = intent.layout.config_file(intent.grid_id);
    assert!(
        condor
            .host()
            .text(&file)
            .unwrap()
            .contains("CONDOR_HOST = m2.lab.grid\n")
    );
    assert!(condor.host().wildcards().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_empty_managers_set_leaves_the_running_configuration_in_place() {
    let mut condor = Condor::new(MemoryHost::new());
    let mut intent = intent("submit");
    condor.apply(plan(&intent)).await.unwrap();
    let file = intent.layout.config_file(intent.grid_id);
    let before = condor.host().text(&file);
    let managers = std::mem::take(&mut intent.managers);
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::Keep);
    assert_eq!(condor.host().text(&file), before);
    intent.managers = managers;
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::None);
}

#[tokio::test]
async fn a_daemon_that_starts_again_adopts_what_runs_and_makes_sure_it_read_its_files() {
    let host = MemoryHost::new();
    let mut intent = intent("worker");
    for (path, file) in &plan(&intent).files {
        host.write(path, file).unwrap();
    }
    host.start().await.unwrap();
    let _ = host.deeds();
    let mut condor = Condor::new(host);
    let applied = condor.apply(plan(&intent)).await.unwrap();
    assert_eq!((applied.action, applied.adopted), (Action::Reconfig, true));
    intent.addr = Ipv4Addr::new(10, 77, 0, 77).into();
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::Restart);
    assert_eq!(condor.host().deeds(), ["reconfig", "stop", "start"]);
}

#[tokio::test]
async fn an_adopted_master_with_another_address_is_restarted() {
    let host = MemoryHost::new();
    let mut intent = intent("worker");
    for (path, file) in &plan(&intent).files {
        host.write(path, file).unwrap();
    }
    host.start().await.unwrap();
    intent.addr = Ipv4Addr::new(10, 77, 0, 77).into();
    let mut condor = Condor::new(host);
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::Restart);
}

#[tokio::test]
async fn a_master_that_runs_with_somebody_elses_configuration_is_restarted_with_ours() {
    let host = MemoryHost::new();
    host.start().await.unwrap();
    let mut condor = Condor::new(host);
    let applied = condor.apply(plan(&intent("worker"))).await.unwrap();
    assert_eq!(applied.action, Action::Restart);
}

#[tokio::test]
async fn a_failed_reconfig_is_made_up_for() {
    let mut condor = Condor::new(MemoryHost::new());
    let mut intent = intent("worker");
    condor.apply(plan(&intent)).await.unwrap();
    intent.primary = Some("m2".parse().unwrap());
    condor.host().fail_next("reconfig");
    assert!(condor.apply(plan(&intent)).await.is_err());
    assert_eq!(
        condor.apply(plan(&intent)).await.unwrap().action,
        Action::Reconfig
    );
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::None);
}

#[tokio::test]
async fn a_failed_restart_is_made_up_for() {
    let mut condor = Condor::new(MemoryHost::new());
    let mut intent = intent("worker");
    condor.apply(plan(&intent)).await.unwrap();
    intent.addr = Ipv4Addr::new(10, 77, 0, 77).into();
    condor.host().fail_next("stop");
    assert!(condor.apply(plan(&intent)).await.is_err());
    assert_eq!(condor.apply(plan(&intent)).await.unwrap().action, Action::Restart);
}

#[tokio::test]
async fn a_master_that_has_gone_is_started_by_the_same_plan() {
    let mut condor = Condor::new(MemoryHost::new());
    condor.apply(plan(&intent("worker"))).await.unwrap();
    condor.host().crash();
    assert_eq!(
        condor.apply(plan(&intent("worker"))).await.unwrap().action,
        Action::Start
    );
}

#[tokio::test]
async fn a_node_that_becomes_a_relay_stops_its_daemons_and_leaves_no_file() {
    let mut condor = Condor::new(MemoryHost::new());
    condor.apply(plan(&intent("submit"))).await.unwrap();
    assert_eq!(
        condor.apply(plan(&intent("relay"))).await.unwrap().action,
        Action::Stop
    );
    let intent = intent("submit");
    assert_eq!(
        condor.host().text(&intent.layout.config_file(intent.grid_id)),
        None
    );
    assert_eq!(
        condor.host().text(&intent.layout.identity_map(intent.grid_id)),
        None
    );
}

#[tokio::test]
async fn without_htcondor_the_error_says_what_to_install() {
    let host = MemoryHost::new();
    host.uninstall();
    let mut condor = Condor::new(host);
    let error = condor
        .apply(plan(&intent("worker")))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("23.9") && error.contains("apt install condor"),
        "{error}"
    );
    assert!(condor.host().text(Path::new("/etc/condor/config.d")).is_none());
    // A relay needs none.
    assert_eq!(
        condor.apply(plan(&intent("relay"))).await.unwrap().action,
        Action::None
    );
}
