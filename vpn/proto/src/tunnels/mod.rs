//! All tunnels of a node in one grid.

mod bindings;
mod datagrams;
mod groups;
mod handshakes;
mod lengths;
mod network;
mod packets;
mod peers;
mod relays;
mod signals;
mod streams;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aerie_types::{NodeName, PeerId, UnderlayAddr, VirtualAddr, VirtualNet, VirtualRange, WallMillis};
use foldhash::fast::RandomState;
use indexmap::IndexMap;
use rand::rngs::StdRng;
use rand::{CryptoRng, Rng, SeedableRng};

use crate::handshake::Identity;
use crate::limits::{
    ICMP_PER_SECOND, KNOCKS_PER_SECOND, MAX_EVENTS, MAX_PEERS, QUERIES_PER_SOURCE, QUERIES_TOTAL,
};
use crate::netcheck::Check;
use crate::path::{Agent, Route};
use crate::peer::Peer;
use crate::rate::{SourceLimiter, TokenBucket};
use crate::reflexive::{Mapping, Reflexive};
use crate::relay::client::Link;
use crate::relay::server::{RelayLimits, RelayServer};
use crate::signal::Signal;
use crate::status::{Counters, PathKind, PeerStatus};
use crate::{Error, Now, Suite, Transmits};

use groups::Group;
pub use groups::MAX_COPIES;
use peers::Peers;
pub use streams::StreamAction;
use streams::Streams;

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct Config {
    /// The grid's range.
    pub range: VirtualRange,
    /// This node's own address in it.
    pub addr: VirtualAddr,
    /// The MTU of this host's interface in bytes: the longest packet that is ever to be sent.
    pub mtu: u16,
    /// Ciphers, the preferred one first ([`Suite::preferred`]).
    pub suites: Vec<Suite>,
    /// Whether this node carries datagrams for others, and how much.
    pub relay: Option<RelayLimits>,
    /// Whether loopback addresses are candidates: for several nodes on one host.
    pub loopback: bool,
}

/// Checks credentials; the caller knows the grid's CA and its revocations.
pub trait CredentialCheck: Send {
    /// Who a credential (X.509, DER) belongs to at this time.
    ///
    /// # Errors
    /// Why it is refused, for a person to read.
    fn check(&self, der: &[u8], wall: WallMillis) -> Result<RemoteIdentity, String>;
}

/// What a valid credential says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteIdentity {
    /// The member.
    pub peer: PeerId,
    /// Its X25519 key.
    pub noise_public: [u8; 32],
    /// Its name.
    pub node: NodeName,
}

/// The holder of a virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemotePeer {
    /// The member.
    pub peer: PeerId,
    /// The X25519 key of its credential.
    pub noise_public: [u8; 32],
}

/// A member that relays datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayInfo {
    /// The member.
    pub peer: PeerId,
    /// Its data socket, as reachable from here.
    pub addr: UnderlayAddr,
    /// Where it takes connections over TLS from those that UDP does not reach.
    pub tls: Option<UnderlayAddr>,
}

/// What the caller is told or asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Who holds this address? To be answered by [`Tunnels::resolved`].
    Resolve(VirtualAddr),
    /// Carry these bytes to a member, authenticated.
    Signal {
        /// To whom.
        to: PeerId,
        /// What.
        bytes: Vec<u8>,
    },
    /// Packets to a peer take another way.
    PathChanged {
        /// The peer.
        peer: PeerId,
        /// The way now.
        path: PathKind,
        /// Why it is not direct.
        why: Option<String>,
    },
    /// A ping was answered.
    Pong {
        /// The number given by [`Tunnels::ping`].
        id: u64,
        /// Round trip, inside the tunnel.
        rtt: Duration,
        /// The way that was taken.
        path: PathKind,
    },
    /// A ping was not answered.
    PingFailed {
        /// The number given by [`Tunnels::ping`].
        id: u64,
        /// Why, and what to do.
        why: String,
    },
}

/// The core. See the crate's documentation for the order of calls.
pub struct Tunnels {
    config: Config,
    net: VirtualNet,
    /// Whether this host takes IPv6 packets.
    ipv6: bool,
    identity: Identity,
    check: Box<dyn CredentialCheck>,
    rng: StdRng,
    peers: Peers,
    /// Session and handshake indices; never iterated.
    indices: HashMap<u32, PeerId, RandomState>,
    /// Never iterated.
    tags: HashMap<u64, PeerId>,
    bindings: IndexMap<VirtualAddr, bindings::Binding, RandomState>,
    lookups: BTreeMap<VirtualAddr, packets::Lookup>,
    unreachable: BTreeMap<VirtualAddr, Instant>,
    queued: usize,
    hosts: Vec<UnderlayAddr>,
    /// A port of the router that leads here.
    mapped: Option<UnderlayAddr>,
    /// With whom packets to all are exchanged.
    group: Option<Group>,
    relays: Vec<RelayInfo>,
    relay_requests: BTreeMap<u64, relays::Asked>,
    relays_avoided: BTreeMap<PeerId, Instant>,
    links: BTreeMap<u64, Link>,
    relay: Option<RelayServer>,
    reflexive: Reflexive,
    streams: Streams,
    /// The last look at the network that was asked for.
    network_check: Option<Check>,
    knock_rate: TokenBucket,
    doubt_rate: TokenBucket,
    /// Members for which this node has sent a datagram to their outside, and when. Never iterated but to forget.
    knocked: BTreeMap<PeerId, Instant>,
    query_rate: SourceLimiter,
    icmp_rate: TokenBucket,
    /// Of what tells hosts to send shorter packets, which must not be drowned by a scan of empty addresses.
    too_long_rate: TokenBucket,
    pings: BTreeMap<u64, packets::Ping>,
    last_timestamp: u64,
    outbox: Transmits,
    forwards: Transmits,
    inbox: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    counters: Counters,
    /// When something is due that is no peer's.
    wake: Option<Instant>,
}

impl Tunnels {
    /// A core without peers.
    ///
    /// # Errors
    /// [`Error::OutsideRange`], [`Error::Config`], or [`Error::Handshake`] for an unusable key.
    pub fn new<R: CryptoRng>(
        config: Config,
        identity: Identity,
        check: Box<dyn CredentialCheck>,
        rng: &mut R,
        now: Now,
    ) -> Result<Self, Error> {
        if !config.range.contains(config.addr) {
            return Err(Error::OutsideRange {
                addr: config.addr,
                range: config.range,
            });
        }
        if config.suites.is_empty() {
            return Err(Error::Config {
                reason: "no cipher is allowed; allow at least one",
            });
        }
        if identity.credential.len() > 2048 {
            return Err(Error::Config {
                reason: "the credential is longer than 2 KiB; enrol again",
            });
        }
        crate::handshake::noise_public(&identity.noise_secret)?;
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let at = now.instant;
        Ok(Self {
            relay: config.relay.map(RelayServer::new),
            net: VirtualNet::new(identity.grid, config.range),
            ipv6: true,
            config,
            identity,
            check,
            rng: StdRng::from_seed(seed),
            peers: Peers::default(),
            indices: HashMap::default(),
            tags: HashMap::new(),
            bindings: IndexMap::default(),
            lookups: BTreeMap::new(),
            unreachable: BTreeMap::new(),
            queued: 0,
            hosts: Vec::new(),
            mapped: None,
            group: None,
            relays: Vec::new(),
            relay_requests: BTreeMap::new(),
            relays_avoided: BTreeMap::new(),
            links: BTreeMap::new(),
            reflexive: Reflexive::default(),
            streams: Streams::default(),
            network_check: None,
            knocked: BTreeMap::new(),
            knock_rate: TokenBucket::new(KNOCKS_PER_SECOND.into(), KNOCKS_PER_SECOND.into(), at),
            doubt_rate: TokenBucket::new(bindings::DOUBTS_PER_SECOND, bindings::DOUBTS_AT_ONCE, at),
            query_rate: SourceLimiter::new(QUERIES_PER_SOURCE, QUERIES_TOTAL, at),
            icmp_rate: TokenBucket::new(ICMP_PER_SECOND.into(), ICMP_PER_SECOND.into(), at),
            too_long_rate: TokenBucket::new(ICMP_PER_SECOND.into(), ICMP_PER_SECOND.into(), at),
            pings: BTreeMap::new(),
            last_timestamp: 0,
            outbox: Transmits::new(),
            forwards: Transmits::new(),
            inbox: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            wake: None,
        })
    }

    /// Takes the datagrams that are to be sent besides those of [`Tunnels::handle_inner`].
    pub fn poll_transmits(&mut self, out: &mut Transmits) {
        out.append(&mut self.outbox);
    }

    /// Takes the datagrams that this node forwards as a relay: bulk of others, to be sent after its own.
    pub fn poll_forwards(&mut self, out: &mut Transmits) {
        out.append(&mut self.forwards);
    }

    /// The next packet to deliver that is no slice of a received batch.
    pub fn poll_inner(&mut self) -> Option<Vec<u8>> {
        self.inbox.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What is to be done about connections over TLS, the next of it.
    pub fn poll_stream(&mut self) -> Option<StreamAction> {
        self.streams.next_action()
    }

    /// When [`Tunnels::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.wake, self.peers.next()].into_iter().flatten().min()
    }

    /// Another credential of this node, after a renewal. Sessions take it over at their next handshake.
    pub fn set_credential(&mut self, der: Vec<u8>) {
        self.identity.credential = der;
    }

    /// Another address of this node. Peers learn of it from its first packet.
    ///
    /// # Errors
    /// [`Error::OutsideRange`].
    pub fn readdress(&mut self, addr: VirtualAddr, now: Now) -> Result<(), Error> {
        if !self.config.range.contains(addr) {
            return Err(Error::OutsideRange {
                addr,
                range: self.config.range,
            });
        }
        self.config.addr = addr;
        self.unbind(addr);
        self.wake_at(now.instant);
        Ok(())
    }

    /// Whether this host takes IPv6 packets; it does unless told otherwise. One that does not answers them with
    /// ICMPv6, so that programs of its peers turn to IPv4 at once.
    pub fn set_ipv6(&mut self, taken: bool) {
        self.ipv6 = taken;
    }

    /// Cuts a member off: its sessions, ways and relayed sessions end now. The caller's check refuses it later.
    pub fn revoke(&mut self, peer: PeerId, now: Now) {
        if let Some(relay) = &mut self.relay {
            relay.revoke(peer);
        }
        self.relays.retain(|relay| relay.peer != peer);
        if let Some(removed) = self.remove_peer(peer)
            && removed.agent.route().is_some()
        {
            let why = Some("the member was revoked".to_owned());
            self.emit(Event::PathChanged {
                peer,
                path: PathKind::None,
                why,
            });
        }
        self.wake_at(now.instant);
    }

    /// Every peer as it is now.
    #[must_use]
    pub fn peers(&self, now: Now) -> Vec<PeerStatus> {
        let symmetric = self.mapping(now.instant) == Mapping::Dependent;
        let status = |peer| self.status_of(peer, symmetric, now.instant);
        self.peers.values().map(status).collect()
    }

    fn status_of(&self, peer: &Peer, symmetric: bool, now: Instant) -> PeerStatus {
        PeerStatus {
            peer: peer.id,
            name: peer.name.clone(),
            addrs: peer.addrs.clone(),
            path: self.path_of(peer),
            rtt: peer.agent.rtt(),
            mtu: peer.mtu.proved(),
            handshake_age: peer.handshaken.map(|at| now.saturating_duration_since(at)),
            suite: peer.current.as_ref().map(crate::session::Session::suite),
            tx_bytes: peer.tx_bytes,
            rx_bytes: peer.rx_bytes,
            why: peer.refusal.clone().or_else(|| peer.agent.why(symmetric)),
            active: peer.agent.is_awake(),
        }
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What the NAT in front of this host does, and how the host looks from outside.
    #[must_use]
    pub fn nat(&self, now: Now) -> (Mapping, BTreeSet<UnderlayAddr>) {
        (self.mapping(now.instant), self.reflexive.addrs(now.instant))
    }

    /// Sessions that this node relays for others.
    #[must_use]
    pub fn relayed_sessions(&self) -> usize {
        self.relay.as_ref().map_or(0, RelayServer::len)
    }

    fn mapping(&self, now: Instant) -> Mapping {
        self.reflexive.mapping(&self.own_ips(), now)
    }

    fn mapping_since(&self, then: Instant, now: Instant) -> Mapping {
        self.reflexive.mapping_since(&self.own_ips(), then, now)
    }

    fn own_ips(&self) -> BTreeSet<IpAddr> {
        self.hosts.iter().map(|addr| addr.0.ip()).collect()
    }

    fn path_of(&self, peer: &Peer) -> PathKind {
        match peer.agent.route() {
            None => PathKind::None,
            Some(route @ Route::Direct(addr)) if peer.agent.is_lan(route) => PathKind::Lan(addr),
            Some(Route::Direct(addr)) => PathKind::Direct(addr),
            Some(Route::Stream(stream)) => PathKind::Stream {
                to: self.streams.far(stream),
            },
            Some(Route::Relayed(session)) => match self.links.get(&session) {
                Some(link) => PathKind::Relayed {
                    via: link.relay,
                    addr: self.streams.far(link.addr).unwrap_or(link.addr),
                    stream: link.addr.stream().is_some(),
                },
                None => PathKind::None,
            },
        }
    }

    /// The state of a peer, made if it is not there. `None` when there is no room for one more.
    fn ensure_peer(&mut self, id: PeerId, now: Instant) -> Option<&mut Peer> {
        if id == self.identity.peer {
            return None;
        }
        if !self.peers.contains(id) {
            if self.peers.len() >= MAX_PEERS {
                let asleep = self.peers.values().filter(|peer| !peer.agent.is_awake());
                let oldest = asleep.min_by_key(|peer| peer.active).map(|peer| peer.id)?;
                self.forget(oldest);
            }
            let tag = self.rng.next_u64();
            let mut secret = [0; 32];
            self.rng.fill_bytes(&mut secret);
            let agent = Agent::new(self.identity.peer, id, tag, secret, now);
            self.tags.insert(tag, id);
            self.peers.insert(Peer::new(id, agent, now), now);
        }
        self.peers.get_mut(&id)
    }

    /// Forgets a peer and tells it.
    fn forget(&mut self, id: PeerId) {
        if let Some(peer) = self.remove_peer(id)
            && peer.agent.remote_tag().is_some()
        {
            self.signal_to(
                id,
                &Signal::Bye {
                    tag: peer.agent.tag(),
                },
            );
        }
    }

    fn remove_peer(&mut self, id: PeerId) -> Option<Peer> {
        let mut peer = self.peers.remove(id)?;
        self.tags.remove(&peer.agent.tag());
        self.free(peer.end_sessions());
        for addr in &peer.addrs {
            self.bindings.swap_remove(addr);
        }
        self.queued = self.queued.saturating_sub(peer.queue.len());
        self.drop_links(id);
        Some(peer)
    }

    fn free(&mut self, indices: Vec<u32>) {
        for index in indices {
            self.indices.remove(&index);
        }
    }

    fn new_index(&mut self, peer: PeerId) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if let std::collections::hash_map::Entry::Vacant(slot) = self.indices.entry(index) {
                slot.insert(peer);
                return index;
            }
        }
    }

    fn signal_to(&mut self, to: PeerId, signal: &Signal) {
        let bytes = signal.encode();
        self.emit(Event::Signal { to, bytes });
    }

    fn emit(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        } else {
            self.counters.events_lost += 1;
        }
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Where a datagram goes: an address, and the relayed session that it is wrapped for.
#[derive(Debug, Clone, Copy)]
struct Hop {
    to: UnderlayAddr,
    session: Option<u64>,
}

impl Hop {
    fn of(route: Route, links: &BTreeMap<u64, Link>) -> Option<Self> {
        match route {
            Route::Direct(to) | Route::Stream(to) => Some(Self { to, session: None }),
            Route::Relayed(session) => links.get(&session).map(|link| Self {
                to: link.addr,
                session: Some(session),
            }),
        }
    }

    /// Adds a datagram of `len` bytes that `fill` writes, wrapped if it goes through a relay.
    fn push(self, out: &mut Transmits, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let Some(session) = self.session else {
            return out.push_with(self.to, len, fill);
        };
        out.push_with(self.to, self.frame() + len, |slot| wrap(session, slot, fill))
    }

    /// The same for a datagram that must not be cut into fragments.
    fn push_whole(self, out: &mut Transmits, bytes: &[u8]) {
        let fill = |slot: &mut [u8]| {
            slot.copy_from_slice(bytes);
            true
        };
        out.push_whole(self.to, self.frame() + bytes.len(), |slot| match self.session {
            Some(session) => wrap(session, slot, fill),
            None => fill(slot),
        });
    }

    /// The bytes of the relay's frame, where there is one.
    fn frame(self) -> usize {
        self.session.map_or(0, |_| crate::wire::RELAY_OVERHEAD)
    }

    fn push_bytes(self, out: &mut Transmits, bytes: &[u8]) {
        self.push(out, bytes.len(), |slot| {
            slot.copy_from_slice(bytes);
            true
        });
    }
}

/// Writes a relay's frame, and by `fill` what is in it.
fn wrap(session: u64, slot: &mut [u8], fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
    let header = crate::wire::relay_header(session);
    let (head, rest) = slot.split_at_mut(header.len());
    head.copy_from_slice(&header);
    fill(rest)
}
