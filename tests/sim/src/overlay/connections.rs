//! The connections of simulated nodes: how they are made, when their ends have them, and how they close.

use std::time::Duration;

use aerie_dht_proto::Input;
use rand::RngExt;

use super::{Carried, DIAL_TIMEOUT, REQUEST_TIMEOUT};
use crate::kad::{Contact, HANDSHAKE, IDENTIFY, REFUSED};
use crate::net::Action;
use crate::world::World;

impl World {
    /// Two nodes and a connection that the first has to the second, of which the second knows nothing.
    #[must_use]
    pub fn one_sided(&self) -> Option<(usize, usize, u64)> {
        let ends = self.nodes.iter().filter_map(|node| {
            let links = node.overlay.as_ref()?.links.iter();
            Some(links.map(|(other, connection)| (node.index, other, connection)))
        });
        ends.flatten()
            .find(|(at, other, connection)| !self.has_connection(*other, *at, *connection))
    }

    /// Whether messages pass between two nodes in both directions.
    pub(super) fn connectable(&self, one: usize, other: usize) -> bool {
        self.reachable(one, other) && self.reachable(other, one)
    }

    /// Whether a node has a connection to another one, as far as it knows.
    pub(crate) fn is_linked(&self, at: usize, other: usize) -> bool {
        let overlay = self.nodes[at].overlay.as_ref();
        overlay.is_some_and(|overlay| overlay.links.has(other))
    }

    pub(super) fn has_connection(&self, at: usize, other: usize, connection: u64) -> bool {
        let overlay = self.nodes[at].overlay.as_ref();
        overlay.is_some_and(|overlay| overlay.links.with(other).contains(&(other, connection)))
    }

    /// Connections over which nothing passes any more break when their ends notice.
    pub(crate) fn break_links(&mut self) {
        for at in 0..self.nodes.len() {
            let Some(overlay) = &self.nodes[at].overlay else {
                continue;
            };
            let links = overlay.links.iter();
            let cut: Vec<_> = links
                .filter(|(other, _)| self.nodes[*other].is_up() && !self.connectable(at, *other))
                .collect();
            for (other, connection) in cut {
                let noticed = self.noticed();
                let what = Carried::Silent { other, connection };
                self.schedule(self.now + noticed, Action::Overlay { at, what });
            }
        }
    }

    pub(super) fn noticed(&mut self) -> Duration {
        let most = u64::try_from(self.conditions.detection.as_millis()).unwrap_or(u64::MAX);
        self.delay() + Duration::from_millis(self.rng.random_range(0..=most))
    }

    /// When the connection opens at a node over which another one has sent something already, having been dialled: what
    /// a connection carries does not overtake its handshake.
    pub(crate) fn opens_at(&self, from: usize, at: usize) -> Option<Duration> {
        if self.opening.is_empty() || self.is_linked(at, from) {
            return None;
        }
        let overlay = self.nodes[from].overlay.as_ref()?;
        let links = overlay.links.with(at).iter();
        links
            .filter_map(|(_, connection)| self.opening.get(connection))
            .min()
            .copied()
    }

    /// Whether what one node sends over a connection arrives at the other. A process that knows nothing of the
    /// connection resets it.
    pub(crate) fn takes(&mut self, from: usize, at: usize) -> bool {
        if !self.reachable(from, at) {
            return false;
        }
        if self.is_linked(at, from) {
            return true;
        }
        let overlay = self.nodes[from].overlay.as_ref();
        let stale = overlay.map(|overlay| overlay.links.with(at).to_vec());
        for (_, connection) in stale.unwrap_or_default() {
            let what = Carried::Closed {
                other: at,
                connection,
            };
            self.carry(1, from, what);
        }
        false
    }

    pub(super) fn dial(&mut self, from: usize, contact: Contact) {
        self.connections += 1;
        let dial = self.connections;
        self.tally.dials += 1;
        let other = self.by_peer.get(&contact.peer).copied();
        let Some(overlay) = &mut self.nodes[from].overlay else {
            return;
        };
        let Some(other) = other else { return };
        overlay.dials.insert(other, dial);
        let failed = |other| Carried::DialFailed { other, dial };
        if !self.nodes[other].is_up() && self.passes(from, other) && self.passes(other, from) {
            self.carry(REFUSED, from, failed(other));
            return;
        }
        self.carry(HANDSHAKE - 1, other, Carried::Knock { from, dial });
        let late = Action::Overlay {
            at: from,
            what: failed(other),
        };
        self.schedule(self.now + DIAL_TIMEOUT, late);
    }

    /// A handshake has come to its last message, which the side that was dialled sends.
    pub(super) fn knock(&mut self, at: usize, from: usize, dial: u64) {
        if !self.passes(from, at) || !self.passes(at, from) {
            return;
        }
        if !self.nodes[at].is_up() {
            self.carry(1, from, Carried::DialFailed { other: at, dial });
            return;
        }
        self.connections += 1;
        let connection = self.connections;
        self.connect(at, from, connection);
        let opened = Carried::Opened {
            other: at,
            dial,
            connection,
        };
        let opens = self.carry(1, from, opened);
        self.opening.insert(connection, opens);
    }

    pub(super) fn opened(&mut self, at: usize, other: usize, dial: u64, connection: u64) {
        self.opening.remove(&connection);
        let whole = self.passes(at, other) && self.passes(other, at);
        let overlay = self.nodes[at].overlay.as_mut();
        let wanted = overlay.is_some_and(|overlay| {
            let wanted = whole && overlay.dials.get(&other) == Some(&dial);
            if wanted {
                overlay.dials.remove(&other);
            }
            wanted
        });
        if wanted && self.has_connection(other, at, connection) {
            return self.connect(at, other, connection);
        }
        if wanted {
            // It died or closed the connection meanwhile.
            let contact = self.contact(other);
            self.on_overlay(at, |overlay, now| overlay.member.dial_failed(contact, now));
        }
        let noticed = if whole { self.delay() } else { self.noticed() };
        let what = Carried::Closed {
            other: at,
            connection,
        };
        self.schedule(self.now + noticed, Action::Overlay { at: other, what });
    }

    fn connect(&mut self, at: usize, other: usize, connection: u64) {
        let contact = self.contact(other);
        let Some(overlay) = &mut self.nodes[at].overlay else {
            return;
        };
        let is_first = overlay.links.add(other, connection);
        let identified = Carried::Identified { other, connection };
        self.carry(IDENTIFY, at, identified);
        if is_first {
            let node = &mut self.nodes[at];
            node.links.insert(other);
            node.known_links.insert(other);
            self.input(at, Input::MemberUp { peer: contact.peer });
            self.on_overlay(at, |overlay, now| overlay.member.linked(contact, now));
        }
    }

    pub(super) fn close(&mut self, at: usize, other: usize, connection: u64) {
        let contact = self.contact(other);
        let Some(overlay) = &mut self.nodes[at].overlay else {
            return;
        };
        if overlay.links.remove(other, connection) {
            let node = &mut self.nodes[at];
            node.links.remove(&other);
            node.known_links.remove(&other);
            self.input(at, Input::MemberDown { peer: contact.peer });
            self.on_overlay(at, |overlay, now| overlay.member.closed(contact, now));
        }
    }

    pub(super) fn dial_failed(&mut self, at: usize, other: usize, dial: u64) {
        let Some(overlay) = &mut self.nodes[at].overlay else {
            return;
        };
        if overlay.dials.get(&other) == Some(&dial) {
            overlay.dials.remove(&other);
            let contact = self.contact(other);
            self.on_overlay(at, |overlay, now| overlay.member.dial_failed(contact, now));
        }
    }

    /// A node drops another one: it closes its connections in order.
    pub(super) fn hang_up(&mut self, at: usize, other: usize) {
        let contact = self.contact(other);
        self.on_overlay(at, |overlay, now| overlay.member.dropped(contact, now));
        let overlay = self.nodes[at].overlay.as_ref();
        let links = overlay.map(|overlay| overlay.links.with(other).to_vec());
        for (_, connection) in links.unwrap_or_default() {
            let what = Carried::Closed {
                other: at,
                connection,
            };
            self.carry(1, other, what);
            self.close(at, other, connection);
        }
    }

    /// Whether requests of either of two nodes to the other are under way, so that their connection is not closed for
    /// lack of room.
    pub(super) fn in_flight(&mut self, one: usize, other: usize) -> bool {
        let since = self.now.saturating_sub(REQUEST_TIMEOUT);
        let mut asks = |at: usize, to: usize| {
            let Some(overlay) = &mut self.nodes[at].overlay else {
                return false;
            };
            overlay.requests.retain(|_, (_, begun)| *begun > since);
            overlay.requests.values().any(|(of, _)| *of == to)
        };
        asks(one, other) || asks(other, one)
    }

    /// Notes a request of the register, for as long as it may take.
    pub(crate) fn begin_request(&mut self, from: usize, to: usize, id: u64) {
        let now = self.now;
        if let Some(overlay) = &mut self.nodes[from].overlay {
            overlay.requests.insert(id, (to, now));
        }
    }

    pub(crate) fn end_request(&mut self, from: usize, id: u64) {
        if let Some(overlay) = &mut self.nodes[from].overlay {
            overlay.requests.remove(&id);
        }
    }
}
