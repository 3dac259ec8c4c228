//! Everything at once: three lives of a lease, with every kind of fault, twenty addresses that several nodes want, and a
//! prefix for every fifth node out of sixteen, some of which several want.
//!
//! The register has the times that ship: 30 minutes for a lease, renewals every 5. The grid starts within 30 s; then
//! something happens every 20 s or so for 80 minutes: nodes claim contested addresses together or give them back,
//! crash and restart (one at a time without its store), join, leave, stand still, look each other up. Once the grid
//! is torn, in one direction or in both, for ten seconds up to forty minutes, and heals. The last 10 minutes are
//! without faults of nodes.
//!
//! Checked are G1 at every certificate; G2 one renewal after the healing; that no live lease is lost but to an older
//! one that came about on the other side of the partition; and at the end that everybody that asked has an answer,
//! and that nobody's lease has lapsed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_dht_proto::{Kind, Leased, Want};
use aerie_types::{AddressPool, VirtualAddr, VirtualPrefix};
use rand::RngExt;

use super::{SECOND, range};
use crate::conditions::{Conditions, Cut};
use crate::keys::peer;
use crate::node::Told;
use crate::overlay::Routing;
use crate::world::World;

pub(super) const ABOUT: &str = "three lives of a lease with crashes, amnesia, joins, leaves, pauses, skewed clocks, \
     a partition, loss, doubling, contested addresses and prefixes";

/// How long faults go on.
const COURSE: Duration = Duration::from_secs(80 * 60);

/// What is left of three lives of a lease, for the grid to come to rest.
const REST: Duration = Duration::from_secs(10 * 60);

/// From the healing until each holder has renewed once: the time between renewals and a tenth, a round, a conflict.
const REFRESHED: Duration = Duration::from_secs(5 * 60 + 30 + 30);

/// Contested addresses.
const CONTESTED: u32 = 20;

/// One node of so many routes for others, and has a prefix.
const ROUTERS: usize = 5;

/// Contested prefixes, of all that there are.
const CONTESTED_BLOCKS: u32 = 4;

/// Nodes that are down at the same time, at most, so that views differ by fewer than five.
const DOWN: usize = 4;

struct Course {
    world: World,
    most: usize,
    /// When the grid is torn, until when.
    tear: (Duration, Duration),
    torn: bool,
    /// When G2 is looked at, and who held what when the grid healed, at which of its starts and at which of its turns.
    refreshed: Option<Duration>,
    healed: BTreeMap<Leased, Vec<(usize, u64, u64)>>,
    /// When those that are down start again.
    restarts: Vec<(Duration, usize)>,
    /// Those that left for good.
    left: BTreeSet<usize>,
    /// The node whose store was lost last.
    amnesic: Option<usize>,
    asked: Vec<(usize, u64, usize)>,
}

pub(super) fn play(seed: u64, nodes: usize, routing: Routing) -> World {
    let conditions = Conditions {
        loss: 0.03,
        duplicate: 0.03,
        delay: (Duration::from_millis(2), Duration::from_millis(300)),
        staleness: SECOND,
        skew: SECOND * 120,
        drift_ppm: 7500,
        detection: SECOND * 10,
    };
    let mut world = World::new(seed, range(RANGE), conditions).with_routing(routing);
    world.setup = |_, config| config.pool = pool();
    let starts = world.rng().random_range(10..50_u64);
    let lasts = 10.0 * 240.0_f64.powf(world.rng().random_range(0.0..1.0));
    let tear = Duration::from_secs(starts * 60);
    let mut course = Course {
        world,
        most: nodes + nodes / 4,
        tear: (tear, tear + Duration::from_secs_f64(lasts)),
        torn: false,
        refreshed: None,
        healed: BTreeMap::new(),
        restarts: Vec::new(),
        left: BTreeSet::new(),
        amnesic: None,
        asked: Vec::new(),
    };
    course.start(nodes);
    while course.world.now() < COURSE {
        course.wait();
        course.act();
    }
    course.rest();
    course.world
}

/// The range, whose last 64 addresses are leased in blocks of four.
const RANGE: &str = "10.0.0.0/22";

#[expect(clippy::expect_used, reason = "a constant text")]
fn pool() -> AddressPool {
    let part = "10.0.3.192/26".parse().expect("a part of the range");
    let pool = AddressPool::from(range(RANGE));
    pool.with_routed(part, 30).expect("sixteen blocks")
}

impl Course {
    fn start(&mut self, nodes: usize) {
        self.join_for(None);
        self.world.run(SECOND);
        for index in 1..nodes {
            let pause = self.world.rng().random_range(0..1000);
            self.world.run(Duration::from_millis(pause));
            let fixed = (index % 3 == 0).then(|| self.contested());
            self.join_for(fixed);
        }
    }

    /// Some seconds pass, with what was planned for them.
    fn wait(&mut self) {
        let pause = self.world.rng().random_range(0..40_000);
        let end = self.world.now() + Duration::from_millis(pause);
        loop {
            let planned = [
                self.restarts.iter().map(|(at, _)| *at).min(),
                (!self.torn && self.tear.0 > self.world.now()).then_some(self.tear.0),
                self.torn.then_some(self.tear.1),
                self.refreshed,
            ];
            let next = planned.into_iter().flatten().min();
            let next = next.filter(|next| *next <= end);
            let until = next.unwrap_or(end).max(self.world.now());
            self.world.run(until - self.world.now());
            if next.is_none() {
                return;
            }
            self.planned();
        }
    }

    fn planned(&mut self) {
        let now = self.world.now();
        let (due, later) = self.restarts.iter().partition(|(at, _)| *at <= now);
        self.restarts = later;
        let due: Vec<(Duration, usize)> = due;
        for (_, index) in due {
            self.world.start(index);
        }
        if self.torn && self.tear.1 <= now {
            self.heal();
        } else if !self.torn && self.tear.0 == now {
            self.tear();
        }
        if self.refreshed.is_some_and(|at| at <= now) {
            self.look_at_g2();
        }
    }

    fn tear(&mut self) {
        self.torn = true;
        let part = self.world.rng().random_range(0.1..0.9);
        let one_way = self.world.rng().random_bool(0.3);
        let cut = if one_way { Cut::Upward } else { Cut::Both };
        let count = self.world.nodes.len() * 4;
        let sides: Vec<usize> = (0..count)
            .map(|_| usize::from(self.world.rng().random_bool(part)))
            .collect();
        self.world
            .tear(cut, |index| sides.get(index).copied().unwrap_or(0));
    }

    fn heal(&mut self) {
        self.torn = false;
        self.world.partition(|_| 0);
        self.refreshed = Some(self.world.now() + REFRESHED);
        for node in &self.world.nodes {
            for lease in node.leases() {
                let holders = self.healed.entry(lease.leased).or_default();
                let turns = node.turns_of(lease.leased.kind());
                holders.push((node.index, node.start, turns));
            }
        }
    }

    /// One renewal after the healing every address and prefix has one holder at most, and exactly one where all still run that
    /// held it then and wanted to go on.
    fn look_at_g2(&mut self) {
        self.refreshed = None;
        let mut holders: BTreeMap<Leased, Vec<usize>> = BTreeMap::new();
        for node in &self.world.nodes {
            for lease in node.leases() {
                holders.entry(lease.leased).or_default().push(node.index);
            }
        }
        let now = self.world.now();
        for (leased, several) in holders.iter().filter(|(_, holders)| holders.len() > 1) {
            let what = format!("at {now:?}, after the healing, nodes {several:?} hold {leased} (G2)");
            self.world.checker.violated(what);
        }
        for (leased, before) in std::mem::take(&mut self.healed) {
            let ran_on = before.iter().all(|(index, start, turns)| {
                let node = &self.world.nodes[*index];
                (node.start, node.turns_of(leased.kind())) == (*start, *turns) && node.is_up()
            });
            if ran_on && !holders.contains_key(&leased) {
                let what = format!("at {now:?}, after the healing, nobody of {before:?} holds {leased} (G2)");
                self.world.checker.violated(what);
            }
        }
        self.world.checker.settled();
    }

    fn contested(&mut self) -> VirtualAddr {
        let index = self.world.rng().random_range(0..CONTESTED);
        self.world.range.nth(900 + index)
    }

    fn up(&self) -> Vec<usize> {
        let up = self.world.nodes.iter().filter(|node| node.is_up());
        up.map(|node| node.index)
            .filter(|index| !self.world.is_paused(*index) && !self.left.contains(index))
            .collect()
    }

    fn some(&mut self, among: &[usize]) -> Option<usize> {
        if among.is_empty() {
            return None;
        }
        let place = self.world.rng().random_range(0..among.len());
        among.get(place).copied()
    }

    fn act(&mut self) {
        let up = self.up();
        self.count_found();
        let Some(index) = self.some(&up) else {
            return;
        };
        let down = self.restarts.len();
        match self.world.rng().random_range(0..100) {
            0..12 => self.contest(&up),
            12..18 => self.free(index),
            18..30 if down < DOWN => self.crash(index, false),
            30..32 if down == 0 && index != 0 && self.amnesic_is_ready() => {
                self.amnesic = Some(index);
                self.crash(index, true);
            }
            32..36 if up.len() < self.most => self.join_for(None),
            36..39 if up.len() > self.most / 2 && down < DOWN && self.world.may_go(index) => self.go(index),
            39..46 => {
                let pause = self.world.rng().random_range(500..20_000);
                self.world.pause(index, Duration::from_millis(pause));
            }
            46..50 => self.contest_block(&up),
            50..52 if is_router(index) => {
                let block = self.block(u32::MAX);
                self.world.acquire_prefix(index, block);
            }
            _ => {
                for _ in 0..3 {
                    self.look_up(&up);
                }
            }
        }
    }

    fn amnesic_is_ready(&self) -> bool {
        let ready = |index: usize| {
            let node = &self.world.nodes[index];
            node.core
                .as_ref()
                .is_some_and(aerie_dht_proto::Register::is_ready)
        };
        self.amnesic
            .is_none_or(|index| ready(index) || self.left.contains(&index))
    }

    /// Some nodes claim one address at about the same time.
    fn contest(&mut self, up: &[usize]) {
        let fixed = self.contested();
        self.world.tally.contested += 1;
        for _ in 0..self.world.rng().random_range(2..=4) {
            let Some(index) = self.some(up) else {
                return;
            };
            // Whoever has one of the contested addresses goes on with it.
            let kept = self.world.nodes[index].request.as_ref();
            let contested = |addr| (0..CONTESTED).any(|place| self.world.range.nth(900 + place) == addr);
            let kept = kept
                .and_then(|request| request.want.fixed()?.addr())
                .is_some_and(contested);
            let node = &self.world.nodes[index];
            if node.is_up() && !(kept && matches!(node.told, Told::Held(_) | Told::Lost(_))) {
                self.world.acquire(index, Some(fixed));
            }
            let pause = self.world.rng().random_range(0..400);
            self.world.run(Duration::from_millis(pause));
        }
    }

    /// One of so many prefixes.
    fn block(&mut self, among: u32) -> Option<VirtualPrefix> {
        let index = self.world.rng().random_range(0..among);
        pool().block(index)
    }

    /// Some routers claim one prefix at about the same time.
    fn contest_block(&mut self, up: &[usize]) {
        let routers: Vec<usize> = up.iter().copied().filter(|index| is_router(*index)).collect();
        let fixed = self.block(CONTESTED_BLOCKS);
        self.world.tally.contested += 1;
        for _ in 0..self.world.rng().random_range(2..=3) {
            let Some(index) = self.some(&routers) else {
                return;
            };
            let routed = &self.world.nodes[index].routed;
            let kept = routed.request.as_ref().map(|request| request.want);
            let kept = kept.is_some_and(|want| matches!(want, Want::This(_)));
            let settled = kept && matches!(routed.told, Told::Held(_) | Told::Lost(_));
            if self.world.nodes[index].is_up() && !settled {
                self.world.acquire_prefix(index, fixed);
            }
            let pause = self.world.rng().random_range(0..400);
            self.world.run(Duration::from_millis(pause));
        }
    }

    /// A node takes another address instead of what it has. One that asks for any address gets its last one again.
    fn free(&mut self, index: usize) {
        let other = self.world.rng().random_range(0..CONTESTED * 40);
        let other = self.world.range.nth(other);
        self.world.acquire(index, Some(other));
    }

    fn crash(&mut self, index: usize, amnesia: bool) {
        self.world.kill(index, amnesia);
        let pause = self.world.rng().random_range(0..120_000);
        let pause = if amnesia { pause / 10 } else { pause };
        self.restarts
            .push((self.world.now() + Duration::from_millis(pause), index));
    }

    fn join_for(&mut self, fixed: Option<VirtualAddr>) {
        let index = self.world.add();
        self.world.tally.joins += 1;
        self.world.start(index);
        self.world.acquire(index, fixed);
        if is_router(index) {
            self.world.acquire_prefix(index, None);
        }
    }

    /// A node leaves cleanly and is gone.
    fn go(&mut self, index: usize) {
        self.world.leave(index);
        self.world.run(SECOND * 2);
        self.world.kill(index, true);
        self.world.tally.crashes -= 1;
        self.left.insert(index);
    }

    /// Asks for the address, or the prefix, of a node whose lease has been there for a while.
    fn look_up(&mut self, up: &[usize]) {
        let (Some(asker), Some(holder)) = (self.some(up), self.some(up)) else {
            return;
        };
        let node = &self.world.nodes[holder];
        let settled = self.world.now().saturating_sub(node.came) > SECOND * 30;
        let told = match &node.routed.told {
            told @ Told::Held(_) if asker % 2 == 0 => told,
            _ => &node.told,
        };
        let Told::Held(lease) = told else {
            return;
        };
        if self.torn || self.refreshed.is_some() || !settled || !self.world.nodes[asker].is_up() {
            return;
        }
        let key = lease.leased.key(World::grid());
        if let Some(id) = self.world.look_up(asker, key) {
            self.world.tally.look_ups += 1;
            self.asked.push((asker, id, holder));
        }
    }

    /// Counts the look-ups that have an answer.
    fn count_found(&mut self) {
        let found = &mut self.world.found;
        let tally = &mut self.world.tally;
        self.asked.retain(|(asker, id, holder)| {
            let Some(answer) = found.remove(&(*asker, *id)) else {
                return true;
            };
            match answer {
                Some(answer) if answer.holder == peer(*holder) => tally.answered += 1,
                Some(_) => tally.misled += 1,
                None => {}
            }
            false
        });
    }

    /// Everybody comes back, and has an address or a refusal in the end, and a router a prefix or a refusal too.
    fn rest(&mut self) {
        for (_, index) in std::mem::take(&mut self.restarts) {
            self.world.start(index);
        }
        if self.torn {
            self.heal();
        }
        let end = self.world.now() + REST;
        self.world.run(REFRESHED);
        if self.refreshed.is_some() {
            self.look_at_g2();
        }
        self.world.run(end - self.world.now());
        self.count_found();
        let now = self.world.now();
        let mut wrong = Vec::new();
        for node in self.world.nodes.iter().filter(|node| node.is_up()) {
            let both = [
                (Kind::Addr, &node.told, node.until),
                (Kind::Prefix, &node.routed.told, node.routed.until),
            ];
            for (kind, told, until) in both {
                match told {
                    Told::Held(_)
                        if until > now && node.leases().any(|lease| lease.leased.kind() == kind) => {}
                    Told::Failed(_) => {}
                    Told::Nothing if kind == Kind::Prefix && !is_router(node.index) => {}
                    // It has moved too often of late, and is told so.
                    Told::Waiting(reason) if reason.starts_with("this node has leased 4 ") => {}
                    told => wrong.push(format!(
                        "at the end node {} has no {kind}: {told:?}, own end {until:?}",
                        node.index
                    )),
                }
            }
        }
        wrong
            .into_iter()
            .for_each(|what| self.world.checker.violated(what));
    }
}

fn is_router(index: usize) -> bool {
    index % ROUTERS == 1
}
