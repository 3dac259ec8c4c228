//! Who a member is: the grid's CA, node keys, credentials, revocation lists and join tokens.
//!
//! A grid has one certification authority of its own ([`GridCa`], ECDSA P-256); the hash of its certificate names
//! the grid. A node makes three keys ([`NodeKeys`]) that never leave it: Ed25519 for the overlay (its public half
//! *is* the peer id), X25519 for the tunnel's Noise handshake, and P-256 for HTCondor, so that the key that votes
//! is never in HTCondor's hands. One [`EnrolRequest`] proves possession of all of them, and [`GridCa::issue`]
//! answers with two certificates: the *overlay credential*, small enough for a handshake's payload, which binds
//! peer id, Noise key, node name, user, group and roles; and a conventional P-256 certificate for HTCondor.
//!
//! Every member checks every other one offline with a [`Verifier`]: a strict profile of X.509 (one algorithm, one
//! encoding, known extensions), the CA's signature over the exact bytes, times with a tolerance for skewed clocks,
//! and the newest [`RevocationList`] it has seen, whose serial never goes back.
//!
//! Nothing here reads a clock or a socket. Only [`files`], [`NodeKeys::save`] and [`GridCa::save`] (with their
//! `load`) touch the disk, always by an atomic replacement that is synced before it counts.

mod ca;
mod certificate;
mod credential;
mod der;
mod error;
pub mod files;
mod keys;
mod request;
mod revocation;
mod time;
mod token;
mod transcript;
mod user;
mod verify;

#[cfg(test)]
mod tests;

pub use ca::{GridCa, IssuedCredentials, ServerCertificate, Subject};
pub use certificate::PlainCertificate;
pub use credential::{CLOCK_SKEW, Credential, DEFAULT_LIFETIME, MAX_CREDENTIAL_DER, renewal_due};
pub use der::pem_to_der;
pub use error::{Error, Rejection, RevokedBy};
pub use keys::{NodeKeys, OverlaySigner};
pub use request::{EnrolRequest, MAX_REQUEST, RenewRequest, UserRequest};
pub use revocation::{MAX_REVOCATIONS, MAX_SIGNED_REVOCATIONS, RevocationList, SignedRevocations};
pub use time::time_text;
pub use token::{JoinToken, TOKEN_PREFIX};
pub use transcript::{sha256, transcript, verify_overlay};
pub use user::UserKey;
pub use verify::Verifier;
