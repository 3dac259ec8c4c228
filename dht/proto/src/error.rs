//! What can go wrong in the register.

use crate::StoreError;

/// An error of the register.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A message of another release.
    #[error("the message has version {found}, this release speaks {ours}; run the same release on all nodes")]
    Version {
        /// The version that was read.
        found: u8,
        /// The version spoken here.
        ours: u8,
    },
    /// A message that cannot be read.
    #[error("the message is malformed: {0}; its sender runs another release or is hostile")]
    Malformed(&'static str),
    /// A message above the limit.
    #[error("the message has {len} bytes, more than the {max} allowed; send less at once")]
    TooLong {
        /// Its length.
        len: usize,
        /// The longest allowed.
        max: usize,
    },
    /// A certificate that does not prove what it says.
    #[error("the certificate is not valid: {0}; drop it and look the key up again")]
    Certificate(&'static str),
    /// A set entry that is not acceptable.
    #[error("the set entry is refused: {0}")]
    Set(&'static str),
    /// The node's stable storage failed.
    #[error("the register cannot use its store: {0}")]
    Store(#[from] StoreError),
}
