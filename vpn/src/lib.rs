//! The tunnel on a real host: the TUN device, the data socket, the host's routes and its hosts file.
//!
//! [`Vpn::start`] brings up the interface and the socket and hands both to one task, which owns the protocol core
//! ([`aerie_vpn_proto::Tunnels`]) and everything it says. Others hold a [`Handle`]. What the core asks of its
//! caller arrives as [`Event`]s: look an address up, carry a signal to a member.
//!
//! ```text
//!   TUN ──packets──►┌────────┐──datagrams──► UDP socket
//!       ◄──packets──│ driver │◄─datagrams───
//!   Handle ─commands►└────────┘──► events
//! ```

mod device;
mod driver;
mod error;
mod handle;
pub mod hosts;
mod interfaces;
pub mod routes;
mod socket;

pub use aerie_vpn_proto::{
    Counters, CredentialCheck, PathKind, PeerStatus, RelayInfo, RemoteIdentity, RemotePeer,
};
pub use error::Error;
pub use handle::{Event, Handle, Vpn, VpnConfig};
