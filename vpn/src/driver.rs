//! The driver: one task that owns the protocol core and both edges.
//!
//! Each turn of the loop, in this order:
//!
//! 1. wait for the first of: a datagram, a frame of the host, a command, the core's timer, room for events
//! 2. take what is there: one command, or one batch of datagrams and one batch of frames, whichever edge woke it,
//!    so that neither direction starves the other. What was opened is written to the device before anything else,
//!    from where it lies
//! 3. `handle_timeout`, if the core's timer is due
//! 4. send the core's own datagrams (`poll_transmits`): probes and handshakes never wait behind bulk data, neither
//!    this node's nor what it forwards as a relay (`poll_forwards`), which goes last
//! 5. send the sealed batch of step 2; if the socket is full, wait: the host's queue then slows its senders
//! 6. deliver what the core has kept back (`poll_inner`)
//! 7. hand out events (`poll_event`) as far as their channel has room
//!
//! Steps 2, 4, 5 and 6 are in `traffic`. Nothing else touches the core, so that there is no lock.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::num::NonZeroU16;
use std::thread;
use std::time::{Duration, Instant};

use aerie_types::{UnderlayAddr, VirtualAddr, VirtualNet, VirtualRange};
use aerie_vpn_proto as proto;
use aerie_vpn_proto::{Config, CredentialCheck, Identity, Now, RelayLimits, Suite, Tunnels};
use rand::CryptoRng;
use tokio::runtime::{self, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::clock::now;
use crate::cpu::has_aes;
use crate::handle::{Command, Event, Handle, Pong, Status};
use crate::io::mapping::{PortMapper, PortMapping, PortProtocol, RouterNonce};
use crate::io::streams::{StreamEvent, Streams};
use crate::io::{Offloads, Tun, TunDevice, Udp, UdpSocket};
use crate::network::HostNetwork;
use crate::traffic::Traffic;
use crate::{Error, NoIpv6};

/// The data socket's port unless configured.
pub const DEFAULT_PORT: u16 = 4242;
/// Inner MTU: with the tunnel's header, tag and a relay's frame a datagram still fits 1,500 bytes over IPv4. Where a
/// path takes less, the core finds out and makes packets fit.
pub const DEFAULT_MTU: u16 = 1420;

/// The least MTU of IPv6 (RFC 8200, 5).
const IPV6_MIN_MTU: u16 = 1280;

/// Commands that wait for the driver. Callers wait beyond that.
const COMMANDS: usize = 256;
/// Events that wait for the daemon. Beyond that they stay in the core, which bounds them too.
const EVENTS: usize = 1024;
/// Datagrams of connections over TLS that are taken in one turn.
const STREAMED: usize = 64;
/// The pause after an edge has failed: a device that was removed must not keep the driver busy.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// How the virtual network is set up on this host.
#[derive(Debug, Clone)]
pub struct VpnConfig {
    /// The interface's name, such as `aerie-ab12cd34`.
    pub interface: String,
    /// This node's leased address.
    pub addr: VirtualAddr,
    /// The grid's range.
    pub range: VirtualRange,
    /// Inner MTU; [`DEFAULT_MTU`] if nothing demands less.
    pub mtu: u16,
    /// Whether the interface is to have an IPv6 address.
    pub ipv6: bool,
    /// The data socket's port; 0 for any.
    pub port: u16,
    /// Whether the router in front of this host is asked for a port that leads to the data socket.
    pub port_mapping: bool,
    /// Whether this node relays for others, and how much.
    pub relay: Option<RelayLimits>,
    /// The TCP port at which it takes members over TLS that UDP does not reach; 0 for any.
    pub tls_port: Option<u16>,
    /// Ciphers in order of preference; empty for what suits the processor.
    pub suites: Vec<Suite>,
    /// Whether the kernel's offloads are used where they are found. Without them everything goes packet by packet:
    /// for comparison, and for a device whose offload is broken.
    pub offload: bool,
}

impl VpnConfig {
    /// A node's usual set-up.
    #[must_use]
    pub fn new(interface: impl Into<String>, addr: VirtualAddr, range: VirtualRange) -> Self {
        Self {
            interface: interface.into(),
            addr,
            range,
            mtu: DEFAULT_MTU,
            ipv6: true,
            port: DEFAULT_PORT,
            port_mapping: false,
            relay: None,
            tls_port: None,
            suites: Vec::new(),
            offload: true,
        }
    }
}

/// A running virtual network.
#[derive(Debug)]
pub struct Vpn;

impl Vpn {
    /// Makes the interface and the socket and starts the driver on a thread of its own: the bulk of a tunnel and the
    /// rest of the daemon then keep out of each other's way, and the fast path stays with one core's cache.
    ///
    /// # Errors
    /// Whatever stands in the way of the interface, the socket or the thread, and what to do about it.
    pub fn start<R: CryptoRng>(
        config: VpnConfig,
        identity: Identity,
        check: Box<dyn CredentialCheck>,
        rng: &mut R,
    ) -> Result<(Handle, mpsc::Receiver<Event>), Error> {
        if !(576..=9000).contains(&config.mtu) {
            return Err(Error::Mtu { mtu: config.mtu });
        }
        let caller = runtime::Handle::try_current();
        // The thread comes first: a runtime must not be dropped here, in case this is a task of another one.
        let (hand_over, receive) =
            std::sync::mpsc::sync_channel::<(Runtime, Driver<TunDevice, UdpSocket>)>(1);
        thread::Builder::new()
            .name("aerie-vpn".to_owned())
            .spawn(move || {
                if let Ok((runtime, driver)) = receive.recv() {
                    runtime.block_on(driver.run());
                }
            })
            .map_err(Error::Worker)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Worker)?;
        let made = {
            let _registered_there = runtime.enter();
            let edges = UdpSocket::bind(config.port, config.offload).and_then(|udp| {
                let tun = TunDevice::create(
                    &config.interface,
                    config.addr,
                    config.range,
                    config.mtu,
                    config.offload,
                )?;
                Ok((tun, udp))
            });
            let elsewhere = caller.unwrap_or_else(|_| runtime.handle().clone());
            edges.and_then(|(tun, udp)| Driver::new(config, identity, check, rng, (tun, udp), elsewhere))
        };
        match made {
            Ok((driver, handle, events)) => {
                // The thread waits for nothing else.
                let _ = hand_over.send((runtime, driver));
                Ok((handle, events))
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Starts the driver on given edges, such as those in memory, on the current tokio runtime.
    ///
    /// # Errors
    /// [`Error::Protocol`], [`Error::Interfaces`], [`Error::Udp`].
    pub fn start_with<R: CryptoRng, T: Tun, U: Udp>(
        config: VpnConfig,
        identity: Identity,
        check: Box<dyn CredentialCheck>,
        rng: &mut R,
        tun: T,
        udp: U,
    ) -> Result<(Handle, mpsc::Receiver<Event>, JoinHandle<()>), Error> {
        let here = runtime::Handle::current();
        let (driver, handle, events) = Driver::new(config, identity, check, rng, (tun, udp), here)?;
        Ok((handle, events, tokio::spawn(driver.run())))
    }
}

struct Driver<T, U> {
    config: VpnConfig,
    net: VirtualNet,
    addr6: Result<Ipv6Addr, NoIpv6>,
    port: u16,
    core: Tunnels,
    tun: T,
    udp: U,
    streams: Streams,
    /// Keeps a port of the router, where that is wanted.
    mapper: Option<PortMapper>,
    /// Why nobody is taken over TLS although that was asked for.
    no_tls: Option<Error>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    pings: BTreeMap<u64, oneshot::Sender<Result<Pong, String>>>,
    next_ping: u64,
    network: HostNetwork,
    /// An event for which the channel had no room.
    waiting_event: Option<Event>,
    traffic: Traffic,
    offloads: Offloads,
    /// The device has failed and is not asked again before then.
    tun_rests_until: Option<Instant>,
    /// The same of the socket, which has failed more than once in a row.
    udp_rests_until: Option<Instant>,
    /// Whether the last read of the socket failed.
    udp_failed: bool,
}

/// What woke the driver.
enum Wake {
    Edge,
    Stream(StreamEvent),
    Network(std::io::Result<()>),
    Mapped(PortMapping),
    Command(Option<Command>),
    Timer,
    EventRoom,
}

impl<T: Tun, U: Udp> Driver<T, U> {
    fn new<R: CryptoRng>(
        config: VpnConfig,
        identity: Identity,
        check: Box<dyn CredentialCheck>,
        rng: &mut R,
        (tun, udp): (T, U),
        elsewhere: runtime::Handle,
    ) -> Result<(Self, Handle, mpsc::Receiver<Event>), Error> {
        let port = udp.port().map_err(|source| Error::Udp {
            port: config.port,
            source,
        })?;
        let suites = if config.suites.is_empty() {
            Suite::preferred(has_aes())
        } else {
            config.suites.clone()
        };
        let core_config = Config {
            range: config.range,
            addr: config.addr,
            mtu: config.mtu,
            suites,
            relay: config.relay,
            loopback: false,
        };
        let net = VirtualNet::new(identity.grid, config.range);
        let nonce = RouterNonce::of(&identity.noise_secret);
        let mut core = Tunnels::new(core_config, identity, check, rng, now())?;
        let network = HostNetwork::look_first(&udp, (net, &config.interface), &mut core, now())?;
        let (commands, receive_commands) = mpsc::channel(COMMANDS);
        let (events, receive_events) = mpsc::channel(EVENTS);
        let offloads = Offloads {
            tun: tun.offloads(),
            udp: udp.offloads(),
        };
        tracing::info!(interface = config.interface, %offloads, "offloads");
        let mapper = NonZeroU16::new(port).filter(|_| config.port_mapping);
        let mapper = mapper.map(|port| PortMapper::start(PortProtocol::Udp, port, nonce, &elsewhere));
        let mut streams = Streams::new(elsewhere);
        let no_tls = match config.tls_port.map(|port| streams.listen(port)) {
            // It still relays to all others.
            Some(Err(error)) => {
                tracing::warn!(%error, "members that UDP does not reach cannot come to this relay");
                Some(error)
            }
            _ => None,
        };
        let mut driver = Driver {
            traffic: Traffic::new(&tun, config.mtu),
            addr6: Err(NoIpv6::SmallMtu { mtu: config.mtu }),
            net,
            config,
            port,
            core,
            tun,
            udp,
            streams,
            mapper,
            no_tls,
            commands: receive_commands,
            events,
            pings: BTreeMap::new(),
            next_ping: 0,
            network,
            waiting_event: None,
            offloads,
            tun_rests_until: None,
            udp_rests_until: None,
            udp_failed: false,
        };
        driver.give_ipv6();
        Ok((driver, Handle::new(commands), receive_events))
    }

    async fn run(mut self) {
        loop {
            match self.wait().await {
                Wake::Edge => self.take_batches(),
                Wake::Stream(event) => {
                    self.take_streamed(event);
                    // However much comes over connections, this host's own packets have their turn.
                    self.take_batches();
                }
                Wake::Command(None) => return self.end().await,
                Wake::Command(Some(Command::Shutdown(done))) => {
                    self.end().await;
                    // Nobody may wait for it any more.
                    let _ = done.send(());
                    return;
                }
                Wake::Command(Some(command)) => self.obey(command),
                Wake::Network(changed) => self.network.hurry(&changed, now().instant),
                Wake::Mapped(mapping) => {
                    let addr = mapping.addr().map(UnderlayAddr);
                    self.core.set_mapped(addr, now());
                }
                Wake::Timer | Wake::EventRoom => {}
            }
            self.look_at_clock();
            while let Some(action) = self.core.poll_stream() {
                self.streams.obey(action);
            }
            self.traffic
                .send(&self.udp, &self.streams, &mut self.core, now())
                .await;
            while let Some(packet) = self.core.poll_inner() {
                self.traffic.deliver(&self.tun, &packet);
            }
            self.hand_out_events();
        }
    }

    /// Removes the interface, and gives the router's port back.
    async fn end(mut self) {
        let mapper = self.mapper.take();
        drop(self);
        if let Some(mapper) = mapper {
            mapper.release().await;
        }
    }

    async fn wait(&mut self) -> Wake {
        let rests = [self.tun_rests_until, self.udp_rests_until];
        let timer = rests
            .into_iter()
            .chain([self.core.poll_timeout()])
            .flatten()
            .fold(self.network.next(), Instant::min);
        let mapped = async {
            match &mut self.mapper {
                Some(mapper) => mapper.changed().await,
                None => std::future::pending().await,
            }
        };
        let room = async {
            match &self.waiting_event {
                // A closed channel is noticed when the event is handed out.
                Some(_) => drop(self.events.reserve().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            command = self.commands.recv() => Wake::Command(command),
            () = tokio::time::sleep_until(timer.into()) => Wake::Timer,
            () = room => Wake::EventRoom,
            changed = self.network.changed() => Wake::Network(changed),
            mapping = mapped => Wake::Mapped(mapping),
            () = ready(self.udp.readable()), if self.udp_rests_until.is_none() => Wake::Edge,
            event = self.streams.next() => Wake::Stream(event),
            () = ready(self.tun.readable()), if self.tun_rests_until.is_none() => Wake::Edge,
        }
    }

    fn look_at_clock(&mut self) {
        let moment = now();
        for rests_until in [&mut self.tun_rests_until, &mut self.udp_rests_until] {
            *rests_until = rests_until.filter(|until| *until > moment.instant);
        }
        let place = (self.net, self.config.interface.as_str());
        let moved = self.network.look(&self.udp, place, &mut self.core, moment);
        if let Some(mapper) = self.mapper.as_ref().filter(|_| moved) {
            mapper.network_changed();
        }
        if self.core.poll_timeout().is_some_and(|at| at <= moment.instant) {
            self.core.handle_timeout(moment);
        }
    }

    fn take_batches(&mut self) {
        let Self {
            traffic,
            core,
            tun,
            udp,
            ..
        } = self;
        let moment = now();
        let pause = Some(moment.instant + FAILURE_PAUSE);
        if self.udp_rests_until.is_none() {
            let result = traffic.take_datagrams(udp, tun, core, moment);
            if let Err(error) = &result {
                tracing::debug!(%error, "the socket cannot be read");
                // A single error is news of an earlier datagram, which others can provoke.
                self.udp_rests_until = pause.filter(|_| self.udp_failed);
            }
            self.udp_failed = result.is_err();
        }
        if self.tun_rests_until.is_none()
            && let Err(error) = traffic.take_frames(tun, core, moment)
        {
            tracing::debug!(%error, "the interface cannot be read; was it removed?");
            self.tun_rests_until = pause;
        }
    }

    /// Takes what connections over TLS have brought: a batch at most.
    fn take_streamed(&mut self, first: StreamEvent) {
        let moment = now();
        let mut event = Some(first);
        let mut room = STREAMED;
        while let Some(next) = event.take() {
            match next {
                StreamEvent::Opened { relay, stream } => self.core.stream_opened(relay, stream, moment),
                StreamEvent::Failed { relay } => self.core.stream_failed(relay, moment),
                StreamEvent::Ended { stream } => self.core.stream_ended(stream, moment),
                StreamEvent::Datagram { stream, mut bytes } => {
                    if let Some(packet) = self.core.handle_datagram(stream, &mut bytes, moment) {
                        self.traffic.deliver(&self.tun, &bytes[packet]);
                    }
                }
            }
            room -= 1;
            if room > 0 {
                event = self.streams.try_next();
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let moment = now();
        match command {
            Command::Resolved(addr, remote) => self.core.resolved(addr, remote, moment),
            Command::Signal(from, bytes) => {
                if let Err(error) = self.core.signal(from, &bytes, moment) {
                    tracing::debug!(%error, "a signal was refused");
                }
            }
            Command::SetRelays(relays) => self.core.set_relays(relays, moment),
            Command::SetGroup(members) => self.core.set_group(members, moment),
            Command::SetCredential(der) => self.core.set_credential(der),
            Command::Revoke(peer) => self.core.revoke(peer, moment),
            Command::Readdress(addr, answer) => {
                let result = self.readdress(addr, moment);
                // Whoever asked may have gone away.
                let _ = answer.send(result);
            }
            Command::Peers(answer) => {
                let _ = answer.send(self.core.peers(moment));
            }
            Command::Path(peer, answer) => {
                let _ = answer.send(self.core.path(peer, moment));
            }
            Command::CheckNetwork(strangers) => self.core.check_network(strangers, moment),
            Command::Network(answer) => {
                let _ = answer.send(self.core.network(moment));
            }
            Command::Status(answer) => {
                let (nat, reflexive) = self.core.nat(moment);
                let _ = answer.send(Status {
                    interface: self.config.interface.clone(),
                    addr: self.config.addr,
                    addr6: self.addr6.clone(),
                    port: self.port,
                    mtu: self.config.mtu,
                    nat,
                    reflexive,
                    counters: self.core.counters(),
                    relayed_sessions: self.core.relayed_sessions(),
                    offloads: self.offloads,
                    port_mapping: self.mapper.as_ref().map(PortMapper::state),
                    tls: match (&self.no_tls, self.streams.port()) {
                        (Some(error), _) => Some(Err(error.to_string())),
                        (None, port) => port.map(Ok),
                    },
                });
            }
            Command::Ping(addr, answer) => {
                self.next_ping += 1;
                self.pings.insert(self.next_ping, answer);
                self.core.ping(self.next_ping, addr, moment);
            }
            // Handled where the driver can be dropped.
            Command::Shutdown(_) => {}
        }
    }

    fn readdress(&mut self, addr: VirtualAddr, moment: Now) -> Result<(), Error> {
        let old = self.config.addr;
        if addr == old {
            return Ok(());
        }
        self.core.readdress(addr, moment)?;
        self.tun
            .readdress(old, addr, self.config.range.prefix_len())
            .map_err(|source| Error::Readdress { addr, source })?;
        // Only now: where the interface did not take it, whoever asks again is not told that all is done.
        self.config.addr = addr;
        self.give_ipv6();
        Ok(())
    }

    /// Gives the interface the IPv6 address that follows from the leased one. Where that cannot be, the node goes on
    /// with IPv4 alone.
    fn give_ipv6(&mut self) {
        let mtu = self.config.mtu;
        let before = self.addr6.as_ref().ok().copied();
        self.addr6 = match self.net.ula.addr(self.config.addr) {
            _ if !self.config.ipv6 => Err(NoIpv6::Configured),
            Some(addr6) if mtu >= IPV6_MIN_MTU => {
                let given = self.tun.set_ipv6(before, addr6);
                given.map(|()| addr6).map_err(NoIpv6::from)
            }
            _ => Err(NoIpv6::SmallMtu { mtu }),
        };
        match &self.addr6 {
            Ok(_) | Err(NoIpv6::Configured) => {}
            Err(reason) => tracing::warn!(interface = self.config.interface, "IPv4 alone: {reason}"),
        }
        self.core.set_ipv6(self.addr6.is_ok());
    }

    fn hand_out_events(&mut self) {
        loop {
            let event = match self.waiting_event.take() {
                Some(event) => event,
                None => match self.core.poll_event() {
                    Some(event) => match self.translate(event) {
                        Some(event) => event,
                        None => continue,
                    },
                    None => return,
                },
            };
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.waiting_event = Some(event);
                    return;
                }
                // Nobody listens: what is asked stays unanswered, and the core gives up by itself.
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
    }

    /// Answers pings; everything else is the daemon's.
    fn translate(&mut self, event: proto::Event) -> Option<Event> {
        match event {
            proto::Event::Resolve(addr) => Some(Event::Resolve(addr)),
            proto::Event::Signal { to, bytes } => Some(Event::Signal { to, bytes }),
            proto::Event::PathChanged { peer, path, why } => Some(Event::PathChanged { peer, path, why }),
            proto::Event::Pong { id, rtt, path } => {
                self.answer_ping(id, Ok(Pong { rtt, path }));
                None
            }
            proto::Event::PingFailed { id, why } => {
                self.answer_ping(id, Err(why));
                None
            }
        }
    }

    fn answer_ping(&mut self, id: u64, result: Result<Pong, String>) {
        if let Some(answer) = self.pings.remove(&id) {
            // Whoever asked may have gone away.
            let _ = answer.send(result);
        }
    }
}

/// Completes when an edge is ready. An edge that fails is looked at again after a pause, so that a device that is
/// down does not keep the driver busy.
async fn ready(edge: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = edge.await {
        tracing::debug!(%error, "an edge failed");
        tokio::time::sleep(FAILURE_PAUSE).await;
    }
}
