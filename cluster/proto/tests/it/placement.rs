//! Placements and refusals, one case each.

use std::collections::BTreeSet;

use aerie_cluster_proto::amount::{Bytes, Kind, Range};
use aerie_cluster_proto::placement::{
    Accelerator, HostState, Nearest, Policy, Refusal, Rules, Shortage, place, place_some,
};

use crate::common::{amounts, amounts_of, batch, host, host_of, host_with_bridge, member, members};

const GREEDY: Rules = Rules {
    policy: Policy::Greedy,
    emulation: false,
    grow: true,
};
const BALANCED: Rules = Rules {
    policy: Policy::Balanced,
    ..GREEDY
};

#[test]
fn greedy_fills_one_host_and_balanced_spreads() {
    let hosts = [host("h1", amounts(8, 16, 100)), host("h2", amounts(8, 16, 100))];
    let members = members("w", 4, amounts(1, 1, 1));
    let on = |rules: &Rules| {
        let plan = place(&members, &hosts, rules).unwrap();
        let hosts: BTreeSet<_> = plan
            .members
            .values()
            .map(|placed| placed.host.to_string())
            .collect();
        hosts.len()
    };
    assert_eq!((on(&GREEDY), on(&BALANCED)), (1, 2));
}

#[test]
fn a_host_that_has_the_image_comes_first_whatever_the_policy() {
    let mut hosts = [host("h1", amounts(8, 16, 100)), host("h2", amounts(8, 16, 100))];
    hosts[1].images.insert("debian".parse().unwrap());
    hosts[1].free = amounts(4, 8, 50);
    let wanted = [member("w", amounts(1, 1, 1))];
    assert_eq!(host_of(&place(&wanted, &hosts, &BALANCED).unwrap(), "w"), "h2");
    hosts[1].free = amounts(8, 16, 100);
    hosts[0].free = amounts(4, 8, 50);
    assert_eq!(host_of(&place(&wanted, &hosts, &GREEDY).unwrap(), "w"), "h2");
}

#[test]
fn a_preference_for_images_never_costs_the_placement() {
    // The small member would take the place of the large one on the host that has its image.
    let mut hosts = [host("h1", amounts(4, 4, 100)), host("h2", amounts(4, 2, 100))];
    hosts[0].images.insert("debian".parse().unwrap());
    let wanted = [
        member("small", amounts(1, 2, 1)),
        member("large", amounts(1, 4, 1)),
    ];
    let plan = place(&wanted, &hosts, &GREEDY).unwrap();
    assert_eq!(
        (host_of(&plan, "large").as_str(), host_of(&plan, "small").as_str()),
        ("h1", "h2")
    );
}

#[test]
fn a_draining_host_and_one_that_emulates_take_nobody_unless_allowed() {
    let mut hosts = [host("h1", amounts(8, 16, 100)), host("h2", amounts(1, 1, 1))];
    hosts[0].accelerator = Accelerator::Emulation;
    let wanted = [member("w", amounts(1, 1, 1))];
    assert_eq!(host_of(&place(&wanted, &hosts, &GREEDY).unwrap(), "w"), "h2");
    hosts[1].state = HostState::Draining;
    let refusal = place(&wanted, &hosts, &GREEDY).unwrap_err();
    assert!(
        matches!(*refusal.shortage, Shortage::OnlyEmulation { .. }),
        "{refusal}"
    );
    let allowed = Rules {
        emulation: true,
        ..GREEDY
    };
    assert_eq!(host_of(&place(&wanted, &hosts, &allowed).unwrap(), "w"), "h1");
    hosts[0].state = HostState::Draining;
    assert_eq!(
        *place(&wanted, &hosts, &allowed).unwrap_err().shortage,
        Shortage::NoHost
    );
}

#[test]
fn growth_is_fair_among_those_on_a_host_and_takes_from_nobodys_minimum() {
    let hosts = [host("h1", amounts(8, 10, 100))];
    let mut wanted = members("w", 2, amounts(1, 1, 1));
    wanted.push(member("fixed", amounts(2, 3, 1)));
    for member in &mut wanted[..2] {
        member.cpus.max = 16;
        member.memory.max = Bytes::gib(2);
    }
    let plan = place(&wanted, &hosts, &GREEDY).unwrap();
    assert_eq!(amounts_of(&plan, "w-1"), amounts(3, 2, 1));
    assert_eq!(amounts_of(&plan, "w-2"), amounts(3, 2, 1));
    assert_eq!(amounts_of(&plan, "fixed"), amounts(2, 3, 1));
    let small = Rules {
        grow: false,
        ..GREEDY
    };
    assert_eq!(
        amounts_of(&place(&wanted, &hosts, &small).unwrap(), "w-1"),
        amounts(1, 1, 1)
    );
}

#[test]
fn a_refusal_says_how_many_fit_what_the_next_lacks_and_what_would_do() {
    let mut hosts: Vec<_> = (1..=4)
        .map(|index| host_with_bridge(&format!("h{index}"), amounts(16, 15, 500), "lab0"))
        .collect();
    hosts.push(host("other", amounts(64, 512, 5000)));
    let mut wanted = members("worker", 16, amounts(1, 4, 10));
    for member in &mut wanted {
        member.connections.bridges.insert("lab0".parse().unwrap());
    }
    let refusal = place(&wanted, &hosts, &GREEDY).unwrap_err();
    assert_eq!((refusal.fit, refusal.asked, refusal.proved), (12, 16, true));
    assert_eq!(
        refusal.to_string(),
        "12 of 16 members fit; the next, 'worker-13', needs 4 GiB of memory on a host with the bridge 'lab0', and the \
         freest, 'h1', has 3 GiB; with 3840 MiB of memory for 'worker-1' and 15 others all would fit; without \
         'worker-13' and 3 others the other 12 would fit"
    );
    for nearest in &refusal.nearest {
        place(&nearest.apply(&wanted), &hosts, &GREEDY).unwrap();
    }
}

#[test]
fn what_no_host_is_connected_to_is_named() {
    let hosts = [
        host_with_bridge("h1", amounts(8, 8, 8), "br0"),
        host_with_bridge("h2", amounts(8, 8, 8), "br1"),
    ];
    let mut wanted = [member("w", amounts(1, 1, 1))];
    let mut refused = |bridge: &str| {
        wanted[0].connections.bridges.insert(bridge.parse().unwrap());
        place(&wanted, &hosts, &GREEDY).map(drop)
    };
    refused("br0").unwrap();
    let message = refused("br1").unwrap_err().to_string();
    assert!(
        message.contains("several networks, which no one host has together"),
        "{message}"
    );
    let message = refused("br2").unwrap_err().to_string();
    assert!(message.contains("the bridge 'br2', and none has it"), "{message}");
}

#[test]
fn what_hosts_have_only_apart_is_said_to_be_so() {
    let hosts = [host("cpu", amounts(8, 1, 100)), host("mem", amounts(1, 8, 100))];
    let refusal = place(&[member("w", amounts(4, 4, 1))], &hosts, &GREEDY).unwrap_err();
    assert!(
        matches!(*refusal.shortage, Shortage::Room { elsewhere: true, .. }),
        "{refusal:?}"
    );
    assert!(refusal.to_string().contains("lacks the least"), "{refusal}");
    assert!(
        matches!(refusal.nearest[..], [Nearest::Lower { .. }]),
        "{refusal:?}"
    );
}

#[test]
fn with_the_flag_off_those_that_fit_are_placed_and_the_others_named() {
    let hosts = [host("h1", amounts(4, 4, 100))];
    let (plan, left) = place_some(&members("w", 6, amounts(1, 1, 1)), &hosts, &GREEDY).unwrap();
    assert_eq!(plan.members.len(), 4);
    let left: Vec<_> = left.iter().map(|name| name.as_str()).collect();
    assert_eq!(left, ["w-5", "w-6"]);
}

#[test]
fn a_question_that_is_none_is_refused_as_such() {
    let hosts = [host("h1", amounts(4, 4, 100)), host("h1", amounts(4, 4, 100))];
    let wanted = [member("w", amounts(1, 1, 1)), member("w", amounts(1, 1, 1))];
    let question = |refusal: Refusal| match *refusal.shortage {
        Shortage::Question(why) => why,
        other => panic!("{other}"),
    };
    assert!(question(place(&wanted, &hosts, &GREEDY).unwrap_err()).contains("two members are named 'w'"));
    assert!(question(place(&wanted[..1], &hosts, &GREEDY).unwrap_err()).contains("two hosts are named 'h1'"));
    let mut wrong = wanted[0].clone();
    wrong.memory = Range {
        min: Bytes::gib(2),
        max: Bytes::gib(1),
    };
    assert!(question(place(&[wrong], &hosts[..1], &GREEDY).unwrap_err()).contains("at most less than that"));
    assert_eq!(place(&[], &[], &GREEDY).unwrap().members.len(), 0);
}

#[test]
fn the_batch_cluster_is_placed_with_its_head_on_the_host_with_the_bridge() {
    let hosts = [
        host("node1", amounts(16, 64, 400)),
        host("node2", amounts(16, 64, 400)),
        host_with_bridge("front", amounts(4, 16, 400), "lab0"),
    ];
    let plan = place(&batch().members(), &hosts, &BALANCED).unwrap();
    assert_eq!(plan.members.len(), 9);
    assert_eq!(host_of(&plan, "head"), "front");
}

#[test]
fn four_thousand_members_on_a_thousand_hosts_are_placed_or_refused_in_good_time() {
    let hosts: Vec<_> = (0..1024)
        .map(|index| host(&format!("h{index}"), amounts(8, 16, 100)))
        .collect();
    let mut wanted = members("w", 4000, amounts(1, 3, 10));
    let plan = place(&wanted, &hosts, &BALANCED).unwrap();
    assert_eq!(plan.members.len(), 4000);
    for member in &mut wanted {
        member.memory = Range::exactly(Bytes::gib(5));
    }
    let refusal = place(&wanted, &hosts, &BALANCED).unwrap_err();
    assert_eq!((refusal.fit, refusal.proved), (3072, true));
    assert!(matches!(
        refusal.nearest[0],
        Nearest::Lower {
            kind: Kind::Memory,
            ..
        }
    ));
}

#[test]
fn a_question_that_is_too_hard_is_given_up_and_said_to_be() {
    // No host has room for three of them, so that ten hosts carry twenty; counting amounts alone does not show it.
    let hosts: Vec<_> = (0..10)
        .map(|index| host(&format!("h{index}"), amounts(125, 999, 999)))
        .collect();
    let wanted: Vec<_> = (0..21)
        .map(|index| {
            member(
                &format!("m-{index}"),
                amounts(51 + index % 9, 1 + u64::from(index), 1),
            )
        })
        .collect();
    let refusal = place(&wanted, &hosts, &GREEDY).unwrap_err();
    assert!(
        !refusal.proved && refusal.to_string().ends_with("another choice of hosts may exist"),
        "{refusal}"
    );
    assert_eq!(refusal.fit, 20);
    assert_eq!(refusal.nearest.len(), 2);
    for nearest in &refusal.nearest {
        place(&nearest.apply(&wanted), &hosts, &GREEDY).unwrap();
    }
}

#[test]
fn thousands_of_members_of_which_no_two_are_alike_are_answered_in_good_time() {
    let hosts: Vec<_> = (0..1024)
        .map(|index| host(&format!("h{index}"), amounts(8, 16, 100)))
        .collect();
    let wanted: Vec<_> = (0..4096)
        .map(|index| member(&format!("m-{index}"), amounts(2, 3, 1 + index % 24)))
        .collect();
    let mut wanted: Vec<_> = wanted
        .into_iter()
        .zip(1..)
        .map(|(mut member, index)| {
            member.memory = Range::exactly(Bytes(Bytes::gib(3).0 + index));
            member
        })
        .collect();
    assert_eq!(place(&wanted, &hosts, &BALANCED).unwrap().members.len(), 4096);
    wanted[0].cpus = Range::exactly(3);
    let refusal = place(&wanted, &hosts, &BALANCED).unwrap_err();
    assert!(
        matches!(refusal.nearest[..], [Nearest::Fewer { .. }]),
        "{refusal}"
    );
}

#[test]
fn hosts_with_as_much_left_but_other_bridges_are_not_taken_for_alike() {
    // 'x' has to stand aside for 'p', on the host that 'y1' needs too; each heuristic puts it on the other one.
    let mut hosts = [
        host_with_bridge("a", amounts(3, 9, 9), "br0"),
        host_with_bridge("b", amounts(3, 9, 9), "br0"),
        host_with_bridge("c", amounts(2, 9, 9), "br1"),
    ];
    hosts[1].connections.bridges.insert("br1".parse().unwrap());
    let wanted = [
        ("x", 2, Some("br0")),
        ("y1", 1, Some("br1")),
        ("y2", 2, Some("br1")),
        ("p", 3, None),
    ];
    let wanted = wanted.map(|(name, cpus, bridge)| {
        let mut member = member(name, amounts(cpus, 1, 1));
        member.connections.bridges = bridge.iter().map(|bridge| bridge.parse().unwrap()).collect();
        member
    });
    let plan = place(&wanted, &hosts, &GREEDY).unwrap();
    assert_eq!(
        ["x", "y1", "y2", "p"].map(|name| host_of(&plan, name)),
        ["b", "b", "c", "a"]
    );
}
