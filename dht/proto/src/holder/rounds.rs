//! The two rounds of a claim or of a renewal: that of what is leased, and that of the name under which it is counted.

use std::time::Duration;

use aerie_types::{Key, NodeName};

use super::Phase;
use crate::lease::{Proof, Terms};
use crate::leased::{Kind, Leased};
use crate::round::{Loss, Outcome, Round};
use crate::store::Store;
use crate::{Keys, Now, Register};

/// The rounds that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Rounds {
    /// That of what is leased.
    pub(super) own: Round,
    /// That of the name; none while it is not worth asking for one.
    pub(super) name: Option<Round>,
}

impl Rounds {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Round> {
        std::iter::once(&self.own).chain(&self.name)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Round> {
        std::iter::once(&mut self.own).chain(&mut self.name)
    }
}

impl<S: Store, K: Keys> Register<S, K> {
    /// A round for the key of what is leased, or for that of the name.
    pub(super) fn round_of(
        &mut self,
        key: Key,
        leased: Leased,
        name: &NodeName,
        ttl: Duration,
        proof: Option<Proof>,
        now: Now,
    ) -> Round {
        let terms = Terms {
            grid: self.config.grid,
            key,
            holder: self.me,
            leased,
            name: name.clone(),
            instance: self.instance,
            since: proof.as_ref().map(|proof| proof.certificate.since()),
        };
        let holding = &mut self.holdings[leased.kind()];
        holding.seq += 1;
        let seq = holding.seq;
        let id = self.fresh_id();
        let rule = self.config.quorum;
        let mut round = Round::new(id, terms, seq, ttl, proof, rule, now.instant);
        round.named = self.named.is_on().then(|| self.named.quorum());
        round
    }

    /// The long claim of what is leased shows the long certificate of the name: that of before, or one that is won first.
    pub(super) fn show_home(&self, own: &mut Round, name: &Round) {
        let long = |proof: &&Proof| proof.certificate.ttl() > self.config.timings.first_ttl;
        let before = name.proof.as_ref().filter(long);
        own.new_home = before.is_none();
        let won = name.won().map(|certificate| self.proof_of(certificate.clone()));
        own.home = won.or_else(|| before.cloned());
    }

    /// Begins what is not held back and not decided yet.
    pub(super) fn begin(&mut self, kind: Kind, mut rounds: Rounds, now: Now) {
        for old in self.holdings[kind]
            .parked
            .take()
            .iter()
            .flat_map(|parked| parked.iter())
        {
            match rounds.iter_mut().find(|round| round.key() == old.key()) {
                Some(round) => round.before.extend(old.asked()),
                None => self.release_key(old.key(), (old.seq, false), old.asked().collect(), now),
            }
        }
        let begin = rounds.iter().filter(|round| !round.is_held_back());
        let begin = begin.filter(|round| round.outcome.is_none());
        let ids: Vec<_> = begin.map(|round| (round.id, round.key())).collect();
        self.holdings[kind].rounds = Some(Box::new(rounds));
        for (id, key) in ids {
            self.locate_round(id, key, now);
        }
        self.pump(kind, now);
    }

    /// Begins the round of what is leased when that of the name, for which it waited, is won.
    fn begin_held_back(&mut self, kind: Kind, now: Now) {
        let Some(rounds) = &self.holdings[kind].rounds else {
            return;
        };
        let Rounds { own, name } = rounds.as_ref();
        if !own.is_held_back() {
            return;
        }
        let home = match name.as_ref().and_then(|name| name.outcome.as_ref()) {
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
            own.outcome = Some(Outcome::Lost(Loss::default()));
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
