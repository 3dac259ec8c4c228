//! A lease that is held: renewals, and what ends it against this node's will.

use std::time::Duration;

use aerie_types::Instance;

use super::rounds::Rounds;
use super::{LostReason, MAX_BACKOFF, Phase, valid_until};
use crate::leased::Kind;
use crate::register::Purpose;
use crate::round::{Outcome, Round};
use crate::store::Store;
use crate::wire::{Handed, Request};
use crate::{Event, Keys, Now, Register};

impl<S: Store, K: Keys> Register<S, K> {
    /// Another instance may be about to take over: renew now, to show that this one lives.
    pub(crate) fn assert_soon(&mut self, now: Now) {
        for kind in Kind::ALL {
            let holding = &mut self.holdings[kind];
            if let Phase::Held { renew_at } = &mut holding.phase {
                *renew_at = now.instant;
                holding.assert = holding.rounds.is_some();
                self.holder_due(now);
            }
        }
    }

    /// Gives a new lease's certificates to its witnesses, who have seen none so far, or only that of ten seconds.
    pub(super) fn push_certificates(&mut self, kind: Kind, rounds: &Rounds, now: Now) {
        let Some(lease) = self.holdings[kind].lease.clone() else {
            return;
        };
        for (slot, round) in rounds.iter().enumerate() {
            let rest = lease.until[slot].saturating_duration_since(now.instant);
            let handed = Handed {
                proof: self.proof_of(lease.certificates[slot].clone()),
                remaining_ms: crate::lease::millis(rest),
            };
            let request = Request::HandOver(vec![handed]);
            for peer in round.asked() {
                self.ask(peer, &request, Purpose::Nothing, now);
            }
        }
    }

    pub(super) fn renew(&mut self, kind: Kind, now: Now) {
        let Some(lease) = self.holdings[kind].lease.clone() else {
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
        let long = ttl > timings.first_ttl;
        let [own, home] = proofs;
        let [own_key, home_key] = lease.certificates.map(|certificate| certificate.terms.key);
        let mut own = self.round_of(own_key, lease.leased, &lease.name, ttl, own, now);
        let name = self.round_of(home_key, lease.leased, &lease.name, ttl, home, now);
        if long {
            self.show_home(&mut own, &name);
        }
        let name = Some(name);
        self.begin(kind, Rounds { own, name }, now);
    }

    pub(super) fn renewed(&mut self, kind: Kind, rounds: Rounds, now: Now) {
        let timings = self.config.timings.clone();
        let mut failed = false;
        self.holdings[kind].note_asked(&rounds);
        for (slot, round) in rounds.iter().enumerate() {
            match &round.outcome {
                Some(Outcome::Won(certificate)) => {
                    if let Some(lease) = &mut self.holdings[kind].lease {
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
                        && let Some(lease) = &mut self.holdings[kind].lease
                    {
                        lease.refused[slot] = true;
                    }
                    if let Some(other) = &loss.certificate {
                        self.conflict_with_own(other, now);
                        if self.holdings[kind].lease.is_none() {
                            return;
                        }
                    }
                }
                None => {}
            }
        }
        self.save_lease(kind);
        let short = rounds.iter().any(|round| round.ttl < timings.ttl);
        let wait = if failed || self.lacks_receipts(kind, now) {
            let backoff = (self.holdings[kind].backoff * 2).clamp(timings.retry, MAX_BACKOFF);
            self.holdings[kind].backoff = backoff;
            self.draw.about(backoff)
        } else if short {
            Duration::ZERO
        } else {
            self.holdings[kind].backoff = Duration::ZERO;
            self.draw.about(timings.renew_every)
        };
        let wait = if std::mem::take(&mut self.holdings[kind].assert) {
            Duration::ZERO
        } else {
            wait
        };
        self.holdings[kind].phase = Phase::Held {
            renew_at: now.instant + wait,
        };
        if !failed && let Some(lease) = self.lease(kind) {
            if !short && self.fresh_terms(&rounds, now) {
                self.push_certificates(kind, &rounds, now);
            }
            self.event(Event::Renewed(lease));
        }
    }

    /// Whether the witnesses have seen no certificate of this lease that proves it until the next renewal: what they have
    /// was made for ten seconds only, or when the grid was so small that its receipts will not suffice.
    fn fresh_terms(&self, rounds: &Rounds, now: Now) -> bool {
        let lacking = |round: &Round| {
            let shown = round.proof.as_ref().map(|proof| &proof.certificate);
            shown.is_none_or(|shown| {
                shown.ttl() <= self.config.timings.renew_every * 2 || self.outgrown(shown, now)
            })
        };
        rounds.iter().any(lacking)
    }

    /// Another instance of this node is alive: this one stops, whatever showed it.
    pub(super) fn cloned(&mut self, now: Now) {
        tracing::warn!("{}", LostReason::Cloned);
        for kind in Kind::ALL {
            self.give_back(kind, now);
            let holding = &mut self.holdings[kind];
            holding.phase = Phase::Cloned;
            if holding.plan.take().is_some() {
                let reason = LostReason::Cloned;
                self.event(Event::Lost { kind, reason });
            }
        }
    }

    pub(crate) fn clone_seen(&mut self, instance: Instance) {
        if self.holdings.clone_told != Some(instance) {
            self.holdings.clone_told = Some(instance);
            self.event(Event::CloneSeen { instance });
        }
    }
}
