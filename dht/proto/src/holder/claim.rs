//! From a candidate to a lease, or to the reason why not.

use std::time::Duration;

use aerie_types::{NodeName, PeerId, VirtualAddr};

use super::{FULL_RETRY, Failure, Lease, MAX_CLAIM_BACKOFF, NAME_RETRY, Phase, Plan, Stage, valid_until};
use crate::lease::Proof;
use crate::limits::{FIXED_TRIES, MAX_ADDRS_PER_HOLDER, RANDOM_ATTEMPTS};
use crate::round::{Loss, Outcome, Round};
use crate::store::Store;
use crate::{Event, Keys, Now, Register};

impl<S: Store, K: Keys> Register<S, K> {
    pub(super) fn claim_candidate(&mut self, now: Now) {
        let Some(plan) = self.holding.plan.clone() else {
            self.holding.phase = Phase::Idle;
            return;
        };
        let retry = self.config.timings.retry;
        let alone = !self.members.any_connected();
        let members = self.members.count(now.instant);
        if alone && !(self.is_founder() && members == 1) {
            let reason = if members == 1 {
                "no member of the grid is connected yet; check the bootstrap addresses, or start the grid's first \
                 member as its founder"
                    .to_owned()
            } else {
                format!(
                    "none of the {} other members is connected; check the network",
                    members - 1
                )
            };
            return self.wait(reason, retry, now);
        }
        let waited = now.instant.saturating_duration_since(plan.since);
        if !self.is_ready() && waited < self.config.timings.patience {
            let reason = "learning the state of the grid from its members".to_owned();
            return self.wait(reason, self.config.timings.patience - waited, now);
        }
        if plan.exhausted(&self.config.pool) {
            return self.full(&plan, now);
        }
        let last = self.holding.last.clone();
        let addr = plan.candidate(&self.config.pool, self.me, last.as_ref().map(|last| last.addr));
        let proofs = match last {
            Some(last) if last.addr == addr => last.proofs,
            _ => [None, None],
        };
        let valid = |register: &mut Self, proof: Option<Proof>| {
            proof.filter(|proof| register.check(proof, now).is_ok())
        };
        let [first, second] = proofs;
        let proofs = [valid(self, first), valid(self, second)];
        let known = proofs.iter().all(Option::is_some);
        let stage = if known { Stage::Long } else { Stage::First };
        self.start(stage, addr, plan.request.name, proofs, now);
    }

    pub(super) fn full(&mut self, plan: &Plan, now: Now) {
        if plan.unsure {
            if let Some(plan) = &mut self.holding.plan {
                plan.attempt = RANDOM_ATTEMPTS;
                plan.unsure = false;
            }
            let reason = "every address seen is taken or contended; looking again".to_owned();
            return self.wait(reason, self.config.timings.first_ttl, now);
        }
        self.holding.phase = Phase::Failed {
            retry: Some(now.instant + FULL_RETRY),
        };
        let range = self.config.pool.range();
        let tried = plan.attempt.min(self.config.pool.capacity());
        self.event(Event::Failed(Failure::Full { range, tried }));
    }

    /// Starts the two rounds of a stage.
    pub(super) fn start(
        &mut self,
        stage: Stage,
        addr: VirtualAddr,
        name: NodeName,
        proofs: [Option<Proof>; 2],
        now: Now,
    ) {
        self.holding.phase = Phase::Claiming(stage);
        let timings = &self.config.timings;
        let ttl = match stage {
            Stage::First => timings.first_ttl,
            Stage::Long => timings.ttl,
        };
        self.start_rounds(addr, &name, ttl, proofs, now);
        if stage == Stage::Long
            && let Some(rounds) = &mut self.holding.rounds
        {
            for (round, asked) in rounds.iter_mut().zip(&mut self.holding.asked) {
                round.before = std::mem::take(asked);
            }
        }
        self.pump(now);
    }

    pub(super) fn claimed(&mut self, stage: Stage, rounds: [Round; 2], now: Now) {
        let (Some(Outcome::Won(first)), Some(Outcome::Won(second))) =
            (&rounds[0].outcome, &rounds[1].outcome)
        else {
            return self.claim_lost(rounds, now);
        };
        let certificates = [first.clone(), second.clone()];
        let terms = &rounds[0].terms;
        let (addr, name) = (terms.addr, terms.name.clone());
        if stage == Stage::First {
            let proofs = certificates.map(|certificate| Some(self.proof_of(certificate)));
            self.note_asked(&rounds);
            return self.start(Stage::Long, addr, name, proofs, now);
        }
        self.note_asked(&rounds);
        let until = [0, 1].map(|slot| valid_until(rounds[slot].started, &certificates[slot]));
        self.holding.lease = Some(Lease {
            addr,
            name,
            certificates,
            until,
            refused: [false, false],
        });
        self.save_lease();
        self.push_certificates(&rounds, now);
        let renew = self.draw.about(self.config.timings.renew_every);
        self.holding.phase = Phase::Held {
            renew_at: now.instant + renew,
        };
        self.holding.backoff = Duration::ZERO;
        self.holding.waiting_for.clear();
        if let Some(plan) = &mut self.holding.plan {
            (plan.attempt, plan.splits, plan.unsure) = (0, 0, false);
        }
        if let Some(lease) = self.lease() {
            self.event(Event::Held(lease));
        }
        self.holder_nudged(now);
    }

    pub(super) fn claim_lost(&mut self, rounds: [Round; 2], now: Now) {
        let loss = |slot: usize| match &rounds[slot].outcome {
            Some(Outcome::Lost(loss)) => loss.clone(),
            _ => Loss::default(),
        };
        let (addr_loss, name_loss) = (loss(0), loss(1));
        let addr = rounds[0].terms.addr;
        let retry = self.config.timings.retry;
        if addr_loss.cloned || name_loss.cloned {
            return self.cloned(now);
        }
        if let Some(wait) = addr_loss.restarting.max(name_loss.restarting) {
            self.holding.rounds = None;
            let reason = format!("asking whether an earlier run of this node still holds {addr}");
            return self.wait(reason, wait + Duration::from_millis(20), now);
        }
        if addr_loss.bad_proof || name_loss.bad_proof {
            // The certificates of before do not count any more; the address is claimed as if for the first time.
            if let Some(last) = &mut self.holding.last {
                last.proofs = [None, None];
            }
            return self.wait("claiming the address anew".to_owned(), Duration::ZERO, now);
        }
        self.release_rounds(&rounds, now);
        if let Some(wait) = name_loss.moved {
            let reason = format!(
                "this node has leased {MAX_ADDRS_PER_HOLDER} addresses lately, as many as one may have; the first of \
                 them ends in {} s. Start it with the state directory of before, or wait",
                wait.as_secs()
            );
            return self.wait(reason, wait.min(MAX_CLAIM_BACKOFF), now);
        }
        if let Some((holder, remaining)) = name_loss.taken {
            let reason = format!(
                "the name {} is leased to {holder} for {} s yet; stop that node or enrol this one under another name",
                rounds[1].terms.name,
                remaining.as_secs()
            );
            return self.wait(reason, NAME_RETRY.min(remaining), now);
        }
        if name_loss.split {
            let wait = retry / 2 + self.draw.up_to(retry);
            return self.wait("the name is being claimed elsewhere too".to_owned(), wait, now);
        }
        if let Some((holder, remaining)) = addr_loss.taken {
            return self.next_candidate(Some((holder, remaining)), addr, now);
        }
        if addr_loss.split {
            return self.next_candidate(None, addr, now);
        }
        let short = if addr_loss.needed > 0 {
            &addr_loss
        } else {
            &name_loss
        };
        let mut reason = if self.named.is_on() {
            self.minority(short)
        } else {
            self.too_few(short, addr)
        };
        if let Some(other) = short.other {
            reason = format!("{reason} ({other})");
        }
        let backoff = (self.holding.backoff * 2).clamp(retry, MAX_CLAIM_BACKOFF);
        self.holding.backoff = backoff;
        let wait = backoff / 2 + self.draw.up_to(backoff);
        self.wait(reason, wait, now);
    }

    fn too_few(&self, short: &Loss, addr: VirtualAddr) -> String {
        format!(
            "only {} of the {} witnesses needed for {addr} grant it; {} do not answer or are not ready. Start \
             members that are down, or declare those gone that will not come back",
            short.granted, short.needed, short.absent
        )
    }

    /// Strict mode: why no new lease comes about on this side.
    fn minority(&self, short: &Loss) -> String {
        let missed = self.missed();
        let away = if missed.is_empty() {
            "all are connected, but not all are ready: on its first start a witness is started as a founder"
                .to_owned()
        } else {
            let names: Vec<_> = missed.iter().map(|name| name.as_str()).collect();
            format!(
                "not connected: {}. Start them, or mend the way to them",
                names.join(", ")
            )
        };
        format!(
            "{} of the named witnesses have to grant an address, and no new one is leased without them; {away}",
            short.needed
        )
    }

    pub(super) fn next_candidate(&mut self, taken: Option<(PeerId, Duration)>, addr: VirtualAddr, now: Now) {
        let Some(plan) = &mut self.holding.plan else {
            return;
        };
        if plan.request.fixed.is_some() {
            if let Some((holder, remaining)) = taken {
                self.holding.phase = Phase::Failed { retry: None };
                let failure = Failure::FixedTaken {
                    addr,
                    holder,
                    remaining,
                };
                return self.event(Event::Failed(failure));
            }
            plan.splits += 1;
            if plan.splits > FIXED_TRIES {
                self.holding.phase = Phase::Failed { retry: None };
                return self.event(Event::Failed(Failure::FixedContended { addr }));
            }
            let most = Duration::from_millis(100) * (1 << plan.splits.min(5));
            let wait = self.draw.up_to(most);
            return self.wait(format!("several nodes claim {addr} at once"), wait, now);
        }
        plan.unsure = plan.attempt > RANDOM_ATTEMPTS && (plan.unsure || taken.is_none());
        plan.attempt += 1;
        self.wait(format!("{addr} is taken; trying the next"), Duration::ZERO, now);
    }
}
