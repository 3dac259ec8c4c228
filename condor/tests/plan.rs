//! What a plan holds for each role, and what it never holds.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may panic as the test itself does"
)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use aerie_condor::{Error, Intent, Manager, Plan, Program, Waiting, wildcards};
use aerie_types::{NodeName, Role, Roles};
use common::{intent, manager};
use proptest::prelude::*;

fn plan(roles: &str) -> Plan {
    Plan::new(&intent(roles)).unwrap()
}

fn text(plan: &Plan) -> String {
    plan.files.iter().fold(String::new(), |mut text, (path, file)| {
        let _ = writeln!(text, "=== {} {:o}", path.display(), file.mode);
        text + &String::from_utf8_lossy(&file.bytes)
    })
}

#[test]
fn a_managers_files_are_as_reviewed() {
    insta::assert_snapshot!(text(&plan("manager")));
}

#[test]
fn a_submit_nodes_files_are_as_reviewed() {
    insta::assert_snapshot!(text(&plan("submit")));
}

#[test]
fn a_workers_files_are_as_reviewed() {
    insta::assert_snapshot!(text(&plan("worker")));
}

#[test]
fn a_clients_files_are_as_reviewed() {
    insta::assert_snapshot!(text(&plan("client")));
}

#[test]
fn each_role_runs_its_daemons() {
    for (roles, daemons) in [
        ("manager", "MASTER, COLLECTOR, NEGOTIATOR"),
        ("submit", "MASTER, SCHEDD, STARTD"),
        ("worker", "MASTER, STARTD"),
        ("worker,submit", "MASTER, SCHEDD, STARTD"),
        ("manager,worker,relay", "MASTER, COLLECTOR, NEGOTIATOR, STARTD"),
        ("manager,submit", "MASTER, COLLECTOR, NEGOTIATOR, SCHEDD, STARTD"),
        ("client", ""),
    ] {
        let plan = plan(roles);
        assert_eq!(plan.daemons.join(", "), daemons, "{roles}");
        assert_eq!(plan.knobs.get("DAEMON_LIST"), Some(daemons), "{roles}");
        assert_eq!(plan.runs(), !daemons.is_empty(), "{roles}");
    }
}

#[test]
fn a_relay_has_nothing_to_do_with_htcondor() {
    let plan = plan("relay");
    assert!(plan.files.is_empty() && !plan.runs() && plan.waiting.is_none());
}

#[test]
fn a_client_needs_no_folders_of_daemons_and_is_not_waiting_for_a_manager() {
    let mut intent = intent("client");
    intent.managers.clear();
    let plan = Plan::new(&intent).unwrap();
    assert!(!plan.runs() && plan.waiting.is_none());
    assert_eq!(plan.knobs.get("CONDOR_HOST"), Some("no-manager-known.lab.grid"));
}

#[test]
fn a_member_starts_no_daemon_before_a_manager_is_known() {
    for roles in ["worker", "submit"] {
        let mut nobody = intent(roles);
        nobody.managers.clear();
        let mut unknown = intent(roles);
        unknown.primary = Some("m9".parse().unwrap());
        let mut undecided = intent(roles);
        undecided.primary = None;
        for intent in [nobody, unknown, undecided] {
            let plan = Plan::new(&intent).unwrap();
            assert_eq!(plan.waiting, Some(Waiting::NoManager));
            assert!(!plan.runs());
            assert!(!plan.knobs.get("DAEMON_LIST").unwrap().contains("STARTD"));
        }
    }
}

#[test]
fn a_manager_reports_to_itself_and_its_jobs_flow_over_to_the_others() {
    let mut intent = intent("manager,submit");
    intent.node = "m2".parse().unwrap();
    let plan = Plan::new(&intent).unwrap();
    assert_eq!(plan.knobs.get("CONDOR_HOST"), Some("m2.lab.grid"));
    assert_eq!(plan.knobs.get("FLOCK_TO"), Some("m1.lab.grid"));
}

#[test]
fn a_submit_node_flocks_to_its_own_groups_managers_first() {
    let mut intent = intent("submit");
    intent
        .managers
        .extend([manager("m0", 3, "bio"), manager("m7", 4, "chem")]);
    let plan = Plan::new(&intent).unwrap();
    assert_eq!(plan.knobs.get("CONDOR_HOST"), Some("m1.lab.grid"));
    assert_eq!(
        plan.knobs.get("FLOCK_TO"),
        Some("m7.lab.grid, m0.lab.grid, m2.lab.grid")
    );
    assert_eq!(plan.knobs.get("FLOCK_INCREMENT"), Some("3"));
    assert_eq!(
        plan.knobs.get("ALLOW_NEGOTIATOR"),
        Some(
            "$(AERIE_SELF), m0@manager.lab.grid, m1@manager.lab.grid, m2@manager.lab.grid, m7@manager.lab.grid"
        )
    );
}

#[test]
fn a_worker_flocks_to_nobody_and_obeys_no_negotiator() {
    let plan = plan("worker");
    assert_eq!(plan.knobs.get("FLOCK_TO"), None);
    assert_eq!(plan.knobs.get("ALLOW_NEGOTIATOR"), Some("$(AERIE_SELF)"));
    assert_eq!(plan.knobs.get("ALLOW_READ"), Some("$(AERIE_SELF), *@n1.lab.grid"));
}

#[test]
fn the_number_of_managers_flocked_to_is_bounded() {
    let mut intent = intent("submit");
    for i in 0..100 {
        intent.managers.push(manager(&format!("x{i}"), 100, "bio"));
    }
    let plan = Plan::new(&intent).unwrap();
    assert_eq!(plan.knobs.get("FLOCK_TO").unwrap().split(", ").count(), 16);
    assert_eq!(
        plan.knobs.get("ALLOW_NEGOTIATOR").unwrap().split(", ").count(),
        1 + 17
    );
}

#[test]
fn the_order_and_repetition_of_managers_and_programs_do_not_matter() {
    let one = intent("submit");
    let mut other = one.clone();
    other.managers.reverse();
    other.managers.push(manager("m1", 1, "chem"));
    other.programs.reverse();
    assert_eq!(Plan::new(&one).unwrap(), Plan::new(&other).unwrap());
}

#[test]
fn a_machine_tells_its_version_programs_and_group() {
    let plan = plan("worker");
    assert_eq!(plan.knobs.get("AerieVersion"), Some("\"0.1.0\""));
    assert_eq!(
        plan.knobs.get("AeriePrograms"),
        Some("{ \"gcc\", \"python3.13\" }")
    );
    assert_eq!(plan.knobs.get("GridGroup"), Some("\"chem\""));
    assert!(plan.knobs.get("STARTD_ATTRS").unwrap().contains("GridGroup"));
}

#[test]
fn the_tools_use_the_users_credential_and_the_daemons_the_nodes() {
    let plan = plan("submit");
    let knob = |name| plan.knobs.get(name).unwrap();
    assert!(knob("TOOL.AUTH_SSL_CLIENT_KEYFILE").ends_with("user.key"));
    assert!(knob("SUBMIT.AUTH_SSL_CLIENT_CERTFILE").ends_with("user.pem"));
    assert!(knob("AUTH_SSL_CLIENT_KEYFILE").ends_with("condor.key"));
    let mut without = intent("submit");
    without.credentials.user = None;
    let plan = Plan::new(&without).unwrap();
    assert_eq!(plan.knobs.get("TOOL.AUTH_SSL_CLIENT_KEYFILE"), None);
}

#[test]
fn paths_that_would_be_read_as_more_than_a_path_are_refused() {
    for path in ["/a\nALLOW_WRITE = *", "/x$(HOME)", "key.pem", "/a b", "/a#"] {
        let mut first = intent("worker");
        first.credentials.node.key = path.into();
        let mut second = intent("worker");
        second.layout.spool = path.into();
        let mut third = intent("worker");
        third.credentials.user.as_mut().unwrap().key = path.into();
        for intent in [first, second, third] {
            assert!(matches!(Plan::new(&intent), Err(Error::Path { .. })), "{path:?}");
        }
    }
}

#[test]
fn a_node_named_like_a_role_gets_no_plan() {
    for name in ["manager", "submit", "worker", "client", "relay", "user"] {
        let mut intent = intent("worker");
        intent.node = name.parse().unwrap();
        let error = Plan::new(&intent).unwrap_err();
        assert!(error.to_string().contains("enrol the node again"), "{error}");
    }
}

#[test]
fn an_address_outside_the_range_gets_no_plan() {
    let mut own = intent("worker");
    own.addr = Ipv4Addr::new(10, 78, 0, 1).into();
    let mut managers = intent("worker");
    managers.managers[0].addr = Ipv4Addr::new(192, 0, 2, 1).into();
    for intent in [own, managers] {
        assert!(matches!(Plan::new(&intent), Err(Error::Address { .. })));
    }
}

#[test]
fn more_programs_than_an_ad_should_carry_are_refused() {
    let mut intent = intent("worker");
    intent.programs = (0..257).map(|i| format!("p{i}").parse().unwrap()).collect();
    assert!(matches!(
        Plan::new(&intent),
        Err(Error::TooManyPrograms { count: 257, .. })
    ));
}

#[test]
fn every_packaged_permission_is_overridden() {
    // Debian's 00-htcondor-9.0.config and HTCondor's defaults open these to everybody or to any 'condor'.
    let packaged = [
        "ALLOW_READ",
        "ALLOW_WRITE",
        "ALLOW_CLIENT",
        "ALLOW_DAEMON",
        "ALLOW_NEGOTIATOR",
        "ALLOW_ADMINISTRATOR",
    ];
    for roles in ["manager", "submit", "worker", "client"] {
        let plan = plan(roles);
        for knob in packaged {
            assert!(plan.knobs.get(knob).is_some(), "{roles}: {knob}");
        }
        let file = plan.files.keys().next().unwrap();
        assert!(file.file_name() > Path::new("00-htcondor-9.0.config").file_name());
    }
}

fn names() -> impl Strategy<Value = NodeName> {
    "[a-z][a-z0-9-]{0,10}[a-z0-9]".prop_filter_map("reserved", |text| {
        let name: NodeName = text.parse().ok()?;
        (!aerie_condor::identity::reserved(&name)).then_some(name)
    })
}

prop_compose! {
    fn intents()(
        node in names(),
        bits in 0u8..32,
        managers in prop::collection::vec((names(), 1u8..255, prop::option::of("[a-z]{1,8}")), 0..6),
        chosen in any::<prop::sample::Index>(),
        group in prop::option::of("[a-z]{1,8}"),
        programs in prop::collection::vec("[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", 0..5),
        accounts in prop::collection::vec(("[a-z]{1,8}", "[a-z]{1,8}"), 0..4),
        user in any::<bool>(),
    ) -> Intent {
        let mut intent = intent("worker");
        intent.node = node;
        intent.roles = Roles::from_bits(bits).unwrap();
        intent.managers = managers.into_iter().map(|(node, last, group)| Manager {
            node,
            addr: Ipv4Addr::new(10, 77, 0, last).into(),
            group: group.map(|group| group.parse().unwrap()),
        }).collect();
        intent.primary = (!intent.managers.is_empty())
            .then(|| chosen.get(&intent.managers).node.clone());
        intent.group = group.map(|group| group.parse().unwrap());
        intent.programs = programs.iter().map(|program| program.parse::<Program>().unwrap()).collect();
        intent.account_groups = accounts.iter()
            .map(|(user, group)| (user.parse().unwrap(), group.parse().unwrap()))
            .collect::<BTreeMap<_, _>>();
        if !user {
            intent.credentials.user = None;
        }
        intent
    }
}

proptest! {
    #[test]
    fn no_plan_ever_lets_everybody_in(intent in intents()) {
        let plan = Plan::new(&intent).unwrap();
        for file in plan.files.values() {
            prop_assert_eq!(wildcards(&String::from_utf8_lossy(&file.bytes)), vec![]);
        }
        // Each permission is set, and set once.
        if !plan.files.is_empty() {
            for permission in ["READ", "WRITE", "NEGOTIATOR", "ADMINISTRATOR", "CONFIG", "DAEMON", "CLIENT",
                "ADVERTISE_MASTER", "ADVERTISE_STARTD", "ADVERTISE_SCHEDD"] {
                let knob = format!("ALLOW_{permission}");
                prop_assert_eq!(plan.knobs.iter().filter(|(name, _)| *name == knob).count(), 1);
            }
        }
    }

    #[test]
    fn every_line_of_a_plan_is_a_knob_a_comment_or_a_block_of_ours(intent in intents()) {
        let plan = Plan::new(&intent).unwrap();
        let Some(config) = plan.files.iter().find(|(path, _)| path.extension().is_some_and(|e| e == "conf")) else {
            return Ok(());
        };
        let text = String::from_utf8(config.1.bytes.clone()).unwrap();
        let mut block = false;
        for line in text.lines() {
            if block {
                block = line != "@end";
                continue;
            }
            block = line.ends_with("@=end");
            let knob = line.split_once(" =").is_some_and(|(name, _)| {
                name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b))
            });
            prop_assert!(line.is_empty() || line.starts_with('#') || knob || block, "{}", line);
        }
        prop_assert!(!block);
    }

    #[test]
    fn only_a_manager_takes_other_members_ads_and_only_a_submit_node_obeys_negotiators(intent in intents()) {
        let plan = Plan::new(&intent).unwrap();
        let others = |knob: &str| plan.knobs.get(knob).is_some_and(|value| value != "$(AERIE_SELF)");
        let has = |role| intent.roles.contains(role);
        if !plan.files.is_empty() {
            prop_assert_eq!(others("ALLOW_ADVERTISE_STARTD"), has(Role::Manager));
            prop_assert_eq!(others("ALLOW_ADVERTISE_SCHEDD"), has(Role::Manager));
            prop_assert!(has(Role::Submit) || !others("ALLOW_NEGOTIATOR"));
            prop_assert!(!others("ALLOW_DAEMON") && !others("ALLOW_ADMINISTRATOR"));
            prop_assert_eq!(plan.knobs.get("COLLECTOR_REQUIREMENTS").is_some(), has(Role::Manager));
        }
    }
}
