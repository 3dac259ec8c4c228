//! What happens to messages, timers and connections, and what the cores want done and tell.

use std::rc::Rc;
use std::time::Duration;

use aerie_dht_proto::{Event, HeldLease, Input, Kind, Leased, LostReason, Output, Register, SendError};
use aerie_types::{Key, PeerId};
use rand::RngExt;

use crate::keys::hash;
use crate::liar::Lie;
use crate::node::Told;
use crate::overlay::{Carried, Routing};
use crate::world::World;

#[derive(Debug)]
pub(crate) enum Action {
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
        bytes: Rc<[u8]>,
    },
    Link {
        node: usize,
        other: usize,
        up: bool,
    },
    Timer {
        node: usize,
    },
    Overlay {
        at: usize,
        what: Carried,
    },
}

impl Action {
    /// What of it goes into the trace: its contents, and the node that it reaches.
    pub(crate) fn traced(&self) -> (u64, usize) {
        match self {
            Self::Request { to, bytes, .. } => (hash(&[b"request", bytes]), *to),
            Self::Reply { to, id, .. } => (*id, *to),
            Self::Located { to, query, .. } => (*query, *to),
            Self::Gossip { to, bytes, .. } => (hash(&[b"gossip", bytes]), *to),
            Self::Link { node, other, .. } => (*other as u64, *node),
            Self::Timer { node } => (0, *node),
            Self::Overlay { at, what } => (what.traced(), *at),
        }
    }

    /// Who sent it over a connection.
    fn sender(&self) -> Option<usize> {
        match self {
            Self::Request { from, .. } => Some(*from),
            Self::Overlay { what, .. } => what.sender(),
            _ => None,
        }
    }

    fn reaches(&self) -> usize {
        match self {
            Self::Request { to, .. }
            | Self::Reply { to, .. }
            | Self::Located { to, .. }
            | Self::Gossip { to, .. } => *to,
            Self::Link { node, .. } | Self::Timer { node } => *node,
            Self::Overlay { at, .. } => *at,
        }
    }
}

impl World {
    pub(crate) fn act(&mut self, action: Action) {
        let paused = self.nodes[action.reaches()].paused;
        if paused > self.now {
            match action {
                Action::Timer { node } => self.nodes[node].timer = Some(paused),
                Action::Overlay {
                    at,
                    what: Carried::Timer,
                } => self.put_off(at, paused),
                _ => {}
            }
            return self.schedule(paused, action);
        }
        let opens = action
            .sender()
            .and_then(|from| self.opens_at(from, action.reaches()));
        if let Some(opens) = opens {
            return self.schedule(opens.max(self.now + Duration::from_micros(1)), action);
        }
        match action {
            Action::Request {
                to,
                from,
                start,
                id,
                bytes,
            } => {
                let arrives = match self.routing {
                    Routing::Oracle => self.reachable(from, to),
                    Routing::Kademlia => self.takes(from, to),
                };
                if !arrives {
                    self.tally.swallowed += 1;
                    return;
                }
                if self.lied(to, from, start, id, &bytes) {
                    return;
                }
                self.requests += 1;
                self.asker = Some((from, start, id));
                let input = Input::Request {
                    from: self.peer_of(from),
                    id: self.requests,
                    bytes,
                };
                self.input(to, input);
                self.asker = None;
            }
            Action::Reply {
                to,
                start,
                id,
                result,
            } => {
                if self.nodes[to].start == start {
                    self.end_request(to, id);
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
                    let (from, bytes) = (self.peer_of(from), bytes.to_vec());
                    self.input(to, Input::Gossip { from, bytes });
                }
            }
            Action::Link { node, other, up } => self.link_changed(node, other, up),
            Action::Timer { node } => self.timer_rang(node),
            Action::Overlay { at, what } => self.arrive(at, what),
        }
    }

    /// Whether a lying witness has dealt with a request.
    fn lied(&mut self, to: usize, from: usize, start: u64, id: u64, bytes: &[u8]) -> bool {
        let Some(mut liar) = self.liars.remove(&to) else {
            return false;
        };
        let config = self.config(to);
        let asker = self.peer_of(from);
        let links: Vec<PeerId> = self.nodes[to]
            .links
            .iter()
            .map(|other| self.peer_of(*other))
            .collect();
        let node = &self.nodes[to];
        let now = node.clock.at(self.base, self.now);
        let lie = node.core.as_ref().and_then(|core| {
            let chance = (now, &mut self.rng);
            liar.lie(core, &config, &node.keys, (asker, bytes), &links, chance)
        });
        self.liars.insert(to, liar);
        match lie {
            None => return false,
            Some(Lie::Silence) => {}
            Some(Lie::Answer(bytes)) => {
                let result = Ok(bytes);
                self.later(Action::Reply {
                    to: from,
                    start,
                    id,
                    result,
                });
            }
        }
        self.tally.lies += 1;
        true
    }

    fn link_changed(&mut self, node: usize, other: usize, up: bool) {
        let peer = self.peer_of(other);
        let state = &mut self.nodes[node];
        if !state.is_up() || state.links.contains(&other) != up {
            return;
        }
        if up && state.known_links.insert(other) {
            self.input(node, Input::MemberUp { peer });
        } else if !up && state.known_links.remove(&other) {
            self.input(node, Input::MemberDown { peer });
        }
    }

    /// A timer may have been set earlier than it is needed by now: then it is set anew.
    fn timer_rang(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.timer != Some(self.now) {
            return;
        }
        node.timer = None;
        let now = node.clock.at(self.base, self.now);
        let due = node.core.as_ref().and_then(Register::poll_timeout);
        if due.is_some_and(|due| due <= now.instant) {
            self.with(index, |core, now| core.handle_timeout(now));
        } else {
            self.set_timer(index);
        }
    }

    fn set_timer(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(due) = node.core.as_ref().and_then(Register::poll_timeout) else {
            return;
        };
        let due = node.clock.when(self.base, due);
        let due = due.max(self.now + Duration::from_micros(1));
        if node.timer.is_none_or(|timer| timer > due) {
            node.timer = Some(due);
            self.schedule(due, Action::Timer { node: index });
        }
    }

    pub(crate) fn input(&mut self, index: usize, input: Input) {
        self.with(index, |core, now| core.handle_input(input, now));
    }

    /// Takes everything that a core wants done and told, and sets its timer.
    pub(crate) fn drain(&mut self, index: usize) {
        while let Some(output) = self.nodes[index].core.as_mut().and_then(Register::poll_output) {
            self.output(index, output);
        }
        while let Some(event) = self.nodes[index].core.as_mut().and_then(Register::poll_event) {
            self.event(index, event);
        }
        self.set_timer(index);
    }

    fn output(&mut self, index: usize, output: Output) {
        let start = self.nodes[index].start;
        match output {
            Output::Answer { bytes, .. } => {
                self.tally.messages += 1;
                let Some((to, start, id)) = self.asker else {
                    return;
                };
                if !self.reachable(index, to) {
                    self.tally.swallowed += 1;
                } else if !self.lost() {
                    let result = Ok(bytes);
                    self.later(Action::Reply {
                        to,
                        start,
                        id,
                        result,
                    });
                }
            }
            Output::Send { to, id, bytes } => self.send(index, to, id, bytes),
            Output::Locate { query, key } if self.routing == Routing::Kademlia => {
                self.locate(index, query, key);
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
            Output::Gossip(bytes) if self.routing == Routing::Kademlia => self.flood(index, bytes),
            Output::Gossip(bytes) => {
                let bytes: Rc<[u8]> = bytes.into();
                for to in 0..self.nodes.len() {
                    if to != index && self.reachable(index, to) && !self.lost() {
                        self.later(Action::Gossip {
                            to,
                            from: index,
                            bytes: Rc::clone(&bytes),
                        });
                    }
                }
            }
        }
    }

    pub(crate) fn send(&mut self, from: usize, to: PeerId, id: u64, bytes: Vec<u8>) {
        let start = self.nodes[from].start;
        let (peer, to) = (to, self.by_peer.get(&to).copied());
        if self.routing == Routing::Kademlia && to.is_none_or(|to| !self.is_linked(from, to)) {
            return self.send_later(from, peer, id, bytes);
        }
        self.tally.messages += 1;
        if let Some(to) = to {
            self.begin_request(from, to, id);
        }
        let to = to.map(|to| match self.nodes[to].twin {
            // Two connections to one peer id: a request takes either.
            Some(twin) if self.nodes[twin].is_up() && twin != from && self.rng.random_bool(0.5) => twin,
            _ => to,
        });
        match to {
            Some(to) if self.reachable(from, to) => {
                let again = self.rng.random_bool(self.conditions.duplicate);
                if again {
                    self.tally.doubled += 1;
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
            // Over a connection that is not yet known to be dead, or in the direction that is cut.
            Some(to) if self.nodes[from].known_links.contains(&to) => self.tally.swallowed += 1,
            _ => {
                let result = Err(SendError::Unreachable);
                self.later(Action::Reply {
                    to: from,
                    start,
                    id,
                    result,
                });
            }
        }
    }

    fn event(&mut self, index: usize, event: Event) {
        let kind = match &event {
            Event::Held(lease) | Event::Renewed(lease) => lease.leased.kind(),
            Event::Waiting { kind, .. } | Event::Failed { kind, .. } | Event::Lost { kind, .. } => *kind,
            _ => Kind::Addr,
        };
        if kind == Kind::Prefix {
            return self.routed_event(index, event);
        }
        let node = &mut self.nodes[index];
        match event {
            Event::Held(lease) | Event::Renewed(lease) => {
                let until = node.clock.when(self.base, lease.until);
                match node.asking.take() {
                    Some(asked) => {
                        let millis = self.now.saturating_sub(asked).as_millis();
                        self.tally.claims.push(u32::try_from(millis).unwrap_or(u32::MAX));
                        self.tally.held += 1;
                    }
                    None => {
                        self.tally.renewed += 1;
                        self.tally.lapsed += u64::from(node.until < self.now);
                    }
                }
                node.until = until;
                if let Some(bereft) = node.bereft.take() {
                    node.moved = Some(self.now.saturating_sub(bereft));
                }
                self.relies(index, &lease, until);
                self.nodes[index].told = Told::Held(Box::new(lease));
            }
            Event::Waiting { reason, .. } => {
                if !matches!(node.told, Told::Held(_)) {
                    node.told = Told::Waiting(reason);
                }
            }
            Event::Failed { failure, .. } => {
                if !matches!(node.told, Told::Failed(_)) {
                    self.tally.refused += 1;
                }
                if !failure.is_retried() {
                    node.asking = None;
                }
                node.told = Told::Failed(failure);
            }
            Event::Lost { reason, .. } => {
                node.asking = Some(self.now);
                node.bereft = Some(self.now);
                if let LostReason::Conflict { winner, leased } = &reason {
                    node.conflicts += 1;
                    let live = node.until > self.now;
                    self.lost_to(index, *winner, *leased, live);
                }
                self.checker.gave_back(index, Kind::Addr);
                self.nodes[index].told = Told::Lost(reason);
            }
            Event::LookedUp { id, found } => {
                self.found.insert((index, id), found);
            }
            Event::Ready | Event::CloneSeen { .. } | Event::SetChanged { .. } | Event::Left => {}
        }
    }

    /// A node has both certificates of a lease, valid until `until`.
    pub(crate) fn relies(&mut self, index: usize, lease: &HeldLease, until: Duration) {
        for (key, rival) in self.checker.rivals(index, lease, self.now) {
            if self.has_moved_on(rival, key) {
                self.checker.moved_on(key, rival);
            }
        }
        self.checker.holds(index, lease, until, self.now);
    }

    /// A node has lost its address, or its prefix, to another holder: to an older lease of the other side of a partition, or to nothing
    /// that may take a live lease. One that was given up, of which a certificate came back, may if nobody can ask.
    pub(crate) fn lost_to(&mut self, index: usize, winner: PeerId, leased: Leased, live: bool) {
        let winner = self.by_peer.get(&winner).copied();
        if !live || winner.is_some_and(|winner| self.checker.was_rival(index, winner)) {
            self.tally.yielded += 1;
            // One that is away may come back to its lease, and nobody else has the address until that ends.
            let away = winner.is_none_or(|winner| !self.nodes[winner].is_up() || self.is_paused(winner));
            *self.turns(index, leased.kind()) += u64::from(away);
            return;
        }
        let key = leased.key(Self::grid());
        if winner.is_some_and(|winner| !self.checker.relies(key, winner, self.now)) {
            // The other side of a partition did not hear that it was given back, and no witness signed both. Its former
            // holder, if it can be asked, says so; one that is paused or cut off may rely on it yet.
            self.tally.revived += 1;
            *self.turns(index, leased.kind()) += 1;
            return;
        }
        self.tally.live_lost += 1;
        self.checker.violated(format!(
            "at {:?} node {index} lost {leased} to node {winner:?} while its own lease was live",
            self.now
        ));
    }

    fn turns(&mut self, index: usize, kind: Kind) -> &mut u64 {
        let node = &mut self.nodes[index];
        match kind {
            Kind::Addr => &mut node.turns,
            Kind::Prefix => &mut node.routed.turns,
        }
    }

    /// Whether a node runs and does not rely on a key any more: after a restart it took another address.
    fn has_moved_on(&self, index: usize, key: Key) -> bool {
        let node = &self.nodes[index];
        let relies =
            |lease: HeldLease| lease.certificate.terms.key == key || lease.name_certificate.terms.key == key;
        node.is_up() && !node.leases().any(relies)
    }

    fn lost(&mut self) -> bool {
        let lost = self.rng.random_bool(self.conditions.loss);
        self.tally.lost += u64::from(lost);
        lost
    }
}
