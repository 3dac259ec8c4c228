//! Datagrams of the data socket.

use std::ops::Range;
use std::time::Instant;

use aerie_types::{PeerId, UnderlayAddr};

use super::{Hop, Tunnels};
use crate::Now;
use crate::path::Route;
use crate::peer::Slot;
use crate::session::Refused;
use crate::wire::{self, DATA_HEADER, Mac, Packet, RELAY_OVERHEAD};

/// Which way a datagram came, and how much of it was a relay's frame.
#[derive(Debug, Clone, Copy)]
struct Origin {
    start: usize,
    from: UnderlayAddr,
    route: Route,
}

impl Tunnels {
    /// Takes a received datagram and opens it where it lies. Where it holds a packet to deliver, says where.
    pub fn handle_datagram(
        &mut self,
        from: UnderlayAddr,
        bytes: &mut [u8],
        now: Now,
    ) -> Option<Range<usize>> {
        let origin = Origin {
            start: 0,
            from,
            route: Route::from(from),
        };
        self.handle_from(origin, bytes, now)
    }

    fn handle_from(&mut self, origin: Origin, bytes: &mut [u8], now: Now) -> Option<Range<usize>> {
        let at = now.instant;
        let Some(packet) = wire::parse(bytes) else {
            self.counters.malformed += 1;
            return None;
        };
        match packet {
            Packet::Data { receiver, counter } => {
                return self.handle_data(origin, receiver, counter, bytes, at);
            }
            Packet::RelayData { session } => return self.handle_frame(origin, session, bytes, now),
            Packet::Init {
                sender,
                tag,
                timestamp,
                noise,
                mac,
            } => {
                self.handle_init(origin.route, (sender, tag, timestamp), noise, mac, now);
            }
            Packet::Response {
                sender,
                receiver,
                noise,
                mac,
            } => {
                self.handle_response(origin.route, (sender, receiver), noise, mac, now);
            }
            Packet::Probe {
                tag,
                transaction,
                mac,
            } => self.handle_probe(origin, tag, transaction, mac, at),
            Packet::ProbeReply {
                tag,
                transaction,
                observed,
                mac,
            } => {
                self.handle_probe_reply(origin.route, tag, (transaction, observed), mac, at);
            }
            // How a connection looks from outside is of no use, and each has an address of its own for the limits.
            Packet::ReflexiveQuery { .. } | Packet::ReflexiveAnswer { .. }
                if origin.from.stream().is_some() =>
            {
                self.counters.malformed += 1;
            }
            Packet::ReflexiveQuery { transaction } => self.handle_query(origin.from, transaction, at),
            Packet::ReflexiveAnswer {
                transaction,
                observed,
            } => {
                if let Some(check) = &mut self.network_check {
                    check.answered(transaction, self.reflexive.asks(origin.from));
                }
                if self.streams.are_wanted() {
                    self.wake_at(at);
                }
                if self.reflexive.answered(origin.from, transaction, observed, at) {
                    self.peers.change(at, |peer| {
                        peer.agent.local_changed(at);
                        true
                    });
                }
            }
            Packet::RelayBind {
                session,
                end,
                sequence,
                mac,
            } => {
                if let Some(relay) = &mut self.relay {
                    let answers = relay.bind((session, end, sequence), mac, origin.from, at);
                    if !answers.is_empty() {
                        self.streams.proved(origin.from);
                    }
                    for (to, answer) in answers {
                        self.outbox.push(to, &answer);
                    }
                }
            }
            Packet::RelayBound {
                session,
                end,
                sequence,
                far_bound,
                mac,
            } => {
                self.handle_bound(origin.from, session, (end, sequence, far_bound), mac, at);
            }
        }
        None
    }

    /// A relay's frame: for this node as an end, or for it as the relay.
    fn handle_frame(
        &mut self,
        origin: Origin,
        session: u64,
        bytes: &mut [u8],
        now: Now,
    ) -> Option<Range<usize>> {
        if self
            .links
            .get(&session)
            .is_some_and(|link| link.addr == origin.from)
        {
            let datagram = bytes.get_mut(RELAY_OVERHEAD..)?;
            if !wire::may_be_relayed(datagram) {
                self.counters.malformed += 1;
                return None;
            }
            let origin = Origin {
                start: origin.start + RELAY_OVERHEAD,
                route: Route::Relayed(session),
                ..origin
            };
            return self.handle_from(origin, datagram, now);
        }
        let allowed = bytes.get(RELAY_OVERHEAD..).is_some_and(wire::may_be_relayed);
        let to = match &mut self.relay {
            Some(relay) if allowed => relay.forward(session, origin.from, bytes.len(), now.instant),
            _ => None,
        };
        match to {
            Some(to) => {
                self.counters.relayed += 1;
                if bytes.get(RELAY_OVERHEAD..).is_some_and(wire::is_padded_probe) {
                    // It asks for the whole way: the second half of it must not cut it either.
                    self.forwards.push_whole(to, bytes.len(), |slot| {
                        slot.copy_from_slice(bytes);
                        true
                    });
                } else {
                    self.forwards.push(to, bytes);
                }
            }
            None => self.counters.relay_refused += 1,
        }
        None
    }

    fn handle_data(
        &mut self,
        origin: Origin,
        receiver: u32,
        counter: u64,
        bytes: &mut [u8],
        now: Instant,
    ) -> Option<Range<usize>> {
        let Some(peer) = self.indices.get(&receiver).and_then(|id| self.peers.get_mut(id)) else {
            self.counters.unknown += 1;
            return None;
        };
        let Some(slot) = peer.slot_of(receiver) else {
            self.counters.unknown += 1;
            return None;
        };
        let session = peer.session(slot)?;
        let len = match session.open(bytes, counter, now) {
            Ok(len) => len,
            Err(Refused::Replayed) => {
                self.counters.replayed += 1;
                return None;
            }
            Err(Refused::Forged) => {
                self.counters.forged += 1;
                return None;
            }
            Err(Refused::Expired) => {
                self.counters.unknown += 1;
                return None;
            }
        };
        let id = peer.id;
        if slot == Slot::Next {
            let freed = peer.confirm_next(now);
            self.counters.handshakes += 1;
            self.free(freed);
            self.flush_queue(id, now);
            self.peers.look_at(id, now);
        }
        let peer = self.peers.get_mut(&id)?;
        let elsewhere = peer.agent.route() != Some(origin.route);
        // Roaming: the way moves once the new address has answered a probe, which goes out now, whatever else is due
        // later.
        peer.agent.heard(origin.route, now);
        let due = peer.opened(len > 0, now);
        if let Some(at) = elsewhere.then_some(now).or(due) {
            self.peers.look_at(id, at);
        }
        let packet = bytes.get(DATA_HEADER..DATA_HEADER + len)?;
        if packet.first()? >> 4 == 0 {
            self.handle_control(id, origin.route, packet, now);
            return None;
        }
        let start = origin.start + DATA_HEADER;
        self.accept_inner(id, packet, now).then(|| start..start + len)
    }

    fn handle_probe(&mut self, origin: Origin, tag: u64, transaction: u64, mac: Mac<'_>, now: Instant) {
        let Some(id) = self.peer_of_tag(tag, mac, now) else {
            return;
        };
        self.streams.proved(origin.from);
        let Some(hop) = Hop::of(origin.route, &self.links) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if let Some(reply) = peer
            .agent
            .handle_probe(origin.route, transaction, origin.from, now)
        {
            hop.push_bytes(&mut self.outbox, &reply);
        }
    }

    fn handle_probe_reply(
        &mut self,
        route: Route,
        tag: u64,
        (transaction, observed): (u64, UnderlayAddr),
        mac: Mac<'_>,
        now: Instant,
    ) {
        let Some(id) = self.peer_of_tag(tag, mac, now) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let of_length = peer.mtu.answered(route, transaction, now);
        if !of_length && !peer.agent.handle_reply(route, transaction, now) {
            self.counters.replayed += 1;
            return;
        }
        if let Route::Direct(from) = route {
            self.reflexive.proved(now);
            self.reflexive.witnessed(from, observed, now);
        }
    }

    /// The peer that addresses this node by a tag, if the MAC is by the key agreed with it.
    pub(super) fn peer_of_tag(&mut self, tag: u64, mac: Mac<'_>, now: Instant) -> Option<PeerId> {
        let Some((id, key)) = self
            .tags
            .get(&tag)
            .and_then(|id| Some((*id, self.peers.get(id)?.agent.key()?)))
        else {
            self.counters.unknown += 1;
            return None;
        };
        if mac.verify(key) {
            // Only what is genuine makes work for the timers.
            self.peers.look_at(id, now);
            Some(id)
        } else {
            self.counters.forged += 1;
            None
        }
    }

    fn handle_query(&mut self, from: UnderlayAddr, transaction: u64, now: Instant) {
        if self.query_rate.allow(from.0.ip(), now) {
            self.outbox.push(from, &wire::reflexive_answer(transaction, from));
        } else {
            self.counters.queries_limited += 1;
        }
    }
}
