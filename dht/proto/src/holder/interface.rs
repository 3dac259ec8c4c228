//! What the holder is asked for, and what it tells.

use std::time::{Duration, Instant};

use aerie_types::{NodeName, PeerId, Routed, VirtualAddr, VirtualPrefix, VirtualRange};

use super::FULL_RETRY;
use crate::lease::Certificate;
use crate::leased::{Kind, Leased};

/// What to claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AcquireRequest {
    /// The node's name, as its credential has it.
    pub name: NodeName,
    /// An address or a prefix, and which.
    pub want: Want,
}

impl AcquireRequest {
    /// Asks for this address, or for any.
    #[must_use]
    pub fn addr(name: NodeName, fixed: Option<VirtualAddr>) -> Self {
        let want = fixed.map_or(Want::Any(Kind::Addr), |addr| Want::This(addr.into()));
        Self { name, want }
    }

    /// Asks for this prefix, or for any.
    #[must_use]
    pub fn prefix(name: NodeName, fixed: Option<VirtualPrefix>) -> Self {
        let want = fixed.map_or(Want::Any(Kind::Prefix), |prefix| Want::This(prefix.into()));
        Self { name, want }
    }
}

/// Which of the things that are leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// One of this kind: the last that was held, if it is free.
    Any(Kind),
    /// This and no other.
    This(Leased),
}

impl Want {
    /// The kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Any(kind) => *kind,
            Self::This(leased) => leased.kind(),
        }
    }

    /// The only one that will do, if there is one.
    #[must_use]
    pub fn fixed(&self) -> Option<Leased> {
        match self {
            Self::Any(_) => None,
            Self::This(leased) => Some(*leased),
        }
    }
}

/// A lease that this node holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeldLease {
    /// The address or the prefix.
    pub leased: Leased,
    /// The name.
    pub name: NodeName,
    /// Until when the certificates are valid. What is leased is kept beyond that while no other holder shows up.
    pub until: Instant,
    /// The certificate of what is leased.
    pub certificate: Certificate,
    /// The certificate of the name: for a prefix that of the router of this name.
    pub name_certificate: Certificate,
}

/// Why a lease was lost.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LostReason {
    /// Another holder has an older certificate; a new address or prefix is being claimed.
    #[error(
        "{leased} was also leased to {winner} while the grid was torn apart, and its lease is older; this node is \
         taking a new {}", leased.kind()
    )]
    Conflict {
        /// What was lost.
        leased: Leased,
        /// Who keeps it.
        winner: PeerId,
    },
    /// Another instance of this node is alive. This one stops.
    #[error(
        "another running copy of this node holds its lease: its disk was copied, or it runs twice; stop one of \
         the two, or enrol this one anew with keys of its own"
    )]
    Cloned,
}

/// Why a claim failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// What was asked for and nothing else is another node's.
    #[error(
        "{leased} is leased to {holder} for {} s yet; ask for another {} or none, or stop that node",
        remaining.as_secs(), leased.kind()
    )]
    FixedTaken {
        /// The address or the prefix.
        leased: Leased,
        /// Who has it.
        holder: PeerId,
        /// For how long at least.
        remaining: Duration,
    },
    /// Others want the same at the same time, again and again.
    #[error("{leased} is being claimed by several nodes at once; give each of them one of its own")]
    FixedContended {
        /// The address or the prefix.
        leased: Leased,
    },
    /// The fixed address is not of the grid.
    #[error("{addr} is not in the grid's range {range}; ask for an address within it, or for none")]
    FixedOutside {
        /// The address.
        addr: VirtualAddr,
        /// The range.
        range: VirtualRange,
    },
    /// The fixed address is leased to nobody.
    #[error("{addr} is excluded from the addresses of the grid; ask for another, or for none")]
    FixedExcluded {
        /// The address.
        addr: VirtualAddr,
    },
    /// The fixed address is of the part that is leased in blocks.
    #[error(
        "{addr} is not leased alone, since the grid leases {routed} as prefixes; ask for another, or for none"
    )]
    FixedRouted {
        /// The address.
        addr: VirtualAddr,
        /// The blocks.
        routed: Routed,
    },
    /// The fixed prefix is none of the grid's blocks.
    #[error("{prefix} is not among {routed}, which are the grid's prefixes; ask for one of them, or for any")]
    NoSuchPrefix {
        /// The prefix.
        prefix: VirtualPrefix,
        /// The blocks.
        routed: Routed,
    },
    /// The fixed prefix is leased to nobody.
    #[error("a part of {prefix} is reserved or excluded in the grid; ask for another prefix, or for any")]
    PrefixClosed {
        /// The prefix.
        prefix: VirtualPrefix,
    },
    /// The grid has no prefixes.
    #[error(
        "the grid leases no prefixes: a part of its range is set aside for them when the grid is created, and not \
         while addresses of it are leased"
    )]
    NoPrefixes,
    /// No free address was found.
    #[error(
        "no address of {range} is free ({tried} tried); remove nodes that are not needed, or give the grid a \
         larger range. This is tried again every {} s",
        FULL_RETRY.as_secs()
    )]
    Full {
        /// The range.
        range: VirtualRange,
        /// How many addresses were tried.
        tried: u32,
    },
    /// No free prefix was found.
    #[error(
        "none of {routed} is free ({tried} tried); stop routers that are not needed, or set aside a larger part of \
         the grid's range. This is tried again every {} s",
        FULL_RETRY.as_secs()
    )]
    NoPrefixFree {
        /// The blocks.
        routed: Routed,
        /// How many of them were tried.
        tried: u32,
    },
}

impl Failure {
    /// Whether the claim goes on by itself after a while.
    #[must_use]
    pub fn is_retried(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoPrefixFree { .. })
    }
}
