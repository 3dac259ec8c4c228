//! The datagrams of the data socket.
//!
//! Every datagram begins with four bytes: version, kind, suite, flags. Numbers are big-endian.
//!
//! ```text
//! kind                 suite      after the four bytes
//!  1 handshake init    handshake  sender index 4, receiver's tag 8, timestamp 8, Noise message, MAC 16
//!  2 handshake reply   handshake  sender index 4, receiver index 4, Noise message, MAC 16
//!  3 data              bulk       receiver index 4, counter 8, sealed packet and tag
//!  4 probe             -          receiver's tag 8, transaction 8, zeros 18 or more, MAC 16
//!  5 probe reply       -          receiver's tag 8, transaction 8, observed address 18, MAC 16
//!  6 reflexive query   -          transaction 8, zeros 18
//!  7 reflexive answer  -          transaction 8, observed address 18
//!  8 relay bind        -          session 8, end 1, sequence 8, MAC 16
//!  9 relay bound       -          session 8, end 1, sequence 8, MAC 16; flag 1: the other end is bound too
//! 10 relay frame       -          zeros 4, session 8, a datagram of the kinds 1 to 5
//! ```
//!
//! The header of data is the additional data of its AEAD: suite, flags, index and counter cannot be changed. An
//! answer is never longer than its question, so that a spoofed source gains nothing. The tag in probes and in
//! handshake inits is the number by which their receiver asked, over the authenticated overlay, to be addressed;
//! the MAC's key was agreed there too. So nothing but data and relay frames is looked at before a MAC.
//!
//! A probe with more zeros than it needs is padded: it asks whether a datagram of its length gets through. The MAC
//! covers the zeros, and so their number: a probe that was cut short on its way proves nothing. Its answer is that
//! of any other probe, as short.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use aerie_types::UnderlayAddr;
use aws_lc_rs::hmac;

use crate::limits::FLOOR;

/// The version of everything on the data socket.
pub const VERSION: u8 = 1;
/// The handshake's suite: Noise_IK_25519_ChaChaPoly_BLAKE2s.
pub(crate) const HANDSHAKE_SUITE: u8 = 1;
/// Bytes of the header of data, before the sealed packet.
pub const DATA_HEADER: usize = 16;
/// Bytes that sealing a packet adds to it in all.
pub const DATA_OVERHEAD: usize = DATA_HEADER + crate::suite::TAG;
/// Bytes that a relay's frame adds.
pub const RELAY_OVERHEAD: usize = 16;

pub(crate) const MAC: usize = 16;
const OBSERVED: usize = 18;
const PROBE_LEN: usize = 4 + 8 + 8 + OBSERVED + MAC;
/// The longest probe: what the largest inner MTU needs through a relay.
const MAX_PROBE: usize = 9000 + DATA_OVERHEAD + RELAY_OVERHEAD;
const REFLEXIVE_LEN: usize = 4 + 8 + OBSERVED;
const BIND_LEN: usize = 4 + 8 + 1 + 8 + MAC;
const FAR_BOUND: u8 = 1;

/// What a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Init = 1,
    Response = 2,
    Data = 3,
    Probe = 4,
    ProbeReply = 5,
    ReflexiveQuery = 6,
    ReflexiveAnswer = 7,
    RelayBind = 8,
    RelayBound = 9,
    RelayData = 10,
}

/// A datagram by its meaning, with the bytes that its MAC covers where it has one.
#[derive(Debug)]
pub(crate) enum Packet<'a> {
    Init {
        sender: u32,
        tag: u64,
        timestamp: u64,
        noise: &'a [u8],
        mac: Mac<'a>,
    },
    Response {
        sender: u32,
        receiver: u32,
        noise: &'a [u8],
        mac: Mac<'a>,
    },
    Data {
        receiver: u32,
        counter: u64,
    },
    Probe {
        tag: u64,
        transaction: u64,
        mac: Mac<'a>,
    },
    ProbeReply {
        tag: u64,
        transaction: u64,
        observed: UnderlayAddr,
        mac: Mac<'a>,
    },
    ReflexiveQuery {
        transaction: u64,
    },
    ReflexiveAnswer {
        transaction: u64,
        observed: UnderlayAddr,
    },
    RelayBind {
        session: u64,
        end: u8,
        sequence: u64,
        mac: Mac<'a>,
    },
    RelayBound {
        session: u64,
        end: u8,
        sequence: u64,
        far_bound: bool,
        mac: Mac<'a>,
    },
    RelayData {
        session: u64,
    },
}

/// A MAC and what it covers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mac<'a> {
    covered: &'a [u8],
    mac: &'a [u8],
}

impl Mac<'_> {
    pub(crate) fn verify(&self, key: &hmac::Key) -> bool {
        let own = hmac::sign(key, self.covered);
        aws_lc_rs::constant_time::verify_slices_are_equal(&own.as_ref()[..MAC], self.mac).is_ok()
    }
}

/// Reads a datagram. `None` if it is none of this version.
pub(crate) fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    let (&version, &kind, &suite, &flags) = (bytes.first()?, bytes.get(1)?, bytes.get(2)?, bytes.get(3)?);
    if version != VERSION {
        return None;
    }
    let tagged = |at: usize, len: usize| {
        if bytes.len() != len {
            return None;
        }
        Some((u64_at(bytes, 4)?, u64_at(bytes, at)?, mac_of(bytes)?))
    };
    match kind {
        1 if suite == HANDSHAKE_SUITE => Some(Packet::Init {
            sender: u32_at(bytes, 4)?,
            tag: u64_at(bytes, 8)?,
            timestamp: u64_at(bytes, 16)?,
            noise: bytes.get(24..bytes.len().checked_sub(MAC)?)?,
            mac: mac_of(bytes)?,
        }),
        2 if suite == HANDSHAKE_SUITE => Some(Packet::Response {
            sender: u32_at(bytes, 4)?,
            receiver: u32_at(bytes, 8)?,
            noise: bytes.get(12..bytes.len().checked_sub(MAC)?)?,
            mac: mac_of(bytes)?,
        }),
        3 if bytes.len() >= DATA_OVERHEAD => Some(Packet::Data {
            receiver: u32_at(bytes, 4)?,
            counter: u64_at(bytes, 8)?,
        }),
        4 if bytes.len() <= MAX_PROBE => {
            // Shorter than one without padding it is refused by the length that is asked for.
            let (tag, transaction, mac) = tagged(12, bytes.len().max(PROBE_LEN))?;
            Some(Packet::Probe {
                tag,
                transaction,
                mac,
            })
        }
        5 => {
            let (tag, transaction, mac) = tagged(12, PROBE_LEN)?;
            Some(Packet::ProbeReply {
                tag,
                transaction,
                observed: read_addr(bytes.get(20..)?)?,
                mac,
            })
        }
        6 if bytes.len() == REFLEXIVE_LEN => Some(Packet::ReflexiveQuery {
            transaction: u64_at(bytes, 4)?,
        }),
        7 if bytes.len() == REFLEXIVE_LEN => Some(Packet::ReflexiveAnswer {
            transaction: u64_at(bytes, 4)?,
            observed: read_addr(bytes.get(12..)?)?,
        }),
        8 => {
            let (session, sequence, mac) = tagged(13, BIND_LEN)?;
            Some(Packet::RelayBind {
                session,
                end: *bytes.get(12)?,
                sequence,
                mac,
            })
        }
        9 => {
            let (session, sequence, mac) = tagged(13, BIND_LEN)?;
            let far_bound = flags & FAR_BOUND != 0;
            Some(Packet::RelayBound {
                session,
                end: *bytes.get(12)?,
                sequence,
                far_bound,
                mac,
            })
        }
        10 if bytes.len() > RELAY_OVERHEAD => Some(Packet::RelayData {
            session: u64_at(bytes, 8)?,
        }),
        _ => None,
    }
}

/// Whether a datagram inside a relay's frame may be looked at: the kinds that go between two members.
pub(crate) fn may_be_relayed(bytes: &[u8]) -> bool {
    matches!(bytes, [VERSION, 1..=5, ..])
}

/// Whether a datagram is a probe of a length: it must not be cut into fragments, on no part of its way.
pub(crate) fn is_padded_probe(bytes: &[u8]) -> bool {
    (FLOOR - RELAY_OVERHEAD..=MAX_PROBE).contains(&bytes.len())
        && bytes.starts_with(&[VERSION, Kind::Probe as u8])
}

pub(crate) fn init(sender: u32, tag: u64, timestamp: u64, noise: &[u8], key: &hmac::Key) -> Vec<u8> {
    let mut bytes = header(Kind::Init, HANDSHAKE_SUITE, 0);
    bytes.extend(sender.to_be_bytes());
    bytes.extend(tag.to_be_bytes());
    bytes.extend(timestamp.to_be_bytes());
    bytes.extend(noise);
    sealed_by(bytes, key)
}

pub(crate) fn response(sender: u32, receiver: u32, noise: &[u8], key: &hmac::Key) -> Vec<u8> {
    let mut bytes = header(Kind::Response, HANDSHAKE_SUITE, 0);
    bytes.extend(sender.to_be_bytes());
    bytes.extend(receiver.to_be_bytes());
    bytes.extend(noise);
    sealed_by(bytes, key)
}

pub(crate) fn data_header(suite: u8, receiver: u32, counter: u64) -> [u8; DATA_HEADER] {
    let mut bytes = [0; DATA_HEADER];
    bytes[..4].copy_from_slice(&[VERSION, Kind::Data as u8, suite, 0]);
    bytes[4..8].copy_from_slice(&receiver.to_be_bytes());
    bytes[8..].copy_from_slice(&counter.to_be_bytes());
    bytes
}

pub(crate) fn probe(tag: u64, transaction: u64, key: &hmac::Key) -> Vec<u8> {
    padded_probe(tag, transaction, PROBE_LEN, key)
}

/// A probe that is `len` bytes long, or as long as it has to be.
pub(crate) fn padded_probe(tag: u64, transaction: u64, len: usize, key: &hmac::Key) -> Vec<u8> {
    let mut bytes = header(Kind::Probe, 0, 0);
    bytes.extend(tag.to_be_bytes());
    bytes.extend(transaction.to_be_bytes());
    bytes.resize(len.clamp(PROBE_LEN, MAX_PROBE) - MAC, 0);
    sealed_by(bytes, key)
}

pub(crate) fn probe_reply(tag: u64, transaction: u64, observed: UnderlayAddr, key: &hmac::Key) -> Vec<u8> {
    let mut bytes = header(Kind::ProbeReply, 0, 0);
    bytes.extend(tag.to_be_bytes());
    bytes.extend(transaction.to_be_bytes());
    bytes.extend(write_addr(observed));
    sealed_by(bytes, key)
}

pub(crate) fn reflexive_query(transaction: u64) -> Vec<u8> {
    let mut bytes = header(Kind::ReflexiveQuery, 0, 0);
    bytes.extend(transaction.to_be_bytes());
    bytes.extend([0; OBSERVED]);
    bytes
}

pub(crate) fn reflexive_answer(transaction: u64, observed: UnderlayAddr) -> Vec<u8> {
    let mut bytes = header(Kind::ReflexiveAnswer, 0, 0);
    bytes.extend(transaction.to_be_bytes());
    bytes.extend(write_addr(observed));
    bytes
}

pub(crate) fn relay_bind(session: u64, end: u8, sequence: u64, key: &hmac::Key) -> Vec<u8> {
    relay_control(Kind::RelayBind, 0, session, end, sequence, key)
}

pub(crate) fn relay_bound(session: u64, end: u8, sequence: u64, far_bound: bool, key: &hmac::Key) -> Vec<u8> {
    let flags = if far_bound { FAR_BOUND } else { 0 };
    relay_control(Kind::RelayBound, flags, session, end, sequence, key)
}

pub(crate) fn relay_header(session: u64) -> [u8; RELAY_OVERHEAD] {
    let mut bytes = [0; RELAY_OVERHEAD];
    bytes[..4].copy_from_slice(&[VERSION, Kind::RelayData as u8, 0, 0]);
    bytes[8..].copy_from_slice(&session.to_be_bytes());
    bytes
}

fn relay_control(kind: Kind, flags: u8, session: u64, end: u8, sequence: u64, key: &hmac::Key) -> Vec<u8> {
    let mut bytes = header(kind, 0, flags);
    bytes.extend(session.to_be_bytes());
    bytes.push(end);
    bytes.extend(sequence.to_be_bytes());
    sealed_by(bytes, key)
}

fn header(kind: Kind, suite: u8, flags: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend([VERSION, kind as u8, suite, flags]);
    bytes
}

fn sealed_by(mut bytes: Vec<u8>, key: &hmac::Key) -> Vec<u8> {
    let mac = hmac::sign(key, &bytes);
    bytes.extend(&mac.as_ref()[..MAC]);
    bytes
}

fn mac_of(bytes: &[u8]) -> Option<Mac<'_>> {
    let (covered, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC)?)?;
    Some(Mac { covered, mac })
}

fn write_addr(addr: UnderlayAddr) -> [u8; OBSERVED] {
    let mut bytes = [0; OBSERVED];
    let ip = match addr.0.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&addr.0.port().to_be_bytes());
    bytes
}

fn read_addr(bytes: &[u8]) -> Option<UnderlayAddr> {
    let ip: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    let port = u16::from_be_bytes(bytes.get(16..18)?.try_into().ok()?);
    Some(UnderlayAddr(SocketAddr::new(
        Ipv6Addr::from(ip).to_canonical(),
        port,
    )))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[1; 32])
    }

    #[test]
    fn an_answer_is_never_longer_than_its_question() {
        let addr = UnderlayAddr("[2001:db8::1]:4242".parse().unwrap());
        assert!(probe_reply(1, 2, addr, &key()).len() <= probe(1, 2, &key()).len());
        assert!(reflexive_answer(1, addr).len() <= reflexive_query(1).len());
        assert!(relay_bound(1, 0, 2, true, &key()).len() <= relay_bind(1, 0, 2, &key()).len());
    }

    #[test]
    fn an_observed_address_reads_back_in_both_families() {
        for text in ["192.0.2.7:4242", "[2001:db8::1]:9"] {
            let addr = UnderlayAddr(text.parse().unwrap());
            let bytes = reflexive_answer(5, addr);
            let Some(Packet::ReflexiveAnswer {
                transaction: 5,
                observed,
            }) = parse(&bytes)
            else {
                panic!()
            };
            assert_eq!(observed, addr);
        }
    }

    #[test]
    fn every_bit_of_a_probe_is_under_its_mac() {
        for good in [probe(1, 2, &key()), padded_probe(1, 2, 200, &key())] {
            flip_each_bit(&good);
        }
    }

    fn flip_each_bit(good: &[u8]) {
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let accepted = match parse(&bad) {
                Some(Packet::Probe { mac, .. } | Packet::ProbeReply { mac, .. }) => mac.verify(&key()),
                _ => false,
            };
            assert!(!accepted, "bit {bit}");
        }
    }

    #[test]
    fn a_padded_probe_that_lost_or_won_a_byte_on_its_way_proves_nothing() {
        let good = padded_probe(1, 2, 1452, &key());
        assert_eq!(good.len(), 1452);
        let accepted = |bytes: &[u8]| match parse(bytes) {
            Some(Packet::Probe { mac, .. }) => mac.verify(&key()),
            _ => false,
        };
        assert!(accepted(&good));
        for len in 0..good.len() {
            // From the front, from the end, and of the padding alone.
            assert!(
                !accepted(&good[..len]) && !accepted(&good[good.len() - len..]),
                "{len}"
            );
            let shorter = [&good[..len / 2], &good[good.len() - len / 2..]].concat();
            assert!(!accepted(&shorter), "{len}");
        }
        let longer = [&good[..100], &[0], &good[100..]].concat();
        assert!(!accepted(&longer));
    }

    #[test]
    fn a_probe_is_never_longer_than_the_largest_mtu_asks_for() {
        assert_eq!(padded_probe(1, 2, 0, &key()), probe(1, 2, &key()));
        assert!(!is_padded_probe(&probe(1, 2, &key())));
        let longest = padded_probe(1, 2, 70_000, &key());
        assert_eq!(longest.len(), MAX_PROBE);
        assert!(is_padded_probe(&longest) && parse(&longest).is_some());
        assert!(parse(&[&longest[..], &[0]].concat()).is_none());
    }

    #[test]
    fn a_datagram_of_another_version_is_nothing() {
        let mut bytes = reflexive_query(1);
        bytes[0] = 2;
        assert!(parse(&bytes).is_none());
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn whatever_follows_a_good_header_is_read_or_refused(
            kind in 0u8..12, suite in 0u8..3,
            rest in prop_oneof![prop::collection::vec(any::<u8>(), 0..120), prop::collection::vec(any::<u8>(), 0..9100)],
        ) {
            let mut bytes = vec![VERSION, kind, suite, 0];
            bytes.extend(rest);
            if let Some(Packet::Init { mac, .. } | Packet::Probe { mac, .. }) = parse(&bytes) {
                prop_assert!(!mac.verify(&key()));
            }
        }

        #[test]
        fn an_answer_is_shorter_than_any_padded_probe(len in 0..70_000usize, tag: u64, transaction: u64) {
            let asked = padded_probe(tag, transaction, len, &key());
            let observed = UnderlayAddr("[2001:db8::1]:4242".parse().unwrap());
            prop_assert!(probe_reply(tag, transaction, observed, &key()).len() <= asked.len());
            let Some(Packet::Probe { tag: read, transaction: number, mac }) = parse(&asked) else {
                panic!("{len}")
            };
            prop_assert!((read, number) == (tag, transaction) && mac.verify(&key()));
        }
    }
}
