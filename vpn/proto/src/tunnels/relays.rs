//! Getting ways through relays, and giving tickets for this node's own.

use std::time::{Duration, Instant};

use aerie_types::{PeerId, UnderlayAddr};
use rand::Rng;

use super::lengths::way_of;
use super::{RelayInfo, Tunnels};
use crate::Now;
use crate::path::Route;
use crate::relay::client::Link;
use crate::signal::Signal;
use crate::wire::Mac;

/// A relay that has not answered a request after this long is passed over.
const ASK_TIMEOUT: Duration = Duration::from_secs(4);
/// And is not asked again for so long.
const AVOID: Duration = Duration::from_secs(30);
/// Ways through relays to one peer: each side may have asked for one, and one may be dying.
const MAX_LINKS_PER_PEER: usize = 3;
/// Relayed sessions that this node takes part in.
const MAX_LINKS: usize = 512;
/// Relays are as near as the nearest within half of its round trip and so much.
const NEAR: Duration = Duration::from_millis(5);
/// What is assumed of one that has not answered yet.
const FAR: Duration = Duration::from_millis(500);
/// Relays known.
const MAX_RELAYS: usize = 64;

/// What a relay is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// To have a way at all.
    Any,
    /// To have another one when the first dies.
    Spare,
}

/// A ticket that was asked for.
pub(super) struct Asked {
    relay: RelayInfo,
    far: PeerId,
    want: Want,
    at: Instant,
}

impl Tunnels {
    /// The members that relay, as far as the caller knows. They also tell this host how it looks from outside.
    pub fn set_relays(&mut self, mut relays: Vec<RelayInfo>, now: Now) {
        let net = self.net;
        let own = self.identity.peer;
        relays.retain(|relay| {
            relay.peer != own && crate::signal::is_usable(relay.addr, net, self.config.loopback)
        });
        relays.truncate(MAX_RELAYS);
        for relay in &mut relays {
            relay.tls = relay
                .tls
                .filter(|addr| crate::signal::is_usable(*addr, net, self.config.loopback));
        }
        self.reflexive
            .set_servers(relays.iter().map(|relay| relay.addr), now.instant);
        self.relays = relays;
        self.wake_at(now.instant);
    }

    /// A relay that was passed over is worth another try.
    pub(super) fn reconsider(&mut self, relay: PeerId) {
        self.relays_avoided.remove(&relay);
    }

    /// Asks one relay for a ticket, unless one was asked, or there are relays enough.
    pub(super) fn request_relay(&mut self, far: PeerId, want: Want, now: Instant) {
        let pending = self.relay_requests.values().any(|asked| asked.far == far);
        // A way that is being bound is waited for; one that has died is not.
        let enough = match want {
            Want::Any => self
                .links
                .values()
                .any(|link| link.far == far && !link.is_in_doubt()),
            // The first ways of others come before.
            Want::Spare => self.links_of(far) >= 2 || self.links.len() >= MAX_LINKS / 2,
        };
        let room = self.links.len() < MAX_LINKS && self.links_of(far) < MAX_LINKS_PER_PEER;
        if pending || enough || !room {
            return;
        }
        let Some(relay) = self.choose_relay(far, now) else {
            return;
        };
        let id = self.rng.next_u64();
        let asked = Asked {
            relay,
            far,
            want,
            at: now,
        };
        self.relay_requests.insert(id, asked);
        self.signal_to(relay.peer, &Signal::RelayRequest { id, far });
    }

    /// One of the nearest relays that is not in use for a peer already; any of these, so that the load spreads.
    fn choose_relay(&mut self, far: PeerId, now: Instant) -> Option<RelayInfo> {
        self.relays_avoided.retain(|_, until| *until > now);
        let used = |relay: PeerId| {
            let mut links = self.links.values();
            links.any(|link| link.far == far && link.relay == relay)
        };
        let mut usable: Vec<_> = self
            .relays
            .iter()
            .filter(|relay| {
                relay.peer != far && !self.relays_avoided.contains_key(&relay.peer) && !used(relay.peer)
            })
            .filter(|relay| self.is_within_reach(relay))
            .map(|relay| (self.reflexive.rtt(relay.addr).unwrap_or(FAR), *relay))
            .collect();
        let nearest = usable.iter().map(|(rtt, _)| *rtt).min()?;
        usable.retain(|(rtt, _)| *rtt <= nearest * 3 / 2 + NEAR);
        let chosen = self.rng.next_u32() as usize % usable.len();
        Some(usable[chosen].1)
    }

    pub(super) fn handle_relay_request(&mut self, from: PeerId, id: u64, far: PeerId, now: Instant) {
        let grant = match &mut self.relay {
            Some(relay) => relay.grant(from, far, now, &mut self.rng),
            None => None,
        };
        let answer = match grant {
            Some(grant) => Signal::RelayGrant {
                id,
                session: grant.session,
                tickets: grant.tickets,
            },
            None => Signal::RelayDenied { id },
        };
        self.signal_to(from, &answer);
    }

    pub(super) fn handle_relay_grant(
        &mut self,
        from: PeerId,
        id: u64,
        (session, tickets): (u64, [[u8; 16]; 2]),
        now: Instant,
    ) {
        let Some(asked) = self
            .relay_requests
            .get(&id)
            .filter(|asked| asked.relay.peer == from)
        else {
            return;
        };
        let (relay, far) = (asked.relay, asked.far);
        self.relay_requests.remove(&id);
        if !self.peers.get(&far).is_some_and(|peer| peer.agent.is_awake()) {
            return;
        }
        let [near_ticket, ticket] = tickets;
        self.add_link(
            session,
            Link::new(
                (relay.peer, self.way_to(&relay)),
                far,
                (session, 0, &near_ticket),
                now,
            ),
            now,
        );
        self.signal_to(
            far,
            &Signal::RelayInvite {
                relay: relay.peer,
                addr: relay.addr,
                session,
                ticket,
            },
        );
    }

    pub(super) fn handle_relay_denied(&mut self, from: PeerId, id: u64, now: Instant) {
        if self
            .relay_requests
            .get(&id)
            .is_some_and(|asked| asked.relay.peer == from)
            && let Some(asked) = self.relay_requests.remove(&id)
            && asked.want == Want::Any
        {
            self.relays_avoided.insert(from, now + AVOID);
            self.request_relay(asked.far, asked.want, now);
        }
    }

    pub(super) fn handle_relay_invite(
        &mut self,
        from: PeerId,
        relay: (PeerId, UnderlayAddr),
        (session, ticket): (u64, [u8; 16]),
        now: Instant,
    ) {
        // What this node knows of the relay goes before what another member says of it.
        let known = self.relays.iter().find(|known| known.peer == relay.0);
        let usable = known.is_some() || crate::signal::is_usable(relay.1, self.net, self.config.loopback);
        let addr = known.map_or(relay.1, |known| self.way_to(known));
        let room = self.links.len() < MAX_LINKS && self.links_of(from) < MAX_LINKS_PER_PEER;
        if !usable || !room || self.links.contains_key(&session) || self.ensure_peer(from, now).is_none() {
            return;
        }
        self.add_link(
            session,
            Link::new((relay.0, addr), from, (session, 1, &ticket), now),
            now,
        );
    }

    pub(super) fn handle_bound(
        &mut self,
        from: UnderlayAddr,
        session: u64,
        bound: (u8, u64, bool),
        mac: Mac<'_>,
        now: Instant,
    ) {
        let Some(link) = self.links.get_mut(&session).filter(|link| link.addr == from) else {
            self.counters.unknown += 1;
            return;
        };
        let Some(opened) = link.handle_bound(bound, mac, now) else {
            return;
        };
        let far = link.far;
        if from.stream().is_some() {
            self.streams.works(from);
        } else {
            self.reflexive.proved(now);
        }
        if opened && let Some(peer) = self.peers.get_mut(&far) {
            peer.agent.add_relay(session, now);
            self.peers.look_at(far, now);
        }
    }

    /// Binds what is due, drops what is dead. The next time to look.
    pub(super) fn drive_links(&mut self, now: Instant) -> Option<Instant> {
        let mut dead = Vec::new();
        let mut doubt = false;
        for (session, link) in &mut self.links {
            if let Some(bind) = link.poll(now) {
                self.outbox.push(link.addr, &bind);
                doubt |= link.is_in_doubt();
            } else if link.is_dead() && now >= link.poll_timeout() {
                dead.push((*session, link.relay));
            }
        }
        if doubt {
            // Is it the relay, or does nobody hear this host?
            self.reflexive.ask_again(now);
        }
        for (session, relay) in dead {
            self.relays_avoided.insert(relay, now + AVOID);
            self.drop_link(session, now);
        }
        let late: Vec<_> = self
            .relay_requests
            .iter()
            .filter(|(_, asked)| now >= asked.at + ASK_TIMEOUT)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            if let Some(asked) = self.relay_requests.remove(&id)
                && asked.want == Want::Any
            {
                self.relays_avoided.insert(asked.relay.peer, now + AVOID);
                self.request_relay(asked.far, asked.want, now);
            }
        }
        let links = self.links.values().map(Link::poll_timeout);
        let requests = self.relay_requests.values().map(|asked| asked.at + ASK_TIMEOUT);
        links.chain(requests).min()
    }

    /// Ends every way through a relay to a peer.
    pub(super) fn drop_links(&mut self, far: PeerId) {
        self.links.retain(|_, link| link.far != far);
        self.relay_requests.retain(|_, asked| asked.far != far);
    }

    pub(super) fn drop_link(&mut self, session: u64, now: Instant) {
        if let Some(link) = self.links.remove(&session)
            && let Some(peer) = self.peers.get_mut(&link.far)
        {
            peer.agent.remove_relay(session, now);
            self.peers.look_at(link.far, now);
        }
    }

    /// Ends the ways through relays to a peer that have existed for so long.
    pub(super) fn drop_links_older_than(&mut self, age: Duration, far: PeerId, now: Instant) {
        let old = self
            .links
            .iter()
            .filter(|(_, link)| link.far == far && link.is_older_than(age, now));
        let old: Vec<u64> = old.map(|(session, _)| *session).collect();
        for session in old {
            self.drop_link(session, now);
        }
    }

    /// Has every link to a relay take another way to it.
    pub(super) fn move_links(&mut self, relay: PeerId, to: UnderlayAddr, now: Instant) {
        let links = self.links.iter_mut().filter(|(_, link)| link.relay == relay);
        let moved: Vec<_> = links
            .filter_map(|(session, link)| {
                link.move_to(to, now)
                    .then_some((Route::Relayed(*session), link.far))
            })
            .collect();
        for (route, far) in moved {
            let Some(peer) = self.peers.get_mut(&far) else {
                continue;
            };
            if peer.agent.route() == Some(route) {
                // What fits the one way need not fit the other.
                peer.mtu.set_way(None, now);
                peer.mtu.set_way(way_of(route, self.config.mtu, &self.links), now);
                self.path_changed(far, now);
            }
            self.peers.look_at(far, now);
        }
        self.wake_at(now);
    }

    fn links_of(&self, far: PeerId) -> usize {
        self.links.values().filter(|link| link.far == far).count()
    }

    fn add_link(&mut self, session: u64, link: Link, now: Instant) {
        self.links.insert(session, link);
        self.wake_at(now);
    }
}
