//! What a driver of guests can do, whatever its hypervisor.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::state::{Verdict, judge};
use crate::{Definition, End, Error, GuestId, GuestName, Mib, Operation, State};

/// The most of a console that is read at a time in bytes.
pub const MAX_CONSOLE_READ: usize = 256 * 1024;

/// Most events that a listener may be behind. Whoever is further behind is told so, and asks for the states.
pub(crate) const MAX_EVENTS: usize = 1024;

/// What the host runs guests by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The hypervisor with its version, such as "QEMU 7.2.22".
    pub hypervisor: String,
    /// How it runs a guest's instructions, such as "KVM"; for people.
    pub acceleration: String,
}

/// A guest, as the driver knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Who it is.
    pub id: GuestId,
    /// What people call it; its id, if that cannot be read any more.
    pub name: GuestName,
    /// Where it is.
    pub state: State,
    /// What is being done to it.
    pub busy: Option<Operation>,
}

/// What happened to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whom.
    pub guest: GuestId,
    /// What.
    pub kind: Kind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// It was defined.
    Defined,
    /// It was started.
    Started,
    /// It stands still.
    Paused,
    /// It runs on.
    Resumed,
    /// Its memory is in a file.
    Suspended,
    /// It was restored, and is as it was when it was suspended.
    Restored,
    /// It is switched off.
    Stopped(End),
    /// It began anew, by itself or since it was told to within.
    Reset,
    /// Its kernel panicked; [`Kind::Crashed`] follows.
    Panicked,
    /// It ended otherwise.
    Crashed(String),
    /// A disk's image could not be read or written; `stopped` if the guest stands still until it is resumed.
    DiskFailed {
        /// The image.
        path: String,
        /// Whether the guest stands still.
        stopped: bool,
    },
    /// What was told last of this happened again at least so often since, and was not told each time: what a guest can do in a
    /// loop must not push away what others do.
    Repeated {
        /// What; [`Kind::Reset`] or [`Kind::DiskFailed`].
        kind: Box<Kind>,
        /// How often, at least.
        times: u64,
    },
    /// Its hypervisor does not answer.
    Unresponsive(String),
    /// Its hypervisor answers again.
    Responsive,
    /// It is no more.
    Destroyed,
}

/// A part of a console's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// Where in the log the part begins: later than it was asked for if that is not kept any more.
    pub from: u64,
    /// The part. What a guest writes is not always text.
    pub bytes: Vec<u8>,
}

impl Console {
    /// Where the next part begins.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }

    /// As text, as far as it is.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Guests on one host. [`crate::state`] has the rules of what may be done when.
///
/// An operation goes on when the future that waits for it is dropped. What is asked of one guest is done one after the
/// other; [`NodeDriver::destroy`] alone interrupts what is being done. All that is answered survives the driver's
/// death.
#[async_trait]
pub trait NodeDriver: fmt::Debug + Send + Sync {
    /// What the host runs guests by.
    fn host(&self) -> Host;

    /// What happens from now on.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// All guests, by their ids. Nobody is asked, so nothing is waited for.
    fn list(&self) -> Vec<Status>;

    /// A guest. Nobody is asked, so nothing is waited for.
    ///
    /// # Errors
    /// [`Error::UnknownGuest`]
    fn status(&self, id: GuestId) -> Result<Status, Error>;

    /// Makes a guest known. The same definition again is no error.
    ///
    /// # Errors
    /// [`Error::Definition`] if it makes no sense, [`Error::Exists`] if there is another guest with the id.
    async fn define(&self, definition: Definition) -> Result<(), Error>;

    /// Switches a guest on.
    ///
    /// # Errors
    /// [`Error`]; the guest is as before then, or crashed if it ended while it was started.
    async fn start(&self, id: GuestId) -> Result<(), Error>;

    /// Lets a guest stand still; it keeps its memory.
    ///
    /// # Errors
    /// [`Error`]
    async fn pause(&self, id: GuestId) -> Result<(), Error>;

    /// Lets a guest that stands still run on.
    ///
    /// # Errors
    /// [`Error`]
    async fn resume(&self, id: GuestId) -> Result<(), Error>;

    /// Writes a guest's memory to a file and ends it. The guest stands still meanwhile, so that its memory and its
    /// disks are of one moment.
    ///
    /// # Errors
    /// [`Error`]; the guest is as before then: it runs on if it ran, and nothing of the file is left.
    async fn suspend(&self, id: GuestId) -> Result<(), Error>;

    /// Takes a guest's memory from its file and lets it be as it was: it runs on, or stands still if it did. The file
    /// is used up.
    ///
    /// # Errors
    /// [`Error`]; the guest is still suspended then.
    async fn restore(&self, id: GuestId) -> Result<(), Error>;

    /// Asks a guest to switch itself off, as its power button does; after `grace` it is switched off. One that stands
    /// still runs for that time. Zero switches it off at once. Returns how it ended.
    ///
    /// # Errors
    /// [`Error`]
    async fn stop(&self, id: GuestId, grace: Duration) -> Result<End, Error>;

    /// Ends a guest at once, whatever is being done to it, and forgets it with its memory and its console. Its disks'
    /// images stay. One that is not known is no error.
    ///
    /// # Errors
    /// [`Error`]; the guest is still known then.
    async fn destroy(&self, id: GuestId) -> Result<(), Error>;

    /// Asks a guest to make do with this much memory, at most that of its definition. It may take its time, or not do
    /// it: [`NodeDriver::memory`] says how far it is.
    ///
    /// # Errors
    /// [`Error`]
    async fn balloon(&self, id: GuestId, memory: Mib) -> Result<(), Error>;

    /// How much memory a guest has now.
    ///
    /// # Errors
    /// [`Error`]
    async fn memory(&self, id: GuestId) -> Result<Mib, Error>;

    /// What a guest wrote to its console, from this byte on, at most [`MAX_CONSOLE_READ`]. The log goes on over
    /// starts; only its end is kept.
    ///
    /// # Errors
    /// [`Error`]
    async fn console(&self, id: GuestId, from: u64) -> Result<Console, Error>;
}

/// Whether there is something to do.
pub(crate) fn admit(id: GuestId, state: &State, operation: Operation) -> Result<bool, Error> {
    match judge(state, operation) {
        Verdict::Do => Ok(true),
        Verdict::Done => Ok(false),
        Verdict::Refuse(advice) => Err(Error::Refused {
            id,
            operation,
            state: state.clone(),
            advice,
        }),
    }
}

/// How a guest ended that does not run any more, whatever ended it.
pub(crate) fn how_it_ended(state: &State) -> End {
    match state {
        State::Stopped(end) => *end,
        _ => End::Itself,
    }
}

/// A guest has some memory, and no more than its firmware told it of.
pub(crate) fn check_balloon(id: GuestId, definition: &Definition, asked: Mib) -> Result<(), Error> {
    let most = definition.memory;
    if asked < Mib(1) || asked > most {
        return Err(Error::Balloon { id, asked, most });
    }
    Ok(())
}
