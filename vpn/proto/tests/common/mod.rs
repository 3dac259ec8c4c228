//! A small internet in memory, with virtual time: nodes with real cores, NATs as RFC 4787 names them, a latency,
//! and a wire that can be listened to, cut and tampered with.

// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
#![expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]

mod echo;
mod nat;
mod packets;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use aerie_types::{GridId, PeerId, UnderlayAddr, VirtualAddr, WallMillis};
use aerie_vpn_proto::{
    Config, CredentialCheck, Event, Identity, Now, PathKind, RelayInfo, RelayLimits, RemoteIdentity,
    RemotePeer, StreamAction, Suite, Transmits, Tunnels, noise_public,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub(crate) use nat::NatKind;
pub(crate) use packets::{udp, udp6, ula, virt6};

use nat::Nat;

const LATENCY: Duration = Duration::from_millis(10);
/// The handshakes of TCP and TLS.
const CONNECTING: Duration = Duration::from_millis(60);
const OVERLAY_LATENCY: Duration = Duration::from_millis(40);
pub(crate) const PORT: u16 = 4242;
const GRID: GridId = GridId([9; 16]);

pub(crate) struct Node {
    pub(crate) core: Tunnels,
    pub(crate) peer: PeerId,
    pub(crate) virt: VirtualAddr,
    pub(crate) host: SocketAddr,
    pub(crate) nat: Option<usize>,
    pub(crate) delivered: Vec<Vec<u8>>,
    pub(crate) events: Vec<Event>,
    pub(crate) online: bool,
    /// Whether its network drops UDP in both directions.
    pub(crate) udp_blocked: bool,
    /// How far its wall clock is behind everybody else's.
    pub(crate) behind: Duration,
}

/// Who presents which credential is decided by its bytes: `peer 32, noise key 32, expiry 8, name`.
struct Check;

impl CredentialCheck for Check {
    fn check(&self, der: &[u8], wall: WallMillis) -> Result<RemoteIdentity, String> {
        if der.len() < 73 {
            return Err("malformed".to_owned());
        }
        let expiry = u64::from_be_bytes(der[64..72].try_into().unwrap());
        if wall.0 > expiry {
            return Err(
                "it has expired; the node renews it by itself when it can reach the portal".to_owned(),
            );
        }
        Ok(RemoteIdentity {
            peer: PeerId(der[..32].try_into().unwrap()),
            noise_public: der[32..64].try_into().unwrap(),
            node: std::str::from_utf8(&der[72..]).unwrap().parse().unwrap(),
        })
    }
}

pub(crate) fn credential(peer: PeerId, noise: [u8; 32], expiry: WallMillis, name: &str) -> Vec<u8> {
    let mut der = peer.0.to_vec();
    der.extend(noise);
    der.extend(expiry.0.to_be_bytes());
    der.extend(name.as_bytes());
    der
}

enum Item {
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        via: Option<usize>,
        bytes: Vec<u8>,
    },
    Signal {
        from: PeerId,
        to: PeerId,
        bytes: Vec<u8>,
    },
    Resolved {
        node: usize,
        addr: VirtualAddr,
    },
    /// A connection comes about, or not.
    Connect {
        node: usize,
        relay: PeerId,
    },
    /// A datagram over a connection, to the end with this number.
    Streamed {
        to: u64,
        bytes: Vec<u8>,
    },
    /// The connection whose end has this number is closed by the other.
    Closed {
        to: u64,
    },
}

/// A datagram on the wire, outside of every NAT.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
    /// Whether it must not be cut into fragments.
    pub(crate) whole: bool,
}

type Filter = Box<dyn FnMut(&Seen) -> bool>;

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) nodes: Vec<Node>,
    nats: Vec<Nat>,
    queue: BTreeMap<(Instant, u64), Item>,
    sequence: u64,
    pub(crate) wire: Vec<Seen>,
    /// Drops the datagrams for which it says `true`.
    pub(crate) drop_if: Option<Filter>,
    /// How much longer datagrams take to an address.
    delays: BTreeMap<SocketAddr, Duration>,
    pub(crate) overlay_up: bool,
    /// Whether TCP passes.
    pub(crate) tcp_up: bool,
    /// The ends of connections by their numbers: whose each is, and the number of the other.
    pub(crate) streams: BTreeMap<u64, (usize, u64)>,
    /// Connections that were asked for.
    pub(crate) connects: usize,
    pub(crate) holders: BTreeMap<VirtualAddr, usize>,
    rng: ChaCha8Rng,
    pub(crate) wall_offset: u64,
}

pub(crate) fn virt(n: u8) -> VirtualAddr {
    Ipv4Addr::new(100, 96, 0, n).into()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            nodes: Vec::new(),
            nats: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            wire: Vec::new(),
            drop_if: None,
            delays: BTreeMap::new(),
            overlay_up: true,
            tcp_up: true,
            streams: BTreeMap::new(),
            connects: 0,
            holders: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            wall_offset: 1_700_000_000_000,
        }
    }

    pub(crate) fn nat(&mut self, kind: NatKind) -> usize {
        let n = self.nats.len();
        self.nats
            .push(Nat::new(kind, Ipv4Addr::new(198, 51, 100, n as u8 + 1), None));
        n
    }

    /// A NAT sends nothing back in that is for its own outside.
    pub(crate) fn without_hairpin(&mut self, nat: usize) {
        self.nats[nat].hairpin = false;
    }

    /// A NAT behind another one.
    pub(crate) fn nat_behind(&mut self, outer: usize, kind: NatKind) -> usize {
        let n = self.nats.len();
        let public = Ipv4Addr::new(10, outer as u8, 1, n as u8 + 1);
        self.nats.push(Nat::new(kind, public, Some(outer)));
        n
    }

    pub(crate) fn public(&mut self) -> usize {
        self.add(None, None, WallMillis(u64::MAX))
    }

    pub(crate) fn behind(&mut self, kind: NatKind) -> usize {
        let nat = self.nat(kind);
        self.add(Some(nat), None, WallMillis(u64::MAX))
    }

    pub(crate) fn relay(&mut self) -> usize {
        self.add(None, Some(RelayLimits::default()), WallMillis(u64::MAX))
    }

    pub(crate) fn add(
        &mut self,
        nat: Option<usize>,
        relay: Option<RelayLimits>,
        expiry: WallMillis,
    ) -> usize {
        let n = self.nodes.len();
        let tag = n as u8 + 1;
        let host: SocketAddr = match nat {
            Some(nat) => (Ipv4Addr::new(10, nat as u8, 0, tag), PORT).into(),
            None => (Ipv4Addr::new(192, 0, 2, tag), PORT).into(),
        };
        let core = self.core(tag, relay, expiry, self.moment());
        self.nodes.push(Node {
            core,
            peer: PeerId([tag; 32]),
            virt: virt(tag),
            host,
            nat,
            delivered: Vec::new(),
            events: Vec::new(),
            online: true,
            udp_blocked: false,
            behind: Duration::ZERO,
        });
        let now = self.moment();
        self.nodes[n].core.set_hosts(vec![UnderlayAddr(host)], now);
        self.holders.insert(virt(tag), n);
        n
    }

    /// A node ends without a word and starts again, with nothing but its keys.
    pub(crate) fn restart(&mut self, n: usize) {
        let now = self.moment_of(n);
        self.nodes[n].core = self.core(n as u8 + 1, None, WallMillis(u64::MAX), now);
        let host = UnderlayAddr(self.nodes[n].host);
        self.nodes[n].core.set_hosts(vec![host], now);
    }

    fn core(&mut self, tag: u8, relay: Option<RelayLimits>, expiry: WallMillis, now: Now) -> Tunnels {
        let peer = PeerId([tag; 32]);
        let secret = [tag ^ 0x55; 32];
        let noise = noise_public(&secret).unwrap();
        let identity = Identity {
            grid: GRID,
            peer,
            noise_secret: secret.into(),
            credential: credential(peer, noise, expiry, &format!("node{tag}")),
        };
        let config = Config {
            range: "100.96.0.0/11".parse().unwrap(),
            addr: virt(tag),
            mtu: 1420,
            suites: Suite::preferred(true),
            relay,
            loopback: false,
        };
        Tunnels::new(config, identity, Box::new(Check), &mut self.rng, now).unwrap()
    }

    /// Tells every node of the relays, and lets them find out how they look from outside.
    pub(crate) fn announce_relays(&mut self, relays: &[usize]) {
        let infos: Vec<_> = relays
            .iter()
            .map(|n| RelayInfo {
                peer: self.nodes[*n].peer,
                addr: UnderlayAddr(self.nodes[*n].host),
                tls: Some(UnderlayAddr((self.nodes[*n].host.ip(), 443).into())),
            })
            .collect();
        let now = self.moment();
        for node in &mut self.nodes {
            node.core.set_relays(infos.clone(), now);
        }
        self.run(Duration::from_millis(200));
    }

    pub(crate) fn moment(&self) -> Now {
        let wall = WallMillis(self.wall_offset + (self.now - self.start).as_millis() as u64);
        Now {
            instant: self.now,
            wall,
        }
    }

    /// The moment by a node's own clock.
    pub(crate) fn moment_of(&self, n: usize) -> Now {
        let now = self.moment();
        let behind = self.nodes[n].behind.as_millis() as u64;
        Now {
            wall: WallMillis(now.wall.0 - behind),
            ..now
        }
    }

    /// Gives a node a packet of its own to send.
    pub(crate) fn send(&mut self, from: usize, to: usize, payload: &[u8]) {
        let packet = udp(self.nodes[from].virt, self.nodes[to].virt, payload);
        self.send_raw(from, &packet);
    }

    pub(crate) fn send_raw(&mut self, from: usize, packet: &[u8]) {
        let now = self.moment_of(from);
        let mut out = Transmits::new();
        self.nodes[from].core.handle_inner(packet, now, &mut out);
        self.dispatch(from, &out);
        self.settle(from);
    }

    /// A node's NAT leads a port to it, and the node's host has been told.
    pub(crate) fn give_port(&mut self, n: usize) -> SocketAddr {
        let nat = self.nodes[n].nat.unwrap();
        let addr = self.nats[nat].lead(PORT, self.nodes[n].host);
        let now = self.moment_of(n);
        self.nodes[n].core.set_mapped(Some(UnderlayAddr(addr)), now);
        self.settle(n);
        addr
    }

    /// A NAT forgets every mapping and has another address from now on, and says so to nobody.
    pub(crate) fn renumber(&mut self, nat: usize) {
        self.nats[nat].renumber();
    }

    /// A node goes to a network behind another NAT, and its host notices.
    pub(crate) fn roam(&mut self, n: usize, nat: usize) {
        let host: SocketAddr = (Ipv4Addr::new(10, nat as u8, 0, n as u8 + 1), PORT).into();
        (self.nodes[n].host, self.nodes[n].nat) = (host, Some(nat));
        let now = self.moment_of(n);
        self.nodes[n].core.set_hosts(vec![UnderlayAddr(host)], now);
        self.settle(n);
    }

    /// Makes an address farther away.
    pub(crate) fn delay(&mut self, to: SocketAddr, more: Duration) {
        self.delays.insert(to, more);
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        for n in 0..self.nodes.len() {
            self.settle(n);
        }
        loop {
            let timers = self.nodes.iter().enumerate().filter(|(_, node)| node.online);
            let timer = timers
                .filter_map(|(n, node)| Some((node.core.poll_timeout()?, n)))
                .min();
            let item = self.queue.first_key_value().map(|(key, _)| *key);
            let next = [timer.map(|(at, _)| at), item.map(|(at, _)| at)]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if let Some(key) = item.filter(|(at, _)| *at <= next) {
                let item = self.queue.remove(&key).unwrap();
                self.handle(item);
            } else if let Some((_, n)) = timer {
                let now = self.moment_of(n);
                self.nodes[n].core.handle_timeout(now);
                self.settle(n);
            }
        }
        self.now = end;
    }

    pub(crate) fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Duration {
        let began = self.now;
        while !done(self) {
            assert!(self.now - began < limit, "it did not happen within {limit:?}");
            self.run(Duration::from_millis(20));
        }
        self.now - began
    }

    /// Puts a datagram on the wire, as anybody could.
    pub(crate) fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.push(
            LATENCY,
            Item::Datagram {
                from,
                to,
                via: None,
                bytes,
            },
        );
    }

    pub(crate) fn path(&self, from: usize, to: usize) -> PathKind {
        let peers = self.nodes[from].core.peers(self.moment());
        let found = peers.into_iter().find(|peer| peer.peer == self.nodes[to].peer);
        found.map_or(PathKind::None, |peer| peer.path)
    }

    pub(crate) fn received(&self, node: usize) -> Vec<Vec<u8>> {
        self.nodes[node]
            .delivered
            .iter()
            .map(|packet| packet[if packet[0] >> 4 == 4 { 20 } else { 40 }..].to_vec())
            .collect()
    }

    /// Closes a connection from its end with this number.
    pub(crate) fn close(&mut self, number: u64) {
        if let Some((_, far)) = self.streams.remove(&number) {
            self.push(LATENCY, Item::Closed { to: far });
        }
    }

    pub(crate) fn signal(&mut self, from: PeerId, to: usize, bytes: &[u8]) {
        let now = self.moment_of(to);
        let _ = self.nodes[to].core.signal(from, bytes, now);
        self.settle(to);
    }

    fn push(&mut self, after: Duration, item: Item) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), item);
    }

    /// Takes everything a core has to say, until it has nothing more.
    pub(crate) fn settle(&mut self, n: usize) {
        let mut out = Transmits::new();
        self.nodes[n].core.poll_transmits(&mut out);
        self.nodes[n].core.poll_forwards(&mut out);
        self.dispatch(n, &out);
        while let Some(packet) = self.nodes[n].core.poll_inner() {
            self.nodes[n].delivered.push(packet);
        }
        while let Some(event) = self.nodes[n].core.poll_event() {
            match &event {
                Event::Resolve(addr) if self.overlay_up => {
                    self.push(OVERLAY_LATENCY, Item::Resolved { node: n, addr: *addr });
                }
                Event::Signal { to, bytes } if self.overlay_up => {
                    let from = self.nodes[n].peer;
                    self.push(
                        OVERLAY_LATENCY,
                        Item::Signal {
                            from,
                            to: *to,
                            bytes: bytes.clone(),
                        },
                    );
                }
                _ => {}
            }
            self.nodes[n].events.push(event);
        }
        while let Some(action) = self.nodes[n].core.poll_stream() {
            match action {
                StreamAction::Open { relay, .. } => {
                    self.connects += 1;
                    self.push(CONNECTING, Item::Connect { node: n, relay });
                }
                StreamAction::Close(stream) => self.close(stream.stream().unwrap()),
                StreamAction::Proved(_) => {}
            }
        }
    }

    fn dispatch(&mut self, n: usize, out: &Transmits) {
        if !self.nodes[n].online {
            return;
        }
        let (host, nat) = (self.nodes[n].host, self.nodes[n].nat);
        for run in out.runs(1) {
            let (to, bytes) = (run.to.0, run.bytes);
            if let Some(number) = run.to.stream() {
                if let Some((_, far)) = self.streams.get(&number).copied() {
                    let bytes = bytes.to_vec();
                    self.push(LATENCY, Item::Streamed { to: far, bytes });
                }
                continue;
            }
            let Some((from, via)) = self.leave(host, nat, to) else {
                continue;
            };
            let seen = Seen {
                at: self.now,
                from,
                to,
                bytes: bytes.to_vec(),
                whole: run.whole,
            };
            let dropped =
                self.nodes[n].udp_blocked || self.drop_if.as_mut().is_some_and(|filter| filter(&seen));
            self.wire.push(seen);
            if !dropped {
                let delay = self.delays.get(&to).copied().unwrap_or_default();
                self.push(
                    LATENCY + delay,
                    Item::Datagram {
                        from,
                        to,
                        via,
                        bytes: bytes.to_vec(),
                    },
                );
            }
        }
    }

    fn handle(&mut self, item: Item) {
        match item {
            Item::Datagram {
                from,
                to,
                via,
                mut bytes,
            } => {
                let Some(n) = self.arrive(from, to, via) else {
                    return;
                };
                let now = self.moment_of(n);
                let node = &mut self.nodes[n];
                if node.udp_blocked {
                    return;
                }
                if let Some(packet) = node.core.handle_datagram(UnderlayAddr(from), &mut bytes, now) {
                    node.delivered.push(bytes[packet].to_vec());
                }
                self.settle(n);
            }
            Item::Signal { from, to, bytes } => {
                let Some(n) = self.nodes.iter().position(|node| node.peer == to && node.online) else {
                    return;
                };
                let now = self.moment_of(n);
                self.nodes[n].core.signal(from, &bytes, now).unwrap();
                self.settle(n);
            }
            Item::Connect { node, relay } => {
                let now = self.moment_of(node);
                let far = self
                    .nodes
                    .iter()
                    .position(|node| node.peer == relay && node.online);
                match far.filter(|_| self.tcp_up) {
                    Some(far) => {
                        let number = 1 + self.streams.keys().last().copied().unwrap_or(0);
                        self.streams.insert(number, (node, number + 1));
                        self.streams.insert(number + 1, (far, number));
                        let stream = UnderlayAddr::of_stream(number);
                        self.nodes[node].core.stream_opened(relay, stream, now);
                    }
                    None => self.nodes[node].core.stream_failed(relay, now),
                }
                self.settle(node);
            }
            Item::Streamed { to, mut bytes } => {
                let Some((n, _)) = self.streams.get(&to).copied() else {
                    return;
                };
                let now = self.moment_of(n);
                let node = &mut self.nodes[n];
                let from = UnderlayAddr::of_stream(to);
                if let Some(packet) = node.core.handle_datagram(from, &mut bytes, now) {
                    node.delivered.push(bytes[packet].to_vec());
                }
                self.settle(n);
            }
            Item::Closed { to } => {
                if let Some((n, _)) = self.streams.remove(&to) {
                    let now = self.moment_of(n);
                    self.nodes[n].core.stream_ended(UnderlayAddr::of_stream(to), now);
                    self.settle(n);
                }
            }
            Item::Resolved { node, addr } => {
                let remote = self.holders.get(&addr).map(|holder| {
                    let tag = self.nodes[*holder].peer.0[0];
                    RemotePeer {
                        peer: self.nodes[*holder].peer,
                        noise_public: noise_public(&[tag ^ 0x55; 32]).unwrap(),
                    }
                });
                let now = self.moment_of(node);
                self.nodes[node].core.resolved(addr, remote, now);
                self.settle(node);
            }
        }
    }
}
