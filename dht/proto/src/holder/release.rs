//! Giving back.

use aerie_types::{Key, PeerId};

use super::{GivenBack, LEASE_ROW, LeaseRow, MAX_TO_RELEASE, Phase};
use crate::limits::MAX_KEYS_PER_HOLDER;
use crate::register::Purpose;
use crate::round::Round;
use crate::store::Store;
use crate::wire::{Gossip, Request};
use crate::{Event, Keys, Now, Register};

impl<S: Store, K: Keys> Register<S, K> {
    /// Gives back what is held, and what is being claimed, and claims nothing more. This node stays a member.
    /// [`Event::Left`] follows.
    pub fn release(&mut self, now: Now) {
        self.begin_to_leave(now);
        self.all_told();
        self.settle(now);
    }

    /// Gives everything back and tells the others that this member leaves. [`Event::Left`] follows.
    pub fn release_all(&mut self, now: Now) {
        self.begin_to_leave(now);
        let members: Vec<PeerId> = self.members.connected().take(MAX_TO_RELEASE).collect();
        self.gossip(&Gossip::Leave);
        for peer in members {
            self.leave_ask(peer, &Request::Leave, now);
        }
        self.all_told();
        self.settle(now);
    }

    fn begin_to_leave(&mut self, now: Now) {
        self.holding.leaving = Some(0);
        self.give_back(now);
        self.holding.plan = None;
        self.holding.phase = Phase::Idle;
        self.holding.last = None;
        self.persist_meta(LEASE_ROW, None::<&LeaseRow>);
    }

    /// Whether nobody has to answer any more to what was given back.
    fn all_told(&mut self) {
        if self.holding.leaving == Some(0) {
            self.holding.leaving = None;
            self.event(Event::Left);
        }
    }

    /// Releases what is held and what may have been granted.
    pub(super) fn give_back(&mut self, now: Now) {
        if let Some(rounds) = self.holding.rounds.take() {
            if self.holding.lease.is_some() {
                self.note_asked(&rounds);
            } else {
                self.release_rounds(&rounds, now);
            }
        }
        let asked = std::mem::take(&mut self.holding.asked);
        if let Some(lease) = self.holding.lease.take() {
            let seq = self.holding.seq;
            for (own, peers) in lease.certificates.iter().zip(asked) {
                let key = own.terms.key;
                self.release_key(key, seq, peers.iter().copied().collect(), now);
                let connected = |peer: &PeerId| self.members.is_connected(*peer);
                let given_back = GivenBack {
                    seq,
                    until: now.instant + self.config.timings.ttl,
                    told: peers.into_iter().filter(connected).collect(),
                };
                if self.holding.given_back.len() >= MAX_KEYS_PER_HOLDER {
                    self.holding.given_back.pop_first();
                }
                self.holding.given_back.insert(key, given_back);
            }
        }
    }

    /// Tells those that have become witnesses of keys that this node gave back, and may have been handed its certificate.
    pub(crate) fn releases_due(&mut self, named: &[PeerId], now: Now) {
        let mut given_back = std::mem::take(&mut self.holding.given_back);
        given_back.retain(|key, lease| {
            lease.until > now.instant && self.own_certificate(*key, now.instant).is_none()
        });
        for (key, lease) in &mut given_back {
            let nine = self.members.witnesses(named, *key, self.config.quorum.witnesses);
            let untold = nine.into_iter().filter(|peer| lease.told.insert(*peer)).collect();
            self.release_key(*key, lease.seq, untold, now);
        }
        self.holding.given_back = given_back;
    }

    pub(super) fn release_rounds(&mut self, rounds: &[Round; 2], now: Now) {
        for round in rounds {
            self.release_key(round.key(), round.seq, round.asked().collect(), now);
        }
    }

    pub(super) fn release_key(&mut self, key: Key, seq: u64, peers: Vec<PeerId>, now: Now) {
        let request = Request::Release {
            key,
            instance: self.instance,
            seq,
        };
        for peer in peers {
            if self.holding.leaving.is_some() {
                self.leave_ask(peer, &request, now);
            } else {
                self.ask(peer, &request, Purpose::Nothing, now);
            }
        }
    }

    pub(super) fn leave_ask(&mut self, peer: PeerId, request: &Request, now: Now) {
        if let Some(leaving) = &mut self.holding.leaving {
            *leaving += 1;
        }
        self.ask(peer, request, Purpose::Leaving, now);
    }

    pub(crate) fn leaving_answered(&mut self) {
        if let Some(leaving) = &mut self.holding.leaving {
            *leaving = leaving.saturating_sub(1);
            self.all_told();
        }
    }
}
