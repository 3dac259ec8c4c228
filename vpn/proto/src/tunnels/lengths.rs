//! Packets and datagrams that are too long for their way.
//!
//! Once it is known how long a datagram may be on the way to a peer ([`crate::path::Mtu`]), nothing longer is sent
//! over it: it would be cut into fragments on its way, which many networks drop.
//!
//! - TCP that the host hands over in super-packets is cut to the right length before it comes here: whoever splits
//!   them asks [`Tunnels::room_for`].
//! - IPv4 that may not be cut, and IPv6 longer than 1,280 bytes, is answered with ICMP that says the length that fits.
//!   The host then makes shorter packets by itself.
//! - IPv4 that may be cut, and IPv6 of up to 1,280 bytes, which no host can be told to make shorter, is cut into
//!   fragments of IP inside the tunnel. It is this host's own packet: the tunnel does in the source's stead what the
//!   source could have done, and the far host puts it together.
//!
//! While the floor is in force only because a black hole was found, and the new length is not known yet, nobody is
//! told: hosts remember for ten minutes what ICMP says.

use std::collections::BTreeMap;
use std::time::Instant;

use aerie_types::{PeerId, UnderlayAddr};
use rand::Rng;

use super::{Hop, Tunnels};
use crate::path::{Route, Way};
use crate::relay::client::Link;
use crate::{Now, Transmits, fragments, inner, wire};

impl Tunnels {
    /// The longest packet that goes to the destination of `packet` in one piece. Only its addresses are looked at.
    /// Whoever can make shorter packets than the host has made, as of a super-packet, makes them no longer than this.
    #[must_use]
    pub fn room_for(&self, packet: &[u8]) -> usize {
        let mtu = usize::from(self.config.mtu);
        inner::destination(packet)
            .and_then(|destination| self.net.leased(destination))
            .and_then(|addr| self.bindings.get(&addr))
            .and_then(|binding| self.peers.get(&binding.peer))
            .map_or(mtu, |peer| mtu.min(peer.mtu.inner()))
    }

    /// This host's own link did not take a datagram that was to stay [whole](crate::Run::whole): it is too long.
    pub fn refused(&mut self, to: UnderlayAddr, len: usize, now: Now) {
        let links = &self.links;
        self.peers.change(now.instant, |peer| {
            let hop = peer.agent.route().and_then(|route| Hop::of(route, links));
            let refused = hop.is_some_and(|hop| hop.to == to);
            if refused {
                peer.mtu.refused(len, now.instant);
            }
            refused
        });
    }

    /// Sends the probes of lengths that are due to a peer.
    pub(super) fn drive_lengths(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let agent = &peer.agent;
        let hop = agent.route().and_then(|route| Hop::of(route, &self.links));
        let (Some(hop), Some(key), Some(tag), true) =
            (hop, agent.key(), agent.remote_tag(), agent.is_awake())
        else {
            return;
        };
        let rng = &mut self.rng;
        for (transaction, len) in peer.mtu.poll(agent.rtt(), now, || rng.next_u64()) {
            let len = len.saturating_sub(hop.frame());
            hop.push_whole(&mut self.outbox, &wire::padded_probe(tag, transaction, len, key));
        }
    }

    /// Cuts or answers a packet that is too long for its peer's way. `false` if it is to be sent as it is.
    pub(super) fn send_shorter(
        &mut self,
        id: PeerId,
        packet: &[u8],
        now: Instant,
        out: &mut Transmits,
    ) -> bool {
        let Some(mtu) = self.peers.get(&id).map(|peer| &peer.mtu) else {
            return false;
        };
        let room = mtu.inner();
        if inner::may_be_cut(packet) {
            let Some(pieces) = fragments::cut(packet, room, self.rng.next_u32()) else {
                return false;
            };
            self.counters.cut += 1;
            for piece in pieces {
                self.send_to(id, &piece, now, out);
            }
            return true;
        }
        let Some(room) = mtu.proved() else {
            return false;
        };
        self.counters.too_long += 1;
        if self.too_long_rate.take(1, now)
            && let Some(answer) = inner::too_long(packet, room)
        {
            self.inbox.push_back(answer);
        }
        true
    }
}

/// A way as far as lengths matter.
pub(super) fn way_of(route: Route, inner: u16, links: &BTreeMap<u64, Link>) -> Option<Way> {
    let hop = Hop::of(route, links)?;
    Some(Way {
        route,
        v6: hop.to.0.is_ipv6(),
        frame: hop.frame(),
        inner: inner.into(),
    })
}
