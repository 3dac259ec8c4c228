//! What can go wrong when the register starts.

/// A store that could not read or write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Errors of the register. What others send is never one: it is counted in [`crate::Stats`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The persisted state could not be read at the start.
    #[error(
        "cannot read the register's {table}: {source}; without its own grants a witness could grant an address \
         twice, so restore the file, or remove it to join anew"
    )]
    Load {
        /// Which part was read.
        table: &'static str,
        /// What the store says.
        #[source]
        source: StoreError,
    },
    /// A persisted row has a form that this release does not know.
    #[error(
        "the register's {table} hold a row that this release cannot read; it was written by a newer release or \
         is damaged: run that release, or remove the file to join anew"
    )]
    Row {
        /// Which part was read.
        table: &'static str,
    },
    /// The named witnesses are too few, too many, or one is named twice.
    #[error(
        "strict mode needs three to five witnesses, each named once; name 3 or 5, or none to do without it"
    )]
    Named,
    /// The fact that this instance started could not be written.
    #[error("cannot write the register's store: {0}; check that its disk is writable and has room")]
    Write(#[source] StoreError),
}
