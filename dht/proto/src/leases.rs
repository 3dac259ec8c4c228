//! The witness's side: what was granted, and whether a claim may be granted.
//!
//! ```text
//!             claim of another holder: Held
//!               ┌────┐
//!   free ──▶ granted ◀── claim of the same start: renewed
//!     ▲        │  ◀───── claim of a start that knows this one: taken over, the older start is superseded
//!     └────────┘         claim of a superseded start, or of one that does not know this one: Cloned
//!   ran out or released
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aerie_types::{Instance, Key, NodeName, PeerId, WallMillis};

use crate::claimant::{FIRST_TTL, LEASE_TTL, RENEW_EVERY};
use crate::{Certificate, ClaimReq, Error, Refusal, Store, StoreError, StoredGrant, StoredLease};

/// How many keys are kept: two for each of 4096 members of a small world; about 8 KB each at most.
const MAX_LEASES: usize = 8192;

/// How many releases are remembered, each for as long as an echo of its certificate could count.
const MAX_RELEASED: usize = 4096;

/// How many earlier starts are remembered for a key.
const MAX_SUPERSEDED: usize = 16;

#[derive(Debug)]
struct Grant {
    stored: StoredGrant,
    until: Instant,
}

#[derive(Debug, Default)]
struct Lease {
    grant: Option<Grant>,
    certificate: Option<(Certificate, Instant)>,
}

/// What became of a certificate that was shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// It is kept.
    Kept,
    /// A newer one is known, or the lease was given back.
    Stale,
    /// Two holders have one; the loser is to be told the winner's.
    Conflict { loser: PeerId, winner: Box<Certificate> },
}

/// All keys of which this node is a witness.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<Key, Lease>,
    released: BTreeMap<Key, (PeerId, WallMillis, Instant)>,
}

impl Leases {
    /// Reads what was stored. A clock that went back does not prolong a lease beyond its ttl.
    pub(crate) fn load(stored: Vec<(Key, StoredLease)>, now: Instant, wall: WallMillis) -> Self {
        let mut leases = Self::default();
        for (key, lease) in stored.into_iter().take(MAX_LEASES) {
            let until = |end: WallMillis, ttl: Duration| now + end.since(wall).min(ttl);
            let grant = lease.grant.map(|stored| {
                let ttl = Duration::from_millis(stored.ttl_ms.into());
                Grant {
                    until: until(stored.granted.plus(ttl), ttl),
                    stored,
                }
            });
            let certificate = lease.certificate.and_then(|certificate| {
                let end = certificate.expires().ok()?;
                Some((certificate, until(end, LEASE_TTL)))
            });
            leases.leases.insert(key, Lease { grant, certificate });
        }
        leases
    }

    /// Whether the claim may have this key.
    pub(crate) fn judge(
        &self,
        key: &Key,
        claim: &ClaimReq,
        now: Instant,
        wall: WallMillis,
    ) -> Result<(), Refusal> {
        let Some(lease) = self.leases.get(key) else {
            return if self.leases.len() < MAX_LEASES {
                Ok(())
            } else {
                Err(Refusal::StoreFailed)
            };
        };
        let held = |holder: PeerId, name: &NodeName, until: Instant| Refusal::Held {
            key: *key,
            holder,
            name: name.clone(),
            remaining_ms: u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX),
        };
        let mut standing: Option<(Instance, WallMillis)> = None;
        if let Some((certificate, until)) = lease.certificate.as_ref().filter(|(_, until)| *until > now)
            && let Ok(body) = certificate.first()
        {
            if body.holder != claim.holder {
                return Err(held(body.holder, &body.name, *until));
            }
            standing = Some((body.instance, body.witness_time));
        }
        if let Some(grant) = lease.grant.as_ref().filter(|grant| grant.until > now) {
            let stored = &grant.stored;
            if stored.holder != claim.holder {
                return Err(held(stored.holder, &stored.name, grant.until));
            }
            if stored.superseded.contains(&claim.instance) {
                return Err(Refusal::Cloned);
            }
            if stored.instance == claim.instance && stored.round > claim.round {
                return Err(Refusal::NotYours);
            }
            standing = Some((stored.instance, stored.granted));
        }
        match standing {
            Some((instance, renewed)) => {
                let known = instance == claim.instance || claim.previous.contains(&instance);
                let silent = wall.since(renewed) > RENEW_EVERY * 2;
                if known || silent {
                    Ok(())
                } else {
                    Err(Refusal::Cloned)
                }
            }
            None => Ok(()),
        }
    }

    /// Grants a key and stores that. The grant's number.
    pub(crate) fn grant<S: Store>(
        &mut self,
        key: Key,
        claim: &ClaimReq,
        store: &mut S,
        (now, wall): (Instant, WallMillis),
    ) -> Result<u64, StoreError> {
        let lease = self.leases.entry(key).or_default();
        let old = lease.grant.as_ref().map(|grant| &grant.stored);
        let mut superseded = Vec::new();
        if let Some(old) = old.filter(|old| old.holder == claim.holder) {
            superseded.clone_from(&old.superseded);
            if old.instance != claim.instance {
                superseded.push(old.instance);
            }
        }
        superseded.extend(
            claim
                .previous
                .iter()
                .filter(|instance| **instance != claim.instance),
        );
        superseded.sort_unstable();
        superseded.dedup();
        superseded.truncate(MAX_SUPERSEDED);
        let ttl_ms = claim
            .ttl_ms
            .min(u32::try_from(LEASE_TTL.as_millis()).unwrap_or(u32::MAX));
        let stored = StoredGrant {
            holder: claim.holder,
            name: claim.name.clone(),
            addr: claim.addr,
            instance: claim.instance,
            superseded,
            round: claim.round,
            number: old.map_or(0, |old| old.number) + 1,
            granted: wall,
            ttl_ms,
        };
        let number = stored.number;
        let certificate = lease
            .certificate
            .as_ref()
            .map(|(certificate, _)| certificate.clone());
        let until = now + Duration::from_millis(ttl_ms.into());
        store.save(
            &key,
            &StoredLease {
                grant: Some(stored.clone()),
                certificate,
            },
        )?;
        lease.grant = Some(Grant { stored, until });
        if self
            .released
            .get(&key)
            .is_some_and(|(from, ..)| *from == claim.holder)
        {
            self.released.remove(&key);
        }
        Ok(number)
    }

    /// Gives a key back, if that is the holder's present wish and not a late echo.
    pub(crate) fn release<S: Store>(
        &mut self,
        key: &Key,
        (holder, instance, round): (PeerId, Instance, u64),
        store: &mut S,
        (now, wall): (Instant, WallMillis),
    ) -> Result<(), StoreError> {
        let Some(lease) = self.leases.get_mut(key) else {
            self.remember_release(key, holder, now, wall);
            return Ok(());
        };
        let mut confirmed = true;
        if let Some(grant) = &lease.grant {
            let stored = &grant.stored;
            if stored.holder != holder || stored.instance != instance || stored.round > round {
                return Ok(());
            }
            confirmed = Duration::from_millis(stored.ttl_ms.into()) > FIRST_TTL;
        }
        lease.grant = None;
        lease.certificate.take_if(|(certificate, _)| {
            certificate
                .first()
                .is_ok_and(|body| body.holder == holder && body.instance == instance)
        });
        if confirmed {
            self.remember_release(key, holder, now, wall);
        }
        let Some(lease) = self.leases.get_mut(key) else {
            return Ok(());
        };
        if lease.certificate.is_none() {
            self.leases.remove(key);
            return store.remove(key);
        }
        save(key, lease, store)
    }

    /// Messages overtake one another: the certificate of a lease may arrive after the lease was given back.
    fn remember_release(&mut self, key: &Key, holder: PeerId, now: Instant, wall: WallMillis) {
        if self.released.len() < MAX_RELEASED || self.released.contains_key(key) {
            self.released.insert(*key, (holder, wall, now + LEASE_TTL));
        }
    }

    /// Keeps a certificate that was checked.
    pub(crate) fn show<S: Store>(
        &mut self,
        certificate: Certificate,
        store: &mut S,
        (now, wall): (Instant, WallMillis),
    ) -> Result<Shown, Error> {
        let body = certificate.first()?;
        let (key, holder, granted) = (body.key, body.holder, certificate.granted()?);
        if self
            .released
            .get(&key)
            .is_some_and(|(from, at, _)| *from == holder && granted <= *at)
        {
            return Ok(Shown::Stale);
        }
        let until = now + certificate.expires()?.since(wall).min(LEASE_TTL);
        let mut conflict = None;
        if let Some((old, _)) = self
            .leases
            .get(&key)
            .and_then(|lease| lease.certificate.as_ref())
            .filter(|(_, until)| *until > now)
        {
            let old_holder = old.first()?.holder;
            if old_holder == holder {
                if old.granted()? >= granted {
                    return Ok(Shown::Stale);
                }
            } else if old.beats(&certificate) {
                return Ok(Shown::Conflict {
                    loser: holder,
                    winner: Box::new(old.clone()),
                });
            } else {
                conflict = Some(old_holder);
            }
        }
        if !self.leases.contains_key(&key) && self.leases.len() >= MAX_LEASES {
            return Ok(Shown::Stale);
        }
        let lease = self.leases.entry(key).or_default();
        lease.certificate = Some((certificate.clone(), until));
        save(&key, lease, store)?;
        Ok(match conflict {
            Some(loser) => Shown::Conflict {
                loser,
                winner: Box::new(certificate),
            },
            None => Shown::Kept,
        })
    }

    /// The certificate of a key, with its remaining life.
    pub(crate) fn certificate(&self, key: &Key, now: Instant) -> Option<(&Certificate, Duration)> {
        let (certificate, until) = self.leases.get(key)?.certificate.as_ref()?;
        let remaining = until.saturating_duration_since(now);
        (!remaining.is_zero()).then_some((certificate, remaining))
    }

    /// The certificates after a key, in the order of their keys.
    pub(crate) fn after(
        &self,
        after: Option<Key>,
        now: Instant,
    ) -> impl Iterator<Item = (&Key, &Certificate)> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.leases
            .range((from, std::ops::Bound::Unbounded))
            .filter_map(move |(key, lease)| {
                let (certificate, until) = lease.certificate.as_ref()?;
                (*until > now).then_some((key, certificate))
            })
    }

    /// Forgets what has run out.
    pub(crate) fn expire<S: Store>(&mut self, store: &mut S, now: Instant) -> Result<(), StoreError> {
        self.released.retain(|_, (_, _, until)| *until > now);
        let mut gone = Vec::new();
        for (key, lease) in &mut self.leases {
            lease.grant.take_if(|grant| grant.until <= now);
            lease.certificate.take_if(|(_, until)| *until <= now);
            if lease.grant.is_none() && lease.certificate.is_none() {
                gone.push(*key);
            }
        }
        for key in gone {
            self.leases.remove(&key);
            store.remove(&key)?;
        }
        Ok(())
    }
}

fn save<S: Store>(key: &Key, lease: &Lease, store: &mut S) -> Result<(), StoreError> {
    let stored = StoredLease {
        grant: lease.grant.as_ref().map(|grant| grant.stored.clone()),
        certificate: lease
            .certificate
            .as_ref()
            .map(|(certificate, _)| certificate.clone()),
    };
    store.save(key, &stored)
}
