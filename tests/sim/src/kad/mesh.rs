//! The overlay's rule of whom to be connected to, without its transports: the part of its driver that decides which
//! members Kademlia's table can hold.
//!
//! A member begins at one that it was told of, asks the first that it meets whom they are connected to, and from then
//! on somebody at random, ever more rarely while nothing is new. It dials whom it hears of while it has room; beyond
//! its limit only those among the twenty nearest to it. Now and then those beyond the limit are dropped by lot, the
//! nearest and the first one excepted.
//!
//! The figures are those of `overlay/src/driver` (`mesh.rs`, `dialer.rs`, `book.rs`, `connections.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aerie_types::PeerId;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Contact, Distance, K};

/// How often what is due is looked at.
const TICK: Duration = Duration::from_millis(200);

/// The pause between questions when the grid is changing, and when nothing has been new for long.
const SHORTEST: Duration = Duration::from_millis(400);
const LONGEST: Duration = Duration::from_secs(300);

/// Members named in one answer, asked at once by the clock, and asked as soon as they are met.
const MAX_NAMED: usize = 64;
const ASKED: usize = 2;
const ASKED_FIRST: usize = 3;

/// Members dialled at once, and members remembered.
const MAX_ATTEMPTS: usize = 12;
const MAX_BOOK: usize = 1024;

/// How long those newly learned of and those lost wait until they are dialled, by chance.
const LEARN_SPREAD: Duration = Duration::from_millis(100);
const LOST_SPREAD: Duration = Duration::from_millis(500);

/// How much longer the higher id of two waits, and how much for each member that it is dialling already.
const GIVE_WAY: Duration = Duration::from_millis(300);
const GIVE_WAY_BUSY: Duration = Duration::from_millis(400);

/// The pause after a failed dial, doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// How often members beyond the limit are dropped.
const PRUNE_EVERY: Duration = Duration::from_secs(30);

/// What the rule wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Connect to a member.
    Dial(Contact),
    /// Close the connections to a member.
    Close(Contact),
    /// Ask a connected member whom else it is connected to.
    Ask(Contact),
}

#[derive(Debug, Clone)]
struct Entry {
    contact: Contact,
    met: bool,
    failures: u32,
    next_dial: Duration,
    touched: Duration,
}

/// Whom one member is connected to, and whom it should be.
#[derive(Debug, Clone)]
pub struct Mesh {
    local: Contact,
    limit: usize,
    first: Option<PeerId>,
    /// By distance from the member itself.
    book: BTreeMap<Distance, Entry>,
    /// The same in the order in which they are kept: those heard of last stay longest.
    heard: BTreeSet<(Duration, Distance)>,
    live: BTreeMap<PeerId, Contact>,
    dialling: BTreeSet<PeerId>,
    pause: Duration,
    question_at: Duration,
    prune_at: Duration,
    tick_at: Option<Duration>,
    questions: u64,
    rng: ChaCha8Rng,
    wishes: VecDeque<Wish>,
}

impl Mesh {
    /// A member that is connected to nobody and begins at `first`, unless it is the first one itself.
    #[must_use]
    pub fn new(local: Contact, first: Option<Contact>, limit: usize, seed: u64, now: Duration) -> Self {
        let mut mesh = Self {
            local,
            limit,
            first: first.map(|first| first.peer),
            book: BTreeMap::new(),
            heard: BTreeSet::new(),
            live: BTreeMap::new(),
            dialling: BTreeSet::new(),
            pause: SHORTEST,
            question_at: now,
            prune_at: now + PRUNE_EVERY,
            tick_at: None,
            questions: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            wishes: VecDeque::new(),
        };
        if let Some(first) = first {
            mesh.learn(first, now);
        }
        mesh
    }

    /// The connected members.
    pub fn live(&self) -> impl Iterator<Item = Contact> {
        self.live.values().copied()
    }

    /// How many questions it has asked.
    #[must_use]
    pub fn questions(&self) -> u64 {
        self.questions
    }

    /// A member is connected: the first connection to it.
    pub fn connected(&mut self, contact: Contact, now: Duration) {
        self.dialling.remove(&contact.peer);
        while self.prune_at < now {
            self.prune_at += PRUNE_EVERY;
        }
        self.remember(contact, now);
        if let Some(entry) = self.book.get_mut(&contact.distance(&self.local.position)) {
            entry.met = true;
            entry.failures = 0;
        }
        if self.live.insert(contact.peer, contact).is_none() && self.live.len() <= ASKED_FIRST {
            self.something_new(now);
            self.ask(contact);
        }
        self.wake(now);
    }

    /// The last connection to a member closed.
    pub fn closed(&mut self, contact: Contact, now: Duration) {
        if self.live.remove(&contact.peer).is_some() {
            let next_dial = now + self.wait_for(contact, LOST_SPREAD);
            if let Some(entry) = self.book.get_mut(&contact.distance(&self.local.position)) {
                entry.next_dial = next_dial;
            }
            self.wake(now);
        }
    }

    /// A member is not to be reached. Whether it was this rule that wanted it dialled.
    pub fn dial_failed(&mut self, contact: Contact, now: Duration) -> bool {
        if !self.dialling.remove(&contact.peer) {
            return false;
        }
        let jitter: f64 = self.rng.random();
        if let Some(entry) = self.book.get_mut(&contact.distance(&self.local.position)) {
            let pause = FIRST_PAUSE
                .saturating_mul(1 << entry.failures.min(10))
                .min(MAX_PAUSE);
            entry.failures += 1;
            entry.next_dial = now + pause.mul_f64(0.5 + jitter);
        }
        self.wake(now);
        true
    }

    /// Somebody named a member. Whether it is new.
    pub fn learn(&mut self, contact: Contact, now: Duration) -> bool {
        if contact == self.local {
            return false;
        }
        let is_new = self.remember(contact, now);
        if is_new {
            self.wake(now);
        }
        is_new
    }

    /// Whom a question says that this member knows already.
    #[must_use]
    pub fn known(&self) -> BTreeSet<PeerId> {
        self.live.keys().copied().collect()
    }

    /// The answer to a question.
    #[must_use]
    pub fn named(&self, asker: PeerId, known: &BTreeSet<PeerId>) -> Vec<Contact> {
        let unknown = |peer: &PeerId| *peer != asker && !known.contains(peer);
        let named = self.live.iter().filter(|(peer, _)| unknown(peer));
        named.map(|(_, contact)| *contact).take(MAX_NAMED).collect()
    }

    /// A member answered a question.
    pub fn answered(&mut self, named: &[Contact], now: Duration) {
        let mut news = false;
        for contact in named {
            news |= self.learn(*contact, now);
        }
        if news {
            self.something_new(now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.tick_at.is_some_and(|at| at <= now) {
            self.dial_due(now);
        }
        if self.question_at <= now && !self.live.is_empty() {
            self.question_at = now + self.pause.mul_f64(0.75 + self.rng.random::<f64>() / 2.0);
            self.pause = (self.pause * 2).min(LONGEST);
            for contact in self.draw(self.live().collect(), ASKED) {
                self.ask(contact);
            }
        }
        if self.prune_at <= now {
            self.prune_at = now + PRUNE_EVERY;
            self.prune();
        }
    }

    /// When something is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let question = (!self.live.is_empty()).then_some(self.question_at);
        let prune = (self.live.len() > self.limit).then_some(self.prune_at);
        [self.tick_at, question, prune].into_iter().flatten().min()
    }

    /// What is to be done next.
    pub fn poll_wish(&mut self) -> Option<Wish> {
        self.wishes.pop_front()
    }

    fn ask(&mut self, contact: Contact) {
        self.questions += 1;
        self.wishes.push_back(Wish::Ask(contact));
    }

    fn something_new(&mut self, now: Duration) {
        self.pause = SHORTEST;
        self.question_at = self.question_at.min(now + SHORTEST);
    }

    fn wake(&mut self, now: Duration) {
        self.tick_at = Some(self.tick_at.unwrap_or(now + TICK).min(now + TICK));
    }

    fn remember(&mut self, contact: Contact, now: Duration) -> bool {
        let distance = contact.distance(&self.local.position);
        if let Some(entry) = self.book.get_mut(&distance) {
            let before = std::mem::replace(&mut entry.touched, now);
            self.heard.remove(&(before, distance));
            self.heard.insert((now, distance));
            return false;
        }
        if self.book.len() >= MAX_BOOK
            && let Some((_, oldest)) = self.heard.pop_first()
        {
            self.book.remove(&oldest);
        }
        self.heard.insert((now, distance));
        let entry = Entry {
            contact,
            met: false,
            failures: 0,
            next_dial: now + self.wait_for(contact, LEARN_SPREAD),
            touched: now,
        };
        self.book.insert(distance, entry);
        true
    }

    fn wait_for(&mut self, contact: Contact, spread: Duration) -> Duration {
        let jitter = spread.mul_f64(self.rng.random());
        if self.local.peer < contact.peer {
            jitter
        } else {
            jitter + GIVE_WAY
        }
    }

    /// The nearest members known to be there, connected or not.
    fn neighbours(&self) -> impl Iterator<Item = &Entry> {
        let there = |entry: &&Entry| {
            self.live.contains_key(&entry.contact.peer) || (!entry.met && entry.failures == 0)
        };
        self.book.values().filter(there).take(K)
    }

    fn is_full(&self) -> bool {
        self.live.len() + self.dialling.len() >= self.limit
    }

    /// Whom to dial as soon as they are due: everybody while there is room, and otherwise the nearest.
    fn wanted(&self) -> Vec<&Entry> {
        let idle = |entry: &&Entry| {
            let peer = entry.contact.peer;
            !self.live.contains_key(&peer) && !self.dialling.contains(&peer)
        };
        if !self.is_full() {
            return self.book.values().filter(idle).collect();
        }
        let first = self
            .book
            .values()
            .find(|entry| Some(entry.contact.peer) == self.first);
        let wanted: BTreeMap<_, _> = self
            .neighbours()
            .chain(first)
            .filter(idle)
            .map(|entry| (entry.contact.peer, entry))
            .collect();
        wanted.into_values().collect()
    }

    fn dial_due(&mut self, now: Duration) {
        let mut due: Vec<_> = self
            .wanted()
            .into_iter()
            .filter(|entry| entry.next_dial <= now)
            .map(|entry| {
                let later = Some(entry.contact.peer) != self.first;
                (later, entry.failures, entry.contact, entry.next_dial)
            })
            .collect();
        due.sort_unstable();
        let nearest: BTreeSet<_> = self.neighbours().map(|entry| entry.contact.peer).collect();
        for (later, _, contact, since) in due {
            if self.dialling.len() >= MAX_ATTEMPTS {
                break;
            }
            let busy = u32::try_from(self.dialling.len()).unwrap_or(u32::MAX);
            let gives_way = later && self.local.peer > contact.peer && since + GIVE_WAY_BUSY * busy > now;
            if !gives_way && (!later || !self.is_full() || nearest.contains(&contact.peer)) {
                self.dialling.insert(contact.peer);
                self.wishes.push_back(Wish::Dial(contact));
            }
        }
        let next = self.wanted().into_iter().map(|entry| entry.next_dial).min();
        self.tick_at = next.map(|next| next.max(now + TICK));
    }

    fn prune(&mut self) {
        let surplus = self.live.len().saturating_sub(self.limit);
        if surplus == 0 {
            return;
        }
        let nearest: BTreeSet<_> = self.neighbours().map(|entry| entry.contact.peer).collect();
        let others = self
            .live()
            .filter(|contact| !nearest.contains(&contact.peer) && Some(contact.peer) != self.first);
        for contact in self.draw(others.collect(), surplus) {
            self.wishes.push_back(Wish::Close(contact));
        }
    }

    /// Some of these, by lot.
    fn draw(&mut self, from: Vec<Contact>, count: usize) -> Vec<Contact> {
        let mut lots: Vec<(u32, Contact)> = from
            .into_iter()
            .map(|contact| (self.rng.random(), contact))
            .collect();
        lots.sort_unstable();
        lots.into_iter().take(count).map(|(_, contact)| contact).collect()
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

    fn wishes(mesh: &mut Mesh) -> Vec<Wish> {
        std::iter::from_fn(|| mesh.poll_wish()).collect()
    }

    /// Lets every dial succeed until there is nothing to dial.
    fn settle(mesh: &mut Mesh) {
        loop {
            mesh.tick_at = Some(LATER);
            mesh.handle_timeout(LATER);
            let dials: Vec<_> = wishes(mesh)
                .into_iter()
                .filter_map(|wish| match wish {
                    Wish::Dial(contact) => Some(contact),
                    _ => None,
                })
                .collect();
            if dials.is_empty() {
                return;
            }
            assert!(dials.len() <= MAX_ATTEMPTS);
            for contact in dials {
                mesh.connected(contact, LATER);
            }
        }
    }

    #[test]
    fn everybody_is_dialled_while_there_is_room_and_then_the_nearest_only() {
        let mut mesh = Mesh::new(contact(0), Some(contact(1)), 30, 1, NOW);
        settle(&mut mesh);
        assert_eq!(mesh.live().collect::<Vec<_>>(), [contact(1)]);
        let named: Vec<_> = (2..200).map(contact).collect();
        mesh.answered(&named, NOW);
        settle(&mut mesh);
        let mut nearest: Vec<_> = (1..200).map(contact).collect();
        nearest.sort_by_key(|other| other.distance(&contact(0).position));
        let live: BTreeSet<_> = mesh.live().collect();
        assert!(nearest.iter().take(K).all(|near| live.contains(near)));
        assert!(live.len() >= 30 && live.len() <= 30 + K, "{}", live.len());

        mesh.handle_timeout(PRUNE_EVERY);
        let dropped: Vec<_> = wishes(&mut mesh)
            .into_iter()
            .filter_map(|wish| match wish {
                Wish::Close(contact) => Some(contact),
                _ => None,
            })
            .collect();
        assert_eq!(dropped.len(), live.len() - 30);
        assert!(!dropped.contains(&contact(1)));
        assert!(nearest.iter().take(K).all(|near| !dropped.contains(near)));
    }

    #[test]
    fn the_first_three_are_asked_at_once_and_others_ever_more_rarely() {
        let mut mesh = Mesh::new(contact(0), None, 64, 1, NOW);
        for index in 1..=5 {
            mesh.connected(contact(index), NOW);
        }
        let asked: Vec<_> = (1..=3).map(|index| Wish::Ask(contact(index))).collect();
        assert_eq!(wishes(&mut mesh), asked);
        let mut pauses = Vec::new();
        let mut before = NOW;
        for _ in 0..16 {
            let at = mesh.poll_timeout().unwrap();
            mesh.handle_timeout(at);
            pauses.push(at - before);
            before = at;
        }
        assert!(pauses[15] > LONGEST / 2, "{pauses:?}");
        mesh.answered(&[contact(9)], before);
        assert!(mesh.question_at <= before + SHORTEST);
    }

    #[test]
    fn an_answer_leaves_out_whom_the_asker_knows() {
        let mut mesh = Mesh::new(contact(0), None, 100, 1, NOW);
        for index in 1..=80 {
            mesh.connected(contact(index), NOW);
        }
        let known: BTreeSet<_> = (2..=40).map(peer).collect();
        let named = mesh.named(peer(1), &known);
        assert_eq!(named.len(), 40);
        assert!(named.iter().all(|named| !known.contains(&named.peer)));
        assert_eq!(mesh.named(peer(1), &BTreeSet::new()).len(), MAX_NAMED);
    }

    #[test]
    fn who_is_not_reached_is_tried_again_after_ever_longer_pauses() {
        let mut mesh = Mesh::new(contact(0), Some(contact(1)), 64, 1, NOW);
        let mut now = NOW;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let before = now;
            while wishes(&mut mesh).is_empty() {
                now = mesh.poll_timeout().unwrap();
                mesh.handle_timeout(now);
            }
            pauses.push(now - before);
            mesh.dial_failed(contact(1), now);
        }
        assert!(
            pauses[1] >= FIRST_PAUSE / 2 && pauses[11] >= MAX_PAUSE / 2,
            "{pauses:?}"
        );
    }
}
