//! From a candidate to a lease, or to the reason why not.

use std::time::Duration;

use aerie_types::{NodeName, PeerId};

use super::rounds::Rounds;
use super::{FULL_RETRY, Failure, Lease, MAX_CLAIM_BACKOFF, NAME_RETRY, Phase, Plan, Stage, valid_until};
use crate::lease::Proof;
use crate::leased::{Kind, Leased};
use crate::limits::{FIXED_TRIES, MAX_LEASES_PER_HOLDER, RANDOM_ATTEMPTS};
use crate::round::{Loss, Outcome, Round};
use crate::store::Store;
use crate::{Event, Keys, Now, Register, Timings};

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
        let [own, home] = proofs;
        let proofs = [valid(self, own), valid(self, home)];
        let name = plan.request.name.clone();
        if proofs[0].is_some() {
            return self.start_long(leased, &name, proofs, None, now);
        }
        let bets = proofs[1].is_some() || self.bets(&plan, leased);
        self.start_first(leased, &name, proofs, bets, now);
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

    /// Whether the name is asked for together with a candidate that may be taken: the witnesses of the name count it in
    /// any case, so that it is done for one candidate in the life of a process.
    fn bets(&mut self, plan: &Plan, leased: Leased) -> bool {
        let holding = &mut self.holdings[leased.kind()];
        plan.attempt == 0 && plan.splits == 0 && *holding.bet.get_or_insert(leased) == leased
    }

    /// Ten seconds of what is leased, and together with them the name, if that is a bet worth making.
    fn start_first(
        &mut self,
        leased: Leased,
        name: &NodeName,
        [own, home]: [Option<Proof>; 2],
        bets: bool,
        now: Now,
    ) {
        let kind = leased.kind();
        let Timings { ttl, first_ttl, .. } = self.config.timings;
        let own_key = leased.key(self.config.grid);
        let home_key = leased.home_key(self.config.grid, name);
        let own = self.round_of(own_key, leased, name, first_ttl, own, now);
        let name = bets.then(|| self.round_of(home_key, leased, name, ttl, home, now));
        self.holdings[kind].phase = Phase::Claiming(Stage::First);
        self.begin(kind, Rounds { own, name }, now);
    }

    /// The long claim of what is leased, after that of the name, which may have been won together with the first.
    fn start_long(
        &mut self,
        leased: Leased,
        name: &NodeName,
        [own, home]: [Option<Proof>; 2],
        before: Option<Rounds>,
        now: Now,
    ) {
        let kind = leased.kind();
        let ttl = self.config.timings.ttl;
        let own_key = leased.key(self.config.grid);
        let home_key = leased.home_key(self.config.grid, name);
        let mut own = self.round_of(own_key, leased, name, ttl, own, now);
        let won = before.and_then(|before| {
            own.before = before.own.asked().collect();
            own.locate_as(&before.own);
            before.name
        });
        let name = won.unwrap_or_else(|| self.round_of(home_key, leased, name, ttl, home, now));
        self.show_home(&mut own, &name);
        self.holdings[kind].phase = Phase::Claiming(Stage::Long);
        let name = Some(name);
        self.begin(kind, Rounds { own, name }, now);
    }

    pub(super) fn claimed(&mut self, kind: Kind, stage: Stage, rounds: Rounds, now: Now) {
        let named = rounds.name.as_ref().is_none_or(|name| name.won().is_some());
        let Some(own) = rounds.own.won().filter(|_| named).cloned() else {
            return self.claim_lost(kind, rounds, now);
        };
        let terms = &rounds.own.terms;
        let (leased, name) = (terms.leased, terms.name.clone());
        let certified = rounds.name.as_ref().filter(|_| stage == Stage::Long);
        let Some((home, started)) = certified.and_then(|round| Some((round.won()?.clone(), round.started)))
        else {
            let proofs = [Some(self.proof_of(own)), None];
            return self.start_long(leased, &name, proofs, Some(rounds), now);
        };
        self.holdings[kind].note_asked(&rounds);
        let until = [valid_until(rounds.own.started, &own), valid_until(started, &home)];
        let certificates = [own, home];
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

    fn claim_lost(&mut self, kind: Kind, rounds: Rounds, now: Now) {
        let loss = |round: &Round| match &round.outcome {
            Some(Outcome::Lost(loss)) => loss.clone(),
            _ => Loss::default(),
        };
        let own_loss = loss(&rounds.own);
        let name_loss = rounds.name.as_ref().map(loss).unwrap_or_default();
        let leased = rounds.own.terms.leased;
        let retry = self.config.timings.retry;
        if own_loss.cloned || name_loss.cloned {
            self.holdings[kind].parked = Some(Box::new(rounds));
            return self.cloned(now);
        }
        // What was granted is not given back here: an earlier start's lease would go with it.
        if let Some(wait) = own_loss.restarting.max(name_loss.restarting) {
            self.holdings[kind].parked = Some(Box::new(rounds));
            let reason = format!("asking whether an earlier run of this node still holds {leased}");
            return self.wait(kind, reason, wait + Duration::from_millis(20), now);
        }
        if own_loss.bad_proof || name_loss.bad_proof {
            self.holdings[kind].parked = Some(Box::new(rounds));
            // The certificates of before do not count any more; it is claimed as if for the first time.
            let last = self.holdings[kind].last.as_mut();
            let dropped = last.is_some_and(|last| std::mem::take(&mut last.proofs) != [None, None]);
            let wait = if dropped {
                Duration::ZERO
            } else {
                self.next_backoff(kind)
            };
            return self.wait(kind, format!("claiming the {kind} anew"), wait, now);
        }
        self.release_rounds(&rounds, now);
        if let Some(wait) = name_loss.moved {
            let reason = format!(
                "this node has leased {MAX_LEASES_PER_HOLDER} {} lately, as many as one may have; the first of \
                 them ends in {} s. Start it with the state directory of before, or wait",
                kind.plural(),
                wait.as_secs()
            );
            return self.wait(kind, reason, wait.min(FULL_RETRY), now);
        }
        // Votes that last longer than those of a race are of one that did not come to its end.
        let first_ttl = self.config.timings.first_ttl;
        let promised = name_loss.promised.filter(|(_, remaining)| *remaining > first_ttl);
        if let Some((holder, remaining)) = name_loss.taken.or(promised) {
            let reason = format!(
                "the name {} is leased to {holder} for {} s yet; stop that node or enrol this one under another name",
                rounds.own.terms.name,
                remaining.as_secs()
            );
            let wait = self.draw.about(NAME_RETRY).min(remaining);
            return self.wait(kind, reason, wait, now);
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
        let wait = self.next_backoff(kind);
        self.wait(kind, reason, wait, now);
    }

    fn next_backoff(&mut self, kind: Kind) -> Duration {
        let retry = self.config.timings.retry;
        let backoff = (self.holdings[kind].backoff * 2).clamp(retry, MAX_CLAIM_BACKOFF);
        self.holdings[kind].backoff = backoff;
        backoff / 2 + self.draw.up_to(backoff)
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
