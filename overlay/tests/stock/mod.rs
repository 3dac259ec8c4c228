//! Peers that are not Aerie's: stock libp2p, and one that speaks the handshake and then garbage.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::future::Future;
use std::pin::Pin;

use aerie_overlay::admission::{Secured, prologue};
use aerie_types::PeerId;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder, identify, noise, ping, relay, tcp, yamux};

use crate::common::{DEADLINE, Grid};

#[derive(NetworkBehaviour)]
pub struct Plain {
    relay: Toggle<relay::client::Behaviour>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

fn plain(keypair: &Keypair) -> Plain {
    Plain {
        relay: None.into(),
        identify: identify::Behaviour::new(identify::Config::new("/ipfs/1.0.0".into(), keypair.public())),
        ping: ping::Behaviour::default(),
    }
}

pub struct Stock {
    pub swarm: Swarm<Plain>,
    pub established: usize,
    pub identified: usize,
}

impl Stock {
    /// Plain Noise and QUIC, identify and ping.
    pub fn plain() -> Self {
        let swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_quic()
            .with_behaviour(plain)
            .unwrap()
            .build();
        Self::of(swarm)
    }

    pub fn with_security(security: Garbage) -> Self {
        let swarm = SwarmBuilder::with_existing_identity(security.keypair.clone())
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                |_: &Keypair| Ok::<_, noise::Error>(security),
                yamux::Config::default,
            )
            .unwrap()
            .with_behaviour(plain)
            .unwrap()
            .build();
        Self::of(swarm)
    }

    /// The grid's handshake towards the relay, plain Noise through its circuits.
    pub fn through_relay(keypair: Keypair, secured: Secured) -> Self {
        let swarm = SwarmBuilder::with_existing_identity(keypair)
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                |_: &Keypair| Ok::<_, noise::Error>(secured),
                yamux::Config::default,
            )
            .unwrap()
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|keypair, relay| Plain {
                relay: Some(relay).into(),
                ..plain(keypair)
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE))
            .build();
        Self::of(swarm)
    }

    fn of(swarm: Swarm<Plain>) -> Self {
        Self {
            swarm,
            established: 0,
            identified: 0,
        }
    }

    pub fn peer(&self) -> PeerId {
        PeerId::from_multihash(&self.swarm.local_peer_id().to_bytes()).unwrap()
    }

    pub fn dial(&mut self, addr: &Multiaddr) {
        self.swarm.dial(addr.clone()).unwrap();
    }

    /// Listens and gives the full address.
    pub async fn listen(&mut self, addr: &str) -> Multiaddr {
        self.swarm.listen_on(addr.parse().unwrap()).unwrap();
        let event = self
            .until("listening", |event| {
                matches!(event, SwarmEvent::NewListenAddr { .. })
            })
            .await;
        let SwarmEvent::NewListenAddr { address, .. } = event else {
            unreachable!()
        };
        address.with(Protocol::P2p(*self.swarm.local_peer_id()))
    }

    /// Reserves a place, given the own address through the relay, and gives that address back.
    pub async fn listen_through(&mut self, own: &Multiaddr) -> Multiaddr {
        let mut place = own.clone();
        place.pop();
        self.swarm.listen_on(place).unwrap();
        self.until("a place", |event| {
            matches!(event, SwarmEvent::NewListenAddr { .. })
        })
        .await;
        own.clone()
    }

    pub async fn until(
        &mut self,
        what: &str,
        wanted: impl Fn(&SwarmEvent<PlainEvent>) -> bool,
    ) -> SwarmEvent<PlainEvent> {
        let waiting = async {
            loop {
                let event = self.step().await;
                if wanted(&event) {
                    return event;
                }
            }
        };
        match tokio::time::timeout(DEADLINE, waiting).await {
            Ok(event) => event,
            Err(_) => panic!("the stock peer never saw: {what}"),
        }
    }

    /// Lets the swarm run until something else is done.
    pub async fn while_running<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                _ = self.step() => {}
            }
        }
    }

    async fn step(&mut self) -> SwarmEvent<PlainEvent> {
        let event = self.swarm.select_next_some().await;
        match &event {
            SwarmEvent::ConnectionEstablished { .. } => self.established += 1,
            SwarmEvent::Behaviour(PlainEvent::Identify(identify::Event::Received { .. })) => {
                self.identified += 1;
            }
            _ => {}
        }
        event
    }
}

/// Completes the grid's Noise handshake, then sends these bytes, closes its side and listens to the end.
#[derive(Clone)]
pub struct Garbage {
    noise: noise::Config,
    keypair: Keypair,
    protocol: &'static str,
    bytes: Vec<u8>,
}

impl Garbage {
    pub fn new(grid: &Grid, protocol: &'static str, bytes: &[u8]) -> Self {
        let keypair = Keypair::generate_ed25519();
        Self {
            noise: noise::Config::new(&keypair)
                .unwrap()
                .with_prologue(prologue(grid.id())),
            keypair,
            protocol,
            bytes: bytes.to_vec(),
        }
    }
}

impl UpgradeInfo for Garbage {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.protocol)
    }
}

type Upgraded<T> = (libp2p::PeerId, noise::Output<T>);
type UpgradeFuture<T> = Pin<Box<dyn Future<Output = Result<Upgraded<T>, noise::Error>> + Send>>;

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<T> for Garbage {
    type Output = Upgraded<T>;
    type Error = noise::Error;
    type Future = UpgradeFuture<T>;

    fn upgrade_inbound(self, socket: T, info: &'static str) -> Self::Future {
        Box::pin(async move {
            let upgraded = self.noise.upgrade_inbound(socket, info).await?;
            rave(upgraded, &self.bytes).await
        })
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<T> for Garbage {
    type Output = Upgraded<T>;
    type Error = noise::Error;
    type Future = UpgradeFuture<T>;

    fn upgrade_outbound(self, socket: T, info: &'static str) -> Self::Future {
        Box::pin(async move {
            let upgraded = self.noise.upgrade_outbound(socket, info).await?;
            rave(upgraded, &self.bytes).await
        })
    }
}

async fn rave<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    (peer, mut stream): Upgraded<T>,
    bytes: &[u8],
) -> Result<Upgraded<T>, noise::Error> {
    stream.write_all(bytes).await?;
    stream.close().await?;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    Ok((peer, stream))
}
