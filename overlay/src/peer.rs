//! Between this project's peer ids and libp2p's, and what can be read from a multiaddress.

use std::net::IpAddr;

use aerie_types::{PeerId, VirtualNet};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// The member's id. `None` for keys that are not Ed25519, which no member has.
pub(crate) fn from_libp2p(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_multihash(&peer.to_bytes())
}

/// libp2p's form of a member's id.
#[expect(
    clippy::expect_used,
    reason = "the bytes are a well-formed identity multihash by construction"
)]
pub(crate) fn to_libp2p(peer: PeerId) -> libp2p::PeerId {
    libp2p::PeerId::from_bytes(&peer.to_multihash()).expect("a multihash of 38 bytes")
}

/// Whether the address goes through a relay.
pub(crate) fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether the address leads over TCP, as far as it goes directly.
pub(crate) fn is_tcp(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

/// Whether the address leads over QUIC, as far as it goes directly.
pub(crate) fn is_quic(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::QuicV1)
}

/// The IP address at the front.
pub(crate) fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The peer that the address leads to: its last `/p2p` part, unless a relayed address ends before it.
pub(crate) fn target_of(addr: &Multiaddr) -> Option<PeerId> {
    match addr.iter().last()? {
        Protocol::P2p(peer) => from_libp2p(&peer),
        _ => None,
    }
}

/// The relay of a relayed address.
pub(crate) fn relay_of(addr: &Multiaddr) -> Option<PeerId> {
    let mut relay = None;
    for part in addr {
        match part {
            Protocol::P2p(peer) => relay = from_libp2p(&peer),
            Protocol::P2pCircuit => return relay,
            _ => {}
        }
    }
    None
}

/// The address without its final `/p2p` part, as addresses are compared and dialled.
pub(crate) fn without_target(mut addr: Multiaddr) -> Multiaddr {
    if matches!(addr.iter().last(), Some(Protocol::P2p(_))) {
        addr.pop();
    }
    addr
}

/// Whether a member may be dialled at an address that somebody stated.
///
/// Not at unspecified, multicast and link-local addresses; not at virtual ones, which would put the control plane
/// inside the tunnel that it sets up; and at loopback only if whoever said so is on this machine itself.
pub(crate) fn is_dialable(addr: &Multiaddr, said_locally: bool, virtual_net: Option<VirtualNet>) -> bool {
    let Some(ip) = ip_of(addr) else {
        return addr.iter().next().is_some_and(|part| {
            matches!(
                part,
                Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)
            )
        });
    };
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(ip.is_unspecified()
        || ip.is_multicast()
        || link_local
        || (ip.is_loopback() && !said_locally)
        || virtual_net.is_some_and(|net| net.contains(ip)))
}

#[cfg(test)]
mod tests {
    use aerie_types::GridId;

    use super::*;

    #[test]
    fn a_peer_id_survives_the_way_through_libp2p() {
        let keypair = libp2p::identity::Keypair::generate_ed25519();
        let theirs = keypair.public().to_peer_id();
        let ours = from_libp2p(&theirs).unwrap();
        assert_eq!(to_libp2p(ours), theirs);
        assert_eq!(ours.to_string(), theirs.to_string());
    }

    #[test]
    fn addresses_in_the_virtual_network_are_not_dialled() {
        let net = VirtualNet::new(GridId([9; 16]), "100.96.0.0/11".parse().unwrap());
        let own = format!("/ip6/{}/tcp/4001", net.ula.addr(net.range.nth(7)).unwrap());
        for (text, local, good) in [
            (&*own, false, false),
            (&*own, true, false),
            ("/ip6/2001:db8::1/tcp/4001", false, true),
            ("/ip4/192.168.1.2/tcp/4001", false, true),
            ("/ip4/100.97.1.2/tcp/4001", false, false),
            ("/ip4/127.0.0.1/tcp/4001", false, false),
            ("/ip4/127.0.0.1/tcp/4001", true, true),
            ("/ip4/0.0.0.0/tcp/4001", true, false),
            ("/ip6/fe80::1/tcp/4001", true, false),
            ("/dns4/relay.example/tcp/4001", false, true),
        ] {
            assert_eq!(
                is_dialable(&text.parse().unwrap(), local, Some(net)),
                good,
                "{text}"
            );
        }
    }

    #[test]
    fn a_relayed_address_names_relay_and_target() {
        let [relay, target] = [PeerId([1; 32]), PeerId([2; 32])];
        let text = format!("/ip4/10.0.0.1/tcp/4001/p2p/{relay}/p2p-circuit/p2p/{target}");
        let addr: Multiaddr = text.parse().unwrap();
        assert!(is_relayed(&addr));
        assert_eq!(relay_of(&addr), Some(relay));
        assert_eq!(target_of(&addr), Some(target));
        assert_eq!(relay_of(&without_target(addr)), Some(relay));
    }
}
