//! Look-ups: who holds a key?
//!
//! ```text
//!  local certificate? ── yes ──► found
//!        │ no
//!        ▼
//!  locating ──► asking three at a time ──── a certificate that proves itself ──► found
//!                     │
//!                     └── nine have none, or are absent ──► not found
//! ```
//!
//! One honest answer is enough, since the certificate proves itself. How long it lasts yet is told by the witness that
//! answers, so that the asker's clock does not matter; no answer makes a lease longer than its receipts. A certificate
//! that is earlier than one that this node has used before is passed over (see `fence`). In strict mode all named
//! witnesses are asked, and a majority has to say the same (see `strict`).

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_types::{Key, PeerId};

use crate::lease::millis;
use crate::limits::MAX_SEARCHES;
use crate::members::sorted;
use crate::record::Seen;
use crate::register::{Purpose, Wanted};
use crate::store::Store;
use crate::strict::Tally;
use crate::wire::{Answer, Handed, Request};
use crate::{Certificate, Event, Keys, Now, Register};
use crate::{Found, SendError};

/// Members asked at the same time: enough that one that is away costs no time, few enough to be cheap.
const PARALLEL: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Search {
    pub(crate) key: Key,
    /// Those not asked yet, closest last.
    left: Vec<PeerId>,
    pub(crate) under_way: usize,
    /// Strict mode: what the witnesses said.
    pub(crate) tally: Option<Tally>,
}

/// The look-ups under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Searches(pub(crate) BTreeMap<u64, Search>);

impl<S: Store, K: Keys> Register<S, K> {
    /// Looks up who holds a key; [`Event::LookedUp`] with the returned number follows.
    pub fn look_up(&mut self, key: Key, now: Now) -> u64 {
        let id = self.fresh_id();
        let room = self.searches.0.len() < MAX_SEARCHES;
        if self.named.is_on() && room && self.own_certificate(key, now.instant).is_none() {
            let search = Search {
                key,
                left: Vec::new(),
                under_way: 0,
                tally: Some(Tally::default()),
            };
            self.searches.0.insert(id, search);
            self.ask_named(id, now);
            self.settle(now);
            return id;
        }
        let known = self.known_here(key, now);
        if let Some(found) = known.filter(|found| self.passes(&found.certificate, now)) {
            self.event(Event::LookedUp {
                id,
                found: Some(found),
            });
        } else if self.searches.0.len() >= MAX_SEARCHES || !self.members.any_connected() {
            self.event(Event::LookedUp { id, found: None });
        } else {
            let search = Search {
                key,
                left: Vec::new(),
                under_way: 0,
                tally: None,
            };
            self.searches.0.insert(id, search);
            self.locate(key, Wanted::Search(id), now);
        }
        id
    }

    /// What this node knows of a key without asking anybody. What it held itself and gave up it knows best.
    fn known_here(&self, key: Key, now: Now) -> Option<Found> {
        let own = self.own_certificate(key, now.instant);
        let own = own.map(|(certificate, until)| Seen { certificate, until });
        let seen = || self.records.get(&key)?.seen.clone();
        let of_another = |seen: &Seen| seen.certificate.terms.holder != self.me;
        own.or_else(|| seen().filter(of_another))
            .filter(|seen| seen.until > now.instant)
            .map(|seen| Found::of(&seen, now.instant))
    }

    /// Whether a certificate is not earlier than one that was used here before.
    pub(crate) fn passes(&mut self, certificate: &Certificate, now: Now) -> bool {
        #[cfg(feature = "weaken")]
        if self.config.weaken == Some(crate::Weaken::NoFencing) {
            return true;
        }
        let keep = self.config.timings.ttl;
        let passes = self.fence.pass(certificate, keep, now.instant);
        self.stats.fenced += u64::from(!passes);
        passes
    }

    pub(crate) fn looked_up_here(&self, key: Key, now: Now) -> Answer {
        let Some(found) = self.known_here(key, now) else {
            return if self.may_hold(key) {
                Answer::Unready
            } else {
                Answer::NotFound
            };
        };
        Answer::Found(Box::new(Handed {
            proof: self.proof_of(found.certificate),
            remaining_ms: millis(found.remaining),
        }))
    }

    pub(crate) fn search_located(&mut self, id: u64, peers: &[PeerId], now: Now) {
        let me = self.me;
        let connected: Vec<PeerId> = self.members.connected().collect();
        let Some(search) = self.searches.0.get_mut(&id) else {
            return;
        };
        let all = peers.iter().copied().chain(connected).filter(|peer| *peer != me);
        search.left = sorted(all, search.key.position());
        search.left.truncate(self.config.quorum.witnesses);
        search.left.reverse();
        self.ask_next(id, now);
    }

    fn ask_next(&mut self, id: u64, now: Now) {
        let Some(search) = self.searches.0.get_mut(&id) else {
            return;
        };
        let key = search.key;
        let mut ask = Vec::new();
        while search.under_way < PARALLEL
            && let Some(peer) = search.left.pop()
        {
            search.under_way += 1;
            ask.push(peer);
        }
        if search.under_way == 0 {
            self.searches.0.remove(&id);
            return self.event(Event::LookedUp { id, found: None });
        }
        for peer in ask {
            self.ask(
                peer,
                &Request::LookUp { key },
                Purpose::LookUp { search: id },
                now,
            );
        }
    }

    pub(crate) fn look_up_answered(
        &mut self,
        id: u64,
        from: PeerId,
        answer: Result<Answer, SendError>,
        now: Now,
    ) {
        if self
            .searches
            .0
            .get(&id)
            .is_some_and(|search| search.tally.is_some())
        {
            return self.named_answered(id, from, answer, now);
        }
        let Some(search) = self.searches.0.get_mut(&id) else {
            return;
        };
        search.under_way = search.under_way.saturating_sub(1);
        let key = search.key;
        if let Ok(Answer::Found(handed)) = answer
            && handed.proof.certificate.terms.key == key
            && let Ok(life) = self.check(&handed.proof, now)
            && self.passes(&handed.proof.certificate, now)
        {
            let told = Duration::from_millis(handed.remaining_ms.into());
            let seen = Seen {
                certificate: handed.proof.certificate,
                until: now.instant + life.min(told),
            };
            self.searches.0.remove(&id);
            let found = Some(Found::of(&seen, now.instant));
            return self.event(Event::LookedUp { id, found });
        }
        self.ask_next(id, now);
    }
}
