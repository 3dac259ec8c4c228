//! The packets inside: as much of IPv4 and IPv6 as the tunnel has to know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const V4_HEADER: usize = 20;
pub(crate) const V6_HEADER: usize = 40;
/// Of both ICMPs: type, code, checksum, and four bytes that an unreachable destination leaves unused.
const ICMP_HEADER: usize = 8;
const PROTOCOL_ICMP: u8 = 1;
pub(crate) const PROTOCOL_IGMP: u8 = 2;
const PROTOCOL_ICMPV6: u8 = 58;
/// What every link of IPv6 takes, and so the longest ICMPv6 error (RFC 4443, 2.4 c).
pub(crate) const V6_MIN_MTU: usize = 1280;

/// IPv4's flag that forbids to cut a packet, in the sixth byte of its header.
const DONT_FRAGMENT: u8 = 0x40;

/// Extension headers of IPv6 behind which the upper layer is looked for.
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION: u8 = 60;

/// Source and destination of an inner packet, both of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

/// Whether a packet says that it is IPv6.
pub(crate) fn is_v6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
}

/// Reads the addresses of a packet whose length is what its header says. They stand in the fixed header: options,
/// extension headers and fragments make no difference.
pub(crate) fn addresses(packet: &[u8]) -> Option<Addresses> {
    if is_v6(packet) {
        addresses_v6(packet)
    } else {
        addresses_v4(packet)
    }
}

/// The destination alone, of a packet whose length is not looked at.
pub(crate) fn destination(packet: &[u8]) -> Option<IpAddr> {
    if is_v6(packet) {
        let octets = packet.get(24..)?.first_chunk::<16>()?;
        Some(Ipv6Addr::from(*octets).into())
    } else {
        let octets = packet.get(16..)?.first_chunk::<4>()?;
        Some(Ipv4Addr::from(*octets).into())
    }
}

/// Whether a packet that does not fit is to be cut rather than answered: IPv4 without the flag, and IPv6 so short that
/// its source cannot be asked for less (RFC 8200, 5).
pub(crate) fn may_be_cut(packet: &[u8]) -> bool {
    if is_v6(packet) {
        packet.len() <= V6_MIN_MTU
    } else {
        packet.get(6).is_some_and(|flags| flags & DONT_FRAGMENT == 0)
    }
}

fn addresses_v4(packet: &[u8]) -> Option<Addresses> {
    let header = packet.first_chunk::<V4_HEADER>()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_len < V4_HEADER || header_len > packet.len() || total != packet.len() {
        return None;
    }
    let at = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
    Some(Addresses {
        source: at(12),
        destination: at(16),
    })
}

fn addresses_v6(packet: &[u8]) -> Option<Addresses> {
    let header = packet.first_chunk::<V6_HEADER>()?;
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if payload + V6_HEADER != packet.len() {
        return None;
    }
    let at = |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?).into());
    Some(Addresses {
        source: at(8)?,
        destination: at(24)?,
    })
}

/// An ICMP or ICMPv6 error for a packet that cannot be delivered, as if its destination said so. `None` where there
/// must be none (RFC 1122, 3.2.2; RFC 4443, 2.4 e): for ICMP errors, fragments behind the first, groups.
pub(crate) fn unreachable(packet: &[u8]) -> Option<Vec<u8>> {
    // Destination unreachable: of IPv4 the host, of IPv6 the address.
    error_about(packet, [3, 1, 0, 0, 0, 0], [1, 3, 0, 0, 0, 0])
}

/// The same for a packet that is too long: it says that `room` bytes fit (RFC 1191, 4; RFC 4443, 3.2). IPv6 is never
/// told less than every link has to take.
pub(crate) fn too_long(packet: &[u8], room: usize) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(room).ok()?.to_be_bytes();
    let [high6, low6] = u16::try_from(room.max(V6_MIN_MTU)).ok()?.to_be_bytes();
    error_about(packet, [3, 4, 0, 0, high, low], [2, 0, 0, 0, high6, low6])
}

/// An error whose message has this type and code, and these four bytes behind its checksum, in ICMP or in ICMPv6.
fn error_about(packet: &[u8], v4: [u8; 6], v6: [u8; 6]) -> Option<Vec<u8>> {
    let Addresses { source, destination } = addresses(packet)?;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => error_v4(packet, source, destination, v4),
        (IpAddr::V6(source), IpAddr::V6(destination)) => error_v6(packet, source, destination, v6),
        _ => None,
    }
}

fn error_v4(packet: &[u8], source: Ipv4Addr, destination: Ipv4Addr, message: [u8; 6]) -> Option<Vec<u8>> {
    let header_len = usize::from(packet[0] & 0xf) * 4;
    let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let icmp_error = packet[9] == PROTOCOL_ICMP && !matches!(packet.get(header_len), Some(0 | 8));
    if fragment || icmp_error || destination.is_multicast() || destination.is_broadcast() {
        return None;
    }
    let quoted = &packet[..packet.len().min(header_len + 8)];
    let mut answer = vec![0; V4_HEADER + ICMP_HEADER];
    answer.extend(quoted);
    let total = u16::try_from(answer.len()).ok()?;
    answer[0] = 0x45;
    answer[2..4].copy_from_slice(&total.to_be_bytes());
    answer[8] = 64;
    answer[9] = PROTOCOL_ICMP;
    answer[12..16].copy_from_slice(&destination.octets());
    answer[16..20].copy_from_slice(&source.octets());
    let sum = checksum(&answer[..V4_HEADER]);
    answer[10..12].copy_from_slice(&sum.to_be_bytes());
    put_message(&mut answer[V4_HEADER..], message);
    let sum = checksum(&answer[V4_HEADER..]);
    answer[V4_HEADER + 2..V4_HEADER + 4].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

fn error_v6(packet: &[u8], source: Ipv6Addr, destination: Ipv6Addr, message: [u8; 6]) -> Option<Vec<u8>> {
    let (protocol, at) = upper_layer(packet)?;
    // The types below 128 are errors; one that was cut off may be one.
    let icmp_error = protocol == PROTOCOL_ICMPV6 && packet.get(at).is_none_or(|kind| *kind < 128);
    if icmp_error || source.is_unspecified() || source.is_multicast() || destination.is_multicast() {
        return None;
    }
    let quoted = &packet[..packet.len().min(V6_MIN_MTU - V6_HEADER - ICMP_HEADER)];
    let payload = u16::try_from(ICMP_HEADER + quoted.len()).ok()?;
    let mut answer = vec![0; V6_HEADER + ICMP_HEADER];
    answer.extend(quoted);
    answer[0] = 0x60;
    answer[4..6].copy_from_slice(&payload.to_be_bytes());
    answer[6] = PROTOCOL_ICMPV6;
    answer[7] = 64;
    answer[8..24].copy_from_slice(&destination.octets());
    answer[24..40].copy_from_slice(&source.octets());
    put_message(&mut answer[V6_HEADER..], message);
    let sum = checksum_v6(&answer);
    answer[V6_HEADER + 2..V6_HEADER + 4].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

/// Type and code before the checksum, and what stands behind it.
fn put_message(icmp: &mut [u8], [kind, code, rest @ ..]: [u8; 6]) {
    icmp[..2].copy_from_slice(&[kind, code]);
    icmp[4..ICMP_HEADER].copy_from_slice(&rest);
}

/// The protocol behind IPv6's extension headers, and where it begins. `None` for what is cut short and for fragments
/// behind the first, of which nobody knows.
fn upper_layer(packet: &[u8]) -> Option<(u8, usize)> {
    let mut protocol = *packet.get(6)?;
    let mut at = V6_HEADER;
    // Each turn goes on by eight bytes at least.
    loop {
        let [next, len, rest @ ..] = packet.get(at..)? else {
            return Some((protocol, at));
        };
        let len = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(*len) + 1) * 8,
            FRAGMENT if rest.first()? == &0 && rest.get(1)? & 0xf8 == 0 => 8,
            FRAGMENT => return None,
            _ => return Some((protocol, at)),
        };
        protocol = *next;
        at += len;
    }
}

/// The checksum of a packet's ICMPv6 message, with the pseudo-header before it (RFC 8200, 8.1).
fn checksum_v6(packet: &[u8]) -> u16 {
    let message = &packet[V6_HEADER..];
    let mut bytes = packet[8..V6_HEADER].to_vec();
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, PROTOCOL_ICMPV6]);
    bytes.extend(message);
    checksum(&bytes)
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A UDP packet with a payload; the addresses say of which family.
    fn packet(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet
            }
            _ => unreachable!("one packet has one family"),
        };
        packet.extend(payload);
        let len = packet.len() as u16;
        let (at, len) = if source.is_ipv4() { (2, len) } else { (4, len - 40) };
        packet[at..at + 2].copy_from_slice(&len.to_be_bytes());
        packet
    }

    fn addr(last: u8) -> IpAddr {
        Ipv4Addr::new(100, 96, 0, last).into()
    }

    fn addr6(last: u8) -> IpAddr {
        Ipv6Addr::from([0xfd, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 100, 96, 0, last]).into()
    }

    #[test]
    fn an_unreachable_host_answers_for_itself() {
        let answer = unreachable(&packet(addr(1), addr(2), b"hello, world")).unwrap();
        let back = Addresses {
            source: addr(2),
            destination: addr(1),
        };
        assert_eq!(addresses(&answer), Some(back));
        assert_eq!(checksum(&answer[..V4_HEADER]), 0);
        assert_eq!(checksum(&answer[V4_HEADER..]), 0);
        assert_eq!(unreachable(&answer), None, "no error about an error");
    }

    #[test]
    fn an_unreachable_address_answers_for_itself_within_what_every_link_takes() {
        let whole = packet(addr6(1), addr6(2), &[7; 1300]);
        let answer = unreachable(&whole).unwrap();
        let back = Addresses {
            source: addr6(2),
            destination: addr6(1),
        };
        assert_eq!(addresses(&answer), Some(back));
        assert_eq!(answer.len(), 1280);
        assert_eq!(answer[40..42], [1, 3]);
        assert_eq!(answer[48..], whole[..1232]);
        assert_eq!(checksum_v6(&answer), 0);
        assert_eq!(unreachable(&answer), None, "no error about an error");
    }

    #[test]
    fn no_error_is_made_about_an_error_behind_extension_headers_a_later_fragment_or_a_group() {
        let with = |first: u8, payload: &[u8]| {
            let mut packet = packet(addr6(1), addr6(2), payload);
            packet[6] = first;
            packet
        };
        let options = |protocol: u8, kind: u8| [vec![protocol, 0, 1, 4, 0, 0, 0, 0], vec![kind; 8]].concat();
        assert!(
            unreachable(&with(HOP_BY_HOP, &options(PROTOCOL_ICMPV6, 128))).is_some(),
            "an echo"
        );
        assert_eq!(unreachable(&with(HOP_BY_HOP, &options(PROTOCOL_ICMPV6, 1))), None);
        assert_eq!(unreachable(&with(HOP_BY_HOP, &[17, 9, 0, 0])), None, "cut short");
        let fragment = |high: u8, low: u8| [vec![17, 0, high, low, 0, 0, 0, 1], vec![7; 8]].concat();
        assert!(
            unreachable(&with(FRAGMENT, &fragment(0, 1))).is_some(),
            "the first"
        );
        assert_eq!(unreachable(&with(FRAGMENT, &fragment(0, 8))), None);
        assert_eq!(unreachable(&with(FRAGMENT, &fragment(1, 0))), None);
        let group = "ff02::1".parse().unwrap();
        assert_eq!(unreachable(&packet(addr6(1), group, b"hello")), None);
        assert_eq!(unreachable(&with(PROTOCOL_ICMPV6, &[])), None, "no type");
    }

    #[test]
    fn a_packet_that_is_too_long_is_told_the_length_that_fits() {
        let whole = packet(addr(1), addr(2), &[7; 1400]);
        let answer = too_long(&whole, 1340).unwrap();
        assert_eq!(answer[20..22], [3, 4], "fragmentation needed");
        assert_eq!(answer[24..28], [0, 0, 5, 60], "1,340 bytes");
        assert_eq!(answer[28..], whole[..28], "the header and eight bytes");
        assert_eq!((checksum(&answer[..20]), checksum(&answer[20..])), (0, 0));
        let back = Addresses {
            source: addr(2),
            destination: addr(1),
        };
        assert_eq!(addresses(&answer), Some(back));
        let whole = packet(addr6(1), addr6(2), &[7; 1400]);
        for (room, told) in [(1340u32, 1340u32), (1240, 1280)] {
            let answer = too_long(&whole, room as usize).unwrap();
            assert_eq!(answer[40..42], [2, 0], "packet too big");
            assert_eq!(answer[44..48], told.to_be_bytes());
            assert_eq!(answer.len(), 1280);
            assert_eq!(answer[48..], whole[..1232]);
            assert_eq!(checksum_v6(&answer), 0);
            assert_eq!(too_long(&answer, room as usize), None, "no error about an error");
        }
        let answer = too_long(&packet(addr(1), addr(2), &[7; 1400]), 1340).unwrap();
        assert_eq!(too_long(&answer, 100), None, "no error about an error");
    }

    #[test]
    fn what_no_source_can_be_told_to_make_shorter_is_cut() {
        let mut plain = packet(addr(1), addr(2), &[7; 1400]);
        assert!(may_be_cut(&plain));
        plain[6] |= DONT_FRAGMENT;
        assert!(!may_be_cut(&plain));
        assert!(may_be_cut(&packet(addr6(1), addr6(2), &[7; 1240])));
        assert!(!may_be_cut(&packet(addr6(1), addr6(2), &[7; 1241])));
    }

    #[test]
    fn a_packet_whose_length_lies_is_refused() {
        for (a, b, cut) in [(addr(1), addr(2), 22), (addr6(1), addr6(2), 42)] {
            let mut bytes = packet(a, b, b"hello");
            assert!(addresses(&bytes).is_some());
            bytes.push(0);
            assert_eq!(addresses(&bytes), None);
            bytes.truncate(cut);
            assert_eq!(addresses(&bytes), None);
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = addresses(&bytes);
            let _ = unreachable(&bytes);
            let _ = too_long(&bytes, 1200);
            let _ = (destination(&bytes), may_be_cut(&bytes));
        }

        #[test]
        fn whatever_follows_a_version_is_read_or_refused(tail in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = vec![0x45, 0, 0, tail.len() as u8 + 4];
            bytes.extend(&tail);
            let _ = unreachable(&bytes);
        }

        #[test]
        fn whatever_extension_headers_there_are_an_answer_fits(
            first in prop::sample::select(vec![HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, 17, PROTOCOL_ICMPV6]),
            payload in prop::collection::vec(prop_oneof![Just(0u8), Just(43), Just(44), Just(60), any::<u8>()], 0..1400),
        ) {
            let mut bytes = packet(addr6(1), addr6(2), &payload);
            bytes[6] = first;
            prop_assert_eq!(unreachable(&bytes).is_some(), too_long(&bytes, 1280).is_some());
            for answer in [unreachable(&bytes), too_long(&bytes, 1280)].into_iter().flatten() {
                prop_assert!(answer.len() <= V6_MIN_MTU);
                prop_assert_eq!(checksum_v6(&answer), 0);
                prop_assert!(bytes.starts_with(&answer[48..]));
            }
        }
    }
}
