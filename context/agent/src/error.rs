use std::path::{Path, PathBuf};

use aerie_context_proto::{DocumentError, Interface};

/// Why the agent cannot do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A file or folder.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// No user-data of a context anywhere.
    #[error("no user-data of a context was found:\n{0}\nname a file with --user-data")]
    NoUserData(String),
    /// User-data that cannot be used.
    #[error("the user-data from {place} cannot be used: {why}")]
    UserData { place: String, why: String },
    /// The set that this machine is of is not marked.
    #[error(
        "the user-data from {0} marks no workspace as active, so that this machine cannot know which it is; ask the \
         broker anew, with `aerie context user-data`"
    )]
    NoActiveSet(String),
    /// An interface that has to be reported.
    #[error("the interface {0} has no usable address; it was waited for, see --network-timeout")]
    NoAddress(Interface),
    /// No interface at all.
    #[error("no network interface has a usable address; it was waited for, see --network-timeout")]
    NoAddresses,
    /// What was kept from the last run.
    #[error("{} is damaged: {why}; remove it to start as a new member", path.display())]
    State { path: PathBuf, why: String },
    /// The broker.
    #[error(transparent)]
    Broker(#[from] aerie_context_client::Error),
    /// The last attempt failed, and the agent was to run once.
    #[error("the configuration failed: {0}")]
    Failed(String),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn user_data(place: &str, error: &DocumentError) -> Self {
        Self::UserData {
            place: place.to_owned(),
            why: error.to_string(),
        }
    }
}
