//! Addresses by the part they play: virtual (inside the grid) or underlay (outside).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::ParseError;

/// An address inside a grid's virtual network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VirtualAddr(pub IpAddr);

impl VirtualAddr {
    /// The Grid Appliance's own name for the address: `C` and nine digits, the last three octets.
    ///
    /// `5.12.3.45` is `C012003045` (seed 004). `None` for IPv6, for which the scheme has no form.
    #[must_use]
    pub fn appliance_name(&self) -> Option<String> {
        match self.0 {
            IpAddr::V4(v4) => {
                let [_, b, c, d] = v4.octets();
                Some(format!("C{b:03}{c:03}{d:03}"))
            }
            IpAddr::V6(_) => None,
        }
    }

    /// The IPv4 address, if it is one.
    #[must_use]
    pub fn v4(&self) -> Option<Ipv4Addr> {
        match self.0 {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }
    }
}

impl fmt::Display for VirtualAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Ipv4Addr> for VirtualAddr {
    fn from(v4: Ipv4Addr) -> Self {
        Self(IpAddr::V4(v4))
    }
}

/// An address and port outside the virtual network: where a datagram of the tunnel comes from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnderlayAddr(pub SocketAddr);

/// Of addresses that stand for a connection: the prefix whose packets every router discards (RFC 6666), so that no
/// datagram can really come from there or go there.
const STREAMS: u128 = 0x0100 << 112;

impl UnderlayAddr {
    /// The address that stands for a connection of this host, by its number. It means nothing to any other host.
    #[must_use]
    pub fn of_stream(number: u64) -> Self {
        let ip = Ipv6Addr::from(STREAMS | u128::from(number));
        Self(SocketAddr::new(ip.into(), 0))
    }

    /// The number of the connection that the address stands for, where it stands for one.
    #[must_use]
    pub fn stream(self) -> Option<u64> {
        let SocketAddr::V6(v6) = self.0 else { return None };
        let bits = u128::from(*v6.ip());
        (bits >> 64 == STREAMS >> 64).then_some(bits as u64)
    }

    /// Whether it means something only within one network: private ranges, those of carriers' NATs, link-local and
    /// loopback addresses.
    #[must_use]
    pub fn is_private(self) -> bool {
        match self.0.ip() {
            IpAddr::V4(v4) => {
                let [a, b, ..] = v4.octets();
                let of_a_carrier = a == 100 && (64..128).contains(&b);
                v4.is_private() || v4.is_link_local() || v4.is_loopback() || of_a_carrier
            }
            IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_loopback(),
        }
    }
}

impl fmt::Display for UnderlayAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The range from which a grid gives its members virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VirtualRange(Ipv4Net);

impl VirtualRange {
    /// The default of a new grid: the upper half of the shared address space 100.64.0.0/10 (RFC 6598).
    pub const DEFAULT: &'static str = "100.96.0.0/11";

    /// A range from a network. Refused: longer than /29, shorter than /8, loopback, link-local, multicast.
    ///
    /// # Errors
    /// [`ParseError::Range`] with the reason.
    pub fn new(net: Ipv4Net) -> Result<Self, ParseError> {
        let refuse = |reason| {
            Err(ParseError::Range {
                range: net.to_string(),
                reason,
            })
        };
        if net.addr() != net.network() {
            return refuse("it has bits set behind its prefix; write the network's first address");
        }
        if net.prefix_len() > 29 {
            return refuse("it is too small; use a prefix of /29 or shorter");
        }
        if net.prefix_len() < 8 {
            return refuse("it is too large; use a prefix of /8 or longer");
        }
        let first = net.network();
        if first.is_loopback() || first.is_link_local() || first.is_multicast() || first.is_unspecified() {
            return refuse("it is reserved; use a private range such as 100.96.0.0/11 or 10.128.0.0/16");
        }
        Ok(Self(net))
    }

    /// The network.
    #[must_use]
    pub fn net(&self) -> Ipv4Net {
        self.0
    }

    /// The length of the prefix in bits.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether the address lies in the range.
    #[must_use]
    pub fn contains(&self, addr: VirtualAddr) -> bool {
        addr.v4().is_some_and(|v4| self.0.contains(&v4))
    }

    /// How many addresses members can have: all but the network's own and the broadcast address.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        (1 << (32 - self.0.prefix_len())) - 2
    }

    /// The address number `index` (modulo the capacity) that a member can have.
    #[must_use]
    pub fn nth(&self, index: u32) -> VirtualAddr {
        let base = u32::from(self.0.network());
        Ipv4Addr::from(base + 1 + index % self.capacity()).into()
    }
}

impl FromStr for VirtualRange {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let net: Ipv4Net = text.parse().map_err(|_| ParseError::Range {
            range: text.to_owned(),
            reason: "it is not IPv4 CIDR notation; write for example 100.96.0.0/11",
        })?;
        Self::new(net)
    }
}

impl TryFrom<String> for VirtualRange {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<VirtualRange> for String {
    fn from(range: VirtualRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for VirtualRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_grid_appliances_name() {
        let addr = VirtualAddr::from(Ipv4Addr::new(5, 12, 3, 45));
        assert_eq!(addr.appliance_name().as_deref(), Some("C012003045"));
    }

    #[test]
    fn a_range_never_gives_its_network_or_broadcast_address() {
        let range: VirtualRange = "10.1.2.0/29".parse().unwrap();
        let given: std::collections::BTreeSet<_> = (0..100).map(|i| range.nth(i).to_string()).collect();
        assert_eq!(given.len(), 6);
        assert!(!given.contains("10.1.2.0") && !given.contains("10.1.2.7"));
    }

    #[test]
    fn unusable_ranges_are_refused_with_the_reason() {
        for (text, reason) in [
            ("10.0.0.1/24", "behind its prefix"),
            ("10.0.0.0/30", "too small"),
            ("127.0.0.0/8", "reserved"),
            ("0.0.0.0/1", "too large"),
            ("ten", "CIDR"),
        ] {
            let message = text.parse::<VirtualRange>().unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
    }
}
