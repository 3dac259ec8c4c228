//! One round of votes on one key: whom to ask, and what their answers make.
//!
//! ```text
//!              located                    quorum of receipts
//!  locating ───────────► asking ────────────────────────────────► won(certificate)
//!                         │  ▲ absent or not ready: the next closest
//!                         │  └──┘
//!                         └──► lost(why): too few are left for a quorum
//! ```
//!
//! The nine closest members are asked; where one is absent or not ready, the next closest takes its place, down to
//! the thirteenth. If fewer than nine are left, the grid is small (or torn): then every member of the last day is
//! asked, and a majority of them is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aerie_types::{Key, PeerId};

use crate::QuorumRule;
use crate::lease::{Certificate, Proof, Receipt, Terms, majority};
use crate::limits::MAX_RECEIPTS;

/// Members asked in a grid whose quorum is a majority: as many as can sign one certificate, and their minority.
const MAX_ASKED: usize = 2 * MAX_RECEIPTS;

/// A round that takes longer has failed, whatever is still under way.
pub(crate) const ROUND_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Round {
    pub(crate) id: u64,
    pub(crate) terms: Terms,
    pub(crate) seq: u64,
    pub(crate) ttl: Duration,
    pub(crate) proof: Option<Proof>,
    /// For the key of what is leased: the certificate of the name, whose witnesses count what a holder has.
    pub(crate) home: Option<Proof>,
    /// That certificate is made for this round, which does not begin without it.
    pub(crate) new_home: bool,
    /// Who may have granted in the stage before.
    pub(crate) before: BTreeSet<PeerId>,
    rule: QuorumRule,
    /// In strict mode: how many of the candidates, who are the named witnesses, must agree.
    pub(crate) named: Option<usize>,
    pub(crate) started: Instant,
    /// Closest first; `None` until they are located.
    candidates: Option<Vec<PeerId>>,
    votes: BTreeMap<PeerId, Vote>,
    extended: bool,
    pub(crate) outcome: Option<Outcome>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Vote {
    Asked {
        tries: u8,
    },
    Granted(Receipt),
    Refused(Refused),
    /// Not reached, or does not vote.
    Absent,
}

/// A refusal whose proof was checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Refused {
    /// A valid certificate of another holder.
    Certified(Box<Certificate>, Duration),
    /// Another holder's lease or vote, by the witness's word.
    Taken {
        holder: PeerId,
        remaining: Duration,
        certified: bool,
    },
    Cloned,
    Restarting(Duration),
    BadProof,
    /// The name was leased with too many addresses.
    Moved(Duration),
    Other(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Won(Certificate),
    Lost(Loss),
}

/// Why a round failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Loss {
    /// Another holder has a lease: who, and for how long yet.
    pub(crate) taken: Option<(PeerId, Duration)>,
    /// The certificate by which it has it, if one was shown.
    pub(crate) certificate: Option<Box<Certificate>>,
    /// Another instance of this holder is alive, say enough witnesses to block.
    pub(crate) cloned: bool,
    pub(crate) restarting: Option<Duration>,
    pub(crate) bad_proof: bool,
    /// The name may be leased with another address after this.
    pub(crate) moved: Option<Duration>,
    /// Votes went to others, or refused for lack of room: try elsewhere or later.
    pub(crate) split: bool,
    /// The other to which one of these went for the longest.
    pub(crate) promised: Option<(PeerId, Duration)>,
    pub(crate) granted: usize,
    pub(crate) needed: usize,
    pub(crate) absent: usize,
    pub(crate) other: Option<&'static str>,
}

impl Round {
    pub(crate) fn new(
        id: u64,
        terms: Terms,
        seq: u64,
        ttl: Duration,
        proof: Option<Proof>,
        rule: QuorumRule,
        now: Instant,
    ) -> Self {
        Self {
            id,
            terms,
            seq,
            ttl,
            proof,
            home: None,
            new_home: false,
            before: BTreeSet::new(),
            rule,
            named: None,
            started: now,
            candidates: None,
            votes: BTreeMap::new(),
            extended: false,
            outcome: None,
        }
    }

    pub(crate) fn key(&self) -> Key {
        self.terms.key
    }

    /// The certificate that it won.
    pub(crate) fn won(&self) -> Option<&Certificate> {
        match &self.outcome {
            Some(Outcome::Won(certificate)) => Some(certificate),
            _ => None,
        }
    }

    /// Whether it waits for the certificate of the name.
    pub(crate) fn is_held_back(&self) -> bool {
        self.new_home && self.home.is_none()
    }

    pub(crate) fn is_located(&self) -> bool {
        self.candidates.is_some()
    }

    /// Asks those that another round for the same key has just located.
    pub(crate) fn locate_as(&mut self, other: &Self) {
        self.candidates.clone_from(&other.candidates);
    }

    pub(crate) fn locate(&mut self, candidates: Vec<PeerId>) {
        self.candidates.get_or_insert(candidates);
    }

    pub(crate) fn vote(&self, peer: PeerId) -> Option<&Vote> {
        self.votes.get(&peer)
    }

    pub(crate) fn set_vote(&mut self, peer: PeerId, vote: Vote) {
        self.votes.insert(peer, vote);
    }

    /// Everybody who may have granted.
    pub(crate) fn asked(&self) -> impl Iterator<Item = PeerId> + '_ {
        let before = self.before.iter().filter(|peer| !self.votes.contains_key(peer));
        self.votes.keys().chain(before).copied()
    }

    /// Whom to ask next. `everybody` is the whole membership by distance, for the case that it is small.
    pub(crate) fn next_to_ask(&mut self, everybody: impl FnOnce() -> Vec<PeerId>) -> Vec<PeerId> {
        if self.outcome.is_some() || self.candidates.is_none() {
            return Vec::new();
        }
        if self.named.is_some() {
            let named = self.candidates.iter().flatten().copied();
            return named.filter(|peer| !self.votes.contains_key(peer)).collect();
        }
        if self.live() < self.rule.witnesses && !self.extended {
            self.extended = true;
            let candidates = self.candidates.get_or_insert_default();
            for peer in everybody() {
                if !candidates.contains(&peer) && candidates.len() < MAX_ASKED {
                    candidates.push(peer);
                }
            }
        }
        let candidates = self.candidates.as_deref().unwrap_or_default();
        let whole = self.live() < self.rule.witnesses;
        let reach = if whole { MAX_ASKED } else { self.rule.candidates };
        let mut voting = 0;
        let mut ask = Vec::new();
        for peer in candidates.iter().take(reach) {
            if !whole && voting == self.rule.witnesses {
                break;
            }
            match self.votes.get(peer) {
                Some(Vote::Absent) => continue,
                Some(_) => {}
                None => ask.push(*peer),
            }
            voting += 1;
        }
        ask
    }

    /// Looks whether the round is decided. `members` is this node's own count.
    pub(crate) fn decide(&mut self, members: usize, now: Instant) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        if self.candidates.is_none() {
            return false;
        }
        let whole = self.live() < self.rule.witnesses;
        let rule = self.rule;
        let named = self.named;
        let needs = |stated: usize| {
            if let Some(needed) = named {
                needed
            } else if whole {
                majority(stated.max(members))
            } else {
                rule.receipts(stated.max(members)).max(rule.quorum)
            }
        };
        let receipts: Vec<&Receipt> = self
            .votes
            .values()
            .filter_map(|vote| match vote {
                Vote::Granted(receipt) => Some(receipt),
                _ => None,
            })
            .collect();
        if let Some(certificate) = Certificate::assemble(&self.terms, &receipts, needs) {
            self.outcome = Some(Outcome::Won(certificate));
            return true;
        }
        let open = self
            .votes
            .values()
            .filter(|vote| matches!(vote, Vote::Asked { .. }))
            .count();
        let late = now.saturating_duration_since(self.started) >= ROUND_TIMEOUT;
        let needed = needs(1);
        if (receipts.len() + open >= needed && open > 0) && !late {
            return false;
        }
        let granted = receipts.len();
        let stated = receipts.iter().map(|receipt| receipt.members as usize).max();
        let needed = needed.max(needs(stated.unwrap_or(1)));
        self.outcome = Some(Outcome::Lost(self.loss(granted, needed)));
        true
    }

    fn live(&self) -> usize {
        let candidates = self.candidates.as_deref().unwrap_or_default();
        let absent = |peer: &&PeerId| matches!(self.votes.get(*peer), Some(Vote::Absent));
        candidates.len().min(self.rule.candidates)
            - candidates
                .iter()
                .take(self.rule.candidates)
                .filter(absent)
                .count()
    }

    fn loss(&self, granted: usize, needed: usize) -> Loss {
        let mut loss = Loss {
            granted,
            needed,
            ..Loss::default()
        };
        let mut cloned = 0;
        for vote in self.votes.values() {
            match vote {
                Vote::Granted(_) => {}
                Vote::Absent | Vote::Asked { .. } => loss.absent += 1,
                Vote::Refused(Refused::Certified(certificate, remaining)) => {
                    loss.taken = Some((certificate.terms.holder, *remaining));
                    loss.certificate = Some(certificate.clone());
                }
                Vote::Refused(Refused::Taken {
                    holder,
                    remaining,
                    certified: true,
                }) => {
                    loss.taken.get_or_insert((*holder, *remaining));
                }
                Vote::Refused(Refused::Taken {
                    holder, remaining, ..
                }) => {
                    loss.split = true;
                    if loss.promised.is_none_or(|(_, longest)| longest < *remaining) {
                        loss.promised = Some((*holder, *remaining));
                    }
                }
                Vote::Refused(Refused::Cloned) => cloned += 1,
                Vote::Refused(Refused::Restarting(wait)) => {
                    loss.restarting = Some(loss.restarting.map_or(*wait, |longest| longest.max(*wait)));
                }
                Vote::Refused(Refused::BadProof) => loss.bad_proof = true,
                Vote::Refused(Refused::Moved(wait)) => {
                    loss.moved = Some(loss.moved.map_or(*wait, |shortest| shortest.min(*wait)));
                }
                Vote::Refused(Refused::Other(why)) => loss.other = Some(why),
            }
        }
        // One witness's word does not end a node, unless one witness is all it takes to block.
        let voters = self.votes.len() - loss.absent;
        let blocking = voters.saturating_sub(needed) + 1;
        loss.cloned = cloned > 0 && cloned >= blocking;
        if cloned > 0 && !loss.cloned {
            loss.split = true;
        }
        loss
    }
}
