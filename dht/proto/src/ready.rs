//! Readiness, and the passing on of certificates between witnesses.
//!
//! ```text
//!   start ──┬─ founder that knows nobody ──────────────────────────────────────────────────► ready
//!           │
//!           ├─ store says "was ready" ──► returning ── enough merged, or 5 s with others ───► ready
//!           │
//!           └─ no such store ──► joining ── enough merged ──► announcing ── enough know ────► ready
//!                                        (or one lease later)
//! ```
//!
//! A witness that has *forgotten* grants must not vote: a key it granted could be granted again. Which one has? One
//! that restarted with its store has not, since every grant was persisted before it was answered. It has missed what
//! others did meanwhile, which is the same as having been slow. So it first catches up, and when it cannot within
//! [`crate::limits::Timings::patience`] of meeting a member, its own store suffices. This is the way out when the whole
//! grid was powered off and on: everybody is returning, everybody's state counts for everybody, and nobody waits for
//! longer than that.
//!
//! One without a store may have forgotten grants (whether it is new or amnesic, nobody can tell for certain), so it
//! merges the state of others first: what they have granted or seen certificates of stands against claims here too,
//! for as long as it lasts there. It needs n - q + 1 others whose state is whole, where n counts it too: of any q that
//! signed a certificate, though the newcomer be one of them, another one is then among those it heard. That is three
//! where q = 7 of 9; in a small grid the one other of two, both others of three, two of four, three of five or six,
//! four of seven or eight. It asks everybody, or the twenty closest, and waits for every answer or failure, so that
//! it normally merges from all; though not for longer than that patience, so that those of a crowd do not wait for each
//! other. Where too many are away, there is another way: whatever it may have forgotten has ended one full lease after
//! it came, and from then on a single whole state suffices.
//!
//! Nobody counts a newcomer so far. Then it *announces* that it is about to vote, and votes when n - q + 1 others count
//! it: fewer than a quorum of the old membership are left that do not, so that no certificate comes about that neglects
//! it. That is also why many can join at once: who is still joining is not waited for. Where all members have lost
//! their stores, one of them has to be started as the founder.
//!
//! Afterwards every member that comes up is asked in the same way, which brings certificates to a member that has
//! become the closer one, and brings the two sides of a healed partition together. When a member goes away, those
//! that remain offer their certificates to the new closest nine. Either happens within a second or two of the change.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use aerie_types::{Key, PeerId};

use crate::Keys;
use crate::SendError;
use crate::lease::millis;
use crate::limits::{MAX_HANDED, MAX_KEYS, MAX_SUMMARIES, MAX_TOLD};
use crate::record::Hearsay;
use crate::register::Purpose;
use crate::store::Store;
use crate::wire::{Answer, Request, State, Summary, Told};
use crate::{Event, Now, Register};

/// The row that says that this store has everything its witness granted.
const READY_ROW: &[u8] = b"was ready";

/// The row that says that this node was started as the grid's founder.
const FOUNDER_ROW: &[u8] = b"founder";

/// How much longer another's certificate has to last for it to be worth fetching.
const WORTH_FETCHING: Duration = Duration::from_secs(60);

/// Pages of a whole state: as many as it takes to tell all keys that a witness keeps.
const MAX_PAGES: usize = MAX_KEYS.div_ceil(MAX_SUMMARIES);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Standing {
    Joining,
    Announcing,
    Returning { until: Option<Instant> },
    Ready,
}

/// Whether this witness votes, and what it still has to hear.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Readiness {
    standing: Standing,
    /// Whose whole state was merged.
    merged: BTreeSet<PeerId>,
    asked: BTreeMap<PeerId, Asked>,
    next: Option<Instant>,
    /// When the first member was met.
    met: Option<Instant>,
    founder: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    UnderWay,
    /// It was not reached, or its state is not whole.
    Failed,
}

impl Readiness {
    pub(crate) fn at_start(meta: &BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        let standing = if meta.contains_key(READY_ROW) {
            Standing::Returning { until: None }
        } else {
            Standing::Joining
        };
        Self {
            standing,
            merged: BTreeSet::new(),
            asked: BTreeMap::new(),
            next: None,
            met: None,
            founder: meta.contains_key(FOUNDER_ROW),
        }
    }

    /// A member has gone: what it was asked will not be answered, and it may be asked again.
    pub(crate) fn forget(&mut self, peer: PeerId) {
        self.asked.remove(&peer);
    }
}

impl<S: Store, K: Keys> Register<S, K> {
    /// Whether this witness votes.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readiness.standing == Standing::Ready
    }

    /// Whether this node's state counts for others: it votes, is about to, or has its store of before.
    fn is_whole(&self) -> bool {
        self.readiness.standing != Standing::Joining
    }

    pub(crate) fn found_or_wait(&mut self, now: Now) {
        if self.config.founder && !self.readiness.founder {
            self.readiness.founder = true;
            self.persist_meta(FOUNDER_ROW, Some(&true));
        }
        #[cfg(feature = "weaken")]
        if self.config.weaken == Some(crate::Weaken::NoReadinessRule) {
            return self.become_ready(now);
        }
        if !self.is_witness() {
            // It has no vote, and nothing to learn for one.
            self.readiness.standing = Standing::Ready;
            return;
        }
        let alone = self.members.count_up_to(2, now.instant) == 1;
        let whole = self.readiness.founder || matches!(self.readiness.standing, Standing::Returning { .. });
        if alone && whole {
            self.become_ready(now);
        }
    }

    /// Whether this node was started as the grid's founder, now or once.
    pub(crate) fn is_founder(&self) -> bool {
        self.readiness.founder
    }

    fn become_ready(&mut self, now: Now) {
        self.persist_meta(READY_ROW, Some(&true));
        self.readiness.standing = Standing::Ready;
        self.readiness.next = None;
        self.event(Event::Ready);
        self.holder_nudged(now);
    }

    pub(crate) fn readiness_timeout(&self) -> Option<Instant> {
        match self.readiness.standing {
            Standing::Ready => None,
            Standing::Joining | Standing::Announcing => self.readiness.next,
            Standing::Returning { until } => self.readiness.next.into_iter().chain(until).min(),
        }
    }

    pub(crate) fn readiness_due(&mut self, now: Now) {
        if self.is_ready() {
            return;
        }
        if let Standing::Returning { until: Some(until) } = self.readiness.standing
            && until <= now.instant
        {
            return self.become_ready(now);
        }
        if self.readiness.next.is_some_and(|next| next <= now.instant) {
            self.readiness.next = Some(now.instant + self.config.timings.retry);
            self.readiness.asked.retain(|_, asked| *asked == Asked::UnderWay);
            self.ask_for_state(now);
        }
    }

    /// Exchanges state with a member that has come up.
    pub(crate) fn merge_with(&mut self, peer: PeerId, now: Now) {
        if self.named.is_on() && self.is_ready() {
            if self.named.contains(peer) || !self.named.is_complete() {
                self.ask_state_of(peer, None, 1, now);
            }
            return;
        }
        if self.is_ready() {
            // One place of those nearest to this node's is its own.
            let near = || {
                let place = self.members.position(self.me);
                self.members.is_peer_among(peer, place, self.config.quorum.near)
            };
            if self.is_small(now) || near() {
                self.ask_state_of(peer, None, 1, now);
            }
            return;
        }
        self.readiness.met.get_or_insert(now.instant);
        if let Standing::Returning { until } = &mut self.readiness.standing {
            until.get_or_insert(now.instant + self.config.timings.patience);
        }
        self.readiness
            .next
            .get_or_insert(now.instant + self.config.timings.retry);
        self.readiness.asked.remove(&peer);
        self.ask_for_state(now);
    }

    /// Asks everybody whose state is still wanted.
    fn ask_for_state(&mut self, now: Now) {
        for peer in self.sources(now) {
            if !self.readiness.merged.contains(&peer) && !self.readiness.asked.contains_key(&peer) {
                self.readiness.asked.insert(peer, Asked::UnderWay);
                self.ask_state_of(peer, None, 1, now);
            }
        }
        self.check_ready(now);
    }

    /// All members of a small grid; of a large one the closest that are connected; in strict mode the other witnesses.
    fn sources(&self, now: Now) -> Vec<PeerId> {
        if self.named.is_on() {
            let named = self.named_peers().into_iter();
            return named.filter(|peer| *peer != self.me).collect();
        }
        if self.is_small(now) {
            let others: BTreeSet<PeerId> = self
                .members
                .others(now.instant)
                .map(|(peer, ..)| peer)
                .chain(self.members.connected())
                .collect();
            return others.into_iter().collect();
        }
        // The closest one to its own position is this node itself.
        let closest = self
            .members
            .closest(self.me.position(), self.config.quorum.near + 1);
        closest.into_iter().filter(|peer| *peer != self.me).collect()
    }

    fn check_ready(&mut self, now: Now) {
        if self.is_ready() || !self.members.any_connected() {
            return;
        }
        let sources = self.sources(now);
        let open = |peer: &&PeerId| {
            !self.readiness.merged.contains(*peer) && self.readiness.asked.get(*peer) != Some(&Asked::Failed)
        };
        let patience = self.config.timings.patience;
        let waited = self
            .readiness
            .met
            .is_some_and(|met| met + patience <= now.instant);
        if !waited && sources.iter().any(|peer| open(&peer)) {
            return;
        }
        let members = self.members.count(now.instant);
        let merged = self.readiness.merged.len();
        let outlived = self
            .readiness
            .met
            .is_some_and(|met| met + self.config.timings.ttl <= now.instant);
        let states = if self.named.is_on() {
            self.named.states()
        } else {
            self.config.quorum.states(members)
        };
        if !(members > 1 && (merged >= states || merged > 0 && outlived)) {
            return;
        }
        if self.readiness.standing == Standing::Joining {
            self.readiness.standing = Standing::Announcing;
            self.readiness.merged.clear();
            self.readiness.asked.clear();
            return self.ask_for_state(now);
        }
        self.become_ready(now);
    }

    fn ask_state_of(&mut self, peer: PeerId, after: Option<Key>, page: usize, now: Now) {
        let request = Request::Merge {
            credential: self.keys.credential(),
            votes: self.is_whole(),
            members: self.told(peer, now),
            after,
        };
        self.ask(peer, &request, Purpose::Merge { page }, now);
    }

    /// Whom a member may not know yet: everybody in a small grid, those nearest to it in a large one, and the named
    /// witnesses before all.
    fn told(&self, to: PeerId, now: Now) -> Vec<Told> {
        let position = self.members.position(to);
        let others = self.members.others(now.instant);
        let others = others.filter(|(peer, ..)| *peer != to);
        let mut others: BinaryHeap<_> = others
            .map(|(peer, place, age)| {
                let distance = Key(place.distance(&position));
                Reverse((!self.named.contains(peer), distance, peer, age))
            })
            .collect();
        // A few of many: the nearest are taken one by one, and the rest is never put in order.
        let nearest = std::iter::from_fn(|| others.pop());
        let told = nearest.filter_map(|Reverse((.., peer, age))| {
            Some(Told {
                credential: self.members.credential(peer)?.clone(),
                age_ms: millis(age),
            })
        });
        told.take(MAX_TOLD).collect()
    }

    fn hear_from(&mut self, peer: PeerId, votes: bool, now: Now) {
        if votes && self.members.heard(peer, Duration::ZERO, now.instant) {
            self.save_member(peer, now);
        }
    }

    fn hear(&mut self, members: &[Told], now: Now) {
        for told in members.iter().take(MAX_TOLD) {
            let Some(member) = self.learn(&told.credential, now) else {
                continue;
            };
            let age = Duration::from_millis(told.age_ms.into());
            if self.members.heard(member.peer, age, now.instant) {
                self.save_member(member.peer, now);
            }
        }
    }

    pub(crate) fn merge_asked(
        &mut self,
        from: PeerId,
        credential: &[u8],
        votes: bool,
        members: &[Told],
        after: Option<Key>,
        now: Now,
    ) -> Answer {
        if self
            .learn(credential, now)
            .is_none_or(|member| member.peer != from)
        {
            self.stats.malformed += 1;
            return Answer::Malformed;
        }
        self.hear_from(from, votes, now);
        self.hear(members, now);
        let (summaries, next) = self.summaries(from, after, now);
        let state = State {
            whole: self.is_whole(),
            credential: self.keys.credential(),
            members: self.told(from, now),
            summaries,
            next,
        };
        self.holder_nudged(now);
        Answer::State(Box::new(state))
    }

    /// The keys here that a member may be a witness of, and the last of them where there are more.
    fn summaries(&self, to: PeerId, after: Option<Key>, now: Now) -> (Vec<Summary>, Option<Key>) {
        let start = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let strict = self.named.is_on();
        if strict && !self.named.contains(to) {
            return (Vec::new(), None);
        }
        let whole = strict || self.is_small(now);
        let mut summaries = Vec::new();
        for (key, record) in self.records.range((start, std::ops::Bound::Unbounded)) {
            let Some(standing) = record.holders().find(|standing| standing.until > now.instant) else {
                continue;
            };
            if !whole
                && !self
                    .members
                    .is_peer_among(to, key.position(), self.config.quorum.near)
            {
                continue;
            }
            if summaries.len() == MAX_SUMMARIES {
                let last = summaries.last().map(|summary: &Summary| summary.key);
                return (summaries, last);
            }
            let certificate = record
                .certificate_of(standing.holder)
                .map(|seen| &seen.certificate);
            let rest = standing.until - now.instant;
            summaries.push(Summary::new(*key, standing.holder, rest, certificate));
        }
        (summaries, None)
    }

    pub(crate) fn merge_answered(
        &mut self,
        from: PeerId,
        page: usize,
        answer: Result<Answer, SendError>,
        now: Now,
    ) {
        let Ok(Answer::State(state)) = answer else {
            if !self.is_ready() {
                self.readiness.asked.insert(from, Asked::Failed);
                self.check_ready(now);
            }
            return;
        };
        self.learn(&state.credential, now);
        self.hear_from(from, state.whole, now);
        self.hear(&state.members, now);
        let wanted = self.wanted(&state.summaries, now);
        for keys in wanted.chunks(MAX_HANDED) {
            self.ask(from, &Request::Fetch(keys.to_vec()), Purpose::Fetch, now);
        }
        if !self.is_ready() && state.whole {
            self.adopt(&state.summaries, now);
        }
        let endless = state.next.is_some() && page >= MAX_PAGES;
        if endless {
            self.stats.over_bound += 1;
        } else if let Some(next) = state.next {
            return self.ask_state_of(from, Some(next), page + 1, now);
        }
        if self.is_ready() {
            self.holder_nudged(now);
            return;
        }
        if state.whole && !endless {
            self.readiness.asked.remove(&from);
            self.readiness.merged.insert(from);
        } else {
            self.readiness.asked.insert(from, Asked::Failed);
        }
        self.ask_for_state(now);
    }

    /// What others have granted stands here too.
    fn adopt(&mut self, summaries: &[Summary], now: Now) {
        #[cfg(feature = "weaken")]
        if self.config.weaken == Some(crate::Weaken::NewWitnessIgnoresCertificates) {
            return;
        }
        for summary in summaries.iter().take(MAX_SUMMARIES) {
            let life = Duration::from_millis(summary.remaining_ms.into()).min(self.config.timings.ttl);
            let until = now.instant + life;
            let mut record = self.record(summary.key, now);
            if record.is_empty() && self.records.len() >= MAX_KEYS {
                self.stats.over_bound += 1;
                return;
            }
            let longer = record.hearsay.as_ref().is_none_or(|known| known.until < until);
            if longer && record.grant.is_none() {
                record.hearsay = Some(Hearsay {
                    holder: summary.holder,
                    until,
                    certified: summary.receipts > 0,
                });
                self.records.insert(summary.key, record);
            }
        }
    }

    /// Which of these certificates are worth having here.
    pub(crate) fn wanted(&self, summaries: &[Summary], now: Now) -> Vec<Key> {
        if !self.is_witness() {
            return Vec::new();
        }
        let whole = self.named.is_on() || self.is_small(now);
        let needed = self.needed_now(now);
        let wanted = |summary: &&Summary| {
            if summary.receipts == 0
                || !(whole
                    || self
                        .members
                        .is_among(summary.key.position(), self.config.quorum.candidates))
            {
                return false;
            }
            let seen = self
                .records
                .get(&summary.key)
                .and_then(|record| record.seen.as_ref());
            seen.is_none_or(|seen| {
                let rest = seen.until.saturating_duration_since(now.instant);
                let offered = Duration::from_millis(summary.remaining_ms.into());
                let mine = seen.certificate.receipts.len();
                seen.certificate.terms.holder != summary.holder
                    || (mine < needed || usize::from(summary.receipts) >= needed)
                        && offered > rest + WORTH_FETCHING
                    || mine < needed && mine < summary.receipts.into()
            })
        };
        summaries
            .iter()
            .take(MAX_SUMMARIES)
            .filter(wanted)
            .map(|summary| summary.key)
            .collect()
    }
}
