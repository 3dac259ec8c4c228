//! The overlay's rule of whom to be connected to, without its transports: the part of its driver that decides which
//! members Kademlia's table can hold.
//!
//! A member begins at its bootstrap members and at those that it remembers, asks the first that it meets whom they are
//! connected to, and from then on somebody at random, ever more rarely while nothing is new. It dials whom it hears of
//! while it has room; beyond its limit only the twenty nearest to it, and those that would be among them if they were
//! there. Now and then those beyond the limit are dropped by lot, the nearest and the bootstrap members excepted.
//!
//! When somebody is back who was dialled in vain, the network may be whole again: the nearest of those that are missed
//! are dialled soon, whatever pause they are in, and the one that is back is asked whom it is connected to.
//!
//! The figures are those of `overlay/src/driver` (`mesh.rs`, `dialer.rs`, `book.rs`, `connections.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aerie_types::PeerId;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::book::{Book, Entry};
use super::{Contact, K};

/// How often what is due is looked at.
const TICK: Duration = Duration::from_millis(200);

/// The pause between questions when the grid is changing, and when nothing has been new for long.
const SHORTEST: Duration = Duration::from_millis(400);
const LONGEST: Duration = Duration::from_secs(300);

/// Members named in one answer, asked at once by the clock, and asked as soon as they are met.
const MAX_NAMED: usize = 64;
const ASKED: usize = 2;
const ASKED_FIRST: usize = 3;

/// Members dialled at once.
const MAX_ATTEMPTS: usize = 12;

/// How long those newly learned of and those lost wait until they are dialled, by chance.
const LEARN_SPREAD: Duration = Duration::from_millis(100);
const LOST_SPREAD: Duration = Duration::from_millis(500);

/// How much longer the higher id of two waits, and how much for each member that it is dialling already.
const GIVE_WAY: Duration = Duration::from_millis(300);
const GIVE_WAY_BUSY: Duration = Duration::from_millis(400);

/// Bootstrap members are dialled within this time; they and those met before within that, once the member is alone.
const BOOTSTRAP_SPREAD: Duration = Duration::from_millis(150);
const ALONE_SPREAD: Duration = Duration::from_millis(500);

/// How often a member that is back is taken for a sign that others are.
const RETURNED_EVERY: Duration = Duration::from_secs(5);

/// How often it is looked whether there are too many members, how many these are, as a part of the limit, and for how
/// long one that was dropped is not dialled.
const PRUNE_EVERY: Duration = Duration::from_secs(30);
const SLACK: usize = 8;
const DROPPED_PAUSE: Duration = Duration::from_secs(900);

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

/// Whom a member knows at its start.
#[derive(Debug, Clone, Default)]
pub struct Begin {
    /// Its bootstrap members, which it never drops.
    pub bootstrap: Vec<Contact>,
    /// Those that it remembers from an earlier run.
    pub known: Vec<Contact>,
    /// Whether it is a relay, which drops nobody.
    pub relay: bool,
}

/// Whom one member is connected to, and whom it should be.
#[derive(Debug, Clone)]
pub struct Mesh {
    local: Contact,
    limit: usize,
    relay: bool,
    book: Book,
    /// Whether somebody has named others since the member was last alone.
    heard: bool,
    live: BTreeMap<PeerId, Contact>,
    dialling: BTreeSet<PeerId>,
    pause: Duration,
    question_at: Duration,
    /// From when on a member that is back is taken for that sign.
    returned_at: Duration,
    prune_at: Duration,
    tick_at: Option<Duration>,
    questions: u64,
    rng: ChaCha8Rng,
    wishes: VecDeque<Wish>,
}

impl Mesh {
    /// A member that is connected to nobody. The first of a grid begins at nobody.
    #[must_use]
    pub fn new(local: Contact, begin: &Begin, limit: usize, seed: u64, now: Duration) -> Self {
        let mut mesh = Self {
            local,
            limit,
            relay: begin.relay,
            book: Book::new(local.position),
            heard: false,
            live: BTreeMap::new(),
            dialling: BTreeSet::new(),
            pause: SHORTEST,
            question_at: now,
            returned_at: now,
            prune_at: now + PRUNE_EVERY,
            tick_at: None,
            questions: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            wishes: VecDeque::new(),
        };
        for contact in &begin.bootstrap {
            mesh.pin(*contact, now);
        }
        for contact in &begin.known {
            mesh.learn(*contact, now);
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

    /// Whether a connected member has named others since this one was last alone.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        self.heard
    }

    /// The members that were learned of and not dialled to the end yet.
    pub fn untried(&self) -> impl Iterator<Item = Contact> {
        let untried = |entry: &&Entry| entry.is_fresh() && !self.live.contains_key(&entry.contact.peer);
        self.book.iter().filter(untried).map(|entry| entry.contact)
    }

    /// Whether a member is connected.
    #[must_use]
    pub fn is_live(&self, peer: PeerId) -> bool {
        self.live.contains_key(&peer)
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.live.is_empty()
    }

    /// Whether a member is being dialled by this rule.
    #[must_use]
    pub fn is_dialling(&self, peer: PeerId) -> bool {
        self.dialling.contains(&peer)
    }

    /// Whether there is room for more connections.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.live.len() < self.limit
    }

    /// Those that it was connected to in this run, to be remembered for the next one.
    #[must_use]
    pub fn remembered(&self) -> Vec<Contact> {
        let met = self.book.iter().filter(|entry| entry.met);
        met.map(|entry| entry.contact).collect()
    }

    /// Whether a member is known, and whether the pause after a failure is over.
    #[must_use]
    pub fn may_dial(&self, contact: Contact, now: Duration) -> bool {
        self.book
            .get(contact)
            .is_some_and(|entry| entry.failures == 0 || entry.next_dial <= now)
    }

    /// Dials a member that is known, whether it is due or not. Whether it is known.
    pub fn dial(&mut self, contact: Contact) -> bool {
        let known = self.book.get(contact).is_some();
        if known && !self.live.contains_key(&contact.peer) && self.dialling.insert(contact.peer) {
            self.wishes.push_back(Wish::Dial(contact));
        }
        known
    }

    /// A member is connected: the first connection to it.
    pub fn connected(&mut self, contact: Contact, now: Duration) {
        self.dialling.remove(&contact.peer);
        while self.prune_at < now {
            self.prune_at += PRUNE_EVERY;
        }
        self.remember(contact, now);
        if self.live.insert(contact.peer, contact).is_none() {
            let missed = self.book.get(contact).is_some_and(Entry::is_missed);
            self.book.change(contact, |entry| entry.reached(now));
            let returned = missed && self.returned_at <= now;
            if self.live.len() <= ASKED_FIRST {
                self.something_new(now);
                self.ask(contact);
            } else if returned {
                self.ask(contact);
            }
            if returned {
                self.returned_at = now + RETURNED_EVERY;
                self.dial_missed(now);
            }
        }
        self.wake(now);
    }

    /// The last connection to a member closed.
    pub fn closed(&mut self, contact: Contact, now: Duration) {
        if self.live.remove(&contact.peer).is_some() {
            let wait = self.wait_for(contact, LOST_SPREAD);
            self.book.change(contact, |entry| entry.lost(now, wait));
            if self.live.is_empty() {
                self.heard = false;
                self.hurry(now);
            }
            self.wake(now);
        }
    }

    /// A member is about to be dropped as this rule wanted: it is left alone for a while.
    pub fn dropped(&mut self, contact: Contact, now: Duration) {
        self.book
            .change(contact, |entry| entry.next_dial = now + DROPPED_PAUSE);
    }

    /// A member is not to be reached. Whether it was this rule that wanted it dialled.
    pub fn dial_failed(&mut self, contact: Contact, now: Duration) -> bool {
        if !self.dialling.remove(&contact.peer) {
            return false;
        }
        let jitter: f64 = self.rng.random();
        self.book.change(contact, |entry| entry.failed(now, jitter));
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
        // Each asker is told others than the next one where there are more than fit.
        let (before, after) = (self.live.range(..asker), self.live.range(asker..));
        let named = after.chain(before).filter(|(peer, _)| unknown(peer));
        named.map(|(_, contact)| *contact).take(MAX_NAMED).collect()
    }

    /// A member answered a question. Whether it named anybody new.
    pub fn answered(&mut self, named: &[Contact], now: Duration) -> bool {
        let mut news = false;
        for contact in named {
            news |= self.learn(*contact, now);
        }
        if news {
            self.something_new(now);
        }
        self.heard = true;
        news
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
        let prune = self.has_too_many().then_some(self.prune_at);
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

    fn pin(&mut self, contact: Contact, now: Duration) {
        if contact == self.local {
            return;
        }
        self.remember(contact, now);
        let next_dial = now + BOOTSTRAP_SPREAD.mul_f64(self.rng.random());
        self.book.pin(contact);
        self.book.change(contact, |entry| entry.next_dial = next_dial);
        self.wake(now);
    }

    /// The member is alone: bootstrap members and those met in this run are dialled soon.
    fn hurry(&mut self, now: Duration) {
        let all: Vec<_> = self
            .book
            .iter()
            .filter(|entry| entry.pinned || entry.met)
            .map(|entry| entry.contact)
            .collect();
        for contact in all {
            let soon = now + ALONE_SPREAD.mul_f64(self.rng.random());
            self.book.change(contact, |entry| {
                entry.failures = entry.failures.min(1);
                entry.next_dial = entry.next_dial.min(soon);
            });
        }
    }

    /// A member that was dialled in vain is back, and others may be: those nearby that are missed are dialled soon.
    fn dial_missed(&mut self, now: Duration) {
        let missed: Vec<_> = self
            .nearby()
            .filter(|entry| entry.is_missed() && !self.live.contains_key(&entry.contact.peer))
            .map(|entry| entry.contact)
            .collect();
        for contact in missed {
            let soon = now + self.wait_for(contact, LOST_SPREAD);
            self.book
                .change(contact, |entry| entry.next_dial = entry.next_dial.min(soon));
        }
    }

    fn remember(&mut self, contact: Contact, now: Duration) -> bool {
        let next_dial = now + self.wait_for(contact, LEARN_SPREAD);
        self.book.remember(contact, next_dial, now)
    }

    fn wait_for(&mut self, contact: Contact, spread: Duration) -> Duration {
        let jitter = spread.mul_f64(self.rng.random());
        if self.local.peer < contact.peer {
            jitter
        } else {
            jitter + GIVE_WAY
        }
    }

    /// Whether a member is connected, or nobody has tried it yet.
    fn is_there(&self, entry: &Entry) -> bool {
        entry.is_fresh() || self.live.contains_key(&entry.contact.peer)
    }

    /// The nearest members known to be there, connected or not.
    fn neighbours(&self) -> impl Iterator<Item = &Entry> {
        self.book.iter().filter(|entry| self.is_there(entry)).take(K)
    }

    /// The neighbours, and those that would be if they were there.
    fn nearby(&self) -> impl Iterator<Item = &Entry> {
        self.book.iter().scan(0, |there, entry| {
            let wanted = *there < K;
            *there += usize::from(self.is_there(entry));
            wanted.then_some(entry)
        })
    }

    fn is_full(&self) -> bool {
        self.live.len() + self.dialling.len() >= self.limit
    }

    /// Whom to dial as soon as they are due: everybody while there is room, and otherwise the nearest and the bootstrap
    /// members, of whom some may be among the nearest.
    fn wanted(&self) -> Vec<&Entry> {
        let idle = |entry: &&Entry| {
            let peer = entry.contact.peer;
            !self.live.contains_key(&peer) && !self.dialling.contains(&peer)
        };
        if !self.is_full() {
            return self.book.iter().filter(idle).collect();
        }
        self.nearby().chain(self.book.pinned()).filter(idle).collect()
    }

    fn dial_due(&mut self, now: Duration) {
        let mut due: Vec<_> = self
            .wanted()
            .into_iter()
            .filter(|entry| entry.next_dial <= now)
            .map(|entry| (!entry.pinned, entry.failures, entry.next_dial, entry.contact))
            .collect();
        due.sort_unstable();
        due.dedup();
        let nearest: BTreeSet<_> = if due.is_empty() {
            BTreeSet::new()
        } else {
            self.nearby().map(|entry| entry.contact.peer).collect()
        };
        for (later, _, since, contact) in due {
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

    /// More than room was made for: others dial this member too, and those that it drops dial again.
    fn has_too_many(&self) -> bool {
        !self.relay && self.live.len() > self.limit + self.limit / SLACK
    }

    fn prune(&mut self) {
        if !self.has_too_many() {
            return;
        }
        let surplus = self.live.len().saturating_sub(self.limit);
        let nearest: BTreeSet<_> = self.neighbours().map(|entry| entry.contact.peer).collect();
        let pinned = |contact: &Contact| self.book.get(*contact).is_some_and(|entry| entry.pinned);
        let others = self
            .live()
            .filter(|contact| !nearest.contains(&contact.peer) && !pinned(contact));
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
mod tests;
