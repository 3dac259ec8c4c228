//! The packets inside: as much of IPv4 as the tunnel has to know.

use std::net::Ipv4Addr;

use aerie_types::VirtualAddr;

const HEADER: usize = 20;
const PROTOCOL_ICMP: u8 = 1;

/// Source and destination of an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) source: VirtualAddr,
    pub(crate) destination: VirtualAddr,
}

/// Reads the addresses of an IPv4 packet whose length is what its header says.
pub(crate) fn addresses(packet: &[u8]) -> Option<Addresses> {
    let (&first, header) = (packet.first()?, packet.get(..HEADER)?);
    let header_len = usize::from(first & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if first >> 4 != 4 || header_len < HEADER || header_len > packet.len() || total != packet.len() {
        return None;
    }
    let at = |at: usize| {
        VirtualAddr::from(Ipv4Addr::new(
            header[at],
            header[at + 1],
            header[at + 2],
            header[at + 3],
        ))
    };
    Some(Addresses {
        source: at(12),
        destination: at(16),
    })
}

/// An ICMP "host unreachable" for a packet of this host, as if its destination said so. `None` where there must be
/// none (RFC 1122, 3.2.2): for ICMP errors, fragments behind the first, groups.
pub(crate) fn host_unreachable(packet: &[u8]) -> Option<Vec<u8>> {
    let Addresses { source, destination } = addresses(packet)?;
    let (source, destination) = (source.v4()?, destination.v4()?);
    let header_len = usize::from(packet[0] & 0xf) * 4;
    let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let icmp_error = packet[9] == PROTOCOL_ICMP && !matches!(packet.get(header_len), Some(0 | 8));
    if fragment || icmp_error || destination.is_multicast() || destination.is_broadcast() {
        return None;
    }
    let quoted = &packet[..packet.len().min(header_len + 8)];
    let mut answer = vec![0; HEADER + 8];
    answer.extend(quoted);
    let total = u16::try_from(answer.len()).ok()?;
    answer[0] = 0x45;
    answer[2..4].copy_from_slice(&total.to_be_bytes());
    answer[8] = 64;
    answer[9] = PROTOCOL_ICMP;
    answer[12..16].copy_from_slice(&destination.octets());
    answer[16..20].copy_from_slice(&source.octets());
    let sum = checksum(&answer[..HEADER]);
    answer[10..12].copy_from_slice(&sum.to_be_bytes());
    // Destination unreachable, host unreachable.
    answer[HEADER..HEADER + 2].copy_from_slice(&[3, 1]);
    let sum = checksum(&answer[HEADER..]);
    answer[HEADER + 2..HEADER + 4].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A UDP packet with a payload, for tests.
    pub(crate) fn packet(source: VirtualAddr, destination: VirtualAddr, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER];
        packet[0] = 0x45;
        packet[8] = 64;
        packet[9] = 17;
        packet[12..16].copy_from_slice(&source.v4().unwrap().octets());
        packet[16..20].copy_from_slice(&destination.v4().unwrap().octets());
        packet.extend(payload);
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn addr(last: u8) -> VirtualAddr {
        Ipv4Addr::new(100, 96, 0, last).into()
    }

    #[test]
    fn an_unreachable_host_answers_for_itself() {
        let answer = host_unreachable(&packet(addr(1), addr(2), b"hello, world")).unwrap();
        assert_eq!(
            addresses(&answer),
            Some(Addresses {
                source: addr(2),
                destination: addr(1)
            })
        );
        assert_eq!(checksum(&answer[..HEADER]), 0);
        assert_eq!(checksum(&answer[HEADER..]), 0);
        assert_eq!(host_unreachable(&answer), None, "no error about an error");
    }

    #[test]
    fn a_packet_whose_length_lies_is_refused() {
        let mut bytes = packet(addr(1), addr(2), b"hello");
        bytes.push(0);
        assert_eq!(addresses(&bytes), None);
        bytes.truncate(22);
        assert_eq!(addresses(&bytes), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = addresses(&bytes);
            let _ = host_unreachable(&bytes);
        }

        #[test]
        fn whatever_follows_a_version_is_read_or_refused(tail in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = vec![0x45, 0, 0, tail.len() as u8 + 4];
            bytes.extend(tail);
            let _ = host_unreachable(&bytes);
        }
    }
}
