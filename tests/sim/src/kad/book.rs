//! Whom a member knows of, and when to dial them next: the part of the overlay's address book that does without
//! addresses.
//!
//! The book is bounded. Who failed most is forgotten first, and of those with as many failures who was heard of longest
//! ago; bootstrap members stay.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_types::Key;

use super::{Contact, Distance};

/// Members remembered.
pub(super) const MAX_BOOK: usize = 1024;

/// The pause after a failed dial, doubled by each further one, and the longest one, which for bootstrap members is
/// shorter.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(300);
pub(super) const MAX_PINNED_PAUSE: Duration = Duration::from_secs(30);

/// A connection that did not last as long as this was short.
const SHORT: Duration = Duration::from_secs(60);

/// What is known of a member.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) contact: Contact,
    /// A bootstrap member.
    pub(super) pinned: bool,
    /// Whether it was ever connected in this run.
    pub(super) met: bool,
    pub(super) failures: u32,
    pub(super) next_dial: Duration,
    pub(super) touched: Duration,
    /// Since when it is connected, or was last, and how often in a row that was short.
    since: Duration,
    dropped: u32,
}

impl Entry {
    /// Whether it was learned of and nobody has tried it yet.
    pub(super) fn is_fresh(&self) -> bool {
        !self.met && self.failures == 0
    }

    /// Whether it was dialled in vain last.
    pub(super) fn is_missed(&self) -> bool {
        self.failures > 0
    }

    /// It is connected.
    pub(super) fn reached(&mut self, now: Duration) {
        (self.met, self.failures) = (true, 0);
        (self.since, self.next_dial) = (now, now);
    }

    /// Its last connection closed; it is to be dialled again after `wait`, or later if it rests. One that closes soon
    /// after each connection has no room, and is left alone ever longer.
    pub(super) fn lost(&mut self, now: Duration, wait: Duration) {
        let short = now.saturating_sub(self.since) < SHORT;
        self.dropped = if short { self.dropped + 1 } else { 0 };
        let pause = match self.dropped {
            0 | 1 => Duration::ZERO,
            times => FIRST_PAUSE.saturating_mul(1 << times.min(10)).min(MAX_PAUSE),
        };
        self.next_dial = self.next_dial.max(now + wait + pause);
        self.touched = now;
    }

    /// It was not reached. `jitter` is in 0..1.
    pub(super) fn failed(&mut self, now: Duration, jitter: f64) {
        let longest = if self.pinned { MAX_PINNED_PAUSE } else { MAX_PAUSE };
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        self.next_dial = now + pause.min(longest).mul_f64(0.5 + jitter);
    }

    /// Its place among those to be forgotten.
    fn rank(&self, distance: Distance) -> Rank {
        (Reverse(self.failures), self.touched, distance)
    }
}

type Rank = (Reverse<u32>, Duration, Distance);

/// Whom a member knows of.
#[derive(Debug, Clone)]
pub(super) struct Book {
    home: Key,
    /// By distance from the member itself.
    entries: BTreeMap<Distance, Entry>,
    /// Those that may be forgotten, in that order.
    ranks: BTreeSet<Rank>,
    /// Those that are pinned.
    pinned: BTreeSet<Distance>,
}

impl Book {
    pub(super) fn new(home: Key) -> Self {
        Self {
            home,
            entries: BTreeMap::new(),
            ranks: BTreeSet::new(),
            pinned: BTreeSet::new(),
        }
    }

    pub(super) fn get(&self, contact: Contact) -> Option<&Entry> {
        self.entries.get(&contact.distance(&self.home))
    }

    /// Everybody, the nearest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The bootstrap members, the nearest first.
    pub(super) fn pinned(&self) -> impl Iterator<Item = &Entry> {
        self.pinned
            .iter()
            .filter_map(|distance| self.entries.get(distance))
    }

    /// A member that is known is a bootstrap member, and is not forgotten from now on.
    pub(super) fn pin(&mut self, contact: Contact) {
        let distance = contact.distance(&self.home);
        if let Some(entry) = self.entries.get_mut(&distance) {
            self.ranks.remove(&entry.rank(distance));
            entry.pinned = true;
            self.pinned.insert(distance);
        }
    }

    /// Notes that somebody was heard of. Whether it is new, to be dialled at `next_dial`.
    pub(super) fn remember(&mut self, contact: Contact, next_dial: Duration, now: Duration) -> bool {
        if self.change(contact, |entry| entry.touched = now) {
            return false;
        }
        if self.entries.len() >= MAX_BOOK
            && let Some((_, _, worst)) = self.ranks.pop_first()
        {
            self.entries.remove(&worst);
        }
        let distance = contact.distance(&self.home);
        let entry = Entry {
            contact,
            pinned: false,
            met: false,
            failures: 0,
            next_dial,
            touched: now,
            since: now,
            dropped: 0,
        };
        self.ranks.insert(entry.rank(distance));
        self.entries.insert(distance, entry);
        true
    }

    /// Changes what is known of a member. Whether it is in the book.
    pub(super) fn change(&mut self, contact: Contact, change: impl FnOnce(&mut Entry)) -> bool {
        let distance = contact.distance(&self.home);
        let Some(entry) = self.entries.get_mut(&distance) else {
            return false;
        };
        let before = entry.rank(distance);
        change(entry);
        let after = entry.rank(distance);
        if before != after && !entry.pinned {
            self.ranks.remove(&before);
            self.ranks.insert(after);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer;

    const NOW: Duration = Duration::ZERO;
    const LATER: Duration = Duration::from_secs(10);

    fn contact(index: usize) -> Contact {
        peer(index).into()
    }

    #[test]
    fn a_full_book_forgets_who_failed_most_and_never_a_bootstrap_member() {
        let mut book = Book::new(contact(0).position);
        for index in 1..=MAX_BOOK {
            let at = Duration::from_millis(index as u64);
            assert!(book.remember(contact(index), at, at));
        }
        book.pin(contact(1));
        for index in [1, 700] {
            book.change(contact(index), |entry| entry.failed(LATER, 0.5));
        }
        let has = |book: &Book, index: usize| book.get(contact(index)).is_some();
        assert!(book.remember(contact(5000), LATER, LATER));
        assert!(!has(&book, 700) && has(&book, 1) && has(&book, 2));
        assert!(book.remember(contact(5001), LATER, LATER));
        assert!(!has(&book, 2) && has(&book, 3) && has(&book, 5000));
        assert_eq!(book.iter().count(), MAX_BOOK);
    }

    #[test]
    fn pauses_double_up_to_a_limit_that_is_shorter_for_bootstrap_members() {
        for (pinned, longest) in [(false, MAX_PAUSE), (true, MAX_PINNED_PAUSE)] {
            let mut book = Book::new(contact(0).position);
            book.remember(contact(1), NOW, NOW);
            if pinned {
                book.pin(contact(1));
            }
            let mut pauses = Vec::new();
            for _ in 0..12 {
                book.change(contact(1), |entry| entry.failed(NOW, 0.5));
                pauses.extend(book.get(contact(1)).map(|entry| entry.next_dial));
            }
            assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
            assert_eq!(pauses[11], longest);
        }
    }
}
