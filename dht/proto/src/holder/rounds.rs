//! The two rounds of a claim or of a renewal: that of what is leased, and that of the name under which it is counted.

use std::time::Duration;

use aerie_types::NodeName;

use super::Phase;
use crate::lease::{Proof, Terms};
use crate::leased::{Kind, Leased};
use crate::round::{Outcome, Round};
use crate::store::Store;
use crate::{Keys, Now, Register};

impl<S: Store, K: Keys> Register<S, K> {
    pub(super) fn start_rounds(
        &mut self,
        leased: Leased,
        name: &NodeName,
        ttl: Duration,
        proofs: [Option<Proof>; 2],
        now: Now,
    ) {
        let grid = self.config.grid;
        let kind = leased.kind();
        let keys = [leased.key(grid), leased.home_key(grid, name)];
        self.holdings[kind].seq += 1;
        let seq = self.holdings[kind].seq;
        let rule = self.config.quorum;
        let first_ttl = self.config.timings.first_ttl;
        let long = |proof: &Proof| proof.certificate.ttl() > first_ttl;
        let home = proofs[1].clone().filter(long);
        let mut rounds = Vec::with_capacity(2);
        for (key, proof) in keys.into_iter().zip(proofs) {
            let terms = Terms {
                grid,
                key,
                holder: self.me,
                leased,
                name: name.clone(),
                instance: self.instance,
                since: proof.as_ref().map(|proof| proof.certificate.since()),
            };
            let id = self.fresh_id();
            let mut round = Round::new(id, terms, seq, ttl, proof, rule, now.instant);
            round.named = self.named.is_on().then(|| self.named.quorum());
            rounds.push(round);
        }
        if let Some(own) = rounds.first_mut()
            && ttl > first_ttl
        {
            own.held_back = home.is_none();
            own.home = home;
        }
        let begin = rounds.iter().filter(|round| !round.held_back);
        let ids: Vec<_> = begin.map(|round| (round.id, round.key())).collect();
        self.holdings[kind].rounds = rounds.try_into().ok().map(Box::new);
        for (id, key) in ids {
            self.locate_round(id, key, now);
        }
    }

    /// Begins the round of what is leased when that of the name, for which it waited, is won.
    fn begin_held_back(&mut self, kind: Kind, now: Now) {
        let Some(rounds) = &self.holdings[kind].rounds else {
            return;
        };
        let [own, name] = rounds.as_ref();
        if !own.held_back || own.home.is_some() {
            return;
        }
        let home = match &name.outcome {
            None => return,
            Some(Outcome::Lost(_)) => None,
            Some(Outcome::Won(certificate)) => Some(self.proof_of(certificate.clone())),
        };
        let (id, key) = (own.id, own.key());
        let Some(own) = self.round_mut(id) else {
            return;
        };
        if home.is_some() {
            own.home = home;
            own.started = now.instant;
            self.locate_round(id, key, now);
        } else {
            own.outcome = Some(Outcome::Lost(crate::round::Loss::default()));
            self.pump(kind, now);
        }
    }

    /// Works on the rounds to which this one belongs.
    pub(crate) fn pump_with(&mut self, round: u64, now: Now) {
        if let Some(kind) = self.holdings.kind_of(round) {
            self.pump(kind, now);
        }
    }

    /// Works on the rounds under way, and draws the conclusion when they are decided.
    pub(super) fn pump(&mut self, kind: Kind, now: Now) {
        let Some(mut rounds) = self.holdings[kind].rounds.take() else {
            return;
        };
        for round in rounds.iter_mut() {
            self.pump_round(round, now);
        }
        let lost = |round: &Round| matches!(round.outcome, Some(Outcome::Lost(_)));
        let all = rounds.iter().all(|round| round.outcome.is_some());
        let claiming = matches!(self.holdings[kind].phase, Phase::Claiming(_));
        if !(all || claiming && rounds.iter().any(lost)) {
            self.holdings[kind].rounds = Some(rounds);
            return self.begin_held_back(kind, now);
        }
        match self.holdings[kind].phase.clone() {
            Phase::Claiming(stage) => self.claimed(kind, stage, *rounds, now),
            Phase::Held { .. } => self.renewed(kind, *rounds, now),
            _ => {}
        }
    }

    pub(crate) fn round_mut(&mut self, id: u64) -> Option<&mut Round> {
        let kind = self.holdings.kind_of(id)?;
        let rounds = self.holdings[kind].rounds.as_mut()?;
        rounds.iter_mut().find(|round| round.id == id)
    }
}
