//! The header before each packet of a TUN device with `IFF_VNET_HDR` (VIRTIO 1.2, 5.1.6), ten bytes in the
//! host's order.

/// Its length.
pub(crate) const LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The segments after the first are not to carry CWR.
const GSO_ECN: u8 = 0x80;

/// What a super-packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Header {
    /// Where the part begins that a checksum is still to be made of, and where in it the checksum stands.
    pub(crate) checksum: Option<(u16, u16)>,
    /// For a super-packet: its kind, and the payload of each packet but the last.
    pub(crate) segments: Option<(Kind, u16)>,
    /// Length of all headers of the packet; the kernel looks at it only when we write.
    pub(crate) headers: u16,
}

impl Header {
    /// Reads the header at the start of a frame; the rest is the packet. `None` for what no kernel writes.
    pub(crate) fn parse(frame: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (head, packet) = frame.split_first_chunk_mut::<LEN>()?;
        let number = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let kind = match head[1] & !GSO_ECN {
            0 => None,
            GSO_TCP4 => Some(Kind::Tcp4),
            GSO_TCP6 => Some(Kind::Tcp6),
            GSO_UDP => Some(Kind::Udp),
            _ => return None,
        };
        let segments = match (kind, number(4)) {
            (None, _) => None,
            (Some(_), 0) => return None,
            (Some(kind), segment) => Some((kind, segment)),
        };
        let header = Self {
            checksum: (head[0] & NEEDS_CHECKSUM != 0).then(|| (number(6), number(8))),
            segments,
            headers: number(2),
        };
        Some((header, packet))
    }

    /// As the kernel reads it.
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut head = [0; LEN];
        let mut put = |at: usize, value: u16| head[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        put(2, self.headers);
        if let Some((start, offset)) = self.checksum {
            put(6, start);
            put(8, offset);
        }
        if let Some((kind, segment)) = self.segments {
            put(4, segment);
            head[1] = match kind {
                Kind::Tcp4 => GSO_TCP4,
                Kind::Tcp6 => GSO_TCP6,
                Kind::Udp => GSO_UDP,
            };
        }
        head[0] = if self.checksum.is_some() {
            NEEDS_CHECKSUM
        } else {
            0
        };
        head
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let header = Header {
            checksum: Some((20, 16)),
            segments: Some((Kind::Tcp4, 1380)),
            headers: 52,
        };
        let mut frame = header.encode().to_vec();
        frame.extend(b"packet");
        assert_eq!(
            Header::parse(&mut frame),
            Some((header, &mut b"packet".to_vec()[..]))
        );
        assert_eq!(Header::default().encode(), [0; LEN]);
    }

    #[test]
    fn a_header_that_no_kernel_writes_is_refused() {
        assert_eq!(Header::parse(&mut [0; LEN - 1]), None, "too short");
        let mut unknown = [0; 30];
        unknown[1] = 3;
        assert_eq!(Header::parse(&mut unknown), None, "UFO, which was not asked for");
        let mut empty = [0; 30];
        empty[1] = GSO_TCP4;
        assert_eq!(Header::parse(&mut empty), None, "segments of no length");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            let _ = Header::parse(&mut bytes);
        }
    }
}
