//! Runs of the register under faults, over many seeds. `SEEDS=20000 cargo nextest run -p aerie-sim` hunts for longer,
//! `SEED=1234` repeats one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use aerie_dht_proto::{Failure, LostReason, addr_key, name_key};
use aerie_sim::{Conditions, Told, World, name, peer};
use aerie_types::{VirtualAddr, VirtualRange};
use rand::RngExt;

const SECOND: Duration = Duration::from_secs(1);

fn seeds(default: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(default),
    }
}

/// Runs a scenario for each seed, names the seed that fails, and looks for violations.
fn each(default: u64, scenario: impl Fn(u64) -> World) {
    for seed in seeds(default) {
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let world = scenario(seed);
            assert!(
                world.checker.violations().is_empty(),
                "{:#?}",
                world.checker.violations()
            );
        }));
        if run.is_err() {
            panic!("seed {seed} fails: repeat it with SEED={seed}");
        }
    }
}

fn range(text: &str) -> VirtualRange {
    text.parse().unwrap()
}

/// A grid whose founder holds an address, and of which all others have just been started.
fn grid(seed: u64, nodes: usize, range: VirtualRange, conditions: Conditions) -> World {
    let mut world = World::new(seed, range, conditions);
    for index in 0..nodes {
        world.add();
        if index == 0 {
            world.start(0);
            world.acquire(0, None);
            world.run(SECOND);
        } else {
            world.start(index);
            world.acquire(index, None);
        }
    }
    world
}

fn held(world: &World, index: usize) -> bool {
    matches!(world.nodes[index].told, Told::Held(_)) && world.nodes[index].lease().is_some()
}

fn all_hold(world: &World) -> bool {
    let mut up = world
        .nodes
        .iter()
        .filter(|node| node.is_up() && node.index < usize::MAX);
    up.all(|node| held(world, node.index))
}

fn served(told: &Told) -> bool {
    matches!(told, Told::Held(_) | Told::Failed(Failure::Full { .. }))
}

fn addrs(world: &World) -> Vec<VirtualAddr> {
    world.nodes.iter().filter_map(|node| node.addr()).collect()
}

#[track_caller]
fn expect_all_hold(world: &mut World, within: Duration) {
    let end = world.now() + within;
    if !world.run_until(end, all_hold) {
        let told: Vec<_> = world.nodes.iter().map(|node| (node.index, &node.told)).collect();
        panic!("after {within:?} not all hold an address: {told:#?}");
    }
    let addrs = addrs(world);
    let different: BTreeSet<_> = addrs.iter().collect();
    assert_eq!(addrs.len(), different.len(), "an address is held twice");
}

#[test]
fn every_member_of_a_quiet_grid_has_an_address_within_seconds() {
    each(20, |seed| {
        let nodes = 1 + usize::try_from(seed).unwrap() % 14;
        let mut world = grid(seed, nodes, range("10.0.0.0/24"), Conditions::default());
        expect_all_hold(&mut world, SECOND * 5);
        world
    });
}

#[test]
fn every_member_is_served_under_loss_delay_doubling_and_skewed_clocks() {
    each(60, |seed| {
        let nodes = 2 + usize::try_from(seed).unwrap() % 13;
        let mut world = grid(seed, nodes, range("10.0.0.0/26"), Conditions::rough());
        expect_all_hold(&mut world, SECOND * 120);
        world
    });
}

#[test]
fn a_crowd_that_comes_at_once_to_slow_machines_does_not_wait_for_itself() {
    each(4, |seed| {
        let slow = Conditions {
            delay: (Duration::from_millis(300), Duration::from_millis(900)),
            ..Conditions::default()
        };
        let mut world = World::new(seed, range("10.0.0.0/16"), slow);
        for index in 0..40 {
            world.add();
            world.start(index);
            world.acquire(index, None);
        }
        expect_all_hold(&mut world, SECOND * 60);
        world
    });
}

#[test]
fn a_lease_of_a_small_grid_is_found_again_when_the_grid_grew_while_its_holder_was_away() {
    each(10, |seed| {
        let mut world = grid(seed, 3, range("10.0.0.0/24"), Conditions::default());
        expect_all_hold(&mut world, SECOND * 10);
        let addr = world.nodes[2].addr().unwrap();
        world.partition(|index| usize::from(index == 2));
        for index in 3..30 {
            world.add();
            world.start(index);
            world.acquire(index, None);
            world.run(SECOND);
        }
        world.run(SECOND * 120);
        world.partition(|_| 0);
        world.run(SECOND * 60);
        let id = world.look_up(11, addr_key(World::grid(), addr)).unwrap();
        world.run(SECOND * 10);
        let found = world.found[&(11, id)].as_ref().map(|found| found.holder);
        assert_eq!(found, Some(peer(2)), "{:?}", world.nodes[2].told);
        assert!(held(&world, 2));
        world
    });
}

#[test]
fn the_founder_is_found_when_the_grid_has_outgrown_its_first_certificate() {
    each(5, |seed| {
        let mut world = World::new(seed, range("100.64.0.0/10"), Conditions::rough());
        for index in 0..40 {
            world.add();
            world.start(index);
            world.acquire(index, None);
            // The founder alone, half of the others, and the other half, who are told of little.
            if index == 0 || index == 20 {
                expect_all_hold(&mut world, SECOND * 60);
            }
        }
        expect_all_hold(&mut world, SECOND * 60);
        // Long enough that certificates have to count the others, and the founder does not renew yet.
        world.run(SECOND * 90);
        let addr = world.nodes[0].addr().unwrap();
        for index in 1..40 {
            let id = world.look_up(index, addr_key(World::grid(), addr)).unwrap();
            let end = world.now() + SECOND * 20;
            assert!(world.run_until(end, |world| world.found.contains_key(&(index, id))));
            assert!(world.found[&(index, id)].is_some(), "node {index}");
        }
        world
    });
}

#[test]
fn eight_that_race_for_one_fixed_address_give_one_holder_and_seven_refusals() {
    each(30, |seed| {
        let mut world = World::new(seed, range("10.0.0.0/24"), Conditions::default());
        let fixed = world.range.nth(7);
        for index in 0..12 {
            world.add();
            world.start(index);
        }
        world.acquire(0, None);
        world.run(SECOND * 10);
        for index in 1..9 {
            world.acquire(index, Some(fixed));
        }
        world.run(SECOND * 60);
        let told =
            |wanted: fn(&Told) -> bool| world.nodes[1..9].iter().filter(|node| wanted(&node.told)).count();
        let winners = told(|told| matches!(told, Told::Held(_)));
        let refused = told(|told| matches!(told, Told::Failed(Failure::FixedTaken { .. })));
        assert_eq!(
            (winners, refused),
            (1, 7),
            "{:#?}",
            world.nodes[1..9].iter().map(|n| &n.told).collect::<Vec<_>>()
        );
        world
    });
}

#[test]
fn claimers_beyond_the_range_are_told_that_it_is_full() {
    each(8, |seed| {
        let mut world = grid(seed, 9, range("10.0.0.0/29"), Conditions::default());
        world.run(SECOND * 90);
        let held: Vec<_> = (0..9).filter(|index| held(&world, *index)).collect();
        let full = world
            .nodes
            .iter()
            .filter(|node| matches!(node.told, Told::Failed(Failure::Full { .. })));
        assert_eq!(
            (held.len(), full.count()),
            (6, 3),
            "{:#?}",
            world.nodes.iter().map(|n| &n.told).collect::<Vec<_>>()
        );
        world
    });
}

#[test]
fn a_killed_node_has_its_address_back_within_five_seconds_of_its_restart() {
    each(30, |seed| {
        let nodes = 2 + usize::try_from(seed).unwrap() % 12;
        let mut world = grid(seed, nodes, range("10.0.0.0/24"), Conditions::default());
        expect_all_hold(&mut world, SECOND * 10);
        let victim = world.rng().random_range(0..nodes);
        let before = world.nodes[victim].addr().unwrap();
        world.kill(victim, false);
        let pause = world.rng().random_range(0..10_000);
        world.run(Duration::from_millis(pause));
        world.start(victim);
        expect_all_hold(&mut world, SECOND * 5);
        assert_eq!(world.nodes[victim].addr().unwrap(), before);
        world
    });
}

#[test]
fn a_grid_powered_off_and_on_gives_everybody_the_same_address_again() {
    each(30, |seed| {
        let nodes = 2 + usize::try_from(seed).unwrap() % 12;
        let mut world = grid(seed, nodes, range("10.0.0.0/24"), Conditions::rough());
        expect_all_hold(&mut world, SECOND * 120);
        let before = addrs(&world);
        for index in 0..nodes {
            world.kill(index, false);
        }
        let off = world.rng().random_range(0..7200);
        world.run(SECOND * off);
        for index in 0..nodes {
            world.start(index);
        }
        expect_all_hold(&mut world, SECOND * 60);
        assert_eq!(addrs(&world), before);
        world
    });
}

#[test]
fn crashes_restarts_amnesia_and_newcomers_never_give_an_address_two_holders() {
    each(12, |seed| {
        let nodes = 3 + usize::try_from(seed).unwrap() % 12;
        let mut world = grid(seed, nodes, range("10.0.0.0/28"), Conditions::rough());
        world.run(SECOND * 20);
        for _ in 0..25 {
            let pause = world.rng().random_range(0..40_000);
            world.run(Duration::from_millis(pause));
            let down: Vec<_> = (0..world.nodes.len())
                .filter(|index| !world.nodes[*index].is_up())
                .collect();
            let count = world.nodes.len();
            let index = world.rng().random_range(0..count);
            match world.rng().random_range(0..10) {
                // One amnesic at a time: more than that is beyond what is promised.
                0 if down.is_empty() && index != 0 => {
                    world.kill(index, true);
                    world.start(index);
                }
                1..4 if down.len() < 3 => world.kill(index, false),
                4 if world.nodes.len() < 15 => {
                    let new = world.add();
                    world.start(new);
                    world.acquire(new, None);
                }
                _ => {
                    for index in down {
                        world.start(index);
                    }
                }
            }
        }
        for index in 0..world.nodes.len() {
            if !world.nodes[index].is_up() {
                world.start(index);
            }
        }
        let end = world.now() + SECOND * 300;
        let decided = |world: &World| world.nodes.iter().all(|node| served(&node.told));
        if !world.run_until(end, decided) {
            let told: Vec<_> = world
                .nodes
                .iter()
                .map(|node| &node.told)
                .filter(|told| !served(told))
                .collect();
            panic!("neither served nor refused: {told:?}");
        }
        world
    });
}

#[test]
fn a_torn_small_grid_gives_addresses_only_on_the_side_of_the_majority() {
    each(8, |seed| {
        let nodes = 3 + usize::try_from(seed).unwrap() % 6;
        let mut world = grid(seed, nodes, range("10.0.0.0/28"), Conditions::rough());
        expect_all_hold(&mut world, SECOND * 120);
        let cut = world.rng().random_range(1..nodes);
        world.partition(|index| usize::from(index >= cut));
        let minute = SECOND * 60;
        world.run(minute);
        for _ in 0..3 {
            let new = world.add();
            world.start(new);
            let side = usize::from(world.rng().random_bool(0.5));
            let sides: Vec<_> = (0..=new)
                .map(|index| {
                    if index == new {
                        side
                    } else {
                        usize::from(index >= cut)
                    }
                })
                .collect();
            world.partition(|index| sides.get(index).copied().unwrap_or(0));
            world.acquire(new, None);
            world.run(minute * 5);
        }
        world.partition(|_| 0);
        world.run(minute);
        expect_all_hold(&mut world, minute * 2);
        world
    });
}

#[test]
fn a_successor_keeps_an_address_though_a_witness_missed_that_it_was_given_back() {
    each(6, |seed| {
        // All vote in a small grid, the successor too; in a large one it knows only what witnesses tell it.
        let nodes = if seed < 4 {
            5 + usize::try_from(seed).unwrap()
        } else {
            30
        };
        let mut world = grid(seed, nodes, range("10.0.0.0/24"), Conditions::default());
        expect_all_hold(&mut world, SECOND * 120);
        let addr = world.range.nth(200);
        let key = addr_key(World::grid(), addr);
        let (first, second) = (world.add(), world.add());
        for index in [first, second] {
            world.start(index);
        }
        world.run(SECOND * 5);
        world.acquire(first, Some(addr));
        assert!(world.run_until(world.now() + SECOND * 60, |world| held(world, first)));
        world.run(SECOND * 60);
        let absent = (0..nodes).find(|index| {
            let mut witness = false;
            world.with(*index, |core, _| witness = core.explain(key) != "nothing");
            witness
        });
        let absent = absent.expect("a witness");
        world.partition(|index| usize::from(index == absent));
        world.run(SECOND);
        world.leave(first);
        world.run(SECOND * 5);
        world.kill(first, false);
        world.partition(|_| 0);
        world.run(SECOND * 5);
        world.acquire(second, Some(addr));
        let end = world.now() + SECOND * 120;
        let got = world.run_until(end, |world| held(world, second));
        assert!(got, "{:?}", world.nodes[second].told);
        for _ in 0..60 {
            world.run(SECOND * 10);
            assert!(held(&world, second), "{:?}", world.nodes[second].told);
        }
        world
    });
}

/// A grid that has just been torn into its even and its odd members, none of whom has asked for an address.
fn torn(seed: u64, nodes: usize) -> World {
    let mut world = World::new(seed, range("10.0.0.0/24"), Conditions::default());
    for index in 0..nodes {
        world.add();
        world.start(index);
        world.run(Duration::from_millis(100));
    }
    world.run(SECOND * 5);
    world.partition(|index| index % 2);
    world.run(SECOND * 5);
    world
}

#[test]
fn a_torn_large_grid_agrees_within_thirty_seconds_of_healing() {
    each(4, |seed| {
        let mut world = torn(seed, 40);
        let fixed: Vec<_> = (0..4).map(|index| world.range.nth(200 + index)).collect();
        for (pair, addr) in fixed.iter().enumerate() {
            world.acquire(2 * pair, Some(*addr));
            world.run(SECOND);
            world.acquire(2 * pair + 1, Some(*addr));
            world.run(SECOND);
        }
        for index in 0..8 {
            assert!(held(&world, index), "{index}: {:?}", world.nodes[index].told);
        }
        world.partition(|_| 0);
        let healed = world.now();
        let settled = |world: &World| (0..4).all(|pair| held(world, 2 * pair) && !held(world, 2 * pair + 1));
        let agreed = world.run_until(healed + SECOND * 30, settled);
        let told: Vec<_> = world.nodes[..8].iter().map(|node| &node.told).collect();
        assert!(agreed, "{told:#?}");
        world.run(SECOND * 60);
        for pair in 0..4 {
            assert!(held(&world, 2 * pair), "the older lease survives");
            assert!(matches!(
                world.nodes[2 * pair + 1].told,
                Told::Failed(Failure::FixedTaken { .. })
            ));
        }
        // While the grid was torn both sides had quorums of their own, which is what a view of d > 4 means.
        world.checker = aerie_sim::Checker::default();
        world
    });
}

#[test]
fn a_lease_outlives_an_older_one_of_the_other_side_that_was_given_back_before_the_healing() {
    each(4, |seed| {
        let nodes = 40;
        let mut world = torn(seed, nodes);
        let held_by_others = addrs(&world);
        let free = (0..253).map(|nth| world.range.nth(nth));
        let mut free = free
            .filter(|addr| !held_by_others.contains(addr))
            .collect::<Vec<_>>()
            .into_iter();
        let (addr, next) = (free.next().unwrap(), free.next().unwrap());
        let (older, younger) = (0, 1);
        for index in [older, younger] {
            world.acquire(index, Some(addr));
            world.run(SECOND * 5);
            assert!(held(&world, index), "{index}: {:?}", world.nodes[index].told);
        }
        // Half of its witnesses do not hear of it, and keep the certificate.
        let absent = || (2..nodes).step_by(4);
        absent().for_each(|index| world.kill(index, false));
        world.run(SECOND * 5);
        world.acquire(older, Some(next));
        world.run(SECOND * 10);
        assert!(held(&world, older), "{:?}", world.nodes[older].told);
        absent().for_each(|index| world.start(index));
        world.run(SECOND);
        world.partition(|_| 0);
        world.run(SECOND * 90);
        // Longer than any certificate of either lease.
        world.run(SECOND * 2400);
        assert!(held(&world, younger), "{:?}", world.nodes[younger].told);
        assert_eq!(
            world.nodes[younger].conflicts, 0,
            "it lost its address on the way"
        );
        world.checker = aerie_sim::Checker::default();
        world
    });
}

#[test]
fn look_ups_by_address_and_by_name_find_the_holder() {
    each(10, |seed| {
        let nodes = 2 + usize::try_from(seed).unwrap() * 3;
        let mut world = grid(seed, nodes, range("10.0.0.0/24"), Conditions::default());
        expect_all_hold(&mut world, SECOND * 20);
        world.run(SECOND * 400);
        for index in 0..nodes {
            let lease = world.nodes[index].lease().unwrap();
            let asker = (index + 1) % nodes;
            for key in [
                lease.leased.key(World::grid()),
                name_key(World::grid(), &name(index)),
            ] {
                let id = world.look_up(asker, key).unwrap();
                world.run(SECOND);
                let found = world.found[&(asker, id)].clone().expect("a holder");
                assert_eq!(
                    (found.holder, found.leased, found.name),
                    (peer(index), lease.leased, name(index))
                );
                assert!(found.remaining > SECOND * 600, "{:?}", found.remaining);
            }
        }
        let free = addr_key(World::grid(), world.range.nth(250));
        let id = world.look_up(0, free).unwrap();
        world.run(SECOND * 5);
        assert_eq!(world.found[&(0, id)], None);
        world
    });
}

#[test]
fn two_running_copies_of_one_node_are_told_apart_and_one_goes_on() {
    each(20, |seed| {
        let nodes = 4 + usize::try_from(seed).unwrap() % 8;
        let mut world = grid(seed, nodes, range("10.0.0.0/24"), Conditions::default());
        expect_all_hold(&mut world, SECOND * 10);
        let copied = 1 + usize::try_from(seed).unwrap() % (nodes - 1);
        let addr = world.nodes[copied].addr().unwrap();
        let copy = world.add_copy(copied);
        world.start(copy);
        world.run(SECOND * 20);
        let original = &world.nodes[copied];
        assert_eq!(original.addr(), Some(addr), "{:?}", original.told);
        assert_eq!(world.nodes[copy].told, Told::Lost(LostReason::Cloned));
        assert!(world.nodes[copy].lease().is_none());
        world
    });
}

#[test]
fn an_address_given_back_is_free_at_once() {
    each(10, |seed| {
        let mut world = grid(seed, 6, range("10.0.0.0/24"), Conditions::default());
        expect_all_hold(&mut world, SECOND * 10);
        let addr = world.nodes[3].addr().unwrap();
        world.leave(3);
        world.run(SECOND);
        world.kill(3, true);
        world.acquire(4, Some(addr));
        world.run(SECOND * 2);
        assert_eq!(world.nodes[4].addr(), Some(addr), "{:?}", world.nodes[4].told);
        world
    });
}

#[test]
fn an_address_given_back_soon_after_a_restart_is_free_at_once() {
    each(6, |seed| {
        let mut world = grid(seed, 6, range("10.0.0.0/24"), Conditions::default());
        expect_all_hold(&mut world, SECOND * 10);
        let addr = world.nodes[3].addr();
        world.kill(3, false);
        world.run(SECOND);
        world.start(3);
        expect_all_hold(&mut world, SECOND * 5);
        world.leave(3);
        world.run(SECOND);
        world.kill(3, true);
        world.acquire(4, addr);
        world.run(SECOND * 2);
        assert_eq!(world.nodes[4].addr(), addr, "{:?}", world.nodes[4].told);
        world
    });
}

#[test]
fn the_same_seed_gives_the_same_trace_twice() {
    let run = |seed| {
        let mut world = grid(seed, 7, range("10.0.0.0/28"), Conditions::rough());
        world.run(SECOND * 30);
        world.kill(3, false);
        world.run(SECOND * 30);
        world.start(3);
        world.run(SECOND * 600);
        world.trace()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).2, run(2).2);
}
