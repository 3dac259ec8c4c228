//! A lease that is held: renewals, and what ends it against this node's will.

use std::time::Duration;

use aerie_types::{Instance, Key, PeerId};

use super::{LEASE_ROW, Lease, LeaseRow, LostReason, MAX_BACKOFF, Phase, Rival, valid_until};
use crate::lease::Certificate;
use crate::register::Purpose;
use crate::round::{Outcome, Round};
use crate::store::Store;
use crate::wire::{Answer, Handed, Request};
use crate::{Event, Keys, Now, Register, SendError};

/// How often the holder of a certificate that survives is asked, with a pause between: a lost message must not cost a
/// lease, and after a partition the two may not be connected yet.
const RIVAL_TRIES: u8 = 3;

/// The same of one that is starting: it claims what it held, or something else, within that many seconds.
const RESTARTING_TRIES: u8 = 10;

impl<S: Store, K: Keys> Register<S, K> {
    /// Another instance may be about to take over: renew now, to show that this one lives.
    pub(crate) fn assert_soon(&mut self, now: Now) {
        if let Phase::Held { renew_at } = &mut self.holding.phase {
            *renew_at = now.instant;
            self.holding.assert = self.holding.rounds.is_some();
            self.holder_due(now);
        }
    }

    /// A valid certificate of a key: if it is one of this node's and another holder's, and survives, this node yields,
    /// unless the other holder says that it has given it up.
    pub(crate) fn conflict_with_own(&mut self, other: &Certificate, now: Now) {
        if !self.survived_by(other) {
            return;
        }
        let key = other.terms.key;
        let same = |rival: &Rival| rival.other.terms.holder == other.terms.holder;
        if !self.holding.rivals.get(&key).is_some_and(same) {
            let rival = Rival {
                other: other.clone(),
                tries: 0,
                again: None,
            };
            self.holding.rivals.insert(key, rival);
            self.ask_rival(key, now);
        }
    }

    fn ask_rival(&mut self, key: Key, now: Now) {
        if let Some(rival) = self.holding.rivals.get_mut(&key) {
            rival.tries += 1;
            rival.again = None;
            let holder = rival.other.terms.holder;
            self.ask(holder, &Request::LookUp { key }, Purpose::Rival { key }, now);
        }
    }

    /// Asks again whom it is time to ask again.
    pub(super) fn rivals_due(&mut self, now: Now) {
        let due = |rival: &Rival| rival.again.is_some_and(|again| again <= now.instant);
        let rivals = self.holding.rivals.iter();
        let due: Vec<Key> = rivals
            .filter(|(_, rival)| due(rival))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.ask_rival(key, now);
        }
    }

    /// What the holder of a certificate that survives this node's own says of it. Only that it holds the key no more is
    /// a reason to keep it; who does not answer may well hold it.
    pub(crate) fn rival_answered(
        &mut self,
        from: PeerId,
        key: Key,
        answer: &Result<Answer, SendError>,
        now: Now,
    ) {
        let of = |rival: &Rival| rival.other.terms.holder == from;
        if !self.holding.rivals.get(&key).is_some_and(of) {
            return;
        }
        let Some(rival) = self.holding.rivals.remove(&key) else {
            return;
        };
        if !self.survived_by(&rival.other) {
            return;
        }
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
            self.holding.rivals.insert(key, Rival { again, ..rival });
        } else {
            self.yield_to(&rival.other, now);
        }
    }

    /// Whether another holder's certificate survives the one that this node has of the same key.
    fn survived_by(&self, other: &Certificate) -> bool {
        let own = |lease: &Lease| {
            let own = lease
                .certificates
                .iter()
                .find(|own| own.terms.key == other.terms.key);
            own.is_some_and(|own| !own.beats(other))
        };
        other.terms.holder != self.me && self.holding.lease.as_ref().is_some_and(own)
    }

    fn yield_to(&mut self, other: &Certificate, now: Now) {
        let Some(lease) = &self.holding.lease else {
            return;
        };
        let reason = LostReason::Conflict {
            addr: lease.addr,
            winner: other.terms.holder,
        };
        tracing::warn!(%reason, "address lost");
        self.give_back(now);
        self.holding.last = None;
        self.persist_meta(LEASE_ROW, None::<&LeaseRow>);
        self.event(Event::Lost(reason));
        if let Some(plan) = &mut self.holding.plan {
            plan.attempt = 1;
            plan.since = now.instant;
        }
        self.holding.phase = Phase::Waiting { until: now.instant };
    }

    /// Gives a new lease's certificates to its witnesses, who have seen only those of ten seconds so far.
    pub(super) fn push_certificates(&mut self, rounds: &[Round; 2], now: Now) {
        let Some(lease) = self.holding.lease.clone() else {
            return;
        };
        for slot in [0, 1] {
            let rest = lease.until[slot].saturating_duration_since(now.instant);
            let handed = Handed {
                proof: self.proof_of(lease.certificates[slot].clone()),
                remaining_ms: crate::lease::millis(rest),
            };
            let request = Request::HandOver(vec![handed]);
            for peer in rounds[slot].asked() {
                self.ask(peer, &request, Purpose::Nothing, now);
            }
        }
    }

    pub(super) fn renew(&mut self, now: Now) {
        let Some(lease) = self.holding.lease.clone() else {
            return;
        };
        let valid = [0, 1].map(|slot| lease.until[slot] > now.instant && !lease.refused[slot]);
        let proofs = [0, 1].map(|slot| {
            let certificate = lease.certificates[slot].clone();
            valid[slot].then(|| self.proof_of(certificate))
        });
        let timings = &self.config.timings;
        let ttl = if valid == [true, true] {
            timings.ttl
        } else {
            timings.first_ttl
        };
        self.start_rounds(lease.addr, &lease.name, ttl, proofs, now);
        self.pump(now);
    }

    pub(super) fn renewed(&mut self, rounds: [Round; 2], now: Now) {
        let timings = self.config.timings.clone();
        let mut failed = false;
        self.note_asked(&rounds);
        for (slot, round) in rounds.iter().enumerate() {
            match &round.outcome {
                Some(Outcome::Won(certificate)) => {
                    if let Some(lease) = &mut self.holding.lease {
                        let until = valid_until(round.started, certificate);
                        lease.until[slot] = until;
                        lease.certificates[slot] = certificate.clone();
                        lease.refused[slot] = false;
                    }
                }
                Some(Outcome::Lost(loss)) => {
                    failed = true;
                    if loss.cloned {
                        return self.cloned(now);
                    }
                    // The grid has grown beyond it: the next renewal does without.
                    if loss.bad_proof
                        && let Some(lease) = &mut self.holding.lease
                    {
                        lease.refused[slot] = true;
                    }
                    if let Some(other) = &loss.certificate {
                        self.conflict_with_own(other, now);
                        if self.holding.lease.is_none() {
                            return;
                        }
                    }
                }
                None => {}
            }
        }
        self.save_lease();
        let short = rounds.iter().any(|round| round.ttl < timings.ttl);
        let wait = if failed || self.lacks_receipts(now) {
            let backoff = (self.holding.backoff * 2).clamp(timings.retry, MAX_BACKOFF);
            self.holding.backoff = backoff;
            self.draw.about(backoff)
        } else if short {
            Duration::ZERO
        } else {
            self.holding.backoff = Duration::ZERO;
            self.draw.about(timings.renew_every)
        };
        let wait = if std::mem::take(&mut self.holding.assert) {
            Duration::ZERO
        } else {
            wait
        };
        self.holding.phase = Phase::Held {
            renew_at: now.instant + wait,
        };
        if !failed && let Some(lease) = self.lease() {
            if !short && self.fresh_terms(&rounds, now) {
                self.push_certificates(&rounds, now);
            }
            self.event(Event::Renewed(lease));
        }
    }

    /// Whether the witnesses have seen no certificate of this lease that proves it until the next renewal: what they have
    /// was made for ten seconds only, or when the grid was so small that its receipts will not suffice.
    fn fresh_terms(&self, rounds: &[Round; 2], now: Now) -> bool {
        let lacking = |round: &Round| {
            let shown = round.proof.as_ref().map(|proof| &proof.certificate);
            shown.is_none_or(|shown| {
                shown.ttl() <= self.config.timings.renew_every * 2 || self.outgrown(shown, now)
            })
        };
        rounds.iter().any(lacking)
    }

    pub(super) fn cloned(&mut self, now: Now) {
        self.give_back(now);
        self.holding.plan = None;
        self.holding.phase = Phase::Cloned;
        tracing::warn!("{}", LostReason::Cloned);
        self.event(Event::Lost(LostReason::Cloned));
    }

    pub(crate) fn clone_seen(&mut self, instance: Instance) {
        if self.holding.clone_told != Some(instance) {
            self.holding.clone_told = Some(instance);
            self.event(Event::CloneSeen { instance });
        }
    }
}
