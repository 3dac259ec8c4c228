//! A port of the router in front of this host that leads to one of this host's, where the router gives one.
//!
//! ```text
//!             PCP (RFC 6887), else NAT-PMP (RFC 6886), else UPnP      every ten minutes: renewed
//!   Asking ───────────────────────────────────────────────────► Held ──────────────┐
//!     ▲  │ none answers, or gives one                             ▲ └──────────────┤
//!     │  ▼                                                        └────────────────┘
//!    Without                                                      │ its time is over, or another router is there
//!     ▲ after a pause that grows, or when this host is elsewhere  │
//!     └───────────────────────────────────────────────────────────┘
//! ```
//!
//! What a router says is a candidate and no more: the address is told to members, who use it when somebody has answered
//! there.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::time::Duration;

use aerie_types::UnderlayAddr;
use crab_nat::pcp::{self, BaseMapRequest, Nonce};
use crab_nat::{InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp};
use sha2::{Digest as _, Sha256};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::routes;

mod upnp;

/// For how long a port is asked for; a router may give it for less.
const LIFETIME: Duration = Duration::from_secs(7200);
/// How often a port is renewed: a router that was restarted has forgotten it, or has another address.
const RENEWAL: Duration = Duration::from_secs(600);
/// A port for less time is none: it would be gone before it is renewed.
const MIN_LIFETIME: Duration = Duration::from_secs(60);
/// No sooner than this, however short its time is.
const MIN_RENEWAL: Duration = Duration::from_secs(30);
/// The pause after a port was not renewed, as long as its time is not over.
const AGAIN: Duration = Duration::from_secs(20);
/// Pauses after a router gave none: it may have been starting, or this host may have had no route yet.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(15),
    Duration::from_secs(120),
    Duration::from_secs(900),
];
/// How often it is looked whether this host is behind another router, besides when the network is said to have changed.
const LOOK: Duration = Duration::from_secs(15);
/// How many other ports are asked for where the router leads the first one to another host.
const SPARE_PORTS: u8 = 3;
/// The lowest of them.
const FIRST_SPARE: u16 = 20_000;
/// After a change of the network its addresses and routes come one after the other.
const SETTLE: Duration = Duration::from_millis(300);
/// How the router is asked by PCP and NAT-PMP: four times in under two seconds.
const ASK: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(120),
    max_retries: 3,
    max_retry_timeout: None,
};
/// How long the router may take to take the port back when this node ends.
const RELEASE: Duration = Duration::from_secs(2);

/// By which protocol a router gave a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappedBy {
    /// Port Control Protocol, RFC 6887.
    Pcp,
    /// NAT Port Mapping Protocol, RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl fmt::Display for MappedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// Whether the router in front of this host gives it a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortMapping {
    /// It is being asked.
    Asking,
    /// It does.
    Held {
        /// By which protocol it was asked.
        by: MappedBy,
        /// The port, and the address on the router's outside.
        addr: SocketAddr,
    },
    /// It does not.
    Without {
        /// Why, in a few words.
        why: String,
    },
}

impl PortMapping {
    /// The address on the outside, where there is one.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Held { addr, .. } => Some(*addr),
            Self::Asking | Self::Without { .. } => None,
        }
    }
}

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortProtocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// What a node is known by to routers: after a crash it is given its own ports again.
#[derive(Debug, Clone, Copy)]
pub struct RouterNonce([u8; 32]);

impl RouterNonce {
    /// What follows from a secret of the node, and says nothing of it.
    #[must_use]
    pub fn of(secret: &[u8; 32]) -> Self {
        let hash = Sha256::new().chain_update(b"aerie port").chain_update(secret);
        Self(hash.finalize().into())
    }

    /// That of PCP, another one for each router.
    fn for_pcp(self, router: Ipv4Addr) -> Nonce {
        let hash = self.with(&router.octets());
        let word = |at: usize| u32::from_be_bytes([hash[at], hash[at + 1], hash[at + 2], hash[at + 3]]);
        [word(0), word(4), word(8)]
    }

    fn with(self, bytes: &[u8]) -> [u8; 32] {
        Sha256::new()
            .chain_update(self.0)
            .chain_update(bytes)
            .finalize()
            .into()
    }
}

/// A port as it is wanted.
#[derive(Debug, Clone, Copy)]
struct Wish {
    protocol: PortProtocol,
    port: NonZeroU16,
    nonce: RouterNonce,
}

impl Wish {
    /// Ports of the router's outside, the better ones first, and the same ones each time: an entry that a killed node
    /// left behind is its own.
    fn outside(&self) -> Vec<u16> {
        let port = self.port.get();
        let spare = |turn: u8| {
            let which = format!("{} {port} {turn}", self.protocol);
            let hash = self.nonce.with(which.as_bytes());
            FIRST_SPARE + u16::from_be_bytes([hash[0], hash[1]]) % (u16::MAX - FIRST_SPARE)
        };
        [port].into_iter().chain((0..SPARE_PORTS).map(spare)).collect()
    }
}

/// Why a port was not renewed.
#[derive(Debug, PartialEq, Eq)]
enum NotRenewed {
    /// It may still lead here.
    NoAnswer(String),
    /// It does not.
    Lost(String),
}

/// Keeps a port, as long as it lives.
#[derive(Debug)]
pub struct PortMapper {
    state: watch::Receiver<PortMapping>,
    /// Says that the network has changed. The task ends with it, and gives the port back.
    changes: Option<watch::Sender<()>>,
    task: JoinHandle<()>,
}

impl PortMapper {
    /// Begins to ask for a port that leads to `port` of this host.
    #[must_use]
    pub fn start(protocol: PortProtocol, port: NonZeroU16, nonce: RouterNonce, runtime: &Handle) -> Self {
        let wish = Wish {
            protocol,
            port,
            nonce,
        };
        let (tell, state) = watch::channel(PortMapping::Asking);
        let (changes, changed) = watch::channel(());
        Self {
            state,
            changes: Some(changes),
            task: runtime.spawn(keep(wish, tell, changed)),
        }
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> PortMapping {
        self.state.borrow().clone()
    }

    /// Completes when that has changed since it was asked for last.
    pub async fn changed(&mut self) -> PortMapping {
        match self.state.changed().await {
            Ok(()) => self.state.borrow_and_update().clone(),
            Err(_) => std::future::pending().await,
        }
    }

    /// This host is elsewhere, or may be.
    pub fn network_changed(&self) {
        if let Some(changes) = &self.changes {
            changes.send_replace(());
        }
    }

    /// Gives the port back, as far as the router takes it soon.
    pub async fn release(mut self) {
        self.changes = None;
        // A router that is not there any more keeps the port until its time is over.
        let _ = timeout(RELEASE, &mut self.task).await;
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        if self.changes.is_some() {
            self.task.abort();
        }
    }
}

async fn keep(wish: Wish, tell: watch::Sender<PortMapping>, mut changed: watch::Receiver<()>) {
    let mut held: Option<Held> = None;
    let mut failures = 0;
    'place: loop {
        let here = place().await;
        let seen = here.as_ref().ok().copied();
        // Behind another router the port is of no use, and the old one is not there to be told: its time ends by
        // itself.
        if held.as_ref().is_some_and(|held| Some(held.place) != seen) {
            held = None;
            tell.send_replace(PortMapping::Asking);
        }
        let moved = elsewhere(seen, &mut changed);
        tokio::pin!(moved);
        loop {
            let turn = async {
                let asked = if let Some(held) = &mut held {
                    held.renew(&wish).await
                } else {
                    let new = match &here {
                        Ok(place) => ask(*place, &wish).await,
                        Err(why) => Err(why.clone()),
                    };
                    new.map(|new| held = Some(new)).map_err(NotRenewed::NoAnswer)
                };
                sleep(report(asked, &mut held, &mut failures, &tell)).await;
            };
            tokio::select! {
                () = turn => {}
                is_wanted = &mut moved => {
                    if !is_wanted {
                        break 'place;
                    }
                    failures = 0;
                    continue 'place;
                }
            }
        }
    }
    if let Some(held) = held {
        held.release().await;
    }
}

/// Completes when this host is, or may be, in another place than `seen`; with `false` when the port is wanted no more.
async fn elsewhere(seen: Option<Place>, changed: &mut watch::Receiver<()>) -> bool {
    loop {
        match timeout(LOOK, changed.changed()).await {
            Ok(Err(_)) => return false,
            Ok(Ok(())) => {
                sleep(SETTLE).await;
                changed.mark_unchanged();
                // Router and address may have the same numbers in another network.
                return true;
            }
            Err(_) if place().await.ok() != seen => return true,
            Err(_) => {}
        }
    }
}

/// Says what came of asking. The pause until the next time.
fn report(
    asked: Result<(), NotRenewed>,
    held: &mut Option<Held>,
    failures: &mut usize,
    tell: &watch::Sender<PortMapping>,
) -> Duration {
    match (asked, held.take()) {
        (Ok(()), Some(port)) => {
            *failures = 0;
            let (by, addr) = (port.by(), port.addr);
            let state = PortMapping::Held { by, addr };
            if tell.send_replace(state.clone()) != state {
                tracing::info!(%addr, %by, "the router leads a port to this node");
            }
            let pause = port.renew_after();
            *held = Some(port);
            pause
        }
        (Err(NotRenewed::NoAnswer(why)), Some(port)) if port.expires > Instant::now() => {
            tracing::debug!(addr = %port.addr, why, "the router did not renew its port; asking again");
            *held = Some(port);
            AGAIN
        }
        (Err(NotRenewed::NoAnswer(why) | NotRenewed::Lost(why)), Some(port)) => {
            tracing::info!(addr = %port.addr, why, "the router leads its port to this node no more");
            tell.send_replace(PortMapping::Asking);
            Duration::ZERO
        }
        (asked, None) => {
            let why = match asked {
                Err(NotRenewed::NoAnswer(why) | NotRenewed::Lost(why)) => why,
                Ok(()) => String::new(),
            };
            tracing::debug!(why, "the router leads no port to this node");
            tell.send_replace(PortMapping::Without { why });
            let pause = PAUSES[(*failures).min(PAUSES.len() - 1)];
            *failures += 1;
            pause
        }
    }
}

/// The router of the default route, and this host's address towards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    router: Ipv4Addr,
    here: Ipv4Addr,
}

/// A port of the router.
struct Held {
    place: Place,
    addr: SocketAddr,
    way: Way,
    expires: Instant,
}

enum Way {
    /// PCP or NAT-PMP.
    Port(crab_nat::PortMapping),
    Upnp(upnp::Port),
}

async fn place() -> Result<Place, String> {
    let router = routes::default_gateway()
        .map_err(|error| format!("the routes of this host cannot be read: {error}"))?
        .ok_or("this host has no default route of IPv4")?;
    let here = source_towards(router)
        .await
        .map_err(|error| format!("the router {router} is not reached: {error}"))?;
    Ok(Place { router, here })
}

/// Asks by each protocol in turn.
async fn ask(place: Place, wish: &Wish) -> Result<Held, String> {
    let Place { router, here } = place;
    if !UnderlayAddr((here, 0).into()).is_private() {
        return Err(format!(
            "{here} is an address of the internet, which no router translates"
        ));
    }
    let by_port = match ask_by_port(place, wish, wish.port).await {
        Ok(held) => return Ok(held),
        Err(NotRenewed::NoAnswer(why) | NotRenewed::Lost(why)) => why,
    };
    let by_upnp = ask_by_upnp(place, wish).await;
    by_upnp.map_err(|why| format!("the router {router} says by PCP or NAT-PMP: {by_port}; by UPnP: {why}"))
}

/// The address by which this host speaks to another one.
async fn source_towards(router: Ipv4Addr) -> io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((router, crab_nat::GATEWAY_PORT)).await?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

async fn ask_by_port(place: Place, wish: &Wish, outside: NonZeroU16) -> Result<Held, NotRenewed> {
    let Place { router, here } = place;
    let (port, nonce) = (wish.port, wish.nonce.for_pcp(router));
    let protocol = match wish.protocol {
        PortProtocol::Udp => InternetProtocol::Udp,
        PortProtocol::Tcp => InternetProtocol::Tcp,
    };
    let options = PortMappingOptions {
        external_port: Some(outside),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(ASK),
    };
    let request = BaseMapRequest::new(router.into(), here.into(), protocol, port);
    let mapping = match pcp::port_mapping(request, Some(nonce), None, options).await {
        // It knows NAT-PMP and no more.
        Err(pcp::Failure::UnsupportedVersion(_)) => {
            let asked = natpmp::port_mapping(router.into(), protocol, port, options).await;
            asked.map_err(|error| match error {
                natpmp::Failure::Socket(_) | natpmp::Failure::Timeout => {
                    NotRenewed::NoAnswer(error.to_string())
                }
                error => NotRenewed::Lost(error.to_string()),
            })?
        }
        asked => asked.map_err(|error| match error {
            pcp::Failure::Socket(_) | pcp::Failure::Timeout | pcp::Failure::Nonce => {
                NotRenewed::NoAnswer(error.to_string())
            }
            error => NotRenewed::Lost(error.to_string()),
        })?,
    };
    let lifetime = Duration::from_secs(mapping.lifetime().into());
    let addr = if lifetime < MIN_LIFETIME {
        Err(format!("it gives a port for {} s alone", lifetime.as_secs()))
    } else {
        outside_of(&mapping, router).await
    };
    match addr {
        Ok(addr) => Ok(Held {
            place,
            addr,
            expires: mapping.expiration().into(),
            way: Way::Port(mapping),
        }),
        Err(why) => {
            // What is of no use is not kept.
            let _ = mapping.try_drop().await;
            Err(NotRenewed::Lost(why))
        }
    }
}

/// PCP says where the port is; by NAT-PMP that is another question.
async fn outside_of(mapping: &crab_nat::PortMapping, router: Ipv4Addr) -> Result<SocketAddr, String> {
    let ip = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
        PortMappingType::NatPmp => natpmp::external_address(router.into(), Some(ASK))
            .await
            .map_err(|error| error.to_string())?
            .into(),
    };
    if !is_outside(ip) {
        return Err(format!("it says that its outside is {ip}"));
    }
    Ok((ip, mapping.external_port().get()).into())
}

/// Whether a router may have this address, wherever it is.
fn is_outside(ip: IpAddr) -> bool {
    let odd = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(odd || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

async fn ask_by_upnp(place: Place, wish: &Wish) -> Result<Held, String> {
    let asked = Instant::now();
    let port = upnp_port(place, wish, wish.outside()).await?;
    Ok(Held {
        place,
        addr: port.outside(),
        expires: asked + LIFETIME,
        way: Way::Upnp(port),
    })
}

async fn upnp_port(place: Place, wish: &Wish, outside: Vec<u16>) -> Result<upnp::Port, String> {
    let router = SocketAddrV4::new(place.router, upnp::SSDP);
    let inside = SocketAddrV4::new(place.here, wish.port.get());
    upnp::Port::ask(router, wish.protocol, inside, &outside, LIFETIME).await
}

impl Held {
    fn by(&self) -> MappedBy {
        match &self.way {
            Way::Port(mapping) => match mapping.mapping_type() {
                PortMappingType::Pcp { .. } => MappedBy::Pcp,
                PortMappingType::NatPmp => MappedBy::NatPmp,
            },
            Way::Upnp(_) => MappedBy::Upnp,
        }
    }

    fn renew_after(&self) -> Duration {
        let lifetime = match &self.way {
            Way::Port(mapping) => Duration::from_secs(mapping.lifetime().into()),
            Way::Upnp(_) => LIFETIME,
        };
        (lifetime / 2).min(RENEWAL).max(MIN_RENEWAL)
    }

    async fn renew(&mut self, wish: &Wish) -> Result<(), NotRenewed> {
        let asked = Instant::now();
        match &mut self.way {
            // The same question again; a router that gave less time than it was asked for may give more by now.
            Way::Port(mapping) => {
                let outside = mapping.external_port();
                *self = ask_by_port(self.place, wish, outside).await?;
            }
            Way::Upnp(port) => {
                match port.renew().await {
                    Err(NotRenewed::NoAnswer(_)) => {
                        // One that was restarted may be asked at another place by now.
                        let mut outside = vec![self.addr.port()];
                        outside.extend(wish.outside());
                        let new = upnp_port(self.place, wish, outside).await;
                        *port = new.map_err(NotRenewed::NoAnswer)?;
                    }
                    renewed => renewed?,
                }
                self.expires = asked + LIFETIME;
                self.addr = port.outside();
            }
        }
        Ok(())
    }

    async fn release(self) {
        // Whatever comes of it: the port's time is limited.
        let result = match self.way {
            Way::Port(mapping) => mapping.try_drop().await.map_err(|(error, _)| error.to_string()),
            Way::Upnp(port) => port.release().await,
        };
        if let Err(why) = result {
            tracing::debug!(why, "the router did not take its port back");
        }
    }
}
