//! Who is connected with whom, who is closest to a key, and what a partition does to both.
//!
//! This is the oracle: it knows who runs, and connections heal at once. Where Kademlia routes, `overlay` has its place.
//!
//! Grids of up to [`MESHED`] running nodes are fully meshed. In a larger one each node keeps connections to those
//! nearest to it in the key space and to a few others. A change of one node touches only those around it.

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_types::{Key, PeerId};
use rand::RngExt;

use crate::conditions::Cut;
use crate::net::Action;
use crate::overlay::Routing;
use crate::world::World;

/// Members that a look-up returns.
const LOCATED: usize = 20;

/// Grids up to this size are fully meshed.
const MESHED: usize = 40;

/// Neighbours in the key space to which a node of a large grid is connected, and others besides.
const NEAREST: usize = 24;
const OTHERS: usize = 6;

impl World {
    /// Tears the grid: nodes of different sides do not reach each other. One side for all heals it.
    pub fn partition(&mut self, side: impl Fn(usize) -> usize) {
        self.tear(Cut::Both, side);
    }

    /// Tears the grid in one direction or in both.
    pub fn tear(&mut self, cut: Cut, side: impl Fn(usize) -> usize) {
        for index in 0..self.sides.len() {
            self.sides[index] = side(index);
        }
        let torn = self.sides.windows(2).any(|pair| pair[0] != pair[1]);
        let was = std::mem::replace(&mut self.torn, torn);
        self.cut = if torn { cut } else { Cut::Both };
        match (torn, cut) {
            (true, Cut::Both) => self.tally.partitions += 1,
            (true, Cut::Upward) => self.tally.one_way += 1,
            (false, _) => self.tally.heals += u64::from(was),
        }
        // Kademlia's connections need both directions, so that either cut tears the grid in two.
        let in_two = cut == Cut::Both || self.routing == Routing::Kademlia;
        self.checker.torn(torn && in_two, self.now);
        self.relink();
    }

    /// Puts a node on a side of the partition that there is.
    pub fn put_on_side(&mut self, index: usize, side: usize) {
        self.sides[index] = side;
        self.relink();
    }

    /// Whether connections between two sides break.
    fn apart(&self, one: usize, other: usize) -> bool {
        self.cut == Cut::Both && self.sides[one] != self.sides[other]
    }

    fn ring_of(&self, index: usize) -> usize {
        match self.cut {
            Cut::Both => self.sides[index],
            Cut::Upward => 0,
        }
    }

    /// Whether a message passes from one node to another.
    pub(crate) fn reachable(&self, from: usize, to: usize) -> bool {
        self.passes(from, to) && self.nodes[from].is_up() && self.nodes[to].is_up()
    }

    /// Whether the network lets something through from one machine to another.
    pub(crate) fn passes(&self, from: usize, to: usize) -> bool {
        match self.cut {
            Cut::Both => self.sides[from] == self.sides[to],
            Cut::Upward => self.sides[from] <= self.sides[to],
        }
    }

    /// The members closest to a key, by a view that may be stale.
    pub(crate) fn closest(&mut self, index: usize, key: Key) -> Vec<PeerId> {
        let stale = u64::try_from(self.conditions.staleness.as_millis()).unwrap_or(u64::MAX);
        let age = Duration::from_millis(self.rng.random_range(0..=stale));
        let then = self.now.saturating_sub(age);
        let position = key.position();
        let side = self.ring_of(index);
        // A copy has the position of its twin, and is the same peer.
        let nodes = &self.nodes;
        let shunned = self.shunned.get(&index);
        let unseen = |other: usize| shunned.is_some_and(|shunned| shunned.contains(&other));
        let wanted = |other: usize| other != index && nodes[other].came <= then && !unseen(other);
        let mut found = match self.rings.get(&side) {
            Some(ring) => ring.closest(&position, LOCATED + 2, wanted),
            None => Vec::new(),
        };
        let gone = self.gone.iter().rev().take_while(|(at, _)| *at > then);
        let gone = gone.map(|(_, other)| *other);
        let gone: BTreeSet<_> = gone
            .filter(|other| wanted(*other) && !nodes[*other].is_up() && self.ring_of(*other) == side)
            .collect();
        if !gone.is_empty() {
            found.extend(gone);
            found.sort_by_key(|other| nodes[*other].position.distance(&position));
        }
        let mut peers: Vec<_> = found.into_iter().map(|other| self.peer_of(other)).collect();
        peers.dedup();
        peers.truncate(LOCATED);
        peers
    }

    /// A node has started: it connects, and its neighbours choose anew.
    pub(crate) fn came_up(&mut self, index: usize) {
        if self.routing == Routing::Kademlia {
            return self.join_overlay(index);
        }
        self.running += 1;
        let (position, side) = (self.nodes[index].position, self.ring_of(index));
        let ring = self.rings.entry(side).or_default();
        ring.insert(position, index);
        let size = ring.len();
        if self.running == MESHED + 1 {
            return self.relink();
        }
        if self.running <= MESHED {
            self.choose(index);
            for other in self.nodes[index].near.clone() {
                self.nodes[other].near.insert(index);
            }
            return;
        }
        for _ in 0..OTHERS {
            let place = self.rng.random_range(0..size);
            let other = self.rings.get(&side).and_then(|ring| ring.get(place));
            if let Some(other) = other.filter(|other| *other != index && !self.twins(index, *other)) {
                self.nodes[index].far.insert(other);
                self.nodes[other].far.insert(index);
                self.link(index, other);
            }
        }
        self.choose(index);
        let around = self
            .rings
            .get(&side)
            .map(|ring| ring.around(&position, NEAREST + 1));
        for other in around.unwrap_or_default() {
            self.choose(other);
        }
    }

    /// A node has stopped: its connections break, and who counted on it chooses anew.
    pub(crate) fn went_down(&mut self, index: usize) {
        if self.routing == Routing::Kademlia {
            return self.leave_overlay(index);
        }
        self.running -= 1;
        let (position, side) = (self.nodes[index].position, self.ring_of(index));
        if let Some(ring) = self.rings.get_mut(&side) {
            ring.remove(position, index);
        }
        let stale = self.now.saturating_sub(self.conditions.staleness);
        self.gone.retain(|(at, _)| *at >= stale);
        self.gone.push((self.now, index));
        let node = &mut self.nodes[index];
        node.near.clear();
        node.known_links.clear();
        for other in std::mem::take(&mut node.far) {
            self.nodes[other].far.remove(&index);
        }
        let mut bereft = Vec::new();
        for other in self.nodes[index].links.clone() {
            self.unlink(index, other);
            if self.nodes[other].near.remove(&index) {
                bereft.push(other);
            }
        }
        if self.running == MESHED {
            return self.relink();
        }
        if self.running > MESHED {
            for other in bereft {
                self.choose(other);
            }
        }
    }

    /// Everybody chooses its connections anew.
    fn relink(&mut self) {
        if self.routing == Routing::Kademlia {
            return self.break_links();
        }
        self.rings.values_mut().for_each(|ring| ring.clear());
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|index| self.nodes[*index].is_up())
            .collect();
        for index in &up {
            let ring = self.rings.entry(self.ring_of(*index)).or_default();
            ring.insert(self.nodes[*index].position, *index);
        }
        self.rings.retain(|_, ring| ring.len() > 0);
        for index in up {
            for other in self.nodes[index].links.clone() {
                if self.apart(index, other) {
                    self.nodes[index].near.remove(&other);
                    self.nodes[other].near.remove(&index);
                    self.unlink(index, other);
                }
            }
            for other in self.nodes[index].far.clone() {
                if !self.apart(index, other) {
                    self.link(index, other);
                }
            }
            self.choose(index);
        }
    }

    /// A node chooses its neighbours.
    fn choose(&mut self, index: usize) {
        let side = self.ring_of(index);
        let count = if self.running <= MESHED { MESHED } else { NEAREST };
        let Some(ring) = self.rings.get(&side) else {
            return;
        };
        let position = self.nodes[index].position;
        let twin = self.nodes[index].twin;
        let wanted = |other: usize| other != index && Some(other) != twin;
        let near: BTreeSet<usize> = ring.closest(&position, count, wanted).into_iter().collect();
        let before = std::mem::replace(&mut self.nodes[index].near, near.clone());
        for other in before.difference(&near) {
            let needed = self.nodes[*other].near.contains(&index) || self.nodes[*other].far.contains(&index);
            if !needed {
                self.unlink(index, *other);
            }
        }
        for other in near.difference(&before) {
            self.link(index, *other);
        }
    }

    fn twins(&self, one: usize, other: usize) -> bool {
        self.nodes[one].twin == Some(other)
    }

    /// Breaks the connection of two nodes on one side only.
    pub(crate) fn cut_off(&mut self, node: usize, other: usize) {
        if self.nodes[node].links.remove(&other) {
            self.later(Action::Link {
                node,
                other,
                up: false,
            });
        }
    }

    /// Connects two nodes, and tells both a little later.
    fn link(&mut self, one: usize, other: usize) {
        for (node, other) in [(one, other), (other, one)] {
            let shunned = self.shunned.get(&node);
            let unseen = shunned.is_some_and(|shunned| shunned.contains(&other));
            if !unseen && self.nodes[node].links.insert(other) {
                self.later(Action::Link {
                    node,
                    other,
                    up: true,
                });
            }
        }
    }

    /// Takes the connection of two nodes away, which either notices in its time.
    fn unlink(&mut self, one: usize, other: usize) {
        let noticed = u64::try_from(self.conditions.detection.as_millis()).unwrap_or(u64::MAX);
        for (node, other) in [(one, other), (other, one)] {
            if self.nodes[node].links.remove(&other) {
                let delay = self.delay() + Duration::from_millis(self.rng.random_range(0..=noticed));
                self.schedule(
                    self.now + delay,
                    Action::Link {
                        node,
                        other,
                        up: false,
                    },
                );
            }
        }
    }
}
