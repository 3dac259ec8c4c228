//! What claims and look-ups cost as the grid grows: whole registers over Kademlia, on a virtual clock.
//!
//! Nodes join, come to rest, and then do one thing after another, so that what is sent meanwhile is what that costs:
//! claims of any address, look-ups of held ones, and claims of one address by [`CLAIMANTS`] nodes at once.

use std::time::Duration;

use aerie_dht_proto::Register;
use rand::RngExt;

use crate::conditions::Conditions;
use crate::kad::Spread;
use crate::node::Told;
use crate::overlay::Routing;
use crate::scenario::range;
use crate::world::World;

/// The sizes measured.
pub const SIZES: [usize; 4] = [50, 200, 1000, 10_000];

/// From this size on, what a look-up costs may grow as the logarithm of the size does and no faster. Smaller grids are
/// fully connected.
pub const FROM: usize = 200;

/// Nodes that claim one address at once.
pub const CLAIMANTS: usize = 16;

/// How many claims of one address by several are measured.
const CONTESTS: usize = 10;

const SECOND: Duration = Duration::from_secs(1);

/// From one node's start to the next one's.
const JOIN_EVERY: Duration = Duration::from_millis(10);

/// How long one thing may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What some like operations cost each.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// How many were measured.
    pub count: usize,
    /// How many came to an end in time.
    pub ended: usize,
    /// Messages of the register.
    pub register: Spread,
    /// Messages of Kademlia.
    pub kademlia: Spread,
    /// The same together.
    pub messages: Spread,
    /// The longest chain of questions of which each was prompted by the answer before: Kademlia's, and the register's.
    pub rounds: Spread,
    /// Time in milliseconds.
    pub took_ms: Spread,
}

/// A grid of one size, measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// How many nodes.
    pub nodes: usize,
    /// A look-up of a held address.
    pub look_up: Cost,
    /// A claim of any address.
    pub claim: Cost,
    /// A claim of one address by several: until one holds it, and what all of them send.
    pub contest: Cost,
}

#[derive(Debug, Clone, Copy)]
struct One {
    ended: bool,
    register: u64,
    kademlia: u64,
    rounds: u32,
    took: Duration,
}

/// Measures a grid of one size, with so many claims and as many look-ups. `progress` is told what begins: the largest
/// grids take an hour.
pub fn measure(nodes: usize, operations: usize, seed: u64, progress: &mut dyn FnMut(&str)) -> Point {
    let conditions = Conditions::default();
    let mut world = World::new(seed, range("10.0.0.0/16"), conditions).with_routing(Routing::Kademlia);
    for joined in 0..nodes {
        if joined % 1000 == 0 {
            progress(&format!("{joined} of {nodes} have joined"));
        }
        let index = world.add();
        world.start(index);
        world.run(JOIN_EVERY);
    }
    progress("they come to rest");
    let end = world.now() + 2 * LIMIT;
    world.run_until_seen(end, SECOND, |world| {
        let mut cores = world.nodes.iter().filter_map(|node| node.core.as_ref());
        cores.all(Register::is_ready)
    });
    world.run(LIMIT);
    let claimants: Vec<usize> = (0..operations).map(|at| at * nodes / operations.max(1)).collect();
    progress("claims");
    let claims = claimants.iter().map(|index| claim(&mut world, *index));
    let claims: Vec<_> = claims.collect();
    world.run(LIMIT);
    progress("look-ups");
    let look_ups: Vec<_> = claimants
        .iter()
        .map(|holder| look_up(&mut world, *holder))
        .collect();
    progress("contests");
    let contests = (0..CONTESTS).map(|at| contest(&mut world, at));
    let contests: Vec<_> = contests.collect();
    Point {
        nodes,
        look_up: Cost::of(&look_ups),
        claim: Cost::of(&claims),
        contest: Cost::of(&contests),
    }
}

fn claim(world: &mut World, index: usize) -> One {
    until(
        world,
        |world| world.acquire(index, None),
        |world| matches!(world.nodes[index].told, Told::Held(_)),
    )
}

fn look_up(world: &mut World, holder: usize) -> One {
    let nodes = world.nodes.len();
    let asker = (holder + world.rng().random_range(1..nodes)) % nodes;
    let Told::Held(lease) = &world.nodes[holder].told else {
        return until(world, |_| (), |_| false);
    };
    let key = lease.leased.key(World::grid());
    let mut id = None;
    let one = until(
        world,
        |world| id = world.look_up(asker, key),
        |world| {
            let asked = |(at, _): &(usize, u64)| *at == asker;
            world.found.keys().any(asked)
        },
    );
    let found = id.and_then(|id| world.found.remove(&(asker, id))).flatten();
    let right = found.is_some_and(|found| found.holder == world.peer_of(holder));
    One {
        ended: one.ended && right,
        ..one
    }
}

fn contest(world: &mut World, at: usize) -> One {
    let addr = world.range.nth(u32::try_from(60_000 + at).unwrap_or(0));
    let nodes = world.nodes.len();
    // Those that hold this address at the end of the round before hold it on, and others try the next one.
    let claimants: Vec<usize> = (0..CLAIMANTS)
        .map(|claimant| (at * CLAIMANTS + claimant) * 37 % nodes)
        .collect();
    let holds = |world: &World, index: usize| {
        let lease = world.nodes[index].lease();
        lease.is_some_and(|lease| lease.leased.addr() == Some(addr))
    };
    let won = |world: &World| claimants.iter().any(|index| holds(world, *index));
    let begin = |world: &mut World| {
        for index in &claimants {
            world.acquire(*index, Some(addr));
        }
    };
    let one = until(world, begin, won);
    world.run(LIMIT);
    one
}

/// Begins something and sees what is sent until it is done.
fn until(world: &mut World, begin: impl FnOnce(&mut World), done: impl Fn(&World) -> bool) -> One {
    let (before, begun) = (world.tally.clone(), world.now());
    world.located.clear();
    begin(world);
    let ended = world.run_until(begun + LIMIT, done);
    let rounds = world.located.iter().map(|cost| cost.rounds).max().unwrap_or(0);
    One {
        ended,
        register: world.tally.messages - before.messages,
        kademlia: world.tally.finds - before.finds,
        rounds: rounds + 1,
        took: world.now() - begun,
    }
}

impl Cost {
    fn of(all: &[One]) -> Self {
        let spread = |figure: &dyn Fn(&One) -> f64| Spread::of(all.iter().map(figure).collect());
        #[expect(clippy::cast_precision_loss, reason = "thousands of messages")]
        let number = |count: u64| count as f64;
        Self {
            count: all.len(),
            ended: all.iter().filter(|one| one.ended).count(),
            register: spread(&|one| number(one.register)),
            kademlia: spread(&|one| number(one.kademlia)),
            messages: spread(&|one| number(one.register + one.kademlia)),
            rounds: spread(&|one| one.rounds.into()),
            took_ms: spread(&|one| one.took.as_secs_f64() * 1e3),
        }
    }
}

/// Where the messages of a look-up grow faster than the logarithm of the size, and what did not come to an end.
#[must_use]
pub fn excesses(points: &[Point]) -> Vec<String> {
    let mut excesses = Vec::new();
    for point in points {
        let all = [
            ("look-ups", point.look_up),
            ("claims", point.claim),
            ("contests", point.contest),
        ];
        for (what, cost) in all {
            if cost.ended < cost.count {
                let open = cost.count - cost.ended;
                excesses.push(format!("at {} nodes {open} {what} failed", point.nodes));
            }
        }
    }
    let mut measured = points.iter().filter(|point| point.nodes >= FROM);
    let Some(first) = measured.next() else {
        return excesses;
    };
    for point in measured {
        #[expect(clippy::cast_precision_loss, reason = "thousands of nodes")]
        let log = |nodes: usize| (nodes as f64).ln();
        let allowed = log(point.nodes) / log(first.nodes);
        let grown = point.look_up.messages.mean / first.look_up.messages.mean;
        // What is not a number has not been measured.
        if grown.is_nan() || grown > allowed {
            excesses.push(format!(
                "from {} to {} nodes the messages of a look-up grew {grown:.2} times, log N {allowed:.2} times",
                first.nodes, point.nodes
            ));
        }
    }
    excesses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(nodes: usize, messages: f64) -> Point {
        let mut point = Point {
            nodes,
            ..Point::default()
        };
        point.look_up.messages.mean = messages;
        point
    }

    #[test]
    fn growth_like_the_logarithm_passes_and_faster_growth_does_not() {
        #[expect(clippy::cast_precision_loss, reason = "thousands of nodes")]
        let log = |nodes: usize| point(nodes, 5.0 * (nodes as f64).ln());
        assert!(excesses(&[log(200), log(1000), log(10_000)]).is_empty());
        assert_eq!(excesses(&[point(200, 20.0), point(1000, 30.0)]).len(), 1);
        assert!(excesses(&[point(50, 1.0), point(200, 30.0), point(1000, 30.0)]).is_empty());
        assert_eq!(excesses(&[point(200, 0.0), point(1000, 0.0)]).len(), 1);
    }

    #[test]
    fn what_does_not_come_to_an_end_is_told() {
        let mut failing = point(50, 1.0);
        failing.claim = Cost {
            count: 3,
            ended: 2,
            ..Cost::default()
        };
        assert_eq!(excesses(&[failing]), ["at 50 nodes 1 claims failed"]);
    }

    #[test]
    fn a_grid_with_room_for_everybody_is_asked_by_the_register_alone_and_a_larger_one_by_kademlia_too() {
        let small = measure(20, 4, 1, &mut |_| {});
        assert_eq!(small.look_up.ended, 4, "{small:?}");
        assert_eq!(small.look_up.kademlia.p95, 0.0);
        // Who is a witness of the address itself asks nobody.
        assert!(small.look_up.register.p95 >= 2.0, "{small:?}");
        let large = measure(90, 4, 1, &mut |_| {});
        assert_eq!(large.claim.ended, 4, "{large:?}");
        assert!(large.look_up.kademlia.p95 >= 20.0, "{large:?}");
        assert!(large.look_up.rounds.p95 >= 2.0, "{large:?}");
    }
}
