//! What a guest may send, and what it may not.

use std::net::{Ipv4Addr, Ipv6Addr};

use aerie_cluster_net::{METADATA, link_local};
use aerie_cluster_node::Mac;
use dhcproto::Encodable as _;
use dhcproto::v4::{DhcpOption, Message, MessageType};

use super::frames::*;
use super::mac;

/// Guests 1 and 2.
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);

const ANYBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

pub(crate) fn dhcp(n: u128, kind: MessageType, options: &[DhcpOption]) -> Vec<u8> {
    let mut message = Message::new_with_id(7, ANYBODY, ANYBODY, ANYBODY, ANYBODY, &mac(n).0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    let datagram = udp(68, 67, &message.to_vec().unwrap());
    ethernet(
        EVERYBODY,
        mac(n),
        IP,
        &ip(ANYBODY, Ipv4Addr::BROADCAST, UDP, &datagram),
    )
}

/// What guest 1 has no right to send to guest 2, each with what it is.
pub(crate) fn forged() -> Vec<(&'static str, Vec<u8>)> {
    let (own, own6) = (mac(1), link_local(mac(1)));
    let (other, other6) = (mac(2), link_local(mac(2)));
    let foreign = Mac([2, 0, 0, 0, 0, 0x99]);
    let to = |ethertype, payload: Vec<u8>| ethernet(other, own, ethertype, &payload);
    let datagram = || udp(5000, 5001, b"hello, neighbour");
    let honest = to(IP, ip(A, B, UDP, &datagram()));
    let advertisement = router_advertisement(own6, ALL_NODES);
    // The options of a header that says nothing, before what it hides.
    let hidden = |next: u8, payload: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0], payload].concat();
    let piece = |next: u8, place: u16, payload: &[u8]| {
        let place = place.to_be_bytes();
        [&[next, 0, place[0], place[1], 0, 0, 0, 9], payload].concat()
    };
    vec![
        (
            "a foreign Ethernet address",
            ethernet(other, foreign, IP, &ip(A, B, UDP, &datagram())),
        ),
        (
            "a neighbour's Ethernet address",
            ethernet(EVERYBODY, other, IP, &ip(A, B, UDP, &datagram())),
        ),
        (
            "a foreign address",
            to(IP, ip(Ipv4Addr::new(10, 1, 0, 77), B, UDP, &datagram())),
        ),
        ("a neighbour's address", to(IP, ip(B, A, UDP, &datagram()))),
        ("the host's address", to(IP, ip(METADATA, B, UDP, &datagram()))),
        ("no address", to(IP, ip(ANYBODY, B, UDP, &datagram()))),
        (
            "a foreign address in a later fragment",
            to(IP, fragment(B, A, UDP, 5, &[0; 32])),
        ),
        (
            "ARP of a neighbour's address",
            to(ARP, arp(2, (own, B), (other, B))),
        ),
        (
            "ARP of a foreign address",
            to(ARP, arp(2, (own, Ipv4Addr::new(10, 1, 0, 77)), (other, B))),
        ),
        (
            "ARP of the host's address",
            to(ARP, arp(2, (own, METADATA), (other, B))),
        ),
        (
            "ARP of a foreign Ethernet address",
            to(ARP, arp(2, (foreign, A), (other, B))),
        ),
        (
            "a question in a neighbour's name",
            to(ARP, arp(1, (own, B), (NOBODY, A))),
        ),
        (
            "a probe for a neighbour's address",
            to(ARP, arp(1, (own, ANYBODY), (NOBODY, B))),
        ),
        ("reverse ARP", to(ARP, arp(3, (own, A), (other, B)))),
        ("an offer of DHCP", to(IP, ip(A, B, UDP, &udp(67, 68, &[2; 300])))),
        (
            "an offer of DHCP from a port that is no server's",
            to(IP, ip(A, B, UDP, &udp(1067, 68, &[2; 300]))),
        ),
        (
            "an offer of DHCP in the host's name",
            to(IP, ip(METADATA, B, UDP, &udp(67, 68, &[2; 300]))),
        ),
        (
            "an offer of DHCP in pieces",
            to(IP, fragment(A, B, UDP, 0x2000, &udp(67, 68, &[2; 304]))),
        ),
        ("a DHCP request", dhcp(1, MessageType::Discover, &[])),
        (
            "a DHCP request to a neighbour",
            to(IP, ip(A, B, UDP, &udp(68, 67, &[1; 300]))),
        ),
        ("an ICMP redirect", to(IP, ip(A, B, ICMP, &icmp(5, &[0; 32])))),
        (
            "a router's advertisement",
            to(IP6, ip6(own6, ALL_NODES, ICMP6, &advertisement)),
        ),
        (
            "a router's advertisement behind options for the destination",
            to(IP6, ip6(own6, ALL_NODES, 60, &hidden(ICMP6, &advertisement))),
        ),
        (
            "a router's advertisement behind options for each hop",
            to(IP6, ip6(own6, ALL_NODES, 0, &hidden(ICMP6, &advertisement))),
        ),
        (
            "a router's advertisement in one piece of many",
            to(IP6, ip6(own6, ALL_NODES, 44, &piece(ICMP6, 0, &advertisement))),
        ),
        (
            "a router's advertisement behind options in pieces",
            to(IP6, ip6(own6, ALL_NODES, 44, &piece(60, 1, &hidden(ICMP6, &[])))),
        ),
        (
            "an IPv6 redirect",
            to(IP6, ip6(own6, other6, ICMP6, &icmp6(own6, other6, 137, &[0; 36]))),
        ),
        (
            "a foreign IPv6 address",
            to(IP6, ip6("fd00::9".parse().unwrap(), other6, UDP, &datagram())),
        ),
        (
            "a neighbour's IPv6 address",
            to(IP6, ip6(other6, own6, UDP, &datagram())),
        ),
        (
            "a neighbour's advertisement of another's address",
            to(
                IP6,
                ip6(
                    own6,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_advertisement(own6, ALL_NODES, other6, own),
                ),
            ),
        ),
        (
            "an advertisement of another's Ethernet address",
            to(
                IP6,
                ip6(
                    own6,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_advertisement(own6, ALL_NODES, own6, other),
                ),
            ),
        ),
        (
            "a question that names another's Ethernet address",
            to(
                IP6,
                ip6(
                    own6,
                    other6,
                    ICMP6,
                    &neighbour_solicitation(own6, other6, other6, Some(other)),
                ),
            ),
        ),
        (
            "the question whether anybody has a neighbour's IPv6 address",
            to(
                IP6,
                ip6(
                    Ipv6Addr::UNSPECIFIED,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_solicitation(Ipv6Addr::UNSPECIFIED, ALL_NODES, other6, None),
                ),
            ),
        ),
        (
            "an answer of DHCPv6",
            to(IP6, ip6(own6, other6, UDP, &udp(547, 546, &[7; 40]))),
        ),
        ("a tag", tagged(&honest, 0x8100, 5)),
        ("a tag of priority", tagged(&honest, 0x8100, 0xe000)),
        ("a provider's tag", tagged(&honest, 0x88a8, 5)),
        ("two tags", tagged(&tagged(&honest, 0x8100, 6), 0x88a8, 5)),
        ("IPX", to(0x8137, vec![0; 60])),
        ("PPPoE", to(0x8863, vec![0; 60])),
        ("EAPOL", to(0x888e, vec![0; 60])),
        ("a frame of IEEE 802.3", to(60, vec![0x42; 60])),
        (
            "a spanning tree",
            ethernet(Mac([1, 0x80, 0xc2, 0, 0, 0]), own, 60, &[0x42; 60]),
        ),
    ]
}

/// What guest 1 may send to guest 2, one of each kind that could be forged.
pub(crate) fn honest() -> Vec<(&'static str, Vec<u8>)> {
    let (own, own6) = (mac(1), link_local(mac(1)));
    let (other, other6) = (mac(2), link_local(mac(2)));
    let to = |ethertype, payload: Vec<u8>| ethernet(other, own, ethertype, &payload);
    vec![
        ("a datagram", to(IP, ip(A, B, UDP, &udp(5000, 5001, b"hello")))),
        ("a later fragment", to(IP, fragment(A, B, UDP, 5, &[0; 32]))),
        ("a ping", to(IP, ip(A, B, ICMP, &icmp(8, &[0, 1, 0, 1])))),
        ("ARP", to(ARP, arp(2, (own, A), (other, B)))),
        (
            "ARP of itself",
            ethernet(EVERYBODY, own, ARP, &arp(1, (own, A), (NOBODY, A))),
        ),
        (
            "a probe",
            ethernet(EVERYBODY, own, ARP, &arp(1, (own, ANYBODY), (NOBODY, A))),
        ),
        (
            "IPv6",
            to(IP6, ip6(own6, other6, UDP, &udp(5000, 5001, b"hello"))),
        ),
        (
            "an advertisement",
            to(
                IP6,
                ip6(
                    own6,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_advertisement(own6, ALL_NODES, own6, own),
                ),
            ),
        ),
        (
            "a question",
            to(
                IP6,
                ip6(
                    own6,
                    other6,
                    ICMP6,
                    &neighbour_solicitation(own6, other6, other6, Some(own)),
                ),
            ),
        ),
        (
            "the question whether anybody has its own",
            to(
                IP6,
                ip6(
                    Ipv6Addr::UNSPECIFIED,
                    ALL_NODES,
                    ICMP6,
                    &neighbour_solicitation(Ipv6Addr::UNSPECIFIED, ALL_NODES, own6, None),
                ),
            ),
        ),
    ]
}
