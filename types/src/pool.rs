//! Which addresses of a grid's range are leased to whom.

use ipnet::Ipv4Net;

use crate::{ParseError, VirtualAddr, VirtualRange};

/// A grid's range without what an administrator keeps out of it.
///
/// *Excluded* addresses are leased to nobody: machines that run no Aerie may have them. *Reserved* ones are leased to
/// whoever asks for them by number, and to nobody else. All members of a grid must have the same pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AddressPool {
    range: VirtualRange,
    reserved: Vec<Ipv4Net>,
    excluded: Vec<Ipv4Net>,
    /// What is not drawn: first and last addresses of gaps, in order and apart from each other.
    closed: Vec<(u32, u32)>,
    /// How many are left.
    drawn: u32,
}

impl From<VirtualRange> for AddressPool {
    fn from(range: VirtualRange) -> Self {
        Self {
            range,
            reserved: Vec::new(),
            excluded: Vec::new(),
            closed: Vec::new(),
            drawn: range.capacity(),
        }
    }
}

impl AddressPool {
    /// A range without some parts of it.
    ///
    /// # Errors
    /// [`ParseError::Range`] for a part that is not within the range, or when nothing is left.
    pub fn new(
        range: VirtualRange,
        reserved: Vec<Ipv4Net>,
        excluded: Vec<Ipv4Net>,
    ) -> Result<Self, ParseError> {
        let refuse = |net: Ipv4Net, reason| {
            Err(ParseError::Range {
                range: net.to_string(),
                reason,
            })
        };
        let outside = |net: &&Ipv4Net| !range.net().contains(*net);
        if let Some(net) = reserved.iter().chain(&excluded).find(outside) {
            return refuse(
                *net,
                "it is not within the grid's range; reserve or exclude a part of that",
            );
        }
        let mut pool = Self {
            reserved,
            excluded,
            ..range.into()
        };
        let (first, last) = pool.ends();
        let both = pool.reserved.iter().chain(&pool.excluded);
        let mut gaps: Vec<(u32, u32)> = both
            .map(|net| {
                (
                    u32::from(net.network()).max(first),
                    u32::from(net.broadcast()).min(last),
                )
            })
            .filter(|(from, to)| from <= to)
            .collect();
        gaps.sort_unstable();
        for (from, to) in gaps {
            match pool.closed.last_mut() {
                Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
                _ => pool.closed.push((from, to)),
            }
        }
        pool.drawn -= pool.closed.iter().map(|(from, to)| to - from + 1).sum::<u32>();
        if pool.drawn == 0 {
            return refuse(
                range.net(),
                "nothing of it is left to draw addresses from; reserve and exclude less",
            );
        }
        Ok(pool)
    }

    /// The whole range.
    #[must_use]
    pub fn range(&self) -> VirtualRange {
        self.range
    }

    /// What is leased only to who asks for it.
    #[must_use]
    pub fn reserved(&self) -> &[Ipv4Net] {
        &self.reserved
    }

    /// What is leased to nobody.
    #[must_use]
    pub fn excluded(&self) -> &[Ipv4Net] {
        &self.excluded
    }

    /// Whether a member may lease the address.
    #[must_use]
    pub fn leases(&self, addr: VirtualAddr) -> bool {
        let (first, last) = self.ends();
        addr.v4().is_some_and(|v4| {
            (first..=last).contains(&u32::from(v4)) && !self.excluded.iter().any(|net| net.contains(&v4))
        })
    }

    /// Whether the address is among those that are drawn.
    #[must_use]
    pub fn draws(&self, addr: VirtualAddr) -> bool {
        let reserved = |v4| self.reserved.iter().any(|net| net.contains(&v4));
        self.leases(addr) && !addr.v4().is_some_and(reserved)
    }

    /// How many addresses are drawn.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.drawn
    }

    /// The address number `index` (modulo the capacity) among those that are drawn.
    #[must_use]
    pub fn nth(&self, index: u32) -> VirtualAddr {
        let (mut addr, _) = self.ends();
        addr += index % self.drawn;
        for (from, to) in &self.closed {
            if addr < *from {
                break;
            }
            addr += to - from + 1;
        }
        std::net::Ipv4Addr::from(addr).into()
    }

    /// The first and the last address that a member can have.
    fn ends(&self) -> (u32, u32) {
        let first = u32::from(self.range.net().network()) + 1;
        (first, first + self.range.capacity() - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(reserved: &[&str], excluded: &[&str]) -> Result<AddressPool, ParseError> {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        AddressPool::new("10.0.0.0/24".parse().unwrap(), nets(reserved), nets(excluded))
    }

    fn addr(last: u8) -> VirtualAddr {
        std::net::Ipv4Addr::new(10, 0, 0, last).into()
    }

    #[test]
    fn reserved_is_leased_on_request_and_excluded_never() {
        let pool = pool(&["10.0.0.0/28"], &["10.0.0.8/29", "10.0.0.128/25"]).unwrap();
        let of = |last| (pool.leases(addr(last)), pool.draws(addr(last)));
        assert_eq!(of(0), (false, false), "the network's own address");
        assert_eq!(of(1), (true, false));
        assert_eq!(of(9), (false, false));
        assert_eq!(of(16), (true, true));
        assert_eq!(of(255), (false, false), "the broadcast address");
        assert_eq!((pool.capacity(), pool.nth(0)), (112, addr(16)));
    }

    #[test]
    fn a_part_outside_and_a_range_with_nothing_left_are_refused() {
        let outside = pool(&["10.0.1.0/28"], &[]).unwrap_err().to_string();
        assert!(
            outside.contains("10.0.1.0/28") && outside.contains("not within"),
            "{outside}"
        );
        let nothing = pool(&["10.0.0.0/25"], &["10.0.0.128/25"])
            .unwrap_err()
            .to_string();
        assert!(nothing.contains("nothing of it is left"), "{nothing}");
    }

    proptest! {
        #[test]
        fn every_address_is_drawn_once(nets in proptest::collection::vec((any::<u8>(), 25u8..=32, any::<bool>()), 0..6)) {
            let (mut reserved, mut excluded) = (Vec::new(), Vec::new());
            for (last, len, keep) in nets {
                let net = Ipv4Net::new(std::net::Ipv4Addr::new(10, 0, 0, last), len).unwrap().trunc();
                if keep { reserved.push(net) } else { excluded.push(net) }
            }
            let Ok(pool) = AddressPool::new("10.0.0.0/24".parse().unwrap(), reserved, excluded) else {
                return Ok(());
            };
            let drawn: std::collections::BTreeSet<_> = (0..pool.capacity()).map(|index| pool.nth(index)).collect();
            let expected: std::collections::BTreeSet<_> =
                (0..=255).map(addr).filter(|addr| pool.draws(*addr)).collect();
            prop_assert_eq!(drawn, expected);
        }
    }
}
