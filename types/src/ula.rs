//! The grid's own IPv6 prefix, and the addresses in it that follow from leased IPv4 addresses.
//!
//! ```text
//!  8 bits   40 bits       16 bits   64 bits
//! ┌──────┬─────────────┬─────────┬──────────────────────────┐
//! │  fd  │  global id  │ subnet  │  interface identifier    │   RFC 4193, 3.1
//! └──────┴─────────────┴─────────┴──────────────────────────┘
//!          of the grid    0        32 zeros, the IPv4 address
//! ```
//!
//! Who holds the IPv4 address holds the IPv6 address with it: there is nothing else to lease, to look up or to
//! prove. Subnets other than 0 are given to nobody.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use crate::{GridId, Key, VirtualAddr, VirtualRange};

/// Bytes before the IPv4 address: the prefix, subnet 0, and the upper half of the interface identifier.
const BEFORE_V4: usize = 12;

/// The unique local prefix of a grid, a /48 (RFC 4193).
///
/// The global id is made of the grid's id, so that every member knows it and two grids differ: RFC 4193, 3.2.1,
/// asks for a pseudo-random one, and a hash is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ula([u8; 6]);

impl Ula {
    /// The prefix of a grid.
    #[must_use]
    pub fn of(grid: GridId) -> Self {
        let Key(hash) = Key::of("aerie/ula", &[&grid.0]);
        let [a, b, c, d, e, ..] = hash;
        Self([0xfd, a, b, c, d, e])
    }

    /// The whole prefix, a /48.
    #[must_use]
    pub fn prefix(&self) -> Ipv6Net {
        self.net(48)
    }

    /// Subnet 0, a /64: where the addresses of nodes are.
    #[must_use]
    pub fn nodes(&self) -> Ipv6Net {
        self.net(Self::NODES_LEN)
    }

    /// The length of the prefix of [`Ula::nodes`] in bits.
    pub const NODES_LEN: u8 = 64;

    /// The IPv6 address of the node that holds an IPv4 address. `None` for an address that is not IPv4.
    #[must_use]
    pub fn addr(&self, addr: VirtualAddr) -> Option<Ipv6Addr> {
        let mut octets = self.octets();
        octets[BEFORE_V4..].copy_from_slice(&addr.v4()?.octets());
        Some(octets.into())
    }

    /// The IPv4 address from which an address was made; `None` for one that [`Ula::addr`] does not make.
    #[must_use]
    pub fn virtual_addr(&self, addr: Ipv6Addr) -> Option<VirtualAddr> {
        let octets = addr.octets();
        let (before, v4) = octets.split_at(BEFORE_V4);
        let v4 = <[u8; 4]>::try_from(v4).ok()?;
        (before == &self.octets()[..BEFORE_V4]).then(|| Ipv4Addr::from(v4).into())
    }

    /// Whether an address lies anywhere in the prefix.
    #[must_use]
    pub fn contains(&self, addr: Ipv6Addr) -> bool {
        addr.octets()[..6] == self.0
    }

    fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(&self.0);
        octets
    }

    fn net(&self, len: u8) -> Ipv6Net {
        Ipv6Net::new_assert(self.octets().into(), len)
    }
}

impl fmt::Display for Ula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.prefix().fmt(f)
    }
}

/// The addresses of a grid's virtual network, of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualNet {
    /// IPv4: what is leased.
    pub range: VirtualRange,
    /// IPv6: what follows from it.
    pub ula: Ula,
}

impl VirtualNet {
    /// The network of a grid with this range.
    #[must_use]
    pub fn new(grid: GridId, range: VirtualRange) -> Self {
        Self {
            range,
            ula: Ula::of(grid),
        }
    }

    /// The leased address that an address of either family stands for; `None` if no member can have it.
    #[must_use]
    pub fn leased(&self, ip: IpAddr) -> Option<VirtualAddr> {
        let addr = match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => self.ula.virtual_addr(v6)?,
        };
        self.range.contains(addr).then_some(addr)
    }

    /// Whether an address lies inside the virtual network, whether a member can have it or not.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(v4) => self.range.contains(v4.into()),
            IpAddr::V6(v6) => self.ula.contains(v6),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ula() -> Ula {
        Ula::of(GridId([9; 16]))
    }

    fn v6(addr: Ipv6Addr, change: impl FnOnce(&mut [u8; 16])) -> Ipv6Addr {
        let mut octets = addr.octets();
        change(&mut octets);
        octets.into()
    }

    #[test]
    fn a_prefix_is_unique_local_and_its_grids_own() {
        let text = ula().to_string();
        assert!(text.starts_with("fd") && text.ends_with("::/48"), "{text}");
        assert!(ula().prefix().addr().is_unique_local());
        assert_ne!(ula(), Ula::of(GridId([8; 16])));
        assert_eq!(ula().nodes().to_string(), text.replace("/48", "/64"));
    }

    /// Another prefix would be another network: members of one grid must agree in every version.
    #[test]
    fn the_prefix_of_a_grid_never_changes() {
        assert_eq!(ula().to_string(), "fd5d:9256:40dc::/48");
        let addr = ula().addr(Ipv4Addr::new(100, 64, 1, 2).into()).unwrap();
        assert_eq!(addr.to_string(), "fd5d:9256:40dc::6440:102");
    }

    #[test]
    fn an_address_elsewhere_stands_for_no_node() {
        let addr = ula().addr(Ipv4Addr::new(100, 96, 0, 1).into()).unwrap();
        assert!(ula().virtual_addr(addr).is_some());
        for (byte, place, inside) in [
            (0, "another network", false),
            (5, "another grid", false),
            (6, "another subnet", true),
            (7, "another subnet", true),
            (8, "another interface", true),
            (11, "another interface", true),
        ] {
            let other = v6(addr, |octets| octets[byte] ^= 1);
            assert_eq!(ula().virtual_addr(other), None, "{place}");
            assert_eq!(ula().contains(other), inside, "{place}");
        }
        let v6_only = VirtualAddr("2001:db8::1".parse().unwrap());
        assert_eq!(ula().addr(v6_only), None);
    }

    #[test]
    fn only_addresses_of_the_range_are_leased_in_either_family() {
        let net = VirtualNet::new(GridId([9; 16]), "100.96.0.0/11".parse().unwrap());
        let (inside, outside) = (Ipv4Addr::new(100, 96, 0, 1), Ipv4Addr::new(192, 0, 2, 1));
        let [inside6, outside6] = [inside, outside].map(|v4| net.ula.addr(v4.into()).unwrap());
        assert_eq!(net.leased(inside.into()), Some(inside.into()));
        assert_eq!(net.leased(inside6.into()), Some(inside.into()));
        assert_eq!(net.leased(outside.into()), None);
        assert_eq!(net.leased(outside6.into()), None);
        assert!(net.contains(outside6.into()) && !net.contains(outside.into()));
        assert!(!net.contains("2001:db8::1".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn an_address_reads_back(grid: [u8; 16], v4: [u8; 4]) {
            let ula = Ula::of(GridId(grid));
            let addr = VirtualAddr::from(Ipv4Addr::from(v4));
            let v6 = ula.addr(addr).unwrap();
            prop_assert_eq!(ula.virtual_addr(v6), Some(addr));
            prop_assert!(ula.nodes().contains(&v6) && ula.contains(v6));
        }

        #[test]
        fn an_address_that_is_read_is_the_one_that_is_made(tail: [u8; 10], grid: [u8; 16]) {
            let ula = Ula::of(GridId(grid));
            let v6 = v6(ula.prefix().addr(), |octets| octets[6..].copy_from_slice(&tail));
            let made = ula.virtual_addr(v6).map(|addr| ula.addr(addr).unwrap());
            prop_assert_eq!(made, (tail[..6] == [0; 6]).then_some(v6));
        }
    }
}
