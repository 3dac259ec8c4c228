//! Who is in the grid, as far as this node knows, and who is a key's witness.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_types::{Key, PeerId, WallMillis};

use crate::receipt::WITNESSES;

/// How long a member that is not seen still counts.
const REMEMBER: Duration = Duration::from_secs(24 * 3600);

/// How many members are remembered; a page of state carries at most [`MAX_TOLD`] of them.
const MAX_MEMBERS: usize = 4096;

/// How many members a page of state names (42 bytes each, so about 10 KB).
const MAX_TOLD: usize = 256;

/// The members known.
#[derive(Debug)]
pub(crate) struct Members {
    me: PeerId,
    seen: BTreeMap<PeerId, WallMillis>,
    live: BTreeSet<PeerId>,
}

impl Members {
    pub(crate) fn new(me: PeerId, saved: Vec<(PeerId, WallMillis)>) -> Self {
        let seen = saved
            .into_iter()
            .filter(|(peer, _)| *peer != me)
            .take(MAX_MEMBERS)
            .collect();
        Self {
            me,
            seen,
            live: BTreeSet::new(),
        }
    }

    /// Notes a connection. `true` if the member was not known.
    pub(crate) fn up(&mut self, peer: PeerId, wall: WallMillis) -> bool {
        if peer == self.me || (self.live.len() >= MAX_MEMBERS && !self.live.contains(&peer)) {
            return false;
        }
        self.live.insert(peer);
        self.see(peer, wall)
    }

    pub(crate) fn down(&mut self, peer: &PeerId, wall: WallMillis) {
        if self.live.remove(peer) {
            self.see(*peer, wall);
        }
    }

    /// Notes that a member was alive then. `true` if it was not known.
    pub(crate) fn see(&mut self, peer: PeerId, at: WallMillis) -> bool {
        if peer == self.me {
            return false;
        }
        if let Some(last) = self.seen.get_mut(&peer) {
            *last = (*last).max(at);
            return false;
        }
        if self.seen.len() >= MAX_MEMBERS {
            let oldest = self
                .seen
                .iter()
                .filter(|(peer, _)| !self.live.contains(peer))
                .min_by_key(|(_, at)| **at);
            let Some(oldest) = oldest.map(|(peer, _)| *peer) else {
                return false;
            };
            self.seen.remove(&oldest);
        }
        self.seen.insert(peer, at);
        true
    }

    /// Forgets members not seen for a day. `true` if there were any.
    pub(crate) fn expire(&mut self, wall: WallMillis) -> bool {
        let before = self.seen.len();
        let live = &self.live;
        self.seen
            .retain(|peer, at| live.contains(peer) || wall.since(*at) < REMEMBER);
        self.seen.len() != before
    }

    /// Takes over what another member says of the members; times ahead of our clock count as now.
    pub(crate) fn merge(&mut self, told: &[(PeerId, WallMillis)], wall: WallMillis) -> bool {
        let mut news = false;
        for (peer, at) in told.iter().take(MAX_TOLD) {
            if wall.since(*at) < REMEMBER {
                news |= self.see(*peer, (*at).min(wall));
            }
        }
        news
    }

    pub(crate) fn told(&self, wall: WallMillis) -> Vec<(PeerId, WallMillis)> {
        let live = self.live.iter().map(|peer| (*peer, wall));
        let rest = self
            .seen
            .iter()
            .filter(|(peer, _)| !self.live.contains(peer))
            .map(|(peer, at)| (*peer, *at));
        live.chain(rest).take(MAX_TOLD).collect()
    }

    pub(crate) fn saved(&self) -> Vec<(PeerId, WallMillis)> {
        self.seen.iter().map(|(peer, at)| (*peer, *at)).collect()
    }

    /// How many members are known, this node included.
    pub(crate) fn known(&self) -> usize {
        self.seen.len() + 1
    }

    pub(crate) fn live(&self) -> &BTreeSet<PeerId> {
        &self.live
    }

    /// Whether all members are witnesses of every key.
    pub(crate) fn is_small(&self) -> bool {
        self.live.len() + 1 < WITNESSES
    }

    /// Everybody known, this node included.
    pub(crate) fn all(&self) -> Vec<PeerId> {
        self.seen.keys().copied().chain([self.me]).collect()
    }

    /// The nine closest to a key among these and this node.
    pub(crate) fn closest(&self, key: &Key, peers: impl IntoIterator<Item = PeerId>) -> Vec<PeerId> {
        let position = key.position();
        let distinct: BTreeSet<_> = peers.into_iter().chain([self.me]).collect();
        let mut by_distance: Vec<_> = distinct
            .into_iter()
            .map(|peer| (peer.position().distance(&position), peer))
            .collect();
        by_distance.sort_unstable();
        by_distance
            .into_iter()
            .take(WITNESSES)
            .map(|(_, peer)| peer)
            .collect()
    }
}
