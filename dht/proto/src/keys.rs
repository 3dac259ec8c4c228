//! What the core needs from outside: the time, and the signatures and credentials of members.

use std::time::Instant;

use aerie_types::{GroupName, NodeName, PeerId, Roles, WallMillis};
use serde::{Deserialize, Serialize};

/// The moment of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Now {
    /// Monotonic time: every timer and every life of a lease runs by it.
    pub instant: Instant,
    /// This node's idea of the wall time. It may be wrong by [`crate::limits::CLOCK_SKEW`].
    pub wall: WallMillis,
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Signature([u8; 32], [u8; 32]);

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, ..] = self.0;
        write!(f, "Signature({a:02x}{b:02x}..)")
    }
}

impl From<[u8; 64]> for Signature {
    fn from(bytes: [u8; 64]) -> Self {
        Self(
            std::array::from_fn(|i| bytes[i]),
            std::array::from_fn(|i| bytes[32 + i]),
        )
    }
}

impl From<Signature> for [u8; 64] {
    fn from(signature: Signature) -> Self {
        std::array::from_fn(|i| {
            if i < 32 {
                signature.0[i]
            } else {
                signature.1[i - 32]
            }
        })
    }
}

/// What a valid credential says of its member.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// The member.
    pub peer: PeerId,
    /// Its name, unique in the grid.
    pub node: NodeName,
    /// Its group.
    pub group: GroupName,
    /// What it may do.
    pub roles: Roles,
}

/// Why a credential does not make a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotMember(pub String);

/// Signs for this node and judges others.
pub trait Keys {
    /// This node.
    fn me(&self) -> PeerId;

    /// This node's own credential, the newest.
    fn credential(&self) -> Vec<u8>;

    /// Signs a message, which begins with a context of its own.
    fn sign(&self, message: &[u8]) -> Signature;

    /// Whether the signature is the member's over the message.
    fn verify(&self, peer: PeerId, message: &[u8], signature: &Signature) -> bool;

    /// Judges a credential: of this grid, at this time, not revoked.
    ///
    /// # Errors
    /// [`NotMember`] with the reason.
    fn member(&self, credential: &[u8], wall: WallMillis) -> Result<Member, NotMember>;
}
