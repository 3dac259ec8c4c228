//! Being reached: places on relays, addresses confirmed from outside, addresses that members state.
//!
//! ```text
//!   (none) ── a directly connected member with the role relay ──► asked ── accepted ──► held
//!     ▲                                                             │                    │
//!     └──────────── after a pause ◄── listener closed ◄─────────────┴────────────────────┘
//! ```
//!
//! Of what is said about this node's own addresses only these count as external: those that the configuration names,
//! ports that a router gave, addresses of a relay's own interfaces, relayed ones, and those to which `AutoNAT`'s
//! dial-back led at a port on which this node listens. A server that shares this node's NAT, or whose address the
//! NAT lets in because this node talks to it, can confirm too much; so nobody relies on such an address alone, since
//! every member without an open port also holds relayed ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aerie_types::{PeerId, Role};
use libp2p::Multiaddr;
use libp2p::core::transport::ListenerId;
use libp2p::identify;
use libp2p::multiaddr::Protocol;

use super::{Driver, Live};
use crate::config::{MAX_ADDRS, RELAYS};
use crate::handle::Event;
use crate::peer::{from_libp2p, ip_of, is_dialable, is_quic, is_relayed, relay_of, to_libp2p};

/// The pause after a relay gave no place or withdrew it.
const RETRY: Duration = Duration::from_secs(10);

/// A relay that has not answered after this time is given up. Longer than the minute that libp2p gives the request: its
/// relay client panics when a relay accepts a request whose listener was removed meanwhile.
const ASKED_TIMEOUT: Duration = Duration::from_secs(75);

/// A relay in use is dialled over QUIC too, this long after and this long after a failure.
const QUIC_DELAY: Duration = Duration::from_secs(3);
const QUIC_RETRY: Duration = Duration::from_secs(300);

/// From a change of this node's addresses to telling the members, so that a burst of changes is told once: each message
/// is a stream of every connection.
const TELL_AFTER: Duration = Duration::from_millis(400);

/// External addresses kept that others confirmed.
const MAX_CONFIRMED: usize = 8;

#[derive(Default)]
pub(super) struct Reach {
    places: BTreeMap<PeerId, Place>,
    retry: BTreeMap<PeerId, Instant>,
    mapped: BTreeSet<Multiaddr>,
    confirmed: BTreeSet<Multiaddr>,
    /// When to tell the members that this node's addresses have changed.
    tell_at: Option<Instant>,
}

struct Place {
    listener: ListenerId,
    held: bool,
    asked: Instant,
    /// When to see to it next that the relay is also connected over QUIC.
    quic_at: Instant,
}

impl Reach {
    pub(super) fn held(&self) -> usize {
        self.places.values().filter(|place| place.held).count()
    }

    pub(super) fn uses(&self, peer: PeerId) -> bool {
        self.places.contains_key(&peer)
    }

    /// Whether nothing waits to be told.
    pub(super) fn is_idle(&self) -> bool {
        self.tell_at.is_none()
    }
}

impl Driver {
    /// Sees to it that places are reserved on enough relays.
    pub(super) fn reserve(&mut self, now: Instant) {
        if !self.config.reserve || self.config.relay {
            return;
        }
        let late = |place: &Place| !place.held && now.saturating_duration_since(place.asked) > ASKED_TIMEOUT;
        let given_up: Vec<_> = self
            .reach
            .places
            .values()
            .filter(|place| late(place))
            .map(|place| place.listener)
            .collect();
        for listener in given_up {
            self.swarm.remove_listener(listener);
            self.place_lost(listener, now);
        }
        self.connect_over_quic(now);
        self.reach.retry.retain(|_, at| *at > now);
        if self.reach.places.len() >= RELAYS {
            return;
        }
        // By distance, so that members spread over the relays.
        let here = self.local.position();
        let mut relays: Vec<_> = self
            .live
            .iter()
            .filter(|(peer, live)| {
                live.has_direct()
                    && live.credential.roles.contains(Role::Relay)
                    && !self.reach.places.contains_key(*peer)
                    && !self.reach.retry.contains_key(*peer)
            })
            .map(|(peer, _)| (here.distance(&peer.position()), *peer))
            .collect();
        relays.sort_unstable();
        for (_, relay) in relays.into_iter().take(RELAYS - self.reach.places.len()) {
            let Some(circuit) = self.circuit_through(relay) else {
                continue;
            };
            match self.swarm.listen_on(circuit) {
                Ok(listener) => {
                    let place = Place {
                        listener,
                        held: false,
                        asked: now,
                        quic_at: now + QUIC_DELAY,
                    };
                    self.reach.places.insert(relay, place);
                }
                Err(error) => {
                    tracing::debug!(relay = %relay.short(), %error, "no place asked for");
                    self.reach.retry.insert(relay, now + RETRY);
                }
            }
        }
    }

    /// Sees to it that relays in use are connected over QUIC as well, so that they see both of this node's mappings.
    fn connect_over_quic(&mut self, now: Instant) {
        if !self.config.listen.iter().any(is_quic) {
            return;
        }
        let mut due = Vec::new();
        for (relay, place) in self
            .reach
            .places
            .iter_mut()
            .filter(|(_, place)| place.quic_at <= now)
        {
            place.quic_at = now + QUIC_RETRY.mul_f64(0.5 + rand::random::<f64>());
            let connected = |live: &Live| live.connections.values().any(|link| link.quic && !link.relayed);
            if !self.live.get(relay).is_some_and(connected) {
                due.push(*relay);
            }
        }
        for relay in due {
            let addrs = self.quic_addrs(relay);
            self.dial_also(relay, addrs);
        }
    }

    pub(super) fn place_held(&mut self, relay: &libp2p::PeerId) {
        if let Some(place) = from_libp2p(relay).and_then(|relay| self.reach.places.get_mut(&relay)) {
            place.held = true;
        }
        self.gauge();
    }

    /// A listener closed; was it a place on a relay?
    pub(super) fn place_lost(&mut self, listener: ListenerId, now: Instant) {
        let lost = self
            .reach
            .places
            .iter()
            .find(|(_, place)| place.listener == listener);
        if let Some(relay) = lost.map(|(relay, _)| *relay) {
            self.reach.places.remove(&relay);
            self.reach
                .retry
                .insert(relay, now + RETRY.mul_f64(0.5 + rand::random::<f64>()));
        }
        self.gauge();
    }

    pub(super) fn on_new_listen_addr(&mut self, addr: Multiaddr) {
        // A relay has an open port by definition, and can give places only if it knows where it is reached.
        if self.config.relay && !is_relayed(&addr) && is_dialable(&addr, true, self.config.virtual_net) {
            self.swarm.add_external_address(addr.clone());
        }
        self.tell_soon(&addr);
        self.offer(Event::Listening { addr });
    }

    /// An address of this node has come or gone: the members are told, unless it is of no use to them.
    fn tell_soon(&mut self, addr: &Multiaddr) {
        if is_dialable(addr, false, self.config.virtual_net) && self.reach.tell_at.is_none() {
            self.reach.tell_at = Some(Instant::now() + TELL_AFTER);
            self.wake();
        }
    }

    /// Tells the members of new addresses when it is time to.
    pub(super) fn tell_due(&mut self, now: Instant) {
        if self.reach.tell_at.is_some_and(|at| at <= now) {
            self.reach.tell_at = None;
            let members = self.live.keys().map(|peer| to_libp2p(*peer)).collect::<Vec<_>>();
            self.swarm.behaviour_mut().identify.push(members);
        }
    }

    /// Something in the swarm holds an address of this node for confirmed.
    pub(super) fn on_confirmed(&mut self, addr: Multiaddr) {
        let trusted = is_relayed(&addr)
            || self.config.external.contains(&addr)
            || self.reach.mapped.contains(&addr)
            || self.reach.confirmed.contains(&addr)
            || self.swarm.listeners().any(|own| *own == addr);
        if trusted {
            return;
        }
        let plausible = is_dialable(&addr, false, self.config.virtual_net)
            && self
                .swarm
                .listeners()
                .any(|own| port(own).is_some() && port(own) == port(&addr));
        if plausible && self.reach.confirmed.len() < MAX_CONFIRMED {
            tracing::debug!(%addr, "reachable from outside");
            self.reach.confirmed.insert(addr.clone());
            self.tell_soon(&addr);
            self.offer(Event::Listening { addr });
        } else {
            tracing::debug!(%addr, "not taken for an external address");
            self.swarm.remove_external_address(&addr);
        }
    }

    /// This node's addresses changed: what others confirmed before is no longer known to hold, and connections from
    /// there have ended without a word.
    pub(super) fn on_listen_addr_gone(&mut self, gone: &Multiaddr) {
        self.tell_soon(gone);
        if !is_relayed(gone) && is_dialable(gone, true, self.config.virtual_net) {
            self.swarm.behaviour_mut().liveness.doubt_all();
        }
        for addr in std::mem::take(&mut self.reach.confirmed) {
            if !self.reach.mapped.contains(&addr) && !self.config.external.contains(&addr) {
                self.swarm.remove_external_address(&addr);
            }
        }
    }

    /// These addresses, and no others, are ports of routers that lead to this node.
    pub(super) fn on_mapped(&mut self, addrs: Vec<Multiaddr>) {
        let usable = |addr: &Multiaddr| is_dialable(addr, false, self.config.virtual_net);
        let addrs: BTreeSet<_> = addrs.into_iter().filter(usable).take(MAX_CONFIRMED).collect();
        let before = std::mem::replace(&mut self.reach.mapped, addrs.clone());
        for addr in before.difference(&addrs) {
            self.tell_soon(addr);
            // It may be known otherwise, too.
            let stays = self.config.external.contains(addr)
                || self.reach.confirmed.contains(addr)
                || self.swarm.listeners().any(|own| own == addr);
            if !stays {
                self.swarm.remove_external_address(addr);
            }
        }
        for addr in addrs.difference(&before) {
            self.swarm.add_external_address(addr.clone());
            self.tell_soon(addr);
            self.offer(Event::Listening { addr: addr.clone() });
        }
    }

    /// A member states its addresses.
    pub(super) fn on_identify(&mut self, event: identify::Event) {
        let identify::Event::Received { peer_id, info, .. } = event else {
            return;
        };
        let Some(peer) = from_libp2p(&peer_id).filter(|peer| self.live.contains_key(peer)) else {
            return;
        };
        let locally = self.is_local(peer);
        let mut addrs: Vec<_> = info
            .listen_addrs
            .into_iter()
            .filter(|addr| {
                is_dialable(addr, locally, self.config.virtual_net) && relay_of(addr) != Some(self.local)
            })
            .take(MAX_ADDRS)
            .collect();
        // Direct ones first: the book forgets from the end.
        addrs.sort_by_key(is_relayed);
        for addr in &addrs {
            self.swarm.behaviour_mut().kad.add_address(&peer_id, addr.clone());
        }
        self.book.restate(peer, addrs, Instant::now());
    }

    /// Somebody on the local network says that it is there. It may be of another grid, or of none.
    pub(super) fn on_mdns(&mut self, found: Vec<(libp2p::PeerId, Multiaddr)>) {
        for (peer, addr) in found {
            if let Some(peer) = from_libp2p(&peer) {
                let locally = ip_of(&addr).is_some_and(|ip| ip.is_loopback());
                self.learn(peer, addr, locally);
            }
        }
    }
}

/// The transport's port: what stands behind `/tcp/` or `/udp/`, and which of the two.
fn port(addr: &Multiaddr) -> Option<(bool, u16)> {
    addr.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some((true, port)),
        Protocol::Udp(port) => Some((false, port)),
        _ => None,
    })
}
