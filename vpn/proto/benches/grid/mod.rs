//! One node and its peers, all of them real cores, with a network between them that loses nothing and takes a
//! few milliseconds: what a benchmark needs before its first packet.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use aerie_types::{GridId, PeerId, UnderlayAddr, VirtualAddr, WallMillis};
use aerie_vpn_proto::{
    Config, CredentialCheck, Event, Identity, Now, RemoteIdentity, RemotePeer, Suite, Transmits, Tunnels,
    noise_public,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How long a datagram takes, and a signal. One peer comes in each.
const STEP: Duration = Duration::from_millis(5);
/// Within so many steps cores that reach each other have a session.
const PATIENCE: u32 = 2_000;
/// After that the lengths of all paths are known, and no offer or handshake is under way.
const CALM: Duration = Duration::from_secs(5);
const PORT: u16 = 4242;
const GRID: GridId = GridId([9; 16]);
/// The range, and the first address in it: the hub's.
const RANGE: &str = "100.96.0.0/11";
const FIRST: u32 = u32::from_be_bytes([100, 96, 0, 1]);
/// Where the hub is outside; each peer has an address of its own.
const HUB: UnderlayAddr = UnderlayAddr(SocketAddr::new(
    std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    PORT,
));

/// A credential is `peer 32, noise key 32, name`.
struct Check;

impl CredentialCheck for Check {
    fn check(&self, der: &[u8], _: WallMillis) -> Result<RemoteIdentity, String> {
        let read = || {
            let (peer, rest) = der.split_first_chunk()?;
            let (noise_public, name) = rest.split_first_chunk()?;
            Some(RemoteIdentity {
                peer: PeerId(*peer),
                noise_public: *noise_public,
                node: std::str::from_utf8(name).ok()?.parse().ok()?,
            })
        };
        read().ok_or_else(|| "malformed".to_owned())
    }
}

/// A node that a peer of the hub is, or the hub itself.
pub(crate) struct Node {
    pub(crate) core: Tunnels,
    pub(crate) addr: VirtualAddr,
    remote: RemotePeer,
    outside: UnderlayAddr,
}

impl Node {
    fn new(number: u32, outside: UnderlayAddr, suite: Suite, rng: &mut ChaCha8Rng, now: Now) -> Self {
        let mut peer = [0; 32];
        rng.fill_bytes(&mut peer);
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let remote = RemotePeer {
            peer: PeerId(peer),
            noise_public: noise_public(&secret).unwrap(),
        };
        let mut credential = peer.to_vec();
        credential.extend(remote.noise_public);
        credential.extend(format!("node{number}").bytes());
        let identity = Identity {
            grid: GRID,
            peer: remote.peer,
            noise_secret: secret.into(),
            credential,
        };
        let addr = virt(number);
        let config = Config {
            range: RANGE.parse().unwrap(),
            addr,
            mtu: 1420,
            suites: vec![suite],
            relay: None,
            loopback: false,
        };
        let mut core = Tunnels::new(config, identity, Box::new(Check), rng, now).unwrap();
        core.set_hosts(vec![outside], now);
        Self {
            core,
            addr,
            remote,
            outside,
        }
    }
}

/// The hub and its peers.
pub(crate) struct Grid {
    pub(crate) hub: Node,
    pub(crate) peers: Vec<Node>,
    now: Instant,
    start: Instant,
    /// Which peer is at an address, and which has an id.
    outside: HashMap<UnderlayAddr, usize>,
    ids: HashMap<PeerId, usize>,
}

impl Grid {
    /// A hub that has a session with each of so many peers.
    #[expect(clippy::disallowed_methods, reason = "a benchmark's clock starts somewhere")]
    pub(crate) fn new(peers: u32, suite: Suite) -> Self {
        let now = Instant::now();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let hub = Node::new(0, HUB, suite, &mut rng, moment(now, now));
        let mut grid = Self {
            hub,
            peers: Vec::new(),
            now,
            start: now,
            outside: HashMap::new(),
            ids: HashMap::new(),
        };
        for number in 1..=peers {
            let host = Ipv4Addr::from(u32::from_be_bytes([10, 0, 0, 0]) + number);
            let outside = UnderlayAddr((host, PORT).into());
            let peer = Node::new(number, outside, suite, &mut rng, grid.moment());
            let index = grid.peers.len();
            grid.outside.insert(outside, index);
            grid.ids.insert(peer.remote.peer, index);
            grid.peers.push(peer);
            grid.greet(index);
            grid.advance();
        }
        let mut waiting: Vec<usize> = (0..grid.peers.len()).collect();
        for _ in 0..PATIENCE {
            waiting.retain(|peer| !grid.is_connected(*peer));
            if waiting.is_empty() {
                break;
            }
            grid.advance();
        }
        assert!(waiting.is_empty(), "{} peers got no session", waiting.len());
        grid.run(CALM);
        grid
    }

    /// A core that knows so many peers and has spoken with none of them, and a packet for each.
    #[expect(clippy::disallowed_methods, reason = "a benchmark's clock starts somewhere")]
    pub(crate) fn of_strangers(peers: u32) -> (Tunnels, Vec<Vec<u8>>) {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let start = Instant::now();
        let now = moment(start, start);
        let mut hub = Node::new(0, HUB, Suite::Aes256Gcm, &mut rng, now);
        let packets = (1..=peers).map(|number| {
            let mut remote = hub.remote;
            rng.fill_bytes(&mut remote.peer.0);
            hub.core.resolved(virt(number), Some(remote), now);
            udp(hub.addr, virt(number), 64)
        });
        let packets = packets.collect();
        assert_eq!(hub.core.peers(now).len(), peers as usize);
        (hub.core, packets)
    }

    pub(crate) fn moment(&self) -> Now {
        moment(self.now, self.start)
    }

    /// Does at the hub what is due at this moment, so that nothing more is.
    pub(crate) fn settle(&mut self) {
        let now = self.moment();
        self.hub.core.handle_timeout(now);
        let mut out = Transmits::new();
        self.hub.core.poll_transmits(&mut out);
        self.carry_from_hub(&out);
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.advance();
        }
    }

    /// A packet of the hub for a peer, in UDP, of so many bytes in all.
    pub(crate) fn packet(&self, to: usize, len: usize) -> Vec<u8> {
        udp(self.hub.addr, self.peers[to].addr, len)
    }

    /// Lets each of the two know the other, and the peer speak first.
    fn greet(&mut self, peer: usize) {
        let now = self.moment();
        let hub = (self.hub.addr, self.hub.remote);
        let node = &mut self.peers[peer];
        self.hub.core.resolved(node.addr, Some(node.remote), now);
        node.core.resolved(hub.0, Some(hub.1), now);
        let hello = udp(node.addr, hub.0, 64);
        node.core.handle_inner(&hello, now, &mut Transmits::new());
    }

    /// Whether both ends have a session and the hub has a way to use it.
    fn is_connected(&mut self, peer: usize) -> bool {
        let now = self.moment();
        let known = self.peers[peer].core.peers(now);
        if known.iter().all(|hub| hub.suite.is_none()) {
            return false;
        }
        let packet = self.packet(peer, 64);
        let mut out = Transmits::new();
        self.hub.core.handle_inner(&packet, now, &mut out);
        self.carry_from_hub(&out);
        !out.is_empty()
    }

    fn advance(&mut self) {
        self.now += STEP;
        self.step_hub();
        for peer in 0..self.peers.len() {
            self.step_peer(peer);
        }
    }

    fn step_hub(&mut self) {
        let now = self.moment();
        if self.hub.core.poll_timeout().is_some_and(|at| at <= self.now) {
            self.hub.core.handle_timeout(now);
        }
        let mut out = Transmits::new();
        self.hub.core.poll_transmits(&mut out);
        self.carry_from_hub(&out);
        while let Some(event) = self.hub.core.poll_event() {
            if let Event::Signal { to, bytes } = event
                && let Some(peer) = self.ids.get(&to)
            {
                let from = self.hub.remote.peer;
                self.peers[*peer].core.signal(from, &bytes, now).unwrap();
            }
        }
    }

    fn step_peer(&mut self, peer: usize) {
        let now = self.moment();
        let node = &mut self.peers[peer];
        if node.core.poll_timeout().is_some_and(|at| at <= self.now) {
            node.core.handle_timeout(now);
        }
        let mut out = Transmits::new();
        node.core.poll_transmits(&mut out);
        for (_, datagram) in out.iter() {
            let mut datagram = datagram.to_vec();
            self.hub.core.handle_datagram(node.outside, &mut datagram, now);
        }
        while let Some(event) = node.core.poll_event() {
            if let Event::Signal { bytes, .. } = event {
                self.hub.core.signal(node.remote.peer, &bytes, now).unwrap();
            }
        }
    }

    fn carry_from_hub(&mut self, out: &Transmits) {
        let now = self.moment();
        for (to, datagram) in out.iter() {
            let mut datagram = datagram.to_vec();
            if let Some(peer) = self.outside.get(&to) {
                self.peers[*peer].core.handle_datagram(HUB, &mut datagram, now);
            }
        }
    }
}

/// Where the hub's packets leave from, for who opens them.
pub(crate) fn hub_outside() -> UnderlayAddr {
    HUB
}

fn moment(now: Instant, start: Instant) -> Now {
    Now {
        instant: now,
        wall: WallMillis(1_700_000_000_000 + (now - start).as_millis() as u64),
    }
}

fn virt(number: u32) -> VirtualAddr {
    Ipv4Addr::from(FIRST + number).into()
}

fn udp(source: VirtualAddr, destination: VirtualAddr, len: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(source.v4().unwrap().octets());
    packet.extend(destination.v4().unwrap().octets());
    packet.resize(len, 0x5a);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}
