//! What members tell each other unasked: state for newcomers, certificates for new witnesses, set entries.

use std::time::Instant;

use aerie_types::{Key, PeerId};

use super::{Purpose, Register, Task, Time};
use crate::sets::DEFAULT_SET_TTL;
use crate::wire::{Answer, Request, encode, size_of};
use crate::{Certificate, Error, Output, SetEntry, Store};

/// How many members a newcomer must have learnt from, if there are so many.
const LEARN_FROM: usize = 3;

/// How many neighbours are asked for their state whenever they come; above, only some are from time to time.
const SYNC_ALL_BELOW: usize = 16;

/// How many messages of certificates one change of members may cause.
const MAX_HAND_OVERS: usize = 64;

/// How many of a key's witnesses, counted from the closest, hand its certificate over.
const HANDING: usize = 3;

/// How many sets one node may publish in.
const MAX_OWN_SETS: usize = 8;

/// An entry that this node publishes and announces again.
#[derive(Debug)]
pub(super) struct OwnSet {
    value: Vec<u8>,
    seq: u64,
    pub(super) next: Instant,
}

impl<S: Store> Register<S> {
    /// Publishes this node's entry in a set, and announces it again until it is withdrawn.
    ///
    /// # Errors
    /// [`Error::Set`] if the set or the value is not acceptable or this node has not the role for it.
    pub fn publish_set(&mut self, set: &str, value: Vec<u8>, time: Time) -> Result<(), Error> {
        if !self.own_sets.contains_key(set) && self.own_sets.len() >= MAX_OWN_SETS {
            return Err(Error::Set(
                "this node publishes in 8 sets already; withdraw from one",
            ));
        }
        let seq = self.own_sets.get(set).map_or(0, |own| own.seq);
        let next = time.now + DEFAULT_SET_TTL / 4;
        let own = OwnSet {
            value,
            seq: (seq + 1).max(time.wall.0),
            next,
        };
        self.put_entry(set, &own, false, time)?;
        self.own_sets.insert(set.to_owned(), own);
        Ok(())
    }

    /// Takes this node's entry back.
    ///
    /// # Errors
    /// [`Error::Set`] if that cannot be signed.
    pub fn withdraw_set(&mut self, set: &str, time: Time) -> Result<(), Error> {
        let Some(mut own) = self.own_sets.remove(set) else {
            return Ok(());
        };
        own.seq = (own.seq + 1).max(time.wall.0);
        own.value.clear();
        self.put_entry(set, &own, true, time)
    }

    /// Asks the set's witnesses for its entries; changes come as events.
    pub fn refresh_set(&mut self, set: &str, time: Time) {
        let key = Key::of("set", &[&self.config.grid.0, set.as_bytes()]);
        self.with_witnesses(key, Task::ReadSet(set.to_owned()), time);
    }

    /// Announces again what is due.
    pub(super) fn announce(&mut self, time: Time) {
        let due: Vec<_> = self
            .own_sets
            .iter()
            .filter(|(_, own)| own.next <= time.now)
            .map(|(s, _)| s.clone())
            .collect();
        for set in due {
            if let Some(own) = self.own_sets.remove(&set) {
                let next = time.now + DEFAULT_SET_TTL / 4;
                let own = OwnSet {
                    seq: (own.seq + 1).max(time.wall.0),
                    next,
                    ..own
                };
                if self.put_entry(&set, &own, false, time).is_err() {
                    self.counters.bad_entries += 1;
                }
                self.own_sets.insert(set, own);
            }
        }
    }

    fn put_entry(&mut self, set: &str, own: &OwnSet, withdrawn: bool, time: Time) -> Result<(), Error> {
        let entry = SetEntry {
            set: set.to_owned(),
            publisher: self.config.me,
            value: own.value.clone(),
            seq: own.seq,
            ttl_ms: u32::try_from(DEFAULT_SET_TTL.as_millis()).unwrap_or(u32::MAX),
            withdrawn,
            credential: Vec::new(),
            signature: Vec::new(),
        };
        let entry = entry.sign(&self.config.grid, &*self.keys)?;
        let context = (&self.config.grid, &*self.keys);
        if self.sets.accept(entry.clone(), None, context, time.pair())? {
            self.event(super::Event::SetChanged(set.to_owned()));
        }
        let request = Request::Publish(entry);
        self.outputs.push_back(Output::Gossip(encode(&request)?));
        let key = Key::of("set", &[&self.config.grid.0, set.as_bytes()]);
        self.with_witnesses(key, Task::Tell(request), time);
        Ok(())
    }

    pub(super) fn on_member_up(&mut self, peer: PeerId, time: Time) {
        let alone = self.members.live().is_empty();
        if self.members.up(peer, time.wall) {
            self.save_members();
        }
        if !self.ready || self.members.live().len() <= SYNC_ALL_BELOW {
            self.sync(peer, time);
        }
        if !self.members.is_small() {
            self.hand_over(&peer, time);
        }
        if alone
            && self.claimant.round.is_none()
            && self.claimant.holding.is_none()
            && self.claimant.wake.is_some()
        {
            self.claimant.wake = Some(time.now);
        }
        self.drive_claim(time);
    }

    pub(super) fn on_member_down(&mut self, peer: &PeerId, time: Time) {
        self.members.down(peer, time.wall);
        self.synced.remove(peer);
        if !self.members.is_small() {
            self.hand_over(peer, time);
        }
        self.fail_calls(peer, time);
        self.become_ready(time);
    }

    /// Passes certificates on whose nine witnesses have changed by this member's coming or going.
    fn hand_over(&mut self, changed: &PeerId, time: Time) {
        let mut batches: std::collections::BTreeMap<PeerId, Vec<Certificate>> =
            std::collections::BTreeMap::new();
        let is_up = self.members.live().contains(changed);
        let others: Vec<_> = self.members.live().iter().copied().collect();
        for (key, certificate) in self.leases.after(None, time.now) {
            let with = self
                .members
                .closest(key, others.iter().copied().chain([*changed]));
            let handing = with
                .iter()
                .filter(|peer| *peer != changed)
                .take(HANDING)
                .any(|peer| *peer == self.config.me);
            if !handing || !with.contains(changed) {
                continue;
            }
            let to = if is_up {
                Some(*changed)
            } else {
                self.members.closest(key, others.iter().copied()).last().copied()
            };
            if let Some(to) = to.filter(|to| *to != self.config.me) {
                batches.entry(to).or_default().push(certificate.clone());
            }
        }
        let mut budget = MAX_HAND_OVERS;
        for (to, certificates) in batches {
            for certificates in pages(certificates) {
                if budget == 0 {
                    return;
                }
                budget -= 1;
                self.send(to, &Request::HandOver { certificates }, Purpose::Tell, time);
            }
        }
    }

    /// Asks some neighbours for their state: all until this node is ready, then one at a time.
    pub(super) fn sync_some(&mut self, time: Time) {
        let live: Vec<_> = self.members.live().iter().copied().collect();
        if live.is_empty() {
            return;
        }
        if self.ready {
            let index = usize::try_from(self.rng.next_u32()).unwrap_or(0) % live.len();
            self.sync(live[index], time);
            return;
        }
        let unsynced: Vec<_> = live
            .into_iter()
            .filter(|peer| !self.synced.contains(peer))
            .take(LEARN_FROM * 2)
            .collect();
        for peer in unsynced {
            self.sync(peer, time);
        }
    }

    fn sync(&mut self, peer: PeerId, time: Time) {
        if !self.is_syncing(&peer) {
            self.send(peer, &Request::Sync { after: None }, Purpose::Sync, time);
        }
    }

    pub(super) fn on_state(&mut self, from: PeerId, answer: Option<Answer>, time: Time) {
        let Some(Answer::State {
            leases,
            members,
            sets,
            next,
        }) = answer
        else {
            return;
        };
        if self.members.merge(&members, time.wall) {
            self.save_members();
        }
        let last = leases
            .last()
            .and_then(|certificate| certificate.first().ok())
            .map(|body| body.key);
        for certificate in leases {
            let mine = certificate.first().is_ok_and(|body| self.is_witness(&body.key));
            if mine {
                self.accept_certificate(certificate, time);
            }
        }
        self.accept_entries(sets, time);
        match next {
            // Each page must go on behind the last, or a hostile member could keep us turning for ever.
            Some(after) if last == Some(after) => {
                self.send(from, &Request::Sync { after: Some(after) }, Purpose::Sync, time);
            }
            _ => {
                if self.members.live().contains(&from) {
                    self.synced.insert(from);
                }
                self.become_ready(time);
            }
        }
    }

    fn is_witness(&self, key: &Key) -> bool {
        self.members.is_small()
            || self
                .members
                .closest(key, self.members.live().iter().copied())
                .contains(&self.config.me)
    }

    fn become_ready(&mut self, time: Time) {
        let needed = LEARN_FROM.min(self.members.live().len());
        if self.ready || needed == 0 || self.synced.len() < needed {
            return;
        }
        self.ready = true;
        self.save_members();
        if self.claimant.wake.is_some() && self.claimant.holding.is_none() {
            self.claimant.wake = Some(time.now);
        }
        self.drive_claim(time);
    }
}

/// Cuts certificates into messages.
pub(super) fn pages(certificates: Vec<Certificate>) -> Vec<Vec<Certificate>> {
    let mut pages: Vec<Vec<Certificate>> = Vec::new();
    let mut room = 0;
    for certificate in certificates {
        let size = size_of(&certificate);
        if pages.is_empty() || size > room {
            pages.push(Vec::new());
            room = super::serving::PAGE;
        }
        room = room.saturating_sub(size);
        if let Some(page) = pages.last_mut() {
            page.push(certificate);
        }
    }
    pages
}
