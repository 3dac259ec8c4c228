//! Where the headers of a TCP or UDP packet are, and the few fields of them that segmentation touches.

use super::checksum;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// More fragments, or not the first.
const FRAGMENT: u16 = 0x3fff;
/// IPv6's extension headers of options, which a program may ask for on its sockets. A routing header is none of them:
/// the checksum behind it is of another destination.
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;

/// Bits of TCP's flags.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

/// The headers of a TCP or UDP packet that is no fragment. Of IPv6 extension headers it has options at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) v4: bool,
    /// [`TCP`] or [`UDP`].
    pub(crate) protocol: u8,
    /// Where the transport's header begins.
    pub(crate) transport: usize,
    /// Where the payload begins.
    pub(crate) payload: usize,
}

impl Layout {
    /// Reads the headers; `None` for what is neither TCP nor UDP, a fragment, or cut short. The lengths that the
    /// headers state are not looked at.
    pub(crate) fn of(packet: &[u8]) -> Option<Self> {
        let (v4, protocol, transport) = match packet.first()? >> 4 {
            4 => {
                let header = packet.get(..IPV4_HEADER)?;
                let transport = usize::from(header[0] & 0xf) * 4;
                let whole = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT == 0;
                if transport < IPV4_HEADER || !whole {
                    return None;
                }
                (true, header[9], transport)
            }
            6 => {
                let (mut protocol, mut transport) = (*packet.get(6)?, IPV6_HEADER);
                while let HOP_BY_HOP | DESTINATION = protocol {
                    let &[next, words] = packet.get(transport..)?.first_chunk()?;
                    protocol = next;
                    transport += 8 * (usize::from(words) + 1);
                }
                (false, protocol, transport)
            }
            _ => return None,
        };
        let rest = packet.get(transport..)?;
        let header = match protocol {
            TCP => usize::from(rest.get(12)? >> 4) * 4,
            UDP => UDP_HEADER,
            _ => return None,
        };
        let least = if protocol == TCP { TCP_HEADER } else { UDP_HEADER };
        if header < least || rest.len() < header {
            return None;
        }
        Some(Self {
            v4,
            protocol,
            transport,
            payload: transport + header,
        })
    }

    /// Whether there are options before the transport.
    pub(crate) fn has_ip_options(&self) -> bool {
        self.transport > if self.v4 { IPV4_HEADER } else { IPV6_HEADER }
    }

    /// Whether the lengths in the headers are the packet's.
    pub(crate) fn lengths_hold(&self, packet: &[u8]) -> bool {
        let number = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let ip = if self.v4 {
            number(2)
        } else {
            number(4) + IPV6_HEADER
        };
        let transport = self.protocol == TCP || number(self.transport + 4) == packet.len() - self.transport;
        ip == packet.len() && transport
    }

    /// Where the transport's checksum stands in its header.
    pub(crate) fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// Puts a length into the headers, for a packet of `len` bytes in all, and makes IPv4's checksum.
    pub(crate) fn set_length(&self, headers: &mut [u8], len: usize) {
        let put = |headers: &mut [u8], at: usize, len: usize| {
            headers[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
        };
        if self.v4 {
            put(headers, 2, len);
            headers[10..12].fill(0);
            let sum = checksum::finish(checksum::add(0, &headers[..self.transport]));
            headers[10..12].copy_from_slice(&checksum::to_bytes(sum));
        } else {
            put(headers, 4, len - IPV6_HEADER);
        }
        if self.protocol == UDP {
            put(headers, self.transport + 4, len - self.transport);
        }
    }

    /// The sum of the pseudo-header, for a packet of `len` bytes in all.
    pub(crate) fn pseudo_sum(&self, headers: &[u8], len: usize) -> u64 {
        let addresses = if self.v4 { 12..20 } else { 8..40 };
        let sum = checksum::add(0, &headers[addresses]);
        let sum = checksum::add_number(sum, u16::from(self.protocol));
        // At most 65,535 bytes: IPv6's longer length has nothing in its upper half.
        checksum::add_number(sum, (len - self.transport) as u16)
    }

    /// Makes the transport's checksum of a complete packet.
    pub(crate) fn make_checksum(&self, packet: &mut [u8]) {
        let at = self.transport + self.checksum_offset();
        packet[at..at + 2].fill(0);
        let sum = self.pseudo_sum(packet, packet.len());
        let made = match checksum::finish(checksum::add(sum, &packet[self.transport..])) {
            // Zero says of UDP that there is no checksum.
            0 if self.protocol == UDP => 0xffff,
            made => made,
        };
        packet[at..at + 2].copy_from_slice(&checksum::to_bytes(made));
    }

    /// Whether the transport's checksum of a complete packet is there and right.
    pub(crate) fn checksum_holds(&self, packet: &[u8]) -> bool {
        let at = self.transport + self.checksum_offset();
        let absent = self.protocol == UDP && packet[at..at + 2] == [0, 0];
        let sum = self.pseudo_sum(packet, packet.len());
        !absent && checksum::finish(checksum::add(sum, &packet[self.transport..])) == 0
    }
}
