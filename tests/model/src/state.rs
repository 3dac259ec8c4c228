//! The state of a world: cores, what is in flight between them, the time, and what may still go wrong.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use aerie_dht_proto::{Now, Register, SendError};
use aerie_sim::SimKeys;
use aerie_types::WallMillis;

use crate::disk::Disk;

/// The core that ships, over a disk of the model and keys of the simulator.
pub type Core = Register<Disk, SimKeys>;

/// Wall time at the beginning of every run.
const EPOCH: u64 = 1_800_000_000_000;

/// The instant from which all runs of this process count.
static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The clocks after so many milliseconds of virtual time; all nodes' clocks show the same.
pub(crate) fn clock(millis: u64) -> Now {
    Now {
        instant: *BASE + Duration::from_millis(millis),
        wall: WallMillis(EPOCH + millis),
    }
}

/// The first whole tenth of a second of virtual time at or after an instant. A timer may fire late, never early.
pub(crate) fn tick_at(instant: Instant) -> u64 {
    let millis = instant.saturating_duration_since(*BASE).as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX / 2) / 100 * 100 + 100
}

/// A lease that a node relies on, or relied on when it crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Held {
    /// Until when, by the holder's own reckoning.
    pub until: Instant,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The running core.
    pub core: Option<Core>,
    /// The disk of a node that is down.
    pub disk: Option<Disk>,
    /// Counts the starts.
    pub start: u8,
    /// Its lease of the contested address.
    pub held: Option<Held>,
    /// The number of its last claim among all nodes'. Where claims do not overlap, a lease of a higher number is a later
    /// one.
    pub tenure: u8,
    /// The number of the claim of the last certificate that it used.
    pub used: u8,
    /// Claims that it may yet make.
    pub claims: u8,
    /// Look-ups that it may yet make.
    pub look_ups: u8,
    pub(crate) digest: u64,
}

impl Slot {
    /// Computes the hash of what the next step depends on.
    pub(crate) fn seal(&mut self) {
        let mut hasher = DefaultHasher::new();
        self.core.is_some().hash(&mut hasher);
        if let Some(core) = &self.core {
            core.hash(&mut hasher);
        }
        self.disk.hash(&mut hasher);
        (
            self.start,
            self.held,
            self.tenure,
            self.used,
            self.claims,
            self.look_ups,
        )
            .hash(&mut hasher);
        self.digest = hasher.finish();
    }
}

/// A message in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub kind: &'static str,
    /// Who sent it.
    pub from: u8,
    /// To whom.
    pub to: u8,
    /// Whether it is about the contested key.
    pub contested: bool,
    /// Which start of the asker it belongs to.
    pub start: u8,
    /// The asker's number for it.
    pub id: u64,
    /// The request, or what became of it.
    pub body: Body,
    pub(crate) digest: u64,
}

/// A request or a reply.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Body {
    /// Asked of a member.
    Request(Vec<u8>),
    /// What became of a request.
    Reply(Result<Vec<u8>, SendError>),
}

impl Message {
    pub(crate) fn new(
        (kind, contested): (&'static str, bool),
        from: u8,
        to: u8,
        start: u8,
        id: u64,
        body: Body,
    ) -> Self {
        let mut hasher = DefaultHasher::new();
        (from, to, start, id, &body).hash(&mut hasher);
        Self {
            kind,
            from,
            to,
            contested,
            start,
            id,
            body,
            digest: hasher.finish(),
        }
    }

    /// Whether it is a reply.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        matches!(self.body, Body::Reply(_))
    }
}

/// How much may still go wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Messages that may be lost.
    pub losses: u8,
    /// Messages that may be delivered twice.
    pub doubles: u8,
    /// Steps of time while messages are in flight.
    pub late: u8,
    /// Crashes that leave the disk.
    pub crashes: u8,
    /// Crashes that lose the disk.
    pub amnesias: u8,
    /// Partitions.
    pub cuts: u8,
    /// Leases given back.
    pub releases: u8,
}

/// The state of a world.
#[derive(Debug, Clone)]
pub struct State {
    /// Virtual time, in milliseconds.
    pub now: u64,
    /// When the exploration ends.
    pub end: u64,
    /// The nodes.
    pub nodes: Vec<Arc<Slot>>,
    /// What is in flight, in the order of its hashes.
    pub flight: Vec<Arc<Message>>,
    /// What may still go wrong.
    pub budget: Budget,
    /// Whether the world is torn.
    pub torn: bool,
    /// Whether the exploration has begun.
    pub begun: bool,
    /// How many claims there were.
    pub tenures: u8,
    /// What must never be, and is.
    pub violation: Option<Arc<str>>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.now, self.budget, self.torn, self.begun, self.tenures).hash(state);
        self.violation.hash(state);
        for node in &self.nodes {
            node.digest.hash(state);
        }
        for message in &self.flight {
            message.digest.hash(state);
        }
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let fingerprint = |state: &Self| {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        fingerprint(self) == fingerprint(other)
    }
}
