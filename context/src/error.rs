use std::net::SocketAddr;
use std::path::PathBuf;

use aerie_context_proto::{BadUrl, ContextId, Corrupt, Refusal};

/// What can go wrong on the broker's own side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Keys or their files.
    #[error(transparent)]
    Files(#[from] aerie_identity::Error),
    /// The database refused.
    #[error(
        "the broker's database could not {what}: {source}; check the disk's space and the folder's owner"
    )]
    Database {
        /// What was tried.
        what: &'static str,
        /// The database's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The database is of a later release.
    #[error("{} was written by a later release of Aerie (version {found}); use that release", path.display())]
    LaterVersion {
        /// The database's file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// Another broker has the folder.
    #[error("another broker runs on {}; stop it first, or name another folder with --dir", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A context's journal does not replay.
    #[error("the context {id} cannot be read back: {source}; restore the folder from a backup")]
    Corrupt {
        /// The context.
        id: ContextId,
        /// Why.
        #[source]
        source: Corrupt,
    },
    /// A record in the database is damaged.
    #[error("the journal of context {id} is damaged: {source}; restore the folder from a backup")]
    Damaged {
        /// The context.
        id: ContextId,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file of the folder is not what it should be.
    #[error("{} is damaged: {why}; restore it from a backup", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The URL that members are given.
    #[error("the broker's URL '{url}' is not usable: {source}")]
    Url {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: BadUrl,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}; this is a defect")]
    Certificate(#[source] rcgen::Error),
    /// The TLS library refused the set-up.
    #[error("cannot set up TLS: {0}; this is a defect")]
    Tls(#[source] rustls::Error),
    /// No random numbers.
    #[error("the system gives no random numbers; this machine cannot keep secrets")]
    Random,
    /// The server cannot listen.
    #[error("cannot listen on {addr}: {source}; is another server running there?")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A change did not follow from its context: the journal has it, and a restart replays it.
    #[error("the context {id} did not take its own record ({why}); this is a defect, restart the broker")]
    Defect {
        /// The context.
        id: ContextId,
        /// Why.
        why: &'static str,
    },
}

impl Error {
    pub(crate) fn database(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Database { what, source }
    }
}

/// Why a request is not done.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// By the context's rules.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such context, as far as the asker may know.
    #[error("there is no context {0}; `aerie context list` names those that there are")]
    UnknownContext(ContextId),
    /// The broker has as many contexts as it takes.
    #[error("the broker has {limit} contexts, which is its limit; destroy those that are not needed")]
    Full {
        /// How many.
        limit: usize,
    },
    /// The broker failed.
    #[error(transparent)]
    Failed(#[from] Error),
}
