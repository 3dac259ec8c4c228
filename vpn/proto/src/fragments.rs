//! Cutting packets into fragments of IP, in the stead of their source.
//!
//! Both families do it alike: what may be cut is divided at multiples of eight bytes, and each piece says where it
//! belongs. A packet that is a fragment already is cut further. The far host's IP puts all together.

use crate::inner::{DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, V4_HEADER, V6_HEADER, checksum, is_v6};

/// The flag of IPv4 and, in its own header, that of IPv6: more fragments follow.
const MORE_V4: u16 = 0x2000;
const MORE_V6: u16 = 1;
/// The highest place of a fragment, in units of eight bytes.
const MAX_OFFSET: usize = 0x1fff;
const FRAGMENT_HEADER: usize = 8;
/// Options of IPv4: the end of them, and one that does nothing. Others have a length.
const END: u8 = 0;
const NOTHING: u8 = 1;
/// The bit of an option's type that says that every fragment has it.
const COPIED: u8 = 0x80;

/// The fragments of a packet, none longer than `room`. `id` names them where the packet has no name of its own.
/// `None` if it fits, or cannot be cut so.
pub(crate) fn cut(packet: &[u8], room: usize, id: u32) -> Option<Vec<Vec<u8>>> {
    if packet.len() <= room {
        return None;
    }
    if is_v6(packet) {
        cut_v6(packet, room, id)
    } else {
        cut_v4(packet, room)
    }
}

fn cut_v4(packet: &[u8], room: usize) -> Option<Vec<Vec<u8>>> {
    let header_len = usize::from(packet.first()? & 0xf) * 4;
    if header_len < V4_HEADER {
        return None;
    }
    let (header, payload) = packet.split_at_checked(header_len)?;
    let field = u16::from_be_bytes([header[6], header[7]]);
    let first = usize::from(field) & MAX_OFFSET;
    let chunk = chunk(payload, room, header_len, first)?;
    let last = payload.len().div_ceil(chunk) - 1;
    let pieces = payload.chunks(chunk).enumerate().map(|(n, piece)| {
        let mut fragment = [header, piece].concat();
        let offset = (first + n * chunk / 8) as u16;
        let more = if n < last { MORE_V4 } else { field & MORE_V4 };
        let len = fragment.len() as u16;
        fragment[2..4].copy_from_slice(&len.to_be_bytes());
        fragment[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        if n > 0 {
            keep_copied_options(&mut fragment[V4_HEADER..header_len]);
        }
        fragment[10..12].fill(0);
        let sum = checksum(&fragment[..header_len]);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        fragment
    });
    Some(pieces.collect())
}

/// Puts nothing in the place of options that only the first fragment has (RFC 791, 3.1).
fn keep_copied_options(mut options: &mut [u8]) {
    while let [kind, rest @ ..] = options {
        let len = match (*kind, rest.first()) {
            (END, _) => return,
            (NOTHING, _) => 1,
            (_, Some(len)) => usize::from(*len),
            (_, None) => 0,
        };
        if len == 0 || len > options.len() {
            // No option: the rest means nothing.
            options.fill(END);
            return;
        }
        let (option, behind) = options.split_at_mut(len);
        if option[0] & COPIED == 0 {
            option.fill(NOTHING);
        }
        options = behind;
    }
}

fn cut_v6(packet: &[u8], room: usize, id: u32) -> Option<Vec<Vec<u8>>> {
    let Spine {
        end,
        next_at,
        fragment,
    } = spine(packet)?;
    let (head, rest) = packet.split_at_checked(end)?;
    let (next, first, more_behind, id, payload) = match fragment {
        Some([next, _, high, low, id @ ..]) => {
            let field = u16::from_be_bytes([high, low]);
            let payload = rest.get(FRAGMENT_HEADER..)?;
            (next, usize::from(field >> 3), field & MORE_V6, id, payload)
        }
        None => (*head.get(next_at)?, 0, 0, id.to_be_bytes(), rest),
    };
    let chunk = chunk(payload, room, end + FRAGMENT_HEADER, first)?;
    let last = payload.len().div_ceil(chunk) - 1;
    let pieces = payload.chunks(chunk).enumerate().map(|(n, piece)| {
        let offset = (first + n * chunk / 8) as u16;
        let more = if n < last { MORE_V6 } else { more_behind };
        let [high, low] = (offset << 3 | more).to_be_bytes();
        let mut fragment = head.to_vec();
        fragment[next_at] = FRAGMENT;
        fragment.extend([next, 0, high, low]);
        fragment.extend(id);
        fragment.extend(piece);
        let len = (fragment.len() - V6_HEADER) as u16;
        fragment[4..6].copy_from_slice(&len.to_be_bytes());
        fragment
    });
    Some(pieces.collect())
}

/// The payload of each fragment but the last, for a packet that is worth cutting and can be.
fn chunk(payload: &[u8], room: usize, headers: usize, first: usize) -> Option<usize> {
    let chunk = room.checked_sub(headers)? / 8 * 8;
    let fits = chunk > 0 && first + payload.len() / 8 <= MAX_OFFSET;
    (fits && payload.len() > chunk).then_some(chunk)
}

/// Where the headers end that every fragment has (RFC 8200, 4.5): those up to routing, or up to hop-by-hop options.
struct Spine {
    end: usize,
    /// Where the type of the next header stands.
    next_at: usize,
    /// The fragment header that is there already.
    fragment: Option<[u8; FRAGMENT_HEADER]>,
}

fn spine(packet: &[u8]) -> Option<Spine> {
    let mut spine = Spine {
        end: V6_HEADER,
        next_at: 6,
        fragment: None,
    };
    let (mut at, mut next_at) = (spine.end, spine.next_at);
    loop {
        let kind = *packet.get(next_at)?;
        match kind {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let len = *packet.get(at + 1)?;
                next_at = at;
                at += (usize::from(len) + 1) * 8;
                if kind != DESTINATION {
                    (spine.end, spine.next_at) = (at, next_at);
                }
            }
            FRAGMENT => {
                (spine.end, spine.next_at) = (at, next_at);
                spine.fragment = Some(*packet.get(at..)?.first_chunk()?);
                return Some(spine);
            }
            _ => return Some(spine),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(options: &[u8], field: u16, payload: &[u8]) -> Vec<u8> {
        let header_len = V4_HEADER + options.len();
        let mut packet = vec![
            0x40 | (header_len / 4) as u8,
            0,
            0,
            0,
            0xab,
            0xcd,
            0,
            0,
            64,
            17,
            0,
            0,
        ];
        packet[2..4].copy_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        packet.extend([100, 96, 0, 1, 100, 96, 0, 2]);
        packet.extend(options);
        packet.extend(payload);
        packet
    }

    fn v6(first: u8, extensions: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, first, 64];
        packet[4..6].copy_from_slice(&((extensions.len() + payload.len()) as u16).to_be_bytes());
        packet.extend([0xfd; 32]);
        packet.extend(extensions);
        packet.extend(payload);
        packet
    }

    /// Puts fragments together as a host does, in any order: the payload, and whether its end is there.
    fn joined(fragments: &[Vec<u8>]) -> (Vec<u8>, bool) {
        let mut payload = Vec::new();
        let mut complete = false;
        for fragment in fragments.iter().rev() {
            let (at, more, piece) = if is_v6(fragment) {
                let spine = spine(fragment).unwrap();
                let [_, _, high, low, ..] = spine.fragment.unwrap();
                let field = u16::from_be_bytes([high, low]);
                let piece = &fragment[spine.end + FRAGMENT_HEADER..];
                assert_eq!(fragment[4..6], ((fragment.len() - 40) as u16).to_be_bytes());
                (usize::from(field & !7), field & MORE_V6 != 0, piece)
            } else {
                let header = usize::from(fragment[0] & 0xf) * 4;
                let field = u16::from_be_bytes([fragment[6], fragment[7]]);
                assert_eq!(fragment[2..4], (fragment.len() as u16).to_be_bytes());
                assert_eq!(checksum(&fragment[..header]), 0);
                (
                    usize::from(field) % 0x2000 * 8,
                    field & MORE_V4 != 0,
                    &fragment[header..],
                )
            };
            assert!(!more || piece.len() % 8 == 0);
            complete |= !more;
            payload.resize(payload.len().max(at + piece.len()), 0);
            payload[at..at + piece.len()].copy_from_slice(piece);
        }
        (payload, complete)
    }

    #[test]
    fn the_options_of_a_fragment_are_those_that_every_one_has() {
        // Record route, which the first has alone, and a router alert, which all have.
        let packet = v4(&[7, 3, 4, 0x94, 4, 0, 0, 0], 0, &[9; 100]);
        let fragments = cut(&packet, 76, 0).unwrap();
        assert_eq!(fragments.len(), 3);
        assert_eq!(fragments[0][20..28], packet[20..28]);
        assert_eq!(fragments[1][20..28], [1, 1, 1, 0x94, 4, 0, 0, 0]);
        assert_eq!(joined(&fragments), (vec![9; 100], true));
        let broken = v4(&[7, 9, 4, 0], 0, &[9; 100]);
        assert_eq!(cut(&broken, 80, 0).unwrap()[1][20..24], [0; 4]);
    }

    #[test]
    fn the_headers_for_routers_stand_before_the_cut() {
        let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let extensions = [options(DESTINATION), options(17)].concat();
        let fragments = cut(&v6(HOP_BY_HOP, &extensions, &[9; 200]), 200, 0x0102_0304).unwrap();
        assert_eq!(fragments.len(), 2);
        for (fragment, low) in fragments.iter().zip([1, 144]) {
            assert_eq!(fragment[6], HOP_BY_HOP);
            assert_eq!(fragment[40], FRAGMENT);
            assert_eq!(fragment[48..56], [DESTINATION, 0, 0, low, 1, 2, 3, 4]);
        }
        let rest = [&options(17)[..], &[9; 200]].concat();
        assert_eq!(joined(&fragments), (rest, true));
    }

    #[test]
    fn what_fits_or_cannot_be_cut_is_left() {
        for packet in [v4(&[], 0, &[9; 100]), v6(17, &[], &[9; 100])] {
            assert_eq!(cut(&packet, packet.len(), 0), None, "it fits");
            assert_eq!(cut(&packet, 27, 0), None, "no room for any payload");
        }
        assert_eq!(cut(&v4(&[], 0x1fff, &[9; 100]), 80, 0), None, "beyond any packet");
    }

    proptest! {
        #[test]
        fn every_fragment_fits_and_all_of_them_are_the_packet(
            is_v6: bool,
            payload in prop::collection::vec(any::<u8>(), 1..3000),
            room in 68..1500usize,
            again in 60..200usize,
        ) {
            let packet = if is_v6 { v6(17, &[], &payload) } else { v4(&[], 0, &payload) };
            let Some(fragments) = cut(&packet, room, 7) else {
                prop_assert!(packet.len() <= room);
                return Ok(());
            };
            prop_assert!(fragments.len() > 1);
            prop_assert!(fragments.iter().all(|fragment| fragment.len() <= room));
            prop_assert_eq!(joined(&fragments), (payload.clone(), true));
            // A narrower way behind it.
            let smaller: Vec<_> = fragments
                .into_iter()
                .flat_map(|fragment| cut(&fragment, again, 8).unwrap_or(vec![fragment]))
                .collect();
            prop_assert_eq!(joined(&smaller), (payload, true));
        }

        #[test]
        fn whatever_comes_is_cut_within_its_room_or_left(
            version in prop::sample::select(vec![0x40u8, 0x45, 0x4f, 0x60]),
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(43), Just(44), Just(60), any::<u8>()], 0..400),
            room in 0..400usize,
        ) {
            let mut packet = vec![version];
            packet.extend(bytes);
            for piece in cut(&packet, room, 7).into_iter().flatten() {
                prop_assert!(piece.len() <= room);
            }
        }
    }
}
