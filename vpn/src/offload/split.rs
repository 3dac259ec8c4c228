//! A super-packet into the packets that it stands for.
//!
//! It is done where it lies: the headers of each packet are written over the end of the payload before, which
//! has been taken by then. So no payload is copied on its way from the device into the cipher.

use super::checksum;
use super::header::{Header, Kind};
use super::layout::{CWR, FIN, Layout, PSH, TCP, UDP};

/// The longest headers of IP and TCP together that are split. IPv4's have 120 bytes at most; IPv6's may be longer than
/// any program makes them.
const MAX_HEADERS: usize = 256;

/// A frame of the device that cannot be what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Hands each packet of a frame to `take`, complete and with its checksum, in order; the memory is scratch
/// afterwards. TCP is cut so that no packet is longer than `mtu`, whatever the header says: the path to its destination
/// may take less than the host believes.
pub(crate) fn split(
    header: &Header,
    packet: &mut [u8],
    mtu: usize,
    mut take: impl FnMut(&[u8]),
) -> Result<(), Malformed> {
    match header.segments {
        None => {
            if let Some((start, offset)) = header.checksum {
                complete(packet, start.into(), offset.into())?;
            }
            take(packet);
            Ok(())
        }
        Some((kind, segment)) => cut(kind, segment.into(), packet, mtu, &mut take),
    }
}

/// Makes the checksum that the kernel has left to the device; in its place stands the pseudo-header's sum.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let place = start + offset..start + offset + 2;
    let part = packet.get(start..).ok_or(Malformed)?;
    let sum = match checksum::finish(checksum::add(0, part)) {
        // As UDP wants it; to TCP both zeros are the same.
        0 => 0xffff,
        sum => sum,
    };
    let place = packet.get_mut(place).ok_or(Malformed)?;
    place.copy_from_slice(&checksum::to_bytes(sum));
    Ok(())
}

fn cut(
    kind: Kind,
    segment: usize,
    packet: &mut [u8],
    mtu: usize,
    take: &mut impl FnMut(&[u8]),
) -> Result<(), Malformed> {
    let layout = Layout::of(packet).ok_or(Malformed)?;
    let (protocol, family) = match kind {
        Kind::Tcp4 => (TCP, Some(true)),
        Kind::Tcp6 => (TCP, Some(false)),
        Kind::Udp => (UDP, None),
    };
    if layout.protocol != protocol || family.is_some_and(|v4| v4 != layout.v4) || packet.len() > 65_535 {
        return Err(Malformed);
    }
    let headers_len = layout.payload;
    if headers_len > MAX_HEADERS {
        return Err(Malformed);
    }
    let segment = match (protocol, mtu.checked_sub(headers_len)) {
        (_, None | Some(0)) => return Err(Malformed),
        (TCP, Some(room)) => segment.min(room),
        // A datagram is what its sender made it: it may not be cut elsewhere.
        (_, Some(_)) => segment,
    };
    let mut headers = [0; MAX_HEADERS];
    headers[..headers_len].copy_from_slice(&packet[..headers_len]);
    let total = packet.len() - headers_len;
    let mut at = 0;
    let mut number = 0;
    loop {
        let len = segment.min(total - at);
        let last = at + len == total;
        let piece = &mut packet[at..at + headers_len + len];
        piece[..headers_len].copy_from_slice(&headers[..headers_len]);
        if layout.v4 {
            let id = u16::from_be_bytes([headers[4], headers[5]]).wrapping_add(number);
            piece[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if protocol == TCP {
            let (sequence, flags) = (layout.transport + 4, layout.transport + 13);
            let first = u32::from_be_bytes([
                headers[sequence],
                headers[sequence + 1],
                headers[sequence + 2],
                headers[sequence + 3],
            ]);
            piece[sequence..sequence + 4].copy_from_slice(&first.wrapping_add(at as u32).to_be_bytes());
            if !last {
                piece[flags] &= !(FIN | PSH);
            }
            if at > 0 {
                piece[flags] &= !CWR;
            }
        }
        layout.set_length(piece, headers_len + len);
        layout.make_checksum(piece);
        take(piece);
        if last {
            return Ok(());
        }
        at += len;
        number = number.wrapping_add(1);
    }
}
