//! The witness: its rules for granting, refusing and remembering.
//!
//! ```text
//!                     claim: nothing stands against it
//!        ┌──────┐ ─────────────────────────────────────► ┌───────────────────┐
//!        │ free │                                        │ granted (10 s)    │◄─┐ claim of the same instance
//!        └──────┘ ◄───────────────────────────────────── │ holder, instance  │──┘ without a certificate
//!            ▲        release, or the grant ends         └───────────────────┘
//!            │                                               │ claim of the same holder with its certificate
//!            │                                               ▼
//!            │        release, or the grant ends         ┌───────────────────┐◄─┐
//!            └────────────────────────────────────────── │ leased (30 min)   │──┘ renewal
//!                                                        └───────────────────┘
//!                                                            │        ▲ the earlier instance renews: the later one
//!                             claim of a later instance      ▼        │ is a clone and is refused from now on
//!                                                        ┌───────────────────┐
//!                                                        │ probation (2 s)   │──► the earlier one stayed silent:
//!                                                        └───────────────────┘    the later one is granted
//! ```
//!
//! A witness grants a key unless an unexpired grant, or a valid certificate that it has seen, names another holder.
//! The grant is persisted before the answer is queued; when the store fails, the witness abstains. A grant is never
//! shortened: what a receipt promised holds to its end, unless the same instance releases it. A long grant of an address
//! needs the claimant's current certificate, so that only who had a quorum blocks one for longer than ten seconds, and
//! the long certificate of the claimant's name with it. A name, which only a credential opens, blocks nobody but its
//! own member, and is granted for long at once. The witnesses of a name remember with which addresses it was leased
//! until those leases end, whether they are given back or not, and grant it with no more than
//! [`crate::limits::MAX_LEASES_PER_HOLDER`]: nobody can collect addresses. (A witness that restarts remembers only those
//! of which it still has a grant or a certificate. In grants of ten seconds, which it has to ask for again and again, a
//! member may block up to [`MAX_KEYS_PER_HOLDER`] keys at each witness, of which [`MAX_PREFIX_KEYS_PER_HOLDER`] of
//! prefixes.) Prefixes are granted in the same way, and counted by the witnesses of
//! their holder as a router.
//!
//! A *clone* is told from a *restart* by asking the earlier instance whether it lives: the witness sends it a
//! challenge and gossips the restart (a copied disk has the same peer id, so that either of the two may be at the
//! other end of a connection), and waits two seconds. An earlier instance that lives renews at once, and the later one
//! is refused for good; both are told. One that was killed is silent, and its successor has the address back in
//! little more than those two seconds. An earlier instance that slept through its probation finds itself superseded
//! when it wakes, and stops.

use std::cmp::Ordering;
use std::time::Duration;

use aerie_types::{Instance, Key, PeerId};

use crate::lease::{Certificate, Receipt, encode, millis};
use crate::limits::{MAX_KEYS, MAX_KEYS_PER_HOLDER, MAX_PREFIX_KEYS_PER_HOLDER};
use crate::proof::Flaw;
use crate::record::{Grant, GrantRow, Record, Released, Seen, SeenRow, Standing};
use crate::register::Purpose;
use crate::store::{Change, Store, Table};
use crate::wire::{Answer, Claim, Gossip, Refusal, Request};
use crate::{Keys, Kind, Now, Register};

/// The row that holds the number of the last grant.
pub(crate) const NUMBER_ROW: &[u8] = b"number";

impl<S: Store, K: Keys> Register<S, K> {
    pub(crate) fn claim(&mut self, from: PeerId, claim: &Claim, now: Now) -> Answer {
        let terms = &claim.terms;
        if terms.holder != from || !terms.consistent(self.config.grid) {
            self.stats.malformed += 1;
            return Answer::Malformed;
        }
        if !self.is_ready() || !self.is_witness() {
            self.stats.abstained += 1;
            return Answer::Unready;
        }
        if let Err(answer) = self.claimant(from, claim, now) {
            return *answer;
        }
        let (proved, flawed) = match self.claimants_proof(claim, now) {
            Ok(proved) => (proved, false),
            Err(Flaw::UnknownWitness) => return Answer::NeedCredentials,
            Err(Flaw::Invalid) => (None, true),
        };
        let home = match self.claimants_home(claim, now) {
            Ok(home) => home,
            Err(Flaw::UnknownWitness) => return Answer::NeedCredentials,
            Err(Flaw::Invalid) => false,
        };
        let since = proved.as_ref().map(|(certificate, _)| certificate.since());
        if let Some((certificate, life)) = proved {
            self.take_certificate(certificate, life, now);
        }
        let flawed = flawed || claim.terms.since != since || !home;
        let answer = self.vote(from, claim, flawed, now);
        match &answer {
            Answer::Granted { .. } => self.stats.granted += 1,
            Answer::Refused(_) => self.stats.refused += 1,
            _ => self.stats.abstained += 1,
        }
        answer
    }

    fn vote(&mut self, from: PeerId, claim: &Claim, flawed: bool, now: Now) -> Answer {
        let terms = &claim.terms;
        let key = terms.key;
        let mut record = self.record(key, now);
        if let Some(standing) = record.standing(from) {
            return self.taken(&record, &standing, now);
        }
        let instance = terms.instance;
        let late = record.given_up(from, instance, claim.seq)
            || record
                .grant
                .as_ref()
                .is_some_and(|grant| grant.instance == instance && grant.seq > claim.seq);
        if late {
            return Answer::Refused(Refusal::Late);
        }
        let clone = match self.instances(&mut record, claim, now) {
            Ok(clone) => clone,
            Err(refusal) => {
                self.keep(key, record);
                return Answer::Refused(refusal);
            }
        };
        if flawed {
            return Answer::Refused(Refusal::BadProof);
        }
        let certified = record.certificate_of(from).is_some();
        let asked = Duration::from_millis(claim.ttl_ms.into());
        let leases_home = terms.is_home() && asked > self.config.timings.first_ttl;
        if leases_home && let Some(until) = record.full_until(from, terms.leased) {
            self.stats.over_quota += 1;
            let wait_ms = millis(until.saturating_duration_since(now.instant));
            return Answer::Refused(Refusal::Moved { wait_ms });
        }
        if record.grant.is_none() && !self.has_room(from, key, terms.leased.kind()) {
            self.stats.over_bound += 1;
            return Answer::Refused(Refusal::Busy);
        }
        let most = if certified || leases_home {
            self.config.timings.ttl
        } else {
            self.config.timings.first_ttl
        };
        let ttl = asked.min(most);
        if leases_home {
            record.lives_at(from, terms.leased, now.instant + ttl, ttl);
        }
        self.grant(record, claim, ttl, certified, clone, now)
    }

    /// Persists the grant, then signs for it.
    fn grant(
        &mut self,
        mut record: Record,
        claim: &Claim,
        ttl: Duration,
        certified: bool,
        clone: Option<Instance>,
        now: Now,
    ) -> Answer {
        let terms = &claim.terms;
        let until = now.instant + ttl;
        let (until, ttl_kept) = match &record.grant {
            Some(grant) if grant.until > until => (grant.until, grant.ttl.max(ttl)),
            _ => (until, ttl),
        };
        // Rising also where the store with the last one was lost.
        let number = (self.number + 1).max(now.wall.0);
        let grant = Grant {
            holder: terms.holder,
            leased: terms.leased,
            name: terms.name.clone(),
            instance: terms.instance,
            seq: claim.seq,
            number,
            until,
            ttl: ttl_kept,
            certified: certified || record.grant.as_ref().is_some_and(|grant| grant.certified),
        };
        let changes = [
            put(Table::Grants, &terms.key.0, encode(&GrantRow::of(&grant, now))),
            put(Table::Meta, NUMBER_ROW, number.to_be_bytes().to_vec()),
        ];
        if self.persist(&changes).is_err() {
            return Answer::Unready;
        }
        self.number = number;
        record.grant = Some(grant);
        record.hearsay = None;
        record.forget_release(terms.holder, terms.instance);
        self.records.insert(terms.key, record);
        let members = self.members.count(now.instant);
        let receipt = Receipt::sign(&self.keys, terms, number, now.wall, ttl, members);
        let credential = claim.want_credential.then(|| self.keys.credential());
        Answer::Granted {
            receipt,
            credential,
            clone,
        }
    }

    /// Who claims, and whether it may claim this at all.
    fn claimant(&mut self, from: PeerId, claim: &Claim, now: Now) -> Result<(), Box<Answer>> {
        let terms = &claim.terms;
        if !terms.leased.is_of(&self.config.pool) {
            let leased = terms.leased;
            return Err(Box::new(Answer::Refused(Refusal::OutOfRange { leased })));
        }
        if let Some(credential) = &claim.credential {
            self.learn(credential, now);
        }
        let Some(member) = self.member(from, now) else {
            return Err(Box::new(match claim.credential {
                Some(_) => Answer::Refused(Refusal::BadCredential),
                None => Answer::NeedCredentials,
            }));
        };
        if member.node != terms.name {
            self.stats.bad_credentials += 1;
            return Err(Box::new(Answer::Refused(Refusal::BadCredential)));
        }
        let rule = self.config.quorum;
        let whole = self.named.is_on() || self.is_small(now);
        if !whole && !self.members.is_among(terms.key.position(), rule.reach) {
            self.stats.too_far += 1;
            return Err(Box::new(Answer::Refused(Refusal::TooFar)));
        }
        Ok(())
    }

    fn claimants_proof(&mut self, claim: &Claim, now: Now) -> Result<Option<(Certificate, Duration)>, Flaw> {
        let Some(proof) = &claim.proof else {
            return Ok(None);
        };
        let terms = &proof.certificate.terms;
        if terms.holder != claim.terms.holder || terms.key != claim.terms.key {
            return Err(Flaw::Invalid);
        }
        let life = self.check(proof, now)?;
        Ok(Some((proof.certificate.clone(), life)))
    }

    /// Whether a long claim of an address, or of a prefix, shows that its holder has leased its name with it.
    fn claimants_home(&mut self, claim: &Claim, now: Now) -> Result<bool, Flaw> {
        let first_ttl = self.config.timings.first_ttl;
        if claim.terms.is_home() || claim.ttl_ms <= millis(first_ttl) {
            return Ok(true);
        }
        let Some(proof) = &claim.home else {
            return Ok(false);
        };
        let terms = &proof.certificate.terms;
        let same = terms.holder == claim.terms.holder
            && terms.leased == claim.terms.leased
            && terms.name == claim.terms.name
            && terms.is_home();
        let asked = Duration::from_millis(claim.ttl_ms.into()).min(self.config.timings.ttl);
        if !same || proof.certificate.ttl() < asked {
            return Ok(false);
        }
        self.check(proof, now).map(|_| true)
    }

    fn taken(&mut self, record: &Record, standing: &Standing, now: Now) -> Answer {
        let certificate = record
            .certificate_of(standing.holder)
            .map(|seen| seen.certificate.clone());
        Answer::Refused(Refusal::Taken {
            holder: standing.holder,
            remaining_ms: millis(standing.until.saturating_duration_since(now.instant)),
            certified: standing.certified,
            proof: certificate.map(|certificate| Box::new(self.proof_of(certificate))),
        })
    }

    /// Tells restarts from clones. The refused clone of which the claimant is to be told, if it is granted.
    fn instances(
        &mut self,
        record: &mut Record,
        claim: &Claim,
        now: Now,
    ) -> Result<Option<Instance>, Refusal> {
        let instance = claim.terms.instance;
        let Some((current, certified)) = record.current(claim.terms.holder) else {
            return Ok(None);
        };
        if current == instance {
            if let Some(probation) = record.probation.take()
                && certified
            {
                record.refuse_clone(probation.instance);
                self.stats.clones += 1;
            }
            return Ok(record.clones.last().copied());
        }
        if record.superseded.contains(&instance) || record.clones.contains(&instance) {
            self.stats.clones += 1;
            return Err(Refusal::Cloned { current });
        }
        let waited = match &record.probation {
            Some(probation) if probation.instance == instance => {
                now.instant.saturating_duration_since(probation.since)
            }
            _ => {
                record.probation = Some(crate::record::Probation {
                    instance,
                    since: now.instant,
                });
                self.challenge(claim.terms.key, claim.terms.holder, instance, current, now);
                Duration::ZERO
            }
        };
        let left = self.config.timings.probation.saturating_sub(waited);
        if !left.is_zero() {
            let wait_ms = millis(left);
            return Err(Refusal::Restarting { wait_ms });
        }
        record.supersede(current);
        Ok(None)
    }

    fn challenge(&mut self, key: Key, holder: PeerId, later: Instance, current: Instance, now: Now) {
        let request = Request::Challenge { instance: current };
        self.ask(holder, &request, Purpose::Challenge { key, current }, now);
        self.gossip(&Gossip::Restarting {
            holder,
            instance: later,
        });
    }

    /// The earlier instance of a holder has answered: it lives.
    pub(crate) fn challenge_answered(
        &mut self,
        key: Key,
        holder: PeerId,
        current: Instance,
        alive: Instance,
    ) {
        if alive != current {
            return;
        }
        let Some(record) = self.records.get_mut(&key) else {
            return;
        };
        let lives = record.current(holder) == Some((current, true));
        if lives && let Some(probation) = record.probation.take() {
            record.refuse_clone(probation.instance);
            self.stats.clones += 1;
        }
    }

    pub(crate) fn released(
        &mut self,
        from: PeerId,
        key: Key,
        instance: Instance,
        (seq, held): (u64, bool),
        now: Now,
    ) -> Answer {
        let mut record = self.record(key, now);
        let grant = record.grant.as_ref().filter(|grant| grant.holder == from);
        if grant.is_some_and(|grant| grant.instance != instance || grant.seq > seq) {
            return Answer::Done;
        }
        // One that an earlier instance got is of the same lease, if this one took that over and held it: it may last longer
        // than this one's, which may not have come yet. A claim that fell short gives up nothing that was held before.
        let continued = held && grant.is_some();
        let given_up = |seen: &Seen| {
            let terms = &seen.certificate.terms;
            terms.holder == from && (terms.instance == instance || continued)
        };
        let since = record.seen.as_ref().filter(|seen| given_up(seen));
        let since = since.map(|seen| seen.certificate.since());
        if self.has_room_for_release(from, key) {
            // As long as certificates of the lease may be about, and handed over by who has not heard of the release.
            record.give_up(Released {
                holder: from,
                instance,
                seq,
                since,
                until: now.instant + self.config.timings.ttl,
            });
        } else {
            self.stats.over_bound += 1;
        }
        record.hearsay.take_if(|hearsay| hearsay.holder == from);
        let mut changes = Vec::new();
        if record.grant.take_if(|grant| grant.holder == from).is_some() {
            record.probation = None;
            changes.push(remove(Table::Grants, &key.0));
        }
        if record.seen.take_if(|seen| given_up(seen)).is_some() {
            changes.push(remove(Table::Certificates, &key.0));
        }
        self.keep(key, record);
        // A release that was not written only makes the key free later, after a restart.
        if self.persist(&changes).is_err() {
            let has = |table| changes.iter().any(|change| change.table == table);
            self.note_stale(key, has(Table::Grants), has(Table::Certificates));
        }
        Answer::Done
    }

    /// Takes over a certificate that was found valid for `life` yet. Between two of different holders the order
    /// decides, and the loser is told.
    pub(crate) fn take_certificate(&mut self, certificate: Certificate, life: Duration, now: Now) {
        let key = certificate.terms.key;
        let mut until = now.instant + life;
        let mut record = self.record(key, now);
        // What its holder gave up takes nothing from the next one, whoever shows it.
        if record.has_given_up(&certificate) {
            return;
        }
        self.conflict_with_own(&certificate, now);
        let terms = &certificate.terms;
        if record.given_up(terms.holder, terms.instance, 0) {
            return;
        }
        if record.is_empty() && self.records.len() >= MAX_KEYS {
            self.stats.over_bound += 1;
            return;
        }
        if let Some(seen) = &record.seen {
            if seen.certificate.terms.holder != certificate.terms.holder {
                self.stats.conflicts += 1;
                if seen.certificate.beats(&certificate) {
                    let winner = seen.clone();
                    self.tell_loser(certificate.terms.holder, &winner, now);
                    return;
                }
                let winner = Seen {
                    certificate: certificate.clone(),
                    until,
                };
                self.tell_loser(seen.certificate.terms.holder, &winner, now);
                // Those that were offered the loser's may have no other.
                record.offered.clear();
                self.schedule_handover(now);
            } else if seen.certificate.receipts.len() < certificate.receipts.len()
                && self.outgrown(&seen.certificate, now)
                || seen.certificate.terms.instance != certificate.terms.instance
                    && certificate.order(&seen.certificate) == Ordering::Greater
            {
                // The grid has outgrown the one that was offered to others, or a later start of the holder has taken the
                // lease over and is the one to give it back. The lease is the same, and lasts as long.
                until = until.max(seen.until);
                record.offered.clear();
                self.schedule_handover(now);
            } else if seen.until >= until {
                return;
            }
        }
        let terms = &certificate.terms;
        if terms.is_home() && certificate.ttl() > self.config.timings.first_ttl {
            record.lives_at(terms.holder, terms.leased, until, certificate.ttl());
        }
        let seen = Seen { certificate, until };
        let proof = self.proof_of(seen.certificate.clone());
        let row = encode(&SeenRow::of(&seen, proof, now));
        // The grants are what safety rests on.
        self.persist_soon(put(Table::Certificates, &key.0, row));
        record.seen = Some(seen);
        self.records.insert(key, record);
    }

    fn tell_loser(&mut self, loser: PeerId, winner: &Seen, now: Now) {
        if loser == self.me {
            let certificate = winner.certificate.clone();
            self.conflict_with_own(&certificate, now);
            return;
        }
        let handed = self.handed(winner, now);
        self.ask(loser, &Request::Conflict(Box::new(handed)), Purpose::Nothing, now);
    }

    fn has_room(&self, holder: PeerId, key: Key, kind: Kind) -> bool {
        let grants = || self.records.values().filter_map(|record| record.grant.as_ref());
        let of_holder = || grants().filter(|grant| grant.holder == holder);
        let of_kind = of_holder().filter(|grant| grant.leased.kind() == kind).count();
        of_holder().count() < MAX_KEYS_PER_HOLDER
            && (kind == Kind::Addr || of_kind < MAX_PREFIX_KEYS_PER_HOLDER)
            && (self.records.len() < MAX_KEYS || self.records.contains_key(&key))
    }

    /// A release that is not remembered still frees the key: at worst it is blocked once more by what comes late.
    fn has_room_for_release(&self, holder: PeerId, key: Key) -> bool {
        let of_holder = |record: &Record| record.released.iter().any(|released| released.holder == holder);
        let others = self.records.iter().filter(|(of, _)| **of != key);
        others.filter(|(_, record)| of_holder(record)).count() < MAX_KEYS_PER_HOLDER
            && (self.records.len() < MAX_KEYS || self.records.contains_key(&key))
    }

    pub(crate) fn keep(&mut self, key: Key, record: Record) {
        if record.is_empty() {
            self.records.remove(&key);
        } else {
            self.records.insert(key, record);
        }
    }
}

pub(crate) fn put(table: Table, key: &[u8], value: Vec<u8>) -> Change {
    Change {
        table,
        key: key.to_vec(),
        value: Some(value),
    }
}

pub(crate) fn remove(table: Table, key: &[u8]) -> Change {
    Change {
        table,
        key: key.to_vec(),
        value: None,
    }
}
