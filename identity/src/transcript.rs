//! What is signed: byte strings that cannot be mistaken for one another.

use aerie_types::PeerId;
use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

/// Joins a context and parts into one byte string, each preceded by its length (8 bytes, big-endian).
///
/// Whoever signs with an overlay key signs the transcript of a context that no other protocol uses, so that a
/// signature made for one purpose never serves another.
#[must_use]
pub fn transcript(context: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in std::iter::once(context.as_bytes()).chain(parts.iter().copied()) {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// The SHA-256 of a byte string.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Whether `signature` is the member's Ed25519 signature (64 bytes) over `message`.
#[must_use]
pub fn verify_overlay(peer: &PeerId, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, peer.0)
        .verify(message, signature)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_of_different_splits_or_contexts_differ() {
        assert_ne!(transcript("c", &[b"ab", b"c"]), transcript("c", &[b"a", b"bc"]));
        assert_ne!(transcript("c", &[b"ab"]), transcript("d", &[b"ab"]));
    }
}
