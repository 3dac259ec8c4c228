use std::io;

/// Why a tunnel does not come up, or a question to it has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no TUN device.
    #[error("the interface {interface} cannot be made: {source}; {hint}")]
    Tun {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The data socket's port cannot be had.
    #[error("UDP port {port} cannot be used: {source}; set another one as [vpn] port in the configuration, or 0 for any")]
    Socket {
        /// The port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The core refuses its configuration.
    #[error("the tunnel cannot start: {0}")]
    Core(#[from] aerie_vpn_proto::Error),
    /// The virtual address is of a kind that the tunnel does not carry.
    #[error("the tunnel carries IPv4; {0} is not an IPv4 address")]
    NotIpv4(aerie_types::VirtualAddr),
    /// The driver has ended.
    #[error("the tunnel has ended; restart the daemon")]
    Ended,
    /// A ping got no answer.
    #[error("{0}")]
    NoAnswer(String),
    /// The host's routes cannot be read.
    #[error("the host's routes cannot be read: {0}")]
    Routes(#[source] io::Error),
}
