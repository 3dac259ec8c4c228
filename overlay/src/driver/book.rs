//! The address book: which members are known, where, and when to dial them next. Pure.
//!
//! ```text
//!            learn                  dialled, reached
//!   (unknown) ────► fresh ───────────────────────────► connected
//!                     │ not reached          ▲            │ last connection closed
//!                     ▼                      │ reached    ▼
//!                   gone ◄──────────────── lost ◄─────────┘
//!                     └── pause doubles with every failure, up to a limit
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aerie_types::PeerId;
use libp2p::Multiaddr;

use crate::config::{MAX_ADDRS, MAX_BOOK};
use crate::peer::without_target;

/// The first pause after a failure; doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between dials of an ordinary member and of a bootstrap member.
const MAX_PAUSE: Duration = Duration::from_secs(300);
const MAX_PINNED_PAUSE: Duration = Duration::from_secs(30);

/// A connection that did not last as long as this was short: the other side had no room for it.
const SHORT: Duration = Duration::from_secs(60);

/// A member that refused us, or that we refused, is left alone this long.
const REFUSED_PAUSE: Duration = Duration::from_secs(120);

/// A bootstrap member is dialled within this time once the node is alone.
const ALONE_SPREAD: Duration = Duration::from_millis(500);

/// Whoever was not reached for so many attempts and is no bootstrap member is forgotten: about a day.
const MAX_FAILURES: u32 = 280;

#[derive(Debug)]
pub(crate) struct Entry {
    /// Without the final `/p2p` part; those that worked last come first.
    pub(crate) addrs: Vec<Multiaddr>,
    /// A bootstrap member: never forgotten, never left alone for long.
    pub(crate) pinned: bool,
    /// Whether it was ever connected in this run.
    pub(crate) met: bool,
    /// Whether the last attempt ended with one side refusing the other's credential.
    refused: bool,
    failures: u32,
    next_dial: Instant,
    touched: Instant,
    /// Since when it is connected, or was last, and how often in a row that was short.
    since: Instant,
    short: u32,
}

impl Entry {
    /// A bootstrap member is dialled again sooner than others, whatever happens.
    fn longest_pause(&self) -> Duration {
        if self.pinned { MAX_PINNED_PAUSE } else { MAX_PAUSE }
    }

    /// Whether it was learned of and nobody has tried it yet.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.met && self.failures == 0
    }

    /// Whether it was dialled last and not found.
    pub(crate) fn is_missed(&self) -> bool {
        self.failures > 0 && !self.refused
    }

    /// Whether it has been due for so long already.
    pub(crate) fn is_due(&self, now: Instant, since: Duration) -> bool {
        self.next_dial + since <= now
    }
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    entries: BTreeMap<PeerId, Entry>,
}

impl Book {
    pub(crate) fn get(&self, peer: PeerId) -> Option<&Entry> {
        self.entries.get(&peer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerId, &Entry)> {
        self.entries.iter().map(|(peer, entry)| (*peer, entry))
    }

    /// Notes an address. `true` if the member is new, to be dialled after `wait`.
    pub(crate) fn learn(&mut self, peer: PeerId, addr: Multiaddr, now: Instant, wait: Duration) -> bool {
        let soon = now + wait;
        let is_new = !self.entries.contains_key(&peer);
        if is_new {
            self.make_room();
        }
        let entry = self.entries.entry(peer).or_insert_with(|| Entry {
            addrs: Vec::new(),
            pinned: false,
            met: false,
            refused: false,
            failures: 0,
            next_dial: soon,
            touched: now,
            since: now,
            short: 0,
        });
        entry.touched = now;
        let addr = without_target(addr);
        if !entry.addrs.contains(&addr) {
            if entry.addrs.len() >= MAX_ADDRS {
                entry.addrs.pop();
            }
            entry.addrs.push(addr);
            // A new address of a member that could not be reached is worth a try, though not on every rumour.
            if entry.failures > 0 && !is_new {
                entry.next_dial = entry.next_dial.min(now + FIRST_PAUSE + wait);
            }
        }
        is_new
    }

    /// Notes the addresses that the member states itself: those come first, older ones stay while there is room.
    pub(crate) fn restate(&mut self, peer: PeerId, addrs: Vec<Multiaddr>, now: Instant) {
        let mut stated: Vec<_> = addrs.into_iter().map(without_target).collect();
        for addr in &stated {
            self.learn(peer, addr.clone(), now, Duration::ZERO);
        }
        if let Some(entry) = self.entries.get_mut(&peer) {
            let older = std::mem::take(&mut entry.addrs);
            for addr in older {
                if !stated.contains(&addr) {
                    stated.push(addr);
                }
            }
            stated.truncate(MAX_ADDRS);
            entry.addrs = stated;
        }
    }

    /// Marks a bootstrap member.
    pub(crate) fn pin(&mut self, peer: PeerId) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.pinned = true;
        }
    }

    /// The first connection to the member is there.
    pub(crate) fn met(&mut self, peer: PeerId, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            (entry.since, entry.next_dial) = (now, now);
        }
    }

    /// The member was reached, at this address if this node dialled it.
    pub(crate) fn reached(&mut self, peer: PeerId, at: Option<Multiaddr>, now: Instant) {
        if let Some(at) = &at {
            self.learn(peer, at.clone(), now, Duration::ZERO);
        }
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.met = true;
            entry.refused = false;
            entry.failures = 0;
            entry.touched = now;
            if let Some(at) = at.map(without_target)
                && let Some(index) = entry.addrs.iter().position(|addr| *addr == at)
            {
                entry.addrs[..=index].rotate_right(1);
            }
        }
    }

    /// The member's last connection closed; it is to be dialled again after `wait`, or later if it rests. One that
    /// closes soon after each connection has no room for this node, and is left alone ever longer.
    pub(crate) fn lost(&mut self, peer: PeerId, now: Instant, wait: Duration) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            // Its addresses may have become known only while it was connected already.
            entry.met = true;
            let short = now.saturating_duration_since(entry.since) < SHORT;
            entry.short = if short { entry.short + 1 } else { 0 };
            let pause = match entry.short {
                0 | 1 => Duration::ZERO,
                times => FIRST_PAUSE
                    .saturating_mul(1 << times.min(10))
                    .min(entry.longest_pause()),
            };
            entry.next_dial = entry.next_dial.max(now + wait + pause);
            entry.touched = now;
        }
    }

    /// The member is left alone for a while: it was dropped for lack of room.
    pub(crate) fn rest(&mut self, peer: PeerId, pause: Duration, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.next_dial = now + pause;
        }
    }

    /// No address of the member led to it. `jitter` is in 0..1, here and below.
    pub(crate) fn failed(&mut self, peer: PeerId, now: Instant, jitter: f64) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            let limit = entry.longest_pause();
            let pause = FIRST_PAUSE.saturating_mul(1 << entry.failures.min(10)).min(limit);
            entry.failures += 1;
            entry.refused = false;
            entry.next_dial = now + pause.mul_f64(0.5 + jitter);
            if entry.failures > MAX_FAILURES && !entry.pinned {
                self.entries.remove(&peer);
            }
        }
    }

    /// The member refused this node or was refused.
    pub(crate) fn refused(&mut self, peer: PeerId, now: Instant, jitter: f64) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            entry.failures += 1;
            entry.refused = true;
            let pause = if entry.pinned {
                MAX_PINNED_PAUSE
            } else {
                REFUSED_PAUSE
            };
            entry.next_dial = now + pause.mul_f64(0.5 + jitter);
        }
    }

    /// An address led to somebody else.
    pub(crate) fn strike(&mut self, peer: PeerId, addr: &Multiaddr) {
        if let Some(entry) = self.entries.get_mut(&peer) {
            let addr = without_target(addr.clone());
            entry.addrs.retain(|known| *known != addr);
        }
    }

    /// This node is alone: bootstrap members and those met in this run are dialled soon.
    pub(crate) fn hurry(&mut self, now: Instant, mut jitter: impl FnMut() -> f64) {
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.pinned || entry.met)
        {
            entry.failures = entry.failures.min(1);
            entry.next_dial = entry.next_dial.min(now + ALONE_SPREAD.mul_f64(jitter()));
        }
    }

    /// Another one that was missed is back: if this one is missed too, it is dialled after `wait`.
    pub(crate) fn may_be_back(&mut self, peer: PeerId, now: Instant, wait: Duration) {
        if let Some(entry) = self.entries.get_mut(&peer).filter(|entry| entry.is_missed()) {
            entry.next_dial = entry.next_dial.min(now + wait);
        }
    }

    /// Who is to be dialled now: bootstrap members first, then whoever failed least, then who has been due for longest.
    /// An order by id would have all members of a large grid dial the same few.
    pub(crate) fn due(&self, now: Instant) -> Vec<PeerId> {
        let mut due: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.next_dial <= now)
            .map(|(peer, entry)| (!entry.pinned, entry.failures, entry.next_dial, *peer))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(.., peer)| peer).collect()
    }

    /// Whether the pause after a refusal is still running.
    pub(crate) fn is_refused(&self, peer: PeerId, now: Instant) -> bool {
        self.is_resting(peer, now) && self.entries.get(&peer).is_some_and(|entry| entry.refused)
    }

    /// Whether the pause after a failure is still running.
    pub(crate) fn is_resting(&self, peer: PeerId, now: Instant) -> bool {
        self.entries
            .get(&peer)
            .is_some_and(|entry| entry.failures > 0 && entry.next_dial > now)
    }

    fn make_room(&mut self) {
        if self.entries.len() < MAX_BOOK {
            return;
        }
        let worst = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.pinned)
            .max_by_key(|(_, entry)| (entry.failures, std::cmp::Reverse(entry.touched)))
            .map(|(peer, _)| *peer);
        if let Some(worst) = worst {
            self.entries.remove(&worst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn peer(n: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        PeerId(key)
    }

    #[test]
    fn pauses_double_up_to_a_limit_that_is_shorter_for_bootstrap_members() {
        let now = Instant::now();
        for (pinned, longest) in [(false, MAX_PAUSE), (true, MAX_PINNED_PAUSE)] {
            let mut book = Book::default();
            book.learn(peer(1), addr(1), now, Duration::ZERO);
            if pinned {
                book.pin(peer(1));
            }
            assert_eq!(book.due(now), [peer(1)]);
            book.failed(peer(1), now, 0.5);
            assert!(book.due(now).is_empty());
            assert_eq!(book.due(now + FIRST_PAUSE), [peer(1)]);
            for _ in 0..20 {
                book.failed(peer(1), now, 0.5);
            }
            assert!(book.due(now + longest - Duration::from_millis(1)).is_empty());
            assert_eq!(book.due(now + longest), [peer(1)]);
        }
    }

    #[test]
    fn the_book_stays_bounded_and_keeps_bootstrap_members() {
        let now = Instant::now();
        let mut book = Book::default();
        book.learn(peer(0), addr(1), now, Duration::ZERO);
        book.pin(peer(0));
        for n in 1..=(MAX_BOOK as u16 + 50) {
            book.learn(
                peer(n),
                addr(1),
                now + Duration::from_millis(n.into()),
                Duration::ZERO,
            );
            for port in 0..(MAX_ADDRS as u16 + 5) {
                book.learn(peer(n), addr(port), now, Duration::ZERO);
            }
        }
        assert_eq!(book.entries.len(), MAX_BOOK);
        assert!(book.get(peer(0)).is_some());
        assert!(book.entries.values().all(|entry| entry.addrs.len() <= MAX_ADDRS));
    }

    #[test]
    fn the_address_that_worked_comes_first() {
        let now = Instant::now();
        let mut book = Book::default();
        for port in 1..=3 {
            book.learn(peer(1), addr(port), now, Duration::ZERO);
        }
        book.reached(peer(1), Some(addr(3)), now);
        assert_eq!(book.get(peer(1)).unwrap().addrs, [addr(3), addr(1), addr(2)]);
    }

    #[test]
    fn one_that_was_dropped_for_lack_of_room_rests_although_its_connection_closes() {
        let now = Instant::now();
        let mut book = Book::default();
        book.learn(peer(1), addr(1), now, Duration::ZERO);
        book.reached(peer(1), None, now);
        book.met(peer(1), now);
        let dropped = now + SHORT;
        book.rest(peer(1), MAX_PAUSE, dropped);
        book.lost(peer(1), dropped, Duration::ZERO);
        assert!(book.due(dropped + MAX_PAUSE - FIRST_PAUSE).is_empty());
        assert_eq!(book.due(dropped + MAX_PAUSE), [peer(1)]);
    }

    #[test]
    fn one_that_closes_soon_after_each_connection_is_left_alone_ever_longer_and_one_that_stays_is_not() {
        let now = Instant::now();
        let mut book = Book::default();
        book.learn(peer(1), addr(1), now, Duration::ZERO);
        let mut connect = |lasts: Duration| {
            book.reached(peer(1), None, now);
            book.met(peer(1), now);
            book.lost(peer(1), now + lasts, Duration::ZERO);
            book.entries[&peer(1)].next_dial - now - lasts
        };
        let short: Vec<_> = (0..12).map(|_| connect(Duration::ZERO)).collect();
        assert_eq!(short[..3], [Duration::ZERO, FIRST_PAUSE * 4, FIRST_PAUSE * 8]);
        assert_eq!(short[11], MAX_PAUSE);
        assert_eq!(connect(SHORT), Duration::ZERO);
        book.learn(peer(2), addr(2), now, Duration::ZERO);
        book.pin(peer(2));
        for _ in 0..12 {
            book.met(peer(2), now);
            book.lost(peer(2), now, Duration::ZERO);
        }
        assert_eq!(book.entries[&peer(2)].next_dial - now, MAX_PINNED_PAUSE);
    }

    #[test]
    fn of_those_that_are_due_who_has_been_for_longest_comes_first_whatever_the_ids() {
        let now = Instant::now();
        let mut book = Book::default();
        for (n, wait) in [(1, 30), (2, 20), (3, 10)] {
            book.learn(peer(n), addr(n), now, Duration::from_millis(wait));
        }
        let due = book.due(now + FIRST_PAUSE);
        assert_eq!(due, [peer(3), peer(2), peer(1)]);
    }

    #[test]
    fn who_was_not_found_is_dialled_soon_when_others_are_back_and_who_refused_is_not() {
        let now = Instant::now();
        let mut book = Book::default();
        for n in 1..=3 {
            book.learn(peer(n), addr(n), now, MAX_PAUSE);
        }
        for _ in 0..9 {
            book.failed(peer(1), now, 0.5);
        }
        book.refused(peer(2), now, 0.5);
        for n in 1..=4 {
            book.may_be_back(peer(n), now, ALONE_SPREAD);
        }
        assert_eq!(book.due(now + ALONE_SPREAD), [peer(1)]);
        // One more failure, and the pause is as long as it would have been.
        book.failed(peer(1), now, 0.5);
        assert!(!book.due(now + MAX_PAUSE - FIRST_PAUSE).contains(&peer(1)));
    }

    #[test]
    fn a_node_that_is_alone_dials_those_it_met_again_soon() {
        let now = Instant::now();
        let mut book = Book::default();
        book.learn(peer(1), addr(1), now, Duration::ZERO);
        book.reached(peer(1), None, now);
        for _ in 0..9 {
            book.failed(peer(1), now, 0.5);
        }
        book.hurry(now, || 1.0);
        assert_eq!(book.due(now + ALONE_SPREAD), [peer(1)]);
    }
}
