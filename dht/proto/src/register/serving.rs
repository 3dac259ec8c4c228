//! Answers to other members, and certificates that come from them.

use aerie_types::{Instance, Key, PeerId};

use super::{Call, Event, Input, Output, Purpose, Register, Time};
use crate::leases::Shown;
use crate::receipt::ReceiptBody;
use crate::wire::{Answer, ClaimReq, Request, WireSet, decode, encode, size_of};
use crate::{Certificate, Error, Receipt, Refusal, SetEntry, Store};

/// How many keys one request may name: a node's address and name, twice over.
const MAX_KEYS: usize = 4;

/// How many earlier starts a claim may name.
const MAX_PREVIOUS: usize = crate::claimant::MAX_STARTS;

/// How much of a message a page of certificates may fill; members and the frame need the rest.
pub(super) const PAGE: usize = 40 * 1024;

/// How much of a message set entries may fill, on the first page.
const SET_ROOM: usize = 8 * 1024;

impl<S: Store> Register<S> {
    pub(super) fn on_request(&mut self, from: PeerId, id: u64, bytes: &[u8], time: Time) {
        let answer = match decode::<Request>(bytes) {
            Ok(request) => {
                self.members.see(from, time.wall);
                self.answer(from, request, time)
            }
            Err(_) => {
                self.counters.malformed += 1;
                Answer::Ok
            }
        };
        let bytes = encode(&answer)
            .or_else(|_| encode(&Answer::Ok))
            .unwrap_or_default();
        self.outputs.push_back(Output::Answer { id, bytes });
    }

    pub(super) fn answer(&mut self, from: PeerId, request: Request, time: Time) -> Answer {
        match request {
            Request::Claim(claim) => match self.grant(from, &claim, time) {
                Ok(receipts) => {
                    self.counters.granted += 1;
                    Answer::Receipts(receipts)
                }
                Err(refusal) => {
                    self.counters.refused += 1;
                    Answer::Refused(refusal)
                }
            },
            Request::Release {
                keys,
                instance,
                round,
            } => self.release(&keys, (from, instance, round), time),
            Request::LookUp { key } => {
                let found = self.leases.certificate(&key, time.now);
                let remaining_ms = found.map_or(0, |(_, left)| u64::try_from(left.as_millis()).unwrap_or(0));
                Answer::Found {
                    certificate: found.map(|(certificate, _)| certificate.clone()),
                    remaining_ms,
                }
            }
            Request::HandOver { certificates } => {
                for certificate in certificates {
                    self.accept_certificate(certificate, time);
                }
                Answer::Ok
            }
            Request::Publish(entry) => {
                self.accept_entry(entry, None, time);
                Answer::Ok
            }
            Request::ReadSet { set } => Answer::Set(self.sets.told(Some(&set), time.now, PAGE)),
            Request::Sync { after } => self.state(after, time),
        }
    }

    /// The witness's decision; stored before it is signed.
    fn grant(&mut self, from: PeerId, claim: &ClaimReq, time: Time) -> Result<Vec<Receipt>, Refusal> {
        if !self.ready {
            return Err(Refusal::NotReady);
        }
        let credential = self.keys.credential_peer(&claim.credential, time.wall);
        let is_senders = credential.is_some_and(|member| member.peer == from && member.node == claim.name)
            && claim.holder == from;
        let grid = self.config.grid;
        let own_keys = [
            crate::addr_key(&grid, claim.addr),
            crate::name_key(&grid, &claim.name),
        ];
        let sane = self.config.range.contains(claim.addr)
            && claim.keys.len() <= MAX_KEYS
            && claim.previous.len() <= MAX_PREVIOUS
            && claim.keys.iter().all(|key| own_keys.contains(key));
        if !is_senders || !sane {
            return Err(Refusal::NotYours);
        }
        for key in &claim.keys {
            self.leases.judge(key, claim, time.now, time.wall)?;
        }
        claim
            .keys
            .iter()
            .map(|key| self.grant_one(*key, claim, time))
            .collect()
    }

    fn grant_one(&mut self, key: Key, claim: &ClaimReq, time: Time) -> Result<Receipt, Refusal> {
        let number = self
            .leases
            .grant(key, claim, &mut self.store, time.pair())
            .map_err(|_| {
                self.counters.store_failures += 1;
                Refusal::StoreFailed
            })?;
        let body = ReceiptBody {
            grid: self.config.grid,
            key,
            holder: claim.holder,
            name: claim.name.clone(),
            addr: claim.addr,
            instance: claim.instance,
            number,
            witness: self.config.me,
            witness_time: time.wall,
            ttl_ms: claim
                .ttl_ms
                .min(u32::try_from(crate::LEASE_TTL.as_millis()).unwrap_or(u32::MAX)),
            members_known: u16::try_from(self.members.known()).unwrap_or(u16::MAX),
        };
        Receipt::sign(body, &*self.keys).map_err(|_| Refusal::StoreFailed)
    }

    fn release(&mut self, keys: &[Key], whose: (PeerId, Instance, u64), time: Time) -> Answer {
        for key in keys.iter().take(MAX_KEYS) {
            self.cache.remove(key);
            if self
                .leases
                .release(key, whose, &mut self.store, time.pair())
                .is_err()
            {
                self.counters.store_failures += 1;
                return Answer::Refused(Refusal::StoreFailed);
            }
        }
        Answer::Released
    }

    fn state(&self, after: Option<Key>, time: Time) -> Answer {
        let mut room = PAGE;
        let (mut leases, mut next) = (Vec::new(), None);
        let mut last = after;
        for (key, certificate) in self.leases.after(after, time.now) {
            let size = size_of(certificate);
            if size > room {
                next = last;
                break;
            }
            room -= size;
            last = Some(*key);
            leases.push(certificate.clone());
        }
        let sets = if after.is_none() {
            self.sets.told(None, time.now, SET_ROOM)
        } else {
            Vec::new()
        };
        Answer::State {
            leases,
            members: self.members.told(time.wall),
            sets,
            next,
        }
    }

    /// Checks a certificate from anybody and keeps it. Whoever holds a key wrongly is told.
    pub(super) fn accept_certificate(&mut self, certificate: Certificate, time: Time) {
        if certificate
            .check(&self.config.grid, &*self.keys, time.wall)
            .is_err()
        {
            self.counters.bad_certificates += 1;
            return;
        }
        self.settle_conflict(&certificate, time);
        match self.leases.show(certificate, &mut self.store, time.pair()) {
            Ok(Shown::Conflict { loser, winner }) if loser != self.config.me => {
                let told = Request::HandOver {
                    certificates: vec![*winner],
                };
                self.send(loser, &told, Purpose::Tell, time);
            }
            Ok(Shown::Conflict { winner, .. }) => self.settle_conflict(&winner, time),
            Ok(Shown::Kept | Shown::Stale) => {}
            Err(Error::Store(_)) => self.counters.store_failures += 1,
            Err(_) => self.counters.bad_certificates += 1,
        }
    }

    pub(super) fn accept_entry(
        &mut self,
        entry: SetEntry,
        remaining: Option<std::time::Duration>,
        time: Time,
    ) {
        let set = entry.set.clone();
        match self
            .sets
            .accept(entry, remaining, (&self.config.grid, &*self.keys), time.pair())
        {
            Ok(true) => self.event(Event::SetChanged(set)),
            Ok(false) => {}
            Err(_) => self.counters.bad_entries += 1,
        }
    }

    pub(super) fn accept_entries(&mut self, entries: Vec<WireSet>, time: Time) {
        for WireSet { entry, remaining_ms } in entries {
            self.accept_entry(
                entry,
                Some(std::time::Duration::from_millis(remaining_ms.into())),
                time,
            );
        }
    }

    /// Whether the peer is being asked for its state now.
    pub(super) fn is_syncing(&self, peer: &PeerId) -> bool {
        self.calls
            .values()
            .any(|Call { to, purpose, .. }| to == peer && matches!(purpose, Purpose::Sync))
    }

    /// Fails every request to a peer that went away.
    pub(super) fn fail_calls(&mut self, peer: &PeerId, time: Time) {
        let lost: Vec<_> = self
            .calls
            .iter()
            .filter(|(_, call)| call.to == *peer)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.handle(
                Input::Reply {
                    id,
                    result: Err(super::SendError),
                },
                time,
            );
        }
    }
}
