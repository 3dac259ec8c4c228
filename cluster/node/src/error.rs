use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::definition::{MAX_CPUS, Mib};
use crate::{GuestId, Operation, QmpError, State};

/// Why a definition makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDefinition {
    /// The name.
    #[error("'{0}' is no name for a guest; use up to 63 letters, digits and hyphens, a hyphen not first")]
    Name(String),
    /// The memory.
    #[error("a guest without memory cannot run; give it at least 1 MiB")]
    Memory,
    /// The processors.
    #[error("a guest cannot have {0} processors; give it 1 to {MAX_CPUS}")]
    Cpus(u16),
    /// Too many of something.
    #[error("a guest has at most {limit} {what}; leave some out")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A path.
    #[error("'{}' is no path for an image; use an absolute path in UTF-8", .0.display())]
    Path(PathBuf),
    /// Something that there may be once.
    #[error("{0} is given twice; leave one out")]
    Twice(String),
    /// An Ethernet address.
    #[error(
        "'{0}' is no address for a NIC; use six bytes as 52:54:00:12:34:56, the first one even since others are for groups"
    )]
    Mac(String),
    /// The name of a network interface.
    #[error(
        "'{0}' is no network interface; use a name of up to 15 letters, digits, hyphens, dots and underscores"
    )]
    Interface(String),
}

/// What can go wrong with guests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such guest.
    #[error("there is no guest {0} on this host; define it first")]
    UnknownGuest(GuestId),
    /// Another guest has the id.
    #[error("there is another guest {0} on this host; destroy it first, or use another id")]
    Exists(GuestId),
    /// There are too many guests.
    #[error("the host has {limit} guests, which is its limit; destroy those that are not needed")]
    TooManyGuests {
        /// How many there may be.
        limit: usize,
    },
    /// The definition makes no sense.
    #[error("the guest's definition is not usable: {0}")]
    Definition(#[from] BadDefinition),
    /// The state does not allow it.
    #[error("cannot {operation} guest {id}, which is {state}: {advice}")]
    Refused {
        /// Which guest.
        id: GuestId,
        /// What was asked.
        operation: Operation,
        /// Where the guest is.
        state: State,
        /// What would be right.
        advice: &'static str,
    },
    /// Less memory was asked for than makes sense, or more than the definition has.
    #[error("guest {id} cannot have {asked}; use 1 MiB to {most}")]
    Balloon {
        /// Which guest.
        id: GuestId,
        /// What was asked.
        asked: Mib,
        /// What it is defined with.
        most: Mib,
    },
    /// An image is not there, or cannot be read.
    #[error("guest {id} cannot have the image {}: {source}; put it there, or correct the definition", path.display())]
    Image {
        /// Which guest.
        id: GuestId,
        /// The image.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file system that an image is on hangs.
    #[error(
        "guest {id} cannot have the image {}: its file system has not answered for {} s; look at the disk or server that it is on, and try again",
        path.display(), waited.as_secs()
    )]
    ImageSilent {
        /// Which guest.
        id: GuestId,
        /// The image.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Another guest has the image.
    #[error(
        "guest {id} cannot have the image {}: guest {by} has it; stop or destroy that one, or give each a copy",
        path.display()
    )]
    ImageInUse {
        /// Which guest.
        id: GuestId,
        /// The image.
        path: PathBuf,
        /// The other guest.
        by: GuestId,
    },
    /// Somebody else has the image.
    #[error(
        "guest {id} cannot have one of its images, which another program has: {said}; end that program first"
    )]
    ImageLocked {
        /// Which guest.
        id: GuestId,
        /// What the hypervisor said.
        said: String,
    },
    /// The host has not enough memory.
    #[error("guest {id} needs {need} of memory and the host has {available} left; stop another guest first")]
    Memory {
        /// Which guest.
        id: GuestId,
        /// What it needs.
        need: Mib,
        /// What there is.
        available: Mib,
    },
    /// The guest's hypervisor did not come up.
    #[error("guest {id} does not start: {said}")]
    Start {
        /// Which guest.
        id: GuestId,
        /// What the hypervisor said.
        said: String,
    },
    /// The memory could not be written.
    #[error("guest {id} is not suspended and goes on as before, nothing is left of the file: {why}")]
    Suspend {
        /// Which guest.
        id: GuestId,
        /// Why.
        why: String,
    },
    /// The memory could not be taken back.
    #[error("guest {id} is not restored and still suspended: {why}")]
    Restore {
        /// Which guest.
        id: GuestId,
        /// Why.
        why: String,
    },
    /// The guest was destroyed while something was done to it.
    #[error("guest {id} was destroyed meanwhile")]
    Destroyed {
        /// Which guest.
        id: GuestId,
    },
    /// The guest ended while something was done to it.
    #[error("guest {id} ended meanwhile: {why}")]
    Ended {
        /// Which guest.
        id: GuestId,
        /// How.
        why: String,
    },
    /// The hypervisor refused or did not answer.
    #[error("guest {id} did not {operation}: {source}")]
    Monitor {
        /// Which guest.
        id: GuestId,
        /// What was asked.
        operation: Operation,
        /// Why.
        #[source]
        source: QmpError,
    },
    /// The hypervisor's process does not end.
    #[error("guest {id} was killed and is still there after {} s; its disk or the network below may hang", waited.as_secs())]
    Immortal {
        /// Which guest.
        id: GuestId,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A process that may be the guest's cannot be told apart.
    #[error(
        "something holds guest {id} and no process of it is found: {why}; run the driver as the user that began it, or end what holds it"
    )]
    Unidentified {
        /// Which guest.
        id: GuestId,
        /// What was looked at.
        why: String,
    },
    /// There is no QEMU.
    #[error("there is no {program} on this machine; install it, on Debian with `apt install {package}`")]
    NoHypervisor {
        /// The program.
        program: String,
        /// The package that has it.
        package: &'static str,
    },
    /// The hypervisor does not do its part.
    #[error("{program} is not usable: {why}")]
    Hypervisor {
        /// The program.
        program: String,
        /// Why.
        why: String,
    },
    /// Another driver has the folder.
    #[error("another driver runs on {}; stop it first, or name another folder", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A file of the driver's own.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of the driver's own is not what it should be.
    #[error("{} is damaged: {why}; put back what it was and open the driver again, or destroy the guest", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The driver has ended.
    #[error("the driver has ended; open it again")]
    Closed,
}

impl Error {
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}
