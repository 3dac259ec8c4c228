//! Two lying witnesses among the nine of a key, and hostile claimants.
//!
//! Both liars grant everything to everybody, deny certificates, repeat old answers, answer damaged ones or none (see
//! `liar`). Claimants whose view of the closest members lacks two of the nine ask for held addresses again and again,
//! so that d + f = 4, and so does one that comes with the holder's certificates in its store. None of
//! them ever gets a held address, no holder loses its own, and what look-ups find is the holder.
//!
//! Two more courses have honest witnesses alone. In one a former holder comes back with the certificates of its time,
//! as a disk does that is set back to a snapshot. In the other a claimant does not ask the nine but those after them:
//! that is beyond the d of the promise, and yet up to any claimant.

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_dht_proto::{Change, Store, Table, addr_key};
use aerie_types::VirtualAddr;
use rand::RngExt;

use super::{SECOND, range};
use crate::conditions::Conditions;
use crate::keys::peer;
use crate::node::Told;
use crate::overlay::Routing;
use crate::world::World;

pub(super) const ABOUT: &str =
    "two lying witnesses among the nine, claimants with a wrong view and with foreign certificates";

/// Rounds of hostile claims.
const ROUNDS: usize = 12;

pub(super) const ABOUT_REVENANT: &str =
    "a former holder comes back again and again with the certificates of an address that it gave up";

/// What is hostile in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hostile {
    /// Two witnesses lie, claimants have a wrong view, one comes with the holder's certificates.
    Witnesses,
    /// All are honest but a former holder, whose disk is set back to the time of its lease.
    Former,
    /// All are honest but a claimant that asks whom it chooses: not the nine.
    Chooser,
}

pub(super) fn play(seed: u64, nodes: usize, routing: Routing) -> World {
    course(seed, nodes, Hostile::Witnesses, routing)
}

pub(super) const ABOUT_CHOOSER: &str =
    "honest witnesses, and a claimant that asks those that come after the nine closest";

pub(super) fn play_chooser(seed: u64, nodes: usize, routing: Routing) -> World {
    course(seed, nodes, Hostile::Chooser, routing)
}

pub(super) fn play_revenant(seed: u64, nodes: usize, routing: Routing) -> World {
    course(seed, nodes, Hostile::Former, routing)
}

fn course(seed: u64, nodes: usize, kind: Hostile, routing: Routing) -> World {
    let conditions = Conditions {
        loss: 0.01,
        duplicate: 0.02,
        delay: (Duration::from_millis(2), Duration::from_millis(150)),
        skew: SECOND * 60,
        drift_ppm: 7500,
        ..Conditions::default()
    };
    let mut world = World::new(seed, range("10.0.0.0/24"), conditions).with_routing(routing);
    for _ in 0..nodes {
        let index = world.add();
        world.tally.joins += 1;
        world.start(index);
        world.run(Duration::from_millis(200));
    }
    world.run(SECOND * 10);
    let addr = world.range.nth(200);
    let nine = closest(&world, addr);
    let (holder, hostile) = cast(&mut world, &nine);
    let [plain, former, foreign] = hostile;
    let mut old = None;
    if kind == Hostile::Former {
        serve(&mut world, former, addr);
        old = lease_row(&world, former);
        let elsewhere = world.range.nth(100);
        world.acquire(former, Some(elsewhere));
        world.run(SECOND * 5);
    }
    serve(&mut world, holder, addr);
    // Which two of the nine lie, and which two the hostile claimants leave out.
    let mut shuffled = nine.clone();
    for place in (1..shuffled.len()).rev() {
        let other = world.rng().random_range(0..=place);
        shuffled.swap(place, other);
    }
    let shunned: BTreeSet<usize> = shuffled.iter().copied().skip(2).take(2).collect();
    if kind == Hostile::Witnesses {
        for liar in shuffled.iter().copied().take(2) {
            world.turn_into_liar(liar);
        }
        for index in &hostile {
            world.shun(*index, shunned.clone());
        }
    }
    if kind == Hostile::Chooser {
        world.shun(plain, nine.iter().copied().collect());
    }
    for _ in 0..ROUNDS {
        match kind {
            Hostile::Witnesses => {
                world.acquire(plain, Some(addr));
                let row = lease_row(&world, holder);
                come_with(&mut world, foreign, row, addr);
            }
            Hostile::Former => come_with(&mut world, former, old.clone(), addr),
            Hostile::Chooser => world.acquire(plain, Some(addr)),
        }
        round(&mut world, addr, holder, &hostile);
    }
    world
}

fn closest(world: &World, addr: VirtualAddr) -> Vec<usize> {
    let position = addr_key(World::grid(), addr).position();
    let mut all: Vec<usize> = (0..world.nodes.len()).collect();
    all.sort_by_key(|index| peer(*index).position().distance(&position));
    all.truncate(9);
    all
}

/// A holder and three hostile claimants that are not among the witnesses.
fn cast(world: &mut World, nine: &[usize]) -> (usize, [usize; 3]) {
    let mut others: Vec<usize> = (1..world.nodes.len())
        .filter(|index| !nine.contains(index))
        .collect();
    let mut draw = || {
        let place = world.rng.random_range(0..others.len());
        others.swap_remove(place)
    };
    (draw(), [draw(), draw(), draw()])
}

fn serve(world: &mut World, index: usize, addr: VirtualAddr) {
    world.acquire(index, Some(addr));
    let end = world.now() + SECOND * 60;
    let held = |world: &mut World| matches!(world.nodes[index].told, Told::Held(_));
    if !world.run_until_seen(end, SECOND, held) {
        let told = format!("node {index} was not served: {:?}", world.nodes[index].told);
        world.checker.violated(told);
    }
    world.run(SECOND * 5);
}

/// A node starts with these certificates in its store and claims their address.
fn come_with(world: &mut World, thief: usize, row: Option<Change>, addr: VirtualAddr) {
    world.kill(thief, false);
    world.plant(thief, row);
    world.start(thief);
    world.acquire(thief, Some(addr));
}

fn round(world: &mut World, addr: VirtualAddr, holder: usize, hostile: &[usize; 3]) {
    world.tally.contested += 1;
    let count = world.nodes.len();
    let asker = world.rng().random_range(0..count);
    let id = world.look_up(asker, addr_key(World::grid(), addr));
    let pause = world.rng().random_range(20..90);
    world.run(SECOND * pause);
    if let Some(answer) = id.and_then(|id| world.found.remove(&(asker, id))) {
        world.tally.look_ups += 1;
        match answer {
            Some(found) if found.holder == peer(holder) => world.tally.answered += 1,
            Some(found) => {
                let what = format!(
                    "at {:?} a look-up found {} in the holder's place",
                    world.now(),
                    found.holder
                );
                world.checker.violated(what);
            }
            None => {}
        }
    }
    let now = world.now();
    if world.nodes[holder].addr() != Some(addr) || world.nodes[holder].until <= now {
        let what = format!(
            "at {now:?} the holder is without its address: {:?}",
            world.nodes[holder].told
        );
        world.checker.violated(what);
    }
    for thief in hostile {
        if world.nodes[*thief].addr() == Some(addr) {
            world
                .checker
                .violated(format!("at {now:?} node {thief} holds the address of another"));
        }
    }
}

/// The row of a node's store with its own lease.
fn lease_row(world: &World, index: usize) -> Option<Change> {
    let mut store = world.nodes[index].core.clone()?.into_store();
    let rows = store.load(Table::Meta).ok()?;
    let row = rows.into_iter().find(|(name, _)| name == b"lease");
    row.map(|(key, value)| Change {
        table: Table::Meta,
        key,
        value: Some(value),
    })
}
