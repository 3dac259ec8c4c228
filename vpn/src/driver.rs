//! The task that owns the core, the TUN device and the data socket.
//!
//! One turn of the loop: wait until a command, a datagram, a packet or the core's timer is there; take a whole batch
//! of it; give it to the core; then, always in this order, send what the core wants sent (probes and handshakes must
//! not wait behind bulk), deliver packets to the TUN device, pass events on, and ask for the next timer.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use aerie_types::{PeerId, UnderlayAddr, VirtualAddr, VirtualRange};
use aerie_vpn_proto::{
    Config, CredentialCheck, Datagram, Event as CoreEvent, Identity, InnerSlice, Now, PathKind, PeerStatus,
    RelayInfo, RelayLimits, RemotePeer, Suite, Transmits, Tunnels,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tun_rs::AsyncDevice;

use crate::handle::{DEFAULT_MTU, Event, Handle, VpnConfig};
use crate::{Error, device, interfaces, socket};

/// Datagrams or packets taken at one wake-up: enough to pay for the wake-up, little enough to stay fair.
const BATCH: usize = 64;

/// The longest datagram or packet: the largest MTU allowed, with all headers.
const MAX_DATAGRAM: usize = 9216;

/// Commands and events that wait. A slow caller delays look-ups; it never stops packets.
const QUEUE: usize = 1024;

/// Pings under way at once.
const MAX_PINGS: usize = 256;

/// How often this host's addresses are listed again.
const HOSTS_EVERY: Duration = Duration::from_secs(15);

pub(crate) enum Command {
    Resolved(VirtualAddr, Option<RemotePeer>),
    Signal(PeerId, Vec<u8>),
    Relays(Vec<RelayInfo>),
    Credential(Vec<u8>),
    Revoke(PeerId),
    Readdress(VirtualAddr, oneshot::Sender<Result<(), Error>>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Ping(VirtualAddr, oneshot::Sender<Result<(Duration, PathKind), Error>>),
    Shutdown(oneshot::Sender<()>),
}

pub(crate) fn start(
    config: VpnConfig,
    check: Box<dyn CredentialCheck>,
) -> Result<(Handle, mpsc::Receiver<Event>), Error> {
    let udp = socket::open(config.port)?;
    let port = udp.local_addr().map_err(|source| Error::Socket { port: config.port, source })?.port();
    let tun = device::open(&config.interface, config.addr, config.range, config.mtu.unwrap_or(DEFAULT_MTU))?;
    let core = Tunnels::new(
        Config {
            range: config.range,
            addr: config.addr,
            suites: Suite::preferred(has_aes()),
            relay: config.relay.then(RelayLimits::default),
            loopback: false,
        },
        Identity {
            grid: config.grid,
            peer: config.me,
            noise_secret: config.noise_secret,
            credential: config.credential,
        },
        check,
        &mut StdRng::from_rng(&mut rand::rng()),
        now(),
    )?;
    let (commands, commands_in) = mpsc::channel(QUEUE);
    let (events, events_out) = mpsc::channel(QUEUE);
    let driver = Driver {
        core,
        tun,
        udp,
        port,
        range: config.range,
        interface: config.interface,
        events,
        pings: BTreeMap::new(),
        next_ping: 0,
        out: Transmits::new(),
        lost_events: 0,
    };
    tokio::spawn(driver.run(commands_in));
    Ok((Handle { commands, port }, events_out))
}

fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::now().into() }
}

/// Whether the processor has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

struct Driver {
    core: Tunnels,
    tun: AsyncDevice,
    udp: UdpSocket,
    port: u16,
    range: VirtualRange,
    interface: String,
    events: mpsc::Sender<Event>,
    pings: BTreeMap<u64, oneshot::Sender<Result<(Duration, PathKind), Error>>>,
    next_ping: u64,
    out: Transmits,
    lost_events: u64,
}

/// Memory for one batch, taken once.
struct Buffers {
    bytes: Vec<u8>,
    received: Vec<(UnderlayAddr, usize)>,
    slices: Vec<InnerSlice>,
}

impl Buffers {
    fn new() -> Self {
        Self {
            bytes: vec![0; BATCH * MAX_DATAGRAM],
            received: Vec::with_capacity(BATCH),
            slices: Vec::with_capacity(BATCH),
        }
    }
}

impl Driver {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut datagrams = Buffers::new();
        let mut packets = Buffers::new();
        let mut hosts = tokio::time::interval(HOSTS_EVERY);
        loop {
            self.flush().await;
            let timer = self.core.poll_timeout();
            tokio::select! {
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Shutdown(done)) => {
                        drop(self);
                        // Whoever asked may have stopped waiting.
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.command(command),
                },
                ready = self.udp.readable() => match ready {
                    Ok(()) => self.datagrams(&mut datagrams),
                    Err(error) => return tracing::error!(%error, "the data socket is gone; the tunnel ends"),
                },
                ready = self.tun.readable() => match ready {
                    Ok(()) => self.packets(&mut packets),
                    Err(error) => return tracing::error!(%error, "the TUN device is gone; the tunnel ends"),
                },
                () = sleep_until(timer) => self.core.handle_timeout(now()),
                _ = hosts.tick() => {
                    let addrs = interfaces::host_addresses(self.range, &self.interface, self.port);
                    self.core.set_hosts(addrs, now());
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        let now = now();
        match command {
            Command::Resolved(addr, remote) => self.core.resolved(addr, remote, now),
            Command::Signal(from, bytes) => {
                if let Err(error) = self.core.signal(from, &bytes, now) {
                    tracing::debug!(%error, peer = %from.short(), "a signal was dropped");
                }
            }
            Command::Relays(relays) => self.core.set_relays(relays, now),
            Command::Credential(der) => self.core.set_credential(der),
            Command::Revoke(peer) => self.core.revoke(peer, now),
            Command::Readdress(addr, reply) => {
                let moved = device::readdress(&self.tun, addr, self.range)
                    .and_then(|()| self.core.readdress(addr, now).map_err(Error::from));
                let _ = reply.send(moved);
            }
            Command::Peers(reply) => {
                let _ = reply.send(self.core.peers(now));
            }
            Command::Ping(addr, reply) => {
                if self.pings.len() >= MAX_PINGS {
                    let _ = reply.send(Err(Error::NoAnswer("too many pings are under way; try again".to_owned())));
                    return;
                }
                self.next_ping += 1;
                self.pings.insert(self.next_ping, reply);
                self.core.ping(self.next_ping, addr, now);
            }
            // Taken by the loop itself.
            Command::Shutdown(_) => {}
        }
    }

    /// Takes what the socket has, at most a batch, and delivers what comes out of it.
    fn datagrams(&mut self, buffers: &mut Buffers) {
        buffers.received.clear();
        buffers.slices.clear();
        for slot in buffers.bytes.chunks_exact_mut(MAX_DATAGRAM) {
            match self.udp.try_recv_from(slot) {
                Ok((len, from)) => buffers.received.push((UnderlayAddr(from), len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error about an earlier datagram: the path agent notices silence by itself.
                Err(_) => {}
            }
        }
        let mut batch: Vec<_> = buffers
            .bytes
            .chunks_exact_mut(MAX_DATAGRAM)
            .zip(&buffers.received)
            .map(|(slot, (from, len))| Datagram { from: *from, bytes: &mut slot[..*len] })
            .collect();
        self.core.handle_datagrams(&mut batch, now(), &mut buffers.slices);
        for slice in &buffers.slices {
            if let Some(packet) =
                batch.get(slice.datagram).and_then(|d| d.bytes.get(slice.start..slice.start + slice.len))
            {
                deliver(&self.tun, packet);
            }
        }
    }

    /// Takes what the TUN device has, at most a batch, and seals it.
    fn packets(&mut self, buffers: &mut Buffers) {
        let mut lens = [0; BATCH];
        let mut count = 0;
        for slot in buffers.bytes.chunks_exact_mut(MAX_DATAGRAM) {
            match self.tun.try_recv(slot) {
                Ok(len) => {
                    lens[count] = len;
                    count += 1;
                }
                Err(_) => break,
            }
        }
        let batch: Vec<_> = buffers
            .bytes
            .chunks_exact(MAX_DATAGRAM)
            .zip(&lens[..count])
            .map(|(slot, len)| &slot[..*len])
            .collect();
        let mut sealed = std::mem::take(&mut self.out);
        self.core.poll_transmits(&mut sealed);
        self.core.handle_inner(&batch, now(), &mut sealed);
        self.out = sealed;
    }

    /// Sends, delivers and tells whatever the core has ready.
    async fn flush(&mut self) {
        self.core.poll_transmits(&mut self.out);
        for (to, datagram) in self.out.iter() {
            send(&self.udp, to.0, datagram).await;
        }
        self.out.clear();
        while let Some(packet) = self.core.poll_inner() {
            deliver(&self.tun, &packet);
        }
        while let Some(event) = self.core.poll_event() {
            let event = match event {
                CoreEvent::Resolve(addr) => Event::Resolve(addr),
                CoreEvent::Signal { to, bytes } => Event::Signal { to, bytes },
                CoreEvent::PathChanged { peer, path, why } => Event::PathChanged { peer, path, why },
                CoreEvent::Pong { id, rtt, path } => {
                    self.pong(id, Ok((rtt, path)));
                    continue;
                }
                CoreEvent::PingFailed { id, why } => {
                    self.pong(id, Err(Error::NoAnswer(why)));
                    continue;
                }
            };
            if self.events.try_send(event).is_err() {
                self.lost_events += 1;
                tracing::debug!(lost = self.lost_events, "events of the tunnel are not taken fast enough");
            }
        }
    }

    fn pong(&mut self, id: u64, answer: Result<(Duration, PathKind), Error>) {
        if let Some(waiting) = self.pings.remove(&id) {
            // Whoever asked may have stopped waiting.
            let _ = waiting.send(answer);
        }
    }
}

/// Sends a datagram. Where the socket's buffer is full, waits for room: dropping would only cost the inner TCP more.
async fn send(udp: &UdpSocket, to: SocketAddr, datagram: &[u8]) {
    let sent = match udp.try_send_to(datagram, to) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => udp.send_to(datagram, to).await,
        sent => sent,
    };
    if let Err(error) = sent {
        // No route, a filter: the path agent finds another way.
        tracing::trace!(%error, %to, "a datagram was not sent");
    }
}

/// Delivers a packet. A device that is full or down drops it, as a network would.
fn deliver(tun: &AsyncDevice, packet: &[u8]) {
    if let Err(error) = tun.try_send(packet) {
        tracing::trace!(%error, "a packet was not delivered");
    }
}

async fn sleep_until(timer: Option<Instant>) {
    match timer {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
