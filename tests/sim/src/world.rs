//! The simulated grid: nodes, a network that loses, delays, doubles and reorders, and one queue of what happens when.
//!
//! Everything follows from the seed: the same seed gives the same run, step by step, which
//! [`World::trace`] shows. Time is virtual and jumps from one event to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aerie_dht_proto::{
    AcquireRequest, Change, Config, Found, Keys, Kind, MemoryStore, Now, Register, Store, Timings,
};
use aerie_types::{AddressPool, GridId, Key, PeerId, Roles, VirtualAddr, VirtualRange};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::checker::Checker;
use crate::conditions::{Conditions, Cut};
use crate::kad::Stats;
use crate::keys::{SimKeys, hash, name, peer, worker};
use crate::liar::Liar;
use crate::net::Action;
use crate::node::{Clock, Node, Routed, Told};
use crate::overlay::Routing;
use crate::queue::Queue;
use crate::ring::Ring;
use crate::tally::Tally;

/// How far a run is in simulated seconds, for whoever waits for it; of several at the same time, one of them.
pub static REACHED: AtomicU64 = AtomicU64::new(0);

/// The simulated grid.
pub struct World {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// What the network does.
    pub conditions: Conditions,
    /// When the register of nodes started from now on acts.
    pub timings: Timings,
    /// What must be true.
    pub checker: Checker,
    /// What happened.
    pub tally: Tally,
    /// The grid's range.
    pub range: VirtualRange,
    /// What is special in the configuration of the node of this number.
    pub setup: fn(usize, &mut Config),
    /// Nodes that know other addresses of the range as reserved than the rest.
    pub pools: BTreeMap<usize, AddressPool>,
    /// Results of look-ups: by node and number.
    pub found: BTreeMap<(usize, u64), Option<Found>>,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) now: Duration,
    pub(crate) base: Instant,
    pub(crate) by_peer: BTreeMap<PeerId, usize>,
    /// Whom answers to the request at hand belong to: the asker, its start, its number.
    pub(crate) asker: Option<(usize, u64, u64)>,
    pub(crate) requests: u64,
    /// The side of a partition on which each node is.
    pub(crate) sides: Vec<usize>,
    pub(crate) cut: Cut,
    pub(crate) torn: bool,
    pub(crate) routing: Routing,
    /// Numbers for connections, dials and gossip.
    pub(crate) connections: u64,
    /// Connections that one end has, and when the other end will.
    pub(crate) opening: BTreeMap<u64, Duration>,
    /// What the look-ups cost that Kademlia made for registers.
    pub(crate) located: Vec<Stats>,
    /// Who runs, by side of the partition.
    pub(crate) rings: BTreeMap<usize, Ring>,
    pub(crate) running: usize,
    /// Who went down, and when, for stale views.
    pub(crate) gone: Vec<(Duration, usize)>,
    pub(crate) liars: BTreeMap<usize, Liar>,
    /// Whom a node of a wrong view does not see among the closest members.
    pub(crate) shunned: BTreeMap<usize, BTreeSet<usize>>,
    queue: Queue<Action>,
    seed: u64,
    trace: u64,
    steps: u64,
}

impl World {
    /// A grid of no nodes.
    #[must_use]
    pub fn new(seed: u64, range: VirtualRange, conditions: Conditions) -> Self {
        Self {
            nodes: Vec::new(),
            conditions,
            timings: Timings::default(),
            checker: Checker::default(),
            tally: Tally::default(),
            range,
            setup: |_, _| {},
            pools: BTreeMap::new(),
            found: BTreeMap::new(),
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            // Virtual time needs some instant to count from; which one leaves no trace.
            base: Instant::now(),
            now: Duration::ZERO,
            queue: Queue::default(),
            by_peer: BTreeMap::new(),
            asker: None,
            requests: 0,
            sides: Vec::new(),
            cut: Cut::Both,
            torn: false,
            routing: Routing::default(),
            connections: 0,
            opening: BTreeMap::new(),
            located: Vec::new(),
            rings: BTreeMap::new(),
            running: 0,
            gone: Vec::new(),
            liars: BTreeMap::new(),
            shunned: BTreeMap::new(),
            trace: 0,
            steps: 0,
        }
    }

    /// The grid of every simulation.
    #[must_use]
    pub fn grid() -> GridId {
        GridId([7; 16])
    }

    /// The run's own source of chance, for scenarios.
    pub fn rng(&mut self) -> &mut ChaCha8Rng {
        &mut self.rng
    }

    /// The virtual time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The seed and what stands behind it: two runs of one seed have the same.
    #[must_use]
    pub fn trace(&self) -> (u64, u64, u64) {
        (self.seed, self.steps, self.trace)
    }

    /// Adds a node, down. The first one is the founder.
    pub fn add(&mut self) -> usize {
        self.add_with(worker())
    }

    /// Adds a node with other roles than a worker's.
    pub fn add_with(&mut self, roles: Roles) -> usize {
        let index = self.nodes.len();
        let skew = i64::try_from(self.conditions.skew.as_millis()).unwrap_or(i64::MAX);
        let drift = self.conditions.drift_ppm;
        let clock = Clock {
            skew_ms: self.rng.random_range(-skew..=skew),
            drift_ppm: self.rng.random_range(-drift..=drift),
        };
        self.tally.skewed += u64::from(clock.skew_ms.abs() > 1000);
        self.tally.drifting += u64::from(clock.drift_ppm != 0);
        let keys = SimKeys::new(index, roles);
        self.nodes.push(Node {
            index,
            clock,
            core: None,
            told: Told::Nothing,
            conflicts: 0,
            store: None,
            start: 0,
            request: None,
            turns: 0,
            position: keys.me().position(),
            near: BTreeSet::new(),
            far: BTreeSet::new(),
            links: BTreeSet::new(),
            known_links: BTreeSet::new(),
            came: Duration::ZERO,
            went: Duration::ZERO,
            paused: Duration::ZERO,
            asking: None,
            bereft: None,
            moved: None,
            until: Duration::ZERO,
            timer: None,
            routed: Routed::default(),
            twin: None,
            overlay: None,
            remembered: Vec::new(),
            keys,
        });
        self.by_peer.insert(peer(index), index);
        self.sides.push(0);
        index
    }

    /// Adds a copy of a node: the same keys, the same store. Where its twin runs too, each member reaches one of the
    /// two, as chance has it.
    ///
    /// # Panics
    /// Where Kademlia routes: which of two with one id is connected to whom, only the oracle decides.
    pub fn add_copy(&mut self, of: usize) -> usize {
        assert_eq!(self.routing, Routing::Oracle, "copies need the oracle");
        let index = self.add();
        let twin = &self.nodes[of];
        let (keys, request, position) = (twin.keys.clone(), twin.request.clone(), twin.position);
        let routed = twin.routed.request.clone();
        let store = twin
            .core
            .clone()
            .map(Register::into_store)
            .or_else(|| twin.store.clone());
        let node = &mut self.nodes[index];
        (node.keys, node.request, node.store, node.position) = (keys, request, store, position);
        node.routed.request = routed;
        node.twin = Some(of);
        self.nodes[of].twin = Some(index);
        index
    }

    /// The id by which others know a node.
    pub(crate) fn peer_of(&self, index: usize) -> PeerId {
        self.nodes[index].keys.me()
    }

    /// Starts a node, with the store that it had.
    #[expect(
        clippy::expect_used,
        reason = "a store in memory loads what the same code wrote"
    )]
    pub fn start(&mut self, index: usize) {
        let config = self.config(index);
        let node = &mut self.nodes[index];
        assert!(node.core.is_none(), "node {index} runs already");
        node.start += 1;
        if node.start > 1 {
            self.tally.restarts += u64::from(node.store.is_some());
            self.tally.amnesias += u64::from(node.store.is_none());
        }
        let store = node.store.take().unwrap_or_default();
        let now = node.clock.at(self.base, self.now);
        let mut core =
            Register::new(config, node.keys.clone(), store, &mut self.rng, now).expect("a readable store");
        if let Some(request) = node.request.clone() {
            node.asking = Some(self.now);
            core.acquire(request, now);
        }
        if let Some(request) = node.routed.request.clone() {
            core.acquire(request, now);
        }
        node.core = Some(core);
        node.came = self.now;
        self.came_up(index);
        self.drain(index);
    }

    /// What a node is started with.
    pub(crate) fn config(&self, index: usize) -> Config {
        let mut config = Config::new(Self::grid(), self.range);
        config.founder = index == 0;
        config.timings = self.timings.clone();
        if let Some(pool) = self.pools.get(&index) {
            config.pool = pool.clone();
        }
        (self.setup)(index, &mut config);
        config
    }

    /// Lets a witness lie from now on.
    pub fn turn_into_liar(&mut self, index: usize) {
        self.checker.liar(self.peer_of(index));
        self.liars.insert(index, Liar::default());
    }

    /// Lets a node see certain others no longer, neither as closest members nor over connections.
    ///
    /// # Panics
    /// Where Kademlia routes, which knows of nobody that is not to be seen.
    pub fn shun(&mut self, index: usize, others: BTreeSet<usize>) {
        assert_eq!(self.routing, Routing::Oracle, "a wrong view needs the oracle");
        for other in &others {
            self.cut_off(index, *other);
        }
        self.shunned.insert(index, others);
    }

    /// Puts a row into the store of a node that is down.
    pub fn plant(&mut self, index: usize, row: Option<Change>) {
        if let Some(store) = &mut self.nodes[index].store {
            // A store in memory that is not broken takes everything.
            let _ = store.persist(row.as_slice());
        }
    }

    /// Kills a node. With `amnesia` its store is lost.
    pub fn kill(&mut self, index: usize, amnesia: bool) {
        let Some(core) = self.nodes[index].core.take() else {
            return;
        };
        let node = &mut self.nodes[index];
        node.store = (!amnesia).then(|| core.into_store());
        node.timer = None;
        node.told = Told::Nothing;
        node.routed.told = Told::Nothing;
        node.paused = Duration::ZERO;
        node.went = self.now;
        self.tally.crashes += 1;
        self.went_down(index);
    }

    /// Lets a node stand still: it takes no message and no timer rings until it goes on.
    pub fn pause(&mut self, index: usize, pause: Duration) {
        self.nodes[index].paused = self.now + pause;
        self.tally.pauses += 1;
    }

    /// Whether a node stands still.
    #[must_use]
    pub fn is_paused(&self, index: usize) -> bool {
        self.nodes[index].paused > self.now
    }

    /// Lets a node claim an address, now and after each start.
    pub fn acquire(&mut self, index: usize, fixed: Option<VirtualAddr>) {
        let request = AcquireRequest::addr(name(index), fixed);
        let node = &mut self.nodes[index];
        node.request = Some(request.clone());
        node.turns += 1;
        node.asking = Some(self.now);
        node.told = Told::Nothing;
        self.tally.asked += 1;
        self.checker.gave_back(index, Kind::Addr);
        self.with(index, |core, now| core.acquire(request, now));
    }

    /// Lets a node leave cleanly.
    pub fn leave(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        (node.request, node.asking) = (None, None);
        node.turns += 1;
        node.told = Told::Nothing;
        (node.routed.request, node.routed.told) = (None, Told::Nothing);
        node.routed.turns += 1;
        self.tally.leaves += 1;
        self.with(index, |core, now| core.release_all(now));
        for kind in Kind::ALL {
            self.checker.gave_back(index, kind);
        }
    }

    /// Starts a look-up, whose result will be in [`World::found`].
    pub fn look_up(&mut self, index: usize, key: Key) -> Option<u64> {
        let mut id = None;
        self.with(index, |core, now| id = Some(core.look_up(key, now)));
        id
    }

    /// Calls a running node's core at the present time.
    pub fn with(&mut self, index: usize, call: impl FnOnce(&mut Register<MemoryStore, SimKeys>, Now)) {
        let node = &mut self.nodes[index];
        let now = node.clock.at(self.base, self.now);
        if let Some(core) = &mut node.core {
            call(core, now);
            self.drain(index);
        }
    }

    /// Runs for a while.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
    }

    /// Runs until something is so, or the time is up. Whether it is so.
    pub fn run_until(&mut self, end: Duration, done: impl Fn(&Self) -> bool) -> bool {
        REACHED.store(self.now.as_secs(), Ordering::Relaxed);
        loop {
            if done(self) {
                return true;
            }
            match self.queue.next_at() {
                Some(at) if at <= end => self.step(),
                _ => {
                    self.now = end;
                    return false;
                }
            }
        }
    }

    /// Runs until something is so, looking every `every`, or the time is up. Whether it is so.
    pub fn run_until_seen(
        &mut self,
        end: Duration,
        every: Duration,
        mut seen: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        loop {
            if seen(self) {
                return true;
            }
            if self.now >= end {
                return false;
            }
            self.run(every.min(end - self.now));
        }
    }

    /// What a node's monotonic clock shows, since the start of the run.
    pub(crate) fn local(&self, index: usize) -> Duration {
        self.nodes[index].clock.local(self.now)
    }

    fn step(&mut self) {
        let Some((at, order, action)) = self.queue.pop() else {
            return;
        };
        self.now = at;
        self.steps += 1;
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let (kind, node) = action.traced();
        let words = [self.trace, nanos, order, kind, node as u64].map(u64::to_be_bytes);
        self.trace = hash(&[words.as_flattened()]);
        self.act(action);
    }

    pub(crate) fn later(&mut self, action: Action) {
        let delay = self.delay();
        self.schedule(self.now + delay, action);
    }

    pub(crate) fn delay(&mut self) -> Duration {
        let (shortest, longest) = self.conditions.delay;
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.random_range(micros(shortest)..=micros(longest)))
    }

    pub(crate) fn schedule(&mut self, at: Duration, action: Action) {
        self.queue.push(at, action);
    }
}
