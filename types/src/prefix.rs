//! Blocks of virtual addresses that one member has for what lies behind it.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{ParseError, VirtualAddr};

/// A block of addresses inside a grid's virtual network, such as `10.88.128.16/28`: what a member leases that routes
/// for others, a site's machines or a host's guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VirtualPrefix(Ipv4Net);

impl VirtualPrefix {
    /// The longest prefix: a block of four addresses, of which two are left for machines.
    pub const LONGEST: u8 = 30;

    /// The shortest prefix: as short as that of a whole range.
    pub const SHORTEST: u8 = 8;

    /// A block from a network. Refused: bits set behind the prefix, longer than /30, shorter than /8.
    ///
    /// # Errors
    /// [`ParseError::Prefix`] with the reason.
    pub fn new(net: Ipv4Net) -> Result<Self, ParseError> {
        let refuse = |reason| {
            Err(ParseError::Prefix {
                prefix: net.to_string(),
                reason,
            })
        };
        if net.addr() != net.network() {
            return refuse("it has bits set behind its length; write the block's first address");
        }
        if net.prefix_len() > Self::LONGEST {
            return refuse("it is too small; a block has a length of /30 or shorter");
        }
        if net.prefix_len() < Self::SHORTEST {
            return refuse("it is too large; a block has a length of /8 or longer");
        }
        Ok(Self(net))
    }

    /// The block that begins at an address and has this length.
    ///
    /// # Errors
    /// [`ParseError::Prefix`] as [`Self::new`], or where the length is not one.
    pub fn at(first: Ipv4Addr, len: u8) -> Result<Self, ParseError> {
        let net = Ipv4Net::new(first, len).map_err(|_| ParseError::Prefix {
            prefix: format!("{first}/{len}"),
            reason: "an IPv4 prefix has at most 32 bits",
        })?;
        Self::new(net)
    }

    /// The block of this length that an address is in.
    pub(crate) fn around(addr: Ipv4Addr, len: u8) -> Option<Self> {
        let net = Ipv4Net::new(addr, len).ok()?;
        Self::new(net.trunc()).ok()
    }

    /// The network.
    #[must_use]
    pub fn net(&self) -> Ipv4Net {
        self.0
    }

    /// The first address.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        self.0.network()
    }

    /// The length of the prefix in bits.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether the address lies in the block.
    #[must_use]
    pub fn contains(&self, addr: VirtualAddr) -> bool {
        addr.v4().is_some_and(|v4| self.0.contains(&v4))
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }
}

impl FromStr for VirtualPrefix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let net: Ipv4Net = text.parse().map_err(|_| ParseError::Prefix {
            prefix: text.to_owned(),
            reason: "it is not IPv4 CIDR notation; write for example 10.88.128.16/28",
        })?;
        Self::new(net)
    }
}

impl TryFrom<String> for VirtualPrefix {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<VirtualPrefix> for String {
    fn from(prefix: VirtualPrefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for VirtualPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> VirtualPrefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_block_knows_its_addresses_and_its_neighbours() {
        let block = prefix("10.88.128.16/28");
        let addr = |last| VirtualAddr::from(Ipv4Addr::new(10, 88, 128, last));
        assert!(block.contains(addr(16)) && block.contains(addr(31)));
        assert!(!block.contains(addr(15)) && !block.contains(addr(32)));
        assert!(block.overlaps(&prefix("10.88.128.24/29")) && block.overlaps(&prefix("10.88.0.0/16")));
        assert!(!block.overlaps(&prefix("10.88.128.0/28")) && !block.overlaps(&prefix("10.88.128.32/28")));
        assert_eq!(
            VirtualPrefix::around(Ipv4Addr::new(10, 88, 128, 30), 28),
            Some(block)
        );
    }

    #[test]
    fn what_is_no_block_is_refused_with_the_reason() {
        for (text, reason) in [
            ("10.88.128.17/28", "behind its length"),
            ("10.88.128.0/31", "too small"),
            ("0.0.0.0/7", "too large"),
            ("10.88.128.16", "CIDR"),
            ("fd00::/64", "CIDR"),
        ] {
            let message = text.parse::<VirtualPrefix>().unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
    }
}
