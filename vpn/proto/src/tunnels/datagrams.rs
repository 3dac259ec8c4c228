//! Datagrams of the data socket.

use std::time::Instant;

use aerie_types::{PeerId, UnderlayAddr};

use super::{Datagram, Hop, InnerSlice, Tunnels};
use crate::Now;
use crate::path::Route;
use crate::peer::Slot;
use crate::session::Refused;
use crate::wire::{self, DATA_HEADER, Mac, Packet, RELAY_OVERHEAD};

/// Where a datagram lies in its batch and which way it came.
#[derive(Debug, Clone, Copy)]
struct Origin {
    datagram: usize,
    start: usize,
    from: UnderlayAddr,
    route: Route,
}

impl Tunnels {
    /// Takes a batch of received datagrams and opens them where they lie. Packets to deliver are added to
    /// `inner` in order.
    pub fn handle_datagrams(&mut self, batch: &mut [Datagram<'_>], now: Now, inner: &mut Vec<InnerSlice>) {
        for (index, datagram) in batch.iter_mut().enumerate() {
            let from = datagram.from;
            let origin = Origin {
                datagram: index,
                start: 0,
                from,
                route: Route::Direct(from),
            };
            self.handle_datagram(origin, datagram.bytes, now, inner);
        }
    }

    fn handle_datagram(&mut self, origin: Origin, bytes: &mut [u8], now: Now, inner: &mut Vec<InnerSlice>) {
        let at = now.instant;
        let Some(packet) = wire::parse(bytes) else {
            self.counters.malformed += 1;
            return;
        };
        match packet {
            Packet::Data { receiver, counter } => {
                self.handle_data(origin, receiver, counter, bytes, at, inner);
            }
            Packet::RelayData { session } => {
                self.handle_frame(origin, session, bytes, now, inner);
            }
            Packet::Init {
                sender,
                tag,
                timestamp,
                noise,
                mac,
            } => {
                self.handle_init(
                    origin.route,
                    origin.from,
                    (sender, tag, timestamp),
                    noise,
                    mac,
                    now,
                );
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
                mac,
            } => {
                self.handle_probe_reply(origin.route, tag, transaction, mac, at);
            }
            Packet::ReflexiveQuery { transaction } => self.handle_query(origin.from, transaction, at),
            Packet::ReflexiveAnswer {
                transaction,
                observed,
            } => {
                if self.reflexive.answered(origin.from, transaction, observed, at) {
                    self.peers
                        .values_mut()
                        .for_each(|peer| peer.agent.local_changed(at));
                    self.wake_at(at);
                }
            }
            Packet::RelayBind {
                session,
                end,
                sequence,
                mac,
            } => {
                if let Some(relay) = &mut self.relay {
                    for (to, answer) in relay.bind((session, end, sequence), mac, origin.from, at) {
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
    }

    /// A relay's frame: for this node as an end, or for it as the relay.
    fn handle_frame(
        &mut self,
        origin: Origin,
        session: u64,
        bytes: &mut [u8],
        now: Now,
        inner: &mut Vec<InnerSlice>,
    ) {
        if self
            .links
            .get(&session)
            .is_some_and(|link| link.addr == origin.from)
        {
            let Some(datagram) = bytes.get_mut(RELAY_OVERHEAD..) else {
                return;
            };
            if wire::may_be_relayed(datagram) {
                let start = origin.start + RELAY_OVERHEAD;
                let origin = Origin {
                    start,
                    route: Route::Relayed(session),
                    ..origin
                };
                self.handle_datagram(origin, datagram, now, inner);
            } else {
                self.counters.malformed += 1;
            }
            return;
        }
        let allowed = bytes.get(RELAY_OVERHEAD..).is_some_and(wire::may_be_relayed);
        let to = match &mut self.relay {
            Some(relay) if allowed => relay.forward(session, origin.from, bytes.len(), now.instant),
            _ => None,
        };
        match to {
            Some(to) => {
                self.counters.relayed += 1;
                self.outbox.push(to, bytes);
            }
            None => self.counters.relay_refused += 1,
        }
    }

    fn handle_data(
        &mut self,
        origin: Origin,
        receiver: u32,
        counter: u64,
        bytes: &mut [u8],
        now: Instant,
        inner: &mut Vec<InnerSlice>,
    ) {
        let Some(peer) = self.indices.get(&receiver).and_then(|id| self.peers.get_mut(id)) else {
            self.counters.unknown += 1;
            return;
        };
        let Some(slot) = peer.slot_of(receiver) else {
            self.counters.unknown += 1;
            return;
        };
        let Some(session) = peer.session(slot) else { return };
        let len = match session.open(bytes, counter, now) {
            Ok(len) => len,
            Err(Refused::Replayed) => {
                self.counters.replayed += 1;
                return;
            }
            Err(Refused::Forged) => {
                self.counters.forged += 1;
                return;
            }
            Err(Refused::Expired) => {
                self.counters.unknown += 1;
                return;
            }
        };
        let id = peer.id;
        if slot == Slot::Next {
            let freed = peer.confirm_next(now);
            self.counters.handshakes += 1;
            self.free(freed);
            self.flush_queue(id, now);
            self.wake_at(now);
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let elsewhere = peer.agent.route() != Some(origin.route);
        // Roaming: the way moves once the new address has answered a probe.
        peer.agent.heard(origin.route, now);
        let due = peer.opened(len > 0, now);
        if let Some(at) = due.or(elsewhere.then_some(now)) {
            self.wake_at(at);
        }
        let Some(packet) = bytes.get(DATA_HEADER..DATA_HEADER + len) else {
            return;
        };
        let Some(first) = packet.first() else { return };
        if first >> 4 == 0 {
            self.handle_control(id, origin.route, packet, now);
        } else if self.accept_inner(id, packet, now) {
            let start = origin.start + DATA_HEADER;
            inner.push(InnerSlice {
                datagram: origin.datagram,
                start,
                len,
            });
        }
    }

    fn handle_probe(&mut self, origin: Origin, tag: u64, transaction: u64, mac: Mac<'_>, now: Instant) {
        let Some(id) = self.peer_of_tag(tag, mac, now) else {
            return;
        };
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

    fn handle_probe_reply(&mut self, route: Route, tag: u64, transaction: u64, mac: Mac<'_>, now: Instant) {
        let Some(id) = self.peer_of_tag(tag, mac, now) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if !peer.agent.handle_reply(route, transaction, now) {
            self.counters.replayed += 1;
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
            self.wake_at(now);
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
