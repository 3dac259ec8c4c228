//! Members come and go: first and last connections, surplus connections, lost standing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_types::{PeerId, Role};
use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;

use super::book::Entry;
use super::dialer::{FIRST_UPGRADE, LOST_SPREAD};
use super::{Driver, Link, Live};
use crate::admission::Refusal;
use crate::handle::Event;
use crate::peer::{from_libp2p, is_quic, to_libp2p};
use crate::stats::Counters;

/// A surplus connection is closed when the one that replaces it is this old and no request is under way.
const SETTLED: Duration = Duration::from_secs(2);

/// After this time it is closed even so; the requests on it were meant to take less.
const OVERDUE: Duration = Duration::from_secs(20);

/// As a part of the limit, by how much it may be exceeded before members are dropped.
const SLACK: usize = 8;

/// For how long a member dropped for lack of room is not dialled.
const DROPPED_PAUSE: Duration = Duration::from_secs(900);

impl Driver {
    pub(super) fn on_established(
        &mut self,
        peer: libp2p::PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        let now = Instant::now();
        let admitted = from_libp2p(&peer).and_then(|peer| Some((peer, self.gate.credential(peer)?)));
        let Some((peer, credential)) = admitted else {
            // The guard lets nobody through who is not in the store; it can only have been evicted since.
            self.swarm.close_connection(id);
            return;
        };
        let link = Link {
            remote: endpoint.get_remote_address().clone(),
            relayed: endpoint.is_relayed(),
            quic: is_quic(endpoint.get_remote_address()),
            dialled: endpoint.is_dialer(),
            since: now,
        };
        tracing::debug!(peer = %peer.short(), node = %credential.node, remote = %link.remote, "connected");
        let at = link.dialled.then(|| link.remote.clone());
        let missed = self.book.get(peer).is_some_and(Entry::is_missed);
        self.book.reached(peer, at, now);
        let is_first = !self.live.contains_key(&peer);
        let live = self.live.entry(peer).or_insert_with(|| Live {
            credential: Arc::clone(&credential),
            connections: std::collections::BTreeMap::new(),
            rtt: None,
            upgrade_at: now + FIRST_UPGRADE.mul_f64(0.5 + rand::random::<f64>()),
            upgrade_pause: FIRST_UPGRADE,
        });
        live.connections.insert(id, link);
        self.dial_ended(id, now);
        if !is_first && endpoint.is_listener() {
            let liveness = &mut self.swarm.behaviour_mut().liveness;
            liveness.doubt_others(to_libp2p(peer), id);
        }
        if is_first {
            self.book.met(peer, now);
            self.report(Event::MemberUp { peer, credential });
            self.meet(peer);
            if missed {
                self.welcome_back(peer, now);
            }
        }
        self.flush_waiting(peer);
        self.gauge();
    }

    pub(super) fn on_closed(&mut self, peer: &libp2p::PeerId, id: ConnectionId) {
        let Some(peer) = from_libp2p(peer) else { return };
        let Some(live) = self.live.get_mut(&peer) else {
            return;
        };
        live.connections.remove(&id);
        if live.connections.is_empty() {
            let now = Instant::now();
            self.live.remove(&peer);
            tracing::debug!(peer = %peer.short(), "disconnected");
            let wait = self.wait_for(peer, LOST_SPREAD);
            self.book.lost(peer, now, wait);
            // A look-up should not wait for somebody who may be gone. When it is back, it states its addresses anew.
            self.swarm.behaviour_mut().kad.remove_peer(&to_libp2p(peer));
            self.report(Event::MemberDown { peer });
            if self.live.is_empty() {
                self.mesh.alone();
                self.book.hurry(now, rand::random);
                self.dials.hurry(now, rand::random());
            }
        }
        self.gauge();
    }

    /// Probes went unanswered: closes the connection. If the member is a `suspect`, the others are told, who then probe
    /// too.
    pub(super) fn on_dead(&mut self, peer: &libp2p::PeerId, id: ConnectionId, suspect: bool) {
        let Some(peer) = from_libp2p(peer) else { return };
        Counters::add(&self.counters().dead_connections);
        tracing::info!(peer = %peer.short(), "no answer to probes; the connection is closed");
        self.swarm.close_connection(id);
        let others = self.live.len() > 1;
        let gone = self
            .live
            .get(&peer)
            .is_none_or(|live| live.connections.len() <= 1);
        if suspect && others && gone {
            self.publish(self.suspects.clone(), peer.0.to_vec());
        }
    }

    /// Another member misses somebody.
    pub(super) fn on_suspicion(&mut self, bytes: &[u8]) {
        let Ok(peer) = <[u8; 32]>::try_from(bytes).map(PeerId) else {
            Counters::add(&self.counters().malformed);
            return;
        };
        Counters::add(&self.counters().suspicions);
        if self.live.contains_key(&peer) {
            self.swarm.behaviour_mut().liveness.probe(to_libp2p(peer));
        }
    }

    /// Judges every connected member again and cuts off those who no longer belong.
    pub(super) fn recheck(&mut self) -> Vec<PeerId> {
        let gate = Arc::clone(&self.gate);
        let judge = |peer: &PeerId| gate.check(*peer).err().map(|reason| (*peer, reason));
        let fallen: Vec<_> = self.live.keys().filter_map(judge).collect();
        fallen
            .into_iter()
            .map(|(peer, reason)| self.expel(peer, reason))
            .collect()
    }

    fn expel(&mut self, peer: PeerId, reason: Refusal) -> PeerId {
        Counters::add(&self.counters().expelled);
        tracing::info!(peer = %peer.short(), %reason, "expelled");
        self.gate.forget(peer);
        self.book.refused(peer, Instant::now(), rand::random());
        let remote = self
            .live
            .get(&peer)
            .and_then(|live| live.connections.values().next());
        let remote = remote.map(|link| link.remote.clone());
        self.refused(remote, Some(peer), reason);
        let _ = self.swarm.disconnect_peer_id(to_libp2p(peer));
        peer
    }

    /// Closes connections that another one of the same member makes superfluous.
    ///
    /// Relayed ones go as soon as a direct one has settled, since requests would still be spread over both. Of
    /// several direct ones the oldest over TCP stays, or else the oldest; the member with the lower id decides, so
    /// that the two sides do not each close the other's choice. Towards relays one connection of each transport
    /// stays: what a relay sees of a node behind a NAT is what hole punching can use, and it sees it per transport.
    pub(super) fn settle_duplicates(&mut self, now: Instant) {
        let mut surplus = Vec::new();
        for (peer, live) in self.live.iter().filter(|(_, live)| live.connections.len() > 1) {
            let mut direct: Vec<_> = live
                .connections
                .iter()
                .filter(|(_, link)| !link.relayed)
                .collect();
            direct.sort_by_key(|(id, link)| (link.quic, link.since, **id));
            let Some((_, kept)) = direct.first() else { continue };
            let age = |link: &Link| now.saturating_duration_since(link.since);
            if age(kept) < SETTLED || (age(kept) < OVERDUE && self.requests.in_flight(*peer)) {
                continue;
            }
            surplus.extend(
                live.connections
                    .iter()
                    .filter(|(_, link)| link.relayed)
                    .map(|(id, _)| *id),
            );
            if self.local < *peer {
                let by_relay = self.config.relay || live.credential.roles.contains(Role::Relay);
                let second = direct
                    .iter()
                    .skip(1)
                    .find(|(_, link)| by_relay && link.quic != kept.quic);
                let spared = second.map(|(id, _)| **id);
                surplus.extend(
                    direct
                        .iter()
                        .skip(1)
                        .filter(|(id, link)| age(link) >= SETTLED && Some(**id) != spared)
                        .map(|(id, _)| **id),
                );
            }
        }
        for id in surplus {
            self.swarm.close_connection(id);
        }
    }

    /// Drops members beyond the limit: neither neighbours in the key space, nor bootstrap members, nor relays in use.
    pub(super) fn prune(&mut self, now: Instant) {
        let most = self.config.max_members;
        // More than room was made for: others dial this node too, and who is dropped dials somebody else.
        if self.config.relay || self.live.len() <= most + most / SLACK {
            return;
        }
        let surplus = self.live.len() - self.config.max_members;
        let neighbours = self.neighbours();
        let mut others: Vec<_> = self
            .live
            .keys()
            .copied()
            .filter(|peer| {
                let pinned = self.book.get(*peer).is_some_and(|entry| entry.pinned);
                !neighbours.contains(peer)
                    && !pinned
                    && !self.reach.uses(*peer)
                    && !self.requests.in_flight(*peer)
            })
            .map(|peer| (rand::random::<u32>(), peer))
            .collect();
        others.sort_unstable();
        for (_, peer) in others.into_iter().take(surplus) {
            self.book.rest(peer, DROPPED_PAUSE, now);
            let _ = self.swarm.disconnect_peer_id(to_libp2p(peer));
        }
    }
}
