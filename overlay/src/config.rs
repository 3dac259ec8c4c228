//! What the caller decides, and the bounds that it does not.

use std::time::Duration;

use aerie_identity::NodeKeys;
use aerie_types::{GridId, PeerId, VirtualNet};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;

use crate::Error;

/// How an overlay is to run.
#[derive(Clone)]
pub struct Config {
    /// The grid.
    pub grid: GridId,
    /// The node's overlay key, which is its peer id.
    pub keypair: Keypair,
    /// Where to listen. May be empty for a node that can only be reached through relays.
    pub listen: Vec<Multiaddr>,
    /// Where to begin: addresses of members that are usually up, best with their `/p2p/` part.
    pub bootstrap: Vec<Multiaddr>,
    /// Members and addresses known from an earlier run ([`crate::Handle::known_addrs`]).
    pub known: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Addresses at which the node is known to be reachable from outside.
    pub external: Vec<Multiaddr>,
    /// Whether this node carries circuits for others. It has an open port: its listen addresses count as reachable.
    pub relay: bool,
    /// Whether to reserve places on relays. Wanted by every node that is not certain to be reachable.
    pub reserve: bool,
    /// Whether to look for members on the local network by multicast DNS.
    pub mdns: bool,
    /// The grid's virtual network, whose addresses are never dialled, so that the overlay does not run in the tunnel.
    pub virtual_net: Option<VirtualNet>,
    /// How often a connection is probed in a grid of up to nine members. Larger grids probe each connection more
    /// rarely, so that the traffic stays the same, and members tell each other whom they miss.
    pub probe_interval: Duration,
    /// How long a probe may go unanswered. After twice this time the connection is closed.
    pub probe_timeout: Duration,
    /// How long a request may take in all, finding and dialling the member included.
    pub request_timeout: Duration,
    /// To how many members connections are kept. In grids up to this size everybody is connected to everybody.
    pub max_members: usize,
}

impl Config {
    /// The settings of an ordinary member that listens nowhere yet.
    ///
    /// # Errors
    /// [`Error::Setup`] if the node's key is not usable.
    pub fn new(grid: GridId, keys: &NodeKeys) -> Result<Self, Error> {
        let mut seed = keys.overlay_seed();
        let keypair = Keypair::ed25519_from_bytes(&mut seed[..]).map_err(|error| Error::Setup {
            what: "identity",
            reason: error.to_string(),
        })?;
        Ok(Self::with_keypair(grid, keypair))
    }

    /// As [`Self::new`], from libp2p's form of the key.
    #[must_use]
    pub fn with_keypair(grid: GridId, keypair: Keypair) -> Self {
        Self {
            grid,
            keypair,
            listen: Vec::new(),
            bootstrap: Vec::new(),
            known: Vec::new(),
            external: Vec::new(),
            relay: false,
            reserve: true,
            mdns: false,
            virtual_net: None,
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(4),
            request_timeout: Duration::from_secs(10),
            max_members: 64,
        }
    }

    /// All interfaces, TCP and QUIC, IPv4 and IPv6, on one port number.
    #[must_use]
    pub fn listen_everywhere(port: u16) -> Vec<Multiaddr> {
        let mut addrs = Vec::with_capacity(4);
        for ip in [
            Protocol::Ip4(std::net::Ipv4Addr::UNSPECIFIED),
            Protocol::Ip6(std::net::Ipv6Addr::UNSPECIFIED),
        ] {
            let base = Multiaddr::from(ip);
            addrs.push(base.clone().with(Protocol::Tcp(port)));
            addrs.push(base.with(Protocol::Udp(port)).with(Protocol::QuicV1));
        }
        addrs
    }
}

/// The longest request, answer or gossiped message, in bytes: a full revocation list (600 KiB) fits.
pub(crate) const MAX_MESSAGE: usize = 1024 * 1024;

/// Commands that wait for the driver: a burst of look-ups of a busy register.
pub(crate) const COMMAND_QUEUE: usize = 1024;

/// Events that wait for the caller in the channel.
pub(crate) const EVENT_QUEUE: usize = 256;

/// Events kept by the driver when the channel is full; requests and messages beyond this are dropped.
pub(crate) const OUTBOX: usize = 1024;

/// Requests from members that the caller may have in hand at once.
pub(crate) const MAX_UNANSWERED: usize = 1024;

/// Requests that wait until their member is reached: for one member, and for all.
pub(crate) const MAX_WAITING_PER_PEER: usize = 64;
pub(crate) const MAX_WAITING: usize = 1024;

/// Look-ups of the network under way at once; more are answered from what is known.
pub(crate) const MAX_QUERIES: usize = 256;

/// Messages that wait for somebody to publish them to, and for how long.
pub(crate) const MAX_UNPUBLISHED: usize = 64;
pub(crate) const UNPUBLISHED_TTL: Duration = Duration::from_secs(30);

/// Members whose addresses are kept: more than a node is ever connected to, less than a megabyte.
pub(crate) const MAX_BOOK: usize = 1024;

/// Addresses kept of one member: a few interfaces times two transports, and two relays.
pub(crate) const MAX_ADDRS: usize = 12;

/// How many members a look-up names: Kademlia's k.
pub(crate) const CLOSEST: usize = 20;

/// How many relays a member reserves a place on: one may go.
pub(crate) const RELAYS: usize = 2;
