//! Packets to all: multicast and broadcast inside the grid, where the administrator wants them.
//!
//! Such a packet goes as a copy to each member of this host's group, of at most [`MAX_COPIES`], as fast as a bucket
//! allows; and one is taken from a member of this host's group only. What hosts tell routers about the groups that
//! they have joined (IGMP) has nobody to read it here, and is dropped.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use aerie_types::VirtualAddr;

use super::Tunnels;
use crate::inner::PROTOCOL_IGMP;
use crate::rate::TokenBucket;
use crate::{Now, Transmits};

/// Members to whom a packet to all goes.
pub const MAX_COPIES: usize = 64;
/// Members from whom one is taken.
const MAX_MATES: usize = 4096;
/// Bytes a second of such copies together, and at once: protocols that look for others send some hundred bytes a
/// second.
const COPIED_PER_SECOND: u64 = 256 << 10;
const COPIED_AT_ONCE: u64 = 512 << 10;

/// The members of this host's group.
pub(super) struct Group {
    members: BTreeSet<VirtualAddr>,
    rate: TokenBucket,
}

impl Tunnels {
    /// The members with whom packets to all are exchanged, by their addresses; `None` where there are to be no such
    /// packets, which is how it begins. They are sent to the first [`MAX_COPIES`] in the order of addresses.
    pub fn set_group(&mut self, members: Option<Vec<VirtualAddr>>, now: Now) {
        let own = self.config.addr;
        let Some(members) = members else {
            self.group = None;
            return;
        };
        let members = members
            .into_iter()
            .filter(|addr| *addr != own && self.config.range.contains(*addr));
        let members: BTreeSet<_> = members
            .collect::<BTreeSet<_>>()
            .into_iter()
            .take(MAX_MATES)
            .collect();
        let fresh = || TokenBucket::new(COPIED_PER_SECOND, COPIED_AT_ONCE, now.instant);
        let rate = self.group.take().map_or_else(fresh, |group| group.rate);
        self.group = Some(Group { members, rate });
    }

    /// Whether a packet is for all of a group: multicast, or one of IPv4's two broadcasts.
    pub(super) fn is_for_all(&self, destination: IpAddr) -> bool {
        match destination {
            IpAddr::V4(v4) => {
                v4.is_multicast() || v4.is_broadcast() || v4 == self.config.range.net().broadcast()
            }
            IpAddr::V6(v6) => v6.is_multicast(),
        }
    }

    /// Whether packets to all are taken from this address.
    pub(super) fn is_in_group(&self, source: IpAddr) -> bool {
        let source = self.net.leased(source);
        let group = self.group.as_ref();
        source.is_some_and(|source| group.is_some_and(|group| group.members.contains(&source)))
    }

    /// Sends a packet to all.
    pub(super) fn send_to_all(&mut self, packet: &[u8], now: Instant, out: &mut Transmits) {
        let igmp =
            packet.first().is_some_and(|first| first >> 4 == 4) && packet.get(9) == Some(&PROTOCOL_IGMP);
        let Some(group) = self.group.as_mut().filter(|_| !igmp) else {
            self.counters.misdirected += 1;
            return;
        };
        let members: Vec<_> = group.members.iter().take(MAX_COPIES).copied().collect();
        let copies = members.len() as u64;
        // All or none: else the same ones would go without, for as long as there is too much.
        if !group.rate.take(packet.len() as u64 * copies, now) {
            self.counters.copies_limited += copies;
            return;
        }
        self.counters.copies += copies;
        for member in members {
            match self.holder(member, now) {
                Some(peer) => self.send_to(peer, packet, now, out),
                None => self.ask_for(member, packet, now),
            }
        }
    }
}
