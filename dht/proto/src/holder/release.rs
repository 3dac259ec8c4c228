//! Giving back.

use std::collections::BTreeSet;
use std::time::Instant;

use aerie_types::{Key, PeerId};

use super::rounds::Rounds;
use super::{LeaseRow, MAX_TO_RELEASE, Phase, lease_row};
use crate::leased::Kind;
use crate::limits::MAX_KEYS_PER_HOLDER;
use crate::register::Purpose;
use crate::store::Store;
use crate::wire::{Gossip, Request};
use crate::{Event, Keys, Now, Register};

/// A lease that this instance gave back, and who was told. Those that become witnesses of its key while certificates of
/// it may be about have to be told too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct GivenBack {
    seq: u64,
    until: Instant,
    pub(super) told: BTreeSet<PeerId>,
}

impl<S: Store, K: Keys> Register<S, K> {
    /// Gives back what is held of a kind, and what is being claimed, and claims nothing more of it. This node stays a
    /// member. [`Event::Left`] follows.
    pub fn release(&mut self, kind: Kind, now: Now) {
        self.let_go(&[kind], now);
        self.all_told();
        self.settle(now);
    }

    /// Gives everything back and tells the others that this member leaves. [`Event::Left`] follows.
    pub fn release_all(&mut self, now: Now) {
        self.let_go(&Kind::ALL, now);
        let members: Vec<PeerId> = self.members.connected().take(MAX_TO_RELEASE).collect();
        self.gossip(&Gossip::Leave);
        for peer in members {
            self.leave_ask(peer, &Request::Leave, now);
        }
        self.all_told();
        self.settle(now);
    }

    fn let_go(&mut self, kinds: &[Kind], now: Now) {
        // What was given back before may not have been answered yet.
        self.holdings.leaving.get_or_insert(0);
        let cloned = self.is_cloned();
        for kind in kinds {
            self.give_back(*kind, now);
            self.holdings[*kind].plan = None;
            if !cloned {
                self.holdings[*kind].phase = Phase::Idle;
            }
            self.forget_last(*kind);
        }
    }

    /// Whether nobody has to answer any more to what was given back.
    fn all_told(&mut self) {
        if self.holdings.leaving == Some(0) {
            self.holdings.leaving = None;
            self.event(Event::Left);
        }
    }

    /// Forgets, on the disk too, what was held last.
    pub(super) fn forget_last(&mut self, kind: Kind) {
        if self.holdings[kind].last.take().is_some() {
            self.persist_meta(lease_row(kind), None::<&LeaseRow>);
        }
    }

    /// Releases what is held of a kind and what may have been granted.
    pub(super) fn give_back(&mut self, kind: Kind, now: Now) {
        if let Some(parked) = self.holdings[kind].parked.take() {
            self.release_rounds(&parked, now);
        }
        let holding = &mut self.holdings[kind];
        if let Some(rounds) = holding.rounds.take() {
            if holding.lease.is_some() {
                holding.note_asked(&rounds);
            } else {
                self.release_rounds(&rounds, now);
            }
        }
        let holding = &mut self.holdings[kind];
        let asked = std::mem::take(&mut holding.asked);
        if let Some(lease) = holding.lease.take() {
            let seq = holding.seq;
            for (own, peers) in lease.certificates.iter().zip(asked) {
                let key = own.terms.key;
                self.release_key(key, (seq, true), peers.iter().copied().collect(), now);
                let connected = |peer: &PeerId| self.members.is_connected(*peer);
                let given_back = GivenBack {
                    seq,
                    until: now.instant + self.config.timings.ttl,
                    told: peers.into_iter().filter(connected).collect(),
                };
                if self.holdings.given_back.len() >= MAX_KEYS_PER_HOLDER {
                    self.holdings.given_back.pop_first();
                }
                self.holdings.given_back.insert(key, given_back);
            }
        }
    }

    /// Tells those that have become witnesses of keys that this node gave back, and may have been handed its certificate.
    pub(crate) fn releases_due(&mut self, named: &[PeerId], now: Now) {
        let mut given_back = std::mem::take(&mut self.holdings.given_back);
        given_back.retain(|key, lease| {
            lease.until > now.instant && self.own_certificate(*key, now.instant).is_none()
        });
        for (key, lease) in &mut given_back {
            let nine = self.members.witnesses(named, *key, self.config.quorum.witnesses);
            let untold = nine.into_iter().filter(|peer| lease.told.insert(*peer)).collect();
            self.release_key(*key, (lease.seq, true), untold, now);
        }
        self.holdings.given_back = given_back;
    }

    pub(super) fn release_rounds(&mut self, rounds: &Rounds, now: Now) {
        for round in rounds.iter() {
            self.release_key(round.key(), (round.seq, false), round.asked().collect(), now);
        }
    }

    /// Gives up what was granted for a key up to a number, and says whether that was a lease that was held.
    pub(super) fn release_key(&mut self, key: Key, (seq, held): (u64, bool), peers: Vec<PeerId>, now: Now) {
        let request = Request::Release {
            key,
            instance: self.instance,
            seq,
            held,
        };
        for peer in peers {
            if self.holdings.leaving.is_some() {
                self.leave_ask(peer, &request, now);
            } else {
                self.ask(peer, &request, Purpose::Nothing, now);
            }
        }
    }

    pub(super) fn leave_ask(&mut self, peer: PeerId, request: &Request, now: Now) {
        if let Some(leaving) = &mut self.holdings.leaving {
            *leaving += 1;
        }
        self.ask(peer, request, Purpose::Leaving, now);
    }

    pub(crate) fn leaving_answered(&mut self) {
        if let Some(leaving) = &mut self.holdings.leaving {
            *leaving = leaving.saturating_sub(1);
            self.all_told();
        }
    }
}
