//! Ten of a hundred nodes change every minute, for an hour.
//!
//! Half of those that go are killed and come back with their store after one to five minutes; half leave cleanly, and
//! a newcomer takes their place. All the while addresses of others are looked up. Of a thousand look-ups 999 are
//! answered, and nobody that runs loses its lease or lets it lapse.

use std::time::Duration;

use rand::RngExt;

use super::{SECOND, range};
use crate::conditions::Conditions;
use crate::keys::peer;
use crate::node::Told;
use crate::overlay::Routing;
use crate::world::World;

pub(super) const ABOUT: &str =
    "10% of the nodes change every minute for an hour; 99.9% of look-ups are answered, no live lease is lost";

/// The part of the nodes that changes in a minute.
const A_MINUTE: f64 = 0.1;

/// Look-ups for each change.
const LOOK_UPS: usize = 4;

pub(super) fn play(seed: u64, nodes: usize, routing: Routing) -> World {
    let conditions = Conditions {
        loss: 0.005,
        duplicate: 0.005,
        delay: (Duration::from_millis(2), Duration::from_millis(150)),
        staleness: SECOND,
        skew: SECOND * 60,
        drift_ppm: 7500,
        detection: SECOND * 5,
    };
    let mut world = World::new(seed, range("10.0.0.0/16"), conditions).with_routing(routing);
    for _ in 0..nodes {
        join(&mut world);
        world.run(Duration::from_millis(20));
    }
    world.run(SECOND * 120);
    let hour = SECOND * 3600;
    #[expect(clippy::cast_precision_loss, reason = "thousands of nodes")]
    let pause = Duration::from_secs_f64(60.0 / (nodes as f64 * A_MINUTE));
    let end = world.now() + if nodes < 500 { hour / 6 } else { hour };
    let mut back: Vec<(Duration, usize)> = Vec::new();
    let mut asked: Vec<(usize, u64, usize)> = Vec::new();
    while world.now() < end {
        let (due, later) = back.iter().partition(|(at, _)| *at <= world.now());
        back = later;
        let due: Vec<(Duration, usize)> = due;
        for (_, index) in due {
            world.start(index);
        }
        let up: Vec<usize> = world
            .nodes
            .iter()
            .filter(|node| node.is_up())
            .map(|node| node.index)
            .collect();
        let some = |world: &mut World| up[world.rng().random_range(0..up.len())];
        let goes = some(&mut world);
        if world.rng().random_bool(0.5) || !world.may_go(goes) {
            world.kill(goes, false);
            let away = world.rng().random_range(60..300);
            back.push((world.now() + SECOND * away, goes));
        } else {
            world.leave(goes);
            world.run(SECOND / 5);
            world.kill(goes, true);
            world.tally.crashes -= 1;
            join(&mut world);
        }
        for _ in 0..LOOK_UPS {
            let (asker, holder) = (some(&mut world), some(&mut world));
            let settled = world.now().saturating_sub(world.nodes[holder].came) > SECOND * 30;
            let Told::Held(lease) = &world.nodes[holder].told else {
                continue;
            };
            let key = lease.leased.key(World::grid());
            let ready = world.now().saturating_sub(world.nodes[asker].came) > SECOND * 10;
            if settled
                && ready
                && let Some(id) = world.look_up(asker, key)
            {
                asked.push((asker, id, holder));
            }
        }
        world.run(pause);
        count(&mut world, &mut asked);
    }
    world.run(SECOND * 60);
    count(&mut world, &mut asked);
    check(&mut world, &asked);
    world
}

fn join(world: &mut World) {
    let index = world.add();
    world.tally.joins += 1;
    world.start(index);
    world.acquire(index, None);
}

/// Counts the look-ups that have an answer, and forgets those of askers that went.
fn count(world: &mut World, asked: &mut Vec<(usize, u64, usize)>) {
    asked.retain(|(asker, id, holder)| {
        let Some(answer) = world.found.remove(&(*asker, *id)) else {
            return world.nodes[*asker].is_up();
        };
        world.tally.look_ups += 1;
        match answer {
            Some(answer) if answer.holder == peer(*holder) => world.tally.answered += 1,
            Some(_) => world.tally.misled += 1,
            None => {}
        }
        false
    });
}

fn check(world: &mut World, asked: &[(usize, u64, usize)]) {
    let (all, answered) = (world.tally.look_ups, world.tally.answered);
    if answered * 1000 < all * 999 {
        let what = format!("only {answered} of {all} look-ups were answered");
        world.checker.violated(what);
    }
    let open = asked
        .iter()
        .filter(|(asker, ..)| world.now().saturating_sub(world.nodes[*asker].came) > SECOND * 120);
    let open = open.count();
    if open > 0 {
        world
            .checker
            .violated(format!("{open} look-ups have no answer at all"));
    }
    let lost = world.tally.lapsed + world.tally.revived;
    if lost > 0 {
        world
            .checker
            .violated(format!("{lost} leases lapsed or were lost"));
    }
    let late: Vec<_> = world
        .nodes
        .iter()
        .filter(|node| node.is_up() && world.now().saturating_sub(node.came) > SECOND * 120)
        .filter(|node| !matches!(node.told, Told::Held(_)) || node.until <= world.now())
        .map(|node| node.index)
        .collect();
    if !late.is_empty() {
        world
            .checker
            .violated(format!("nodes {late:?} have no lease at the end"));
    }
}
