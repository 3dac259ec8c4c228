//! The holder's side of a round: asks the witnesses and reads their answers.

use std::time::Duration;

use aerie_types::{Key, PeerId};

use crate::Keys;
use crate::SendError;
use crate::lease::{Proof, Receipt, millis};
use crate::members::sorted;
use crate::record::counted_after;
use crate::register::{Purpose, Wanted};
use crate::round::{Refused, Round, Vote};
use crate::store::Store;
use crate::wire::{Answer, Claim, Refusal, Request};
use crate::{Now, Register};

/// How often a witness is asked in one round before it counts as absent.
const TRIES: u8 = 3;

impl<S: Store, K: Keys> Register<S, K> {
    pub(crate) fn locate_round(&mut self, id: u64, key: Key, now: Now) {
        if self.round_mut(id).is_some_and(|round| round.is_located()) {
            return self.pump_with(id, now);
        }
        if self.members.any_connected() && !self.named.is_on() {
            self.locate(key, Wanted::Round(id), now);
        } else {
            self.round_located(id, &[], now);
        }
    }

    pub(crate) fn round_located(&mut self, id: u64, peers: &[PeerId], now: Now) {
        let me = self.me;
        let connected: Vec<PeerId> = self.members.connected().collect();
        let named = self.named_peers();
        let strict = self.named.is_on();
        let Some(round) = self.round_mut(id) else {
            return;
        };
        if strict {
            round.locate(named);
            return self.pump_with(id, now);
        }
        let all = peers.iter().copied().chain(connected).chain([me]);
        round.locate(sorted(all, round.key().position()));
        self.pump_with(id, now);
    }

    /// Asks whom the round wants asked, and looks whether it is decided.
    pub(crate) fn pump_round(&mut self, round: &mut Round, now: Now) {
        if !round.is_located() || round.is_held_back() {
            return;
        }
        let position = round.key().position();
        let members = &self.members;
        let me = self.me;
        let everybody = || {
            sorted(
                members.others(now.instant).map(|(peer, ..)| peer).chain([me]),
                position,
            )
        };
        for peer in round.next_to_ask(everybody) {
            round.set_vote(peer, Vote::Asked { tries: 1 });
            let full = !self.is_informed(peer);
            self.send_claim(round, peer, full, now);
        }
        let members = self.members.count(now.instant);
        round.decide(members, now.instant);
    }

    fn send_claim(&mut self, round: &Round, peer: PeerId, full: bool, now: Now) {
        let known = peer == self.me;
        let slim = |proof: &Proof| Proof {
            certificate: proof.certificate.clone(),
            credentials: Vec::new(),
        };
        let shown = |proof: &Proof| if full { proof.clone() } else { slim(proof) };
        let claim = Claim {
            terms: round.terms.clone(),
            seq: round.seq,
            ttl_ms: millis(round.ttl),
            proof: round.proof.as_ref().map(shown),
            home: round.home.as_ref().map(|home| {
                // Those who vote on what is leased seldom know those who vote on the name.
                if round.new_home { home.clone() } else { shown(home) }
            }),
            credential: (full && !known).then(|| self.keys.credential()),
            want_credential: !known && self.members.credential(peer).is_none(),
        };
        let purpose = Purpose::Claim { round: round.id };
        self.ask(peer, &Request::Claim(Box::new(claim)), purpose, now);
    }

    pub(crate) fn claim_answered(
        &mut self,
        id: u64,
        from: PeerId,
        answer: Result<Answer, SendError>,
        now: Now,
    ) {
        let Some(mut round) = self.round_mut(id).cloned() else {
            self.stats.stray_answers += 1;
            return;
        };
        let Some(Vote::Asked { tries }) = round.vote(from).cloned() else {
            return;
        };
        let again = tries < TRIES;
        let vote = match answer {
            Ok(Answer::Granted {
                receipt,
                credential,
                clone,
            }) => {
                if let Some(credential) = credential {
                    self.learn(&credential, now);
                }
                if let Some(clone) = clone {
                    self.clone_seen(clone);
                }
                self.receipt_vote(&round, from, receipt)
            }
            Ok(Answer::Refused(refusal)) => self.refusal_vote(&round, refusal, now),
            Ok(Answer::NeedCredentials) if again => {
                self.send_claim(&round, from, true, now);
                Vote::Asked { tries: TRIES }
            }
            Err(SendError::Timeout) if again => {
                let full = !self.is_informed(from);
                self.send_claim(&round, from, full, now);
                Vote::Asked { tries: tries + 1 }
            }
            _ => Vote::Absent,
        };
        round.set_vote(from, vote);
        if let Some(kept) = self.round_mut(id) {
            *kept = round;
        }
        self.pump_with(id, now);
    }

    fn receipt_vote(&mut self, round: &Round, from: PeerId, receipt: Receipt) -> Vote {
        let long_enough = Duration::from_millis(receipt.ttl_ms.into()) >= round.ttl / 2;
        let right = receipt.witness == from
            && receipt.ttl_ms <= millis(round.ttl)
            && receipt.verify(&self.keys, &round.terms);
        if !right {
            self.stats.bad_receipts += 1;
            return Vote::Absent;
        }
        if self.known_credential(from).is_none() {
            // Nobody could check the receipt.
            return Vote::Absent;
        }
        self.set_informed(from);
        if long_enough {
            Vote::Granted(receipt)
        } else {
            Vote::Refused(Refused::BadProof)
        }
    }

    fn refusal_vote(&mut self, round: &Round, refusal: Refusal, now: Now) -> Vote {
        Vote::Refused(match refusal {
            Refusal::Taken {
                holder,
                remaining_ms,
                certified,
                proof,
            } => {
                let remaining = Duration::from_millis(remaining_ms.into());
                let proved = proof.filter(|proof| {
                    let terms = &proof.certificate.terms;
                    terms.key == round.key() && terms.holder != self.me
                });
                match proved {
                    Some(proof) if self.check(&proof, now).is_ok() => {
                        Refused::Certified(Box::new(proof.certificate), remaining)
                    }
                    _ => Refused::Taken {
                        holder,
                        remaining,
                        certified,
                    },
                }
            }
            Refusal::Cloned { .. } => Refused::Cloned,
            Refusal::Restarting { wait_ms } => {
                let most = self.config.timings.probation;
                Refused::Restarting(Duration::from_millis(wait_ms.into()).min(most))
            }
            Refusal::Moved { wait_ms } => {
                let ttl = self.config.timings.ttl;
                let most = ttl + counted_after(ttl);
                Refused::Moved(Duration::from_millis(wait_ms.into()).min(most))
            }
            Refusal::BadProof => Refused::BadProof,
            Refusal::BadCredential => Refused::Other("a witness does not accept this node's credential"),
            Refusal::TooFar => Refused::Other("a witness does not count itself among the key's"),
            Refusal::Busy => Refused::Other("a witness has no room"),
            Refusal::Late => Refused::Other("a witness saw a later release"),
            Refusal::OutOfRange { .. } => {
                Refused::Other("a witness has another range for the grid, or leases no such part of it")
            }
        })
    }
}
