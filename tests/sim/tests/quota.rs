//! How many addresses one member may have.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::time::Duration;

use aerie_dht_proto::addr_key;
use aerie_dht_proto::limits::MAX_LEASES_PER_HOLDER;
use aerie_sim::{Conditions, Told, World};
use aerie_types::VirtualAddr;

const SECOND: Duration = Duration::from_secs(1);

fn holds(world: &World, index: usize, addr: VirtualAddr) -> bool {
    matches!(&world.nodes[index].told, Told::Held(lease) if lease.leased == addr.into())
}

/// The member forgets that it holds anything, and asks for another address.
fn move_to(world: &mut World, index: usize, addr: VirtualAddr) -> bool {
    world.kill(index, true);
    world.acquire(index, Some(addr));
    world.start(index);
    let end = world.now() + SECOND * 60;
    world.run_until(end, |world| holds(world, index, addr))
}

#[test]
fn a_member_that_leaves_its_addresses_behind_gets_no_more_than_a_few_until_they_end() {
    for seed in 0..5 {
        let mut world = World::new(seed, "10.0.0.0/24".parse().unwrap(), Conditions::default());
        let collector = 11;
        for index in 0..=collector {
            world.add();
            world.start(index);
            world.acquire(index, None);
        }
        let end = world.now() + SECOND * 30;
        let all = |world: &World| world.nodes.iter().all(|node| matches!(node.told, Told::Held(_)));
        assert!(world.run_until(end, all), "seed {seed}");

        let free: Vec<_> = (0..253).map(|nth| world.range.nth(nth)).collect();
        let taken: Vec<_> = world.nodes.iter().map(|node| node.addr().unwrap()).collect();
        let mut free = free.into_iter().filter(|addr| !taken.contains(addr));
        let mut collected = vec![taken[collector]];
        let refused = loop {
            let addr = free.next().unwrap();
            if !move_to(&mut world, collector, addr) {
                break addr;
            }
            collected.push(addr);
        };
        assert_eq!(collected.len(), MAX_LEASES_PER_HOLDER, "seed {seed}");
        let Told::Waiting(reason) = &world.nodes[collector].told else {
            panic!("seed {seed}: {:?}", world.nodes[collector].told);
        };
        assert!(
            reason.starts_with("this node has leased 4 addresses lately"),
            "{reason}"
        );
        let id = world.look_up(0, addr_key(World::grid(), refused)).unwrap();
        world.run(SECOND * 5);
        assert_eq!(
            world.found.get(&(0, id)),
            Some(&None),
            "seed {seed}: nobody holds it"
        );

        let end = world.now() + SECOND * 4300;
        let moved = world.run_until(end, |world| holds(world, collector, refused));
        assert!(
            moved,
            "seed {seed}: when the first of them has ended it may move: {:?}",
            world.nodes[collector].told
        );
        assert!(world.checker.violations().is_empty(), "seed {seed}");
    }
}

#[test]
fn candidates_that_others_hold_do_not_use_up_what_a_name_may_have() {
    for seed in 0..5 {
        let mut world = World::new(seed, "10.0.0.0/24".parse().unwrap(), Conditions::default());
        let newcomer = 11;
        for index in 0..=newcomer {
            world.add();
            world.start(index);
            if index < newcomer {
                world.acquire(index, None);
            }
        }
        let end = world.now() + SECOND * 30;
        let others = |world: &World| (0..newcomer).all(|index| world.nodes[index].addr().is_some());
        assert!(world.run_until(end, others), "seed {seed}");

        for holder in 0..newcomer {
            let taken = world.nodes[holder].addr();
            world.acquire(newcomer, taken);
            let told = |world: &World| matches!(world.nodes[newcomer].told, Told::Failed(_));
            let end = world.now() + SECOND * 10;
            assert!(
                world.run_until(end, told),
                "seed {seed}: {:?}",
                world.nodes[newcomer].told
            );
            world.nodes[newcomer].told = Told::Nothing;
        }
        let addr = world.range.nth(200);
        world.acquire(newcomer, Some(addr));
        let end = world.now() + SECOND * 10;
        let held = world.run_until(end, |world| holds(world, newcomer, addr));
        assert!(held, "seed {seed}: {:?}", world.nodes[newcomer].told);
        assert!(world.checker.violations().is_empty(), "seed {seed}");
    }
}
