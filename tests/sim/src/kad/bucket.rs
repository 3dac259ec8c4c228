//! One bucket of a table: the members of one range of distances, the least recently connected first.
//!
//! ```text
//!   ┌── not connected, oldest first ──┬── connected, oldest first ──┐
//!   │ e0  e1  e2 ...                  │ ...                         │      pending: waits for e0's place
//!   └─────────────────────────────────┴─────────────────────────────┘
//! ```
//!
//! A full bucket takes nobody in whom it does not know, as long as all of its members are connected. If one is not,
//! a connected newcomer becomes *pending*, and the first entry is dialled: if it comes back the newcomer is dropped,
//! and if not the newcomer takes its place after [`PENDING`].

use std::time::Duration;

use aerie_types::PeerId;

use super::{Contact, K, PENDING};

/// Whether a member is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Connected,
    /// It was.
    Disconnected,
}

/// What became of a member that was put into a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It has a place.
    Added,
    /// It waits for the place of the member named, which is to be dialled.
    Pending(Contact),
    /// There is no room.
    Full,
}

#[derive(Debug, Clone)]
struct Waiting {
    contact: Contact,
    status: Status,
    ready: Duration,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Bucket {
    entries: Vec<Contact>,
    /// How many of the entries are not connected; they come first.
    gone: usize,
    pending: Option<Waiting>,
}

impl Bucket {
    pub(super) fn entries(&self) -> &[Contact] {
        &self.entries
    }

    pub(super) fn status(&self, peer: PeerId) -> Option<Status> {
        let place = self.place(peer)?;
        Some(if place < self.gone {
            Status::Disconnected
        } else {
            Status::Connected
        })
    }

    pub(super) fn pending(&self, peer: PeerId) -> Option<Status> {
        let waiting = self.pending.as_ref()?;
        (waiting.contact.peer == peer).then_some(waiting.status)
    }

    pub(super) fn insert(&mut self, contact: Contact, status: Status, now: Duration) -> Inserted {
        let full = self.entries.len() >= K;
        match (status, full) {
            (Status::Connected, true) => match self.entries.first() {
                Some(oldest) if self.gone > 0 && self.pending.is_none() => {
                    let oldest = *oldest;
                    self.pending = Some(Waiting {
                        contact,
                        status,
                        ready: now + PENDING,
                    });
                    Inserted::Pending(oldest)
                }
                _ => Inserted::Full,
            },
            (Status::Disconnected, true) => Inserted::Full,
            (_, false) => {
                self.append(contact, status);
                Inserted::Added
            }
        }
    }

    pub(super) fn remove(&mut self, peer: PeerId) -> bool {
        if self.pending(peer).is_some() {
            self.pending = None;
            return true;
        }
        self.take(peer).is_some()
    }

    /// Notes that an entry, or the one that waits, connected or disconnected.
    pub(super) fn update(&mut self, peer: PeerId, status: Status) {
        if let Some(waiting) = self
            .pending
            .as_mut()
            .filter(|waiting| waiting.contact.peer == peer)
        {
            waiting.status = status;
        } else if let Some((place, contact)) = self.take(peer) {
            if place == 0 && status == Status::Connected {
                self.pending = None;
            }
            self.append(contact, status);
        }
    }

    /// Gives the one that waits its place, if it has waited long enough and there still is one.
    pub(super) fn apply_pending(&mut self, now: Duration) {
        let Some(waiting) = self.pending.take_if(|waiting| waiting.ready <= now) else {
            return;
        };
        if self.entries.len() >= K {
            if self.gone == 0 {
                return;
            }
            self.entries.remove(0);
            self.gone -= 1;
        }
        self.append(waiting.contact, waiting.status);
    }

    fn append(&mut self, contact: Contact, status: Status) {
        match status {
            Status::Connected => self.entries.push(contact),
            Status::Disconnected => {
                self.entries.insert(self.gone, contact);
                self.gone += 1;
            }
        }
    }

    fn take(&mut self, peer: PeerId) -> Option<(usize, Contact)> {
        let place = self.place(peer)?;
        let contact = self.entries.remove(place);
        if place < self.gone {
            self.gone -= 1;
        }
        Some((place, contact))
    }

    fn place(&self, peer: PeerId) -> Option<usize> {
        self.entries.iter().position(|entry| entry.peer == peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer;

    fn contact(index: usize) -> Contact {
        peer(index).into()
    }

    fn full(status: Status) -> Bucket {
        let mut bucket = Bucket::default();
        for index in 0..K {
            assert_eq!(
                bucket.insert(contact(index), status, Duration::ZERO),
                Inserted::Added
            );
        }
        bucket
    }

    #[test]
    fn a_bucket_full_of_connected_members_takes_nobody_in() {
        let mut bucket = full(Status::Connected);
        let late = bucket.insert(contact(K), Status::Connected, Duration::ZERO);
        assert_eq!(late, Inserted::Full);
        bucket.apply_pending(PENDING);
        assert_eq!(bucket.status(peer(K)), None);
    }

    #[test]
    fn the_least_recently_connected_one_gives_way_after_the_pause() {
        let mut bucket = full(Status::Connected);
        for index in [3, 1] {
            bucket.update(peer(index), Status::Disconnected);
        }
        let late = bucket.insert(contact(K), Status::Connected, Duration::ZERO);
        assert_eq!(late, Inserted::Pending(contact(3)));
        let later = bucket.insert(contact(K + 1), Status::Connected, Duration::ZERO);
        assert_eq!(later, Inserted::Full);
        bucket.apply_pending(PENDING - Duration::from_millis(1));
        assert_eq!(bucket.status(peer(K)), None);
        bucket.apply_pending(PENDING);
        assert_eq!(bucket.status(peer(K)), Some(Status::Connected));
        assert_eq!(bucket.status(peer(3)), None);
        assert_eq!(bucket.status(peer(1)), Some(Status::Disconnected));
        assert_eq!(bucket.entries().last(), Some(&contact(K)));
    }

    #[test]
    fn one_that_comes_back_keeps_its_place_and_the_newcomer_is_dropped() {
        let mut bucket = full(Status::Connected);
        bucket.update(peer(5), Status::Disconnected);
        let late = bucket.insert(contact(K), Status::Connected, Duration::ZERO);
        assert_eq!(late, Inserted::Pending(contact(5)));
        bucket.update(peer(5), Status::Connected);
        bucket.apply_pending(PENDING);
        assert_eq!(bucket.status(peer(5)), Some(Status::Connected));
        assert_eq!(bucket.status(peer(K)), None);
    }

    #[test]
    fn a_newcomer_that_left_again_comes_in_among_those_not_connected() {
        let mut bucket = full(Status::Connected);
        for index in [4, 2] {
            bucket.update(peer(index), Status::Disconnected);
        }
        let _ = bucket.insert(contact(K), Status::Connected, Duration::ZERO);
        bucket.update(peer(K), Status::Disconnected);
        bucket.apply_pending(PENDING);
        let first: Vec<_> = bucket.entries().iter().take(2).copied().collect();
        assert_eq!(first, [contact(2), contact(K)]);
        assert_eq!(bucket.status(peer(K)), Some(Status::Disconnected));
    }

    #[test]
    fn who_waits_takes_a_place_that_became_free() {
        let mut bucket = full(Status::Connected);
        bucket.update(peer(0), Status::Disconnected);
        let _ = bucket.insert(contact(K), Status::Connected, Duration::ZERO);
        assert!(bucket.remove(peer(9)));
        bucket.apply_pending(PENDING);
        assert_eq!(bucket.status(peer(0)), Some(Status::Disconnected));
        assert_eq!(bucket.status(peer(K)), Some(Status::Connected));
    }
}
