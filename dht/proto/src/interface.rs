//! What goes into the register and what comes out of it.

use std::collections::BTreeMap;
use std::time::Instant;

use aerie_types::{AddressPool, GridId, Instance, Key, NodeName, PeerId, Role, VirtualRange};

use crate::QuorumRule;
use crate::holder::{Failure, HeldLease, LostReason};
use crate::lease::Certificate;
use crate::leased::{Kind, Leased};
use crate::limits::Timings;
use crate::record::Seen;

/// What a register is given at its start.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// The grid.
    pub grid: GridId,
    /// The grid's virtual addresses.
    pub pool: AddressPool,
    /// This node founds the grid: it may claim before it knows anybody. For the first start of the first node.
    pub founder: bool,
    /// When things happen.
    pub timings: Timings,
    /// The names of the members that vote, in strict mode: three to five of them. None for the rule of the closest.
    pub witnesses: Vec<NodeName>,
    /// Who votes, and how many votes make a certificate.
    pub quorum: QuorumRule,
    /// The role that publishers of a set must have. In a set without an entry every member may publish.
    pub set_roles: BTreeMap<String, Role>,
    /// A rule that is left out, to show that this is found.
    #[cfg(feature = "weaken")]
    pub weaken: Option<crate::Weaken>,
}

impl Config {
    /// The defaults: not the founder, the design's times, and managers alone in the managers set.
    #[must_use]
    pub fn new(grid: GridId, range: VirtualRange) -> Self {
        Self {
            grid,
            pool: range.into(),
            founder: false,
            timings: Timings::default(),
            witnesses: Vec::new(),
            quorum: QuorumRule::default(),
            set_roles: BTreeMap::from([("managers".to_owned(), Role::Manager)]),
            #[cfg(feature = "weaken")]
            weaken: None,
        }
    }
}

/// What the driver tells the register.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// A member asks something. The answer has the same `id`.
    Request {
        /// Who asks, as the connection proves it.
        from: PeerId,
        /// The driver's own number for the request.
        id: u64,
        /// The request.
        bytes: Vec<u8>,
    },
    /// What became of an [`Output::Send`].
    Reply {
        /// The number of the request.
        id: u64,
        /// The answer.
        result: Result<Vec<u8>, SendError>,
    },
    /// What became of an [`Output::Locate`].
    Located {
        /// The number of the look-up.
        query: u64,
        /// The closest members, nearest first, without this node.
        peers: Vec<PeerId>,
    },
    /// A message to all members.
    Gossip {
        /// Its author, whose signature the overlay has checked.
        from: PeerId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// An admitted member is connected.
    MemberUp {
        /// The member.
        peer: PeerId,
    },
    /// A member's last connection has closed.
    MemberDown {
        /// The member.
        peer: PeerId,
    },
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SendError {
    /// The member could not be reached.
    #[error("the member could not be reached")]
    Unreachable,
    /// No answer came in time; the request may have been carried out.
    #[error("no answer came in time")]
    Timeout,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output {
    /// Answer a member's request.
    Answer {
        /// The number of the request.
        id: u64,
        /// The answer.
        bytes: Vec<u8>,
    },
    /// Ask a member.
    Send {
        /// Whom.
        to: PeerId,
        /// To be given back with the reply.
        id: u64,
        /// The request.
        bytes: Vec<u8>,
    },
    /// Find the members closest to a key's position.
    Locate {
        /// To be given back with the result.
        query: u64,
        /// The key.
        key: Key,
    },
    /// Tell all members.
    Gossip(Vec<u8>),
}

/// What the caller may want to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// This witness votes from now on.
    Ready,
    /// The claim has to wait: why, and what helps.
    Waiting {
        /// What is claimed.
        kind: Kind,
        /// The reason, for a person.
        reason: String,
    },
    /// An address or a prefix is held.
    Held(HeldLease),
    /// The lease was renewed.
    Renewed(HeldLease),
    /// It is held no longer.
    Lost {
        /// What was held or claimed.
        kind: Kind,
        /// Why it is not any more.
        reason: LostReason,
    },
    /// The claim failed, for a reason that waiting does not mend.
    Failed {
        /// What was claimed.
        kind: Kind,
        /// Why it is not to be had.
        failure: Failure,
    },
    /// A later instance of this node was refused: its disk was copied.
    CloneSeen {
        /// The other instance.
        instance: Instance,
    },
    /// The result of [`Register::look_up`].
    LookedUp {
        /// The number of the look-up.
        id: u64,
        /// Who holds the key, if anybody does.
        found: Option<Found>,
    },
    /// A set has changed; read it with [`Register::set`].
    SetChanged {
        /// The set.
        set: String,
    },
    /// Everything that was held is given back, and as many witnesses as could be reached know it.
    Left,
}

/// The holder of a key, proved by a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Found {
    /// Who.
    pub holder: PeerId,
    /// What it has: for the key of a name the address that is leased with it, for that of a router the prefix.
    pub leased: Leased,
    /// Its name.
    pub name: NodeName,
    /// How long the lease lasts yet, by the clock of the witness that answered.
    pub remaining: std::time::Duration,
    /// The certificate.
    pub certificate: Certificate,
}

impl Found {
    pub(crate) fn of(seen: &Seen, now: Instant) -> Self {
        let terms = &seen.certificate.terms;
        Self {
            holder: terms.holder,
            leased: terms.leased,
            name: terms.name.clone(),
            remaining: seen.until.saturating_duration_since(now),
            certificate: seen.certificate.clone(),
        }
    }
}
