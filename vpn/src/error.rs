//! Errors of the virtual network, each with what to do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use aerie_types::VirtualAddr;

/// An error of the driver or its helpers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no TUN device.
    #[error(
        "there is no TUN device (/dev/net/tun): load it with 'modprobe tun'; in a container add --device=/dev/net/tun"
    )]
    NoTun,
    /// The process may not make interfaces.
    #[error(
        "the interface {name} may not be made (CAP_NET_ADMIN is missing): run as root, or give the unit \
         AmbientCapabilities=CAP_NET_ADMIN; in a container add --cap-add=NET_ADMIN"
    )]
    NotPermitted {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody has the interface.
    #[error("the interface {name} is in use: another daemon of this grid runs on this host; stop it first")]
    Busy {
        /// The interface.
        name: String,
    },
    /// The interface's name is too long or empty.
    #[error("'{name}' is no name for an interface: use 1 to 15 letters, digits and dashes")]
    InterfaceName {
        /// The name.
        name: String,
    },
    /// The interface could not be set up.
    #[error("the interface {name} could not be set up; look at the kernel's log with 'dmesg'")]
    Tun {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The data socket's port is taken.
    #[error(
        "the UDP port {port} cannot be opened; choose another with [vpn] port in aerie.toml, or 0 for any"
    )]
    Udp {
        /// The port.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The port for connections over TLS is taken.
    #[error(
        "the TCP port {port} cannot be opened for members that UDP does not reach; choose another with [vpn] tls_port \
         in aerie.toml, or 0 to take none"
    )]
    TlsPort {
        /// The port.
        port: u16,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The certificate for connections over TLS could not be made.
    #[error("the certificate for members that UDP does not reach cannot be made: {reason}")]
    Certificate {
        /// What the library said.
        reason: String,
    },
    /// The interfaces' addresses could not be read.
    #[error("the addresses of this host's interfaces cannot be read")]
    Interfaces(#[source] io::Error),
    /// The MTU is unusable.
    #[error("the MTU {mtu} is unusable: choose one from 576 to 9000")]
    Mtu {
        /// The MTU.
        mtu: u16,
    },
    /// The driver's thread could not be started.
    #[error(
        "the tunnel's thread cannot be started; look at the limits of threads and open files ('ulimit -a')"
    )]
    Worker(#[source] io::Error),
    /// The core refused a call.
    #[error(transparent)]
    Protocol(#[from] aerie_vpn_proto::Error),
    /// The address of the interface could not be changed.
    #[error("the interface's address could not be changed to {addr}; restart the daemon")]
    Readdress {
        /// The new address.
        addr: VirtualAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The driver has ended.
    #[error("the virtual network is down: its driver has ended; 'aerie status' says why")]
    Down,
    /// The routing table could not be read.
    #[error("the host's routes cannot be read from {}", path.display())]
    Routes {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The hosts file could not be read or written.
    #[error("the hosts file {} cannot be {action}; check that it is a file and may be written", path.display())]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The resolver's socket could not be opened.
    #[error("the resolver cannot listen on {addr}; is another name server running there?")]
    Resolver {
        /// The address.
        addr: SocketAddr,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// Why this host has no IPv6 address in the grid. It goes on with IPv4.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoIpv6 {
    /// The administrator has switched it off.
    #[error(
        "IPv6 is switched off on this host; to have it in the grid, run 'sysctl -w net.ipv6.conf.all.disable_ipv6=0' \
         and restart the daemon"
    )]
    SwitchedOff,
    /// Whoever configured the node wants none.
    #[error("it is configured so; take 'ipv6 = false' from [vpn] in aerie.toml to have it")]
    Configured,
    /// The kernel cannot.
    #[error(
        "the kernel of this host has no IPv6; to have it in the grid, load it with 'modprobe ipv6' or boot without \
         'ipv6.disable=1'"
    )]
    NotInKernel,
    /// The interface's MTU is below IPv6's least (RFC 8200, 5).
    #[error(
        "IPv6 needs an MTU of 1280 bytes and the interface's is {mtu}; raise [vpn] mtu in aerie.toml to have it"
    )]
    SmallMtu {
        /// The MTU in bytes.
        mtu: u16,
    },
    /// Something else.
    #[error("the interface takes no IPv6 address ({reason}); look at the kernel's log with 'dmesg'")]
    Refused {
        /// What the kernel said.
        reason: String,
    },
}

impl From<io::Error> for NoIpv6 {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EACCES) => Self::SwitchedOff,
            Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Self::NotInKernel,
            _ => Self::Refused {
                reason: error.to_string(),
            },
        }
    }
}

/// Why a ping had no answer.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// The peer was not reached.
    #[error("{0}")]
    Unreachable(String),
    /// The driver has ended.
    #[error(transparent)]
    Down(#[from] Error),
}
