//! What can be leased, and under which keys.
//!
//! An address and a prefix are leased by the same rules and have nothing to do with each other: a member may hold one of
//! each. Either has two keys. The first is that of the thing itself, so that it has one holder; the second that of the
//! holder, whose witnesses count what it has of the kind (see `witness`):
//!
//! | leased | its key | the holder's key |
//! |---|---|---|
//! | an address | [`addr_key`] | [`name_key`], by which the address is found too |
//! | a prefix | [`prefix_key`] | [`router_key`] |
//!
//! Two different prefixes of a grid never overlap, and no address that is leased lies in one, since the pool has all of
//! them in a part of its own and of one length: so a key alone says whether something is taken.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use aerie_types::{AddressPool, GridId, Key, NodeName, ParseError, PeerId, VirtualAddr, VirtualPrefix};
use serde::{Deserialize, Serialize};

/// The key of an address.
#[must_use]
pub fn addr_key(grid: GridId, addr: VirtualAddr) -> Key {
    Key::of("aerie/addr", &[&grid.0, addr.to_string().as_bytes()])
}

/// The key of a node's name, which is leased with its address.
#[must_use]
pub fn name_key(grid: GridId, name: &NodeName) -> Key {
    Key::of("aerie/name", &[&grid.0, name.as_str().as_bytes()])
}

/// The key of a prefix.
#[must_use]
pub fn prefix_key(grid: GridId, prefix: VirtualPrefix) -> Key {
    Key::of("aerie/prefix", &[&grid.0, prefix.to_string().as_bytes()])
}

/// The key of a node as a router, which is leased with its prefix.
#[must_use]
pub fn router_key(grid: GridId, name: &NodeName) -> Key {
    Key::of("aerie/router", &[&grid.0, name.as_str().as_bytes()])
}

/// The kinds of things that are leased. A node holds at most one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The node's own address.
    Addr,
    /// A block of addresses for what lies behind the node.
    Prefix,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Addr, Self::Prefix];

    /// The word for several of it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Addr => "addresses",
            Self::Prefix => "prefixes",
        }
    }

    /// The key under which what a node has of this kind is counted.
    #[must_use]
    pub fn home_key(self, grid: GridId, name: &NodeName) -> Key {
        match self {
            Self::Addr => name_key(grid, name),
            Self::Prefix => router_key(grid, name),
        }
    }

    /// How many of the kind the pool has to be drawn.
    pub(crate) fn count(self, pool: &AddressPool) -> u32 {
        match self {
            Self::Addr => pool.capacity(),
            Self::Prefix => pool.blocks(),
        }
    }

    /// The candidate of this number: first where a hash of the claimant points, then, from attempt `random` on, the
    /// ones behind it. `None` where the pool has nothing of the kind.
    pub(crate) fn candidate(
        self,
        pool: &AddressPool,
        me: PeerId,
        attempt: u32,
        random: u32,
    ) -> Option<Leased> {
        let context = match self {
            Self::Addr => "aerie/candidate",
            Self::Prefix => "aerie/candidate/prefix",
        };
        let hashed = attempt.min(random);
        let key = Key::of(context, &[&me.0, &hashed.to_be_bytes()]);
        let [a, b, c, d, ..] = key.0;
        let index = u32::from_be_bytes([a, b, c, d]).wrapping_add(attempt - hashed);
        match self {
            Self::Addr => Some(Leased::Addr(pool.nth(index))),
            Self::Prefix => pool.block(index).map(Leased::Prefix),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Addr => "address",
            Self::Prefix => "prefix",
        })
    }
}

/// What a lease is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub enum Leased {
    /// The holder's own address.
    Addr(VirtualAddr),
    /// A block of addresses for what lies behind the holder.
    Prefix(VirtualPrefix),
}

impl Leased {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Addr(_) => Kind::Addr,
            Self::Prefix(_) => Kind::Prefix,
        }
    }

    /// The address, if it is one.
    #[must_use]
    pub fn addr(&self) -> Option<VirtualAddr> {
        match self {
            Self::Addr(addr) => Some(*addr),
            Self::Prefix(_) => None,
        }
    }

    /// The prefix, if it is one.
    #[must_use]
    pub fn prefix(&self) -> Option<VirtualPrefix> {
        match self {
            Self::Addr(_) => None,
            Self::Prefix(prefix) => Some(*prefix),
        }
    }

    /// Its own key.
    #[must_use]
    pub fn key(&self, grid: GridId) -> Key {
        match self {
            Self::Addr(addr) => addr_key(grid, *addr),
            Self::Prefix(prefix) => prefix_key(grid, *prefix),
        }
    }

    /// The key under which it is counted for a holder of this name.
    #[must_use]
    pub fn home_key(&self, grid: GridId, name: &NodeName) -> Key {
        self.kind().home_key(grid, name)
    }

    /// Whether members may lease it out of this pool.
    pub(crate) fn is_of(&self, pool: &AddressPool) -> bool {
        match self {
            Self::Addr(addr) => pool.leases(*addr),
            Self::Prefix(prefix) => pool.leases_block(*prefix),
        }
    }
}

impl fmt::Display for Leased {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl From<VirtualAddr> for Leased {
    fn from(addr: VirtualAddr) -> Self {
        Self::Addr(addr)
    }
}

impl From<VirtualPrefix> for Leased {
    fn from(prefix: VirtualPrefix) -> Self {
        Self::Prefix(prefix)
    }
}

/// The form in messages and in the store. Addresses have the one that they had before there were prefixes, so that
/// neither messages nor rows about them differ between releases.
#[derive(Serialize, Deserialize)]
enum Form {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Prefix(Ipv4Addr, u8),
}

impl From<Leased> for Form {
    fn from(leased: Leased) -> Self {
        match leased {
            Leased::Addr(VirtualAddr(std::net::IpAddr::V4(v4))) => Self::V4(v4),
            Leased::Addr(VirtualAddr(std::net::IpAddr::V6(v6))) => Self::V6(v6),
            Leased::Prefix(prefix) => Self::Prefix(prefix.first(), prefix.prefix_len()),
        }
    }
}

impl TryFrom<Form> for Leased {
    type Error = ParseError;

    fn try_from(form: Form) -> Result<Self, ParseError> {
        Ok(match form {
            Form::V4(v4) => Self::Addr(v4.into()),
            Form::V6(v6) => Self::Addr(VirtualAddr(v6.into())),
            Form::Prefix(first, len) => Self::Prefix(VirtualPrefix::at(first, len)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_address_has_the_same_bytes_as_an_address_alone() {
        for addr in ["10.0.0.1", "fd00::1"] {
            let addr = VirtualAddr(addr.parse().unwrap());
            let bytes = postcard::to_stdvec(&addr).unwrap();
            assert_eq!(postcard::to_stdvec(&Leased::Addr(addr)).unwrap(), bytes);
            assert_eq!(postcard::from_bytes::<Leased>(&bytes).unwrap(), addr.into());
        }
    }

    #[test]
    fn a_prefix_reads_back_and_what_is_none_is_refused() {
        let prefix = Leased::Prefix("10.0.0.16/28".parse().unwrap());
        let bytes = postcard::to_stdvec(&prefix).unwrap();
        assert_eq!(bytes, [2, 10, 0, 0, 16, 28]);
        assert_eq!(postcard::from_bytes::<Leased>(&bytes).unwrap(), prefix);
        for bytes in [
            [2, 10, 0, 0, 17, 28],
            [2, 10, 0, 0, 16, 33],
            [2, 10, 0, 0, 16, 31],
        ] {
            assert!(postcard::from_bytes::<Leased>(&bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_keys_of_a_holder_and_of_what_it_holds_all_differ() {
        let grid = GridId([1; 16]);
        let name: NodeName = "w1".parse().unwrap();
        let (addr, prefix): (Leased, Leased) = (
            Leased::Addr(Ipv4Addr::new(10, 0, 0, 16).into()),
            Leased::Prefix("10.0.0.16/28".parse().unwrap()),
        );
        let longer = Leased::Prefix("10.0.0.16/29".parse().unwrap());
        let keys = [
            addr.key(grid),
            addr.home_key(grid, &name),
            prefix.key(grid),
            prefix.home_key(grid, &name),
            longer.key(grid),
        ];
        assert_eq!(BTreeSet::from(keys).len(), keys.len());
    }

    #[test]
    fn the_candidates_of_a_scan_are_all_that_the_pool_has() {
        let pool = AddressPool::from("10.0.0.0/24".parse::<aerie_types::VirtualRange>().unwrap());
        let pool = pool.with_routed("10.0.0.192/26".parse().unwrap(), 28).unwrap();
        for kind in Kind::ALL {
            let count = kind.count(&pool);
            let scan = (8..8 + count).map(|attempt| kind.candidate(&pool, PeerId([3; 32]), attempt, 8));
            let scan: BTreeSet<_> = scan.map(Option::unwrap).collect();
            assert_eq!(scan.len(), count as usize, "{kind}");
            assert!(
                scan.iter()
                    .all(|leased| leased.kind() == kind && leased.is_of(&pool))
            );
        }
    }
}
