//! Whom this node knows: who counts in a small grid's quorum, who is connected, whose credential is at hand.
//!
//! ```text
//!            connected              says that it votes, or is told by one who counts it
//!  unknown ────────────► connected ──────────────────────────────────────────────────► counted ◄─┐
//!     ▲                                                                                   │   │   │ news
//!     └──────────────── leaves cleanly, is declared gone, or no news for a day ───────────┘   └───┘
//! ```
//!
//! A member counts from when it says that it is about to vote (see `ready`), so that many that join at the same time
//! do not wait for each other, and until [`REMEMBERED`] after it was last heard of, by this node or by one that told
//! it (the age travels along, so that telling does not make anybody younger). Members are told with their
//! credentials: nobody can inflate the count of a small grid, and with it the quorum, by inventing members. One that
//! leaves cleanly stops counting at once; older news of it does not bring it back.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aerie_types::{Key, PeerId};

use crate::limits::{MAX_CREDENTIALS, MAX_MEMBERS, REMEMBERED};
use crate::near::Near;
use crate::saved::Saved;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Known {
    /// Its place in the key space, which costs a hash to compute.
    position: Key,
    /// Until when it counts without news of it.
    until: Instant,
    /// When it was first known.
    first: Instant,
    /// It votes, or has voted.
    counts: bool,
    /// It left cleanly; news that would let it count until before this moment are older than its leaving.
    left: Option<Instant>,
    connected: bool,
}

impl Known {
    /// Somebody that does not count and is not connected.
    fn new(peer: PeerId, until: Instant, now: Instant) -> Self {
        Self {
            position: peer.position(),
            until,
            first: now,
            counts: false,
            left: None,
            connected: false,
        }
    }
}

/// So many places are looked at one by one.
const MAX_MOVED: usize = 64;

/// Where members have come or gone since that was asked for last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moved {
    places: Vec<Key>,
    everywhere: bool,
}

impl Moved {
    fn note(&mut self, place: Key) {
        self.everywhere |= self.places.len() >= MAX_MOVED;
        if !self.everywhere {
            self.places.push(place);
        }
    }

    /// The places; `None` if it may have been anywhere.
    pub(crate) fn places(&self) -> Option<&[Key]> {
        (!self.everywhere).then_some(&self.places)
    }
}

/// The members that this node knows, other than itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Members {
    me: PeerId,
    /// This node's own place.
    place: Key,
    known: BTreeMap<PeerId, Known>,
    /// Those that are connected.
    near: Near,
    moved: Saved<Moved>,
    credentials: BTreeMap<PeerId, Vec<u8>>,
}

impl Members {
    pub(crate) fn new(me: PeerId) -> Self {
        Self {
            me,
            place: me.position(),
            known: BTreeMap::new(),
            near: Near::default(),
            moved: Saved::default(),
            credentials: BTreeMap::new(),
        }
    }

    /// News, `age` old, of a member that votes. Whether it was not counted before.
    pub(crate) fn heard(&mut self, peer: PeerId, age: Duration, now: Instant) -> bool {
        if peer == self.me || age >= REMEMBERED {
            return false;
        }
        let until = now + (REMEMBERED - age);
        let room = self.known.len() < MAX_MEMBERS;
        let known = match self.known.entry(peer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) if room => vacant.insert(Known::new(peer, until, now)),
            Entry::Vacant(_) => return false,
        };
        if known.left.is_some_and(|left| until <= left) {
            return false;
        }
        let new = !known.counts || known.left.take().is_some() || (known.until <= now && !known.connected);
        if new {
            known.first = now;
        }
        known.counts = true;
        known.until = known.until.max(until);
        if known.connected {
            self.near.set(known.position, peer, true);
        }
        new
    }

    /// The member is connected; it is let in even where the bound is reached.
    pub(crate) fn up(&mut self, peer: PeerId, now: Instant) {
        if peer == self.me {
            return;
        }
        if self.known.len() >= MAX_MEMBERS && !self.known.contains_key(&peer) {
            let idle = self.known.iter().find(|(_, known)| !known.connected);
            if let Some(idle) = idle.map(|(peer, _)| *peer) {
                self.known.remove(&idle);
            }
        }
        let known = self.known.entry(peer);
        let known = known.or_insert_with(|| Known::new(peer, now, now));
        if !known.connected {
            self.moved.0.note(known.position);
        }
        known.connected = true;
        self.near.set(known.position, peer, known.counts);
    }

    /// Whether the member counts, so that this has to be remembered.
    pub(crate) fn counts(&self, peer: PeerId) -> bool {
        self.known
            .get(&peer)
            .is_some_and(|known| known.counts && known.left.is_none())
    }

    pub(crate) fn down(&mut self, peer: PeerId, now: Instant) {
        if let Some(known) = self.known.get_mut(&peer) {
            if known.connected && known.counts {
                known.until = now + REMEMBERED;
            }
            known.connected = false;
            self.near.remove(known.position);
            self.moved.0.note(known.position);
        }
    }

    /// Where connected members have come or gone since this was asked for last.
    pub(crate) fn take_moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved.0)
    }

    pub(crate) fn left(&mut self, peer: PeerId, now: Instant) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.left = Some(now + REMEMBERED);
            known.counts = false;
            if known.connected {
                self.near.set(known.position, peer, false);
            }
        }
    }

    /// Forgets who was not heard of for too long, and returns them.
    pub(crate) fn purge(&mut self, now: Instant) -> Vec<PeerId> {
        let gone: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| {
                !known.connected && known.until <= now && known.left.is_none_or(|left| left <= now)
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in &gone {
            self.known.remove(peer);
        }
        gone
    }

    /// Members that count, this node included.
    pub(crate) fn count(&self, now: Instant) -> usize {
        1 + self.counted(now).count()
    }

    /// Members that count, this node included, but no more than `limit`, which is found without asking all of a large
    /// grid.
    pub(crate) fn count_up_to(&self, limit: usize, now: Instant) -> usize {
        (1 + self.counted(now).take(limit).count()).min(limit)
    }

    /// Members that have counted for as long as `settle`, this node included.
    pub(crate) fn settled(&self, settle: Duration, now: Instant) -> usize {
        let old = |known: &Known| now.saturating_duration_since(known.first) >= settle;
        1 + self.counted(now).filter(|(_, known)| old(known)).count()
    }

    /// The others that count, with their places and the age of the last news of them.
    pub(crate) fn others(&self, now: Instant) -> impl Iterator<Item = (PeerId, Key, Duration)> + '_ {
        self.counted(now).map(move |(peer, known)| {
            let age = if known.connected {
                Duration::ZERO
            } else {
                REMEMBERED.saturating_sub(known.until.saturating_duration_since(now))
            };
            (peer, known.position, age)
        })
    }

    pub(crate) fn connected(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.known
            .iter()
            .filter(|(_, known)| known.connected)
            .map(|(peer, _)| *peer)
    }

    pub(crate) fn any_connected(&self) -> bool {
        self.connected().next().is_some()
    }

    pub(crate) fn is_connected(&self, peer: PeerId) -> bool {
        self.known.get(&peer).is_some_and(|known| known.connected)
    }

    /// The first `count` of the connected members and this node, closest to a position first.
    pub(crate) fn closest(&self, position: Key, count: usize) -> Vec<PeerId> {
        self.near.closest(position, count, (self.place, self.me))
    }

    /// The witnesses of a key: those that are named, or else the closest ones of so many.
    pub(crate) fn witnesses(&self, named: &[PeerId], key: Key, count: usize) -> Vec<PeerId> {
        if named.is_empty() {
            self.closest(key.position(), count)
        } else {
            named.to_vec()
        }
    }

    /// Whether fewer connected members that vote than `reach` are closer to a position than this node is.
    pub(crate) fn is_among(&self, position: Key, reach: usize) -> bool {
        let closer = self.near.closer(position, self.place);
        closer.filter(|(_, votes)| *votes).take(reach).count() < reach
    }

    /// Whether fewer connected members than `reach`, this node included, are closer to a position than a peer is.
    pub(crate) fn is_peer_among(&self, peer: PeerId, position: Key, reach: usize) -> bool {
        let place = self.position(peer);
        let me = self.place.distance(&position) < place.distance(&position);
        let closer = self.near.closer(position, place).take(reach).count();
        closer + usize::from(me) < reach
    }

    /// A member's place in the key space, without a hash where it is known.
    pub(crate) fn position(&self, peer: PeerId) -> Key {
        if peer == self.me {
            return self.place;
        }
        self.known
            .get(&peer)
            .map_or_else(|| peer.position(), |known| known.position)
    }

    pub(crate) fn credential(&self, peer: PeerId) -> Option<&Vec<u8>> {
        self.credentials.get(&peer)
    }

    /// Keeps a credential that was found valid.
    pub(crate) fn learn(&mut self, peer: PeerId, credential: &[u8]) {
        if self
            .credentials
            .get(&peer)
            .is_some_and(|known| known == credential)
        {
            return;
        }
        if self.credentials.len() >= MAX_CREDENTIALS && !self.credentials.contains_key(&peer) {
            let spare = self.credentials.keys().find(|peer| !self.is_connected(**peer));
            let spare = spare.or_else(|| self.credentials.keys().next()).copied();
            if let Some(spare) = spare {
                self.credentials.remove(&spare);
            }
        }
        self.credentials.insert(peer, credential.to_vec());
    }

    /// How many members are known, and how many credentials are kept.
    pub(crate) fn kept(&self) -> (usize, usize) {
        (self.known.len(), self.credentials.len())
    }

    fn counted(&self, now: Instant) -> impl Iterator<Item = (PeerId, &Known)> + '_ {
        self.known
            .iter()
            .filter(move |(_, known)| known.counts && (known.connected || known.until > now))
            .map(|(peer, known)| (*peer, known))
    }
}

/// Members without repetition, closest to a position first.
pub(crate) fn sorted(peers: impl Iterator<Item = PeerId>, position: Key) -> Vec<PeerId> {
    let unique: BTreeSet<PeerId> = peers.collect();
    let mut sorted: Vec<_> = unique.into_iter().collect();
    sorted.sort_by_cached_key(|peer| peer.position().distance(&position));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "a test needs some instant to count from"
    )]
    fn start() -> (Members, Instant) {
        (Members::new(PeerId([0; 32])), Instant::now())
    }

    #[test]
    fn news_passed_on_do_not_make_a_member_younger() {
        let (mut members, now) = start();
        let hour = Duration::from_secs(3600);
        assert!(members.heard(PeerId([1; 32]), hour * 23, now));
        assert_eq!(members.count(now), 2);
        assert_eq!(members.count(now + hour), 1);
    }

    #[test]
    fn one_who_left_is_not_brought_back_by_older_news() {
        let (mut members, now) = start();
        let (peer, second) = (PeerId([1; 32]), Duration::from_secs(1));
        members.up(peer, now);
        members.heard(peer, Duration::ZERO, now);
        members.left(peer, now + second * 60);
        members.down(peer, now + second * 61);
        assert_eq!(members.count(now + second * 61), 1);
        members.heard(peer, second * 20, now + second * 70);
        assert_eq!(members.count(now + second * 70), 1);
        members.up(peer, now + second * 80);
        assert_eq!(
            members.count(now + second * 80),
            1,
            "it is back, and does not vote yet"
        );
        members.heard(peer, Duration::ZERO, now + second * 80);
        assert_eq!(members.count(now + second * 80), 2);
    }
}
