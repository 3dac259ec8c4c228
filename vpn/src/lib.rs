//! The grid's virtual network on this host: a TUN device, a UDP socket, and the tunnels between them.
//!
//! [`Vpn::start`] opens both and runs one task, the driver, on a thread of its own; it owns the protocol core
//! ([`aerie_vpn_proto::Tunnels`]) and moves packets in batches. Others hold a [`Handle`] and receive [`Event`]s;
//! what the core asks for ([`Event::Resolve`], [`Event::Signal`]) is answered through the handle.
//!
//! - [`io`]: the two edges, [`io::Tun`] and [`io::Udp`], real and in memory
//! - `driver`: the loop; its order of calls is documented there
//! - `traffic`: its fast path, whole batches between the edges
//! - `offload`: what the kernel and the driver hand each other in super-packets, split and put together
//! - [`routes`]: whether a range is free on this host
//! - [`names`]: a resolver for the grid's names, and a block in the hosts file

mod clock;
mod cpu;
mod driver;
mod error;
mod handle;
mod hosts;
pub mod io;
pub mod names;
mod network;
mod offload;
pub mod routes;
mod traffic;

pub use aerie_vpn_proto::{
    Candidate, Counters, CredentialCheck, Finding, Identity, Mapping, NetworkStatus, PairState, PathKind,
    PathStatus, PeerStatus, Reason, RelayInfo, RelayLimits, RemoteIdentity, RemotePeer, Suite, noise_public,
};
pub use driver::{DEFAULT_MTU, DEFAULT_PORT, Vpn, VpnConfig};
pub use error::{Error, NoIpv6, PingError};
pub use handle::{Event, Handle, Pong, Status};
pub use io::mapping::{MappedBy, PortMapper, PortMapping, PortProtocol, RouterNonce};
