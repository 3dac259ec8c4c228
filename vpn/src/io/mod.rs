//! The two edges of the driver: packets of this host, and datagrams of the network.
//!
//! Each is a small trait with a real implementation and a twin in memory. Calls never block; waiting is separate,
//! so that the driver can drain a whole batch for each time it is woken.

pub mod memory;
mod tun;
mod udp;

use std::future::Future;
use std::io;

use aerie_types::{UnderlayAddr, VirtualAddr, VirtualRange};
use aerie_vpn_proto::Run;

pub use tun::TunDevice;
pub use udp::UdpSocket;

/// Packets of this host: a TUN device.
pub trait Tun: Send + Sync + 'static {
    /// Completes when a packet may be read.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Reads one packet. `WouldBlock` when there is none.
    ///
    /// # Errors
    /// The kernel's.
    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes one packet.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` when its queue is full.
    fn try_send(&self, packet: &[u8]) -> io::Result<()>;
    /// Gives the interface another address, with the prefix length of the grid's range.
    ///
    /// # Errors
    /// The kernel's.
    fn readdress(&self, from: VirtualAddr, to: VirtualAddr, prefix: u8) -> io::Result<()>;
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
    /// Sends a run of datagrams.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` when its buffer is full.
    fn try_send(&self, run: Run<'_>) -> io::Result<()>;
    /// How many datagrams a run may have at most.
    fn max_segments(&self) -> usize;
    /// The port it is bound to.
    ///
    /// # Errors
    /// The kernel's.
    fn port(&self) -> io::Result<u16>;
    /// This host's own addresses at which the socket may be reached, those of grids left aside.
    ///
    /// # Errors
    /// [`crate::Error::Interfaces`].
    fn hosts(&self, range: VirtualRange, own_interface: &str) -> Result<Vec<UnderlayAddr>, crate::Error>;
}

/// Reads of one wake-up: each may hold a run of datagrams that the kernel has put together.
pub const RECEIVE_BUFFERS: usize = 8;
/// A run of datagrams is as long as a UDP datagram may be.
pub const RECEIVE_LEN: usize = 65_535;

/// Received datagrams in buffers that are used again.
#[derive(Debug)]
pub struct Received {
    pub(crate) buffers: Vec<Vec<u8>>,
    /// Per buffer in use: source, bytes, length of each datagram but the last.
    pub(crate) runs: Vec<(UnderlayAddr, usize, usize)>,
}

impl Default for Received {
    fn default() -> Self {
        Self {
            buffers: vec![vec![0; RECEIVE_LEN]; RECEIVE_BUFFERS],
            runs: Vec::with_capacity(RECEIVE_BUFFERS),
        }
    }
}

impl Received {
    /// The datagrams, to be opened where they lie.
    pub fn datagrams(&mut self) -> Vec<aerie_vpn_proto::Datagram<'_>> {
        let runs = self.runs.iter().zip(&mut self.buffers);
        runs.flat_map(|((from, len, stride), buffer)| {
            let from = *from;
            buffer[..*len]
                .chunks_mut((*stride).max(1))
                .map(move |bytes| aerie_vpn_proto::Datagram { from, bytes })
        })
        .collect()
    }
}
