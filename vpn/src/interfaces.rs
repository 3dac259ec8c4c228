//! This host's own addresses.

use std::net::{IpAddr, SocketAddr};

use aerie_types::{UnderlayAddr, VirtualAddr, VirtualRange};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The addresses of interfaces that are up, with the data socket's port; none of the virtual network.
pub(crate) fn host_addresses(range: VirtualRange, own: &str, port: u16) -> Vec<UnderlayAddr> {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "cannot list this host's addresses; paths on the local network are not found");
            return Vec::new();
        }
    };
    interfaces
        .filter(|interface| interface.interface_name != own)
        .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .filter(|ip| !ip.is_loopback() && !ip.is_link_local() && !range.contains(VirtualAddr::from(*ip)))
        .map(|ip| UnderlayAddr(SocketAddr::new(IpAddr::V4(ip), port)))
        .collect()
}
