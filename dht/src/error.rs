//! What can go wrong in the register's driver.

use std::path::PathBuf;

/// An error of the driver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be opened.
    #[error("cannot open the register's store {path}: {source}; check the folder's rights and free space")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The register refused.
    #[error(transparent)]
    Register(#[from] aerie_dht_proto::Error),
    /// The driver has ended.
    #[error("the register has stopped; restart the node")]
    Stopped,
}
