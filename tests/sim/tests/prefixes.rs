//! Prefixes: leased beside the addresses, by the same rules, to nodes that route for others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail the test"
)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use aerie_dht_proto::limits::MAX_LEASES_PER_HOLDER;
use aerie_dht_proto::{Config, Failure, Kind, LostReason, prefix_key, router_key};
use aerie_sim::{Conditions, Told, World, name, peer};
use aerie_types::{AddressPool, VirtualPrefix};
use rand::RngExt;

const SECOND: Duration = Duration::from_secs(1);
const RANGE: &str = "10.0.0.0/22";

fn pool_of(part: &str, block: u8) -> AddressPool {
    let pool = AddressPool::new(
        RANGE.parse().unwrap(),
        Vec::new(),
        vec!["10.0.3.0/28".parse().unwrap()],
    );
    pool.unwrap().with_routed(part.parse().unwrap(), block).unwrap()
}

/// Sixty blocks of four addresses.
fn pool() -> AddressPool {
    pool_of("10.0.3.0/24", 30)
}

fn routed(_: usize, config: &mut Config) {
    config.pool = pool();
}

/// Eight blocks of four addresses.
fn few(_: usize, config: &mut Config) {
    config.pool = pool_of("10.0.3.192/27", 30);
}

/// A grid whose nodes have just been started and have asked for addresses.
fn grid(seed: u64, nodes: usize, setup: fn(usize, &mut Config), conditions: Conditions) -> World {
    let mut world = World::new(seed, RANGE.parse().unwrap(), conditions);
    world.setup = setup;
    for index in 0..nodes {
        world.add();
        world.start(index);
        world.acquire(index, None);
        if index == 0 {
            world.run(SECOND);
        }
    }
    world
}

/// Whether a node has an address and, if it is to have one, a prefix.
fn served(world: &World, index: usize) -> bool {
    let node = &world.nodes[index];
    let routes = !node.routed.is_wanted() || routes(world, index);
    matches!(node.told, Told::Held(_)) && node.addr().is_some() && routes
}

fn routes(world: &World, index: usize) -> bool {
    let node = &world.nodes[index];
    matches!(node.routed.told, Told::Held(_)) && node.prefix().is_some()
}

#[track_caller]
fn expect(world: &mut World, within: Duration, what: impl Fn(&World) -> bool) {
    let end = world.now() + within;
    let seen = world.run_until(end, what);
    let told: Vec<_> = world
        .nodes
        .iter()
        .map(|node| (node.index, &node.told, &node.routed.told))
        .collect();
    assert!(seen, "{:?} after {within:?}: {told:#?}", world.trace());
    no_violation(world);
}

#[track_caller]
fn no_violation(world: &World) {
    let violations = world.checker.violations();
    assert!(violations.is_empty(), "{:?}: {violations:#?}", world.trace());
}

fn all_served(world: &World) -> bool {
    let mut up = world.nodes.iter().filter(|node| node.is_up());
    up.all(|node| served(world, node.index))
}

fn prefixes(world: &World) -> Vec<VirtualPrefix> {
    world.nodes.iter().filter_map(|node| node.prefix()).collect()
}

#[track_caller]
fn all_apart(world: &World) {
    let held = prefixes(world);
    for (place, one) in held.iter().enumerate() {
        assert!(pool().leases_block(*one), "{one}");
        for other in &held[place + 1..] {
            assert!(!one.overlaps(other), "{:?}: {one} and {other}", world.trace());
        }
        for addr in world.nodes.iter().filter_map(|node| node.addr()) {
            assert!(!one.contains(addr), "{:?}: {addr} in {one}", world.trace());
        }
    }
}

#[test]
fn many_that_claim_prefixes_at_once_each_get_one_and_no_two_overlap() {
    for seed in 0..6 {
        let mut world = grid(seed, 30, routed, Conditions::rough());
        for index in 0..30 {
            world.acquire_prefix(index, None);
        }
        expect(&mut world, SECOND * 180, all_served);
        assert_eq!(prefixes(&world).len(), 30);
        all_apart(&world);
        // Through two renewals.
        let before = prefixes(&world);
        world.run(SECOND * 720);
        assert_eq!(prefixes(&world), before);
        no_violation(&world);
    }
}

#[test]
fn routers_beyond_the_routed_part_are_told_so_and_one_gets_what_another_gives_back() {
    for seed in 0..4 {
        let mut world = grid(seed, 10, few, Conditions::default());
        for index in 0..10 {
            world.acquire_prefix(index, None);
        }
        world.run(SECOND * 60);
        let full = |world: &World| {
            let told = world.nodes.iter().map(|node| &node.routed.told);
            told.filter(|told| matches!(told, Told::Failed(Failure::NoPrefixFree { .. })))
                .count()
        };
        assert_eq!(
            (prefixes(&world).len(), full(&world)),
            (8, 2),
            "{:?}",
            world.trace()
        );
        let unlucky = (0..10).find(|index| !routes(&world, *index)).unwrap();
        let Told::Failed(failure) = &world.nodes[unlucky].routed.told else {
            panic!("{:?}", world.nodes[unlucky].routed.told);
        };
        let said = failure.to_string();
        assert!(
            said.starts_with("none of the /30 of 10.0.3.192/27 is free (8 tried)"),
            "{said}"
        );
        assert!(world.nodes.iter().all(|node| node.addr().is_some()));
        let lucky = (1..10).find(|index| routes(&world, *index)).unwrap();
        world.leave(lucky);
        world.run(SECOND);
        world.kill(lucky, true);
        expect(&mut world, SECOND * 90, |world| prefixes(world).len() == 8);
    }
}

#[test]
fn eight_that_race_for_one_prefix_give_one_holder_and_seven_refusals() {
    for seed in 0..8 {
        let mut world = grid(seed, 12, routed, Conditions::default());
        expect(&mut world, SECOND * 30, all_served);
        let fixed = pool().block(7);
        for index in 1..9 {
            world.acquire_prefix(index, fixed);
        }
        world.run(SECOND * 60);
        let taken = |index: &usize| {
            matches!(
                world.nodes[*index].routed.told,
                Told::Failed(Failure::FixedTaken { .. })
            )
        };
        let holders = (1..9).filter(|index| routes(&world, *index)).count();
        assert_eq!((holders, (1..9).filter(taken).count()), (1, 7), "seed {seed}");
        assert!(world.nodes.iter().all(|node| node.addr().is_some()));
        no_violation(&world);
    }
}

#[test]
fn after_a_partition_the_losers_of_prefixes_take_others_and_keep_their_addresses() {
    let conflicts = Cell::new(0);
    for seed in 0..4 {
        let nodes = 40;
        let mut world = grid(seed, nodes, few, Conditions::default());
        expect(&mut world, SECOND * 60, all_served);
        world.run(SECOND * 5);
        world.partition(|index| index % 2);
        world.run(SECOND * 5);
        // Others in each run: where the candidates of a node point does not follow from the seed.
        let first = 8 * usize::try_from(seed).unwrap();
        let routers = first..first + 8;
        for index in routers.clone() {
            world.acquire_prefix(index, None);
        }
        let end = world.now() + SECOND * 60;
        let settled = |world: &World| routers.clone().all(|index| served(world, index));
        assert!(
            world.run_until(end, settled),
            "either side has enough: seed {seed}"
        );
        let addrs: Vec<_> = world.nodes.iter().map(|node| node.addr()).collect();
        world.partition(|_| 0);
        let healed = |world: &World| {
            let apart: BTreeSet<_> = prefixes(world).into_iter().collect();
            apart.len() == 8 && settled(world)
        };
        expect(&mut world, SECOND * 60, healed);
        for index in routers.clone() {
            let node = &world.nodes[index];
            conflicts.set(conflicts.get() + node.routed.conflicts);
            assert_eq!((node.addr(), node.conflicts), (addrs[index], 0), "seed {seed}");
            if let Some(moved) = node.routed.moved {
                assert!(moved < SECOND * 20, "seed {seed}: node {index} took {moved:?}");
            }
        }
        world.run(SECOND * 400);
        assert!(settled(&world) && healed(&world), "seed {seed}");
        all_apart(&world);
        no_violation(&world);
    }
    assert!(conflicts.get() > 3, "{} conflicts", conflicts.get());
}

#[test]
fn a_killed_router_has_its_prefix_back_within_five_seconds_of_its_restart() {
    for seed in 0..10 {
        let nodes = 2 + usize::try_from(seed).unwrap();
        let mut world = grid(seed, nodes, routed, Conditions::default());
        for index in 0..nodes {
            world.acquire_prefix(index, None);
        }
        expect(&mut world, SECOND * 20, all_served);
        let victim = world.rng().random_range(0..nodes);
        let before = (world.nodes[victim].addr(), world.nodes[victim].prefix());
        world.kill(victim, false);
        let pause = world.rng().random_range(0..10_000);
        world.run(Duration::from_millis(pause));
        world.start(victim);
        expect(&mut world, SECOND * 5, all_served);
        let after = (world.nodes[victim].addr(), world.nodes[victim].prefix());
        assert_eq!(after, before, "seed {seed}");
    }
}

#[test]
fn a_grid_powered_off_and_on_gives_every_router_the_same_prefix_again() {
    for seed in 0..6 {
        let nodes = 3 + usize::try_from(seed).unwrap();
        let mut world = grid(seed, nodes, routed, Conditions::rough());
        for index in 0..nodes {
            world.acquire_prefix(index, None);
        }
        expect(&mut world, SECOND * 180, all_served);
        let before = prefixes(&world);
        (0..nodes).for_each(|index| world.kill(index, false));
        let off = world.rng().random_range(0..7200);
        world.run(SECOND * off);
        (0..nodes).for_each(|index| world.start(index));
        expect(&mut world, SECOND * 90, all_served);
        assert_eq!(prefixes(&world), before, "seed {seed}");
    }
}

#[test]
fn a_member_that_leaves_its_prefixes_behind_gets_no_more_than_a_few_until_they_end() {
    for seed in 0..3 {
        let collector = 11;
        let mut world = grid(seed, collector + 1, routed, Conditions::default());
        expect(&mut world, SECOND * 30, all_served);
        let mut collected = 0;
        let mut blocks = (0..60).map(|index| pool().block(index).unwrap());
        let refused = loop {
            let block = blocks.next().unwrap();
            world.kill(collector, true);
            world.start(collector);
            world.acquire_prefix(collector, Some(block));
            let end = world.now() + SECOND * 60;
            if !world.run_until(end, |world| routes(world, collector)) {
                break block;
            }
            collected += 1;
        };
        assert_eq!(collected, MAX_LEASES_PER_HOLDER, "seed {seed}");
        let Told::Waiting(reason) = &world.nodes[collector].routed.told else {
            panic!("seed {seed}: {:?}", world.nodes[collector].routed.told);
        };
        assert!(
            reason.starts_with("this node has leased 4 prefixes lately"),
            "{reason}"
        );
        assert!(
            world.nodes[collector].addr().is_some(),
            "its address is counted apart"
        );
        let id = world.look_up(0, prefix_key(World::grid(), refused)).unwrap();
        world.run(SECOND * 5);
        assert_eq!(world.found.get(&(0, id)), Some(&None), "seed {seed}");
        expect(&mut world, SECOND * 4300, |world| {
            world.nodes[collector].prefix() == Some(refused)
        });
    }
}

/// The first three nodes are the witnesses, and each is a founder on its first start.
fn strict(index: usize, config: &mut Config) {
    config.witnesses = (0..3).map(name).collect();
    config.founder = index < 3;
    config.pool = pool();
}

#[test]
fn in_strict_mode_only_the_side_of_the_named_witnesses_gets_prefixes() {
    for seed in 0..4 {
        let mut world = grid(seed, 20, strict, Conditions::default());
        for index in 3..10 {
            world.acquire_prefix(index, None);
        }
        expect(&mut world, SECOND * 30, all_served);
        let before = prefixes(&world);
        for node in &world.nodes[3..10] {
            let lease = node.leases().last().unwrap();
            let signers = lease.certificate.receipts.iter().map(|receipt| receipt.witness);
            assert!(signers.count() >= 2);
            assert_eq!(lease.leased.kind(), Kind::Prefix);
        }
        // One witness and half of the others on one side.
        world.partition(|index| usize::from(index == 0 || index % 2 == 1 && index > 2));
        world.run(SECOND * 15);
        let (minor, major) = (11, 12);
        world.acquire_prefix(minor, None);
        world.acquire_prefix(major, None);
        world.run(SECOND * 60);
        assert!(routes(&world, major) && !routes(&world, minor), "seed {seed}");
        let Told::Waiting(reason) = &world.nodes[minor].routed.told else {
            panic!("{:?}", world.nodes[minor].routed.told);
        };
        assert!(
            reason.contains("2 of the named witnesses have to grant each prefix"),
            "{reason}"
        );
        world.run(SECOND * 2400);
        assert_eq!(prefixes(&world)[..7], before, "who holds one keeps it");
        world.partition(|_| 0);
        expect(&mut world, SECOND * 60, all_served);
    }
}

#[test]
fn what_a_router_gives_back_is_free_at_once() {
    for seed in 0..6 {
        let mut world = grid(seed, 6, routed, Conditions::default());
        world.acquire_prefix(3, None);
        expect(&mut world, SECOND * 20, all_served);
        let (addr, prefix) = (world.nodes[3].addr(), world.nodes[3].prefix());
        world.leave(3);
        world.run(SECOND);
        assert_eq!((world.nodes[3].addr(), world.nodes[3].prefix()), (None, None));
        world.kill(3, true);
        world.acquire(4, addr);
        world.acquire_prefix(4, prefix);
        expect(&mut world, SECOND * 2, |world| {
            (world.nodes[4].addr(), world.nodes[4].prefix()) == (addr, prefix)
        });
    }
}

#[test]
fn a_copy_of_a_router_stops_and_the_original_keeps_both_leases() {
    for seed in 0..6 {
        let mut world = grid(seed, 6, routed, Conditions::default());
        world.acquire_prefix(2, None);
        expect(&mut world, SECOND * 20, all_served);
        let before = (world.nodes[2].addr(), world.nodes[2].prefix());
        let copy = world.add_copy(2);
        world.start(copy);
        world.run(SECOND * 20);
        let node = &world.nodes[copy];
        let cloned = Told::Lost(LostReason::Cloned);
        assert_eq!((&node.told, &node.routed.told), (&cloned, &cloned), "seed {seed}");
        assert_eq!(node.leases().count(), 0);
        let after = (world.nodes[2].addr(), world.nodes[2].prefix());
        assert_eq!(after, before, "seed {seed}");
    }
}

#[test]
fn a_prefix_is_found_by_its_key_and_by_its_routers() {
    for seed in 0..4 {
        let nodes = 4 + usize::try_from(seed).unwrap() * 6;
        let mut world = grid(seed, nodes, routed, Conditions::default());
        world.acquire_prefix(1, None);
        expect(&mut world, SECOND * 20, all_served);
        world.run(SECOND * 30);
        let prefix = world.nodes[1].prefix().unwrap();
        for key in [
            prefix_key(World::grid(), prefix),
            router_key(World::grid(), &name(1)),
        ] {
            let id = world.look_up(3, key).unwrap();
            world.run(SECOND);
            let found = world.found[&(3, id)].clone().expect("a holder");
            assert_eq!(
                (found.holder, found.leased, found.name),
                (peer(1), prefix.into(), name(1))
            );
        }
    }
}

#[test]
fn a_prefix_that_the_grid_does_not_lease_is_refused_with_the_reason() {
    let mut world = grid(1, 3, routed, Conditions::default());
    let told = |world: &mut World, prefix: &str| {
        world.acquire_prefix(1, Some(prefix.parse().unwrap()));
        match &world.nodes[1].routed.told {
            Told::Failed(failure) => failure.to_string(),
            other => panic!("{prefix}: {other:?}"),
        }
    };
    for (prefix, said) in [
        (
            "10.0.3.16/29",
            "10.0.3.16/29 is not among the /30 of 10.0.3.0/24, which are",
        ),
        (
            "10.0.2.16/30",
            "10.0.2.16/30 is not among the /30 of 10.0.3.0/24, which are",
        ),
        ("10.0.3.4/30", "a part of 10.0.3.4/30 is reserved or excluded"),
    ] {
        let message = told(&mut world, prefix);
        assert!(message.starts_with(said), "{message}");
    }
    world.acquire(2, Some(std::net::Ipv4Addr::new(10, 0, 3, 77).into()));
    let Told::Failed(failure) = &world.nodes[2].told else {
        panic!("{:?}", world.nodes[2].told);
    };
    let message = failure.to_string();
    assert!(
        message.starts_with("10.0.3.77 is not leased alone, since the grid leases the /30 of 10.0.3.0/24"),
        "{message}"
    );
    let mut plain = grid(1, 2, |_, _| {}, Conditions::default());
    plain.acquire_prefix(1, None);
    let Told::Failed(failure) = &plain.nodes[1].routed.told else {
        panic!("{:?}", plain.nodes[1].routed.told);
    };
    assert!(
        failure.to_string().starts_with("the grid leases no prefixes"),
        "{failure}"
    );
}

#[test]
fn a_claimant_whose_blocks_are_larger_than_the_grids_gets_none() {
    for seed in 0..3 {
        let odd = |index: usize, config: &mut Config| {
            config.pool = if index == 5 {
                pool_of("10.0.3.0/24", 28)
            } else {
                pool()
            };
        };
        let mut world = grid(seed, 8, odd, Conditions::default());
        for index in 1..8 {
            world.acquire_prefix(index, None);
        }
        world.run(SECOND * 60);
        assert!(!routes(&world, 5), "seed {seed}");
        let Told::Waiting(reason) = &world.nodes[5].routed.told else {
            panic!("seed {seed}: {:?}", world.nodes[5].routed.told);
        };
        assert!(reason.contains("leases no such part of it"), "{reason}");
        assert_eq!(prefixes(&world).len(), 6, "seed {seed}");
        all_apart(&world);
        no_violation(&world);
    }
}
