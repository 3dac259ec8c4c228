//! Guests under QEMU, driven by QMP; no other daemon is in between.
//!
//! Each guest has a folder and a task. The task alone changes the guest ([`guest`]); whoever asks sends it a message.
//! The folder holds all that there is of a guest, so that a driver may be killed at any instruction and the next one
//! finds everything:
//!
//! ```text
//! DIR/lock                   held by the one driver
//! DIR/ID/definition.json     what the guest is made of; never changed
//! DIR/ID/run.json            what is being done to it, replaced before it is done
//! DIR/ID/alive               held by the guest's QEMU: inherited, and let go by the kernel when it ends
//! DIR/ID/qmp.sock            where QEMU takes commands
//! DIR/ID/qemu.pid, qemu.log  QEMU's own
//! DIR/ID/console.log         the first serial line
//! DIR/ID/suspending/         a memory on its way out of QEMU: never restored from
//! DIR/ID/suspended/          a memory that is whole; it is there only while the guest has not run on
//! ```
//!
//! QEMU is started in a session of its own and without any tie to the driver. Whether it lives is asked of the kernel
//! by the lock on `alive`, that no other process can have; which process it is by who holds that lock, by when it began,
//! and by the guest's UUID, which QEMU is asked for. A process number alone proves nothing, nor does an open file.
//! Under systemd the driver's unit needs `KillMode=process`, or the guests end with it.
//!
//! QEMU does not end when a guest switches itself off (`-no-shutdown`), but waits to be ended: a process that is gone
//! has crashed, one that waits has not, whether or not a driver was there to see it.
//!
//! The folder is the driver's own, on a disk of this host. The guests' images may be anywhere: whoever looks at one does
//! it beside and for a time ([`images`]). A guest whose files here cannot be read is left as it is ([`damaged`]).

mod arguments;
mod damaged;
mod ending;
mod folder;
mod guest;
mod images;
mod launch;
mod memory;
mod probe;
mod recover;
mod repeats;
mod suspend;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::damaged::Damaged;
use self::folder::{Folder, Found, Run};
use self::guest::{Abandon, Ask, Guest};
use self::images::Claims;
use self::probe::Machine;
use crate::driver::{MAX_CONSOLE_READ, MAX_EVENTS};
use crate::{
    Console, Definition, End, Error, Event, GuestId, Host, Kind, Mib, NodeDriver, Operation, Status, files,
};

/// Most guests of a host. Each has a task and two descriptors.
pub const MAX_GUESTS: usize = 1024;

/// Most requests that wait for one guest. Whoever asks more waits until there is room.
const MAX_REQUESTS: usize = 32;

/// How much of a guest's console is kept on the disk in bytes; about so much again may come between two looks.
const CONSOLE_KEPT: u64 = 4 << 20;

/// How guests' instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Acceleration {
    /// By KVM if that works here, by emulation otherwise.
    #[default]
    Probe,
    /// By KVM, or not at all.
    Kvm,
    /// By emulation.
    Tcg,
}

/// How guests are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where guests are kept.
    pub dir: PathBuf,
    /// QEMU for this machine's architecture.
    pub program: PathBuf,
    /// How guests' instructions are run.
    pub acceleration: Acceleration,
    /// How long QEMU may take to answer a command. Stopping flushes the guest's disks.
    pub answer: Duration,
    /// Tests: the disk is full after so many bytes of a memory.
    #[cfg(test)]
    disk_full_after: Option<u64>,
    /// Tests: a process that was started cannot be watched.
    #[cfg(test)]
    unwatchable: bool,
    /// Tests: the disk hangs while a memory is written to it, or made durable there.
    #[cfg(test)]
    disk_hangs: Option<memory::Hang>,
}

impl Config {
    /// Guests in this folder, under the QEMU that is installed.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            program: "qemu-system-x86_64".into(),
            acceleration: Acceleration::Probe,
            answer: Duration::from_secs(10),
            #[cfg(test)]
            disk_full_after: None,
            #[cfg(test)]
            unwatchable: false,
            #[cfg(test)]
            disk_hangs: None,
        }
    }
}

/// What all guests of a driver have in common.
#[derive(Debug)]
struct Shared {
    config: Config,
    machine: Machine,
    events: broadcast::Sender<Event>,
    claims: Claims,
    guests: Mutex<BTreeMap<GuestId, Handle>>,
    /// Guests are made known one at a time: two with the same id would be made in the same place.
    defining: Mutex<()>,
    /// One QEMU is started at a time: what one inherits, another one that begins in the same moment must not.
    launching: Mutex<()>,
    /// Held until the last task has ended.
    _lock: File,
}

impl Shared {
    fn guests(&self) -> MutexGuard<'_, BTreeMap<GuestId, Handle>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, guest: GuestId, kind: Kind) {
        tracing::info!(%guest, ?kind, "guest");
        // Nobody has to listen.
        let _ = self.events.send(Event { guest, kind });
    }

    /// A guest is no more.
    fn forget(&self, guest: GuestId) {
        self.claims.release(guest);
        self.guests().remove(&guest);
    }
}

/// A guest's task, from outside.
#[derive(Debug)]
struct Handle {
    requests: mpsc::Sender<Ask>,
    status: watch::Receiver<Status>,
    /// Says that the guest is to be destroyed, to whatever is being done to it.
    abandon: watch::Sender<usize>,
    /// `None` if it cannot be read.
    definition: Option<Arc<Definition>>,
    task: JoinHandle<()>,
}

/// Guests under QEMU on this host.
#[derive(Debug)]
pub struct QemuDriver {
    shared: Arc<Shared>,
}

impl QemuDriver {
    /// Takes the folder, looks what QEMU can do here, and finds again what runs. What does not answer is reported as
    /// [`crate::State::Unresponsive`], and a guest whose files cannot be read as [`crate::State::Damaged`]; neither keeps
    /// another from being found.
    ///
    /// # Errors
    /// [`Error::InUse`] if there is another driver, [`Error::NoHypervisor`] without QEMU.
    pub async fn open(config: Config) -> Result<Self, Error> {
        files::private_folders(&config.dir)?;
        let dir = config
            .dir
            .canonicalize()
            .map_err(Error::file("find", &config.dir))?;
        if dir.to_str().is_none() {
            return Err(Error::file("use", &dir)(
                std::io::ErrorKind::InvalidFilename.into(),
            ));
        }
        let config = Config { dir, ..config };
        let lock = files::lock(&config.dir.join("lock"))?.ok_or_else(|| Error::InUse {
            dir: config.dir.clone(),
        })?;
        let machine = probe::probe(&config).await?;
        let shared = Arc::new(Shared {
            config,
            machine,
            events: broadcast::channel(MAX_EVENTS).0,
            claims: Claims::default(),
            guests: Mutex::default(),
            defining: Mutex::default(),
            launching: Mutex::default(),
            _lock: lock,
        });
        let driver = Self { shared };
        let mut found = Vec::new();
        let dir = driver.shared.config.dir.clone();
        for guest in off_thread(move || folder::find(&dir)).await? {
            found.push(begin(&driver.shared, guest));
        }
        for ready in found {
            // Each is looked for within its own limits.
            let _ = ready.await;
        }
        Ok(driver)
    }

    /// Lets go of the guests, which run on, and of the folder.
    pub async fn close(self) {
        for task in self.let_go() {
            let _ = task.await;
        }
    }

    fn let_go(&self) -> Vec<JoinHandle<()>> {
        let guests = std::mem::take(&mut *self.shared.guests());
        guests.into_values().map(|handle| handle.task).collect()
    }

    async fn ask<T>(
        &self,
        id: GuestId,
        ask: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Ask,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let requests = {
            let guests = self.shared.guests();
            let handle = guests.get(&id).ok_or(Error::UnknownGuest(id))?;
            handle.requests.clone()
        };
        // Its task ends when the guest is destroyed.
        requests
            .send(ask(reply))
            .await
            .map_err(|_| Error::UnknownGuest(id))?;
        answer.await.unwrap_or(Err(Error::Destroyed { id }))
    }

    fn folder(&self, id: GuestId) -> Folder {
        Folder::new(&self.shared.config.dir, id)
    }
}

impl Drop for QemuDriver {
    fn drop(&mut self) {
        // A task ends when nobody is left to ask it.
        self.let_go();
    }
}

#[async_trait]
impl NodeDriver for QemuDriver {
    fn host(&self) -> Host {
        self.shared.machine.host()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    fn list(&self) -> Vec<Status> {
        let guests = self.shared.guests();
        guests
            .values()
            .map(|handle| handle.status.borrow().clone())
            .collect()
    }

    fn status(&self, id: GuestId) -> Result<Status, Error> {
        let guests = self.shared.guests();
        let handle = guests.get(&id).ok_or(Error::UnknownGuest(id))?;
        let status = handle.status.borrow().clone();
        Ok(status)
    }

    async fn define(&self, definition: Definition) -> Result<(), Error> {
        definition.check()?;
        let id = definition.id;
        let shared = Arc::clone(&self.shared);
        let defined = off_thread(move || {
            let _one = shared.defining.lock().unwrap_or_else(PoisonError::into_inner);
            {
                let guests = shared.guests();
                match guests.get(&id) {
                    Some(handle) if handle.definition.as_deref() == Some(&definition) => return Ok(None),
                    Some(_) => return Err(Error::Exists(id)),
                    None if guests.len() >= MAX_GUESTS => {
                        return Err(Error::TooManyGuests { limit: MAX_GUESTS });
                    }
                    None => {}
                }
            }
            let folder = Folder::new(&shared.config.dir, id);
            folder.create(&definition)?;
            let kept = Ok((definition, Run::default()));
            Ok(Some(begin(&shared, Found { id, folder, kept })))
        });
        if let Some(ready) = defined.await? {
            let _ = ready.await;
            self.shared.tell(id, Kind::Defined);
        }
        Ok(())
    }

    async fn start(&self, id: GuestId) -> Result<(), Error> {
        self.ask(id, |reply| Ask::Do(Operation::Start, reply)).await
    }

    async fn pause(&self, id: GuestId) -> Result<(), Error> {
        self.ask(id, |reply| Ask::Do(Operation::Pause, reply)).await
    }

    async fn resume(&self, id: GuestId) -> Result<(), Error> {
        self.ask(id, |reply| Ask::Do(Operation::Resume, reply)).await
    }

    async fn suspend(&self, id: GuestId) -> Result<(), Error> {
        self.ask(id, |reply| Ask::Do(Operation::Suspend, reply)).await
    }

    async fn restore(&self, id: GuestId) -> Result<(), Error> {
        self.ask(id, |reply| Ask::Do(Operation::Restore, reply)).await
    }

    async fn stop(&self, id: GuestId, grace: Duration) -> Result<End, Error> {
        self.ask(id, |reply| Ask::Stop(grace, reply)).await
    }

    async fn destroy(&self, id: GuestId) -> Result<(), Error> {
        let abandon = match self.shared.guests().get(&id) {
            Some(handle) => Abandon::new(&handle.abandon),
            None => return Ok(()),
        };
        match self.ask(id, |reply| Ask::Destroy(abandon, reply)).await {
            // Somebody else did.
            Err(Error::UnknownGuest(_) | Error::Destroyed { .. }) => Ok(()),
            other => other,
        }
    }

    async fn balloon(&self, id: GuestId, memory: Mib) -> Result<(), Error> {
        self.ask(id, |reply| Ask::Balloon(memory, reply)).await
    }

    async fn memory(&self, id: GuestId) -> Result<Mib, Error> {
        self.ask(id, Ask::Memory).await
    }

    async fn console(&self, id: GuestId, from: u64) -> Result<Console, Error> {
        self.status(id)?;
        let path = self.folder(id).console();
        let (from, bytes) = off_thread(move || {
            files::read_part(&path, from, MAX_CONSOLE_READ, CONSOLE_KEPT).map_err(Error::file("read", &path))
        })
        .await?;
        Ok(Console { from, bytes })
    }
}

/// Begins a guest's task. The receiver hears when the guest's state is known.
fn begin(shared: &Arc<Shared>, found: Found) -> oneshot::Receiver<()> {
    let Found { id, folder, kept } = found;
    let (requests, asked) = mpsc::channel(MAX_REQUESTS);
    let (abandon, abandoned) = watch::channel(0);
    let (ready, is_ready) = oneshot::channel();
    // Held so that the task finds itself among the guests.
    let mut guests = shared.guests();
    let ours = Arc::clone(shared);
    let (definition, status, task) = match kept {
        Ok((definition, run)) => {
            let definition = Arc::new(definition);
            let (guest, status) = Guest::new(ours, Arc::clone(&definition), folder, run, abandoned);
            (Some(definition), status, tokio::spawn(guest.serve(asked, ready)))
        }
        Err(damage) => {
            let definition = damage.definition.clone().map(Arc::new);
            let (guest, status) = Damaged::new(ours, id, folder, damage);
            (definition, status, tokio::spawn(guest.serve(asked, ready)))
        }
    };
    let handle = Handle {
        requests,
        status,
        abandon,
        definition,
        task,
    };
    guests.insert(id, handle);
    is_ready
}

/// Does what blocks where it may.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(Error::Closed))
}
