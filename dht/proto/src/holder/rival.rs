//! Certificates of other holders for what this node holds: which of the two yields.

use std::time::Instant;

use aerie_types::{Key, PeerId};

use super::{Lease, LostReason, Phase};
use crate::lease::Certificate;
use crate::leased::Kind;
use crate::record::Seen;
use crate::register::Purpose;
use crate::store::Store;
use crate::wire::{Answer, Request};
use crate::{Event, Keys, Now, Register, SendError};

/// How often the holder of a certificate that survives is asked, with a pause between: a lost message must not cost a
/// lease, and after a partition the two may not be connected yet.
const RIVAL_TRIES: u8 = 3;

/// The same of one that is starting: it claims what it held, or something else, within that many seconds.
const RESTARTING_TRIES: u8 = 10;

/// The holder of a certificate that survives this node's own, who is being asked whether it holds the key yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Rival {
    other: Certificate,
    tries: u8,
    /// When to ask again, if no answer is waited for.
    pub(super) again: Option<Instant>,
}

impl<S: Store, K: Keys> Register<S, K> {
    /// A valid certificate of a key: if it is one of this node's and another holder's, and survives, this node yields,
    /// unless the other holder says that it has given it up.
    pub(crate) fn conflict_with_own(&mut self, other: &Certificate, now: Now) {
        if self.survived_by(other).is_none() {
            return;
        }
        let key = other.terms.key;
        let same = |rival: &Rival| rival.other.terms.holder == other.terms.holder;
        if !self.holdings.rivals.get(&key).is_some_and(same) {
            let rival = Rival {
                other: other.clone(),
                tries: 0,
                again: None,
            };
            self.holdings.rivals.insert(key, rival);
            self.ask_rival(key, now);
        }
    }

    fn ask_rival(&mut self, key: Key, now: Now) {
        if let Some(rival) = self.holdings.rivals.get_mut(&key) {
            rival.tries += 1;
            rival.again = None;
            let holder = rival.other.terms.holder;
            self.ask(holder, &Request::LookUp { key }, Purpose::Rival { key }, now);
        }
    }

    /// Asks again whom it is time to ask again.
    pub(super) fn rivals_due(&mut self, now: Now) {
        let due = |rival: &Rival| rival.again.is_some_and(|again| again <= now.instant);
        let rivals = self.holdings.rivals.iter();
        let due: Vec<Key> = rivals
            .filter(|(_, rival)| due(rival))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.ask_rival(key, now);
        }
    }

    /// What the holder of a certificate that survives this node's own says of it. That it holds the key no more is a
    /// reason to keep it, and so is that what it holds *now* does not survive: then both sides have compared the same
    /// two certificates, and it is for the other to yield. By older ones, which each had from somebody else, both could.
    /// Who does not answer may well hold it.
    pub(crate) fn rival_answered(
        &mut self,
        from: PeerId,
        key: Key,
        answer: &Result<Answer, SendError>,
        now: Now,
    ) {
        let of = |rival: &Rival| rival.other.terms.holder == from;
        if !self.holdings.rivals.get(&key).is_some_and(of) {
            return;
        }
        let Some(rival) = self.holdings.rivals.remove(&key) else {
            return;
        };
        if self.survived_by(&rival.other).is_none() {
            return;
        }
        let other = self.held_by(from, key, answer, now).unwrap_or(rival.other);
        let Some(kind) = self.survived_by(&other) else {
            return self.tell_rival(from, key, now);
        };
        let rival = Rival { other, ..rival };
        let given_up = match answer {
            Ok(Answer::NotFound) => true,
            Ok(Answer::Found(handed)) => handed.proof.certificate.terms.holder != from,
            _ => false,
        };
        let patience = match answer {
            Err(_) => RIVAL_TRIES,
            Ok(Answer::Unready) => RESTARTING_TRIES,
            Ok(_) => 0,
        };
        if given_up {
            self.stats.given_up += 1;
        } else if rival.tries < patience {
            let again = Some(now.instant + self.config.timings.retry);
            self.holdings.rivals.insert(key, Rival { again, ..rival });
        } else {
            self.yield_to(kind, &rival.other, now);
        }
    }

    /// The valid certificate by which a member says that it holds a key.
    fn held_by(
        &mut self,
        member: PeerId,
        key: Key,
        answer: &Result<Answer, SendError>,
        now: Now,
    ) -> Option<Certificate> {
        let Ok(Answer::Found(handed)) = answer else {
            return None;
        };
        let terms = &handed.proof.certificate.terms;
        let its_own = terms.holder == member && terms.key == key;
        let valid = its_own && self.check(&handed.proof, now).is_ok();
        valid.then(|| handed.proof.certificate.clone())
    }

    /// Shows another holder the certificate of this node that survives.
    fn tell_rival(&mut self, rival: PeerId, key: Key, now: Now) {
        if let Some((certificate, until)) = self.own_certificate(key, now.instant) {
            let handed = self.handed(&Seen { certificate, until }, now);
            self.ask(rival, &Request::Conflict(Box::new(handed)), Purpose::Nothing, now);
        }
    }

    /// The kind of what this node holds of which another holder's certificate survives this node's own.
    fn survived_by(&self, other: &Certificate) -> Option<Kind> {
        let own = |lease: &Lease| {
            let own = lease
                .certificates
                .iter()
                .find(|own| own.terms.key == other.terms.key);
            own.is_some_and(|own| !own.beats(other))
        };
        let lost = |kind: &Kind| self.holdings[*kind].lease.as_ref().is_some_and(own);
        Kind::ALL
            .into_iter()
            .find(lost)
            .filter(|_| other.terms.holder != self.me)
    }

    fn yield_to(&mut self, kind: Kind, other: &Certificate, now: Now) {
        let Some(lease) = &self.holdings[kind].lease else {
            return;
        };
        let reason = LostReason::Conflict {
            leased: lease.leased,
            winner: other.terms.holder,
        };
        tracing::warn!(%reason, "lease lost");
        self.give_back(kind, now);
        self.forget_last(kind);
        self.event(Event::Lost { kind, reason });
        let holding = &mut self.holdings[kind];
        if let Some(plan) = &mut holding.plan {
            plan.attempt = 1;
            plan.since = now.instant;
        }
        holding.phase = Phase::Waiting { until: now.instant };
    }
}
