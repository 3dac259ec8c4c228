//! A QEMU: started so that it owes the driver nothing, found again, and ended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::arguments::{Launch, arguments, named};
use super::folder::{Folder, Run};
use super::{Shared, off_thread};
use crate::process::{Process, that_hold};
use crate::qmp::Client;
use crate::{Definition, Error, GuestId, QmpError, files};

/// How long QEMU may take until it takes commands. It takes a fifth of a second; more where memory is scarce.
const START: Duration = Duration::from_secs(60);

/// How long QEMU may take to end when it is told to: it flushes the guest's disks.
const QUIT: Duration = Duration::from_secs(20);

/// How long the kernel may take to end a process that was killed.
const KILL: Duration = Duration::from_secs(20);

/// How long to look for the process that holds a guest. A process between its making and its program has the locks that
/// others have for some milliseconds; to look at all of a host's takes tens of them, more where it has much to do.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A QEMU that was there.
#[derive(Debug)]
pub(super) struct Link {
    /// `None` while it does not answer.
    pub(super) client: Option<Client>,
    pub(super) process: Process,
    /// How it ended, if it is this process's child.
    reaper: Option<JoinHandle<io::Result<ExitStatus>>>,
    /// What it holds by which it was found, if it was: a child that is not yet its program holds what it will let go.
    found_by: Option<PathBuf>,
}

impl Link {
    /// Ends it: in good order if it answers. Returns once it is gone.
    pub(super) async fn end(&mut self, id: GuestId) -> Result<(), Error> {
        if let Some(client) = &mut self.client {
            let told = client.run("quit", None).await;
            // Its end may be faster than its answer.
            if !matches!(told, Err(QmpError::Silent { .. }))
                && timeout(QUIT, self.process.ended()).await.is_ok()
            {
                return Ok(());
            }
        }
        self.kill(id).await
    }

    /// Ends it at once. Returns once it is gone. One that was found, and is not the guest's any more, is left alone.
    pub(super) async fn kill(&mut self, id: GuestId) -> Result<(), Error> {
        self.client = None;
        if let Some(alive) = &self.found_by
            && !self.process.holds(alive)
        {
            if files::lock(alive)?.is_some() {
                return Ok(());
            }
            return Err(Error::Unidentified {
                id,
                why: format!("another process holds {} by now", alive.display()),
            });
        }
        self.process.kill();
        timeout(KILL, self.process.ended())
            .await
            .map_err(|_| Error::Immortal { id, waited: KILL })
    }

    /// How it ended, for people.
    pub(super) async fn obituary(&mut self, folder: &Folder) -> String {
        let status = match self.reaper.take() {
            Some(reaper) => reaper.await.ok().and_then(Result::ok),
            None => None,
        };
        let ended = status.map_or_else(
            || "QEMU is gone".to_owned(),
            |status| format!("QEMU ended with {status}"),
        );
        let log = files::last_lines(&folder.log());
        if log.is_empty() {
            format!("{ended} and said nothing")
        } else {
            format!("{ended} and said last: {log}")
        }
    }
}

/// What QEMU is started with, besides what the guest is made of.
#[derive(Debug)]
pub(super) struct With {
    /// The kind of machine.
    pub(super) kind: String,
    /// The images, opened, in the order of the disks.
    pub(super) images: Vec<Arc<File>>,
    /// Whether a memory comes.
    pub(super) incoming: bool,
}

/// Starts QEMU. The guest stands still. A QEMU that does not come up is ended; one that does not end either is in `to`
/// all the same, so that it is kept hold of.
pub(super) async fn launch(
    shared: &Arc<Shared>,
    definition: &Arc<Definition>,
    folder: &Folder,
    with: With,
    to: &mut Option<Link>,
) -> Result<(), Error> {
    let id = definition.id;
    let (by, of, at) = (Arc::clone(shared), Arc::clone(definition), folder.clone());
    let mut child = off_thread(move || spawn(&by, &of, &at, &with)).await?;
    crate::crash::point("launch: spawned");
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(-1);
    let watched = match unwatchable(shared) {
        None => Process::open(pid),
        Some(error) => Err(error),
    };
    let process = match watched {
        Ok(Some(process)) => process,
        other => {
            // Nobody else knows of it.
            let killed = child.start_kill();
            tracing::debug!(guest = %id, pid, ?killed, "QEMU is not watched");
            timeout(KILL, child.wait())
                .await
                .map_err(|_| Error::Immortal { id, waited: KILL })?
                .map_err(Error::file("end", &folder.alive()))?;
            return Err(match other {
                Err(error) => Error::file("watch", &folder.alive())(error),
                Ok(_) => failed_start(definition, folder),
            });
        }
    };
    let reaper = tokio::spawn(async move { child.wait().await });
    let link = to.insert(Link {
        client: None,
        process,
        reaper: Some(reaper),
        found_by: None,
    });
    match connect(shared, id, folder, START).await {
        Ok(client) => {
            link.client = Some(client);
            Ok(())
        }
        Err(QmpError::Silent { .. }) => {
            link.kill(id).await?;
            *to = None;
            Err(Error::Start {
                id,
                said: format!(
                    "QEMU did not take commands within {} s and was ended",
                    START.as_secs()
                ),
            })
        }
        Err(_) => {
            // It says why it ends on its way out.
            link.kill(id).await?;
            *to = None;
            Err(failed_start(definition, folder))
        }
    }
}

#[cfg(test)]
fn unwatchable(shared: &Shared) -> Option<io::Error> {
    shared
        .config
        .unwatchable
        .then(|| nix::errno::Errno::EMFILE.into())
}

#[cfg(not(test))]
fn unwatchable(_shared: &Shared) -> Option<io::Error> {
    None
}

fn spawn(
    shared: &Shared,
    definition: &Definition,
    folder: &Folder,
    with: &With,
) -> Result<tokio::process::Child, Error> {
    let _one = shared.launching.lock().unwrap_or_else(PoisonError::into_inner);
    let id = definition.id;
    let alive = files::lock(&folder.alive())?.ok_or_else(|| Error::Unidentified {
        id,
        why: format!("{} is held", folder.alive().display()),
    })?;
    let socket = listen(folder)?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(folder.log())
        .map_err(Error::file("open", &folder.log()))?;
    // What was said of earlier lives explains nothing.
    log.set_len(0).map_err(Error::file("empty", &folder.log()))?;
    let log_too = log.try_clone().map_err(Error::file("open", &folder.log()))?;
    let images: Vec<_> = with.images.iter().map(|image| image.as_raw_fd()).collect();
    let launch = Launch {
        machine: &with.kind,
        accelerator: shared.machine.accelerator,
        cpu: shared.machine.cpu,
        socket: socket.as_raw_fd(),
        images: &images,
        sandbox: shared.machine.sandbox,
        incoming: with.incoming,
    };
    let mut command = Command::new(&shared.config.program);
    command
        .args(arguments(definition, folder, launch))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too);
    let inherited: Vec<_> = [socket.as_raw_fd(), alive.as_raw_fd()]
        .into_iter()
        .chain(images)
        .collect();
    // SAFETY: between fork and exec only system calls are made, which allocate nothing and take no lock.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            inherited.iter().copied().try_for_each(keep_open)
        });
    }
    command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::NoHypervisor {
            program: shared.config.program.display().to_string(),
            package: "qemu-system-x86",
        },
        _ => Error::Hypervisor {
            program: shared.config.program.display().to_string(),
            why: error.to_string(),
        },
    })
}

fn keep_open(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is the parent's, who has it open until the child was made.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// A socket's address has some hundred bytes at most, a path any number: the socket is named from its folder.
struct Address {
    _folder: File,
    path: PathBuf,
}

fn address(folder: &Folder) -> io::Result<Address> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(folder.path())?;
    let path = format!("/proc/self/fd/{}/qmp.sock", opened.as_raw_fd()).into();
    Ok(Address {
        _folder: opened,
        path,
    })
}

/// The socket is made by the driver, so that it can be connected to as soon as QEMU was started: whoever waits there
/// is greeted when QEMU is ready, or hears that it has ended.
fn listen(folder: &Folder) -> Result<UnixListener, Error> {
    match fs::remove_file(folder.socket()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::file("remove", &folder.socket())(error));
        }
        _ => {}
    }
    address(folder)
        .and_then(|address| UnixListener::bind(&address.path))
        .map_err(Error::file("listen on", &folder.socket()))
}

/// Connects to a guest's QEMU and makes sure that it is this guest's.
pub(super) async fn connect(
    shared: &Shared,
    id: GuestId,
    folder: &Folder,
    greeting: Duration,
) -> Result<Client, QmpError> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(rename = "UUID")]
        uuid: String,
    }
    let address = address(folder).map_err(|source| QmpError::Gone {
        command: "connect",
        source,
    })?;
    let mut client = Client::connect(&address.path, greeting, shared.config.answer).await?;
    let answer: Answer = client.ask("query-uuid").await?;
    if answer.uuid.parse() != Ok(id) {
        return Err(QmpError::Garbage("it is another guest's"));
    }
    Ok(client)
}

fn failed_start(definition: &Definition, folder: &Folder) -> Error {
    let id = definition.id;
    let said = named(&files::last_lines(&folder.log()), definition);
    if names_a_lock(&said) {
        return Error::ImageLocked { id, said };
    }
    Error::Start { id, said }
}

/// Whether QEMU says that another program has an image.
pub(super) fn names_a_lock(said: &str) -> bool {
    said.contains("Failed to get") && said.contains("lock")
}

/// Looks for the process that holds a guest: `None` if nobody does.
pub(super) async fn find(id: GuestId, folder: &Folder, run: &Run) -> Result<Option<Link>, Error> {
    let looked = timeout(LOOK, async {
        loop {
            let (folder, run) = (folder.clone(), run.clone());
            // All processes of the host are looked at.
            match off_thread(move || look(&folder, &run)).await? {
                Seen::Nobody => return Ok(None),
                Seen::Process(process) => return Ok(Some(process)),
                Seen::Somebody => sleep(LOOK_AGAIN).await,
            }
        }
    });
    let process = looked.await.unwrap_or_else(|_| {
        Err(Error::Unidentified {
            id,
            why: format!(
                "{} is locked, and of no process that may be looked at it is seen that it holds the lock",
                folder.alive().display()
            ),
        })
    })?;
    Ok(process.map(|process| Link {
        client: None,
        process,
        reaper: None,
        found_by: Some(folder.alive()),
    }))
}

/// Who holds a guest.
enum Seen {
    Nobody,
    /// It is not seen who.
    Somebody,
    Process(Process),
}

fn look(folder: &Folder, run: &Run) -> Result<Seen, Error> {
    let alive = folder.alive();
    if !alive.exists() || files::lock(&alive)?.is_some() {
        return Ok(Seen::Nobody);
    }
    Ok(identify(folder, run)?.map_or(Seen::Somebody, Seen::Process))
}

/// The one process that holds the lock on the guest's `alive`. The recorded ones are looked at first.
fn identify(folder: &Folder, run: &Run) -> Result<Option<Process>, Error> {
    let alive = folder.alive();
    let noted = fs::read_to_string(folder.pid()).ok();
    let noted = noted.and_then(|text| text.trim().parse().ok());
    let recorded = run.process.as_ref().map(|process| process.pid);
    let likely = [recorded, noted].into_iter().flatten().map(|pid| vec![pid]);
    let all = likely.chain(std::iter::once_with(|| that_hold(&alive)));
    for pid in all.flatten() {
        let Some(process) = Process::open(pid).map_err(Error::file("watch", &alive))? else {
            continue;
        };
        // Another process has been given the number since.
        let other = run
            .process
            .as_ref()
            .is_some_and(|recorded| recorded.pid == pid && recorded != process.id());
        if !other && process.holds(&alive) {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_was_found_is_not_ended_once_it_is_not_the_guests() {
        let dir = tempfile::tempdir().unwrap();
        let id = GuestId(uuid::Uuid::from_u128(1));
        let folder = Folder::new(dir.path(), id);
        files::private_folder(folder.path()).unwrap();
        let sleep = |lock: Option<File>| {
            let mut command = Command::new("sleep");
            if let Some(lock) = lock {
                command.stdout(lock);
            }
            command.arg("60").kill_on_drop(true).spawn().unwrap()
        };
        let pid = |child: &tokio::process::Child| i32::try_from(child.id().unwrap()).unwrap();
        let holder = sleep(files::lock(&folder.alive()).unwrap());
        let mut link = find(id, &folder, &Run::default()).await.unwrap().unwrap();
        assert_eq!(link.process.id().pid, pid(&holder));
        // As one is that let the lock go to another.
        let other = sleep(None);
        let guests = std::mem::replace(&mut link.process, Process::open(pid(&other)).unwrap().unwrap());
        let error = link.kill(id).await.unwrap_err();
        assert!(matches!(error, Error::Unidentified { .. }), "{error}");
        let other_lives = || Process::open(pid(&other)).unwrap().is_some();
        assert!(other_lives());
        // The guest's own is ended, and then there is none.
        let not_guests = std::mem::replace(&mut link.process, guests);
        link.kill(id).await.unwrap();
        assert!(Process::open(pid(&holder)).unwrap().is_none());
        link.process = not_guests;
        link.kill(id).await.unwrap();
        assert!(other_lives());
    }
}
