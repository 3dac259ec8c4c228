//! Secrets: wiped when dropped, and never printed.

use std::fmt;

use zeroize::Zeroizing;

/// A secret text, such as a join token.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text over; it is wiped when this value is dropped.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself. Do not log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(redacted)")
    }
}

/// The key under which the members of a grid meet in the shared public overlay.
#[derive(Clone, PartialEq, Eq)]
pub struct RendezvousSecret(Zeroizing<Vec<u8>>);

impl RendezvousSecret {
    /// The fewest bytes allowed: 128 bits cannot be guessed.
    pub const MIN_BYTES: usize = 16;
    /// The most bytes allowed: more adds nothing.
    pub const MAX_BYTES: usize = 64;

    /// A secret of these bytes. `None` if it is shorter or longer than allowed.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        let bytes = Zeroizing::new(bytes);
        (Self::MIN_BYTES..=Self::MAX_BYTES)
            .contains(&bytes.len())
            .then_some(Self(bytes))
    }

    /// The bytes themselves. Do not log them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RendezvousSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RendezvousSecret(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let text = SecretText::new("hunter2".to_owned());
        let bytes = RendezvousSecret::new(vec![0xab; 32]).unwrap();
        let shown = format!("{text:?} {bytes:?}");
        assert_eq!(shown, "SecretText(redacted) RendezvousSecret(redacted)");
    }

    #[test]
    fn a_rendezvous_secret_is_neither_guessable_nor_endless() {
        assert!(RendezvousSecret::new(vec![0; 15]).is_none());
        assert!(RendezvousSecret::new(vec![0; 65]).is_none());
    }
}
