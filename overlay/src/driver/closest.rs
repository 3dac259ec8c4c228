//! Which members are closest to a key.
//!
//! As long as a node has room for more connections it is connected to everybody, so the connected members are the answer
//! and the network is not asked, as soon as some member has said whom it knows and all those have been dialled. A
//! look-up in Kademlia asks twenty members, which is work for all of them: what a full mesh knows by itself is not worth
//! that, least of all while many join at once. Otherwise Kademlia locates, and what it finds is merged with the connected members and with those that are still to be dialled: a
//! look-up asks for twenty, never names the node itself, and can miss somebody whom this node knows. Right after a
//! join it may know nobody to ask.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use aerie_types::{Key, PeerId};
use libp2p::kad::{self, GetClosestPeersError, GetClosestPeersOk, PeerInfo, QueryId, QueryResult};
use tokio::sync::oneshot;

use super::Driver;
use crate::config::{CLOSEST, MAX_QUERIES};
use crate::peer::{from_libp2p, to_libp2p};

/// How long a look-up may take. A member that has just gone would hold it up for a dial's whole time limit.
const PATIENCE: Duration = Duration::from_millis(2500);

/// How long the look-ups of a node that has just joined wait for a member to name the others.
const DEFERRED: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Queries {
    closest: HashMap<QueryId, (Key, oneshot::Sender<Vec<PeerId>>)>,
    deferred: VecDeque<(Instant, Key, oneshot::Sender<Vec<PeerId>>)>,
    /// The look-ups under way in the order of their beginning.
    begun: VecDeque<(Instant, QueryId)>,
    finding: BTreeMap<PeerId, QueryId>,
}

impl Queries {
    pub(super) fn is_idle(&self) -> bool {
        self.deferred.is_empty() && self.begun.is_empty()
    }
}

impl Driver {
    pub(super) fn closest(&mut self, key: Key, reply: oneshot::Sender<Vec<PeerId>>) {
        // A node that has just joined is connected to one member and knows no better, until that one names the others.
        let hears_soon = !self.live.is_empty() && !self.mesh.has_heard();
        if hears_soon && self.queries.deferred.len() < MAX_QUERIES {
            self.queries.deferred.push_back((Instant::now(), key, reply));
        } else {
            self.look_up(key, reply);
        }
    }

    fn look_up(&mut self, key: Key, reply: oneshot::Sender<Vec<PeerId>>) {
        let complete = self.live.len() < self.config.max_members && self.untried().next().is_none();
        if complete || self.live.is_empty() || self.queries.closest.len() >= MAX_QUERIES {
            let _ = reply.send(self.nearest(key, std::iter::empty()));
            return;
        }
        let query = self.swarm.behaviour_mut().kad.get_closest_peers(key.0.to_vec());
        self.queries.closest.insert(query, (key, reply));
        self.queries.begun.push_back((Instant::now(), query));
    }

    /// Begins the look-ups that waited for a member to name the others: it has, or has not in time.
    pub(super) fn begin_deferred(&mut self, now: Instant) {
        let late = |begun: Instant| now.saturating_duration_since(begun) >= DEFERRED;
        while let Some((begun, _, _)) = self.queries.deferred.front() {
            if !self.live.is_empty() && !self.mesh.has_heard() && !late(*begun) {
                return;
            }
            if let Some((_, key, reply)) = self.queries.deferred.pop_front() {
                self.look_up(key, reply);
            }
        }
    }

    /// Ends look-ups that wait for members who do not answer; what was found until then is the answer.
    pub(super) fn finish_slow_queries(&mut self, now: Instant) {
        while let Some((begun, query)) = self.queries.begun.front().copied() {
            let under_way = self.queries.closest.contains_key(&query);
            if under_way && now.saturating_duration_since(begun) < PATIENCE {
                return;
            }
            self.queries.begun.pop_front();
            if let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&query) {
                query.finish();
            }
        }
    }

    /// Looks the addresses of a member up in the network. `false` if there is nobody to ask.
    pub(super) fn find(&mut self, peer: PeerId) -> bool {
        if self.live.is_empty() || self.queries.finding.len() >= MAX_QUERIES {
            return false;
        }
        if !self.queries.finding.contains_key(&peer) {
            let query = self.swarm.behaviour_mut().kad.get_closest_peers(to_libp2p(peer));
            self.queries.finding.insert(peer, query);
        }
        true
    }

    pub(super) fn on_kad(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed {
            id,
            result: QueryResult::GetClosestPeers(result),
            step,
            ..
        } = event
        else {
            return;
        };
        let (Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. })) = result;
        if !step.last {
            return;
        }
        for found in &peers {
            self.learn_found(found);
        }
        if let Some((key, reply)) = self.queries.closest.remove(&id) {
            let found = peers.iter().filter_map(|found| from_libp2p(&found.peer_id));
            let _ = reply.send(self.nearest(key, found));
        }
        let sought = self.queries.finding.iter().find(|(_, query)| **query == id);
        if let Some(peer) = sought.map(|(peer, _)| *peer) {
            self.queries.finding.remove(&peer);
            self.found(peer);
        }
    }

    fn learn_found(&mut self, found: &PeerInfo) {
        if let Some(peer) = from_libp2p(&found.peer_id) {
            for addr in &found.addrs {
                self.learn(peer, addr.clone(), true);
            }
        }
    }

    /// The members that were learned of and not dialled to the end yet.
    fn untried(&self) -> impl Iterator<Item = PeerId> {
        self.book
            .iter()
            .filter(|(peer, entry)| entry.is_fresh() && !self.live.contains_key(peer))
            .map(|(peer, _)| peer)
    }

    fn nearest(&self, key: Key, found: impl Iterator<Item = PeerId>) -> Vec<PeerId> {
        let position = key.position();
        let mut peers: Vec<_> = self
            .live
            .keys()
            .copied()
            .chain(self.untried())
            .chain(found)
            .filter(|peer| *peer != self.local)
            .map(|peer| (position.distance(&peer.position()), peer))
            .collect();
        peers.sort_unstable();
        peers.dedup();
        peers.into_iter().take(CLOSEST).map(|(_, peer)| peer).collect()
    }
}
