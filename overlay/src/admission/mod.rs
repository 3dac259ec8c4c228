//! Who may hold a connection: the exchange of credentials inside the transport upgrade.
//!
//! ```text
//!   TCP, relayed circuit                        QUIC
//!   multistream: /aerie/noise/1                 TLS 1.3 (libp2p)
//!   Noise XX, prologue = grid id                first substream of each side
//!            └────────────┬──────────────────────────────┘
//!                         │   both send:  length (u16) ‖ credential DER, at most 1 KiB
//!                         │   both judge: signature, grid, times, revocations, key = peer id
//!                         │   both send:  verdict (one byte)
//!                         ▼
//!            both verdicts good ──► connection        else ──► dropped, counted, reported
//! ```
//!
//! The verdict makes admission mutual: a side that was refused learns so, with the reason, and has no connection
//! either. Everything runs under one timeout. No side has a part of its own in the exchange, so that hole punching may
//! assign roles as it likes.
//!
//! What passes is kept in a bounded store, peer to credential. A second line of defence in the swarm denies every
//! connection of a peer that is not in the store or has lost its standing since.

mod exchange;
mod gate;
mod identity;
mod noise;
mod quic;
mod refusal;

use std::sync::Arc;

use aerie_identity::Credential;

pub(crate) use exchange::Verdict;
pub use exchange::{MAX_CREDENTIAL_FRAME, exchange};
pub use gate::Gate;
pub use identity::IdentityGate;
pub use noise::{PROTOCOL, Secured, prologue};
pub(crate) use quic::admit as admit_quic;
pub(crate) use refusal::find as find_rejection;
pub use refusal::{AdmissionError, Refusal, Rejected};

/// Decides who belongs to the grid.
pub trait Gatekeeper: Send + Sync + 'static {
    /// Judges a credential that a peer shows, now.
    ///
    /// # Errors
    /// The reason why the peer does not belong.
    fn admit(&self, der: &[u8]) -> Result<Arc<Credential>, Refusal>;

    /// The credential to show to others (DER).
    fn own(&self) -> Arc<[u8]>;

    /// Judges a credential again that was admitted before: has it expired, was it revoked?
    ///
    /// # Errors
    /// The reason why the peer no longer belongs.
    fn standing(&self, credential: &Credential) -> Result<(), Refusal> {
        self.admit(&credential.der).map(drop)
    }
}
