//! Everybody at once: as many claimers as there is room for, at one moment, and then more than there is room for.
//!
//! The grid is up and quiet; then all nodes claim an address at the same time. All have one within a time that does
//! not grow with their number, and no two the same. In the range that fits closely, newcomers then claim what is left,
//! all at once: when 99 of 100 addresses are taken and when all are, each is served, or told that the range is full;
//! and an address that is given back goes to one of those that were refused.

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_dht_proto::{Failure, Register};
use aerie_types::VirtualRange;
use rand::RngExt;

use super::{SECOND, range};
use crate::conditions::Conditions;
use crate::node::Told;
use crate::overlay::Routing;
use crate::world::World;

pub(super) const ABOUT_24: &str =
    "250 claimers at once on a /24, then more until it is full, then more than it can hold";
pub(super) const ABOUT_16: &str = "10,000 claimers at once on a /16";

/// Newcomers beyond what the range holds.
const TOO_MANY: u32 = 8;

/// How long the claims of a herd may take.
const SERVED_WITHIN: Duration = Duration::from_secs(120);

/// How long a pass through a full range may take, with its repetition.
const REFUSED_WITHIN: Duration = Duration::from_secs(15 * 60);

/// Fills the smallest range that holds all nodes.
pub(super) fn play_24(seed: u64, nodes: usize, routing: Routing) -> World {
    let prefix = (8..30).rev().find(|prefix| {
        let fitting = range(&format!("10.0.0.0/{prefix}"));
        fitting.capacity() as usize >= nodes
    });
    let fitting = range(&format!("10.0.0.0/{}", prefix.unwrap_or(8)));
    let mut world = herd(seed, nodes, fitting, routing);
    let left = world
        .range
        .capacity()
        .saturating_sub(u32::try_from(nodes).unwrap_or(u32::MAX));
    let before = world.nodes.len();
    for _ in 0..left + TOO_MANY {
        let index = world.add();
        world.tally.joins += 1;
        world.start(index);
    }
    world.run(SECOND * 20);
    for index in before..world.nodes.len() {
        world.acquire(index, None);
    }
    world.tally.contested += 1;
    // A pass that met a split vote begins again, so that a refusal is certain.
    let end = world.now() + REFUSED_WITHIN;
    let decided = |world: &mut World| {
        let held = world.nodes.iter().filter(|node| holds(&node.told)).count();
        let full = world.nodes.iter().filter(|node| refused(&node.told)).count();
        held == world.range.capacity() as usize && full == TOO_MANY as usize
    };
    if !world.run_until_seen(end, SECOND, decided) {
        stuck(&mut world, "neither served nor told that the range is full");
    }
    unique(&mut world);
    let leaver = world.rng().random_range(1..nodes);
    world.leave(leaver);
    let end = world.now() + SECOND * 180;
    let taken =
        |world: &mut World| world.nodes.iter().filter(|node| refused(&node.told)).count() < TOO_MANY as usize;
    if !world.run_until_seen(end, SECOND, taken) {
        world
            .checker
            .violated("nobody took the address that was given back".to_owned());
    }
    world
}

pub(super) fn play_16(seed: u64, nodes: usize, routing: Routing) -> World {
    let mut world = herd(seed, nodes, range("10.0.0.0/16"), routing);
    unique(&mut world);
    world
}

fn herd(seed: u64, nodes: usize, fitting: VirtualRange, routing: Routing) -> World {
    let mut world = World::new(seed, fitting, Conditions::default()).with_routing(routing);
    for _ in 0..nodes {
        let index = world.add();
        world.tally.joins += 1;
        world.start(index);
        world.run(Duration::from_millis(10));
    }
    let end = world.now() + SECOND * 120;
    let ready = |world: &mut World| {
        let mut cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
        cores.all(Register::is_ready)
    };
    if !world.run_until_seen(end, SECOND, ready) {
        world
            .checker
            .violated("not everybody is ready in 120 s".to_owned());
    }
    for index in 0..nodes {
        world.acquire(index, None);
    }
    world.tally.contested += 1;
    let end = world.now() + SERVED_WITHIN;
    let served = |world: &mut World| world.nodes.iter().all(|node| holds(&node.told));
    if !world.run_until_seen(end, SECOND / 2, served) {
        stuck(&mut world, "not served");
    }
    world
}

fn holds(told: &Told) -> bool {
    matches!(told, Told::Held(_))
}

fn refused(told: &Told) -> bool {
    matches!(told, Told::Failed(Failure::Full { .. }))
}

fn stuck(world: &mut World, how: &str) {
    let open = world.nodes.iter().filter(|node| !holds(&node.told));
    let open: Vec<_> = open.map(|node| (node.index, node.told.clone())).collect();
    let (now, count) = (world.now(), open.len());
    let first = open.first();
    world.checker.violated(format!(
        "at {now:?} {count} nodes are {how}; the first of them: {first:?}"
    ));
}

fn unique(world: &mut World) {
    let addrs = world.nodes.iter().filter_map(|node| node.addr());
    let addrs: Vec<_> = addrs.collect();
    let different: BTreeSet<_> = addrs.iter().collect();
    let twice = addrs.len() - different.len();
    if twice > 0 {
        world
            .checker
            .violated(format!("{twice} addresses are held twice"));
    }
}
