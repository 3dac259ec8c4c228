//! Frames of DHCP: Ethernet, IPv4 and UDP around a message (RFC 2131, RFC 2132).
//!
//! Of a guest's message little is needed, and no more is read: the fixed fields, the kind, and two addresses. What is
//! behind them is skipped by its length.

use std::net::Ipv4Addr;

use aerie_cluster_node::Mac;

/// The port of servers.
const SERVER: u16 = 67;
/// The port of clients.
const CLIENT: u16 = 68;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;

/// What is before the options: the fixed fields, and four bytes that say that options follow.
const FIXED: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// A BOOTP message has at least so many bytes, and some clients take no shorter one (RFC 1542, section 2.1).
const SHORTEST: usize = 300;

/// Options of one message: as many as its largest size has room for, less than a guest could make us walk through.
const MAX_OPTIONS: usize = 256;

const ETHERTYPE_IPV4: u16 = 0x0800;
const PROTOCOL_UDP: u8 = 17;

/// What a message is for (RFC 2132, section 9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Kind {
    Discover = 1,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }
}

/// Codes of options.
pub(crate) mod option {
    pub(crate) const PAD: u8 = 0;
    pub(crate) const MASK: u8 = 1;
    pub(crate) const ROUTER: u8 = 3;
    pub(crate) const DNS: u8 = 6;
    pub(crate) const HOST_NAME: u8 = 12;
    pub(crate) const MTU: u8 = 26;
    pub(crate) const BROADCAST: u8 = 28;
    pub(crate) const ASKED: u8 = 50;
    pub(crate) const LEASE: u8 = 51;
    pub(crate) const KIND: u8 = 53;
    pub(crate) const SERVER: u8 = 54;
    pub(crate) const MESSAGE: u8 = 56;
    pub(crate) const RENEW: u8 = 58;
    pub(crate) const REBIND: u8 = 59;
    pub(crate) const ROUTES: u8 = 121;
    pub(crate) const END: u8 = 255;
}

/// Why a frame is not answered. Each is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dropped {
    /// It is no DHCP request, or a damaged one.
    Malformed,
    /// It speaks for another Ethernet address than it comes from.
    Forged,
    /// It says that it came through a relay, of which there are none.
    Relayed,
    /// Nobody here has this Ethernet address.
    Unknown,
    /// It chose another server.
    Elsewhere,
}

impl Dropped {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "no DHCP request, or a damaged one",
            Self::Forged => "a request in another's name",
            Self::Relayed => "a request by a relay",
            Self::Unknown => "a request of an unknown Ethernet address",
            Self::Elsewhere => "a request to another server",
        }
    }
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) xid: u32,
    pub(crate) secs_and_flags: [u8; 4],
    pub(crate) mac: Mac,
    /// The address that it has.
    pub(crate) has: Ipv4Addr,
    /// The address that it asks for.
    pub(crate) asks: Option<Ipv4Addr>,
    /// The server that it speaks to.
    pub(crate) server: Option<Ipv4Addr>,
    /// Where its packet came from.
    pub(crate) from: Ipv4Addr,
}

impl Request {
    /// Whether answers have to be broadcast.
    pub(crate) fn broadcast(&self) -> bool {
        self.secs_and_flags[2] & 0x80 != 0
    }

    /// Reads a frame. Checksums are not looked at: within a host they are often not made.
    pub(crate) fn parse(frame: &[u8]) -> Result<Self, Dropped> {
        let read = || -> Option<_> {
            let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
            if word(ethernet, 12)? != ETHERTYPE_IPV4 {
                return None;
            }
            let first = *packet.first()?;
            let header = usize::from(first & 15) * 4;
            let total = usize::from(word(packet, 2)?);
            if first >> 4 != 4 || header < IPV4 || total < header {
                return None;
            }
            // What is behind the packet is the frame's padding.
            let (head, datagram) = packet.get(..total)?.split_at_checked(header)?;
            let fragment = word(head, 6)? & 0x3fff;
            if fragment != 0 || head[9] != PROTOCOL_UDP {
                return None;
            }
            let length = usize::from(word(datagram, 4)?);
            if word(datagram, 0)? != CLIENT || word(datagram, 2)? != SERVER {
                return None;
            }
            let message = datagram.get(UDP..length)?;
            let (fixed, options) = message.split_at_checked(FIXED)?;
            // A request, over Ethernet, with options.
            if fixed[..3] != [1, 1, 6] || fixed[236..] != MAGIC {
                return None;
            }
            Some((ethernet, addr(head, 12)?, fixed, options))
        };
        let (ethernet, from, fixed, options) = read().ok_or(Dropped::Malformed)?;
        let options = Options::parse(options).ok_or(Dropped::Malformed)?;
        let field = |at| addr(fixed, at).ok_or(Dropped::Malformed);
        let sender = mac(fixed, 28).ok_or(Dropped::Malformed)?;
        if Some(sender) != mac(ethernet, 6) {
            return Err(Dropped::Forged);
        }
        if !field(24)?.is_unspecified() {
            return Err(Dropped::Relayed);
        }
        Ok(Self {
            kind: options.kind.ok_or(Dropped::Malformed)?,
            xid: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            secs_and_flags: [fixed[8], fixed[9], fixed[10], fixed[11]],
            mac: sender,
            has: field(12)?,
            asks: options.asks,
            server: options.server,
            from,
        })
    }
}

#[derive(Default)]
struct Options {
    kind: Option<Kind>,
    asks: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Options {
    fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut options = Self::default();
        for _ in 0..MAX_OPTIONS {
            let (code, rest) = match bytes {
                // An end that was left away is as good.
                [] | [option::END, ..] => return Some(options),
                [option::PAD, rest @ ..] => {
                    // Padding may be long, and is no option.
                    let skip = rest.iter().take_while(|byte| **byte == option::PAD).count();
                    bytes = rest.get(skip..)?;
                    continue;
                }
                [code, rest @ ..] => (*code, rest),
            };
            let (length, rest) = rest.split_first()?;
            let (value, rest) = rest.split_at_checked(usize::from(*length))?;
            bytes = rest;
            let four = || addr(value, 0).filter(|_| value.len() == 4);
            match code {
                option::KIND => options.kind = Some(Kind::from_byte(*value.first()?)?),
                option::ASKED => options.asks = Some(four()?),
                option::SERVER => options.server = Some(four()?),
                _ => (),
            }
        }
        None
    }
}

/// An answer, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: Kind,
    /// The address that the client is to have.
    pub(crate) gives: Ipv4Addr,
    /// Code and value of each option, besides the kind.
    pub(crate) options: Vec<(u8, Vec<u8>)>,
    pub(crate) to_mac: Mac,
    pub(crate) to: Ipv4Addr,
}

impl Reply {
    /// The frame.
    pub(crate) fn frame(&self, request: &Request, from_mac: Mac, from: Ipv4Addr) -> Vec<u8> {
        let mut message = vec![2, 1, 6, 0];
        message.extend(request.xid.to_be_bytes());
        message.extend([0, 0, request.secs_and_flags[2], request.secs_and_flags[3]]);
        // Only who keeps its address is told that it has one.
        let has = match self.kind {
            Kind::Ack => request.has,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        message.extend(has.octets());
        message.extend(self.gives.octets());
        message.extend([0; 8]);
        message.extend(request.mac.0);
        message.resize(FIXED - MAGIC.len(), 0);
        message.extend(MAGIC);
        message.extend([option::KIND, 1, self.kind as u8]);
        for (code, value) in &self.options {
            // What is longer does not fit into an option; none of ours is.
            if let Ok(length) = u8::try_from(value.len()) {
                message.extend([*code, length]);
                message.extend(value);
            }
        }
        message.push(option::END);
        message.resize(message.len().max(SHORTEST), option::PAD);

        let mut frame = Vec::with_capacity(ETHERNET + IPV4 + UDP + message.len());
        frame.extend(self.to_mac.0);
        frame.extend(from_mac.0);
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        let total = (IPV4 + UDP + message.len()) as u16;
        let mut head = vec![0x45, 0x10];
        head.extend(total.to_be_bytes());
        // Not to be fragmented; 64 hops.
        head.extend([0, 0, 0x40, 0, 64, PROTOCOL_UDP, 0, 0]);
        head.extend(from.octets());
        head.extend(self.to.octets());
        let sum = checksum(&[&head]);
        head[10..12].copy_from_slice(&sum.to_be_bytes());
        let length = ((UDP + message.len()) as u16).to_be_bytes();
        let mut udp = Vec::with_capacity(UDP);
        for field in [SERVER.to_be_bytes(), CLIENT.to_be_bytes(), length, [0, 0]] {
            udp.extend(field);
        }
        let pseudo = [&[0, PROTOCOL_UDP], &length[..]].concat();
        let sum = match checksum(&[&head[12..20], &pseudo, &udp, &message]) {
            // Zero would say that there is none.
            0 => 0xffff,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        for part in [head, udp, message] {
            frame.extend(part);
        }
        frame
    }
}

/// The internet checksum of parts, of which all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn addr(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn mac(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..at + 6)?.try_into().ok().map(Mac)
}
