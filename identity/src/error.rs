use std::path::PathBuf;

use aerie_types::{GridId, NodeName, WallMillis};

use crate::time::{ago, time_text};

/// What can go wrong with keys, requests, tokens and the CA's own files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("cannot {action} {}: {source}; check that the folder exists, has space and belongs to this user", path.display())]
    Io {
        /// What was tried ("read", "write", ...).
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of keys or certificates is damaged or does not belong with its neighbours.
    #[error("{} is not usable: {reason}; restore it from a backup, or remove it and begin anew", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The cryptographic library refused an operation.
    #[error("the cryptographic library could not {0}; this is a defect or a broken random source")]
    Crypto(&'static str),
    /// A certificate could not be built.
    #[error("cannot build the {what}: {source}")]
    Build {
        /// Which certificate.
        what: &'static str,
        /// The builder's reason.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate would break this crate's own limits.
    #[error("cannot issue the {what}: {reason}")]
    Issue {
        /// Which certificate.
        what: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// An enrolment, renewal or user request that does not prove what it must.
    #[error("the request is refused: {0}")]
    Request(&'static str),
    /// A text that is not a join token.
    #[error("this is not a join token: {0}; copy the whole token, `aerie-` included")]
    Token(&'static str),
    /// A signed revocation list that is not this grid's, or is damaged.
    #[error("the revocation list is refused: {0}")]
    Revocations(&'static str),
    /// A certificate that should be the CA's is not.
    #[error("this is not a usable grid CA certificate: {0}")]
    CaCertificate(&'static str),
}

/// Why a certificate was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not a certificate of the expected profile.
    #[error("the certificate is malformed: {0}")]
    Malformed(&'static str),
    /// It names another grid.
    #[error(
        "the credential is of grid {theirs}, but this grid is {ours}; use a token or blob of the right grid"
    )]
    WrongGrid {
        /// The grid that the credential names.
        theirs: GridId,
        /// The verifier's grid.
        ours: GridId,
    },
    /// The grid's CA did not sign it.
    #[error("the certificate is not signed by this grid's CA; enrol the node with a token of this grid")]
    BadSignature,
    /// Its time has not come by this machine's clock.
    #[error(
        "the certificate of '{name}' is valid only from {}, which is {} ahead of this machine's clock ({}); \
         check the clock, for example with `timedatectl`",
        time_text(*not_before), ago(*not_before, *now), time_text(*now)
    )]
    NotYetValid {
        /// Whose certificate it is: the subject's common name.
        name: String,
        /// When its validity begins.
        not_before: WallMillis,
        /// What this machine's clock said.
        now: WallMillis,
    },
    /// Its time is over by this machine's clock.
    #[error(
        "the certificate of '{name}' expired on {}, {} ago by this machine's clock ({}); if that time is wrong, \
         check the clock, for example with `timedatectl`; else renew the certificate or enrol the node again",
        time_text(*not_after), ago(*now, *not_after), time_text(*now)
    )]
    Expired {
        /// Whose certificate it is: the subject's common name.
        name: String,
        /// When its validity ended.
        not_after: WallMillis,
        /// What this machine's clock said.
        now: WallMillis,
    },
    /// The grid's revocation list names it.
    #[error(
        "the credential of node '{node}' (serial {serial}) is revoked by its {by}; \
         ask the grid's administrator for a new token"
    )]
    Revoked {
        /// The node.
        node: NodeName,
        /// The credential's serial number.
        serial: u64,
        /// Which entry of the list matched.
        by: RevokedBy,
    },
}

/// Which entry of a revocation list matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevokedBy {
    /// This one credential.
    Serial,
    /// Every credential of the node up to a serial.
    Node,
    /// Every credential of the user up to a serial.
    User,
    /// Every credential of the group up to a serial.
    Group,
}

impl std::fmt::Display for RevokedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Serial => "serial number",
            Self::Node => "node name",
            Self::User => "user",
            Self::Group => "group",
        })
    }
}
