//! What can go wrong in the driver.

use std::path::PathBuf;

/// Errors of the register's driver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database could not be opened.
    #[error(
        "cannot open the register's database {}: {source}; check that no other aerie runs for this grid and that \
         the folder is writable",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The database's file is not one, or not whole.
    #[error(
        "the register's database {} is damaged: {source}; remove it together with its -wal file, and this node \
         votes again once it has learned from others what is granted",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// The database's file could not be made private.
    #[error("cannot create the register's database {}: {source}; check its folder", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The database was written by a newer release.
    #[error(
        "the register's database {} has version {found}, this release knows {known}; run the newer release",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version of this release.
        known: i64,
    },
    /// The state could not be read.
    #[error(transparent)]
    State(#[from] aerie_dht_proto::Error),
    /// The register's thread could not be started.
    #[error("cannot start the register's thread: {0}; the machine is out of threads or memory")]
    Thread(#[source] std::io::Error),
    /// The register has ended.
    #[error("the register has ended; restart the daemon")]
    Closed,
    /// A message was not answered.
    #[error("the register is too busy to answer; ask again")]
    Busy,
    /// A set refuses what was to be published.
    #[error(transparent)]
    Publish(#[from] aerie_dht_proto::PublishError),
    /// The claim has failed for good.
    #[error("{0}")]
    Claim(String),
}
