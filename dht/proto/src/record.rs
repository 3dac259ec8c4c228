//! What one witness knows of one key, and its rows in the store.

use std::time::{Duration, Instant};

use aerie_types::{Instance, Key, NodeName, PeerId, WallMillis};
use serde::{Deserialize, Serialize};

use crate::Now;
use crate::lease::{Certificate, Proof};
use crate::leased::Leased;
use crate::limits::{CLOCK_SKEW, MAX_INSTANCES, MAX_LEASES_PER_HOLDER};
use crate::members::Moved;
use crate::saved::Saved;

/// What a witness knows of a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    /// Its own word.
    pub(crate) grant: Option<Grant>,
    /// A valid certificate that it has seen.
    pub(crate) seen: Option<Seen>,
    /// What others told it while it was not ready.
    pub(crate) hearsay: Option<Hearsay>,
    /// Instances of the holder that a later one has replaced.
    pub(crate) superseded: Vec<Instance>,
    /// Later instances of the holder that came while the earlier one was alive.
    pub(crate) clones: Vec<Instance>,
    /// A later instance that waits whether the earlier one speaks up.
    pub(crate) probation: Option<Probation>,
    /// What was released, against claims and certificates that come after their release.
    pub(crate) released: Vec<Released>,
    /// Of a name, the addresses with which its holder has leased it, and of a router the prefixes, until those leases end,
    /// released or not.
    pub(crate) homes: Vec<Home>,
    /// Who was offered the certificate since it last lost its connection, but for those of whom the next handing over
    /// is still to hear that they lost theirs.
    pub(crate) offered: Offered,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Grant {
    pub(crate) holder: PeerId,
    pub(crate) leased: Leased,
    pub(crate) name: NodeName,
    pub(crate) instance: Instance,
    pub(crate) seq: u64,
    pub(crate) number: u64,
    pub(crate) until: Instant,
    pub(crate) ttl: Duration,
    /// Given on a certificate: the holder had a quorum.
    pub(crate) certified: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) certificate: Certificate,
    pub(crate) until: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Hearsay {
    pub(crate) holder: PeerId,
    pub(crate) until: Instant,
    pub(crate) certified: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Home {
    pub(crate) holder: PeerId,
    pub(crate) leased: Leased,
    pub(crate) until: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Probation {
    pub(crate) instance: Instance,
    pub(crate) since: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Released {
    pub(crate) holder: PeerId,
    pub(crate) instance: Instance,
    pub(crate) seq: u64,
    /// Since when the lease that was given up had been held, if its certificate was known: what tells it from one
    /// that the same instance took later.
    pub(crate) since: Option<WallMillis>,
    pub(crate) until: Instant,
}

/// Members, and whether all that matter are among them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Offered {
    /// In order.
    peers: Vec<PeerId>,
    around: Saved<Option<Around>>,
}

/// What saves a look at the members, most of whom are far from the key.
#[derive(Debug, Clone, Copy)]
struct Around {
    /// The key's place.
    position: Key,
    /// How far the farthest of all members is from it to whom the certificate was offered.
    farthest: Distance,
    /// All of the key's closest members were offered it, and the farthest of those is so far from it. Whoever comes or
    /// goes beyond that changes nothing.
    settled: Option<Distance>,
}

type Distance = [u8; 32];

impl Offered {
    pub(crate) fn has(&self, peer: PeerId) -> bool {
        self.peers.binary_search(&peer).is_ok()
    }

    /// The member at `place` was offered the certificate of the key at `position`.
    pub(crate) fn insert(&mut self, peer: PeerId, place: &Key, position: Key) {
        if let Err(at) = self.peers.binary_search(&peer) {
            self.peers.insert(at, peer);
        }
        let distance = position.distance(place);
        let around = self.around.0.get_or_insert(Around {
            position,
            farthest: distance,
            settled: None,
        });
        around.farthest = around.farthest.max(distance);
    }

    /// Forgets members, whose places are given with them.
    pub(crate) fn forget(&mut self, members: &[(PeerId, Key)]) {
        let Some(around) = &mut self.around.0 else {
            return;
        };
        for (peer, place) in members {
            if around.position.distance(place) <= around.farthest
                && let Ok(at) = self.peers.binary_search(peer)
            {
                self.peers.remove(at);
                around.settled = None;
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.peers.clear();
        self.around.0 = None;
    }

    /// All of the members closest to the key's place are among these, and the farthest of them is so far from it.
    pub(crate) fn settle(&mut self, position: Key, reach: Distance) {
        let around = self.around.0.get_or_insert(Around {
            position,
            farthest: [0; 32],
            settled: None,
        });
        around.settled = Some(reach);
    }

    /// Whether that was so, and nobody has come or gone among them since.
    pub(crate) fn is_settled(&mut self, moved: &Moved) -> bool {
        let Some(around) = &mut self.around.0 else {
            return false;
        };
        let unmoved = |settled: &Distance| {
            let beyond = |place| around.position.distance(place) > *settled;
            moved.places().is_some_and(|places| places.iter().all(beyond))
        };
        around.settled = around.settled.filter(unmoved);
        around.settled.is_some()
    }
}

/// Who stands in the way of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) holder: PeerId,
    pub(crate) until: Instant,
    pub(crate) certified: bool,
}

impl Record {
    /// Forgets what has ended. Whether the grant or the certificate, which are persisted, went.
    pub(crate) fn expire(&mut self, now: Instant) -> (bool, bool) {
        let grant = self.grant.take_if(|grant| grant.until <= now).is_some();
        let seen = self.seen.take_if(|seen| seen.until <= now).is_some();
        self.hearsay.take_if(|hearsay| hearsay.until <= now);
        self.released.retain(|released| released.until > now);
        self.homes.retain(|home| home.until > now);
        if self.grant.is_none() && self.seen.is_none() {
            self.probation = None;
            self.superseded.clear();
            self.clones.clear();
        }
        if self.seen.is_none() {
            self.offered.clear();
        }
        (grant, seen)
    }

    pub(crate) fn is_empty(&self) -> bool {
        let held = self.grant.is_some() || self.seen.is_some() || self.hearsay.is_some();
        !held && self.released.is_empty() && self.homes.is_empty()
    }

    /// Another holder than the claimant that has the key, if there is one. Call [`Self::expire`] first.
    pub(crate) fn standing(&self, claimant: PeerId) -> Option<Standing> {
        self.holders().find(|standing| standing.holder != claimant)
    }

    /// Who has the key, by certificate, by own grant, or by what others say.
    pub(crate) fn holders(&self) -> impl Iterator<Item = Standing> + '_ {
        let seen = self.seen.iter().map(|seen| Standing {
            holder: seen.certificate.terms.holder,
            until: seen.until,
            certified: true,
        });
        let grant = self.grant.iter().map(|grant| Standing {
            holder: grant.holder,
            until: grant.until,
            certified: grant.certified,
        });
        let hearsay = self.hearsay.iter().map(|hearsay| Standing {
            holder: hearsay.holder,
            until: hearsay.until,
            certified: hearsay.certified,
        });
        seen.chain(grant).chain(hearsay)
    }

    /// The instance of a holder that has the key here, and whether it had a quorum.
    pub(crate) fn current(&self, holder: PeerId) -> Option<(Instance, bool)> {
        let grant = self.grant.as_ref().filter(|grant| grant.holder == holder);
        let seen = self.certificate_of(holder);
        match (grant, seen) {
            (Some(grant), seen) => {
                let proved = seen.is_some_and(|seen| seen.certificate.terms.instance == grant.instance);
                Some((grant.instance, grant.certified || proved))
            }
            (None, Some(seen)) => Some((seen.certificate.terms.instance, true)),
            (None, None) => None,
        }
    }

    /// The valid certificate of this holder.
    pub(crate) fn certificate_of(&self, holder: PeerId) -> Option<&Seen> {
        self.seen
            .as_ref()
            .filter(|seen| seen.certificate.terms.holder == holder)
    }

    /// Whether a claim of this holder and instance was given up before it came.
    pub(crate) fn given_up(&self, holder: PeerId, instance: Instance, seq: u64) -> bool {
        let of = |released: &&Released| released.holder == holder && released.instance == instance;
        self.released
            .iter()
            .find(of)
            .is_some_and(|released| seq <= released.seq)
    }

    /// Whether a certificate is of a lease that was given up.
    pub(crate) fn has_given_up(&self, certificate: &Certificate) -> bool {
        let of = |released: &Released| {
            released.holder == certificate.terms.holder && released.since == Some(certificate.since())
        };
        self.released.iter().any(of)
    }

    pub(crate) fn give_up(&mut self, mut released: Released) {
        let before = self
            .released
            .iter()
            .find(|before| before.holder == released.holder && before.instance == released.instance);
        released.since = released.since.or(before.and_then(|before| before.since));
        self.forget_release(released.holder, released.instance);
        if self.released.len() >= MAX_INSTANCES {
            self.released.remove(0);
        }
        self.released.push(released);
    }

    /// Leases of the holder's other starts stay given up.
    pub(crate) fn forget_release(&mut self, holder: PeerId, instance: Instance) {
        self.released
            .retain(|released| released.holder != holder || released.instance != instance);
    }

    /// When this holder may lease the name with this: `None` if now. Call [`Self::expire`] first.
    pub(crate) fn full_until(&self, holder: PeerId, leased: Leased) -> Option<Instant> {
        let others = || {
            let of_holder = self.homes.iter().filter(|home| home.holder == holder);
            of_holder.filter(|home| home.leased != leased)
        };
        let first = others().map(|home| home.until).min();
        first.filter(|_| others().count() >= MAX_LEASES_PER_HOLDER)
    }

    /// This holder has leased the name with this, for `ttl`, until `end`.
    pub(crate) fn lives_at(&mut self, holder: PeerId, leased: Leased, end: Instant, ttl: Duration) {
        let until = end + counted_after(ttl);
        let same = |home: &Home| home.holder == holder && home.leased == leased;
        let until = self
            .homes
            .iter()
            .find(|home| same(home))
            .map_or(until, |home| home.until.max(until));
        self.homes.retain(|home| !same(home));
        if self.homes.len() >= MAX_HOMES {
            self.homes.remove(0);
        }
        self.homes.push(Home {
            holder,
            leased,
            until,
        });
    }

    pub(crate) fn supersede(&mut self, instance: Instance) {
        remember(&mut self.superseded, instance);
        self.probation = None;
    }

    pub(crate) fn refuse_clone(&mut self, instance: Instance) {
        remember(&mut self.clones, instance);
        self.probation = None;
    }
}

/// How long after the end of a certificate of the name, leased for `ttl`, what it names is counted: it can be leased
/// until then, as clocks are tolerated to be wrong, and for no longer than the name was.
pub(crate) fn counted_after(ttl: Duration) -> Duration {
    CLOCK_SKEW + ttl
}

/// Homes remembered of one name: of a few members that had it one after the other.
const MAX_HOMES: usize = 4 * MAX_LEASES_PER_HOLDER;

fn remember(list: &mut Vec<Instance>, instance: Instance) {
    if list.contains(&instance) {
        return;
    }
    if list.len() >= MAX_INSTANCES {
        list.remove(0);
    }
    list.push(instance);
}

/// A grant as it is stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct GrantRow {
    holder: PeerId,
    leased: Leased,
    name: NodeName,
    instance: Instance,
    seq: u64,
    number: u64,
    ttl_ms: u64,
    expires: WallMillis,
    certified: bool,
}

impl GrantRow {
    pub(crate) fn of(grant: &Grant, now: Now) -> Self {
        Self {
            holder: grant.holder,
            leased: grant.leased,
            name: grant.name.clone(),
            instance: grant.instance,
            seq: grant.seq,
            number: grant.number,
            ttl_ms: u64::try_from(grant.ttl.as_millis()).unwrap_or(u64::MAX),
            expires: now.wall.plus(grant.until.saturating_duration_since(now.instant)),
            certified: grant.certified,
        }
    }

    /// The grant, for as long as it may still have to be kept.
    pub(crate) fn into_grant(self, now: Now) -> Grant {
        let ttl = Duration::from_millis(self.ttl_ms);
        Grant {
            holder: self.holder,
            leased: self.leased,
            name: self.name,
            instance: self.instance,
            seq: self.seq,
            number: self.number,
            until: now.instant + rest(self.expires, ttl, now.wall),
            ttl,
            certified: self.certified,
        }
    }
}

/// A certificate as it is stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct SeenRow {
    pub(crate) proof: Proof,
    expires: WallMillis,
}

impl SeenRow {
    pub(crate) fn of(seen: &Seen, proof: Proof, now: Now) -> Self {
        let expires = now.wall.plus(seen.until.saturating_duration_since(now.instant));
        Self { proof, expires }
    }

    /// How long the certificate has to be honoured yet.
    pub(crate) fn rest(&self, now: WallMillis) -> Duration {
        rest(self.expires, self.proof.certificate.ttl(), now)
    }
}

/// How much of a life may be left after a restart. The monotonic clock does not survive one, and the wall clock may
/// have been set meanwhile by as much as is tolerated: a grant is rather kept too long than too short, though never
/// longer than its whole life.
fn rest(expires: WallMillis, ttl: Duration, now: WallMillis) -> Duration {
    expires.plus(CLOCK_SKEW).since(now).min(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_restart_a_grant_is_kept_too_long_rather_than_too_short() {
        let (minute, ttl) = (Duration::from_secs(60), Duration::from_secs(1800));
        let expires = WallMillis(10_000_000);
        assert_eq!(rest(expires, ttl, expires), CLOCK_SKEW);
        assert_eq!(rest(expires, ttl, WallMillis(0)), ttl);
        assert_eq!(rest(expires, minute, expires), minute);
        assert_eq!(rest(expires, ttl, expires.plus(CLOCK_SKEW)), Duration::ZERO);
    }
}
