//! Which addresses of a grid's range are leased to whom.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::{ParseError, VirtualAddr, VirtualPrefix, VirtualRange};

/// A grid's range without what an administrator keeps out of it.
///
/// *Excluded* addresses are leased to nobody: machines that run no Aerie may have them. *Reserved* ones are leased to
/// whoever asks for them by number, and to nobody else. A *routed* part is leased in blocks of one size, to members
/// that route for others, and its addresses not singly: no two leases of a grid overlap. All members of a grid must
/// have the same pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AddressPool {
    range: VirtualRange,
    reserved: Vec<Ipv4Net>,
    excluded: Vec<Ipv4Net>,
    /// The addresses that are not drawn.
    closed: Gaps,
    /// How many are left.
    drawn: u32,
    routed: Option<Routed>,
    /// The numbers of the blocks that are not leased.
    closed_blocks: Gaps,
    /// How many are left.
    blocks: u32,
}

/// A part of a range that is leased in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Routed {
    part: Ipv4Net,
    block_len: u8,
}

impl Routed {
    /// The part.
    #[must_use]
    pub fn part(&self) -> Ipv4Net {
        self.part
    }

    /// The length of each block's prefix in bits.
    #[must_use]
    pub fn block_len(&self) -> u8 {
        self.block_len
    }

    /// Whether the prefix is one of the blocks, leased or not.
    #[must_use]
    pub fn has(&self, prefix: VirtualPrefix) -> bool {
        self.part.contains(&prefix.net()) && prefix.prefix_len() == self.block_len
    }

    /// How many blocks there are in all.
    fn count(&self) -> u32 {
        1 << (self.block_len - self.part.prefix_len())
    }

    /// The number of the block that an address of the part is in.
    fn number(&self, addr: Ipv4Addr) -> u32 {
        u32::from(addr).saturating_sub(u32::from(self.part.network())) >> (32 - self.block_len)
    }

    fn block(&self, number: u32) -> Option<VirtualPrefix> {
        let first = u32::from(self.part.network()) + (number << (32 - self.block_len));
        VirtualPrefix::around(first.into(), self.block_len)
    }
}

/// As in "the /28 of 10.88.128.0/17".
impl fmt::Display for Routed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the /{} of {}", self.block_len, self.part)
    }
}

/// Numbers that are left out of a row: the first and the last of each gap, in order and apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Gaps(Vec<(u32, u32)>);

impl Gaps {
    /// Gaps that may overlap, within the row from `first` to `last`.
    fn within((first, last): (u32, u32), gaps: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut gaps: Vec<_> = gaps
            .map(|(from, to)| (from.max(first), to.min(last)))
            .filter(|(from, to)| from <= to)
            .collect();
        gaps.sort_unstable();
        let mut apart: Vec<(u32, u32)> = Vec::new();
        for (from, to) in gaps {
            match apart.last_mut() {
                Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
                _ => apart.push((from, to)),
            }
        }
        Self(apart)
    }

    /// How many numbers are left out.
    fn count(&self) -> u32 {
        self.0.iter().map(|(from, to)| to - from + 1).sum()
    }

    fn contains(&self, number: u32) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&number))
    }

    /// The number that is `index` places behind `first`, where those left out do not count.
    fn skip(&self, first: u32, index: u32) -> u32 {
        let mut number = first + index;
        for (from, to) in &self.0 {
            if number < *from {
                break;
            }
            number += to - from + 1;
        }
        number
    }
}

impl From<VirtualRange> for AddressPool {
    fn from(range: VirtualRange) -> Self {
        Self {
            range,
            reserved: Vec::new(),
            excluded: Vec::new(),
            closed: Gaps::default(),
            drawn: range.capacity(),
            routed: None,
            closed_blocks: Gaps::default(),
            blocks: 0,
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
        let outside = |net: &&Ipv4Net| !range.net().contains(*net);
        if let Some(net) = reserved.iter().chain(&excluded).find(outside) {
            return refuse(
                *net,
                "it is not within the grid's range; reserve or exclude a part of that",
            );
        }
        let pool = Self {
            reserved,
            excluded,
            ..range.into()
        };
        pool.close("nothing of it is left to draw addresses from; reserve and exclude less")
    }

    /// The same pool, of which a part is leased in blocks of the length `block_len`. Blocks that overlap what is
    /// reserved or excluded are not leased.
    ///
    /// # Errors
    /// [`ParseError::Range`] for a part that is not within the range or does not consist of such blocks, or when
    /// nothing is left of the blocks or of the single addresses.
    pub fn with_routed(self, part: Ipv4Net, block_len: u8) -> Result<Self, ParseError> {
        if part.addr() != part.network() {
            return refuse(
                part,
                "it has bits set behind its prefix; write the part's first address",
            );
        }
        if !self.range.net().contains(&part) {
            return refuse(
                part,
                "it is not within the grid's range; set aside a part of that for blocks",
            );
        }
        if block_len > VirtualPrefix::LONGEST {
            return refuse(
                part,
                "its blocks are too small; give them a length of /30 or shorter",
            );
        }
        if block_len < part.prefix_len() {
            return refuse(
                part,
                "its blocks would be larger than it is; give them a length that is at least its own",
            );
        }
        let routed = Routed { part, block_len };
        let both = self.reserved.iter().chain(&self.excluded);
        let inside = both.filter_map(|net| {
            let part_has_it = part.contains(net);
            let within = if part_has_it { *net } else { part };
            (part_has_it || net.contains(&part))
                .then(|| (routed.number(within.network()), routed.number(within.broadcast())))
        });
        let closed_blocks = Gaps::within((0, routed.count() - 1), inside);
        let blocks = routed.count() - closed_blocks.count();
        if blocks == 0 {
            return refuse(
                part,
                "none of its blocks is left to lease; reserve and exclude less of it",
            );
        }
        let pool = Self {
            routed: Some(routed),
            closed_blocks,
            blocks,
            ..self
        };
        pool.close("nothing of it is left to draw single addresses from; set aside a smaller part for blocks")
    }

    /// Finds what is drawn.
    fn close(mut self, nothing_left: &'static str) -> Result<Self, ParseError> {
        let ends = self.ends();
        let part = self.routed.map(|routed| routed.part);
        let both = self.reserved.iter().chain(&self.excluded);
        let all = both.copied().chain(part);
        let gaps = all.map(|net| (u32::from(net.network()), u32::from(net.broadcast())));
        self.closed = Gaps::within(ends, gaps);
        self.drawn = self.range.capacity() - self.closed.count();
        if self.drawn == 0 {
            return refuse(self.range.net(), nothing_left);
        }
        Ok(self)
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

    /// What is leased in blocks, if anything is.
    #[must_use]
    pub fn routed(&self) -> Option<Routed> {
        self.routed
    }

    /// Whether a member may lease the address.
    #[must_use]
    pub fn leases(&self, addr: VirtualAddr) -> bool {
        let (first, last) = self.ends();
        addr.v4().is_some_and(|v4| {
            (first..=last).contains(&u32::from(v4)) && !self.excluded.iter().any(|net| net.contains(&v4))
        }) && !self.routes(addr)
    }

    /// Whether the address lies in the part that is leased in blocks.
    #[must_use]
    pub fn routes(&self, addr: VirtualAddr) -> bool {
        let part = self.routed.map(|routed| routed.part);
        addr.v4().zip(part).is_some_and(|(v4, part)| part.contains(&v4))
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
        let (first, _) = self.ends();
        Ipv4Addr::from(self.closed.skip(first, index % self.drawn)).into()
    }

    /// How many blocks are leased.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The block number `index` (modulo their count) among those that are leased; `None` where no part is routed.
    #[must_use]
    pub fn block(&self, index: u32) -> Option<VirtualPrefix> {
        let number = self.closed_blocks.skip(0, index.checked_rem(self.blocks)?);
        self.routed?.block(number)
    }

    /// The block that an address is in, if that block is leased.
    #[must_use]
    pub fn block_of(&self, addr: VirtualAddr) -> Option<VirtualPrefix> {
        let routed = self.routed.filter(|_| self.routes(addr))?;
        let number = routed.number(addr.v4()?);
        if self.closed_blocks.contains(number) {
            return None;
        }
        routed.block(number)
    }

    /// Whether a member may lease the block: one of the routed part, of its length.
    #[must_use]
    pub fn leases_block(&self, prefix: VirtualPrefix) -> bool {
        self.block_of(prefix.first().into()) == Some(prefix)
    }

    /// The first and the last address that a member can have.
    fn ends(&self) -> (u32, u32) {
        let first = u32::from(self.range.net().network()) + 1;
        (first, first + self.range.capacity() - 1)
    }
}

fn refuse<T>(net: Ipv4Net, reason: &'static str) -> Result<T, ParseError> {
    Err(ParseError::Range {
        range: net.to_string(),
        reason,
    })
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

    fn prefix(text: &str) -> VirtualPrefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_routed_part_is_leased_in_blocks_and_its_addresses_not_singly() {
        let pool = pool(&["10.0.0.0/28"], &["10.0.0.200/29"]).unwrap();
        let pool = pool.with_routed("10.0.0.128/25".parse().unwrap(), 28).unwrap();
        assert_eq!((pool.capacity(), pool.blocks()), (127 - 15, 7));
        assert!(pool.leases(addr(127)) && !pool.leases(addr(128)) && !pool.draws(addr(150)));
        assert_eq!(pool.nth(111), addr(127));
        assert_eq!(pool.block(0), Some(prefix("10.0.0.128/28")));
        assert_eq!(
            pool.block(4),
            Some(prefix("10.0.0.208/28")),
            "the one with an excluded part is left out"
        );
        assert_eq!(pool.block(7), pool.block(0));
        assert_eq!(pool.block_of(addr(150)), Some(prefix("10.0.0.144/28")));
        assert_eq!((pool.block_of(addr(193)), pool.block_of(addr(9))), (None, None));
        for (text, leased) in [
            ("10.0.0.144/28", true),
            ("10.0.0.144/29", false),
            ("10.0.0.128/27", false),
            ("10.0.0.192/28", false),
            ("10.0.0.16/28", false),
            ("10.0.1.128/28", false),
        ] {
            assert_eq!(pool.leases_block(prefix(text)), leased, "{text}");
        }
        let routed = pool.routed().unwrap();
        assert_eq!(routed.to_string(), "the /28 of 10.0.0.128/25");
        assert!(routed.has(prefix("10.0.0.192/28")), "though it is not leased");
        assert!(!routed.has(prefix("10.0.0.192/29")) && !routed.has(prefix("10.0.0.16/28")));
    }

    #[test]
    fn without_a_routed_part_no_block_is_leased() {
        let pool = pool(&[], &[]).unwrap();
        assert_eq!((pool.blocks(), pool.block(3), pool.routed()), (0, None, None));
        assert!(!pool.leases_block(prefix("10.0.0.16/28")) && !pool.routes(addr(17)));
    }

    #[test]
    fn a_routed_part_that_makes_no_blocks_is_refused_with_the_reason() {
        for (part, len, reason) in [
            ("10.0.1.0/26", 28, "not within"),
            ("10.0.0.0/23", 28, "not within"),
            ("10.0.0.65/26", 28, "behind its prefix"),
            ("10.0.0.64/26", 25, "larger than it is"),
            ("10.0.0.64/26", 31, "too small"),
            ("10.0.0.0/24", 28, "nothing of it is left"),
            ("10.0.0.16/28", 28, "none of its blocks is left"),
            ("10.0.0.32/27", 27, "none of its blocks is left"),
        ] {
            let pool = pool(&["10.0.0.16/28"], &["10.0.0.63/32"]).unwrap();
            let message = pool
                .with_routed(part.parse().unwrap(), len)
                .unwrap_err()
                .to_string();
            assert!(message.contains(reason), "{part} in /{len}: {message}");
        }
    }

    proptest! {
        #[test]
        fn no_two_leases_overlap(
            nets in proptest::collection::vec((any::<u8>(), 24u8..=32, any::<bool>()), 0..6),
            (last, len, more) in (any::<u8>(), 25u8..=30, 0u8..=5),
        ) {
            let net = |last, len| Ipv4Net::new(Ipv4Addr::new(10, 0, 0, last), len).unwrap().trunc();
            let (reserved, excluded): (Vec<_>, Vec<_>) = nets.iter().partition(|(_, _, keep)| *keep);
            let of = |parts: Vec<(u8, u8, bool)>| parts.into_iter().map(|(last, len, _)| net(last, len)).collect();
            let Ok(pool) = AddressPool::new("10.0.0.0/24".parse().unwrap(), of(reserved), of(excluded)) else {
                return Ok(());
            };
            let block_len = (len + more).min(30);
            let Ok(pool) = pool.with_routed(net(last, len), block_len) else {
                return Ok(());
            };
            let blocks: std::collections::BTreeSet<_> =
                (0..pool.blocks()).map(|index| pool.block(index).unwrap()).collect();
            prop_assert_eq!(blocks.len(), pool.blocks() as usize);
            let closed = |addr: &VirtualAddr| {
                let v4 = addr.v4().unwrap();
                pool.reserved().iter().chain(pool.excluded()).any(|net| net.contains(&v4))
            };
            for addr in (0..=255).map(addr) {
                let around: Vec<_> = blocks.iter().filter(|block| block.contains(addr)).collect();
                prop_assert!(around.len() <= 1);
                prop_assert_eq!(pool.block_of(addr), around.first().map(|block| **block));
                prop_assert!(around.is_empty() || !pool.leases(addr) && !closed(&addr));
            }
            for block in &blocks {
                prop_assert!(pool.leases_block(*block));
                prop_assert_eq!(block.prefix_len(), block_len);
            }
            // Every other block of the part has an address that is closed.
            let part = pool.routed().unwrap().part();
            for net in part.subnets(block_len).unwrap() {
                let block = VirtualPrefix::new(net).unwrap();
                let free = (0..=255).map(addr).filter(|addr| block.contains(*addr)).all(|addr| !closed(&addr));
                prop_assert_eq!(pool.leases_block(block), free);
            }
            let drawn: std::collections::BTreeSet<_> = (0..pool.capacity()).map(|index| pool.nth(index)).collect();
            let expected: std::collections::BTreeSet<_> =
                (0..=255).map(addr).filter(|addr| pool.draws(*addr)).collect();
            prop_assert_eq!(drawn, expected);
        }

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
