//! The ledger: reservations by hand, and any sequence of commands with crashes in between.

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_cluster_proto::amount::{Bytes, Kind, Lifetime, Resources};
use aerie_cluster_proto::ledger::{
    Command, Decision, HoldState, Ledger, Owner, Quota, Record, Refusal, RequestId, Reservation, Subject,
};
use aerie_cluster_proto::limits::{ENDED_ROOM, MAX_LEASE};
use aerie_cluster_proto::placement::{Placed, Plan};
use aerie_context_proto::HostName;
use aerie_types::WallMillis;
use proptest::prelude::*;

use crate::common::{amounts, at};

const HOUR: Lifetime = Lifetime::secs(3600);

fn id(text: &str) -> RequestId {
    text.parse().unwrap()
}

fn owner(user: &str) -> Owner {
    Owner {
        user: user.parse().unwrap(),
        group: Some("chem".parse().unwrap()),
    }
}

fn plan(parts: &[(&str, &str, Resources)]) -> Plan {
    let placed = |(member, host, amounts): &(&str, &str, Resources)| {
        let host = host.parse().unwrap();
        (
            member.parse().unwrap(),
            Placed {
                host,
                amounts: *amounts,
            },
        )
    };
    Plan {
        members: parts.iter().map(placed).collect(),
    }
}

fn reserve(request: &str, plan: Plan) -> Command {
    Command::Reserve(Reservation {
        id: id(request),
        owner: owner("ada"),
        plan,
        lease: Duration::from_secs(600),
        lifetime: HOUR,
        quotas: Vec::new(),
    })
}

fn two_hosts() -> Ledger {
    let mut ledger = Ledger::default();
    for host in ["h1", "h2"] {
        let host = host.parse().unwrap();
        let capacity = amounts(8, 8, 8);
        apply(&mut ledger, Command::SetHost { host, capacity }, at(0)).unwrap();
    }
    ledger
}

fn apply(ledger: &mut Ledger, command: Command, now: WallMillis) -> Result<Decision, Refusal> {
    let decision = ledger.decide(command, now)?;
    if let Decision::Record(record) = &decision {
        ledger.commit(record).unwrap();
    }
    Ok(decision)
}

fn free(ledger: &Ledger, host: &str) -> Resources {
    ledger.free(&host.parse().unwrap()).unwrap()
}

#[test]
fn a_reservation_is_all_or_nothing_and_asking_twice_changes_nothing() {
    let mut ledger = two_hosts();
    let both = plan(&[("a", "h1", amounts(4, 4, 4)), ("b", "h2", amounts(9, 1, 1))]);
    let refusal = apply(&mut ledger, reserve("r1", both), at(1)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "'h2' has 8 CPUs left, and 9 CPUs are asked; place the request anew"
    );
    assert_eq!(free(&ledger, "h1"), amounts(8, 8, 8));
    let good = plan(&[("a", "h1", amounts(4, 4, 4)), ("b", "h1", amounts(4, 1, 1))]);
    assert!(matches!(
        apply(&mut ledger, reserve("r1", good.clone()), at(1)),
        Ok(Decision::Record(_))
    ));
    assert_eq!(
        apply(&mut ledger, reserve("r1", good), at(2)),
        Ok(Decision::Already)
    );
    assert_eq!(free(&ledger, "h1"), amounts(0, 3, 3));
    let other = plan(&[("a", "h2", amounts(1, 1, 1))]);
    assert_eq!(
        apply(&mut ledger, reserve("r1", other), at(2)),
        Err(Refusal::Differs(id("r1")))
    );
    let short = plan(&[("a", "h1", amounts(1, 0, 0))]);
    assert!(matches!(
        apply(&mut ledger, reserve("r2", short), at(2)),
        Err(Refusal::NoRoom {
            kind: Kind::Cpus,
            asked: 1,
            free: 0,
            ..
        })
    ));
}

#[test]
fn a_lease_that_ran_out_is_not_committed_and_holds_until_it_is_expired() {
    let mut ledger = two_hosts();
    let one = plan(&[("a", "h1", amounts(4, 4, 4))]);
    apply(&mut ledger, reserve("r1", one.clone()), at(0)).unwrap();
    assert!(matches!(
        apply(&mut ledger, Command::Expire { id: id("r1") }, at(599)),
        Err(Refusal::NotDue { .. })
    ));
    assert_eq!(ledger.next_due(), Some(at(600)));
    assert_eq!(
        apply(&mut ledger, Command::Commit { id: id("r1") }, at(600)),
        Err(Refusal::Lapsed(id("r1")))
    );
    assert_eq!(
        (ledger.due(at(600)), free(&ledger, "h1").cpus),
        (vec![&id("r1")], 4)
    );
    apply(&mut ledger, Command::Expire { id: id("r1") }, at(601)).unwrap();
    assert_eq!(free(&ledger, "h1"), amounts(8, 8, 8));
    assert_eq!(
        apply(&mut ledger, Command::Expire { id: id("r1") }, at(602)),
        Ok(Decision::Already)
    );
    assert_eq!(
        apply(&mut ledger, reserve("r1", one), at(602)),
        Err(Refusal::Ended(id("r1"))),
        "a late copy"
    );
}

#[test]
fn a_request_that_was_placed_anew_is_the_same_and_the_plan_that_is_held_stands() {
    let mut ledger = two_hosts();
    let held = plan(&[("a", "h1", amounts(5, 4, 4))]);
    apply(&mut ledger, reserve("r1", held.clone()), at(0)).unwrap();
    let before = ledger.clone();
    // The answer was lost, and 'h1' has no room for a second 'a'.
    let anew = || plan(&[("a", "h2", amounts(4, 4, 4))]);
    assert_eq!(
        apply(&mut ledger, reserve("r1", anew()), at(1)),
        Ok(Decision::Already)
    );
    assert_eq!(ledger.hold(&id("r1")).unwrap().plan, held);
    assert_eq!(ledger, before);
    let Command::Reserve(reservation) = reserve("r1", anew()) else {
        panic!()
    };
    for other in [
        Reservation {
            owner: owner("bob"),
            ..reservation.clone()
        },
        Reservation {
            lifetime: Lifetime::secs(7200),
            ..reservation.clone()
        },
        Reservation {
            plan: plan(&[("b", "h2", amounts(4, 4, 4))]),
            ..reservation
        },
    ] {
        assert_eq!(
            apply(&mut ledger, Command::Reserve(other), at(1)),
            Err(Refusal::Differs(id("r1")))
        );
    }
}

#[test]
fn a_place_is_leased_for_an_hour_at_most() {
    let mut ledger = two_hosts();
    let leased = |lease| {
        let Command::Reserve(reservation) = reserve("r1", plan(&[("a", "h1", amounts(1, 1, 1))])) else {
            panic!()
        };
        Command::Reserve(Reservation { lease, ..reservation })
    };
    let refusal = apply(&mut ledger, leased(Duration::from_secs(3601)), at(0)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the request 'r1' asks to hold its place for 1h 1s before it is committed; from one second to 1h are allowed"
    );
    assert!(apply(&mut ledger, leased(Duration::ZERO), at(0)).is_err());
    apply(&mut ledger, leased(MAX_LEASE), at(0)).unwrap();
}

#[test]
fn a_committed_reservation_lives_its_life_time() {
    let mut ledger = two_hosts();
    apply(
        &mut ledger,
        reserve("r1", plan(&[("a", "h1", amounts(4, 4, 4))])),
        at(0),
    )
    .unwrap();
    apply(&mut ledger, Command::Commit { id: id("r1") }, at(100)).unwrap();
    assert_eq!(
        apply(&mut ledger, Command::Commit { id: id("r1") }, at(101)),
        Ok(Decision::Already)
    );
    let hold = ledger.hold(&id("r1")).unwrap();
    assert_eq!(
        hold.state,
        HoldState::Committed {
            since: at(100),
            until: at(3700)
        }
    );
    let host = "h1".parse().unwrap();
    assert!(matches!(
        apply(&mut ledger, Command::RemoveHost { host }, at(101)),
        Err(Refusal::InUse { held: 4, .. })
    ));
    apply(&mut ledger, Command::Release { id: id("r1") }, at(1900)).unwrap();
    let usage = ledger.usage(&Subject::Group("chem".parse().unwrap()), at(9999));
    assert_eq!(
        (usage.cpu_secs, usage.wall_secs, usage.members),
        (4 * 1800, 1800, 0)
    );
    apply(&mut ledger, Command::BeginPeriod, at(9999)).unwrap();
    let usage = ledger.usage(&Subject::User("ada".parse().unwrap()), at(9999));
    assert_eq!(usage.cpu_secs, 0);
}

#[test]
fn of_a_host_that_shrank_nothing_is_promised_until_what_is_held_fits() {
    let mut ledger = two_hosts();
    let mut journal = Vec::new();
    let mut run = |ledger: &mut Ledger, command, now| {
        let decision = apply(ledger, command, at(now));
        if let Ok(Decision::Record(record)) = &decision {
            journal.push(record.clone());
        }
        decision
    };
    let host: HostName = "h1".parse().unwrap();
    let four = plan(&[("a", "h1", amounts(4, 4, 4))]);
    run(&mut ledger, reserve("r1", four), 0).unwrap();
    let capacity = amounts(8, 2, 8);
    let smaller = Command::SetHost {
        host: host.clone(),
        capacity,
    };
    run(&mut ledger, smaller, 1).unwrap();
    assert_eq!(ledger.capacity(&host), Some(capacity));
    assert_eq!(ledger.held(&host), Some(amounts(4, 4, 4)));
    assert_eq!(free(&ledger, "h1"), amounts(4, 0, 4));
    let one = || plan(&[("b", "h1", amounts(1, 1, 1))]);
    assert!(matches!(
        run(&mut ledger, reserve("r2", one()), 2),
        Err(Refusal::NoRoom {
            kind: Kind::Memory,
            free: 0,
            ..
        })
    ));
    // What was promised before runs on, and what it gives back is free as far as it is there.
    run(&mut ledger, Command::Commit { id: id("r1") }, 3).unwrap();
    run(&mut ledger, Command::Release { id: id("r1") }, 4).unwrap();
    assert_eq!(free(&ledger, "h1"), capacity);
    run(&mut ledger, reserve("r3", one()), 5).unwrap();
    let mut again = two_hosts();
    for record in &journal {
        again.commit(record).unwrap();
    }
    assert_eq!(again, ledger);
}

#[test]
fn a_new_period_forgets_what_ran_before_it_began() {
    let mut ledger = two_hosts();
    apply(
        &mut ledger,
        reserve("r1", plan(&[("a", "h1", amounts(2, 1, 1))])),
        at(0),
    )
    .unwrap();
    apply(&mut ledger, Command::Commit { id: id("r1") }, at(0)).unwrap();
    apply(&mut ledger, Command::BeginPeriod, at(3000)).unwrap();
    let usage = ledger.usage(&Subject::User("ada".parse().unwrap()), at(3100));
    assert_eq!((usage.cpu_secs, usage.cpu_secs_booked), (200, 1000));
}

/// Reserves and releases at one time.
fn pass(ledger: &mut Ledger, request: &str, when: u64) {
    let one = plan(&[("a", "h1", amounts(1, 1, 1))]);
    apply(ledger, reserve(request, one), at(when)).unwrap();
    apply(ledger, Command::Release { id: id(request) }, at(when)).unwrap();
}

fn is_known(ledger: &Ledger, request: &str) -> bool {
    let one = plan(&[("a", "h1", amounts(1, 1, 1))]);
    ledger.decide(reserve(request, one), at(0)) == Err(Refusal::Ended(id(request)))
}

const DAY: u64 = 24 * 3600;

#[test]
fn an_id_is_known_for_a_day_after_its_end_and_then_makes_room() {
    let mut ledger = two_hosts();
    pass(&mut ledger, "old", 0);
    for number in 0..ENDED_ROOM {
        pass(&mut ledger, &format!("young{number}"), DAY - 1);
    }
    assert!(is_known(&ledger, "old"), "there are many, but no day went by");
    pass(&mut ledger, "new", DAY);
    assert!(!is_known(&ledger, "old"));
    assert!(is_known(&ledger, "young0") && is_known(&ledger, "new"));
}

#[test]
fn a_jump_of_the_clock_makes_no_id_forgotten() {
    let mut ledger = two_hosts();
    for number in 0..100 {
        pass(&mut ledger, &format!("r{number}"), number);
    }
    pass(&mut ledger, "ahead", 400 * DAY);
    pass(&mut ledger, "back", 101);
    for request in (0..100).map(|number| format!("r{number}")) {
        assert!(is_known(&ledger, &request), "{request}");
    }
    assert!(is_known(&ledger, "ahead") && is_known(&ledger, "back"));
}

#[test]
fn a_record_that_does_not_follow_is_said_with_its_number_and_changes_nothing() {
    let record = Record::Ended {
        id: id("r1"),
        at: at(0),
        why: aerie_cluster_proto::ledger::End::Released,
    };
    let mut ledger = two_hosts();
    let before = ledger.clone();
    let corrupt = ledger.commit(&record).unwrap_err();
    assert_eq!((corrupt.index, corrupt.why), (2, "it ends what is not there"));
    assert_eq!(ledger, before);
}

#[test]
fn sums_beyond_all_numbers_are_refused_and_overflow_nothing() {
    let ledger = two_hosts();
    let most = Resources {
        cpus: u32::MAX,
        memory: Bytes(u64::MAX),
        disk: Bytes(u64::MAX),
    };
    let huge = plan(&[("a", "h1", most), ("b", "h1", most)]);
    assert!(matches!(
        ledger.decide(reserve("r", huge), at(0)),
        Err(Refusal::NoRoom { .. })
    ));
}

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

#[derive(Debug, Clone)]
enum Step {
    Host(usize, u32),
    NoHost(usize),
    Reserve(u8, Vec<(usize, u32)>, u64),
    Commit(u8),
    Release(u8),
    Expire(u8),
    Period,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let parts = proptest::collection::vec((0..3usize, 0..6u32), 1..4);
    prop_oneof![
        2 => (0..3usize, 0..20u32).prop_map(|(host, cpus)| Step::Host(host, cpus)),
        1 => (0..3usize).prop_map(Step::NoHost),
        6 => (0..6u8, parts, 1..100u64).prop_map(|(id, parts, lease)| Step::Reserve(id, parts, lease)),
        3 => (0..6u8).prop_map(Step::Commit),
        3 => (0..6u8).prop_map(Step::Release),
        3 => (0..6u8).prop_map(Step::Expire),
        1 => Just(Step::Period),
        3 => (0..50_000u64).prop_map(Step::Wait),
    ]
}

fn command(step: &Step) -> Option<Command> {
    let request = |number: &u8| id(&format!("r{number}"));
    Some(match step {
        Step::Host(host, cpus) => Command::SetHost {
            host: HOSTS[*host].parse().unwrap(),
            capacity: amounts(*cpus, u64::from(*cpus), u64::from(*cpus)),
        },
        Step::NoHost(host) => Command::RemoveHost {
            host: HOSTS[*host].parse().unwrap(),
        },
        Step::Reserve(number, parts, lease) => {
            let members = parts.iter().enumerate().map(|(index, (host, cpus))| {
                let placed = Placed {
                    host: HOSTS[*host].parse().unwrap(),
                    amounts: amounts(*cpus, 1, u64::from(*cpus)),
                };
                (format!("m{index}").parse().unwrap(), placed)
            });
            Command::Reserve(Reservation {
                id: request(number),
                owner: owner(["ada", "bob"][usize::from(number % 2)]),
                plan: Plan {
                    members: members.collect(),
                },
                lease: Duration::from_secs(*lease),
                lifetime: Lifetime::secs(lease * 3),
                quotas: Vec::new(),
            })
        }
        Step::Commit(number) => Command::Commit { id: request(number) },
        Step::Release(number) => Command::Release { id: request(number) },
        Step::Expire(number) => Command::Expire { id: request(number) },
        Step::Period => Command::BeginPeriod,
        Step::Wait(_) => return None,
    })
}

/// What is held of each host, counted anew.
fn held(ledger: &Ledger) -> BTreeMap<String, Resources> {
    let mut held: BTreeMap<String, Resources> = BTreeMap::new();
    for (_, hold) in ledger.holds() {
        for placed in hold.plan.members.values() {
            let sum = held.entry(placed.host.to_string()).or_default();
            *sum = sum.plus(&placed.amounts).unwrap();
        }
    }
    held
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_it_is_told_the_ledger_promises_nothing_twice_and_survives_every_crash(
        steps in proptest::collection::vec(step(), 0..80), crashes in proptest::collection::vec(any::<prop::sample::Index>(), 4),
    ) {
        let mut ledger = Ledger::default();
        let mut journal: Vec<String> = Vec::new();
        let mut states = vec![ledger.clone()];
        let mut now = 0;
        for step in &steps {
            if let Step::Wait(secs) = step {
                now += secs;
            }
            let Some(command) = command(step) else { continue };
            match ledger.decide(command.clone(), at(now)) {
                Ok(Decision::Record(record)) => {
                    journal.push(serde_json::to_string(&record).unwrap());
                    prop_assert!(ledger.commit(&record).is_ok(), "{record:?}");
                    states.push(ledger.clone());
                    // The same again, as after a lost answer, changes nothing.
                    match ledger.decide(command, at(now)) {
                        Ok(Decision::Already) => {}
                        Ok(Decision::Record(Record::PeriodBegun { .. })) => {}
                        again => prop_assert!(false, "{again:?}"),
                    }
                }
                Ok(Decision::Already) => {}
                Err(refusal) => prop_assert!(!refusal.to_string().is_empty()),
            }
            let held = held(&ledger);
            for host in HOSTS {
                let name = host.parse().unwrap();
                let held = held.get(host).copied().unwrap_or_default();
                match ledger.capacity(&name) {
                    Some(capacity) => {
                        prop_assert_eq!(ledger.held(&name), Some(held));
                        prop_assert_eq!(ledger.free(&name), Some(capacity.without(&held)));
                    }
                    None => prop_assert_eq!(held, Resources::NONE),
                }
            }
            prop_assert_eq!(ledger.next_due().is_some_and(|due| due <= at(now)), !ledger.due(at(now)).is_empty());
        }
        // A crash at any record, and at the end.
        for crash in crashes.iter().map(|crash| crash.index(states.len())).chain([states.len() - 1]) {
            let records = journal[..crash].iter().map(|line| serde_json::from_str::<Record>(line).unwrap());
            prop_assert_eq!(&Ledger::replay(records).unwrap(), &states[crash]);
        }
    }

    #[test]
    fn a_damaged_journal_is_refused_or_makes_a_sound_ledger(
        steps in proptest::collection::vec(step(), 0..40), lost in any::<prop::sample::Index>(), twice in any::<prop::sample::Index>(),
    ) {
        let mut ledger = Ledger::default();
        let mut journal = Vec::new();
        for step in &steps {
            if let Some(command) = command(step)
                && let Ok(Decision::Record(record)) = ledger.decide(command, at(0))
            {
                ledger.commit(&record).unwrap();
                journal.push(record);
            }
        }
        if !journal.is_empty() {
            journal.remove(lost.index(journal.len()));
        }
        if !journal.is_empty() {
            let record = journal[twice.index(journal.len())].clone();
            journal.push(record);
        }
        if let Ok(ledger) = Ledger::replay(journal) {
            for (host, held) in held(&ledger) {
                prop_assert_eq!(ledger.held(&host.parse().unwrap()), Some(held));
            }
        }
    }
}

#[test]
fn a_committed_reservation_is_extended_within_its_owners_quota_and_no_further() {
    let mut ledger = two_hosts();
    told(
        &mut ledger,
        reserve("r", plan(&[("m", "h1", amounts(1, 1, 1))])),
        at(0),
    )
    .unwrap();
    let hours = |hours| Quota {
        wall_hours: Some(hours),
        ..Quota::default()
    };
    let extend = |until: WallMillis, quota| Command::Extend {
        id: id("r"),
        until,
        quotas: vec![(Subject::User("ada".parse().unwrap()), quota)],
    };
    let two = at(0).plus(Duration::from_secs(7200));
    let early = told(&mut ledger, extend(two, hours(9)), at(0));
    assert_eq!(early, Err(Refusal::NotCommitted(id("r"))));
    told(&mut ledger, Command::Commit { id: id("r") }, at(0)).unwrap();
    let over = told(&mut ledger, extend(two, hours(1)), at(0));
    assert!(matches!(over, Err(Refusal::Overdrawn(_))), "{over:?}");
    told(&mut ledger, extend(two, hours(2)), at(0)).unwrap();
    assert_eq!(ledger.hold(&id("r")).unwrap().until(), two);
    // A time that it has already changes nothing.
    assert!(!told(&mut ledger, extend(at(1), hours(2)), at(0)).unwrap());
}

#[test]
fn members_that_are_given_back_make_room_and_a_snapshot_is_the_same_ledger() {
    let mut ledger = two_hosts();
    let parts = [("a", "h1", amounts(1, 1, 1)), ("b", "h2", amounts(1, 1, 1))];
    told(&mut ledger, reserve("r", plan(&parts)), at(0)).unwrap();
    told(&mut ledger, Command::Commit { id: id("r") }, at(0)).unwrap();
    let give = |members: &[&str]| Command::GiveBack {
        id: id("r"),
        members: members.iter().map(|member| member.parse().unwrap()).collect(),
    };
    let all = told(&mut ledger, give(&["a", "b"]), at(1));
    assert_eq!(all, Err(Refusal::Empty(id("r"))));
    told(&mut ledger, give(&["a"]), at(1)).unwrap();
    assert!(!told(&mut ledger, give(&["a"]), at(1)).unwrap());
    let host: HostName = "h1".parse().unwrap();
    assert_eq!(ledger.held(&host), Some(Resources::NONE));
    let text = serde_json::to_string(&ledger.snapshot()).unwrap();
    let again = Ledger::restore(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(again, ledger);
}

/// Whether it was written down.
fn told(ledger: &mut Ledger, command: Command, now: WallMillis) -> Result<bool, Refusal> {
    match ledger.decide(command, now)? {
        Decision::Record(record) => {
            ledger.commit(&record).unwrap();
            Ok(true)
        }
        Decision::Already => Ok(false),
    }
}
