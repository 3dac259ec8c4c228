//! Ciphers for bulk data and how two sides agree on one.
//!
//! The initiator offers the suites it has, its preferred one first; the responder picks. Both the offer and the
//! choice stand in payloads of the Noise handshake, so that nobody between can change them.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

/// Bytes that sealing adds.
pub(crate) const TAG: usize = 16;

/// A cipher for bulk data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Suite {
    /// AES-256-GCM: the fastest where the processor has instructions for it.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305: the fastest elsewhere.
    ChaCha20Poly1305 = 2,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        })
    }
}

impl Suite {
    /// Both, for a processor with AES instructions or without.
    #[must_use]
    pub fn preferred(aes_instructions: bool) -> Vec<Self> {
        if aes_instructions {
            vec![Self::Aes256Gcm, Self::ChaCha20Poly1305]
        } else {
            vec![Self::ChaCha20Poly1305, Self::Aes256Gcm]
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// The responder's choice: AES only where both sides prefer it, else ChaCha20, which no processor does badly.
    pub(crate) fn choose(offered: &[Self], own: &[Self]) -> Option<Self> {
        if let (Some(theirs), Some(ours)) = (offered.first(), own.first())
            && theirs == ours
        {
            return Some(*ours);
        }
        let common = |suite: &Self| offered.contains(suite) && own.contains(suite);
        [Self::ChaCha20Poly1305, Self::Aes256Gcm].into_iter().find(common)
    }

    /// After so many packets a session is renewed. AES-GCM: RFC 9001, appendix B.1, for packets of 2 KiB.
    pub(crate) fn rekey_after_messages(self) -> u64 {
        match self {
            Self::Aes256Gcm => 1 << 28,
            Self::ChaCha20Poly1305 => 1 << 60,
        }
    }

    /// After so many packets a session seals nothing more. WireGuard's limit is 2^64 - 2^13 - 1.
    pub(crate) fn reject_after_messages(self) -> u64 {
        match self {
            Self::Aes256Gcm => 1 << 30,
            Self::ChaCha20Poly1305 => u64::MAX - (1 << 13),
        }
    }
}

/// The key of one direction of a session.
pub(crate) struct BulkKey(LessSafeKey);

impl BulkKey {
    #[expect(clippy::expect_used, reason = "both algorithms take keys of 32 bytes")]
    pub(crate) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        Self(LessSafeKey::new(
            UnboundKey::new(algorithm, key).expect("a key of 32 bytes"),
        ))
    }

    /// Seals `plain` into `sealed`, which is longer by [`TAG`]. `false` if it cannot be done.
    pub(crate) fn seal(&self, counter: u64, aad: &[u8], plain: &[u8], sealed: &mut [u8]) -> bool {
        let Some((text, tag)) = sealed.split_at_mut_checked(plain.len()) else {
            return false;
        };
        self.0
            .seal_out_of_place_scatter(nonce(counter), Aad::from(aad), plain, text, &[], tag)
            .is_ok()
    }

    /// Opens in place. The length of the plain text at the start of `sealed`, or `None` for a forgery.
    pub(crate) fn open(&self, counter: u64, aad: &[u8], sealed: &mut [u8]) -> Option<usize> {
        self.0
            .open_in_place(nonce(counter), Aad::from(aad), sealed)
            .ok()
            .map(|plain| plain.len())
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cipher_is_shown_by_its_common_name() {
        let shown = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305].map(|suite| suite.to_string());
        assert_eq!(shown, ["AES-256-GCM", "ChaCha20-Poly1305"]);
    }

    #[test]
    fn aes_is_chosen_only_where_both_prefer_it() {
        let (fast, slow) = (Suite::preferred(true), Suite::preferred(false));
        assert_eq!(Suite::choose(&fast, &fast), Some(Suite::Aes256Gcm));
        assert_eq!(Suite::choose(&fast, &slow), Some(Suite::ChaCha20Poly1305));
        assert_eq!(Suite::choose(&slow, &fast), Some(Suite::ChaCha20Poly1305));
        assert_eq!(Suite::choose(&[Suite::Aes256Gcm], &slow), Some(Suite::Aes256Gcm));
        assert_eq!(Suite::choose(&[], &fast), None);
    }

    #[test]
    fn a_changed_header_does_not_open() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let key = BulkKey::new(suite, &[7; 32]);
            let mut sealed = [0; 5 + TAG];
            assert!(key.seal(9, b"header", b"hello", &mut sealed));
            let mut other = sealed;
            assert_eq!(key.open(9, b"h3ader", &mut other), None);
            let mut other = sealed;
            assert_eq!(key.open(10, b"header", &mut other), None);
            assert_eq!(key.open(9, b"header", &mut sealed), Some(5));
            assert_eq!(&sealed[..5], b"hello");
        }
    }
}
