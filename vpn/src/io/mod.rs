//! The two edges of the driver: packets of this host, and datagrams of the network.
//!
//! Each is a small trait with a real implementation and a twin in memory. Calls never block; waiting is separate,
//! so that the driver can drain a whole batch for each time it is woken.

pub(crate) mod changes;
pub mod faults;
mod guests;
pub(crate) mod mapping;
pub mod memory;
mod offloads;
pub(crate) mod streams;
mod tls;
mod tun;
mod udp;

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

use aerie_types::{UnderlayAddr, VirtualAddr, VirtualNet};
use aerie_vpn_proto::Run;

pub use offloads::{Offloads, TunOffloads, UdpOffloads};
pub use tun::TunDevice;
pub use udp::UdpSocket;

/// Packets of this host: a TUN device.
pub trait Tun: Send + Sync + 'static {
    /// Completes when a frame may be read.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Reads one frame: a packet, which has a virtio header before it where the device is
    /// [framed](TunOffloads::framed). `WouldBlock` when there is none.
    ///
    /// # Errors
    /// The kernel's.
    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes one frame, given in parts.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` when its queue is full.
    fn try_send(&self, frame: &[IoSlice<'_>]) -> io::Result<()>;
    /// What the device does for us.
    fn offloads(&self) -> TunOffloads;
    /// Gives the interface another address, with the prefix length of the grid's range.
    ///
    /// # Errors
    /// The kernel's.
    fn readdress(&self, from: VirtualAddr, to: VirtualAddr, prefix: u8) -> io::Result<()>;
    /// Gives the interface an IPv6 address of the grid's nodes, with the route to them, in place of the one before.
    ///
    /// # Errors
    /// The kernel's; most often that this host has no IPv6.
    fn set_ipv6(&self, from: Option<Ipv6Addr>, to: Ipv6Addr) -> io::Result<()>;
}

/// Datagrams of the network: the data socket.
pub trait Udp: Send + Sync + 'static {
    /// Completes when datagrams may be read.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Completes when datagrams may be sent.
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Reads what there is, up to the batch's room. `WouldBlock` when there is nothing.
    ///
    /// # Errors
    /// The kernel's.
    fn try_recv(&self, batch: &mut Received) -> io::Result<()>;
    /// Sends a run of datagrams, or the first of them. How many bytes of the run that was. A run that is to stay
    /// whole is sent so that nobody on its way may cut it.
    ///
    /// # Errors
    /// The kernel's, for the first datagram; `WouldBlock` when its buffer is full. [`is_too_long`] tells whether the
    /// own link does not take a datagram that is to stay whole.
    fn try_send(&self, run: Run<'_>) -> io::Result<usize>;
    /// How many datagrams a run may have at most.
    fn max_segments(&self) -> usize;
    /// What the kernel does for us.
    fn offloads(&self) -> UdpOffloads;
    /// The port it is bound to.
    ///
    /// # Errors
    /// The kernel's.
    fn port(&self) -> io::Result<u16>;
    /// This host's own addresses at which the socket may be reached, those of grids left aside.
    ///
    /// # Errors
    /// [`crate::Error::Interfaces`].
    fn hosts(&self, net: VirtualNet, own_interface: &str) -> Result<Vec<UnderlayAddr>, crate::Error>;
    /// This host's own addresses for what goes far away, one of each family: they change with the default route.
    fn outward(&self) -> Vec<IpAddr> {
        Vec::new()
    }
}

/// Whether a datagram was not sent because it is too long for the own link and may not be cut.
#[must_use]
pub fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Reads of one wake-up: each may hold a run of datagrams that the kernel has put together.
pub const RECEIVE_BUFFERS: usize = 8;
/// A run of datagrams is as long as a UDP datagram may be.
pub const RECEIVE_LEN: usize = 65_535;

/// Received datagrams, in memory that is used again.
#[derive(Debug)]
pub struct Received {
    /// All buffers, one behind the other.
    pub(crate) memory: Vec<u8>,
    /// The buffers in use, from the first on.
    pub(crate) runs: Vec<ReceivedRun>,
}

/// Datagrams of one source, side by side in one buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceivedRun {
    pub(crate) from: UnderlayAddr,
    /// Of all of them.
    pub(crate) len: usize,
    /// Of each but the last.
    pub(crate) stride: usize,
}

impl Default for Received {
    fn default() -> Self {
        Self {
            memory: vec![0; RECEIVE_BUFFERS * RECEIVE_LEN],
            runs: Vec::with_capacity(RECEIVE_BUFFERS),
        }
    }
}

impl Received {
    /// Each datagram's source, and where it lies in the memory, in order.
    pub(crate) fn places(runs: &[ReceivedRun]) -> impl Iterator<Item = (UnderlayAddr, Range<usize>)> {
        runs.iter().enumerate().flat_map(|(index, run)| {
            let start = index * RECEIVE_LEN;
            let end = start + run.len.min(RECEIVE_LEN);
            let stride = run.stride.max(1);
            (start..end)
                .step_by(stride)
                .map(move |at| (run.from, at..(at + stride).min(end)))
        })
    }
}
