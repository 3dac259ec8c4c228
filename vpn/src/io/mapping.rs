//! A port of the router in front of this host that leads to the data socket, where the router gives one.
//!
//! ```text
//!             PCP (RFC 6887), else NAT-PMP (RFC 6886), else UPnP      every ten minutes: renewed
//!   Asking ───────────────────────────────────────────────────► Held ──────────────┐
//!     ▲  │ none answers, or gives one                             ▲ └──────────────┤
//!     │  ▼                                                        └────────────────┘
//!    Without                                                      │ its time is over, or another router is there
//!     ▲ after a pause that grows, or when the network has changed │
//!     └───────────────────────────────────────────────────────────┘
//! ```
//!
//! What a router says is a candidate and no more: the address is told to members, who use it when a probe has been
//! answered there.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use aerie_types::UnderlayAddr;
use crab_nat::pcp::{self, BaseMapRequest, Nonce};
use crab_nat::{InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp};
use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::routes;

/// For how long a port is asked for; a router may give it for less.
const LIFETIME: Duration = Duration::from_secs(7200);
/// How often a port is renewed: a router that was restarted has forgotten it, or has another address.
const RENEWAL: Duration = Duration::from_secs(600);
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
/// After a change of the network its addresses and routes come one after the other.
const SETTLE: Duration = Duration::from_millis(300);
/// How the router is asked by PCP and NAT-PMP: four times in under two seconds.
const ASK: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(120),
    max_retries: 3,
    max_retry_timeout: None,
};
/// How long routers with UPnP are looked for, and each question to one takes at most.
const SEARCH: Duration = Duration::from_secs(3);
/// Where a router listens for that.
const SSDP: u16 = 1900;
const QUESTION: Duration = Duration::from_secs(4);
/// How long the router may take to take the port back when this node ends.
const RELEASE: Duration = Duration::from_secs(1);
/// What a person reads in the router's list.
const DESCRIPTION: &str = "aerie";

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

/// Keeps a port, as long as it lives.
#[derive(Debug)]
pub(crate) struct Mapper {
    state: watch::Receiver<PortMapping>,
    /// Says that the network has changed. The task ends with it, and gives the port back.
    changes: Option<watch::Sender<()>>,
    task: JoinHandle<()>,
}

impl Mapper {
    /// Begins to ask for a port that leads to UDP `port` of this host.
    pub(crate) fn start(port: NonZeroU16, runtime: &Handle) -> Self {
        let (tell, state) = watch::channel(PortMapping::Asking);
        let (changes, changed) = watch::channel(());
        Self {
            state,
            changes: Some(changes),
            task: runtime.spawn(keep(port, tell, changed)),
        }
    }

    /// How it stands.
    pub(crate) fn state(&self) -> PortMapping {
        self.state.borrow().clone()
    }

    /// Completes when that has changed since it was asked for last.
    pub(crate) async fn changed(&mut self) -> PortMapping {
        match self.state.changed().await {
            Ok(()) => self.state.borrow_and_update().clone(),
            Err(_) => std::future::pending().await,
        }
    }

    /// This host is elsewhere, or may be.
    pub(crate) fn network_changed(&self) {
        if let Some(changes) = &self.changes {
            changes.send_replace(());
        }
    }

    /// Gives the port back, as far as the router takes it soon.
    pub(crate) async fn release(mut self) {
        self.changes = None;
        // A router that is not there any more keeps the port until its time is over.
        let _ = timeout(RELEASE, &mut self.task).await;
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        if self.changes.is_some() {
            self.task.abort();
        }
    }
}

async fn keep(port: NonZeroU16, tell: watch::Sender<PortMapping>, mut changed: watch::Receiver<()>) {
    // A router takes a question for the same port from whoever has asked first: by this it knows who that was.
    let nonce = rand::random();
    let mut held: Option<Held> = None;
    let mut failures = 0;
    loop {
        let turn = async {
            let asked = match &mut held {
                Some(held) => held.renew().await,
                None => ask(port, nonce).await.map(|new| held = Some(new)),
            };
            sleep(report(asked, &mut held, &mut failures, &tell)).await;
        };
        let network = tokio::select! {
            () = turn => continue,
            network = changed.changed() => network,
        };
        if network.is_err() {
            break;
        }
        failures = 0;
        sleep(SETTLE).await;
        changed.mark_unchanged();
        // Behind another router the port is of no use, and the old one is not there to be told: its time ends by
        // itself. Behind the same one it is renewed, or another is asked for.
        let place = place().await.ok();
        held = held.filter(|held| Some(held.place) == place);
        if held.is_none() {
            tell.send_replace(PortMapping::Asking);
        }
    }
    if let Some(held) = held {
        held.release().await;
    }
}

/// Says what came of asking. The pause until the next time.
fn report(
    asked: Result<(), String>,
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
        (Err(why), Some(port)) if port.expires > Instant::now() => {
            tracing::debug!(addr = %port.addr, why, "the router did not renew its port; asking again");
            *held = Some(port);
            AGAIN
        }
        (Err(why), Some(port)) => {
            tracing::info!(addr = %port.addr, why, "the router leads its port to this node no more");
            tell.send_replace(PortMapping::Asking);
            Duration::ZERO
        }
        (asked, None) => {
            let why = asked.err().unwrap_or_default();
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
    Upnp {
        router: Gateway<Tokio>,
        inside: SocketAddr,
    },
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
async fn ask(port: NonZeroU16, nonce: Nonce) -> Result<Held, String> {
    let place = place().await?;
    let Place { router, here } = place;
    if !UnderlayAddr((here, 0).into()).is_private() {
        return Err(format!(
            "{here} is an address of the internet, which no router translates"
        ));
    }
    let by_port = match ask_by_port(place, port, nonce).await {
        Ok(held) => return Ok(held),
        Err(why) => why,
    };
    let by_upnp = ask_by_upnp(place, port).await;
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

async fn ask_by_port(place: Place, port: NonZeroU16, nonce: Nonce) -> Result<Held, String> {
    let Place { router, here } = place;
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(ASK),
    };
    let request = BaseMapRequest::new(router.into(), here.into(), InternetProtocol::Udp, port);
    let mapping = match pcp::port_mapping(request, Some(nonce), None, options).await {
        // It knows NAT-PMP and no more.
        Err(pcp::Failure::UnsupportedVersion(_)) => {
            natpmp::port_mapping(router.into(), InternetProtocol::Udp, port, options)
                .await
                .map_err(|error| error.to_string())?
        }
        mapping => mapping.map_err(|error| error.to_string())?,
    };
    Ok(Held {
        place,
        addr: outside_of(&mapping, router).await?,
        expires: mapping.expiration().into(),
        way: Way::Port(mapping),
    })
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
    Ok((ip, mapping.external_port().get()).into())
}

/// The router itself is asked and nobody else: what answers a question to all is any host of the network, and would be
/// believed where it says that its description is.
async fn ask_by_upnp(place: Place, port: NonZeroU16) -> Result<Held, String> {
    let options = SearchOptions {
        bind_addr: (place.here, 0).into(),
        broadcast_address: (place.router, SSDP).into(),
        timeout: Some(SEARCH),
        ..SearchOptions::default()
    };
    let router = search_gateway(options).await.map_err(|error| error.to_string())?;
    if router.addr.ip() != IpAddr::V4(place.router) {
        return Err(format!("it names another host, {}", router.addr));
    }
    let inside = (place.here, port.get()).into();
    let asked = async {
        // The same port outside as inside, or any.
        let same = upnp_port(&router, inside, port.get()).await;
        let outside = match same {
            Ok(()) => port.get(),
            Err(AddPortError::PortInUse) => router
                .add_any_port(PortMappingProtocol::UDP, inside, lifetime(), DESCRIPTION)
                .await
                .map_err(|error| error.to_string())?,
            Err(error) => return Err(error.to_string()),
        };
        let ip = router
            .get_external_ip()
            .await
            .map_err(|error| error.to_string())?;
        Ok((ip, outside).into())
    };
    let addr = timeout(QUESTION, asked)
        .await
        .map_err(|_| "it did not answer in time".to_owned())??;
    Ok(Held {
        place,
        addr,
        expires: Instant::now() + LIFETIME,
        way: Way::Upnp { router, inside },
    })
}

fn lifetime() -> u32 {
    u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX)
}

/// Asks for one port, for a while. A router that gives ports for ever alone is asked no further: what was not given back
/// would lead to whoever has this host's address later.
async fn upnp_port(router: &Gateway<Tokio>, inside: SocketAddr, outside: u16) -> Result<(), AddPortError> {
    let udp = PortMappingProtocol::UDP;
    router
        .add_port(udp, outside, inside, lifetime(), DESCRIPTION)
        .await
}

impl Held {
    fn by(&self) -> MappedBy {
        match &self.way {
            Way::Port(mapping) => match mapping.mapping_type() {
                PortMappingType::Pcp { .. } => MappedBy::Pcp,
                PortMappingType::NatPmp => MappedBy::NatPmp,
            },
            Way::Upnp { .. } => MappedBy::Upnp,
        }
    }

    fn renew_after(&self) -> Duration {
        let lifetime = match &self.way {
            Way::Port(mapping) => Duration::from_secs(mapping.lifetime().into()),
            Way::Upnp { .. } => LIFETIME,
        };
        (lifetime / 2).min(RENEWAL).max(MIN_RENEWAL)
    }

    async fn renew(&mut self) -> Result<(), String> {
        match &mut self.way {
            Way::Port(mapping) => {
                mapping.renew().await.map_err(|error| error.to_string())?;
                self.expires = mapping.expiration().into();
                self.addr = outside_of(mapping, self.place.router).await?;
            }
            Way::Upnp { router, inside } => {
                let outside = self.addr.port();
                let asked = async {
                    let same = upnp_port(router, *inside, outside).await;
                    same.map_err(|error| error.to_string())?;
                    router.get_external_ip().await.map_err(|error| error.to_string())
                };
                let ip = timeout(QUESTION, asked)
                    .await
                    .map_err(|_| "it did not answer in time".to_owned())??;
                self.expires = Instant::now() + LIFETIME;
                self.addr = (ip, outside).into();
            }
        }
        Ok(())
    }

    async fn release(self) {
        // Whatever comes of it: the port's time is limited.
        let result = match self.way {
            Way::Port(mapping) => mapping.try_drop().await.map_err(|(error, _)| error.to_string()),
            Way::Upnp { router, .. } => router
                .remove_port(PortMappingProtocol::UDP, self.addr.port())
                .await
                .map_err(|error| error.to_string()),
        };
        if let Err(why) = result {
            tracing::debug!(why, "the router did not take its port back");
        }
    }
}
