//! Whom a member knows, by distance: one bucket for each power of two.
//!
//! Near buckets cover few places and are seldom full, so that a member knows its neighbourhood entirely, and of each
//! half further away at most [`K`](super::K) members.

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_types::{Key, PeerId};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::bucket::{Bucket, Inserted, Status};
use super::{Contact, Distance, K};

/// How often a random place is drawn until it falls into a wanted bucket. Near buckets are missed mostly.
const DRAWS: usize = 16;

/// The number of the farthest bucket, which covers half of all places.
const FARTHEST: u8 = u8::MAX;

/// Where a table has a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// In a bucket.
    Present(Status),
    /// Waiting for a place.
    Pending(Status),
    /// Nowhere.
    Absent,
}

/// Whom a member knows.
#[derive(Debug, Clone)]
pub struct Table {
    local: Contact,
    buckets: BTreeMap<u8, Bucket>,
}

impl Table {
    /// The empty table of a member.
    #[must_use]
    pub fn new(local: Contact) -> Self {
        Self {
            local,
            buckets: BTreeMap::new(),
        }
    }

    /// Whose table it is.
    #[must_use]
    pub fn local(&self) -> Contact {
        self.local
    }

    /// How many members have a place.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.values().map(|bucket| bucket.entries().len()).sum()
    }

    /// Whether nobody is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the table has a member.
    pub fn presence(&mut self, contact: Contact, now: Duration) -> Presence {
        let Some(bucket) = self.bucket(contact, now) else {
            return Presence::Absent;
        };
        let present = bucket.status(contact.peer).map(Presence::Present);
        let pending = || bucket.pending(contact.peer).map(Presence::Pending);
        present.or_else(pending).unwrap_or(Presence::Absent)
    }

    /// Puts in a member that is absent. The member whose table it is has no place in it.
    pub fn insert(&mut self, contact: Contact, status: Status, now: Duration) -> Inserted {
        let Some(index) = self.index(&contact.position) else {
            return Inserted::Full;
        };
        let bucket = self.buckets.entry(index).or_default();
        bucket.apply_pending(now);
        bucket.insert(contact, status, now)
    }

    /// Notes that a member connected or disconnected, if the table has it.
    pub fn update(&mut self, contact: Contact, status: Status, now: Duration) {
        if let Some(bucket) = self.bucket(contact, now) {
            bucket.update(contact.peer, status);
        }
    }

    /// Takes a member out. Whether it was in.
    pub fn remove(&mut self, contact: Contact, now: Duration) -> bool {
        self.bucket(contact, now)
            .is_some_and(|bucket| bucket.remove(contact.peer))
    }

    /// The members closest to a place, the closest first: at most [`K`], without `except`.
    pub fn closest(&mut self, place: &Key, except: Option<PeerId>, now: Duration) -> Vec<Contact> {
        self.apply_pending(now);
        let entries = self.buckets.values().flat_map(Bucket::entries);
        let mut all: Vec<(Distance, &Contact)> = entries
            .filter(|entry| Some(entry.peer) != except)
            .map(|entry| (entry.distance(place), entry))
            .collect();
        if all.len() > K {
            all.select_nth_unstable(K - 1);
            all.truncate(K);
        }
        all.sort_unstable();
        all.into_iter().map(|(_, contact)| *contact).collect()
    }

    /// A place in each bucket farther away than the closest member known, as far as chance finds one: where to look
    /// in order to fill the table.
    pub fn refresh_places(&mut self, rng: &mut ChaCha8Rng, now: Duration) -> Vec<Key> {
        self.apply_pending(now);
        let nearest = self
            .buckets
            .iter()
            .find(|(_, bucket)| !bucket.entries().is_empty());
        let Some((nearest, _)) = nearest else {
            return Vec::new();
        };
        let further = nearest.saturating_add(1)..=FARTHEST;
        let any = *nearest < FARTHEST;
        further
            .filter(|_| any)
            .map(|wanted| {
                let mut place = PeerId(rng.random()).position();
                for _ in 0..DRAWS {
                    if self.index(&place) == Some(wanted) {
                        break;
                    }
                    place = PeerId(rng.random()).position();
                }
                place
            })
            .collect()
    }

    fn apply_pending(&mut self, now: Duration) {
        for bucket in self.buckets.values_mut() {
            bucket.apply_pending(now);
        }
    }

    fn bucket(&mut self, contact: Contact, now: Duration) -> Option<&mut Bucket> {
        let index = self.index(&contact.position)?;
        let bucket = self.buckets.get_mut(&index)?;
        bucket.apply_pending(now);
        Some(bucket)
    }

    /// The place of the highest bit in which two places differ.
    fn index(&self, place: &Key) -> Option<u8> {
        let Key(distance) = self.local.distance(place);
        let byte = distance.iter().position(|byte| *byte != 0)?;
        let bits = 8 * byte + distance.get(byte)?.leading_zeros() as usize;
        u8::try_from(usize::from(FARTHEST) - bits).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::OnceLock;

    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;
    use crate::peer;

    const NOW: Duration = Duration::ZERO;

    /// Hashes without optimisation are slow: each is computed once.
    fn contact(index: usize) -> Contact {
        static ALL: OnceLock<Vec<Contact>> = OnceLock::new();
        ALL.get_or_init(|| (0..1000).map(|index| peer(index).into()).collect())[index]
    }

    #[test]
    fn a_member_is_not_in_its_own_table() {
        let mut table = Table::new(contact(0));
        assert_eq!(table.insert(contact(0), Status::Connected, NOW), Inserted::Full);
        assert!(table.is_empty());
    }

    #[test]
    fn of_the_far_half_twenty_are_known_and_of_the_near_places_all() {
        let mut table = Table::new(contact(0));
        for index in 1..1000 {
            let _ = table.insert(contact(index), Status::Connected, NOW);
        }
        let here = contact(0).position;
        let mut all: Vec<_> = (1..1000).map(contact).collect();
        all.sort_by_key(|other| other.distance(&here));
        all.truncate(K);
        assert_eq!(table.closest(&here, None, NOW), all);
        let far = table
            .buckets
            .get(&FARTHEST)
            .map_or(0, |bucket| bucket.entries().len());
        assert_eq!(far, K);
    }

    #[test]
    fn places_to_refresh_lie_in_the_buckets_beyond_the_nearest_member() {
        let mut table = Table::new(contact(0));
        assert!(
            table
                .refresh_places(&mut ChaCha8Rng::seed_from_u64(1), NOW)
                .is_empty()
        );
        for index in 1..200 {
            let _ = table.insert(contact(index), Status::Connected, NOW);
        }
        let nearest = *table.buckets.keys().next().unwrap();
        let places = table.refresh_places(&mut ChaCha8Rng::seed_from_u64(1), NOW);
        assert_eq!(places.len(), usize::from(FARTHEST - nearest));
        let last: Vec<_> = places
            .iter()
            .rev()
            .take(3)
            .map(|place| table.index(place))
            .collect();
        assert_eq!(last, [Some(255), Some(254), Some(253)]);
    }

    #[derive(Debug, Clone)]
    enum Change {
        Meet(usize),
        Lose(usize),
        Forget(usize),
        Wait(u64),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let member = 0..120_usize;
        let change = prop_oneof![
            4 => member.clone().prop_map(Change::Meet),
            3 => member.clone().prop_map(Change::Lose),
            1 => member.prop_map(Change::Forget),
            1 => (1..90_u64).prop_map(Change::Wait),
        ];
        prop::collection::vec(change, 0..200)
    }

    proptest! {
        #[test]
        fn a_table_keeps_its_bounds_and_never_drops_a_connected_member(changes in changes(), place: [u8; 32]) {
            let mut table = Table::new(contact(500));
            let mut now = NOW;
            let mut placed_and_connected = BTreeSet::new();
            for change in changes {
                match change {
                    Change::Meet(index) => {
                        let contact = contact(index);
                        match table.presence(contact, now) {
                            Presence::Absent => { let _ = table.insert(contact, Status::Connected, now); }
                            _ => table.update(contact, Status::Connected, now),
                        }
                        if table.presence(contact, now) == Presence::Present(Status::Connected) {
                            placed_and_connected.insert(index);
                        }
                    }
                    Change::Lose(index) => {
                        table.update(contact(index), Status::Disconnected, now);
                        placed_and_connected.remove(&index);
                    }
                    Change::Forget(index) => {
                        table.remove(contact(index), now);
                        prop_assert_eq!(table.presence(contact(index), now), Presence::Absent);
                        placed_and_connected.remove(&index);
                    }
                    Change::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                for index in &placed_and_connected {
                    let presence = table.presence(contact(*index), now);
                    prop_assert_eq!(presence, Presence::Present(Status::Connected));
                }
                for (index, bucket) in &table.buckets {
                    prop_assert!(bucket.entries().len() <= K);
                    for entry in bucket.entries() {
                        prop_assert_eq!(table.index(&entry.position), Some(*index));
                    }
                }
            }
            let place = Key(place);
            let all: Vec<_> = table.buckets.values().flat_map(Bucket::entries).copied().collect();
            let mut sorted = all;
            sorted.sort_by_key(|entry| entry.distance(&place));
            let unique: BTreeSet<_> = sorted.iter().collect();
            prop_assert_eq!(unique.len(), sorted.len());
            sorted.truncate(K);
            prop_assert_eq!(table.closest(&place, None, now), sorted);
        }
    }
}
