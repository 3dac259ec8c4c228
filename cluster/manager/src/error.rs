use std::path::PathBuf;

use aerie_cluster_manager_proto::{Corrupt, Failure, Refusal};

/// Why the manager does not open, or does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manager refuses. Nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another manager has the folder.
    #[error("another manager runs on {}; stop it first, or name another folder", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A file or folder of the manager's.
    #[error("cannot {what} {}: {source}; check the disk's space and its rights", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The database. A command that was to be written down has not been done.
    #[error("the manager's database cannot {what}: {source}; check the disk's space, then ask again")]
    Database {
        /// What was tried.
        what: &'static str,
        /// SQLite's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The database is of a later release.
    #[error("{} has layout {found}, which a later release wrote; use that release", path.display())]
    LaterVersion {
        /// The database.
        path: PathBuf,
        /// Its layout.
        found: i64,
    },
    /// The journal cannot be read.
    #[error(
        "record {number} of the journal in {} is damaged: {why}; restore the folder from a copy, or move it away to \
         begin anew. Guests made since the copy, or all of them, are then left running and are nobody's: remove them on \
         their hosts; of those since the copy the manager's events tell",
        path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// The record.
        number: i64,
        /// What is wrong.
        why: String,
    },
    /// The manager contradicts itself; nothing has changed.
    #[error("the manager contradicts itself, and has done nothing: {0}; report this with the manager's log")]
    Defect(#[from] Corrupt),
    /// The host or the broker does not do it.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// There is nobody to ask about the host.
    #[error("host '{0}' is not connected; wait until it is")]
    NotConnected(aerie_context_proto::HostName),
    /// No randomness.
    #[error("the system gives no random numbers; see that /dev/urandom is there")]
    Random,
    /// The manager has ended.
    #[error("the manager has ended; open it again")]
    Closed,
}

impl Error {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn database(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Database { what, source }
    }
}
