//! Why a peer did not become a connection, and how to find that reason in a transport's nest of errors.

use std::error::Error as StdError;
use std::io;

use aerie_identity::Rejection;
use aerie_types::PeerId;
use libp2p::noise;

/// Why a peer was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The credential does not hold.
    #[error(transparent)]
    Credential(#[from] Rejection),
    /// The credential is somebody else's: its key is not the one that the handshake proved.
    #[error("the peer showed the credential of another key; restore the node's own keys or enrol it again")]
    KeyMismatch,
    /// The peer announced a credential longer than any can be.
    #[error("the peer announced a credential of {length} bytes; it does not speak this protocol")]
    Oversized {
        /// The announced length in bytes.
        length: usize,
    },
    /// The peer did not finish the exchange in time.
    #[error("the peer did not show a credential in time; check that it is a member and not overloaded")]
    Stalled,
    /// The stream broke during the exchange.
    #[error("the connection broke while credentials were exchanged: {0}; it will be tried again")]
    Broken(String),
    /// The other side refused our credential.
    #[error("the other side refused this node: {0}")]
    ByRemote(&'static str),
    /// The peer does not speak this grid's handshake: another grid, or not a member of any.
    #[error("the peer does not speak this grid's handshake ({0}); it is of another grid or no member at all")]
    Handshake(String),
    /// The peer holds no admitted credential.
    #[error("the peer has no admitted credential")]
    NotAdmitted,
}

/// A refusal and whom it met, if the handshake got far enough to prove a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// The peer, by the key that it proved.
    pub peer: Option<PeerId>,
    /// Why.
    pub reason: Refusal,
}

/// The error of the admitting upgrades.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The Noise handshake failed.
    #[error("the Noise handshake failed: {0}")]
    Noise(#[from] noise::Error),
    /// The handshake succeeded, the exchange of credentials did not.
    #[error("not admitted: {0}")]
    Rejected(#[from] Rejected),
}

/// Finds a [`Rejected`] among the causes of a transport error.
///
/// The transport boxes errors in `io::Error`, whose `source` skips the boxed error itself, so both are walked.
pub(crate) fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Rejected> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rejected) = error.downcast_ref::<Rejected>() {
            return Some(rejected);
        }
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = find(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_found_below_boxed_io_errors() {
        let rejected = Rejected {
            peer: None,
            reason: Refusal::Stalled,
        };
        let boxed = io::Error::other(io::Error::other(AdmissionError::Rejected(rejected.clone())));
        assert_eq!(find(&boxed), Some(&rejected));
        assert_eq!(find(&io::Error::other("plain")), None);
    }
}
