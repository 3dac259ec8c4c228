//! Frames, byte by byte: also such as no honest stack sends.

use std::net::{Ipv4Addr, Ipv6Addr};

use aerie_cluster_node::Mac;

pub(crate) const EVERYBODY: Mac = Mac([0xff; 6]);
pub(crate) const NOBODY: Mac = Mac([0; 6]);
/// Groups that a bridge keeps to itself (IEEE 802.1D, table 7-10): an ordinary one, and LLDP's.
pub(crate) const GROUP: Mac = Mac([1, 0x80, 0xc2, 0, 0, 3]);
pub(crate) const GROUP_LLDP: Mac = Mac([1, 0x80, 0xc2, 0, 0, 0x0e]);

pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IP: u16 = 0x0800;
pub(crate) const IP6: u16 = 0x86dd;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMP6: u8 = 58;

pub(crate) fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
}

/// The frame with a tag behind its addresses.
pub(crate) fn tagged(frame: &[u8], tag: u16, vlan: u16) -> Vec<u8> {
    [
        &frame[..12],
        &tag.to_be_bytes(),
        &vlan.to_be_bytes(),
        &frame[12..],
    ]
    .concat()
}

/// Operation 1 asks, 2 answers.
pub(crate) fn arp(operation: u16, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    for (mac, addr) in [from, to] {
        bytes.extend(mac.0);
        bytes.extend(addr.octets());
    }
    bytes
}

pub(crate) fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    fragment(from, to, protocol, 0, payload)
}

/// One with the flags and the place of a fragment.
pub(crate) fn fragment(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, place: u16, payload: &[u8]) -> Vec<u8> {
    let mut head = vec![0x45, 0];
    head.extend((20 + payload.len() as u16).to_be_bytes());
    head.extend([0, 7]);
    head.extend(place.to_be_bytes());
    head.extend([64, protocol, 0, 0]);
    head.extend(from.octets());
    head.extend(to.octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    [&head, payload].concat()
}

pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut bytes = Vec::new();
    // IPv4 lets the checksum be zero.
    for field in [from, to, length, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

pub(crate) fn icmp(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, 0, 0, 0], body].concat();
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

pub(crate) fn ip6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, 255]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(payload);
    bytes
}

pub(crate) fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, 0, 0, 0], body].concat();
    let mut whole = [from.octets(), to.octets()].concat();
    whole.extend((bytes.len() as u32).to_be_bytes());
    whole.extend([0, 0, 0, ICMP6]);
    whole.extend(&bytes);
    let sum = checksum(&whole);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// A router's advertisement: it would make its sender everybody's way out.
pub(crate) fn router_advertisement(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    icmp6(from, to, 134, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// A neighbour's advertisement of an address, with the Ethernet address that it is to have.
pub(crate) fn neighbour_advertisement(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut body = vec![0x20, 0, 0, 0];
    body.extend(target.octets());
    body.extend([2, 1]);
    body.extend(mac.0);
    icmp6(from, to, 136, &body)
}

/// A question for an address; with none of one's own, whether anybody has it.
pub(crate) fn neighbour_solicitation(
    from: Ipv6Addr,
    to: Ipv6Addr,
    target: Ipv6Addr,
    mac: Option<Mac>,
) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0];
    body.extend(target.octets());
    if let Some(mac) = mac {
        body.extend([1, 1]);
        body.extend(mac.0);
    }
    icmp6(from, to, 135, &body)
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}
