//! Properties of placement over requests of all kinds, beside a search of every way where these are few.

use std::collections::{BTreeMap, BTreeSet};

use aerie_cluster_proto::amount::{Bytes, Kind, Range, Resources};
use aerie_cluster_proto::placement::{
    Accelerator, Connections, Host, HostState, Member, Plan, Policy, Rules, Shortage, place, place_some,
};
use proptest::prelude::*;

const BRIDGES: [&str; 2] = ["br0", "lab0"];

fn resources(most: u32) -> impl Strategy<Value = Resources> {
    // Steps of memory and disk that are no whole ones, too.
    (0..=most, 0..=u64::from(most), 0..=u64::from(most), 0..3u64).prop_map(|(cpus, memory, disk, odd)| {
        Resources {
            cpus,
            memory: Bytes(Bytes::mib(memory).0 + odd),
            disk: Bytes::mib(disk),
        }
    })
}

fn connections() -> impl Strategy<Value = Connections> {
    (
        proptest::bool::weighted(0.3),
        proptest::bool::weighted(0.3),
        proptest::collection::btree_set(0..2usize, 0..2),
    )
        .prop_map(|(overlay, private, bridges)| Connections {
            overlay,
            private,
            bridges: bridges
                .into_iter()
                .map(|index| BRIDGES[index].parse().unwrap())
                .collect(),
        })
}

fn image() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_owned()), Just("b".to_owned())]
}

fn hosts(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Host>> {
    let one = (
        resources(8),
        resources(8),
        proptest::collection::btree_set(image(), 0..2),
        connections(),
        prop_oneof![9 => Just(HostState::Up), 1 => Just(HostState::Draining)],
        prop_oneof![8 => Just(Accelerator::Kvm), 1 => Just(Accelerator::Xen), 1 => Just(Accelerator::Emulation)],
        proptest::bool::weighted(0.6),
    );
    let one = one.prop_map(
        |(total, free, images, mut connections, state, accelerator, all)| {
            if all {
                connections = Connections {
                    overlay: true,
                    private: true,
                    bridges: BRIDGES.iter().map(|name| name.parse().unwrap()).collect(),
                };
            }
            Host {
                name: "unnamed".parse().unwrap(),
                total,
                free,
                images: images
                    .iter()
                    .map(|image: &String| image.parse().unwrap())
                    .collect(),
                connections,
                state,
                accelerator,
            }
        },
    );
    proptest::collection::vec(one, count).prop_map(|mut hosts| {
        for (index, host) in hosts.iter_mut().enumerate() {
            host.name = format!("host{index}").parse().unwrap();
        }
        hosts
    })
}

fn members(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Member>> {
    // A few kinds, so that some members are alike.
    let kind = (resources(5), resources(5), image(), connections(), any::<bool>());
    let kinds = proptest::collection::vec(kind, 3);
    (kinds, proptest::collection::vec(0..3usize, count)).prop_map(|(kinds, chosen)| {
        let member = |(index, kind): (usize, usize)| {
            let (min, more, image, connections, plain) = &kinds[kind];
            let max = min.plus(more).unwrap();
            Member {
                name: format!("m{index}").parse().unwrap(),
                image: image.parse().unwrap(),
                cpus: Range {
                    min: min.cpus,
                    max: max.cpus,
                },
                memory: Range {
                    min: min.memory,
                    max: max.memory,
                },
                disk: Range {
                    min: min.disk,
                    max: max.disk,
                },
                connections: if *plain {
                    Connections::default()
                } else {
                    connections.clone()
                },
            }
        };
        chosen.into_iter().enumerate().map(member).collect()
    })
}

fn rules() -> impl Strategy<Value = Rules> {
    (
        any::<bool>(),
        proptest::bool::weighted(0.2),
        proptest::bool::weighted(0.8),
    )
        .prop_map(|(greedy, emulation, grow)| Rules {
            policy: if greedy { Policy::Greedy } else { Policy::Balanced },
            emulation,
            grow,
        })
}

fn free(host: &Host) -> Resources {
    Resources {
        cpus: host.free.cpus.min(host.total.cpus),
        memory: host.free.memory.min(host.total.memory),
        disk: host.free.disk.min(host.total.disk),
    }
}

/// Whether there is any way at all to give every member its minimum.
fn possible(members: &[Member], hosts: &[Host], free: &mut [Resources], rules: &Rules) -> bool {
    let Some((member, rest)) = members.split_first() else {
        return true;
    };
    for index in 0..hosts.len() {
        if !hosts[index].suits(member, rules) {
            continue;
        }
        let before = free[index];
        let Some(left) = before.minus(&member.minimum()) else {
            continue;
        };
        free[index] = left;
        if possible(rest, hosts, free, rules) {
            return true;
        }
        free[index] = before;
    }
    false
}

/// What holds of every plan.
fn check(plan: &Plan, members: &[Member], hosts: &[Host], rules: &Rules) -> Result<(), TestCaseError> {
    let by_name: BTreeMap<_, _> = hosts.iter().map(|host| (&host.name, host)).collect();
    let names: BTreeSet<_> = members.iter().map(|member| &member.name).collect();
    prop_assert_eq!(
        plan.members.keys().collect::<BTreeSet<_>>(),
        names,
        "every member once"
    );
    for member in members {
        let placed = &plan.members[&member.name];
        let host = by_name[&placed.host];
        prop_assert!(host.suits(member, rules), "{} on {}", member.name, host.name);
        prop_assert!(placed.amounts.holds(&member.minimum()) && member.maximum().holds(&placed.amounts));
        prop_assert!(rules.grow || placed.amounts == member.minimum());
    }
    for (host, taken) in plan.by_host() {
        prop_assert!(
            free(by_name[host]).holds(&taken),
            "{host} has {} and gives {taken}",
            free(by_name[host])
        );
    }
    if rules.grow {
        fair(plan, members, &by_name)?;
    }
    Ok(())
}

/// Nobody could have a step more, unless another who has no more above its minimum would have a step less.
fn fair(
    plan: &Plan,
    members: &[Member],
    hosts: &BTreeMap<&aerie_context_proto::HostName, &Host>,
) -> Result<(), TestCaseError> {
    for (name, taken) in plan.by_host() {
        let here: Vec<_> = members
            .iter()
            .filter(|member| plan.members[&member.name].host == *name)
            .collect();
        for kind in Kind::ALL {
            let step = if kind == Kind::Cpus { 1 } else { Bytes::mib(1).0 };
            let left = free(hosts[name]).of(kind) - taken.of(kind);
            let growth =
                |member: &Member| plan.members[&member.name].amounts.of(kind) - member.minimum().of(kind);
            for member in &here {
                let could = member.maximum().of(kind) - member.minimum().of(kind) - growth(member);
                if could < step {
                    continue;
                }
                prop_assert!(left < step, "{} of {kind} are left of {name}", left);
                for other in &here {
                    prop_assert!(
                        growth(other) < growth(member) + 2 * step,
                        "{} has more than its share",
                        other.name
                    );
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_plan_is_sound_and_a_refusal_of_few_members_is_right(
        hosts in hosts(0..=4), members in members(0..=6), rules in rules(),
    ) {
        let there_is_a_way = possible(&members, &hosts, &mut hosts.iter().map(free).collect::<Vec<_>>(), &rules);
        match place(&members, &hosts, &rules) {
            Ok(plan) => {
                prop_assert!(there_is_a_way);
                check(&plan, &members, &hosts, &rules)?;
            }
            Err(refusal) => {
                prop_assert!(refusal.proved, "six members are searched to the end: {refusal}");
                prop_assert!(!there_is_a_way, "{refusal}");
                prop_assert!(!matches!(*refusal.shortage, Shortage::Question(_)));
            }
        }
    }

    #[test]
    fn many_members_are_placed_soundly_or_refused_with_something_that_fits(
        hosts in hosts(1..=8), members in members(1..=40), rules in rules(),
    ) {
        match place(&members, &hosts, &rules) {
            Ok(plan) => check(&plan, &members, &hosts, &rules)?,
            Err(refusal) => {
                prop_assert!(refusal.fit < refusal.asked);
                for nearest in &refusal.nearest {
                    let changed = nearest.apply(&members);
                    match place(&changed, &hosts, &rules) {
                        Ok(plan) => check(&plan, &changed, &hosts, &rules)?,
                        Err(again) => prop_assert!(false, "{nearest} does not fit: {again}"),
                    }
                }
                // Whoever fits at all is offered as fewer.
                prop_assert!(refusal.fit == 0 || !refusal.nearest.is_empty());
            }
        }
    }

    #[test]
    fn the_order_of_hosts_and_members_does_not_matter(
        (hosts, shuffled) in hosts(0..=6).prop_flat_map(|hosts| (Just(hosts.clone()), Just(hosts).prop_shuffle())),
        (members, mixed) in members(0..=12).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        rules in rules(),
    ) {
        prop_assert_eq!(place(&members, &hosts, &rules), place(&members, &shuffled, &rules));
        let (one, other) = (place(&members, &hosts, &rules), place(&mixed, &hosts, &rules));
        prop_assert_eq!(one.ok(), other.ok());
    }

    #[test]
    fn those_that_fit_are_placed_soundly_and_the_others_are_named(
        hosts in hosts(0..=5), members in members(0..=12), rules in rules(),
    ) {
        let (plan, left) = place_some(&members, &hosts, &rules).unwrap();
        let kept: Vec<_> = members.iter().filter(|member| !left.contains(&member.name)).cloned().collect();
        check(&plan, &kept, &hosts, &rules)?;
        prop_assert_eq!(kept.len() + left.len(), members.len());
    }

    #[test]
    fn in_one_dimension_equal_members_are_placed_whenever_there_is_a_way(
        frees in proptest::collection::vec(0..20u32, 1..12), need in 1..6u32, count in 1..60usize, rules in rules(),
    ) {
        let host = |(index, cpus): (usize, &u32)| {
            let has = Resources { cpus: *cpus, ..Resources::NONE };
            Host {
                name: format!("h{index}").parse().unwrap(),
                total: has,
                free: has,
                images: BTreeSet::new(),
                connections: Connections::default(),
                state: HostState::Up,
                accelerator: Accelerator::Kvm,
            }
        };
        let hosts: Vec<_> = frees.iter().enumerate().map(host).collect();
        let member = |index| Member {
            name: format!("m{index}").parse().unwrap(),
            image: "a".parse().unwrap(),
            cpus: Range { min: need, max: need + 3 },
            memory: Range::exactly(Bytes(0)),
            disk: Range::exactly(Bytes(0)),
            connections: Connections::default(),
        };
        let members: Vec<_> = (0..count).map(member).collect();
        let places: u32 = frees.iter().map(|free| free / need).sum();
        let placed = place(&members, &hosts, &rules);
        prop_assert_eq!(placed.is_ok(), places as usize >= count);
    }

    #[test]
    fn what_fits_to_the_last_unit_is_found(
        hosts in proptest::collection::vec((proptest::collection::vec((1..4u32, 1..4u64, 0..4usize), 1..=3), 0..4usize), 2..=4),
        rules in rules(),
    ) {
        let bridges = |mask: usize| -> BTreeSet<_> {
            let has = BRIDGES.iter().enumerate().filter(|(index, _)| mask >> index & 1 == 1);
            has.map(|(_, name)| name.parse().unwrap()).collect()
        };
        let mut members = Vec::new();
        let mut full = Vec::new();
        for (index, (parts, bridged)) in hosts.iter().enumerate() {
            let has = Resources {
                cpus: parts.iter().map(|(cpus, ..)| cpus).sum(),
                memory: Bytes::mib(parts.iter().map(|(_, memory, _)| memory).sum()),
                disk: Bytes(0),
            };
            full.push(Host {
                name: format!("h{index}").parse().unwrap(),
                total: has,
                free: has,
                images: BTreeSet::new(),
                connections: Connections {
                    bridges: bridges(*bridged),
                    ..Connections::default()
                },
                state: HostState::Up,
                accelerator: Accelerator::Kvm,
            });
            for (cpus, memory, wants) in parts {
                members.push(Member {
                    name: format!("m{}", members.len()).parse().unwrap(),
                    image: "a".parse().unwrap(),
                    cpus: Range::exactly(*cpus),
                    memory: Range::exactly(Bytes::mib(*memory)),
                    disk: Range::exactly(Bytes(0)),
                    connections: Connections {
                        bridges: bridges(*wants & *bridged),
                        ..Connections::default()
                    },
                });
            }
        }
        match place(&members, &full, &rules) {
            Ok(plan) => check(&plan, &members, &full, &rules)?,
            Err(refusal) => prop_assert!(false, "{refusal}"),
        }
    }
}
