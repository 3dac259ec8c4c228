//! This host's own addresses, as candidates for members of the same network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use aerie_types::{UnderlayAddr, VirtualNet};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::Error;

/// How interfaces of this and of other grids are named: nobody is reached through a tunnel inside a tunnel.
const OWN_PREFIX: &str = "aerie-";

/// The addresses of interfaces that are up, with the data socket's port.
pub(crate) fn candidates(port: u16, net: VirtualNet, own: &str) -> Result<Vec<UnderlayAddr>, Error> {
    let interfaces = getifaddrs().map_err(|errno| Error::Interfaces(errno.into()))?;
    let mut addrs: Vec<_> = interfaces
        .filter(|interface| {
            interface.flags.contains(InterfaceFlags::IFF_UP)
                && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
                && interface.interface_name != own
                && !interface.interface_name.starts_with(OWN_PREFIX)
        })
        .filter_map(|interface| {
            let addr = interface.address?;
            let v4 = addr.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| addr.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|ip| is_usable(*ip, net))
        .map(|ip| UnderlayAddr(SocketAddr::new(ip, port)))
        .collect();
    addrs.sort_unstable();
    addrs.dedup();
    Ok(addrs)
}

/// The own addresses that the host would choose towards the Internet, one of each family that it has a way for.
pub(crate) fn outward() -> Vec<IpAddr> {
    // Of documentation (RFC 5737, RFC 3849): to connect such a socket sends nothing, and asks for the route.
    let far: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(203, 0, 113, 1).into()),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    ];
    let own = |(from, to): (IpAddr, IpAddr)| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    far.into_iter().filter_map(own).collect()
}

fn is_usable(ip: IpAddr, net: VirtualNet) -> bool {
    let special = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !special && !ip.is_loopback() && !ip.is_unspecified() && !net.contains(ip)
}

#[cfg(test)]
mod tests {
    use aerie_types::GridId;

    use super::*;

    #[test]
    fn addresses_that_nobody_else_can_use_are_left_out() {
        let net = VirtualNet::new(GridId([9; 16]), "100.96.0.0/11".parse().unwrap());
        assert!(!is_usable(net.ula.prefix().addr().into(), net));
        for (ip, usable) in [
            ("192.168.1.7", true),
            ("2001:db8::7", true),
            ("169.254.3.4", false),
            ("fe80::1", false),
            ("127.0.0.1", false),
            ("100.100.1.1", false),
        ] {
            assert_eq!(is_usable(ip.parse().unwrap(), net), usable, "{ip}");
        }
    }
}
