//! Sets: what several members publish under one name, merged by union.
//!
//! ```text
//!             publish                               every 60 s, a higher number
//!  publisher ────────► entry, signed ──► the set's nine closest members ◄───────────┐
//!                          │                     │ read every 60 s                  │
//!                          └── gossip, when ─────┼──► watchers: union of entries ───┘
//!                              it changed        ▼    that nobody else could have signed
//!                                             readers
//! ```
//!
//! An entry is signed by its publisher and bound to the publisher's credential; where a set asks for a role, replicas
//! and readers alike refuse an entry of a publisher without it. Entries of one publisher are ordered by their sequence
//! numbers; every renewal has a higher one. An entry lives for its TTL from the moment this node *first* met that
//! sequence number, by this node's monotonic clock and no longer than the answering replica says, so that neither a
//! wrong clock nor a replica that repeats an old entry keeps a dead publisher alive. A withdrawal is an entry too, kept
//! until its end so that older ones do not come back. Changes are gossiped and seen within milliseconds; reading the
//! replicas is what a newcomer begins with, and the fallback.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aerie_types::{GridId, GroupName, Key, NodeName, PeerId, Roles};
use serde::{Deserialize, Serialize};

use crate::SendError;
use crate::lease::{millis, signed_message};
use crate::limits::{
    MAX_PUBLISHERS, MAX_SET_NAME, MAX_SET_TTL, MAX_SET_VALUE, MAX_SETS, MAX_SETS_PER_PUBLISHER,
};
use crate::members::sorted;
use crate::register::{Purpose, Wanted};
use crate::store::Store;
use crate::wire::{Answer, Gossip, ReadEntry, Request};
use crate::{Event, Keys, Now, Register, Signature};

/// How long the closest members of a set's key are taken for the same.
const LOCATED_FOR: Duration = Duration::from_secs(120);

/// Replicas read at once.
const READ_FROM: usize = 2;

/// Which part of the usual pause passes until sets are read after a member came.
const NUDGED: u32 = 4;

/// What a member publishes in a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Entry {
    grid: GridId,
    set: String,
    publisher: PeerId,
    seq: u64,
    ttl_ms: u32,
    /// `None` withdraws.
    value: Option<Vec<u8>>,
}

/// An entry with its publisher's signature.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct SignedEntry {
    entry: Entry,
    signature: Signature,
}

impl SignedEntry {
    fn sign(entry: Entry, keys: &impl Keys) -> Self {
        let signature = keys.sign(&signed_message("aerie set entry 1", &entry));
        Self { entry, signature }
    }

    fn verify(&self, keys: &impl Keys) -> bool {
        let message = signed_message("aerie set entry 1", &self.entry);
        keys.verify(self.entry.publisher, &message, &self.signature)
    }
}

/// An entry of a set as a reader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SetView {
    /// Who published it.
    pub publisher: PeerId,
    /// The publisher's name.
    pub node: NodeName,
    /// Its group.
    pub group: GroupName,
    /// What it may do.
    pub roles: Roles,
    /// What it published.
    pub value: Vec<u8>,
    /// How long the entry lives without being renewed.
    pub remaining: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stored {
    signed: SignedEntry,
    until: Instant,
    node: NodeName,
    group: GroupName,
    roles: Roles,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Own {
    value: Option<Vec<u8>>,
    seq: u64,
    renew_at: Option<Instant>,
}

/// The closest members of a set's key, as located last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Replicas {
    peers: Vec<PeerId>,
    located: Option<Instant>,
    put: bool,
    read: bool,
}

/// What this node knows of sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Sets {
    stored: BTreeMap<String, BTreeMap<PeerId, Stored>>,
    own: BTreeMap<String, Own>,
    watched: BTreeMap<String, Instant>,
    replicas: BTreeMap<String, Replicas>,
}

impl Sets {
    pub(crate) fn timeout(&self) -> Option<Instant> {
        let ends = self
            .stored
            .values()
            .flat_map(BTreeMap::values)
            .map(|stored| stored.until);
        let renewals = self.own.values().filter_map(|own| own.renew_at);
        ends.chain(renewals).chain(self.watched.values().copied()).min()
    }
}

/// The key of a set.
#[must_use]
pub fn set_key(grid: GridId, set: &str) -> Key {
    Key::of("aerie/set", &[&grid.0, set.as_bytes()])
}

/// Why an entry cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PublishError {
    /// The name or the value is too long.
    #[error(
        "a set's name has at most {MAX_SET_NAME} bytes and a value at most {MAX_SET_VALUE}; make it shorter"
    )]
    TooLong,
    /// This node publishes in too many sets.
    #[error("a node publishes in at most {MAX_SETS_PER_PUBLISHER} sets; withdraw from one first")]
    TooMany,
    /// This node's credential lacks the set's role.
    #[error("publishing in the set '{set}' takes the role {role}; have this node enrolled with it")]
    Role {
        /// The set.
        set: String,
        /// The role.
        role: aerie_types::Role,
    },
}

impl<S: Store, K: Keys> Register<S, K> {
    /// Publishes a value in a set, in the place of the one before, and keeps it alive.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was published then.
    pub fn publish(&mut self, set: &str, value: Vec<u8>, now: Now) -> Result<(), PublishError> {
        if set.len() > MAX_SET_NAME || value.len() > MAX_SET_VALUE {
            return Err(PublishError::TooLong);
        }
        if !self.sets.own.contains_key(set) && self.sets.own.len() >= MAX_SETS_PER_PUBLISHER {
            return Err(PublishError::TooMany);
        }
        if let Some(role) = self.config.set_roles.get(set).copied() {
            let credential = self.keys.credential();
            let own = self.keys.member(&credential, now.wall);
            if own.is_ok_and(|own| !own.roles.contains(role)) {
                let set = set.to_owned();
                return Err(PublishError::Role { set, role });
            }
        }
        self.announce(set, Some(value), now);
        Ok(())
    }

    /// Withdraws this node's entry.
    pub fn withdraw(&mut self, set: &str, now: Now) {
        if self.sets.own.contains_key(set) {
            self.announce(set, None, now);
        }
    }

    /// Keeps this node's view of a set fresh; changes come as [`Event::SetChanged`].
    pub fn watch(&mut self, set: &str, now: Now) {
        if set.len() <= MAX_SET_NAME && self.sets.watched.len() < MAX_SETS {
            self.sets.watched.entry(set.to_owned()).or_insert(now.instant);
            self.sets_due(now);
            self.settle(now);
        }
    }

    /// A set as this node knows it, in the order of its publishers.
    #[must_use]
    pub fn set(&self, set: &str, now: Now) -> Vec<SetView> {
        let stored = self.sets.stored.get(set).into_iter().flatten();
        stored
            .filter(|(_, stored)| stored.until > now.instant)
            .filter_map(|(publisher, stored)| {
                Some(SetView {
                    publisher: *publisher,
                    node: stored.node.clone(),
                    group: stored.group.clone(),
                    roles: stored.roles,
                    value: stored.signed.entry.value.clone()?,
                    remaining: stored.until - now.instant,
                })
            })
            .collect()
    }

    fn announce(&mut self, set: &str, value: Option<Vec<u8>>, now: Now) {
        let own = Own {
            value,
            seq: self.sets.own.get(set).map_or(0, |own| own.seq),
            renew_at: None,
        };
        self.sets.own.insert(set.to_owned(), own);
        if let Some(signed) = self.renew_entry(set, now) {
            let credential = self.keys.credential();
            self.gossip(&Gossip::Entry {
                entry: signed,
                credential,
            });
        }
        self.settle(now);
    }

    /// Signs the own entry anew and brings it to the replicas.
    fn renew_entry(&mut self, set: &str, now: Now) -> Option<SignedEntry> {
        let timings = &self.config.timings;
        let (ttl, renew) = (timings.set_ttl, timings.set_renew);
        let renew = self.draw.about(renew);
        let own = self.sets.own.get_mut(set)?;
        // By the wall clock, so that a restarted publisher goes on above what it published before.
        own.seq = (own.seq + 1).max(now.wall.0);
        own.renew_at = own.value.is_some().then(|| now.instant + renew);
        let entry = Entry {
            grid: self.config.grid,
            set: set.to_owned(),
            publisher: self.me,
            seq: own.seq,
            ttl_ms: millis(ttl),
            value: own.value.clone(),
        };
        let signed = SignedEntry::sign(entry, &self.keys);
        self.take_entry(&signed, None, ttl, now);
        self.with_replicas(set, true, now);
        Some(signed)
    }

    /// Puts or reads at the replicas, locating them first where need be.
    fn with_replicas(&mut self, set: &str, put: bool, now: Now) {
        let replicas = self.sets.replicas.entry(set.to_owned()).or_default();
        let fresh = replicas
            .located
            .is_some_and(|located| now.instant.saturating_duration_since(located) < LOCATED_FOR);
        if fresh {
            return if put {
                self.put_out(set, now)
            } else {
                self.read_out(set, now)
            };
        }
        let under_way = replicas.put || replicas.read;
        replicas.put |= put;
        replicas.read |= !put;
        if !under_way {
            let key = set_key(self.config.grid, set);
            self.locate(key, Wanted::Set(set.to_owned()), now);
        }
    }

    pub(crate) fn set_located(&mut self, set: &str, peers: &[PeerId], now: Now) {
        let me = self.me;
        let connected: Vec<PeerId> = self.members.connected().collect();
        let position = set_key(self.config.grid, set).position();
        let Some(replicas) = self.sets.replicas.get_mut(set) else {
            return;
        };
        let all = peers.iter().copied().chain(connected).filter(|peer| *peer != me);
        replicas.peers = sorted(all, position);
        replicas.peers.truncate(self.config.quorum.witnesses);
        // A view of a small grid changes quickly, and costs nothing to ask for again.
        replicas.located = (replicas.peers.len() == self.config.quorum.witnesses).then_some(now.instant);
        let (put, read) = (replicas.put, replicas.read);
        (replicas.put, replicas.read) = (false, false);
        if put {
            self.put_out(set, now);
        }
        if read {
            self.read_out(set, now);
        }
    }

    fn put_out(&mut self, set: &str, now: Now) {
        let stored = self
            .sets
            .stored
            .get(set)
            .and_then(|entries| entries.get(&self.me));
        let Some(entry) = stored.map(|stored| stored.signed.clone()) else {
            return;
        };
        let peers = self.sets.replicas.get(set).map(|replicas| replicas.peers.clone());
        for peer in peers.unwrap_or_default() {
            let request = Request::Put {
                entry: entry.clone(),
                credential: None,
            };
            self.ask(peer, &request, Purpose::Put { set: set.to_owned() }, now);
        }
    }

    fn read_out(&mut self, set: &str, now: Now) {
        let have: Vec<(PeerId, u64)> = self
            .sets
            .stored
            .get(set)
            .into_iter()
            .flatten()
            .map(|(publisher, stored)| (*publisher, stored.signed.entry.seq))
            .collect();
        let peers = self.sets.replicas.get(set).map(|replicas| replicas.peers.clone());
        let mut peers = peers.unwrap_or_default();
        for _ in 0..READ_FROM.min(peers.len()) {
            let at = usize::try_from(self.draw.next() % peers.len() as u64).unwrap_or(0);
            let peer = peers.swap_remove(at);
            let request = Request::Read {
                set: set.to_owned(),
                have: have.clone(),
            };
            self.ask(peer, &request, Purpose::Read { set: set.to_owned() }, now);
        }
    }

    pub(crate) fn put_here(
        &mut self,
        from: PeerId,
        signed: &SignedEntry,
        credential: Option<&[u8]>,
        now: Now,
    ) -> Answer {
        if signed.entry.publisher != from {
            self.stats.malformed += 1;
            return Answer::Malformed;
        }
        if let Some(credential) = credential {
            self.learn(credential, now);
        }
        if self.known_credential(from).is_none() {
            return Answer::NeedCredentials;
        }
        let known = self
            .sets
            .stored
            .get(&signed.entry.set)
            .and_then(|entries| entries.get(&from));
        if let Some(known) = known
            && known.signed.entry.seq > signed.entry.seq
        {
            let seq = known.signed.entry.seq;
            return Answer::Stale { seq };
        }
        self.take_entry(signed, None, MAX_SET_TTL, now);
        Answer::Done
    }

    pub(crate) fn put_answered(
        &mut self,
        set: &str,
        from: PeerId,
        answer: Result<Answer, SendError>,
        now: Now,
    ) {
        match answer {
            Ok(Answer::NeedCredentials) => {
                let stored = self
                    .sets
                    .stored
                    .get(set)
                    .and_then(|entries| entries.get(&self.me));
                if let Some(entry) = stored.map(|stored| stored.signed.clone()) {
                    let credential = Some(self.keys.credential());
                    self.ask(from, &Request::Put { entry, credential }, Purpose::Nothing, now);
                }
            }
            Ok(Answer::Stale { seq }) => {
                // This node's clock was set back since; it goes on above what it published then.
                if let Some(own) = self.sets.own.get_mut(set)
                    && own.seq < seq
                    && seq < u64::MAX / 2
                {
                    own.seq = seq;
                    self.renew_entry(set, now);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn read_here(&mut self, set: &str, have: &[(PeerId, u64)], now: Now) -> Answer {
        let have: BTreeMap<PeerId, u64> = have.iter().take(MAX_PUBLISHERS).copied().collect();
        let stored = self.sets.stored.get(set).into_iter().flatten();
        let entries = stored
            .filter(|(_, stored)| stored.until > now.instant)
            .filter(|(publisher, stored)| {
                have.get(publisher)
                    .is_none_or(|seq| *seq < stored.signed.entry.seq)
            })
            .filter_map(|(publisher, stored)| {
                Some(ReadEntry {
                    entry: stored.signed.clone(),
                    credential: self.known_credential(*publisher)?,
                    remaining_ms: millis(stored.until - now.instant),
                })
            })
            .collect();
        Answer::Entries(entries)
    }

    pub(crate) fn read_answered(&mut self, set: &str, answer: Result<Answer, SendError>, now: Now) {
        let Ok(Answer::Entries(entries)) = answer else {
            return;
        };
        for read in entries.iter().take(MAX_PUBLISHERS) {
            if read.entry.entry.set == set {
                let remaining = Duration::from_millis(read.remaining_ms.into());
                self.take_entry(&read.entry, Some(&read.credential), remaining, now);
            }
        }
    }

    pub(crate) fn entry_gossiped(&mut self, signed: &SignedEntry, credential: &[u8], now: Now) {
        self.take_entry(signed, Some(credential), MAX_SET_TTL, now);
    }

    /// Takes an entry over if it is newer, its publisher's own, and within the bounds.
    fn take_entry(&mut self, signed: &SignedEntry, credential: Option<&[u8]>, remaining: Duration, now: Now) {
        let entry = &signed.entry;
        let known = self
            .sets
            .stored
            .get(&entry.set)
            .and_then(|entries| entries.get(&entry.publisher));
        if known.is_some_and(|known| known.signed.entry.seq >= entry.seq) {
            return;
        }
        if let Some(credential) = credential {
            self.learn(credential, now);
        }
        let changed = known_value(&self.sets, entry) != Some(&entry.value);
        let Some(stored) = self.judge(signed, remaining, now) else {
            self.stats.bad_entries += 1;
            return;
        };
        let set = entry.set.clone();
        let entries = self.sets.stored.entry(set.clone()).or_default();
        entries.insert(entry.publisher, stored);
        if changed {
            self.event(Event::SetChanged { set });
        }
    }

    fn judge(&mut self, signed: &SignedEntry, remaining: Duration, now: Now) -> Option<Stored> {
        let entry = &signed.entry;
        let value = entry.value.as_ref().map_or(0, Vec::len);
        if entry.grid != self.config.grid || entry.set.len() > MAX_SET_NAME || value > MAX_SET_VALUE {
            return None;
        }
        let member = self.member(entry.publisher, now)?;
        let role = self.config.set_roles.get(&entry.set);
        if role.is_some_and(|role| !member.roles.contains(*role)) || !signed.verify(&self.keys) {
            return None;
        }
        if !self.sets.has_room(entry) {
            self.stats.over_bound += 1;
            return None;
        }
        let ttl = Duration::from_millis(entry.ttl_ms.into()).min(MAX_SET_TTL);
        Some(Stored {
            signed: signed.clone(),
            until: now.instant + ttl.min(remaining),
            node: member.node,
            group: member.group,
            roles: member.roles,
        })
    }

    /// A member has come, perhaps one of a whole side of a healed partition: soon, and once for all that come
    /// meanwhile, this node shows its own entries and reads what it watches.
    pub(crate) fn sets_nudged(&mut self, now: Now) {
        let pause = self.draw.about(self.config.timings.set_poll / NUDGED);
        let soon = now.instant + pause;
        let renewals = self.sets.own.values_mut().filter_map(|own| own.renew_at.as_mut());
        for at in self.sets.watched.values_mut().chain(renewals) {
            *at = soon.min(*at);
        }
    }

    pub(crate) fn sets_due(&mut self, now: Now) {
        let mut ended = Vec::new();
        for (set, entries) in &mut self.sets.stored {
            let before = entries
                .values()
                .filter(|stored| stored.signed.entry.value.is_some())
                .count();
            entries.retain(|_, stored| stored.until > now.instant);
            let after = entries
                .values()
                .filter(|stored| stored.signed.entry.value.is_some())
                .count();
            if before != after {
                ended.push(set.clone());
            }
        }
        self.sets.stored.retain(|_, entries| !entries.is_empty());
        for set in ended {
            self.event(Event::SetChanged { set });
        }
        let due = |at: &Instant| *at <= now.instant;
        let renew: Vec<String> = self
            .sets
            .own
            .iter()
            .filter(|(_, own)| own.renew_at.as_ref().is_some_and(due))
            .map(|(set, _)| set.clone())
            .collect();
        for set in renew {
            self.renew_entry(&set, now);
        }
        let read: Vec<String> = self
            .sets
            .watched
            .iter()
            .filter(|(_, at)| due(at))
            .map(|(set, _)| set.clone())
            .collect();
        for set in read {
            // A set that nobody can be asked about is asked about soon again.
            let timings = &self.config.timings;
            let pause = if self.members.any_connected() {
                timings.set_poll
            } else {
                timings.retry
            };
            let pause = self.draw.about(pause);
            self.sets.watched.insert(set.clone(), now.instant + pause);
            if self.members.any_connected() {
                self.with_replicas(&set, false, now);
            }
        }
    }
}

impl Sets {
    fn has_room(&self, entry: &Entry) -> bool {
        let entries = self.stored.get(&entry.set);
        if entries.is_some_and(|entries| entries.contains_key(&entry.publisher)) {
            return true;
        }
        let published = self
            .stored
            .values()
            .filter(|entries| entries.contains_key(&entry.publisher))
            .count();
        published < MAX_SETS_PER_PUBLISHER
            && match entries {
                Some(entries) => entries.len() < MAX_PUBLISHERS,
                None => self.stored.len() < MAX_SETS,
            }
    }
}

fn known_value<'a>(sets: &'a Sets, entry: &Entry) -> Option<&'a Option<Vec<u8>>> {
    let known = sets.stored.get(&entry.set)?.get(&entry.publisher)?;
    Some(&known.signed.entry.value)
}
