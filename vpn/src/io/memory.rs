//! Both edges in memory, for tests: a network of sockets by address, and a device that is a pair of queues.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aerie_types::{UnderlayAddr, VirtualAddr, VirtualNet};
use aerie_vpn_proto::Run;
use tokio::sync::Notify;

use super::faults::Faults;
use super::{RECEIVE_LEN, Received, ReceivedRun, Tun, TunOffloads, Udp, UdpOffloads};

/// Packets or datagrams that a queue holds; more are dropped, as a kernel does.
const QUEUE: usize = 1024;

struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    arrived: Notify,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            items: Mutex::new(VecDeque::new()),
            arrived: Notify::new(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Queue<T> {
    fn push(&self, item: T) {
        let mut items = lock(&self.items);
        if items.len() < QUEUE {
            items.push_back(item);
        }
        drop(items);
        self.arrived.notify_one();
    }

    fn pop(&self) -> Option<T> {
        lock(&self.items).pop_front()
    }

    async fn ready(&self) {
        loop {
            if !lock(&self.items).is_empty() {
                return;
            }
            self.arrived.notified().await;
        }
    }
}

/// A TUN device in memory: the driver's end.
#[derive(Clone, Default)]
pub struct MemoryTun {
    to_driver: Arc<Queue<Vec<u8>>>,
    to_host: Arc<Queue<Vec<u8>>>,
    addr: Arc<Mutex<Option<VirtualAddr>>>,
    addr6: Arc<Mutex<Option<Ipv6Addr>>>,
    no_ipv6: bool,
    stuck: Arc<AtomicBool>,
    faults: Faults,
    offloads: TunOffloads,
}

impl MemoryTun {
    /// A device whose frames have virtio headers; it takes super-packets.
    #[must_use]
    pub fn with_offloads() -> Self {
        Self {
            offloads: TunOffloads {
                framed: true,
                tcp: true,
                udp: true,
            },
            ..Self::default()
        }
    }

    /// The same on a kernel that has no super-packets of UDP.
    #[must_use]
    pub fn without_uso() -> Self {
        let mut tun = Self::with_offloads();
        tun.offloads.udp = false;
        tun
    }

    /// What makes it fail.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// A device of a host on which IPv6 is switched off.
    #[must_use]
    pub fn without_ipv6() -> Self {
        Self {
            no_ipv6: true,
            ..Self::default()
        }
    }

    /// Whether it refuses to change its address from now on.
    pub fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Relaxed);
    }

    /// A frame that the host sends: a packet, for a device without offloads.
    pub fn host_sends(&self, frame: Vec<u8>) {
        self.to_driver.push(frame);
    }

    /// The next frame that the host receives.
    pub async fn host_receives(&self) -> Vec<u8> {
        loop {
            self.to_host.ready().await;
            if let Some(packet) = self.to_host.pop() {
                return packet;
            }
        }
    }

    /// The address last given by a re-addressing.
    #[must_use]
    pub fn addr(&self) -> Option<VirtualAddr> {
        *lock(&self.addr)
    }

    /// The IPv6 address it has.
    #[must_use]
    pub fn addr6(&self) -> Option<Ipv6Addr> {
        *lock(&self.addr6)
    }
}

impl Tun for MemoryTun {
    async fn readable(&self) -> io::Result<()> {
        if !self.faults.is_failing().await {
            self.to_driver.ready().await;
        }
        Ok(())
    }

    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.faults.receive()?;
        let packet = self.to_driver.pop().ok_or(io::ErrorKind::WouldBlock)?;
        let len = packet.len().min(buffer.len());
        buffer[..len].copy_from_slice(&packet[..len]);
        Ok(len)
    }

    fn try_send(&self, frame: &[IoSlice<'_>]) -> io::Result<()> {
        self.faults.send()?;
        self.to_host
            .push(frame.iter().flat_map(|part| part.iter().copied()).collect());
        Ok(())
    }

    fn offloads(&self) -> TunOffloads {
        self.offloads
    }

    fn readdress(&self, _from: VirtualAddr, to: VirtualAddr, _prefix: u8) -> io::Result<()> {
        if self.stuck.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        *lock(&self.addr) = Some(to);
        Ok(())
    }

    fn set_ipv6(&self, from: Option<Ipv6Addr>, to: Ipv6Addr) -> io::Result<()> {
        if self.no_ipv6 {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        let mut addr6 = lock(&self.addr6);
        if *addr6 != from {
            return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
        }
        *addr6 = Some(to);
        Ok(())
    }
}

type Inbox = Arc<Queue<(UnderlayAddr, Vec<u8>)>>;

/// A network in memory that carries datagrams at once and loses none, but for those that are too long.
#[derive(Clone, Default)]
pub struct MemoryNet {
    sockets: Arc<Mutex<BTreeMap<UnderlayAddr, Inbox>>>,
    link: Arc<Mutex<Option<usize>>>,
    near: Arc<AtomicBool>,
}

impl MemoryNet {
    /// Longer datagrams vanish from now on, as they do on a path whose fragments are filtered. Where the link is `near`,
    /// those that are to stay whole are refused at once, as by a host's own link.
    pub fn set_longest(&self, datagram: usize, near: bool) {
        *lock(&self.link) = Some(datagram);
        self.near.store(near, Ordering::Relaxed);
    }

    fn takes(&self, len: usize) -> bool {
        lock(&self.link).is_none_or(|longest| len <= longest)
    }

    /// A socket with this address.
    #[must_use]
    pub fn bind(&self, addr: UnderlayAddr) -> MemoryUdp {
        let inbox = Inbox::default();
        lock(&self.sockets).insert(addr, Arc::clone(&inbox));
        MemoryUdp {
            net: self.clone(),
            addr,
            inbox,
            faults: Faults::default(),
        }
    }
}

/// A socket of a [`MemoryNet`].
pub struct MemoryUdp {
    net: MemoryNet,
    addr: UnderlayAddr,
    inbox: Inbox,
    faults: Faults,
}

impl MemoryUdp {
    /// What makes it fail.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl Udp for MemoryUdp {
    async fn readable(&self) -> io::Result<()> {
        if !self.faults.is_failing().await {
            self.inbox.ready().await;
        }
        Ok(())
    }

    async fn writable(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_recv(&self, batch: &mut Received) -> io::Result<()> {
        batch.runs.clear();
        self.faults.receive()?;
        for buffer in batch.memory.chunks_mut(RECEIVE_LEN) {
            let Some((from, bytes)) = self.inbox.pop() else {
                break;
            };
            buffer[..bytes.len()].copy_from_slice(&bytes);
            batch.runs.push(ReceivedRun {
                from,
                len: bytes.len(),
                stride: bytes.len(),
            });
        }
        if batch.runs.is_empty() {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(())
        }
    }

    fn try_send(&self, run: Run<'_>) -> io::Result<usize> {
        self.faults.send()?;
        if run.whole && !self.net.takes(run.bytes.len()) && self.net.near.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        if let Some(inbox) = lock(&self.net.sockets).get(&run.to) {
            let datagrams = run.bytes.chunks(run.segment.max(1));
            for datagram in datagrams.filter(|datagram| self.net.takes(datagram.len())) {
                inbox.push((self.addr, datagram.to_vec()));
            }
        }
        Ok(run.bytes.len())
    }

    fn max_segments(&self) -> usize {
        64
    }

    fn offloads(&self) -> UdpOffloads {
        UdpOffloads::default()
    }

    fn port(&self) -> io::Result<u16> {
        Ok(self.addr.0.port())
    }

    fn hosts(&self, _net: VirtualNet, _own_interface: &str) -> Result<Vec<UnderlayAddr>, crate::Error> {
        Ok(vec![self.addr])
    }
}
