//! The protocols that a connection carries, and their settings.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{PeerId, StreamProtocol, autonat, dcutr, gossipsub, identify, kad, mdns, relay};

use crate::admission::{Gate, Refusal};
use crate::codec::Codec;
use crate::config::{Config, MAX_MESSAGE};
use crate::error::Error;
use crate::peer::from_libp2p;
use crate::{Protocol, Topic, liveness};

pub(crate) type Requests = request_response::Behaviour<Codec>;
pub(crate) type RequestsEvent = request_response::Event<Vec<u8>, Vec<u8>>;

/// Connections whose handshake is under way, before anybody knows who it is. A flood beyond this waits in the kernel.
const MAX_PENDING_INCOMING: u32 = 128;

/// Connections of one member: TCP and QUIC dialled from both sides at once, a relayed one, and a probe of `AutoNAT`.
const MAX_PER_MEMBER: u32 = 8;

/// Circuits that a relay carries and places that it gives: a full mesh of sixty members through one relay is 1770
/// circuits, and twice that while both sides of each pair try.
const MAX_CIRCUITS: usize = 4096;
const MAX_CIRCUITS_PER_MEMBER: usize = 128;
const MAX_RESERVATIONS: usize = 1024;

/// The most substreams of one request protocol at once on a connection.
const MAX_REQUEST_STREAMS: usize = 128;

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    // First, so that no other protocol ever counts a connection that is not a member's.
    guard: Guard,
    limits: connection_limits::Behaviour,
    pub(crate) liveness: liveness::Behaviour,
    pub(crate) identify: identify::Behaviour,
    pub(crate) kad: kad::Behaviour<MemoryStore>,
    pub(crate) gossip: gossipsub::Behaviour,
    pub(crate) dht: Requests,
    pub(crate) signal: Requests,
    pub(crate) control: Requests,
    pub(crate) mesh: Requests,
    relay_client: relay::client::Behaviour,
    relay_server: Toggle<relay::Behaviour>,
    dcutr: dcutr::Behaviour,
    autonat_client: autonat::v2::client::Behaviour,
    autonat_server: Toggle<autonat::v2::server::Behaviour>,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

impl Behaviour {
    pub(crate) fn new(
        config: &Config,
        gate: Arc<Gate>,
        relay_client: relay::client::Behaviour,
    ) -> Result<Self, Error> {
        let local = config.keypair.public().to_peer_id();
        let mdns = if config.mdns {
            let behaviour = mdns::tokio::Behaviour::new(mdns::Config::default(), local);
            match behaviour {
                Ok(behaviour) => Some(behaviour),
                Err(error) => {
                    tracing::warn!(%error, "members on the local network are not looked for: no multicast DNS");
                    None
                }
            }
        } else {
            None
        };
        Ok(Self {
            guard: Guard(gate),
            limits: limits(config),
            liveness: liveness::Behaviour::new(
                protocol(config, "alive")?,
                config.probe_interval,
                config.probe_timeout,
            ),
            identify: identify::Behaviour::new(
                identify::Config::new(format!("/aerie/{}/1", config.grid), config.keypair.public())
                    .with_agent_version(concat!("aerie/", env!("CARGO_PKG_VERSION")).to_owned())
                    // The driver pushes changes, several at a time; the interval only mends what a lost push broke.
                    .with_push_listen_addr_updates(false)
                    .with_interval(Duration::from_secs(3600))
                    .with_cache_size(0),
            ),
            kad: kademlia(config, local)?,
            gossip: gossip(config)?,
            dht: requests(config, Protocol::Dht.word())?,
            signal: requests(config, Protocol::Signal.word())?,
            control: requests(config, Protocol::Control.word())?,
            mesh: requests(config, "mesh")?,
            relay_client,
            relay_server: config
                .relay
                .then(|| relay::Behaviour::new(local, relay_limits()))
                .into(),
            dcutr: dcutr::Behaviour::new(local),
            autonat_client: autonat::v2::client::Behaviour::new(
                rand::make_rng::<rand::rngs::StdRng>(),
                autonat::v2::client::Config::default().with_probe_interval(AUTONAT_EVERY),
            ),
            autonat_server: config.relay.then(autonat::v2::server::Behaviour::default).into(),
            mdns: mdns.into(),
        })
    }

    pub(crate) fn requests(&mut self, protocol: Protocol) -> &mut Requests {
        match protocol {
            Protocol::Dht => &mut self.dht,
            Protocol::Signal => &mut self.signal,
            Protocol::Control => &mut self.control,
        }
    }
}

/// The name of a protocol of this grid: `/aerie/<grid>/<word>/1`.
fn protocol(config: &Config, word: &str) -> Result<StreamProtocol, Error> {
    StreamProtocol::try_from_owned(format!("/aerie/{}/{word}/1", config.grid))
        .map_err(|error| setup("protocol names", &error))
}

fn setup(what: &'static str, reason: &dyn std::fmt::Display) -> Error {
    Error::Setup {
        what,
        reason: reason.to_string(),
    }
}

/// How often gossip mends its mesh and offers what a member may have missed. New messages do not wait for it.
const GOSSIP_HEARTBEAT: Duration = Duration::from_secs(3);

/// How often a member asks relays to dial it back. A dial into a NAT ends by a timeout only, after which it is tried
/// again; and whether a member can be dialled changes seldom.
const AUTONAT_EVERY: Duration = Duration::from_secs(60);

fn limits(config: &Config) -> connection_limits::Behaviour {
    // A relay serves everybody, whoever it keeps as its own neighbours.
    let members = if config.relay {
        MAX_RESERVATIONS
    } else {
        2 * config.max_members
    };
    let total = u32::try_from(members).unwrap_or(u32::MAX).saturating_mul(2);
    connection_limits::Behaviour::new(
        ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING_INCOMING))
            .with_max_established_per_peer(Some(MAX_PER_MEMBER))
            .with_max_established(Some(total)),
    )
}

fn kademlia(config: &Config, local: PeerId) -> Result<kad::Behaviour<MemoryStore>, Error> {
    let mut settings = kad::Config::new(protocol(config, "kad")?);
    settings
        // Kademlia locates; nothing is stored in it, whatever a member sends.
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_provider_publication_interval(None)
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_query_timeout(Duration::from_secs(8))
        .set_substreams_timeout(Duration::from_secs(5))
        .set_periodic_bootstrap_interval(Some(Duration::from_secs(1800)));
    let store = MemoryStore::with_config(
        local,
        MemoryStoreConfig {
            max_records: 0,
            max_provided_keys: 0,
            ..MemoryStoreConfig::default()
        },
    );
    let mut kad = kad::Behaviour::with_config(local, store, settings);
    kad.set_mode(Some(kad::Mode::Server));
    Ok(kad)
}

fn gossip(config: &Config) -> Result<gossipsub::Behaviour, Error> {
    let settings = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(format!("/aerie/{}/gossip", config.grid))
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .heartbeat_interval(GOSSIP_HEARTBEAT)
        .max_transmit_size(MAX_MESSAGE)
        .build()
        .map_err(|error| setup("gossip", &error))?;
    let authenticity = gossipsub::MessageAuthenticity::Signed(config.keypair.clone());
    let mut gossip =
        gossipsub::Behaviour::new(authenticity, settings).map_err(|error| setup("gossip", &error))?;
    let topics = Topic::ALL.map(|topic| topic.name(config.grid));
    for name in topics.into_iter().chain([suspects(config)]) {
        gossip
            .subscribe(&gossipsub::IdentTopic::new(name))
            .map_err(|error| setup("gossip", &error))?;
    }
    Ok(gossip)
}

/// The topic on which members tell each other whom they miss.
pub(crate) fn suspects(config: &Config) -> String {
    format!("/aerie/{}/suspects/1", config.grid)
}

fn requests(config: &Config, word: &str) -> Result<Requests, Error> {
    Ok(Requests::with_codec(
        Codec,
        [(protocol(config, word)?, ProtocolSupport::Full)],
        request_response::Config::default()
            .with_request_timeout(config.request_timeout)
            .with_max_concurrent_streams(MAX_REQUEST_STREAMS),
    ))
}

/// A grid's relay serves its members alone, who have all been admitted: no limit in time or bytes.
fn relay_limits() -> relay::Config {
    relay::Config {
        max_reservations: MAX_RESERVATIONS,
        reservation_rate_limiters: Vec::new(),
        max_circuits: MAX_CIRCUITS,
        max_circuits_per_peer: MAX_CIRCUITS_PER_MEMBER,
        // 0 closes at once, and more than 32 bits panics.
        max_circuit_duration: Duration::from_secs(u64::from(u32::MAX)),
        max_circuit_bytes: 0,
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    }
}

/// Denies every connection whose peer was not admitted, or has lost its standing since the handshake.
pub(crate) struct Guard(Arc<Gate>);

impl Guard {
    fn pass(&self, peer: &PeerId) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        let judged = from_libp2p(peer)
            .ok_or(Refusal::KeyMismatch)
            .and_then(|peer| self.0.check(peer));
        match judged {
            Ok(_) => Ok(dummy::ConnectionHandler),
            Err(refusal) => Err(ConnectionDenied::new(refusal)),
        }
    }
}

impl NetworkBehaviour for Guard {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pass(&peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pass(&peer)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
