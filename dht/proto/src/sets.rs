//! Sets: small signed entries that members publish about themselves.
//!
//! ```text
//!   absent ──publish──▶ listed ──ttl──▶ stale ──forget──▶ absent
//!                         └──withdraw──▶ stale
//! ```
//!
//! A stale entry is kept for a while so that an echo of it cannot bring it back. Sequence numbers are wall
//! milliseconds of the publisher, risen by at least one with every entry.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aerie_types::{GridId, GroupName, NodeName, PeerId, Role, Roles, WallMillis};
use serde::{Deserialize, Serialize};

use crate::receipt::signed;
use crate::{Error, Keys, Member, WireSet};

/// The longest name of a set, in bytes.
pub const MAX_SET_NAME: usize = 32;

/// The longest value of an entry, in bytes.
pub const MAX_SET_VALUE: usize = 1024;

/// How long an entry counts unless it is announced again.
pub const DEFAULT_SET_TTL: Duration = Duration::from_secs(60);

/// How many entries are kept: as many as members that could publish in a large grid (about 2 KB each).
const MAX_ENTRIES: usize = 4096;

/// How many sets one member may publish in, so that nobody fills the table alone.
const MAX_PER_PUBLISHER: usize = 8;

/// The longest life that an entry may ask for.
const MAX_TTL: Duration = Duration::from_secs(3600);

/// How far the publisher's clock may be off; also how long stale entries are remembered.
const SKEW: Duration = Duration::from_secs(300);

const CONTEXT: &str = "aerie dht set entry 1";

/// A publisher's entry in a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetEntry {
    /// The set's name.
    pub set: String,
    /// Who publishes.
    pub publisher: PeerId,
    /// What it says.
    pub value: Vec<u8>,
    /// Higher replaces lower.
    pub seq: u64,
    /// How long it counts.
    pub ttl_ms: u32,
    /// Whether it takes back what was said before.
    pub withdrawn: bool,
    /// The publisher's credential (DER).
    pub credential: Vec<u8>,
    /// The publisher's signature over all but credential and signature.
    pub signature: Vec<u8>,
}

/// An entry as readers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetView {
    /// Who published it.
    pub publisher: PeerId,
    /// The publisher's node name.
    pub node: NodeName,
    /// The publisher's group.
    pub group: GroupName,
    /// The publisher's roles.
    pub roles: Roles,
    /// What it says.
    pub value: Vec<u8>,
}

/// The role that a publisher in this set must have.
#[must_use]
pub fn required_role(set: &str) -> Option<Role> {
    match set {
        "managers" => Some(Role::Manager),
        "relays" => Some(Role::Relay),
        _ => None,
    }
}

impl SetEntry {
    /// Signs an entry.
    pub(crate) fn sign(mut self, grid: &GridId, keys: &dyn Keys) -> Result<Self, Error> {
        self.credential = keys.credential();
        self.signature = keys.sign(&self.to_sign(grid)?);
        Ok(self)
    }

    fn to_sign(&self, grid: &GridId) -> Result<Vec<u8>, Error> {
        signed(
            "set entry",
            CONTEXT,
            &(
                grid,
                &self.set,
                &self.publisher,
                &self.value,
                self.seq,
                self.ttl_ms,
                self.withdrawn,
            ),
        )
    }

    fn check(&self, grid: &GridId, keys: &dyn Keys, wall: WallMillis) -> Result<Member, Error> {
        if self.set.len() > MAX_SET_NAME || self.set.is_empty() {
            return Err(Error::Set(
                "its set's name has not 1 to 32 bytes; use a shorter one",
            ));
        }
        if self.value.len() > MAX_SET_VALUE {
            return Err(Error::Set("its value is longer than 1024 bytes; publish less"));
        }
        let ttl = self.ttl();
        if ttl > MAX_TTL || self.seq > wall.plus(SKEW).0 || WallMillis(self.seq).plus(ttl + SKEW) < wall {
            return Err(Error::Set(
                "it is not of this time; check the clocks of both nodes",
            ));
        }
        let member = keys
            .credential_peer(&self.credential, wall)
            .filter(|member| member.peer == self.publisher)
            .ok_or(Error::Set("its publisher has no valid credential"))?;
        if required_role(&self.set).is_some_and(|role| !member.roles.contains(role)) {
            return Err(Error::Set(
                "its publisher has not the role for it; enrol the node with that role",
            ));
        }
        if !keys.verify(&self.publisher, &self.to_sign(grid)?, &self.signature) {
            return Err(Error::Set("its signature is wrong"));
        }
        Ok(member)
    }

    fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms.into())
    }
}

#[derive(Debug)]
struct Kept {
    entry: SetEntry,
    member: Member,
    until: Instant,
    listed: bool,
}

/// The entries known.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    entries: BTreeMap<(String, PeerId), Kept>,
}

impl Sets {
    /// Takes an entry. `Ok(true)` if the set's readers see a change.
    pub(crate) fn accept(
        &mut self,
        entry: SetEntry,
        remaining: Option<Duration>,
        (grid, keys): (&GridId, &dyn Keys),
        (now, wall): (Instant, WallMillis),
    ) -> Result<bool, Error> {
        let slot = (entry.set.clone(), entry.publisher);
        let old = self.entries.get(&slot);
        if old.is_some_and(|kept| kept.entry.seq >= entry.seq) {
            return Ok(false);
        }
        if old.is_none() {
            let of_publisher = self
                .entries
                .keys()
                .filter(|(_, publisher)| *publisher == entry.publisher)
                .count();
            if self.entries.len() >= MAX_ENTRIES || of_publisher >= MAX_PER_PUBLISHER {
                return Err(Error::Set(
                    "there are too many entries already; withdraw unused ones",
                ));
            }
        }
        let member = entry.check(grid, keys, wall)?;
        let life = remaining.unwrap_or(MAX_TTL).min(entry.ttl());
        let listed = !entry.withdrawn && !life.is_zero();
        let changed = match old {
            Some(kept) => {
                kept.listed != listed
                    || (listed && (kept.entry.value != entry.value || kept.member != member))
            }
            None => listed,
        };
        self.entries.insert(
            slot,
            Kept {
                entry,
                member,
                until: now + life,
                listed,
            },
        );
        Ok(changed)
    }

    /// Drops what has run out; the sets whose readers see a change.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<String> {
        let mut changed = Vec::new();
        for ((set, _), kept) in &mut self.entries {
            if kept.listed && kept.until <= now {
                kept.listed = false;
                changed.push(set.clone());
            }
        }
        self.entries
            .retain(|_, kept| kept.until + kept.entry.ttl() + SKEW > now);
        changed.dedup();
        changed
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter(|kept| kept.listed)
            .map(|kept| kept.until)
            .min()
    }

    pub(crate) fn view(&self, set: &str) -> Vec<SetView> {
        let listed = self
            .entries
            .iter()
            .filter(|((name, _), kept)| name == set && kept.listed);
        let view = |(_, kept): (_, &Kept)| SetView {
            publisher: kept.member.peer,
            node: kept.member.node.clone(),
            group: kept.member.group.clone(),
            roles: kept.member.roles,
            value: kept.entry.value.clone(),
        };
        listed.map(view).collect()
    }

    /// The entries to tell another member, within so many bytes.
    pub(crate) fn told(&self, set: Option<&str>, now: Instant, mut room: usize) -> Vec<WireSet> {
        let mut told = Vec::new();
        for ((name, _), kept) in &self.entries {
            let remaining = kept.until.saturating_duration_since(now);
            if set.is_some_and(|set| set != name) || remaining.is_zero() {
                continue;
            }
            let remaining_ms = u32::try_from(remaining.as_millis()).unwrap_or(u32::MAX);
            let wire = WireSet {
                entry: kept.entry.clone(),
                remaining_ms,
            };
            let size = crate::wire::size_of(&wire);
            if size > room {
                break;
            }
            room -= size;
            told.push(wire);
        }
        told
    }
}
