//! Quotas: what is refused, and that what is admitted keeps them.

use std::time::Duration;

use aerie_cluster_proto::amount::{Bytes, Kind, Lifetime};
use aerie_cluster_proto::ledger::{
    Ask, Command, Decision, Ledger, Limit, Owner, PerRequest, Quota, Refusal, Reservation, Subject,
};
use aerie_cluster_proto::placement::{Rules, place};
use proptest::prelude::*;

use crate::common::{amounts, at, host, members};

const HOUR: Duration = Duration::from_secs(3600);

fn owner(user: &str, group: &str) -> Owner {
    Owner {
        user: user.parse().unwrap(),
        group: Some(group.parse().unwrap()),
    }
}

fn user(name: &str) -> Subject {
    Subject::User(name.parse().unwrap())
}

fn group(name: &str) -> Subject {
    Subject::Group(name.parse().unwrap())
}

fn run(ledger: &mut Ledger, command: Command, secs: u64) {
    match ledger.decide(command, at(secs)).unwrap() {
        Decision::Record(record) => ledger.commit(&record).unwrap(),
        Decision::Already => {}
    }
}

/// A ledger with one large host, on which somebody has so many members of one CPU, 1 GiB and 1 GiB.
fn ledger_with(owner: Owner, count: u32, secs: u64) -> Ledger {
    let mut ledger = Ledger::default();
    let big = host("big", amounts(1000, 1000, 1000));
    run(
        &mut ledger,
        Command::SetHost {
            host: big.name.clone(),
            capacity: big.total,
        },
        0,
    );
    let plan = place(&members("w", count, amounts(1, 1, 1)), &[big], &Rules::default()).unwrap();
    let reservation = Reservation {
        id: "first".parse().unwrap(),
        owner,
        plan,
        lease: HOUR,
        lifetime: Lifetime::secs(secs),
        quotas: Vec::new(),
    };
    run(&mut ledger, Command::Reserve(reservation), 0);
    run(
        &mut ledger,
        Command::Commit {
            id: "first".parse().unwrap(),
        },
        0,
    );
    ledger
}

#[test]
fn a_refusal_names_the_quota_its_limit_what_is_used_and_what_is_asked() {
    let ada = owner("ada", "chem");
    let ledger = ledger_with(ada.clone(), 6, 7200);
    let quota = Quota {
        members: Some(8),
        memory: Some(Bytes::gib(8)),
        ..Quota::default()
    };
    let ask = Ask::minimum(&members("x", 4, amounts(1, 1, 1)), HOUR);
    let overdrawn = ledger
        .admit(&[(group("chem"), quota)], &ada, &ask, at(0))
        .unwrap_err();
    assert_eq!(
        overdrawn.to_string(),
        "the request exceeds the quota of the group 'chem' for members: 8 members are allowed, 6 members are used or \
         booked, 4 members are asked; and the quota of the group 'chem' for memory: 8 GiB are allowed, 6 GiB are used \
         or booked, 4 GiB are asked; ask for less, or end what is not needed"
    );
    assert_eq!(overdrawn.0[1].limit, Limit::Amount(Kind::Memory));
    let bob = owner("bob", "phys");
    ledger
        .admit(&[(group("chem"), quota), (user("ada"), quota)], &bob, &ask, at(0))
        .unwrap();
    let bob = owner("bob", "chem");
    assert_eq!(
        ledger
            .admit(&[(group("chem"), quota), (user("ada"), quota)], &bob, &ask, at(0))
            .unwrap_err()
            .0
            .len(),
        2
    );
}

#[test]
fn of_two_requests_that_were_admitted_at_once_one_is_reserved() {
    let ada = owner("ada", "chem");
    let mut ledger = ledger_with(ada.clone(), 4, 7200);
    let quota = Quota {
        members: Some(8),
        ..Quota::default()
    };
    let quotas = vec![(group("chem"), quota)];
    let big = host("big", amounts(900, 900, 900));
    let plan = place(&members("x", 3, amounts(1, 1, 1)), &[big], &Rules::default()).unwrap();
    let reservation = |request: &str| {
        ledger.admit(&quotas, &ada, &Ask::of(&plan, HOUR), at(0)).unwrap();
        Command::Reserve(Reservation {
            id: request.parse().unwrap(),
            owner: ada.clone(),
            plan: plan.clone(),
            lease: HOUR,
            lifetime: Lifetime::secs(3600),
            quotas: quotas.clone(),
        })
    };
    let (one, other) = (reservation("one"), reservation("other"));
    run(&mut ledger, one.clone(), 0);
    let Err(Refusal::Overdrawn(overdrawn)) = ledger.decide(other, at(0)) else {
        panic!()
    };
    assert_eq!((overdrawn.0[0].used, overdrawn.0[0].asked), (7, 3));
    // To ask again takes nothing more of the quota.
    assert_eq!(ledger.decide(one, at(0)), Ok(Decision::Already));
}

#[test]
fn hours_are_booked_whole_and_given_back_when_not_used() {
    let ada = owner("ada", "chem");
    let mut ledger = ledger_with(ada.clone(), 4, 2 * 3600);
    let quotas = [(
        user("ada"),
        Quota {
            cpu_hours: Some(10),
            wall_hours: Some(11),
            ..Quota::default()
        },
    )];
    let ask = |count| Ask::minimum(&members("x", count, amounts(1, 1, 1)), HOUR);
    let overdrawn = ledger.admit(&quotas, &ada, &ask(3), at(1800)).unwrap_err();
    assert_eq!(overdrawn.0.len(), 1);
    assert!(
        overdrawn.to_string().contains(
            "for CPU time: 10 CPU hours are allowed, 8 CPU hours are used or booked, 3 CPU hours are asked"
        ),
        "{overdrawn}"
    );
    run(
        &mut ledger,
        Command::Release {
            id: "first".parse().unwrap(),
        },
        1800,
    );
    ledger.admit(&quotas, &ada, &ask(8), at(1800)).unwrap();
    assert!(
        ledger.admit(&quotas, &ada, &ask(9), at(1800)).is_err(),
        "two hours were used"
    );
}

#[test]
fn one_request_has_limits_of_its_own() {
    let quota = Quota {
        per_request: PerRequest {
            members: Some(2),
            cpus: Some(2),
            lifetime: Some(Lifetime::secs(60)),
            ..PerRequest::default()
        },
        ..Quota::default()
    };
    let ask = Ask::minimum(&members("x", 3, amounts(1, 1, 1)), HOUR);
    let overdrawn = Ledger::default()
        .admit(&[(user("ada"), quota)], &owner("ada", "chem"), &ask, at(0))
        .unwrap_err();
    let limits: Vec<_> = overdrawn.0.iter().map(|exceeded| exceeded.limit).collect();
    assert_eq!(
        limits,
        [
            Limit::RequestMembers,
            Limit::RequestAmount(Kind::Cpus),
            Limit::RequestLifetime
        ]
    );
    assert!(
        overdrawn
            .to_string()
            .contains("the life-time of one request: 1m are allowed, 1h are asked"),
        "{overdrawn}"
    );
}

#[test]
fn members_that_grow_are_held_against_the_quota_as_they_are() {
    let big = host("big", amounts(100, 100, 100));
    let mut wanted = members("w", 2, amounts(1, 1, 1));
    for member in &mut wanted {
        member.cpus.max = 16;
    }
    let plan = place(&wanted, std::slice::from_ref(&big), &Rules::default()).unwrap();
    assert_eq!(Ask::of(&plan, HOUR).amounts[0], 32);
    let small = place(
        &wanted,
        &[big],
        &Rules {
            grow: false,
            ..Rules::default()
        },
    )
    .unwrap();
    assert_eq!(Ask::of(&small, HOUR), Ask::minimum(&wanted, HOUR));
}

proptest! {
    #[test]
    fn what_is_admitted_never_exceeds_a_quota(
        requests in proptest::collection::vec((1..5u32, 1..8u64, 0..4u64, any::<bool>()), 1..20),
        most in 1..12u32, hours in 1..60u64,
    ) {
        let big = host("big", amounts(1000, 1000, 1000));
        let mut ledger = Ledger::default();
        run(&mut ledger, Command::SetHost { host: big.name.clone(), capacity: big.total }, 0);
        let quota = Quota { members: Some(most), cpu_hours: Some(hours), ..Quota::default() };
        let quotas = [(user("ada"), quota)];
        let ada = owner("ada", "chem");
        let mut now = 0;
        for (number, (count, lifetime, wait, release)) in requests.into_iter().enumerate() {
            let lifetime = Lifetime::secs(lifetime * 3600);
            let wanted = members("w", count, amounts(1, 1, 1));
            if ledger.admit(&quotas, &ada, &Ask::minimum(&wanted, lifetime.duration()), at(now)).is_ok() {
                let plan = place(&wanted, std::slice::from_ref(&big), &Rules::default()).unwrap();
                let id: aerie_cluster_proto::ledger::RequestId = format!("r{number}").parse().unwrap();
                let reservation = Reservation { id: id.clone(), owner: ada.clone(), plan, lease: HOUR, lifetime, quotas: quotas.to_vec() };
                run(&mut ledger, Command::Reserve(reservation), now);
                run(&mut ledger, Command::Commit { id: id.clone() }, now);
                if release {
                    now += 1800;
                    run(&mut ledger, Command::Release { id }, now);
                }
            }
            now += wait * 1800;
            // Whoever is due is ended at its time.
            while let Some(due) = ledger.next_due().filter(|due| *due <= at(now)) {
                let id = ledger.due(due)[0].clone();
                let Decision::Record(record) = ledger.decide(Command::Expire { id }, due).unwrap() else { panic!() };
                ledger.commit(&record).unwrap();
            }
            let usage = ledger.usage(&user("ada"), at(now));
            prop_assert!(usage.members <= u64::from(most));
            prop_assert!(usage.cpu_secs + usage.cpu_secs_booked <= hours * 3600);
        }
    }
}
