//! Inner packets: to whom they belong, and what happens to those that cannot go on yet.
//!
//! A virtual address is bound to the member that the caller names for it ([`Tunnels::resolved`]). Out goes a packet
//! to the member its destination is bound to; in comes a packet only from the member its source is bound to. An IPv6
//! address stands for the IPv4 address in it ([`aerie_types::Ula`]) and is bound with it.
//! Packets for or from an address that is not known yet wait, a bounded number, while the caller is asked.

use std::time::Instant;

use aerie_types::{PeerId, VirtualAddr};

use super::bindings::UNREACHED;
use super::{Event, Hop, RemotePeer, Tunnels};
use crate::inner::{self, Addresses};
use crate::limits::{
    LOOKUP_RETRY, LOOKUP_TIMEOUT, MAX_INNER, MAX_LOOKUPS, MAX_PINGS, MAX_QUEUED, MAX_QUEUED_TOTAL,
    PING_RETRY, PING_TIMEOUT,
};
use crate::path::Route;
use crate::peer::Peer;
use crate::wire::DATA_OVERHEAD;
use crate::{Now, Transmits};

const PING: u8 = 1;
const PONG: u8 = 2;
const CONTROL_LEN: usize = 9;

/// A look-up that is under way and what waits for it.
pub(super) struct Lookup {
    pub(super) since: Instant,
    pub(super) asked: Instant,
    /// Packets from here to the address.
    pub(super) outbound: Vec<Vec<u8>>,
    /// Packets that claim to come from the address, with their sender.
    pub(super) inbound: Vec<(PeerId, Vec<u8>)>,
}

pub(super) struct Ping {
    pub(super) addr: VirtualAddr,
    pub(super) asked: Instant,
    sent: Option<(PeerId, Instant)>,
}

impl Ping {
    /// Whether it is to be sent, for the first time or because it was lost.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.sent.is_none_or(|(_, sent)| now >= sent + PING_RETRY)
    }

    /// When it is to be looked at again.
    pub(super) fn next(&self) -> Instant {
        let timeout = self.asked + PING_TIMEOUT;
        self.sent
            .map_or(timeout, |(_, sent)| timeout.min(sent + PING_RETRY))
    }
}

impl Tunnels {
    /// Takes a packet of this host and seals it into `out`. What cannot be sent yet is kept; what never can be is
    /// answered with ICMP.
    pub fn handle_inner(&mut self, packet: &[u8], now: Now, out: &mut Transmits) {
        let Some(addresses) = inner::addresses(packet) else {
            self.counters.misdirected += 1;
            return;
        };
        let own = self.config.addr;
        let ours = self.net.leased(addresses.source) == Some(own) && packet.len() <= MAX_INNER;
        if ours && self.is_for_all(addresses.destination) {
            self.send_to_all(packet, now.instant, out);
            return;
        }
        let to = self
            .net
            .leased(addresses.destination)
            .filter(|to| ours && *to != own);
        let Some(to) = to else {
            self.counters.misdirected += 1;
            return;
        };
        match self.holder(to, now.instant) {
            Some(peer) => self.send_to(peer, packet, now.instant, out),
            None => self.ask_for(to, packet, now.instant),
        }
    }

    /// The caller's answer to [`Event::Resolve`]; it may also be given unasked, and again when it changes.
    pub fn resolved(&mut self, addr: VirtualAddr, remote: Option<RemotePeer>, now: Now) {
        let at = now.instant;
        self.wake_at(at);
        let lookup = self.lookups.remove(&addr);
        if let Some(lookup) = &lookup {
            self.queued = self
                .queued
                .saturating_sub(lookup.outbound.len() + lookup.inbound.len());
        }
        let usable = remote.filter(|remote| remote.peer != self.identity.peer && addr != self.config.addr);
        let bound = usable.is_some_and(|remote| self.bind(addr, remote, at));
        let Some(remote) = usable.filter(|_| bound) else {
            self.not_found(addr, lookup, at);
            return;
        };
        self.unreachable.remove(&addr);
        let Some(lookup) = lookup else { return };
        let mut out = std::mem::take(&mut self.outbox);
        for packet in &lookup.outbound {
            self.send_to(remote.peer, packet, at, &mut out);
        }
        self.outbox.append(&mut out);
        for (from, packet) in lookup.inbound {
            if from != remote.peer {
                self.counters.spoofed_source += 1;
            } else if !self.declines(from, &packet, at) {
                self.deliver(from, packet);
            }
        }
    }

    /// Measures the round trip to an address inside the tunnel. The answer comes as [`Event::Pong`] or
    /// [`Event::PingFailed`] with this `id`.
    pub fn ping(&mut self, id: u64, addr: VirtualAddr, now: Now) {
        let at = now.instant;
        let refuse = |why: &str| Event::PingFailed {
            id,
            why: why.to_owned(),
        };
        if addr == self.config.addr {
            self.emit(refuse("this is the node's own address; ping another member"));
        } else if !self.config.range.contains(addr) {
            self.emit(refuse(
                "the address is outside the grid's range; 'aerie status' shows the range",
            ));
        } else if self.pings.len() >= MAX_PINGS {
            self.emit(refuse("too many pings at once; try again in a moment"));
        } else {
            self.pings.insert(
                id,
                Ping {
                    addr,
                    asked: at,
                    sent: None,
                },
            );
            self.send_pings(at);
            self.wake_at(at);
        }
    }

    /// Sends the pings whose peer is ready; asks for the others.
    pub(super) fn send_pings(&mut self, now: Instant) {
        let waiting: Vec<_> = self.pings.iter().filter(|(_, ping)| ping.is_due(now)).collect();
        let waiting: Vec<_> = waiting.into_iter().map(|(id, ping)| (*id, ping.addr)).collect();
        for (id, addr) in waiting {
            let Some(peer_id) = self.holder(addr, now) else {
                self.look_up(addr, now);
                continue;
            };
            let Some(peer) = self.peers.get_mut(&peer_id) else {
                continue;
            };
            peer.active = now;
            let asleep = !peer.agent.is_awake();
            peer.agent.wake(now);
            let Some(route) = peer.agent.route().filter(|_| peer.current.is_some()) else {
                peer.wants_session = true;
                self.peers.look_at(peer_id, now);
                continue;
            };
            let mut message = vec![PING];
            message.extend(id.to_be_bytes());
            if asleep {
                self.peers.look_at(peer_id, now);
            }
            if self.send_control(peer_id, route, &message, now)
                && let Some(ping) = self.pings.get_mut(&id)
            {
                ping.sent = Some((peer_id, now));
            }
        }
    }

    /// A message of the tunnel itself, which came in a session.
    pub(super) fn handle_control(&mut self, from: PeerId, route: Route, message: &[u8], now: Instant) {
        let [kind, id @ ..] = message else { return };
        let Ok(id) = <[u8; CONTROL_LEN - 1]>::try_from(id).map(u64::from_be_bytes) else {
            self.counters.malformed += 1;
            return;
        };
        match *kind {
            PING => {
                let mut answer = vec![PONG];
                answer.extend(id.to_be_bytes());
                // Back the way it came: this side may not have chosen one yet.
                self.send_control(from, route, &answer, now);
            }
            PONG => {
                let Some(ping) = self.pings.get(&id) else { return };
                let Some((_, sent)) = ping.sent.filter(|(peer, _)| *peer == from) else {
                    return;
                };
                self.pings.remove(&id);
                let rtt = now.saturating_duration_since(sent);
                let path = self.peers.get(&from).map(|peer| self.path_of(peer));
                self.emit(Event::Pong {
                    id,
                    rtt,
                    path: path.unwrap_or(crate::PathKind::None),
                });
            }
            _ => self.counters.malformed += 1,
        }
    }

    /// Whether an inner packet may be delivered. If its source is not known yet it is kept, and `false`.
    pub(super) fn accept_inner(&mut self, from: PeerId, packet: &[u8], now: Instant) -> bool {
        let own = self.config.addr;
        let here = |found: &Addresses| {
            self.net.leased(found.destination) == Some(own)
                || (self.is_for_all(found.destination) && self.is_in_group(found.source))
        };
        let Some(addresses) = inner::addresses(packet).filter(here) else {
            self.counters.misdirected += 1;
            return false;
        };
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.active = now;
            peer.rx_bytes += packet.len() as u64;
            if !peer.agent.is_awake() {
                peer.agent.wake(now);
                self.peers.look_at(from, now);
            }
        }
        let Some(source) = self.net.leased(addresses.source) else {
            self.counters.spoofed_source += 1;
            return false;
        };
        match self.holder(source, now) {
            Some(holder) if holder == from => {
                if self.declines(from, packet, now) {
                    return false;
                }
                self.counters.received += 1;
                true
            }
            Some(_) => {
                self.counters.spoofed_source += 1;
                self.doubt_binding(from, source, now);
                false
            }
            None => {
                self.keep_inbound(from, source, packet, now);
                false
            }
        }
    }

    /// Sends what waited for a session. How many packets that was.
    pub(super) fn flush_queue(&mut self, id: PeerId, now: Instant) -> usize {
        let Some(peer) = self.peers.get_mut(&id) else {
            return 0;
        };
        let queue = std::mem::take(&mut peer.queue);
        self.queued = self.queued.saturating_sub(queue.len());
        let mut out = std::mem::take(&mut self.outbox);
        for packet in &queue {
            self.send_to(id, packet, now, &mut out);
        }
        self.outbox.append(&mut out);
        self.send_pings(now);
        queue.len()
    }

    /// Answers what waited for a peer that cannot be reached.
    pub(super) fn give_up_queue(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let queue = std::mem::take(&mut peer.queue);
        self.queued = self.queued.saturating_sub(queue.len());
        // Somebody else may have its addresses by now.
        let addrs = if queue.is_empty() {
            Vec::new()
        } else {
            peer.addrs.clone()
        };
        for addr in addrs {
            self.ask_anew(addr, UNREACHED, now);
        }
        for packet in queue {
            self.answer_unreachable(&packet, now);
        }
    }

    pub(super) fn send_keepalive(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let hop = peer.agent.route().and_then(|route| Hop::of(route, &self.links));
        if let Some(hop) = hop {
            seal(peer, hop, &[], now, &mut self.outbox);
        }
        peer.keepalive_at = None;
    }

    /// Gives up look-ups that took too long, and asks again for others. The next time to look.
    pub(super) fn drive_lookups(&mut self, now: Instant) -> Option<Instant> {
        self.unreachable.retain(|_, until| *until > now);
        let mut again = Vec::new();
        let mut expired = Vec::new();
        for (addr, lookup) in &mut self.lookups {
            if now >= lookup.since + LOOKUP_TIMEOUT {
                expired.push(*addr);
            } else if now >= lookup.asked + LOOKUP_RETRY {
                lookup.asked = now;
                again.push(*addr);
            }
        }
        for addr in again {
            self.emit(Event::Resolve(addr));
        }
        for addr in expired {
            let lookup = self.lookups.remove(&addr);
            if let Some(lookup) = &lookup {
                self.queued = self
                    .queued
                    .saturating_sub(lookup.outbound.len() + lookup.inbound.len());
            }
            self.not_found(addr, lookup, now);
        }
        let next = |lookup: &Lookup| (lookup.asked + LOOKUP_RETRY).min(lookup.since + LOOKUP_TIMEOUT);
        self.lookups.values().map(next).min()
    }

    pub(super) fn ask_for(&mut self, addr: VirtualAddr, packet: &[u8], now: Instant) {
        if self.unreachable.get(&addr).is_some_and(|until| *until > now) {
            self.answer_unreachable(packet, now);
            return;
        }
        let room = self.queued < MAX_QUEUED_TOTAL;
        match self.look_up(addr, now) {
            Some(lookup) if room && lookup.outbound.len() < MAX_QUEUED => {
                lookup.outbound.push(packet.to_vec());
                self.queued += 1;
            }
            _ => self.counters.queue_full += 1,
        }
    }

    fn keep_inbound(&mut self, from: PeerId, source: VirtualAddr, packet: &[u8], now: Instant) {
        let known = self.lookups.contains_key(&source);
        let allowed = known
            || self
                .peers
                .get_mut(&from)
                .is_some_and(|peer| peer.lookups.take(1, now));
        if !allowed || !self.config.range.contains(source) || source == self.config.addr {
            self.counters.spoofed_source += 1;
            return;
        }
        let room = self.queued < MAX_QUEUED_TOTAL;
        match self.look_up(source, now) {
            Some(lookup) if room && lookup.inbound.len() < MAX_QUEUED => {
                lookup.inbound.push((from, packet.to_vec()));
                self.queued += 1;
            }
            _ => self.counters.queue_full += 1,
        }
    }

    fn look_up(&mut self, addr: VirtualAddr, now: Instant) -> Option<&mut Lookup> {
        if !self.lookups.contains_key(&addr) {
            if self.lookups.len() >= MAX_LOOKUPS {
                return None;
            }
            self.emit(Event::Resolve(addr));
            self.wake_at(now + LOOKUP_RETRY);
        }
        Some(self.lookups.entry(addr).or_insert_with(|| Lookup {
            since: now,
            asked: now,
            outbound: Vec::new(),
            inbound: Vec::new(),
        }))
    }

    /// Answers a packet of a family that this host does not take. Whether it was one.
    fn declines(&mut self, from: PeerId, packet: &[u8], now: Instant) -> bool {
        if self.ipv6 || !inner::is_v6(packet) {
            return false;
        }
        self.counters.undeliverable += 1;
        if self.icmp_rate.take(1, now)
            && let Some(answer) = inner::unreachable(packet)
        {
            let mut out = std::mem::take(&mut self.outbox);
            self.send_to(from, &answer, now, &mut out);
            self.outbox.append(&mut out);
        }
        true
    }

    fn deliver(&mut self, from: PeerId, packet: Vec<u8>) {
        self.counters.received += 1;
        tracing::trace!(peer = %from.short(), "delivered a packet that waited for its source");
        self.inbox.push_back(packet);
    }

    /// Seals a packet to a peer, or keeps it until that can be done.
    pub(super) fn send_to(&mut self, id: PeerId, packet: &[u8], now: Instant, out: &mut Transmits) {
        let Some(mut peer) = self.peers.get_mut(&id) else {
            self.counters.undeliverable += 1;
            return;
        };
        if packet.len() > peer.mtu.inner() {
            if self.send_shorter(id, packet, now, out) {
                return;
            }
            let Some(still) = self.peers.get_mut(&id) else {
                return;
            };
            peer = still;
        }
        peer.active = now;
        let mut look = None;
        if !peer.agent.is_awake() {
            peer.agent.wake(now);
            self.reflexive.refresh(now);
            self.wake = Some(now);
            look = Some(now);
        }
        let hop = peer.agent.route().and_then(|route| Hop::of(route, &self.links));
        if let Some(hop) = hop
            && seal(peer, hop, packet, now, out)
        {
            self.counters.sent += 1;
            peer.tx_bytes += packet.len() as u64;
            let doubt = peer.mtu.sent(hop.frame() + packet.len() + DATA_OVERHEAD, now);
            if peer
                .current
                .as_ref()
                .is_some_and(|session| session.wants_renewal(now))
                && !peer.wants_session
            {
                peer.wants_session = true;
                look = Some(now);
            }
            let due = [look, doubt, peer.sealed(true, now)];
            if let Some(at) = due.into_iter().flatten().min() {
                self.peers.look_at(id, at);
            }
            return;
        }
        if self.queued < MAX_QUEUED_TOTAL && peer.keep(packet) {
            self.queued += 1;
        } else {
            self.counters.queue_full += 1;
        }
        self.peers.look_at(id, now);
    }

    fn send_control(&mut self, id: PeerId, route: Route, message: &[u8], now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else {
            return false;
        };
        let Some(hop) = Hop::of(route, &self.links) else {
            return false;
        };
        let sent = seal(peer, hop, message, now, &mut self.outbox);
        if sent && let Some(at) = peer.sealed(true, now) {
            self.peers.look_at(id, at);
        }
        sent
    }

    pub(super) fn answer_unreachable(&mut self, packet: &[u8], now: Instant) {
        self.counters.undeliverable += 1;
        let for_all = inner::destination(packet).is_some_and(|destination| self.is_for_all(destination));
        if !for_all
            && self.icmp_rate.take(1, now)
            && let Some(answer) = inner::unreachable(packet)
        {
            self.inbox.push_back(answer);
        }
    }
}

fn seal(peer: &mut Peer, hop: Hop, plain: &[u8], now: Instant, out: &mut Transmits) -> bool {
    let Some(session) = peer.sealing(now) else {
        return false;
    };
    hop.push(out, plain.len() + DATA_OVERHEAD, |slot| {
        session.seal(plain, slot, now)
    })
}
