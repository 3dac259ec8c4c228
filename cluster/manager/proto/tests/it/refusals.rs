//! What is refused, with what is said. Nothing has changed then.

use aerie_cluster_manager_proto::{Answer, Caller, Command, Operation, Refusal, Request, Scope};
use aerie_cluster_proto::description::Document;
use aerie_cluster_proto::ledger::{Quota, Subject};
use aerie_cluster_proto::limits::{MAX_DATA_BYTES, MAX_DOCUMENT_BYTES};
use aerie_cluster_proto::placement::HostState;
use aerie_types::WallMillis;

use crate::sim::{SECOND, Sim, UNDEPLOY, amounts, caller, description, id, operate, request};

fn sim() -> Sim {
    let mut sim = Sim::new(2, &[("h1", amounts(4, 8, 100))]);
    sim.run(2 * SECOND);
    sim
}

fn one() -> Command {
    request("c", description("started", true, &[("w", 2, "debian")]))
}

/// Refused, with nothing written down.
fn refused(sim: &mut Sim, caller: &Caller, command: Command) -> String {
    let before = sim.core().world().clone();
    let refusal = sim.command(caller, command).unwrap_err();
    assert_eq!(*sim.core().world(), before, "{refusal}");
    refusal.to_string()
}

#[test]
fn what_is_too_big_for_any_host_is_refused_with_the_nearest_that_fits() {
    let mut sim = sim();
    let big = request("c", description("started", true, &[("w", 5, "debian")]));
    let why = refused(&mut sim, &caller("ada"), big);
    assert!(
        why.contains("the cluster 'c' finds no place: 4 of 5 members fit"),
        "{why}"
    );
}

#[test]
fn a_description_is_accepted_up_to_what_the_journal_reads_back_and_refused_beyond() {
    let sized = |bytes: usize| {
        let mut whole = description("propagated", true, &[("w", 1, "debian")]);
        let toml = (0..16).map(|index| format!("{{ name = \"d{index}\", content = \"\" }}"));
        let toml = toml.collect::<Vec<_>>().join(", ");
        let toml = format!("{}[workspace.requires]\ndata = [{toml}]\n", whole.to_toml());
        whole = Document::from_toml(&toml).unwrap().description;
        let mut left = bytes - serde_json::to_string(&whole).unwrap().len();
        for blob in &mut whole.workspaces[0].requires.data {
            let part = left.min(MAX_DATA_BYTES);
            blob.content = Some("x".repeat(part));
            left -= part;
        }
        assert_eq!(serde_json::to_string(&whole).unwrap().len(), bytes);
        whole
    };
    let mut sim = sim();
    let why = refused(
        &mut sim,
        &caller("ada"),
        request("c", sized(MAX_DOCUMENT_BYTES + 1)),
    );
    assert!(why.contains("has 1048577 bytes; 1048576 are allowed"), "{why}");
    sim.command(&caller("ada"), request("c", sized(MAX_DOCUMENT_BYTES)))
        .unwrap();
    sim.kill();
    sim.run(60 * SECOND);
    assert!(sim.core().status(&caller("ada"), &id("c")).is_ok());
}

#[test]
fn more_than_the_quota_is_refused_and_an_extension_beyond_it_too() {
    let mut sim = sim();
    let quota = Quota {
        members: Some(1),
        ..Quota::default()
    };
    let ada = Subject::User("ada".parse().unwrap());
    sim.core.as_mut().unwrap().set_quotas(vec![(ada.clone(), quota)]);
    let why = refused(&mut sim, &caller("ada"), one());
    assert!(
        why.contains("the quota of the user 'ada' for members: 1 member are allowed"),
        "{why}"
    );
    let hours = Quota {
        wall_hours: Some(5),
        ..Quota::default()
    };
    sim.core.as_mut().unwrap().set_quotas(vec![(ada, hours)]);
    sim.command(&caller("ada"), one()).unwrap();
    sim.run(60 * SECOND);
    let until = sim
        .core()
        .status(&caller("ada"), &id("c"))
        .unwrap()
        .until
        .unwrap();
    let extend = |hours: u64| Command::Extend {
        cluster: id("c"),
        until: until.plus(std::time::Duration::from_secs(hours * 3600)),
    };
    let why = refused(&mut sim, &caller("ada"), extend(1));
    assert!(
        why.contains("time of members: 5 hours of members are allowed"),
        "{why}"
    );
}

#[test]
fn an_extension_beyond_the_longest_life_time_is_refused_however_it_is_cut_into_parts_and_not_to_administrators()
 {
    let mut sim = sim();
    sim.command(&caller("ada"), one()).unwrap();
    sim.run(60 * SECOND);
    let status = sim.core().status(&caller("ada"), &id("c")).unwrap();
    // Its life-time is two hours from then on.
    let since = status.until.unwrap().0 - 2 * 3600 * 1000;
    let most = sim.settings.bounds.max_lifetime.duration();
    let extend = |past: u64| Command::Extend {
        cluster: id("c"),
        until: WallMillis(since + past).plus(most),
    };
    let why = refused(&mut sim, &caller("ada"), extend(1));
    assert!(
        why.contains("the cluster 'c' may live for 30days altogether, until"),
        "{why}"
    );
    sim.kill();
    sim.run(60 * SECOND);
    sim.command(&caller("ada"), extend(0)).unwrap();
    refused(&mut sim, &caller("ada"), extend(1));
    sim.command(&caller("root"), extend(1)).unwrap();
    // A time that it has already is no error.
    sim.command(&caller("ada"), extend(1)).unwrap();
}

#[test]
fn another_owners_cluster_is_not_touched_and_a_groups_and_an_administrators_may_be() {
    let mut sim = sim();
    let group = Command::Request(Box::new(Request {
        id: id("c"),
        group: Some("chem".parse().unwrap()),
        description: description("started", true, &[("w", 1, "debian")]),
    }));
    let mut ada = caller("ada");
    ada.groups.clear();
    let why = refused(&mut sim, &ada, group.clone());
    assert!(why.contains("you are not in the group 'chem'"), "{why}");
    sim.command(&caller("ada"), group).unwrap();
    let mut eve = caller("eve");
    eve.groups.clear();
    let why = refused(&mut sim, &eve, operate("c", Scope::Cluster, UNDEPLOY));
    assert!(why.contains("'c' is not yours nor your group's"), "{why}");
    assert!(matches!(
        sim.core().status(&eve, &id("c")),
        Err(Refusal::NotYours(_))
    ));
    assert!(sim.core().list(&eve).is_empty());
    assert!(sim.core().status(&caller("bob"), &id("c")).is_ok());
    let mut root = caller("root");
    root.groups.clear();
    sim.command(&root, operate("c", Scope::Cluster, UNDEPLOY))
        .unwrap();
    let host = || Command::SetHost {
        host: "h1".parse().unwrap(),
        state: HostState::Draining,
    };
    let why = refused(&mut sim, &eve, host());
    assert!(why.contains("by administrators alone"), "{why}");
    sim.command(&root, host()).unwrap();
}

#[test]
fn an_unknown_cluster_member_set_or_host_is_named() {
    let mut sim = sim();
    sim.command(&caller("ada"), one()).unwrap();
    let ada = caller("ada");
    let scopes = [
        ("x", Scope::Cluster, "there is no cluster 'x'"),
        ("c", Scope::Member("w-9".parse().unwrap()), "has no member 'w-9'"),
        ("c", Scope::Set("v".parse().unwrap()), "has no set 'v'"),
    ];
    for (cluster, scope, expected) in scopes {
        let why = refused(&mut sim, &ada, operate(cluster, scope, UNDEPLOY));
        assert!(why.contains(expected), "{why}");
    }
    let host = "h9".parse().unwrap();
    let why = refused(&mut sim, &caller("root"), Command::ForgetHost { host });
    assert!(why.contains("there is no host 'h9'"), "{why}");
}

#[test]
fn the_same_request_again_is_the_same_cluster_and_another_under_its_id_is_refused() {
    let mut sim = sim();
    let Answer::Placed { plan, .. } = sim.command(&caller("ada"), one()).unwrap() else {
        panic!("it has its place");
    };
    sim.kill();
    sim.run(60 * SECOND);
    let Answer::Placed { plan: again, .. } = sim.command(&caller("ada"), one()).unwrap() else {
        panic!("it has its place");
    };
    assert_eq!(plan, again);
    let other = request("c", description("paused", true, &[("w", 2, "debian")]));
    let why = refused(&mut sim, &caller("ada"), other);
    assert!(
        why.contains("'c' is a cluster with another description or owner"),
        "{why}"
    );
    let why = refused(&mut sim, &caller("bob"), one());
    assert!(why.contains("another description or owner"), "{why}");
    sim.command(&caller("ada"), operate("c", Scope::Cluster, UNDEPLOY))
        .unwrap();
    sim.run(600 * SECOND);
    let why = refused(&mut sim, &caller("ada"), one());
    assert!(why.contains("has ended; choose a new id"), "{why}");
}

#[test]
fn an_operation_that_one_member_does_not_allow_is_done_to_none() {
    let mut sim = sim();
    sim.command(&caller("ada"), one()).unwrap();
    sim.run(60 * SECOND);
    let one = Scope::Member("w-2".parse().unwrap());
    sim.command(&caller("ada"), operate("c", one, Operation::Stop))
        .unwrap();
    sim.run(60 * SECOND);
    let why = refused(
        &mut sim,
        &caller("ada"),
        operate("c", Scope::Cluster, Operation::Pause),
    );
    assert!(
        why.contains("cannot pause 'w-2', which is stopped: it does not run; start it first"),
        "{why}"
    );
}

#[test]
fn a_disk_is_kept_under_the_name_of_its_account_alone_unless_an_administrator_says_otherwise() {
    let mut sim = sim();
    sim.command(&caller("ada"), one()).unwrap();
    sim.run(60 * SECOND);
    let save = |name: &str| {
        let save = Some(name.parse().unwrap());
        operate("c", Scope::Cluster, Operation::Undeploy { save })
    };
    for name in ["debian", "lab/result", "ada", "adam/result"] {
        let why = refused(&mut sim, &caller("ada"), save(name));
        assert!(
            why.contains(&format!(
                "cannot be kept as '{name}'; begin the name with \"ada/\""
            )),
            "{why}"
        );
    }
    sim.command(&caller("root"), save("lab/result")).unwrap();
}

#[test]
fn a_full_disk_of_the_manager_refuses_the_command_and_loses_nothing() {
    let mut sim = sim();
    sim.command(&caller("ada"), one()).unwrap();
    sim.run(SECOND);
    let before = sim.core().world().clone();
    sim.disk_full = true;
    sim.ask_later(
        SECOND,
        &caller("ada"),
        operate("c", Scope::Cluster, Operation::Pause),
    );
    sim.run(3 * SECOND);
    assert_eq!(*sim.core().world(), before);
    sim.disk_full = false;
    sim.run(300 * SECOND);
    assert_eq!(sim.is_settled(), Ok(()));
    assert_eq!(sim.answers.len(), 1);
}

#[test]
fn a_dry_run_says_what_would_be_where_and_changes_nothing() {
    let sim = sim();
    let ask = |count| Request {
        id: id("c"),
        group: None,
        description: description("started", true, &[("w", count, "debian")]),
    };
    let found = sim.core().dry_run(&caller("ada"), &ask(2), sim.now()).unwrap();
    assert_eq!(found.plan.members.len(), 2);
    assert_eq!(
        found.to_stage,
        [("h1".parse().unwrap(), "debian".parse().unwrap())].into()
    );
    assert!(sim.core().dry_run(&caller("ada"), &ask(9), sim.now()).is_err());
    assert!(sim.core().world().clusters().next().is_none());
}
