//! Two halves that are torn, take the same addresses, and heal.
//!
//! Pairs of nodes, one in either half, claim the same fixed address; others claim any address of a small part of the
//! range, in which they collide with those of the other half. Within 30 s of the healing no address has two holders,
//! and each of those that asked for any address has a new one within 10 s of losing the old.

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_types::{AddressPool, VirtualRange};
use rand::RngExt;

use super::{SECOND, range};
use crate::conditions::Conditions;
use crate::node::Told;
use crate::overlay::Routing;
use crate::world::World;

pub(super) const ABOUT: &str =
    "two torn halves take the same addresses, heal, agree within 30 s, and losers move within 10 s";

/// From the healing to the agreement.
const AGREED: Duration = Duration::from_secs(30);

/// From losing an address to having another.
const MOVED: Duration = Duration::from_secs(10);

/// Fixed addresses that both halves take, and small ranges in which they collide, in a grid of 1000 nodes.
const PAIRS: usize = 20;
const PARTS: usize = 20;

pub(super) fn play(seed: u64, nodes: usize, routing: Routing) -> World {
    let conditions = Conditions {
        delay: (Duration::from_millis(2), Duration::from_millis(100)),
        skew: SECOND * 60,
        drift_ppm: 7500,
        detection: SECOND * 2,
        ..Conditions::default()
    };
    let mut world = World::new(seed, range("10.0.0.0/16"), conditions).with_routing(routing);
    let pairs = PAIRS.min(nodes / 16);
    let parts = PARTS.min(nodes / 16);
    // Three of either half draw from fourteen addresses: most parts see a collision, and all find room.
    for part in 0..parts {
        for place in 0..6 {
            world
                .pools
                .insert(2 * pairs + 6 * part + place, only(world.range, part));
        }
    }
    for _ in 0..nodes {
        let index = world.add();
        world.tally.joins += 1;
        world.start(index);
        world.run(Duration::from_millis(20));
    }
    world.run(SECOND * 20);
    world.partition(|index| index % 2);
    let torn = world.rng().random_range(5..15);
    world.run(SECOND * torn);
    for pair in 0..pairs {
        let addr = world.range.nth(u32::try_from(60_000 + pair).unwrap_or(0));
        for index in [2 * pair, 2 * pair + 1] {
            world.acquire(index, Some(addr));
            let pause = world.rng().random_range(0..500);
            world.run(Duration::from_millis(pause));
        }
        world.tally.contested += 1;
    }
    for index in 2 * pairs..2 * pairs + 6 * parts {
        world.acquire(index, None);
    }
    world.run(SECOND * 30);
    let claimants = 2 * pairs + 6 * parts;
    for index in 0..claimants {
        if !matches!(world.nodes[index].told, Told::Held(_)) {
            let told = format!(
                "node {index} has no address while the grid is torn: {:?}",
                world.nodes[index].told
            );
            world.checker.violated(told);
        }
    }
    world.partition(|_| 0);
    let healed = world.now();
    let mut open = doubles(&world);
    let agreed = |world: &mut World| {
        let still = doubles(world);
        let took = u32::try_from((world.now() - healed).as_millis()).unwrap_or(u32::MAX);
        let settled = open.keys().filter(|addr| !still.contains_key(*addr)).count();
        world.tally.agreements.extend(std::iter::repeat_n(took, settled));
        open = still;
        open.is_empty()
    };
    if !world.run_until_seen(healed + AGREED, SECOND / 10, agreed) {
        let doubles = doubles(&world);
        world
            .checker
            .violated(format!("30 s after the healing two nodes each hold {doubles:?}"));
    }
    world.run(healed + AGREED + MOVED - world.now());
    for index in 0..claimants {
        let node = &world.nodes[index];
        let fixed = index < 2 * pairs;
        let took = node.moved;
        let settled = match &node.told {
            Told::Held(_) => took.is_none_or(|took| took <= MOVED),
            Told::Failed(_) => fixed && node.conflicts > 0,
            _ => false,
        };
        if !settled {
            let what = format!(
                "node {index} was not readdressed within 10 s: {took:?}, {:?}",
                node.told
            );
            world.checker.violated(what);
        }
    }
    for pair in 0..pairs {
        let holds = |index: usize| world.nodes[index].lease().is_some();
        if holds(2 * pair) == holds(2 * pair + 1) {
            let what = format!(
                "of nodes {} and {} not exactly one keeps the address",
                2 * pair,
                2 * pair + 1
            );
            world.checker.violated(what);
        }
    }
    world
}

/// The range with everything reserved but sixteen addresses.
#[expect(clippy::expect_used, reason = "what is written here is a part of a /16")]
fn only(range: VirtualRange, part: usize) -> AddressPool {
    let small: ipnet::Ipv4Net = format!("10.0.{part}.0/28").parse().expect("a network");
    let sibling = |len: u8| {
        let bits = u32::from(small.network()) ^ (1 << (32 - len));
        ipnet::Ipv4Net::new(bits.into(), len)
            .expect("a length of at most 28")
            .trunc()
    };
    let rest = (range.prefix_len() + 1..=28).map(sibling).collect();
    AddressPool::new(range, rest, Vec::new()).expect("parts of the range")
}

/// Addresses with several holders.
fn doubles(world: &World) -> BTreeMap<String, Vec<usize>> {
    let mut holders: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for node in &world.nodes {
        if let Some(lease) = node.lease() {
            holders
                .entry(lease.leased.to_string())
                .or_default()
                .push(node.index);
        }
    }
    holders.retain(|_, holders| holders.len() > 1);
    holders
}
