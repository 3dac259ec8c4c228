//! Strict mode: named witnesses, a majority of them, and nobody else.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::time::Duration;

use aerie_dht_proto::{Config, addr_key};
use aerie_sim::{Conditions, Told, World, name, peer};
use aerie_types::{PeerId, VirtualAddr};
use rand::RngExt;

const SECOND: Duration = Duration::from_secs(1);
const WITNESSES: usize = 3;

/// The first three nodes are the witnesses, and each is a founder on its first start.
fn strict(index: usize, config: &mut Config) {
    config.witnesses = (0..WITNESSES).map(name).collect();
    config.founder = index < WITNESSES;
}

fn grid(seed: u64, nodes: usize, conditions: Conditions) -> World {
    let mut world = World::new(seed, "10.0.0.0/24".parse().unwrap(), conditions);
    world.setup = strict;
    for index in 0..nodes {
        world.add();
        world.start(index);
        world.acquire(index, None);
    }
    world
}

fn holds(world: &World, index: usize) -> bool {
    matches!(world.nodes[index].told, Told::Held(_))
}

fn expect_all(world: &mut World, within: Duration) {
    let all = |world: &World| {
        (0..world.nodes.len()).all(|index| !world.nodes[index].is_up() || holds(world, index))
    };
    let end = world.now() + within;
    let told = |world: &World| {
        world
            .nodes
            .iter()
            .map(|node| node.told.clone())
            .collect::<Vec<_>>()
    };
    assert!(
        world.run_until(end, all),
        "{:?}: {:#?}",
        world.trace(),
        told(world)
    );
    assert!(
        world.checker.violations().is_empty(),
        "{:?}: {:#?}",
        world.trace(),
        world.checker.violations()
    );
}

fn look_up(world: &mut World, index: usize, addr: VirtualAddr) -> Option<PeerId> {
    let id = world.look_up(index, addr_key(World::grid(), addr)).unwrap();
    let end = world.now() + SECOND * 20;
    assert!(world.run_until(end, |world| world.found.contains_key(&(index, id))));
    world.found[&(index, id)].as_ref().map(|found| found.holder)
}

#[test]
fn only_the_named_witnesses_sign_and_everybody_finds_what_they_lease() {
    for seed in 0..3 {
        let mut world = grid(seed, 60, Conditions::default());
        expect_all(&mut world, SECOND * 20);
        let named: Vec<_> = (0..WITNESSES).map(peer).collect();
        for index in 0..60 {
            let lease = world.nodes[index].lease().unwrap();
            let signers = lease.certificate.receipts.iter().map(|receipt| receipt.witness);
            assert!(signers.clone().count() >= 2 && signers.clone().all(|signer| named.contains(&signer)));
            assert_eq!(
                look_up(&mut world, (index * 7 + 1) % 60, lease.leased.addr().unwrap()),
                Some(peer(index))
            );
        }
    }
}

#[test]
fn the_side_with_a_minority_of_the_witnesses_leases_nothing_and_says_whom_it_misses() {
    for seed in 0..10 {
        let mut world = grid(seed, 20, Conditions::default());
        expect_all(&mut world, SECOND * 20);
        world.partition(|index| usize::from(index >= 2));
        world.run(SECOND * 30);
        let fixed = world.range.nth(3);
        for index in [1, 5] {
            world.leave(index);
            world.acquire(index, Some(fixed));
        }
        world.run(SECOND * 60);
        assert!(
            holds(&world, 1),
            "seed {seed}: two of three are on this side: {:?}",
            world.nodes[1].told
        );
        let Told::Waiting(reason) = &world.nodes[5].told else {
            panic!("seed {seed}: {:?}", world.nodes[5].told);
        };
        assert!(
            reason.contains("2 of the named witnesses have to grant each address"),
            "{reason}"
        );
        assert!(reason.contains("not connected: n0, n1"), "{reason}");
        world.partition(|_| 0);
        world.run(SECOND * 60);
        assert!(
            holds(&world, 1) && !holds(&world, 5),
            "seed {seed}: {:?}",
            world.nodes[5].told
        );
        assert!(world.nodes.iter().all(|node| node.conflicts == 0), "seed {seed}");
        assert!(world.checker.violations().is_empty(), "seed {seed}");
    }
}

#[test]
fn a_lease_given_back_is_not_found_any_more_by_anybody() {
    for seed in 0..30 {
        let rough = Conditions {
            delay: (Duration::from_millis(1), Duration::from_millis(300)),
            ..Conditions::default()
        };
        let mut world = grid(seed, 12, rough);
        expect_all(&mut world, SECOND * 30);
        world.run(SECOND * 5);
        let addr = world.nodes[7].addr().unwrap();
        world.leave(7);
        world.run(SECOND * 3);
        for index in [0, 4, 9] {
            assert_eq!(look_up(&mut world, index, addr), None, "seed {seed}");
        }
        world.acquire(8, Some(addr));
        expect_all_but(&mut world, 7, SECOND * 20);
        for index in [2, 5, 11] {
            assert_eq!(look_up(&mut world, index, addr), Some(peer(8)), "seed {seed}");
        }
    }
}

fn expect_all_but(world: &mut World, index: usize, within: Duration) {
    let all = |world: &World| (0..world.nodes.len()).all(|other| other == index || holds(world, other));
    let end = world.now() + within;
    assert!(world.run_until(end, all), "{:?}", world.trace());
}

#[test]
fn two_look_ups_one_after_the_other_never_go_back_though_a_witness_has_missed_the_lease() {
    for seed in 0..30 {
        let mut world = grid(seed, 12, Conditions::default());
        expect_all(&mut world, SECOND * 30);
        world.kill(1, false);
        let addr = world.range.nth(77);
        world.leave(6);
        world.acquire(6, Some(addr));
        let end = world.now() + SECOND * 30;
        assert!(world.run_until(end, |world| holds(world, 6)), "seed {seed}");
        world.start(1);
        world.run(SECOND * 8);
        // Of the two that know the lease, now one or the other is away.
        let away = [0, 2][usize::try_from(seed % 2).unwrap()];
        world.kill(away, false);
        world.run(SECOND * 3);
        for index in [3, 4, 1, 10] {
            assert_eq!(look_up(&mut world, index, addr), Some(peer(6)), "seed {seed}");
        }
    }
}

#[test]
fn contested_addresses_have_one_holder_whatever_happens_to_the_witnesses() {
    for seed in 0..30 {
        let rough = Conditions {
            loss: 0.05,
            duplicate: 0.05,
            delay: (Duration::from_millis(1), Duration::from_millis(400)),
            skew: SECOND * 60,
            drift_ppm: 10_000,
            ..Conditions::default()
        };
        let mut world = grid(seed, 14, rough);
        world.run(SECOND * 40);
        for _ in 0..12 {
            let contested = world.range.nth(world.nodes.len() as u32 + 40);
            let witness = world.rng().random_range(0..WITNESSES);
            // One witness at a time loses its store: as many as the mode bears.
            let others_whole = (0..WITNESSES).all(|other| world.nodes[other].is_up());
            let amnesia = others_whole && world.rng().random_bool(0.3);
            world.kill(witness, amnesia);
            for _ in 0..3 {
                let index = world.rng().random_range(WITNESSES..14);
                world.acquire(index, Some(contested));
            }
            let pause = world.rng().random_range(100..20_000);
            world.run(Duration::from_millis(pause));
            world.setup = |index, config| {
                strict(index, config);
                config.founder = false;
            };
            world.start(witness);
            // The next loses its store only when this one has its state again.
            let end = world.now() + SECOND * 120;
            world.run_until(end, |world| {
                world.nodes[witness]
                    .core
                    .as_ref()
                    .is_some_and(|core| core.is_ready())
            });
        }
        assert!(
            world.checker.violations().is_empty(),
            "{:?}: {:#?}",
            world.trace(),
            world.checker.violations()
        );
    }
}
