//! Identifiers: of a grid, of a member, of one start of a member, and keys of the hash table.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ParseError;

/// Identifies a grid: the first 16 bytes of the SHA-256 of its root CA's certificate (DER).
///
/// Self-certifying: whoever holds the certificate can check the id. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GridId(pub [u8; 16]);

impl GridId {
    /// The id of the grid whose root CA has this certificate.
    #[must_use]
    pub fn of_ca(ca_der: &[u8]) -> Self {
        let digest = Sha256::digest(ca_der);
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }

    /// The first eight hexadecimal digits: enough to name interfaces and folders on one machine.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl fmt::Display for GridId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for GridId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GridId({self})")
    }
}

impl FromStr for GridId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).map_err(|_| ParseError::Id {
            kind: "grid id",
            text: text.to_owned(),
            expected: "it has 32 hexadecimal digits",
        })?;
        Ok(Self(id))
    }
}

/// Identifies a member of a grid: the Ed25519 public key of its overlay credential.
///
/// Its text is the libp2p peer id (base58 of the identity multihash of the protobuf-framed key), so that it can
/// be pasted into a multiaddress.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerId(pub [u8; 32]);

impl Ord for PeerId {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        order(&self.0, &other.0)
    }
}

impl PartialOrd for PeerId {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Identity multihash (0x00), 36 bytes long, of a protobuf with key type Ed25519 (1) and 32 bytes of key.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl PeerId {
    /// The bytes of the libp2p peer id: the multihash, 38 bytes.
    #[must_use]
    pub fn to_multihash(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// Reads the bytes of a libp2p peer id. `None` if it is not that of an Ed25519 key.
    #[must_use]
    pub fn from_multihash(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }

    /// The place of this member in the key space, the same as libp2p's Kademlia gives it.
    #[must_use]
    pub fn position(&self) -> Key {
        Key(Sha256::digest(self.to_multihash()).into())
    }

    /// The last eight characters of the text: enough for a person to tell members apart.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        text[text.len() - 8..].to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl FromStr for PeerId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        bs58::decode(text)
            .into_vec()
            .ok()
            .and_then(|bytes| Self::from_multihash(&bytes))
            .ok_or_else(|| ParseError::Id {
                kind: "peer id",
                text: text.to_owned(),
                expected: "it is the base58 text of an Ed25519 libp2p peer id and begins with 12D3KooW",
            })
    }
}

/// A nonce drawn at each start of a node, so that a copied disk shows as a second instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instance(pub u64);

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A point of the 256-bit key space, in which members and keys have XOR distances.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key(pub [u8; 32]);

impl Ord for Key {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        order(&self.0, &other.0)
    }
}

impl PartialOrd for Key {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Key {
    /// Hashes parts into a key. Each part is preceded by its length, so that no two lists of parts collide.
    #[must_use]
    pub fn of(domain: &str, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in std::iter::once(domain.as_bytes()).chain(parts.iter().copied()) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The place of this key in the key space: its SHA-256, as libp2p's Kademlia places a record key.
    #[must_use]
    pub fn position(&self) -> Self {
        Self(Sha256::digest(self.0).into())
    }

    /// The XOR distance between two positions; compare as big-endian numbers.
    #[inline]
    #[must_use]
    pub fn distance(&self, other: &Self) -> [u8; 32] {
        std::array::from_fn(|i| self.0[i] ^ other.0[i])
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", hex::encode(&self.0[..4]))
    }
}

/// The order of the bytes. Ids are keys of large maps: two pairs of numbers compare in a fraction of the time that byte
/// strings take.
#[inline]
fn order(one: &[u8; 32], other: &[u8; 32]) -> Ordering {
    halves(one).cmp(&halves(other))
}

#[inline]
fn halves(bytes: &[u8; 32]) -> (u128, u128) {
    let half = |from: usize| {
        let mut half = [0; 16];
        half.copy_from_slice(&bytes[from..from + 16]);
        u128::from_be_bytes(half)
    };
    (half(0), half(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_keys_are_in_the_order_of_their_bytes() {
        let differing_at = |place: usize, byte: u8| {
            let mut bytes = [9; 32];
            bytes[place] = byte;
            bytes
        };
        for place in [0, 1, 7, 8, 15, 31] {
            for byte in [0, 8, 9, 10, 255] {
                let (one, other) = (differing_at(place, byte), differing_at(7, 128));
                assert_eq!(PeerId(one).cmp(&PeerId(other)), one.cmp(&other));
                assert_eq!(Key(other).cmp(&Key(one)), other.cmp(&one));
            }
        }
    }

    #[test]
    fn a_peer_id_reads_back_from_its_text() {
        let peer = PeerId([7; 32]);
        let text = peer.to_string();
        assert!(text.starts_with("12D3KooW"), "{text}");
        assert_eq!(text.parse::<PeerId>(), Ok(peer));
    }

    #[test]
    fn a_truncated_peer_id_is_refused() {
        let text = PeerId([7; 32]).to_string();
        assert!(text[..40].parse::<PeerId>().is_err());
    }

    #[test]
    fn keys_of_different_splits_differ() {
        assert_ne!(Key::of("d", &[b"ab", b"c"]), Key::of("d", &[b"a", b"bc"]));
    }
}
