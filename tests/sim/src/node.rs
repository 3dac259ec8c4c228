//! One simulated node: a core of the shipping register, its clock, and what it told.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aerie_dht_proto::{AcquireRequest, Failure, HeldLease, Kind, LostReason, MemoryStore, Now, Register};
use aerie_types::{Key, VirtualAddr, VirtualPrefix, WallMillis};

use crate::kad::Contact;
use crate::keys::SimKeys;
use crate::overlay::Overlay;

/// The wall time at which every run begins, by a right clock.
const EPOCH: WallMillis = WallMillis(1_800_000_000_000);

/// How a node's clocks differ from the simulated time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// The wall clock's error, in milliseconds.
    pub skew_ms: i64,
    /// How much faster the monotonic clock runs, in millionths; negative where it is slower.
    pub drift_ppm: i64,
}

impl Clock {
    /// What the node's clocks show at a simulated time.
    pub(crate) fn at(self, base: Instant, time: Duration) -> Now {
        let local = self.local(time);
        let wall = EPOCH.plus(time).0.saturating_add_signed(self.skew_ms);
        Now {
            instant: base + local,
            wall: WallMillis(wall),
        }
    }

    /// The first simulated time at which the monotonic clock shows at least this instant.
    pub(crate) fn when(self, base: Instant, instant: Instant) -> Duration {
        self.simulated(instant.saturating_duration_since(base))
    }

    /// The first simulated time at which the monotonic clock shows at least this much since the start.
    pub(crate) fn simulated(self, local: Duration) -> Duration {
        let nanos = i128::try_from(local.as_nanos()).unwrap_or(i128::MAX / 2_000_000);
        let time = nanos * 1_000_000 / i128::from(1_000_000 + self.drift_ppm);
        Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX / 2)) + Duration::from_micros(1)
    }

    /// What the monotonic clock shows since the start.
    pub(crate) fn local(self, time: Duration) -> Duration {
        let nanos = i128::try_from(time.as_nanos()).unwrap_or(i128::MAX / 2_000_000);
        let local = nanos * i128::from(1_000_000 + self.drift_ppm) / 1_000_000;
        Duration::from_nanos(u64::try_from(local).unwrap_or(u64::MAX / 2))
    }
}

/// What a node has told of its lease last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Told {
    /// Nothing yet.
    #[default]
    Nothing,
    /// It waits, and why.
    Waiting(String),
    /// It holds an address, or a prefix.
    Held(Box<HeldLease>),
    /// It was refused.
    Failed(Failure),
    /// It lost its address for good.
    Lost(LostReason),
}

/// What a node wants and has of a prefix, as [`Node`] has it of its address.
#[derive(Debug, Default)]
pub struct Routed {
    /// What it told last.
    pub told: Told,
    /// How often it lost a prefix to another holder.
    pub conflicts: u32,
    pub(crate) request: Option<AcquireRequest>,
    pub(crate) turns: u64,
    /// Since when it has been without the prefix that another holder took.
    pub(crate) bereft: Option<Duration>,
    /// How long it took the last time until it had another one.
    pub moved: Option<Duration>,
    pub(crate) until: Duration,
}

impl Routed {
    /// Whether it is to have a prefix.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.request.is_some()
    }
}

/// A node of the simulated grid.
pub struct Node {
    /// Its number.
    pub index: usize,
    /// Its clocks.
    pub clock: Clock,
    /// The running core; `None` while it is down.
    pub core: Option<Register<MemoryStore, SimKeys>>,
    /// What it told last.
    pub told: Told,
    /// How often it lost an address to another holder.
    pub conflicts: u32,
    pub(crate) store: Option<MemoryStore>,
    /// Counts the starts, so that what belongs to an earlier one is dropped.
    pub(crate) start: u64,
    pub(crate) request: Option<AcquireRequest>,
    /// How often it was told what to claim or to leave, or lost a lease to one given up: what it held before is over.
    pub(crate) turns: u64,
    /// Its place in the key space.
    pub(crate) position: Key,
    /// Those nearest to it, to whom it keeps a connection.
    pub(crate) near: BTreeSet<usize>,
    /// Others to whom it has one.
    pub(crate) far: BTreeSet<usize>,
    /// Its connections.
    pub(crate) links: BTreeSet<usize>,
    /// Its connections as its core knows them.
    pub(crate) known_links: BTreeSet<usize>,
    /// When it came up last, and when it went down last.
    pub(crate) came: Duration,
    pub(crate) went: Duration,
    /// Until when it stands still.
    pub(crate) paused: Duration,
    /// Since when it has been asking for an address.
    pub(crate) asking: Option<Duration>,
    /// Since when it has been without the address that another holder took.
    pub(crate) bereft: Option<Duration>,
    /// How long it took the last time until it had another one.
    pub(crate) moved: Option<Duration>,
    /// When the lease that it told of last ends by its own reckoning.
    pub(crate) until: Duration,
    /// When its timer rings.
    pub(crate) timer: Option<Duration>,
    /// Its prefix, where it asked for one.
    pub routed: Routed,
    /// The node of which this one is a copy, or its copy.
    pub(crate) twin: Option<usize>,
    /// Its overlay, while it runs and Kademlia routes.
    pub(crate) overlay: Option<Box<Overlay>>,
    /// Whom it was connected to in an earlier run.
    pub(crate) remembered: Vec<Contact>,
    pub(crate) keys: SimKeys,
}

impl Node {
    /// Whether it runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }

    /// The lease of its address, valid or kept beyond its end.
    #[must_use]
    pub fn lease(&self) -> Option<HeldLease> {
        self.core.as_ref()?.lease(Kind::Addr)
    }

    /// How often its claim of a kind was changed.
    pub(crate) fn turns_of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Addr => self.turns,
            Kind::Prefix => self.routed.turns,
        }
    }

    /// All its leases.
    pub fn leases(&self) -> impl Iterator<Item = HeldLease> + '_ {
        let lease = |kind: Kind| self.core.as_ref()?.lease(kind);
        Kind::ALL.into_iter().filter_map(lease)
    }

    /// The address that it holds.
    #[must_use]
    pub fn addr(&self) -> Option<VirtualAddr> {
        self.lease()?.leased.addr()
    }

    /// The prefix that it holds.
    #[must_use]
    pub fn prefix(&self) -> Option<VirtualPrefix> {
        self.core.as_ref()?.lease(Kind::Prefix)?.leased.prefix()
    }
}
