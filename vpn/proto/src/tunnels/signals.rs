//! Signals of other members, and this node's offers.

use std::time::Instant;

use aerie_types::PeerId;

use super::Tunnels;
use crate::path::{Action, Exchange};
use crate::reflexive::Mapping;
use crate::signal::{Candidate, CandidateKind, MAX_CANDIDATES, Offer, Signal, is_usable};
use crate::{Error, Event, Now, PathKind};

use super::Hop;
use super::lengths::way_of;
use super::relays::Want;

impl Tunnels {
    /// Takes a signal that a member has sent over the authenticated overlay.
    ///
    /// # Errors
    /// [`Error::Signal`] if it cannot be read.
    pub fn signal(&mut self, from: PeerId, bytes: &[u8], now: Now) -> Result<(), Error> {
        let signal = Signal::decode(bytes).map_err(|reason| {
            self.counters.malformed += 1;
            Error::Signal { from, reason }
        })?;
        let at = now.instant;
        match signal {
            Signal::Offer(offer) => self.handle_offer(from, offer, at),
            Signal::RelayRequest { id, far } => self.handle_relay_request(from, id, far, at),
            Signal::RelayGrant { id, session, tickets } => {
                self.handle_relay_grant(from, id, (session, tickets), at);
            }
            Signal::RelayDenied { id } => self.handle_relay_denied(from, id, at),
            Signal::RelayInvite {
                relay,
                addr,
                session,
                ticket,
            } => {
                self.handle_relay_invite(from, (relay, addr), (session, ticket), at);
            }
            Signal::Knock { addr, transaction } => self.handle_knock(from, addr, transaction, at),
            Signal::Knocked { transaction } => self.handle_knocked(from, transaction),
            Signal::Bye { tag } => {
                if let Some(peer) = self.peers.get_mut(&from)
                    && peer.agent.handle_bye(tag, at)
                {
                    let freed = peer.end_sessions();
                    self.free(freed);
                }
            }
        }
        self.peers.look_at(from, at);
        // Who asks this node as a relay need not be a peer of it.
        self.wake_at(at);
        Ok(())
    }

    /// Does what a peer's path agent wants done.
    pub(super) fn drive_agent(&mut self, id: PeerId, now: Now) {
        let at = now.instant;
        loop {
            let Some(peer) = self.peers.get_mut(&id) else {
                return;
            };
            let Some(action) = peer.agent.next_action() else {
                return;
            };
            match action {
                Action::Probe { route, datagram } => {
                    if let Some(hop) = Hop::of(route, &self.links) {
                        hop.push_bytes(&mut self.outbox, &datagram);
                    }
                }
                Action::Offer { answer } => {
                    self.reflexive.refresh(at);
                    let symmetric = self.mapping(at) == Mapping::Dependent;
                    let candidates = self.candidates(at);
                    if let Some(peer) = self.peers.get(&id) {
                        let unheard = self.reflexive.is_silent();
                        let offer = peer.agent.offer(answer, candidates, (symmetric, unheard));
                        self.signal_to(id, &Signal::Offer(offer));
                    }
                }
                Action::NeedRelay => self.request_relay(id, Want::Any, at),
                Action::NeedSpare => self.request_relay(id, Want::Spare, at),
                Action::RelayLost { session } => {
                    self.reflexive.ask_again(at);
                    if let Some(link) = self.links.get_mut(&session) {
                        link.hurry(at);
                        self.wake_at(at);
                    }
                }
                Action::Selected { to } => {
                    if to.is_none() {
                        // Is it this host that nobody hears any more?
                        self.reflexive.ask_again(at);
                        self.wake_at(at);
                    }
                    let Some(peer) = self.peers.get_mut(&id) else {
                        return;
                    };
                    let way = to.and_then(|route| way_of(route, self.config.mtu, &self.links));
                    peer.mtu.set_way(way, at);
                    peer.pathless_since = if to.is_some() { None } else { Some(at) };
                    if to.is_some() && !peer.queue.is_empty() {
                        // With a session only the way was missing.
                        peer.wants_session = peer.sealing(at).is_none();
                        if !peer.wants_session {
                            self.flush_queue(id, at);
                        }
                    }
                    self.path_changed(id, at);
                }
            }
        }
    }

    pub(super) fn path_changed(&mut self, id: PeerId, now: Instant) {
        let symmetric = self.mapping(now) == Mapping::Dependent;
        let Some(peer) = self.peers.get(&id) else { return };
        let path = self.path_of(peer);
        let why = match path {
            PathKind::Lan(_) | PathKind::Direct(_) => None,
            PathKind::None | PathKind::Relayed { .. } | PathKind::Stream { .. } => peer.agent.why(symmetric),
        };
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.changed(path, now);
        }
        self.emit(Event::PathChanged { peer: id, path, why });
    }

    fn handle_offer(&mut self, from: PeerId, mut offer: Offer, now: Instant) {
        let net = self.net;
        let loopback = self.config.loopback;
        offer.candidates.retain(|candidate| {
            is_usable(candidate.addr, net, loopback)
                && matches!(
                    candidate.kind,
                    CandidateKind::Host | CandidateKind::Reflexive | CandidateKind::Mapped
                )
        });
        let Some(peer) = self.ensure_peer(from, now) else {
            return;
        };
        if !peer.agent.is_awake() {
            peer.active = now;
        }
        let exchange = peer.agent.handle_offer(&offer, now);
        if exchange != Exchange::Same {
            // The tag and the MAC's key are new, so that no former init passes; and the peer's clock may be earlier.
            peer.newest_init = 0;
        }
        if exchange == Exchange::Restarted {
            // Keys agreed with the peer's former start are of no use: it no longer has them.
            let freed = peer.end_sessions();
            peer.wants_session |= !peer.queue.is_empty();
            self.free(freed);
            self.drop_links(from);
        }
    }

    /// Where this host may be reached: its interfaces, the port that its router leads to it, and how relays see it.
    pub(super) fn candidates(&self, now: Instant) -> Vec<Candidate> {
        let hosts = self.hosts.iter().map(|addr| Candidate {
            kind: CandidateKind::Host,
            addr: *addr,
        });
        let mapped = self.mapped.filter(|addr| !self.hosts.contains(addr));
        let seen = self
            .reflexive
            .addrs(now)
            .into_iter()
            .filter(|addr| !self.hosts.contains(addr) && mapped != Some(*addr));
        let seen = seen.map(|addr| Candidate {
            kind: CandidateKind::Reflexive,
            addr,
        });
        let mapped = mapped.map(|addr| Candidate {
            kind: CandidateKind::Mapped,
            addr,
        });
        hosts.chain(mapped).chain(seen).take(MAX_CANDIDATES).collect()
    }
}
