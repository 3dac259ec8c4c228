//! Strict mode: a few members, named by the administrator, are the witnesses of every key.
//!
//! Three to five witnesses, known by their names, vote on everything, and a majority of *them* is a quorum, whoever
//! else is a member. There is one view of who votes, so that d is zero and a partition leaves at most one side that
//! grants: the other makes no new claim, and says whom it misses. The price is that nobody gets a new lease while a
//! majority of the witnesses is away; leases that are held are kept, as ever.
//!
//! What a key's history looks like from outside is linearizable. A claim, a renewal and a release take effect at a
//! majority. A look-up asks all witnesses. Where a majority says the same, that is the answer; where they differ,
//! the certificate that some have is given to the others before they are asked again, so that what one look-up has found
//! the next finds too, unless it was released meanwhile. (Two look-ups that differ are possible only around a claim
//! whose holder has not been told yet.)
//!
//! ```text
//!  asked ──► a majority has the same lease ─────────────────────────────────► found
//!    │  └──► a majority has none ───────────────────────────────────────────► not found
//!    └─────► they differ ──► certificate given to the others, asked again ──► as the majority then says
//! ```
//!
//! On its first start each named witness is started as a founder: it has never voted, so that it has nothing to learn.
//! One that lost its store learns from n - q + 1 of the others, or waits for one whole lease, as in `ready`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_types::{NodeName, PeerId};

use crate::lease::{Certificate, majority};
use crate::record::Seen;
use crate::register::Purpose;
use crate::store::Store;
use crate::wire::{Answer, Request};
use crate::{Error, Event, Keys, Member, Now, Register};
use crate::{Found, SendError};

/// The fewest witnesses that may be named, and the most.
const NAMED: std::ops::RangeInclusive<usize> = 3..=5;

/// The witnesses that were named, and who they are. Without names, the mode is off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Named(BTreeMap<NodeName, BTreeSet<PeerId>>);

impl Named {
    pub(crate) fn new(names: &[NodeName]) -> Result<Self, Error> {
        let named: BTreeMap<_, _> = names.iter().map(|name| (name.clone(), BTreeSet::new())).collect();
        let right = names.is_empty() || NAMED.contains(&names.len()) && named.len() == names.len();
        if right { Ok(Self(named)) } else { Err(Error::Named) }
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.0.is_empty()
    }

    /// Witnesses that must agree.
    pub(crate) fn quorum(&self) -> usize {
        majority(self.0.len())
    }

    /// Whole states that a witness without a store has to merge.
    pub(crate) fn states(&self) -> usize {
        self.0.len() - self.quorum() + 1
    }

    pub(crate) fn meet(&mut self, member: &Member) {
        if let Some(peers) = self.0.get_mut(&member.node) {
            peers.insert(member.peer);
        }
    }

    /// Whether a node of this name is a witness.
    pub(crate) fn has(&self, name: &NodeName) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn contains(&self, peer: PeerId) -> bool {
        self.0.values().any(|peers| peers.contains(&peer))
    }

    /// Whether every witness has been met.
    pub(crate) fn is_complete(&self) -> bool {
        self.0.values().all(|peers| !peers.is_empty())
    }
}

/// What the witnesses said to a look-up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tally {
    /// Who has a lease of the key, and which.
    with: BTreeMap<PeerId, Seen>,
    without: BTreeSet<PeerId>,
    /// Whether the others were given the lease that some have.
    spread: bool,
}

impl Tally {
    /// The lease that lasts longest among those of the holder whom most name, and how many do.
    fn best(&self) -> Option<(&Seen, usize)> {
        let holder = |seen: &Seen| seen.certificate.terms.holder;
        let of = |seen: &Seen| {
            self.with
                .values()
                .filter(|other| holder(other) == holder(seen))
                .count()
        };
        let best = self.with.values().max_by_key(|seen| (of(seen), seen.until))?;
        Some((best, of(best)))
    }
}

impl<S: Store, K: Keys> Register<S, K> {
    /// Asks every named witness who holds a key.
    pub(crate) fn ask_named(&mut self, id: u64, now: Now) {
        let peers = self.named_peers();
        let Some(search) = self.searches.0.get_mut(&id) else {
            return;
        };
        search.under_way = peers.len();
        let key = search.key;
        for peer in peers {
            let purpose = Purpose::LookUp { search: id };
            self.ask(peer, &Request::LookUp { key }, purpose, now);
        }
        self.tally_up(id, now);
    }

    pub(crate) fn named_answered(
        &mut self,
        id: u64,
        from: PeerId,
        answer: Result<Answer, SendError>,
        now: Now,
    ) {
        let Some(key) = self.searches.0.get(&id).map(|search| search.key) else {
            return;
        };
        let checked = match answer {
            Ok(Answer::NotFound) => Some(None),
            Ok(Answer::Found(handed)) if handed.proof.certificate.terms.key == key => {
                let told = Duration::from_millis(handed.remaining_ms.into());
                let life = self.check(&handed.proof, now).ok();
                life.map(|life| {
                    Some(Seen {
                        certificate: handed.proof.certificate,
                        until: now.instant + life.min(told),
                    })
                })
            }
            _ => None,
        };
        if let Some(search) = self.searches.0.get_mut(&id) {
            search.under_way = search.under_way.saturating_sub(1);
            match (&mut search.tally, checked) {
                (Some(tally), Some(Some(seen))) => {
                    tally.with.insert(from, seen);
                }
                (Some(tally), Some(None)) => {
                    tally.without.insert(from);
                }
                _ => {}
            }
        }
        self.tally_up(id, now);
    }

    /// Looks whether a majority says the same, or what is to be done where it does not.
    fn tally_up(&mut self, id: u64, now: Now) {
        let quorum = self.named.quorum();
        let Some(search) = self.searches.0.get_mut(&id) else {
            return;
        };
        let Some(tally) = &mut search.tally else {
            return;
        };
        let best = tally.best();
        let agreed = best.filter(|(_, count)| *count >= quorum);
        let none = tally.without.len() >= quorum;
        if agreed.is_none() && !none && search.under_way > 0 {
            return;
        }
        let answered = tally.with.len() + tally.without.len();
        if agreed.is_none() && !none && answered >= quorum && !tally.spread {
            return self.spread(id, now);
        }
        // Without a majority of answers a valid certificate is the best there is: it holds to its end.
        let alone = best.filter(|_| answered < quorum);
        let seen = agreed.or(alone).map(|(seen, _)| seen.clone());
        self.searches.0.remove(&id);
        let seen = seen.filter(|seen| self.passes(&seen.certificate, now));
        let found = seen.map(|seen| Found::of(&seen, now.instant));
        self.event(Event::LookedUp { id, found });
    }

    /// Gives the lease that some witnesses have to the others. One that was told of its release does not take it.
    fn spread(&mut self, id: u64, now: Now) {
        let Some(tally) = self
            .searches
            .0
            .get_mut(&id)
            .and_then(|search| search.tally.as_mut())
        else {
            return;
        };
        let best = tally.best().map(|(seen, _)| seen.clone());
        let lacking = |(_, seen): &(&PeerId, &Seen)| {
            best.as_ref()
                .is_some_and(|best| best.certificate.terms.holder != seen.certificate.terms.holder)
        };
        let others: Vec<PeerId> = tally.with.iter().filter(lacking).map(|(peer, _)| *peer).collect();
        let others: Vec<PeerId> = others.into_iter().chain(tally.without.iter().copied()).collect();
        *tally = Tally {
            spread: true,
            ..Tally::default()
        };
        let Some(best) = best else {
            return self.tally_up(id, now);
        };
        if let Some(search) = self.searches.0.get_mut(&id) {
            search.under_way = others.len();
        }
        let request = Request::HandOver(vec![self.handed(&best, now)]);
        for peer in others {
            self.ask(peer, &request, Purpose::Spread { search: id }, now);
        }
    }

    /// A witness has what others had, or is not there: when all have answered, all are asked again.
    pub(crate) fn spread_answered(&mut self, id: u64, now: Now) {
        let Some(search) = self.searches.0.get_mut(&id) else {
            return;
        };
        search.under_way = search.under_way.saturating_sub(1);
        if search.under_way == 0 {
            self.ask_named(id, now);
        }
    }

    /// Receipts that a claim needs when this node counts so many members.
    pub(crate) fn needed(&self, members: usize) -> usize {
        if self.named.is_on() {
            return self.named.quorum();
        }
        self.config.quorum.receipts(members)
    }

    /// The same with as many members as this node counts now.
    pub(crate) fn needed_now(&self, now: Now) -> usize {
        // More members than this do not need more receipts.
        let enough = 2 * self.config.quorum.quorum;
        self.needed(self.members.count_up_to(enough, now.instant))
    }

    /// Whether all members vote on everything: no more are counted than there are candidates for a vote.
    pub(crate) fn is_small(&self, now: Now) -> bool {
        let candidates = self.config.quorum.candidates;
        self.members.count_up_to(candidates + 1, now.instant) <= candidates
    }

    /// Whether the grid has grown so much that a certificate's receipts do not suffice any more.
    pub(crate) fn outgrown(&self, certificate: &Certificate, now: Now) -> bool {
        certificate.receipts.len() < self.needed_now(now)
    }

    /// Whether this node votes at all.
    pub(crate) fn is_witness(&self) -> bool {
        !self.named.is_on() || self.named.contains(self.me)
    }

    /// The named witnesses, one peer for each. Of two with one name the connected one is meant: the other's keys are old.
    pub(crate) fn named_peers(&self) -> Vec<PeerId> {
        let one = |peers: &BTreeSet<PeerId>| {
            let here = |peer: &&PeerId| **peer == self.me || self.members.is_connected(**peer);
            peers.iter().find(here).or_else(|| peers.last()).copied()
        };
        self.named.0.values().filter_map(one).collect()
    }

    /// The names of the witnesses that are not connected.
    pub(crate) fn missed(&self) -> Vec<&NodeName> {
        let here = |peer: &PeerId| *peer == self.me || self.members.is_connected(*peer);
        let away = |peers: &BTreeSet<PeerId>| !peers.iter().any(here);
        let named = self.named.0.iter().filter(|(_, peers)| away(peers));
        named.map(|(name, _)| name).collect()
    }
}
