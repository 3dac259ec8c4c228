//! The simulated grid: nodes, a network that loses, delays, doubles and reorders, and one queue of what happens when.
//!
//! Everything follows from the seed: the same seed gives the same run, step by step, which
//! [`World::trace`] shows. Time is virtual and jumps from one event to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aerie_dht_proto::{
    AcquireRequest, Config, Event, Found, Input, LostReason, MemoryStore, Output, Register, SendError,
};
use aerie_types::{GridId, Key, PeerId, Roles, VirtualAddr, VirtualRange};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::checker::Checker;
use crate::keys::{SimKeys, hash, name, peer, worker};
use crate::node::{Clock, Node, Told};

/// Members that a look-up returns.
const LOCATED: usize = 20;

/// Grids up to this size are fully meshed; in larger ones each node is connected to those nearest to it.
const MESHED: usize = 40;

/// Neighbours in the key space to which a node of a large grid is connected, and others besides.
const NEAREST: usize = 24;
const OTHERS: usize = 6;

/// What the network does to messages.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// The chance that a message is lost.
    pub loss: f64,
    /// The chance that a request arrives twice.
    pub duplicate: f64,
    /// The shortest and the longest delay; messages overtake each other within it.
    pub delay: (Duration, Duration),
    /// How old the view of the members may be by which closest members are located.
    pub staleness: Duration,
    /// How far wall clocks are off, at most, either way.
    pub skew: Duration,
    /// How much faster or slower monotonic clocks run, in millionths, at most.
    pub drift_ppm: i64,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            delay: (Duration::from_millis(2), Duration::from_millis(40)),
            staleness: Duration::ZERO,
            skew: Duration::ZERO,
            drift_ppm: 0,
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Request {
        to: usize,
        from: usize,
        start: u64,
        id: u64,
        bytes: Vec<u8>,
    },
    Reply {
        to: usize,
        start: u64,
        id: u64,
        result: Result<Vec<u8>, SendError>,
    },
    Located {
        to: usize,
        start: u64,
        query: u64,
        peers: Vec<PeerId>,
    },
    Gossip {
        to: usize,
        from: usize,
        bytes: Vec<u8>,
    },
    Link {
        node: usize,
        other: usize,
        up: bool,
    },
    Timer {
        node: usize,
    },
}

/// The simulated grid.
pub struct World {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// What the network does.
    pub conditions: Conditions,
    /// What must be true.
    pub checker: Checker,
    /// The grid's range.
    pub range: VirtualRange,
    /// What is special in the configuration of the node of this number.
    pub setup: fn(usize, &mut Config),
    /// Results of look-ups: by node and number.
    pub found: BTreeMap<(usize, u64), Option<Found>>,
    seed: u64,
    rng: ChaCha8Rng,
    base: Instant,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Action>,
    order: u64,
    /// Whom an answer belongs to: the asker, its start, its number.
    askers: BTreeMap<u64, (usize, u64, u64)>,
    by_peer: BTreeMap<PeerId, usize>,
    /// The side of a partition on which each node is.
    sides: Vec<usize>,
    /// Who ran when, for stale views.
    history: Vec<(Duration, Vec<usize>)>,
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
            checker: Checker::default(),
            range,
            setup: |_, _| {},
            found: BTreeMap::new(),
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            // Virtual time needs some instant to count from; which one leaves no trace.
            base: Instant::now(),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            order: 0,
            askers: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            sides: Vec::new(),
            history: Vec::new(),
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
        self.nodes.push(Node {
            index,
            clock,
            core: None,
            told: Told::Nothing,
            conflicts: 0,
            store: None,
            start: 0,
            request: None,
            links: BTreeSet::new(),
            timer: None,
            twin: None,
            keys: SimKeys::new(index, roles),
        });
        self.by_peer.insert(peer(index), index);
        self.sides.push(0);
        index
    }

    /// Adds a copy of a node: the same keys, the same store. Where its twin runs too, each member reaches one of the
    /// two, as chance has it.
    pub fn add_copy(&mut self, of: usize) -> usize {
        let index = self.add();
        let twin = &self.nodes[of];
        let (keys, request) = (twin.keys.clone(), twin.request.clone());
        let store = twin
            .core
            .clone()
            .map(Register::into_store)
            .or_else(|| twin.store.clone());
        let node = &mut self.nodes[index];
        (node.keys, node.request, node.store) = (keys, request, store);
        node.twin = Some(of);
        self.nodes[of].twin = Some(index);
        index
    }

    /// The id by which others know a node.
    fn peer_of(&self, index: usize) -> PeerId {
        use aerie_dht_proto::Keys;
        self.nodes[index].keys.me()
    }

    /// Starts a node, with the store that it had.
    #[expect(
        clippy::expect_used,
        reason = "a store in memory loads what the same code wrote"
    )]
    pub fn start(&mut self, index: usize) {
        let mut config = Config::new(Self::grid(), self.range);
        config.founder = index == 0;
        (self.setup)(index, &mut config);
        let node = &mut self.nodes[index];
        assert!(node.core.is_none(), "node {index} runs already");
        node.start += 1;
        let store = node.store.take().unwrap_or_default();
        let now = node.clock.at(self.base, self.now);
        let mut core =
            Register::new(config, node.keys.clone(), store, &mut self.rng, now).expect("a readable store");
        if let Some(request) = node.request.clone() {
            core.acquire(request, now);
        }
        node.core = Some(core);
        self.topology_changed();
        self.drain(index);
    }

    /// Kills a node. With `amnesia` its store is lost.
    pub fn kill(&mut self, index: usize, amnesia: bool) {
        let Some(core) = self.nodes[index].core.take() else {
            return;
        };
        let node = &mut self.nodes[index];
        node.store = (!amnesia).then(|| core.into_store());
        node.links.clear();
        node.timer = None;
        node.told = Told::Nothing;
        self.topology_changed();
    }

    /// Lets a node claim an address, now and after each start.
    pub fn acquire(&mut self, index: usize, fixed: Option<VirtualAddr>) {
        let request = AcquireRequest {
            name: name(index),
            fixed,
        };
        self.nodes[index].request = Some(request.clone());
        // What it holds it gives back first.
        self.checker.gave_back(index);
        self.nodes[index].told = Told::Nothing;
        self.with(index, |core, now| core.acquire(request, now));
    }

    /// Lets a node leave cleanly.
    pub fn leave(&mut self, index: usize) {
        self.nodes[index].request = None;
        self.nodes[index].told = Told::Nothing;
        self.with(index, |core, now| core.release_all(now));
        self.checker.gave_back(index);
    }

    /// Starts a look-up, whose result will be in [`World::found`].
    pub fn look_up(&mut self, index: usize, key: Key) -> Option<u64> {
        let mut id = None;
        self.with(index, |core, now| id = Some(core.look_up(key, now)));
        id
    }

    /// Calls a running node's core at the present time.
    pub fn with(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut Register<MemoryStore, SimKeys>, aerie_dht_proto::Now),
    ) {
        let node = &mut self.nodes[index];
        let now = node.clock.at(self.base, self.now);
        if let Some(core) = &mut node.core {
            call(core, now);
            self.drain(index);
        }
    }

    /// Tears the grid: nodes of different sides do not reach each other.
    pub fn partition(&mut self, side: impl Fn(usize) -> usize) {
        for index in 0..self.sides.len() {
            self.sides[index] = side(index);
        }
        self.topology_changed();
    }

    /// Runs for a while.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
    }

    /// Runs until something is so, or the time is up. Whether it is so.
    pub fn run_until(&mut self, end: Duration, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            match self.queue.first_key_value() {
                Some(((at, _), _)) if *at <= end => self.step(),
                _ => {
                    self.now = end;
                    return false;
                }
            }
        }
    }

    fn step(&mut self) {
        let Some(((at, order), action)) = self.queue.pop_first() else {
            return;
        };
        self.now = at;
        self.steps += 1;
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        let (kind, node) = match &action {
            Action::Request { to, bytes, .. } => (hash(&[b"request", bytes]), *to),
            Action::Reply { to, id, .. } => (*id, *to),
            Action::Located { to, query, .. } => (*query, *to),
            Action::Gossip { to, bytes, .. } => (hash(&[b"gossip", bytes]), *to),
            Action::Link { node, other, .. } => (*other as u64, *node),
            Action::Timer { node } => (0, *node),
        };
        let words = [self.trace, nanos, order, kind, node as u64].map(u64::to_be_bytes);
        self.trace = hash(&[words.as_flattened()]);
        self.act(action);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Request {
                to,
                from,
                start,
                id,
                bytes,
            } => {
                if !self.reachable(from, to) {
                    return;
                }
                let request = self.order;
                self.order += 1;
                self.askers.insert(request, (from, start, id));
                let input = Input::Request {
                    from: self.peer_of(from),
                    id: request,
                    bytes,
                };
                self.input(to, input);
                self.askers.remove(&request);
            }
            Action::Reply {
                to,
                start,
                id,
                result,
            } => {
                if self.nodes[to].start == start {
                    self.input(to, Input::Reply { id, result });
                }
            }
            Action::Located {
                to,
                start,
                query,
                peers,
            } => {
                if self.nodes[to].start == start {
                    self.input(to, Input::Located { query, peers });
                }
            }
            Action::Gossip { to, from, bytes } => {
                if self.reachable(from, to) {
                    let from = self.peer_of(from);
                    self.input(to, Input::Gossip { from, bytes });
                }
            }
            Action::Link { node, other, up } => {
                if self.nodes[node].is_up() && self.nodes[node].links.contains(&other) == up {
                    let peer = self.peer_of(other);
                    let input = if up {
                        Input::MemberUp { peer }
                    } else {
                        Input::MemberDown { peer }
                    };
                    self.input(node, input);
                }
            }
            Action::Timer { node } => {
                if self.nodes[node].timer == Some(self.now) {
                    self.nodes[node].timer = None;
                    self.with(node, |core, now| core.handle_timeout(now));
                }
            }
        }
    }

    fn input(&mut self, index: usize, input: Input) {
        self.with(index, |core, now| core.handle_input(input, now));
    }

    /// Takes everything that a core wants done and told, and sets its timer.
    fn drain(&mut self, index: usize) {
        while let Some(output) = self.nodes[index].core.as_mut().and_then(Register::poll_output) {
            self.output(index, output);
        }
        while let Some(event) = self.nodes[index].core.as_mut().and_then(Register::poll_event) {
            self.event(index, event);
        }
        let node = &mut self.nodes[index];
        let due = node.core.as_ref().and_then(Register::poll_timeout);
        let due = due.map(|due| {
            node.clock
                .when(self.base, due)
                .max(self.now + Duration::from_micros(1))
        });
        if node.timer != due {
            node.timer = due;
            if let Some(due) = due {
                self.schedule(due, Action::Timer { node: index });
            }
        }
    }

    fn output(&mut self, index: usize, output: Output) {
        let start = self.nodes[index].start;
        match output {
            Output::Answer { id, bytes } => {
                if let Some((to, start, id)) = self.askers.get(&id).copied()
                    && !self.lost()
                {
                    let result = Ok(bytes);
                    self.later(Action::Reply {
                        to,
                        start,
                        id,
                        result,
                    });
                }
            }
            Output::Send { to, id, bytes } => {
                let to = self.by_peer.get(&to).copied();
                let to = to.map(|to| match self.nodes[to].twin {
                    // Two connections to one peer id: a request takes either.
                    Some(twin) if self.nodes[twin].is_up() && twin != index && self.rng.random_bool(0.5) => {
                        twin
                    }
                    _ => to,
                });
                match to.filter(|to| self.reachable(index, *to)) {
                    None => {
                        let result = Err(SendError::Unreachable);
                        self.later(Action::Reply {
                            to: index,
                            start,
                            id,
                            result,
                        });
                    }
                    Some(to) => {
                        let from = index;
                        if self.rng.random_bool(self.conditions.duplicate) {
                            let bytes = bytes.clone();
                            self.later(Action::Request {
                                to,
                                from,
                                start,
                                id,
                                bytes,
                            });
                        }
                        if !self.lost() {
                            self.later(Action::Request {
                                to,
                                from,
                                start,
                                id,
                                bytes,
                            });
                        }
                    }
                }
            }
            Output::Locate { query, key } => {
                let peers = self.closest(index, key);
                self.later(Action::Located {
                    to: index,
                    start,
                    query,
                    peers,
                });
            }
            Output::Gossip(bytes) => {
                for to in 0..self.nodes.len() {
                    if to != index && self.reachable(index, to) && !self.lost() {
                        let bytes = bytes.clone();
                        self.later(Action::Gossip {
                            to,
                            from: index,
                            bytes,
                        });
                    }
                }
            }
        }
    }

    fn event(&mut self, index: usize, event: Event) {
        let node = &mut self.nodes[index];
        match event {
            Event::Held(lease) | Event::Renewed(lease) => {
                let until = node.clock.when(self.base, lease.until);
                self.checker.holds(index, &lease, until, self.now);
                node.told = Told::Held(Box::new(lease));
            }
            Event::Waiting { reason } => {
                if !matches!(node.told, Told::Held(_)) {
                    node.told = Told::Waiting(reason);
                }
            }
            Event::Failed(failure) => node.told = Told::Failed(failure),
            Event::Lost(reason) => {
                self.checker.gave_back(index);
                node.conflicts += u32::from(matches!(reason, LostReason::Conflict { .. }));
                node.told = Told::Lost(reason);
            }
            Event::LookedUp { id, found } => {
                self.found.insert((index, id), found);
            }
            Event::Ready | Event::CloneSeen { .. } | Event::SetChanged { .. } | Event::Left => {}
        }
    }

    fn lost(&mut self) -> bool {
        self.rng.random_bool(self.conditions.loss)
    }

    fn later(&mut self, action: Action) {
        let (shortest, longest) = self.conditions.delay;
        let delay = self.rng.random_range(shortest..=longest);
        self.schedule(self.now + delay, action);
    }

    fn schedule(&mut self, at: Duration, action: Action) {
        self.order += 1;
        self.queue.insert((at, self.order), action);
    }

    fn reachable(&self, from: usize, to: usize) -> bool {
        self.nodes[from].is_up() && self.nodes[to].is_up() && self.sides[from] == self.sides[to]
    }

    /// The members closest to a key, by a view that may be stale.
    fn closest(&mut self, index: usize, key: Key) -> Vec<PeerId> {
        let stale = u64::try_from(self.conditions.staleness.as_millis()).unwrap_or(u64::MAX);
        let age = Duration::from_millis(self.rng.random_range(0..=stale));
        let then = self.now.saturating_sub(age);
        let view = self
            .history
            .iter()
            .rev()
            .find(|(at, _)| *at <= then)
            .or_else(|| self.history.first());
        let up = view.map(|(_, up)| up.clone()).unwrap_or_default();
        let position = key.position();
        let side = self.sides[index];
        let mut peers: Vec<PeerId> = up
            .into_iter()
            .filter(|other| *other != index && self.sides[*other] == side)
            .map(|other| self.peer_of(other))
            .collect();
        peers.sort_by_cached_key(|peer| peer.position().distance(&position));
        peers.dedup();
        peers.truncate(LOCATED);
        peers
    }

    /// Connects whom should be, and tells both ends a little later.
    fn topology_changed(&mut self) {
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|index| self.nodes[*index].is_up())
            .collect();
        self.history.push((self.now, up.clone()));
        let mut links: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for index in &up {
            for other in self.neighbours(*index, &up) {
                links.entry(*index).or_default().insert(other);
                links.entry(other).or_default().insert(*index);
            }
        }
        for index in up {
            let wanted = links.remove(&index).unwrap_or_default();
            let before = std::mem::replace(&mut self.nodes[index].links, wanted.clone());
            for other in wanted.symmetric_difference(&before) {
                let up = wanted.contains(other);
                self.later(Action::Link {
                    node: index,
                    other: *other,
                    up,
                });
            }
        }
    }

    fn neighbours(&self, index: usize, up: &[usize]) -> Vec<usize> {
        let twin = self.nodes[index].twin;
        let same = |other: &&usize| {
            **other != index && Some(**other) != twin && self.sides[**other] == self.sides[index]
        };
        let mut others: Vec<usize> = up.iter().filter(same).copied().collect();
        if up.len() <= MESHED {
            return others;
        }
        let position = peer(index).position();
        others.sort_by_cached_key(|other| peer(*other).position().distance(&position));
        let rest = others.split_off(NEAREST.min(others.len()));
        let far = rest
            .iter()
            .filter(|other| hash(&[&peer(index).0, &peer(**other).0]) % (rest.len() as u64) < OTHERS as u64);
        others.extend(far);
        others
    }
}
