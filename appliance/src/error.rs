//! What can end the daemon or a command. What a stage can wait out is not an error but a stage's reason.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the control socket {path} cannot be made: {source}; choose another folder with --run-dir")]
    Control { path: PathBuf, source: io::Error },
    #[error(
        "a daemon for this grid runs already (it answers at {path}); stop it first, or ask it: aerie status"
    )]
    AlreadyRunning { path: PathBuf },
    #[error("{path} is not usable: {source}")]
    Files {
        path: PathBuf,
        source: aerie_identity::Error,
    },
    #[error("the folder {path} cannot be made: {source}; check its owner and the space left on its disk")]
    Folder { path: PathBuf, source: io::Error },
    #[error("{what} in {path} is not usable: {reason}; remove it to enrol this node anew with a fresh blob")]
    State {
        what: &'static str,
        path: PathBuf,
        reason: String,
    },
    #[error("the enrolment service cannot be asked: {0}")]
    Portal(#[source] aerie_portal::Error),
    #[error("the overlay cannot start: {0}")]
    Overlay(#[source] aerie_overlay::Error),
    #[error("the {0} has ended unexpectedly; its log says why, and this is a bug: please report it")]
    Ended(&'static str),
    #[error("the lease register cannot start: {0}")]
    Register(#[source] aerie_dht::Error),
}
