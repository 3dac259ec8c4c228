use std::net::{IpAddr, Ipv4Addr};

use aerie_cluster_node::Mac;
use ipnet::Ipv4Net;

use crate::plan::{MAX_MTU, MIN_MTU};
use crate::{InterfaceName, NetworkId, PortId};

/// Why what is wanted makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPlan {
    /// The id of an instance.
    #[error("'{0}' is no instance of networks; use 1 to 16 lower-case letters and digits")]
    Instance(String),
    /// The id of a network.
    #[error("'{0}' is no id of a network; use 1 to 128 letters, digits, hyphens, dots and underscores")]
    Network(String),
    /// The name of an interface.
    #[error(
        "'{0}' is no network interface; use a name of 1 to 15 letters, digits, hyphens, dots and underscores"
    )]
    Interface(String),
    /// Too many of something.
    #[error("a host has at most {limit} {what}; place some on another host")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A subnet that cannot be used.
    #[error("network {network} cannot have {subnet}: {why}")]
    Subnet {
        /// Which network.
        network: NetworkId,
        /// What was given.
        subnet: Ipv4Net,
        /// What is wrong, and what would be right.
        why: &'static str,
    },
    /// Two networks would be one to the host's routes.
    #[error("networks {one} and {other} overlap; give one of them another subnet")]
    Overlap {
        /// One of them.
        one: NetworkId,
        /// The other one.
        other: NetworkId,
    },
    /// The MTU.
    #[error("network {network} cannot have an MTU of {mtu} bytes; use {MIN_MTU} to {MAX_MTU}")]
    Mtu {
        /// Which network.
        network: NetworkId,
        /// What was given.
        mtu: u16,
    },
    /// The time of a lease.
    #[error("network {network} cannot lease addresses for {seconds} s; use 60 s to 31,536,000 s")]
    Lease {
        /// Which network.
        network: NetworkId,
        /// What was given, in seconds.
        seconds: u64,
    },
    /// Guests are to be forwarded without the host being there.
    #[error(
        "network {0} leads through an interface of the host and the host has no address in it; give it one"
    )]
    NoRouter(NetworkId),
    /// An interface of our own is named where one of the host's belongs.
    #[error(
        "network {network} cannot lead through {interface}, which belongs to guests; name an interface of the host"
    )]
    Through {
        /// Which network.
        network: NetworkId,
        /// The interface.
        interface: InterfaceName,
    },
    /// A NIC on no network.
    #[error("NIC {port} is on network {network}, which is not there; add the network first")]
    NoNetwork {
        /// Which NIC.
        port: PortId,
        /// What was given.
        network: NetworkId,
    },
    /// A NIC that no guest has.
    #[error("a guest has no NIC {0}: they are numbered from 0 to {most}", most = aerie_cluster_node::MAX_NICS - 1)]
    Index(PortId),
    /// An address that a NIC cannot have.
    #[error("NIC {port} cannot have {address}: {why}")]
    Address {
        /// Which NIC.
        port: PortId,
        /// What was given.
        address: IpAddr,
        /// What is wrong, and what would be right.
        why: &'static str,
    },
    /// An Ethernet address that a NIC cannot have.
    #[error("NIC {port} cannot have the address {mac}: {why}")]
    Mac {
        /// Which NIC.
        port: PortId,
        /// What was given.
        mac: Mac,
        /// What is wrong, and what would be right.
        why: &'static str,
    },
    /// What a guest is told about itself does not fit.
    #[error("NIC {port} cannot be given its metadata: {why}")]
    Facts {
        /// Which NIC.
        port: PortId,
        /// What is wrong, and what would be right.
        why: &'static str,
    },
    /// A network that guests are on.
    #[error("network {0} has NICs; detach them first")]
    Busy(NetworkId),
    /// A network that is there.
    #[error("there is another network {0}; remove it first, or use another id")]
    Exists(NetworkId),
    /// Two interfaces would have one name.
    #[error("interface {0} would be needed twice; use another id for one of the two")]
    SameName(InterfaceName),
}

/// Why a disc cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDisc {
    /// A name of a file or folder.
    #[error("'{0}' is no name for a disc; use 1 to 30 letters, digits, hyphens, dots and underscores")]
    Name(String),
    /// A folder with too many entries.
    #[error("a folder of the disc has too many entries; use more folders, with fewer files in each")]
    TooMany,
    /// What the guest is told.
    #[error("a disc has at most 65,536 bytes of user-data and 32 public keys; have the guest fetch the rest")]
    Facts,
}

/// What can go wrong with networks of guests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is wanted makes no sense.
    #[error("the networks are not usable as given: {0}")]
    Plan(#[from] BadPlan),
    /// The kernel's interfaces cannot be talked about with it.
    #[error("cannot talk to the kernel about network interfaces: {0}; is this Linux, with netlink allowed?")]
    Netlink(#[source] std::io::Error),
    /// The kernel refused to do something with an interface.
    #[error("cannot {what} {interface}: {source}{}", advice(source))]
    Link {
        /// What was tried.
        what: &'static str,
        /// With which interface.
        interface: InterfaceName,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else's interface has the name.
    #[error("there is an interface {interface} that is not of these networks ({found}); rename or remove it")]
    Foreign {
        /// Which one.
        interface: InterfaceName,
        /// What it is.
        found: String,
    },
    /// The kernel has no TAP interfaces.
    #[error(
        "there is no /dev/net/tun; load the kernel's module with `modprobe tun`, or give the container the device"
    )]
    NoTun,
    /// A subnet that the host routes elsewhere.
    #[error(
        "network {network} with {subnet} would take {route} away from {interface} of this host; give it another subnet"
    )]
    Routed {
        /// Which network.
        network: NetworkId,
        /// Its subnet.
        subnet: Ipv4Net,
        /// What the host routes.
        route: Ipv4Net,
        /// Where to.
        interface: String,
    },
    /// There is no program for the packet filter.
    #[error(
        "there is no `nft` on this machine, and without filters no guest is connected; install it, on Debian with `apt install nftables`"
    )]
    NoNft,
    /// The packet filter does not take the rules.
    #[error(
        "the kernel's packet filter does not take the rules, and nothing of it is changed: {said}{advice}"
    )]
    Rules {
        /// What nft said.
        said: String,
        /// What to do.
        advice: &'static str,
    },
    /// The program for the packet filter cannot be run.
    #[error("cannot run `nft`: {0}; is it executable, and is there memory?")]
    Nft(#[source] std::io::Error),
    /// The program for the packet filter hangs.
    #[error(
        "`nft` did not end within {seconds} s and was killed; try again, and look for what holds the packet filter"
    )]
    NftSlow {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A setting of the kernel that is needed.
    #[error("cannot set {path} to {value}: {source}; is /proc/sys writable?")]
    Setting {
        /// Its file.
        path: String,
        /// What it should be.
        value: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A service for guests does not start.
    #[error("cannot serve {what} on {interface}: {source}{}", advice(source))]
    Serve {
        /// What.
        what: &'static str,
        /// On which bridge.
        interface: InterfaceName,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// There is no such network.
    #[error("there is no network {0} on this host; add it first")]
    UnknownNetwork(NetworkId),
    /// There is no such NIC.
    #[error("there is no NIC {0} on this host; attach it first")]
    UnknownPort(PortId),
}

/// What helps against the usual reasons of the system.
fn advice(source: &std::io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; run this as root, or with CAP_NET_ADMIN and CAP_NET_RAW",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
            "; the kernel has no such interfaces: load `bridge` and `tun`"
        }
        Some(libc::EADDRINUSE) => {
            "; another program listens there or on all addresses: end it, or have it name its own"
        }
        Some(libc::ENODEV | libc::ENXIO) => "; something removed it meanwhile: reconcile the networks",
        _ => "; reconcile the networks, and see the kernel's log if it stays",
    }
}

/// Where guests ask for their metadata: the address that all clouds have in common. A host that is itself a cloud's does
/// not reach that cloud's service as long as it has guests.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
