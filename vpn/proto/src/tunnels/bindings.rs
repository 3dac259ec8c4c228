//! Which member holds which virtual address, as the caller says, and when that is asked again.

use std::time::{Duration, Instant};

use aerie_types::{PeerId, VirtualAddr};

use super::packets::Lookup;
use super::{Event, RemotePeer, Tunnels};
use crate::limits::{BINDING_MAX, BINDING_REFRESH, MAX_BINDINGS, MAX_UNREACHABLE, UNREACHABLE_FOR};

/// How old an answer is at least that is doubted, because another member sends from the address, or its holder is not
/// reached.
const DOUBTED: Duration = Duration::from_secs(2);
pub(super) const UNREACHED: Duration = Duration::from_secs(10);
/// Questions a second because of doubts, and at once.
pub(super) const DOUBTS_PER_SECOND: u64 = 4;
pub(super) const DOUBTS_AT_ONCE: u64 = 16;

/// The holder of a virtual address, as the caller last said.
pub(super) struct Binding {
    pub(super) peer: PeerId,
    since: Instant,
    asked_again: bool,
    /// When it was asked for because of a doubt.
    doubted: Option<Instant>,
}

impl Tunnels {
    pub(super) fn unbind(&mut self, addr: VirtualAddr) {
        if let Some(old) = self.bindings.swap_remove(&addr)
            && let Some(peer) = self.peers.get_mut(&old.peer)
        {
            peer.addrs.retain(|bound| *bound != addr);
        }
    }

    pub(super) fn bind(&mut self, addr: VirtualAddr, remote: RemotePeer, now: Instant) -> bool {
        if !self.config.range.contains(addr) {
            return false;
        }
        if self.bindings.get(&addr).is_none_or(|old| old.peer != remote.peer) {
            self.unbind(addr);
        }
        if !self.bindings.contains_key(&addr) && self.bindings.len() >= MAX_BINDINGS {
            let oldest = self
                .bindings
                .iter()
                .min_by_key(|(_, binding)| binding.since)
                .map(|(addr, _)| *addr);
            let Some(oldest) = oldest else { return false };
            self.unbind(oldest);
        }
        let Some(peer) = self.ensure_peer(remote.peer, now) else {
            return false;
        };
        if peer.noise_public != Some(remote.noise_public) {
            peer.noise_public = Some(remote.noise_public);
        }
        if !peer.addrs.contains(&addr) {
            peer.addrs.push(addr);
        }
        self.bindings.insert(
            addr,
            Binding {
                peer: remote.peer,
                since: now,
                asked_again: false,
                doubted: None,
            },
        );
        true
    }

    /// The member an address is bound to. An answer that grows old is asked for again beside its use.
    pub(super) fn holder(&mut self, addr: VirtualAddr, now: Instant) -> Option<PeerId> {
        let binding = self.bindings.get_mut(&addr)?;
        let age = now.saturating_duration_since(binding.since);
        let peer = binding.peer;
        if age >= BINDING_MAX {
            self.unbind(addr);
            return None;
        }
        if age >= BINDING_REFRESH && !binding.asked_again {
            binding.asked_again = true;
            self.emit(Event::Resolve(addr));
        }
        Some(peer)
    }

    /// A member sends from an address that is bound to another one: a liar, or it holds the address now. The caller is
    /// asked, as often as that member may have it asked.
    pub(super) fn doubt_binding(&mut self, from: PeerId, addr: VirtualAddr, now: Instant) {
        let may_ask = self
            .peers
            .get_mut(&from)
            .is_some_and(|peer| peer.lookups.take(1, now));
        if may_ask {
            self.ask_anew(addr, DOUBTED, now);
        }
    }

    /// Asks who holds an address that is bound, unless that was answered, or asked, less than `pause` ago. All such
    /// questions together are few: each may have the caller wait for a member that is not there.
    pub(super) fn ask_anew(&mut self, addr: VirtualAddr, pause: Duration, now: Instant) {
        let Some(binding) = self.bindings.get_mut(&addr) else {
            return;
        };
        let last = binding.doubted.unwrap_or(binding.since).max(binding.since);
        if now >= last + pause && self.doubt_rate.take(1, now) {
            binding.doubted = Some(now);
            self.emit(Event::Resolve(addr));
        }
    }

    /// Nobody holds the address, as far as the caller knows. What is bound and works stays until it is too old: a
    /// look-up may fail while the register is out of reach.
    pub(super) fn not_found(&mut self, addr: VirtualAddr, lookup: Option<Lookup>, now: Instant) {
        if let Some(binding) = self.bindings.get_mut(&addr) {
            binding.asked_again = false;
            return;
        }
        if self.unreachable.len() < MAX_UNREACHABLE {
            self.unreachable.insert(addr, now + UNREACHABLE_FOR);
        }
        let Some(lookup) = lookup else { return };
        self.counters.spoofed_source += lookup.inbound.len() as u64;
        for packet in lookup.outbound {
            self.answer_unreachable(&packet, now);
        }
    }
}
