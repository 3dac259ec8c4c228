//! What becomes of members, whatever happens to them.

use std::time::Duration;

use aerie_cluster_manager_proto::{
    ContextReport, Failure, GuestState, MemberState, Operation, Phase, Scope, What, Why,
};
use aerie_context_proto::MemberName;

use crate::sim::{SECOND, Sim, UNDEPLOY, amounts, caller, description, id, operate, request};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

fn two_hosts() -> Sim {
    let mut sim = Sim::new(1, &[("h1", amounts(4, 8, 100)), ("h2", amounts(4, 8, 100))]);
    sim.run(2 * SECOND);
    sim
}

pub(crate) fn states(sim: &Sim, cluster: &str) -> Vec<MemberState> {
    let status = sim.core().status(&caller("root"), &id(cluster)).unwrap();
    status.members.iter().map(|member| member.state).collect()
}

pub(crate) fn why(sim: &Sim, cluster: &str, member: &str) -> String {
    let status = sim.core().status(&caller("root"), &id(cluster)).unwrap();
    let found = status.members.iter().find(|found| found.name.as_str() == member);
    found.unwrap().why.clone().unwrap_or_default()
}

fn ending(sim: &Sim, cluster: &str) -> String {
    let status = sim.core().status(&caller("root"), &id(cluster)).unwrap();
    status.why().map(ToString::to_string).unwrap_or_default()
}

pub(crate) fn started(sets: &[(&str, u32, &str)]) -> Sim {
    let mut sim = two_hosts();
    sim.command(&caller("ada"), request("c", description("started", true, sets)))
        .unwrap();
    sim.run(2 * MINUTE);
    let states = states(&sim, "c");
    assert!(
        states.iter().all(|state| *state == MemberState::Started),
        "{states:?}"
    );
    sim
}

#[test]
fn a_cluster_goes_through_all_its_states_and_leaves_nothing() {
    let mut sim = started(&[("w", 6, "debian")]);
    use MemberState as S;
    let walk = [
        (Operation::Pause, S::Paused),
        (Operation::Unpause, S::Started),
        (Operation::Suspend, S::Suspended),
        (Operation::Start, S::Started),
        (Operation::Stop, S::Stopped),
        (Operation::Start, S::Started),
    ];
    for (operation, state) in walk {
        sim.command(&caller("ada"), operate("c", Scope::Cluster, operation.clone()))
            .unwrap();
        sim.run(MINUTE);
        assert_eq!(states(&sim, "c"), [state; 6], "after {operation}");
    }
    sim.command(&caller("ada"), operate("c", Scope::Cluster, UNDEPLOY))
        .unwrap();
    sim.run(MINUTE);
    assert_eq!(sim.is_empty(), Ok(()));
    assert_eq!(ending(&sim, "c"), "it was undeployed");
}

#[test]
fn each_target_is_where_a_deployment_stops() {
    for (target, state) in [
        ("propagated", MemberState::Propagated),
        ("started", MemberState::Started),
        ("paused", MemberState::Paused),
    ] {
        let mut sim = two_hosts();
        sim.command(
            &caller("ada"),
            request("c", description(target, true, &[("w", 3, "debian")])),
        )
        .unwrap();
        sim.run(MINUTE);
        assert_eq!(states(&sim, "c"), [state; 3]);
        let ran = sim.hosts.values().flat_map(|host| host.guests.values());
        let ran = ran.filter(|guest| guest.state != GuestState::Prepared).count();
        assert_eq!(ran, if target == "propagated" { 0 } else { 3 });
    }
}

#[test]
fn an_image_is_copied_once_to_a_host_however_many_members_start_from_it() {
    let mut sim = two_hosts();
    sim.noted = true;
    sim.command(
        &caller("ada"),
        request("c", description("started", true, &[("w", 8, "debian")])),
    )
    .unwrap();
    sim.run(MINUTE);
    let copies = sim.works.iter().filter(|work| work.ends_with("stage")).count();
    assert_eq!(copies, 2, "{:?}", sim.works);
}

#[test]
fn nobody_boots_before_all_images_are_there_and_a_missing_one_takes_all_back() {
    let mut sim = two_hosts();
    sim.noted = true;
    let sets = [("a", 1, "debian"), ("b", 1, "missing")];
    sim.command(&caller("ada"), request("c", description("started", true, &sets)))
        .unwrap();
    sim.run(MINUTE);
    assert_eq!(sim.is_empty(), Ok(()));
    let why = ending(&sim, "c");
    assert!(
        why.contains("'b' could not get its image") && why.contains("no repository has it"),
        "{why}"
    );
    assert!(
        !sim.works.iter().any(|work| work.ends_with("start")),
        "{:?}",
        sim.works
    );
}

#[test]
fn where_not_all_are_wanted_those_that_can_be_deployed_are() {
    let mut sim = two_hosts();
    let sets = [("a", 2, "debian"), ("b", 1, "missing")];
    sim.command(&caller("ada"), request("c", description("started", false, &sets)))
        .unwrap();
    sim.run(MINUTE);
    assert_eq!(
        states(&sim, "c"),
        [MemberState::Started, MemberState::Started, MemberState::Failed]
    );
    let status = sim.core().status(&caller("ada"), &id("c")).unwrap();
    assert!(status.phase == Phase::Deployed && !status.ready);
    // Once somebody puts the image there it is deployed anew, as another guest.
    sim.host("h1").images.insert("missing".parse().unwrap());
    sim.host("h2").images.insert("missing".parse().unwrap());
    sim.run(MINUTE);
    sim.command(&caller("ada"), operate("c", Scope::Cluster, Operation::Deploy))
        .unwrap();
    sim.run(MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Started; 3]);
}

#[test]
fn a_disk_that_stays_full_on_a_host_fails_the_member_with_the_hosts_reason() {
    let mut sim = two_hosts();
    for host in ["h1", "h2"] {
        sim.host(host).fails = vec![("prepare", Failure::failed("no space left on the disk")); 5];
    }
    sim.command(
        &caller("ada"),
        request("c", description("started", true, &[("w", 1, "debian")])),
    )
    .unwrap();
    sim.run(2 * MINUTE);
    assert_eq!(sim.is_empty(), Ok(()));
    assert!(
        ending(&sim, "c").contains("could not get its disks on host 'h1': no space left"),
        "{}",
        ending(&sim, "c")
    );
}

#[test]
fn a_suspend_that_fails_leaves_the_member_running_and_says_why() {
    let mut sim = started(&[("w", 1, "debian")]);
    for host in ["h1", "h2"] {
        sim.host(host).fails = vec![("suspend", Failure::failed("no space left on the disk")); 5];
    }
    sim.command(&caller("ada"), operate("c", Scope::Cluster, Operation::Suspend))
        .unwrap();
    sim.run(2 * MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Started]);
    assert!(why(&sim, "c", "w").contains("could not be suspended on host 'h1': no space left"));
}

#[test]
fn a_host_that_says_done_and_does_nothing_is_asked_a_few_times_with_pauses_and_no_more() {
    let mut sim = started(&[("w", 1, "debian")]);
    sim.noted = true;
    sim.host("h1").ignores.insert("suspend");
    let before = sim.journal.len();
    sim.command(&caller("ada"), operate("c", Scope::Cluster, Operation::Suspend))
        .unwrap();
    sim.run(10 * MINUTE);
    let asked = sim.works.iter().filter(|work| work.ends_with("suspend")).count();
    assert_eq!(asked, 5, "{:?}", sim.works);
    let written = sim.journal.len() - before;
    assert!(written <= 10, "{written} lines are written");
    assert_eq!(states(&sim, "c"), [MemberState::Started]);
    let why = why(&sim, "c", "w");
    assert!(
        why.contains("could not be suspended on host 'h1': it is running afterwards"),
        "{why}"
    );
}

#[test]
fn a_start_that_always_ends_in_a_crash_fails_the_member() {
    let mut sim = two_hosts();
    sim.noted = true;
    for host in ["h1", "h2"] {
        sim.host(host).crashes = true;
    }
    sim.command(
        &caller("ada"),
        request("c", description("started", true, &[("w", 1, "debian")])),
    )
    .unwrap();
    sim.run(5 * MINUTE);
    let starts = sim.works.iter().filter(|work| work.ends_with("start")).count();
    assert_eq!((starts, sim.is_empty()), (5, Ok(())));
    assert!(
        ending(&sim, "c").contains("could not be started"),
        "{}",
        ending(&sim, "c")
    );
}

#[test]
fn a_host_that_dies_while_it_stages_takes_the_aggregate_back_and_its_share_stays_held_until_it_is_back() {
    let mut sim = two_hosts();
    sim.command(
        &caller("ada"),
        request("c", description("started", true, &[("w", 6, "debian")])),
    )
    .unwrap();
    sim.die_later(Duration::from_millis(900), "h2", 10 * MINUTE);
    sim.run(5 * MINUTE);
    let why = ending(&sim, "c");
    assert!(why.contains("lost its host 'h2'"), "{why}");
    let held = sim.core().world().ledger().held(&"h2".parse().unwrap()).unwrap();
    assert!(held.cpus > 0 && sim.is_empty().is_err());
    assert!(states(&sim, "c").contains(&MemberState::Failed));
    sim.run(10 * MINUTE);
    assert_eq!(sim.is_empty(), Ok(()));
}

#[test]
fn a_manager_that_stands_still_for_minutes_takes_no_host_for_lost() {
    let mut sim = two_hosts();
    sim.command(
        &caller("ada"),
        request("c", description("started", true, &[("w", 6, "debian")])),
    )
    .unwrap();
    sim.run(3 * SECOND);
    sim.stand_still(3 * MINUTE);
    sim.run(2 * MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Started; 6]);
    let events = sim.core().events(&caller("root"), 0).events;
    let silent = |what: &What| matches!(what, What::HostLost { .. } | What::HostSuspected { .. });
    assert!(!events.iter().any(|event| silent(&event.what)), "{events:?}");
}

#[test]
fn a_host_that_dies_while_it_boots_a_guest_and_comes_back_boots_it_again() {
    let mut sim = two_hosts();
    sim.command(
        &caller("ada"),
        request("c", description("started", true, &[("w", 2, "debian")])),
    )
    .unwrap();
    sim.run(8 * SECOND);
    sim.die_later(SECOND, "h1", 10 * SECOND);
    sim.run(5 * MINUTE);
    assert_eq!(sim.is_settled(), Ok(()));
    let reached = states(&sim, "c");
    assert!(
        reached
            .iter()
            .all(|state| matches!(state, MemberState::Started | MemberState::Corrupted)),
        "{reached:?}"
    );
}

#[test]
fn a_host_that_dies_while_it_keeps_a_disk_loses_nothing() {
    let mut sim = started(&[("w", 1, "debian")]);
    let save = Operation::Undeploy {
        save: Some("ada/result".parse().unwrap()),
    };
    sim.noted = true;
    sim.command(&caller("ada"), operate("c", Scope::Cluster, save))
        .unwrap();
    sim.die_later(Duration::from_millis(600), "h1", MINUTE / 2);
    sim.run(5 * MINUTE);
    assert_eq!(sim.is_empty(), Ok(()));
    let at = |step| sim.works.iter().position(|work| work.ends_with(step));
    assert!(
        at("save") < at("destroy") && at("save").is_some(),
        "{:?}",
        sim.works
    );
}

#[test]
fn a_member_that_is_suspended_as_it_is_to_be_kept_is_restored_and_switched_off_before() {
    let mut sim = started(&[("w", 1, "debian")]);
    sim.noted = true;
    sim.command(&caller("ada"), operate("c", Scope::Cluster, Operation::Suspend))
        .unwrap();
    let save = Operation::Undeploy {
        save: Some("ada/result".parse().unwrap()),
    };
    sim.command(&caller("ada"), operate("c", Scope::Cluster, save))
        .unwrap();
    sim.run(MINUTE);
    assert_eq!(sim.is_empty(), Ok(()));
    let steps: Vec<_> = sim.works.iter().map(|work| &work[3..]).collect();
    assert_eq!(steps, ["suspend", "restore", "stop", "save", "destroy"]);
}

#[test]
fn a_disk_that_cannot_be_kept_keeps_its_member() {
    let mut sim = started(&[("w", 1, "debian")]);
    sim.host("h1").fails = vec![("save", Failure::refused("the repository is full"))];
    let save = Operation::Undeploy {
        save: Some("ada/result".parse().unwrap()),
    };
    sim.command(&caller("ada"), operate("c", Scope::Cluster, save))
        .unwrap();
    sim.run(MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Stopped]);
    assert!(why(&sim, "c", "w").contains("the repository is full"));
}

#[test]
fn an_image_that_is_there_is_not_kept_over_and_the_member_stays() {
    let mut sim = started(&[("w", 1, "debian")]);
    sim.kept.insert("ada/result".parse().unwrap(), None);
    let save = Operation::Undeploy {
        save: Some("ada/result".parse().unwrap()),
    };
    sim.command(&caller("ada"), operate("c", Scope::Cluster, save))
        .unwrap();
    sim.run(MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Stopped]);
    assert!(why(&sim, "c", "w").contains("the repository has 'ada/result' already"));
}

#[test]
fn a_guest_that_never_reports_to_its_context_is_told_of_and_keeps_running() {
    let mut sim = started(&[("w", 2, "debian")]);
    let member: MemberName = "w-2".parse().unwrap();
    sim.reports
        .insert("w-1".parse().unwrap(), ContextReport::Configured);
    let late = ContextReport::Failed("has not reported within 900 s".to_owned());
    sim.reports.insert(member.clone(), late.clone());
    sim.run(MINUTE);
    let status = sim.core().status(&caller("ada"), &id("c")).unwrap();
    assert!(!status.ready);
    let found = status.members.iter().find(|found| found.name == member).unwrap();
    assert_eq!(
        (found.state, found.report.as_ref()),
        (MemberState::Started, Some(&late))
    );
    sim.reports.insert(member, ContextReport::Configured);
    sim.run(2 * MINUTE);
    assert!(sim.core().status(&caller("ada"), &id("c")).unwrap().ready);
}

#[test]
fn a_life_time_ends_after_a_warning_and_an_extension_puts_it_off() {
    let mut sim = started(&[("w", 2, "debian")]);
    let ada = caller("ada");
    let until = sim.core().status(&ada, &id("c")).unwrap().until.unwrap();
    sim.run(Duration::from_secs(6200));
    let warned = |sim: &Sim| {
        let events = sim.core().events(&ada, 0).events;
        events
            .iter()
            .filter(|event| matches!(event.what, What::Warned { .. }))
            .count()
    };
    assert_eq!(warned(&sim), 0);
    sim.run(Duration::from_secs(400));
    assert_eq!(warned(&sim), 1);
    let later = until.plus(Duration::from_secs(3600));
    let extend = || aerie_cluster_manager_proto::Command::Extend {
        cluster: id("c"),
        until: later,
    };
    sim.command(&ada, extend()).unwrap();
    sim.command(&ada, extend()).unwrap();
    sim.run(Duration::from_secs(3600));
    assert_eq!(states(&sim, "c"), [MemberState::Started; 2]);
    sim.run(Duration::from_secs(1200));
    assert_eq!((warned(&sim), sim.is_empty()), (2, Ok(())));
    assert_eq!(
        sim.core().status(&ada, &id("c")).unwrap().why(),
        Some(&Why::Expired)
    );
}

#[test]
fn a_guest_that_crashes_is_corrupted_until_somebody_starts_it_and_one_that_switches_itself_off_is_stopped() {
    let mut sim = started(&[("w", 2, "debian")]);
    let mut guests = sim.host("h1").guests.values_mut();
    let crash = GuestState::Crashed {
        why: "its kernel panicked".to_owned(),
    };
    guests.next().unwrap().state = crash;
    guests.next().unwrap().state = GuestState::Stopped;
    sim.run(MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Corrupted, MemberState::Stopped]);
    assert_eq!(why(&sim, "c", "w-1"), "it ended: its kernel panicked");
    sim.command(&caller("ada"), operate("c", Scope::Cluster, Operation::Start))
        .unwrap();
    sim.run(MINUTE);
    assert_eq!(states(&sim, "c"), [MemberState::Started; 2]);
}

#[test]
fn a_host_that_is_given_up_gives_back_what_was_held_of_it() {
    let mut sim = started(&[("w", 6, "debian")]);
    sim.host("h2").up = false;
    let forget = || aerie_cluster_manager_proto::Command::ForgetHost {
        host: "h2".parse().unwrap(),
    };
    let alive = sim.command(&caller("root"), forget()).unwrap_err().to_string();
    assert!(alive.contains("'h2' is heard of"), "{alive}");
    sim.run(5 * MINUTE);
    sim.host("h2").guests.clear();
    sim.command(&caller("root"), forget()).unwrap();
    assert!(
        sim.core()
            .world()
            .ledger()
            .capacity(&"h2".parse().unwrap())
            .is_none()
    );
    assert_eq!(states(&sim, "c"), [MemberState::Started; 4]);
}

#[test]
fn a_listener_that_comes_late_takes_up_where_it_was_and_sees_only_its_own() {
    let mut sim = started(&[("w", 1, "debian")]);
    let page = sim.core().events(&caller("ada"), 0);
    assert!(!page.missed && !page.more && page.events.len() > 4);
    assert!(sim.core().events(&caller("eve"), 0).events.is_empty());
    sim.command(&caller("ada"), operate("c", Scope::Cluster, Operation::Pause))
        .unwrap();
    sim.kill();
    sim.run(MINUTE);
    let later = sim.core().events(&caller("ada"), page.next);
    assert!(later.events.iter().all(|event| event.number >= page.next));
    let paused = What::Member {
        member: "w".parse().unwrap(),
        state: MemberState::Paused,
        why: None,
    };
    assert_eq!(
        later.events.iter().filter(|event| event.what == paused).count(),
        1
    );
}
