//! One step of a world: an input to one core, and everything that follows from it at once.
//!
//! Messages about the contested key of the kinds that the world explores are put in flight; their order, loss and
//! doubling are what the checker chooses. All others are delivered at once, in the order in which they were sent.

use std::collections::VecDeque;
use std::sync::Arc;

use aerie_dht_proto::{
    AcquireRequest, Config, Event, Input, Output, Register, SendError, addr_key, model::request_kind,
};
use aerie_sim::{SimKeys, name, peer, worker};
use aerie_types::{GridId, Key, PeerId, VirtualAddr};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use crate::disk::Disk;
use crate::state::{Body, Held, Message, Slot, State, clock, tick_at};
use crate::world::World;

/// Inputs that may follow from one step. More means that two cores talk without end.
const MAX_INPUTS: usize = 20_000;

/// The grid of every world.
pub(crate) const GRID: GridId = GridId([7; 16]);

/// A state on its way to the next one.
pub struct Step<'a> {
    world: &'a World,
    pub(crate) state: State,
    /// Deliver at once what is otherwise put in flight.
    pub(crate) at_once: bool,
    /// The kind of requests that a node does not hear, and the node.
    deaf: Option<(&'static str, usize)>,
    queue: VecDeque<Message>,
    touched: u32,
}

impl<'a> Step<'a> {
    pub(crate) fn new(world: &'a World, state: State) -> Self {
        Self {
            world,
            state,
            at_once: false,
            deaf: None,
            queue: VecDeque::new(),
            touched: 0,
        }
    }

    /// The next state, when everything that follows at once has happened.
    pub(crate) fn finish(mut self) -> State {
        self.settle();
        for index in 0..self.state.nodes.len() {
            if self.touched & (1 << index) != 0 {
                Arc::make_mut(&mut self.state.nodes[index]).seal();
            }
        }
        self.state.flight.sort_by_key(|message| message.digest);
        self.state
    }

    pub(crate) fn deliver(&mut self, message: &Message) {
        let to = usize::from(message.to);
        match &message.body {
            Body::Request(bytes) => {
                if !self.linked(usize::from(message.from), to) {
                    return;
                }
                let from = peer(usize::from(message.from));
                let bytes = bytes.clone();
                // One request at a time is answered, within the call that brings it.
                self.input(to, Input::Request { from, id: 0, bytes }, Some(message));
            }
            Body::Reply(result) => {
                if self.state.nodes[to].start == message.start {
                    let (id, result) = (message.id, result.clone());
                    self.input(to, Input::Reply { id, result }, None);
                }
            }
        }
    }

    /// Lets so many milliseconds pass, in which everything arrives at once.
    pub(crate) fn pass(&mut self, millis: u64) {
        let end = self.state.now + millis;
        self.settle();
        while self.state.now < end && self.tick() {}
    }

    /// Loses every request of a kind to a node from now on, or again none.
    pub(crate) fn deafen(&mut self, deaf: Option<(&'static str, usize)>) {
        self.settle();
        self.deaf = deaf;
    }

    pub(crate) fn settle(&mut self) {
        let mut inputs = 0;
        while let Some(message) = self.queue.pop_front() {
            if self.deaf == Some((message.kind, usize::from(message.to))) && !message.is_reply() {
                continue;
            }
            inputs += 1;
            assert!(inputs < MAX_INPUTS, "two cores talk without end");
            self.deliver(&message);
        }
    }

    pub(crate) fn start(&mut self, index: usize) {
        let slot = self.slot(index);
        slot.start += 1;
        let seed = (index as u64) << 8 | u64::from(slot.start);
        let disk = slot.disk.take().unwrap_or_default();
        let first = slot.start == 1;
        let mut config = Config::new(GRID, self.world.range);
        config.founder = index == 0 && first;
        config.timings = self.world.timings();
        config.quorum = self.world.rule;
        config.weaken = self.world.weaken;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let keys = SimKeys::new(index, worker());
        let core = Register::new(config, keys, disk, &mut rng, clock(self.state.now));
        self.slot(index).core = core.ok();
        self.drain(index, None);
        for other in 0..self.state.nodes.len() {
            if other != index && self.linked(index, other) {
                self.input(index, Input::MemberUp { peer: peer(other) }, None);
                self.input(other, Input::MemberUp { peer: peer(index) }, None);
            }
        }
    }

    pub(crate) fn crash(&mut self, index: usize, amnesia: bool) {
        let others = self.linked_with(index);
        let lazy = self.world.lazy;
        let slot = self.slot(index);
        let disk = slot.core.take().map(|core| core.into_store().after_crash());
        slot.disk = disk.filter(|_| !amnesia).or_else(|| Some(Disk::new(lazy)));
        for other in others {
            self.input(other, Input::MemberDown { peer: peer(index) }, None);
        }
    }

    /// Tears or mends the connection of two nodes, as both ends see it.
    pub(crate) fn relink(&mut self, change: impl FnOnce(&mut State)) {
        let nodes = self.state.nodes.len();
        let links = |step: &Self| -> Vec<bool> {
            (0..nodes * nodes)
                .map(|pair| step.linked(pair / nodes, pair % nodes))
                .collect()
        };
        let before = links(self);
        change(&mut self.state);
        let after = links(self);
        for pair in 0..nodes * nodes {
            let (index, peer) = (pair / nodes, peer(pair % nodes));
            match (before[pair], after[pair]) {
                (true, false) => self.input(index, Input::MemberDown { peer }, None),
                (false, true) => self.input(index, Input::MemberUp { peer }, None),
                _ => {}
            }
        }
    }

    pub(crate) fn acquire(&mut self, index: usize) {
        let request = AcquireRequest::addr(name(index), Some(self.world.addr));
        self.state.tenures += 1;
        let (now, tenure) = (clock(self.state.now), self.state.tenures);
        let slot = self.slot(index);
        (slot.held, slot.tenure) = (None, tenure);
        if let Some(core) = &mut slot.core {
            core.acquire(request, now);
        }
        self.drain(index, None);
    }

    pub(crate) fn release(&mut self, index: usize) {
        let now = clock(self.state.now);
        self.slot(index).held = None;
        if let Some(core) = &mut self.slot(index).core {
            core.release_all(now);
        }
        self.drain(index, None);
    }

    pub(crate) fn look_up(&mut self, index: usize) {
        let (now, key) = (clock(self.state.now), self.world.key);
        if let Some(core) = &mut self.slot(index).core {
            core.look_up(key, now);
        }
        self.drain(index, None);
    }

    /// Lets time pass: from one due timer to the next, until something is sent that the world explores, or for the
    /// world's stride. Whether the world's time has not run out.
    pub(crate) fn tick(&mut self) -> bool {
        let (begin, flying) = (self.state.now, self.state.flight.len());
        while self.state.flight.len() <= flying && self.state.now < begin + self.world.stride {
            let due = self
                .state
                .nodes
                .iter()
                .filter_map(|slot| slot.core.as_ref()?.poll_timeout());
            let Some(due) = due.min().map(tick_at) else {
                return false;
            };
            if due > self.state.end {
                return self.state.now > begin;
            }
            self.state.now = due.max(self.state.now + 100);
            let now = clock(self.state.now);
            for index in 0..self.state.nodes.len() {
                let core = self.state.nodes[index].core.as_ref();
                if core
                    .and_then(Register::poll_timeout)
                    .is_some_and(|due| due <= now.instant)
                {
                    if let Some(core) = &mut self.slot(index).core {
                        core.store_mut().sync();
                        core.handle_timeout(now);
                    }
                    self.drain(index, None);
                }
            }
            self.settle();
        }
        true
    }

    pub(crate) fn slot(&mut self, index: usize) -> &mut Slot {
        self.touched |= 1 << index;
        Arc::make_mut(&mut self.state.nodes[index])
    }

    fn input(&mut self, index: usize, input: Input, request: Option<&Message>) {
        let now = clock(self.state.now);
        if let Some(core) = &mut self.slot(index).core {
            core.handle_input(input, now);
            self.drain(index, request);
        }
    }

    /// Takes what a core wants sent, and what it has told. `request` is the one that it was answering.
    fn drain(&mut self, index: usize, request: Option<&Message>) {
        while let Some(output) = self.slot(index).core.as_mut().and_then(Register::poll_output) {
            self.output(index, output, request);
        }
        while let Some(event) = self.slot(index).core.as_mut().and_then(Register::poll_event) {
            self.event(index, event);
        }
    }

    fn output(&mut self, index: usize, output: Output, request: Option<&Message>) {
        let (from, start) = (small(index), self.state.nodes[index].start);
        match output {
            Output::Answer { bytes, .. } => {
                let Some(request) = request else { return };
                let body = Body::Reply(Ok(bytes));
                let about = (request.kind, request.contested);
                let reply = Message::new(about, from, request.from, request.start, request.id, body);
                let flies = request.contested && self.world.replies.contains(&reply.kind);
                self.send(reply, flies);
            }
            Output::Send { to, id, bytes } => {
                let to = self.index_of(to).filter(|to| self.linked(index, *to));
                let Some(to) = to else {
                    let body = Body::Reply(Err(SendError::Unreachable));
                    let reply = Message::new(("unreachable", false), from, from, start, id, body);
                    return self.queue.push_back(reply);
                };
                let (kind, key) = request_kind(&bytes).unwrap_or(("unknown", None));
                let contested = key == Some(self.world.key);
                let flies = contested && self.world.kinds.contains(&kind);
                let body = Body::Request(bytes);
                let message = Message::new((kind, contested), from, small(to), start, id, body);
                self.send(message, flies);
            }
            // Whom a claim asks follows from whom its node is connected to: the views are the links.
            Output::Locate { query, .. } => {
                let peers = Vec::new();
                self.input(index, Input::Located { query, peers }, request);
            }
            Output::Gossip(bytes) => {
                for to in self.linked_with(index) {
                    let (from, bytes) = (peer(index), bytes.clone());
                    self.input(to, Input::Gossip { from, bytes }, None);
                }
            }
        }
    }

    fn send(&mut self, message: Message, flies: bool) {
        if flies && !self.at_once {
            self.state.flight.push(Arc::new(message));
        } else {
            self.queue.push_back(message);
        }
    }

    fn event(&mut self, index: usize, event: Event) {
        match event {
            Event::Held(lease) | Event::Renewed(lease) if lease.leased.addr() == Some(self.world.addr) => {
                let until = lease.until;
                let slot = self.slot(index);
                slot.held = Some(Held { until });
                slot.used = slot.tenure;
                self.one_holder();
            }
            Event::Lost { .. } | Event::Left => self.slot(index).held = None,
            Event::LookedUp {
                found: Some(found), ..
            } if found.leased.addr() == Some(self.world.addr) => {
                if let Some(holder) = self.index_of(found.holder) {
                    self.uses(index, holder);
                }
            }
            _ => {}
        }
    }

    /// A certificate may outlive its lease; one who knows of the next lease must not fall back to it.
    fn uses(&mut self, index: usize, holder: usize) {
        let tenure = self.state.nodes[holder].tenure;
        let used = self.state.nodes[index].used;
        if tenure < used {
            self.violated(format!(
                "node {index} uses the lease of node {holder}, which was given up, after that of its successor"
            ));
        }
        self.slot(index).used = tenure.max(used);
    }

    fn one_holder(&mut self) {
        let now = clock(self.state.now).instant;
        let valid = |slot: &Arc<Slot>| slot.held.is_some_and(|held| held.until > now);
        let holders: Vec<usize> = (0..self.state.nodes.len())
            .filter(|index| valid(&self.state.nodes[*index]))
            .collect();
        if holders.len() > 1 {
            let at = self.state.now;
            self.violated(format!(
                "at {at} ms nodes {holders:?} have valid certificates of one address"
            ));
        }
    }

    fn violated(&mut self, what: String) {
        self.state.violation.get_or_insert_with(|| what.into());
    }

    fn index_of(&self, peer_id: PeerId) -> Option<usize> {
        self.world.peers.iter().position(|known| *known == peer_id)
    }

    fn linked_with(&self, index: usize) -> Vec<usize> {
        (0..self.state.nodes.len())
            .filter(|other| *other != index && self.linked(index, *other))
            .collect()
    }

    fn linked(&self, one: usize, other: usize) -> bool {
        let up = |index: usize| self.state.nodes[index].core.is_some();
        one != other && up(one) && up(other) && self.world.connected(&self.state, one, other)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a world has a handful of nodes")]
fn small(index: usize) -> u8 {
    index as u8
}

pub(crate) fn key_of(addr: VirtualAddr) -> Key {
    addr_key(GRID, addr)
}
