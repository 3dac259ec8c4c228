//! From a candidate to a lease, or to the reason why not.

use std::time::Duration;

use aerie_types::{NodeName, PeerId};

use super::{FULL_RETRY, Failure, Lease, MAX_CLAIM_BACKOFF, NAME_RETRY, Phase, Plan, Stage, valid_until};
use crate::lease::Proof;
use crate::leased::{Kind, Leased};
use crate::limits::{FIXED_TRIES, MAX_LEASES_PER_HOLDER, RANDOM_ATTEMPTS};
use crate::round::{Loss, Outcome, Round};
use crate::store::Store;
use crate::{Event, Keys, Now, Register};

impl<S: Store, K: Keys> Register<S, K> {
    pub(super) fn claim_candidate(&mut self, kind: Kind, now: Now) {
        let Some(plan) = self.holdings[kind].plan.clone() else {
            self.holdings[kind].phase = Phase::Idle;
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
            return self.wait(kind, reason, retry, now);
        }
        let waited = now.instant.saturating_duration_since(plan.since);
        if !self.is_ready() && waited < self.config.timings.patience {
            let reason = "learning the state of the grid from its members".to_owned();
            return self.wait(kind, reason, self.config.timings.patience - waited, now);
        }
        let last = self.holdings[kind].last.clone();
        let held = last.as_ref().map(|last| last.leased);
        let candidate = plan.candidate(&self.config.pool, self.me, held);
        let Some(leased) = candidate.filter(|_| !plan.exhausted(&self.config.pool)) else {
            return self.full(&plan, now);
        };
        let proofs = match last {
            Some(last) if last.leased == leased => last.proofs,
            _ => [None, None],
        };
        let valid = |register: &mut Self, proof: Option<Proof>| {
            proof.filter(|proof| register.check(proof, now).is_ok())
        };
        let [first, second] = proofs;
        let proofs = [valid(self, first), valid(self, second)];
        let known = proofs.iter().all(Option::is_some);
        let stage = if known { Stage::Long } else { Stage::First };
        self.start(stage, leased, plan.request.name, proofs, now);
    }

    fn full(&mut self, plan: &Plan, now: Now) {
        let kind = plan.request.want.kind();
        if plan.unsure {
            if let Some(plan) = &mut self.holdings[kind].plan {
                plan.attempt = RANDOM_ATTEMPTS;
                plan.unsure = false;
            }
            let reason = format!("every {kind} seen is taken or contended; looking again");
            return self.wait(kind, reason, self.config.timings.first_ttl, now);
        }
        self.holdings[kind].phase = Phase::Failed {
            retry: Some(now.instant + FULL_RETRY),
        };
        let pool = &self.config.pool;
        let tried = plan.attempt.min(kind.count(pool));
        let failure = match (kind, pool.routed()) {
            (Kind::Addr, _) => Failure::Full {
                range: pool.range(),
                tried,
            },
            (Kind::Prefix, Some(routed)) => Failure::NoPrefixFree { routed, tried },
            (Kind::Prefix, None) => Failure::NoPrefixes,
        };
        self.event(Event::Failed { kind, failure });
    }

    /// Starts the two rounds of a stage.
    pub(super) fn start(
        &mut self,
        stage: Stage,
        leased: Leased,
        name: NodeName,
        proofs: [Option<Proof>; 2],
        now: Now,
    ) {
        let kind = leased.kind();
        self.holdings[kind].phase = Phase::Claiming(stage);
        let timings = &self.config.timings;
        let ttl = match stage {
            Stage::First => timings.first_ttl,
            Stage::Long => timings.ttl,
        };
        self.start_rounds(leased, &name, ttl, proofs, now);
        if stage == Stage::Long
            && let holding = &mut self.holdings[kind]
            && let Some(rounds) = &mut holding.rounds
        {
            for (round, asked) in rounds.iter_mut().zip(&mut holding.asked) {
                round.before = std::mem::take(asked);
            }
        }
        self.pump(kind, now);
    }

    pub(super) fn claimed(&mut self, kind: Kind, stage: Stage, rounds: [Round; 2], now: Now) {
        let (Some(Outcome::Won(first)), Some(Outcome::Won(second))) =
            (&rounds[0].outcome, &rounds[1].outcome)
        else {
            return self.claim_lost(kind, rounds, now);
        };
        let certificates = [first.clone(), second.clone()];
        let terms = &rounds[0].terms;
        let (leased, name) = (terms.leased, terms.name.clone());
        if stage == Stage::First {
            let proofs = certificates.map(|certificate| Some(self.proof_of(certificate)));
            self.holdings[kind].note_asked(&rounds);
            return self.start(Stage::Long, leased, name, proofs, now);
        }
        self.holdings[kind].note_asked(&rounds);
        let until = [0, 1].map(|slot| valid_until(rounds[slot].started, &certificates[slot]));
        self.holdings[kind].lease = Some(Lease {
            leased,
            name,
            certificates,
            until,
            refused: [false, false],
        });
        self.save_lease(kind);
        self.push_certificates(kind, &rounds, now);
        let renew = self.draw.about(self.config.timings.renew_every);
        self.holdings[kind].phase = Phase::Held {
            renew_at: now.instant + renew,
        };
        self.holdings[kind].backoff = Duration::ZERO;
        self.holdings[kind].waiting_for.clear();
        if let Some(plan) = &mut self.holdings[kind].plan {
            (plan.attempt, plan.splits, plan.unsure) = (0, 0, false);
        }
        if let Some(lease) = self.lease(kind) {
            self.event(Event::Held(lease));
        }
        self.holder_nudged(now);
    }

    fn claim_lost(&mut self, kind: Kind, rounds: [Round; 2], now: Now) {
        let loss = |slot: usize| match &rounds[slot].outcome {
            Some(Outcome::Lost(loss)) => loss.clone(),
            _ => Loss::default(),
        };
        let (own_loss, name_loss) = (loss(0), loss(1));
        let leased = rounds[0].terms.leased;
        let retry = self.config.timings.retry;
        if own_loss.cloned || name_loss.cloned {
            return self.cloned(now);
        }
        if let Some(wait) = own_loss.restarting.max(name_loss.restarting) {
            self.holdings[kind].rounds = None;
            let reason = format!("asking whether an earlier run of this node still holds {leased}");
            return self.wait(kind, reason, wait + Duration::from_millis(20), now);
        }
        if own_loss.bad_proof || name_loss.bad_proof {
            // The certificates of before do not count any more; it is claimed as if for the first time.
            if let Some(last) = &mut self.holdings[kind].last {
                last.proofs = [None, None];
            }
            return self.wait(kind, format!("claiming the {kind} anew"), Duration::ZERO, now);
        }
        self.release_rounds(&rounds, now);
        if let Some(wait) = name_loss.moved {
            let reason = format!(
                "this node has leased {MAX_LEASES_PER_HOLDER} {} lately, as many as one may have; the first of \
                 them ends in {} s. Start it with the state directory of before, or wait",
                kind.plural(),
                wait.as_secs()
            );
            return self.wait(kind, reason, wait.min(MAX_CLAIM_BACKOFF), now);
        }
        if let Some((holder, remaining)) = name_loss.taken {
            let reason = format!(
                "the name {} is leased to {holder} for {} s yet; stop that node or enrol this one under another name",
                rounds[1].terms.name,
                remaining.as_secs()
            );
            return self.wait(kind, reason, NAME_RETRY.min(remaining), now);
        }
        if name_loss.split {
            let wait = retry / 2 + self.draw.up_to(retry);
            return self.wait(
                kind,
                "the name is being claimed elsewhere too".to_owned(),
                wait,
                now,
            );
        }
        if let Some((holder, remaining)) = own_loss.taken {
            return self.next_candidate(Some((holder, remaining)), leased, now);
        }
        if own_loss.split {
            return self.next_candidate(None, leased, now);
        }
        let short = if own_loss.needed > 0 {
            &own_loss
        } else {
            &name_loss
        };
        let mut reason = if self.named.is_on() {
            self.minority(kind, short)
        } else {
            too_few(short, leased)
        };
        if let Some(other) = short.other {
            reason = format!("{reason} ({other})");
        }
        let backoff = (self.holdings[kind].backoff * 2).clamp(retry, MAX_CLAIM_BACKOFF);
        self.holdings[kind].backoff = backoff;
        let wait = backoff / 2 + self.draw.up_to(backoff);
        self.wait(kind, reason, wait, now);
    }

    /// Strict mode: why no new lease comes about on this side.
    fn minority(&self, kind: Kind, short: &Loss) -> String {
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
            "{} of the named witnesses have to grant each {kind}, and no new one is leased without them; {away}",
            short.needed
        )
    }

    fn next_candidate(&mut self, taken: Option<(PeerId, Duration)>, leased: Leased, now: Now) {
        let kind = leased.kind();
        let Some(plan) = &mut self.holdings[kind].plan else {
            return;
        };
        if plan.request.want.fixed().is_some() {
            if let Some((holder, remaining)) = taken {
                self.holdings[kind].phase = Phase::Failed { retry: None };
                let failure = Failure::FixedTaken {
                    leased,
                    holder,
                    remaining,
                };
                return self.event(Event::Failed { kind, failure });
            }
            plan.splits += 1;
            if plan.splits > FIXED_TRIES {
                self.holdings[kind].phase = Phase::Failed { retry: None };
                let failure = Failure::FixedContended { leased };
                return self.event(Event::Failed { kind, failure });
            }
            let most = Duration::from_millis(100) * (1 << plan.splits.min(5));
            let wait = self.draw.up_to(most);
            return self.wait(kind, format!("several nodes claim {leased} at once"), wait, now);
        }
        plan.unsure = plan.attempt > RANDOM_ATTEMPTS && (plan.unsure || taken.is_none());
        plan.attempt += 1;
        self.wait(
            kind,
            format!("{leased} is taken; trying the next"),
            Duration::ZERO,
            now,
        );
    }
}

fn too_few(short: &Loss, leased: Leased) -> String {
    format!(
        "only {} of the {} witnesses needed for {leased} grant it; {} do not answer or are not ready. Start members \
         that are down, or declare those gone that will not come back",
        short.granted, short.needed, short.absent
    )
}
