//! Packets of hosts.

use std::net::Ipv6Addr;

use aerie_types::{Ula, VirtualAddr};

use super::{GRID, virt};

pub(crate) fn udp6(source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

pub(crate) fn udp(source: VirtualAddr, destination: VirtualAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.v4().unwrap().octets());
    packet.extend(destination.v4().unwrap().octets());
    packet.extend(payload);
    let total = packet.len() as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet
}

pub(crate) fn ula() -> Ula {
    Ula::of(GRID)
}

/// The IPv6 address that follows from a virtual address.
pub(crate) fn virt6(tag: u8) -> Ipv6Addr {
    ula().addr(virt(tag)).unwrap()
}
