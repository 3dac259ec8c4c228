//! A guest's memory on its way between QEMU and the disk.
//!
//! QEMU writes it into a pipe, and the driver from there to the disk; not QEMU to the disk. So the driver sees each
//! error of the disk itself and in time, QEMU is given nothing of the host's file system, and all its versions do it
//! alike. If the driver is killed, the pipe breaks, and QEMU goes on.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::json;
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::folder::{Folder, Manifest};
use crate::qmp::{Client, Event};
use crate::{Error, QmpError};

/// How much is moved at a time in bytes, which is also the most that a pipe holds for an ordinary user.
const PIECE: usize = 1 << 20;

/// Most pieces that wait for the disk.
const PIECES: usize = 2;

/// How long nothing may come or go.
const STALLED: Duration = Duration::from_secs(60);

/// How long a memory may take to reach the disk once it is written: as much of it as the host has memory free for.
const SYNC: Duration = Duration::from_secs(600);

/// QEMU throttles a migration unless it is told how much the line can take: in bytes a second, more than any disk.
const BANDWIDTH: u64 = 1 << 40;

/// How long QEMU may take to give up a migration, and how often it is asked whether it has.
const CANCEL: Duration = Duration::from_secs(10);
const CANCEL_LOOK: Duration = Duration::from_millis(5);

/// QEMU's name for its end of the pipe.
const PIPE: &str = "memory";

/// Why a memory did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Monitor(#[from] QmpError),
    #[error("{0}")]
    Why(String),
    /// Another program has one of the guest's images.
    #[error("another program has one of the guest's images")]
    Locked,
    /// The guest is to be destroyed.
    #[error("the guest is being destroyed")]
    Abandoned,
}

/// Writes a guest's memory to a folder; the guest stands still. Returns how many bytes are on the disk.
pub(super) async fn write(
    client: &mut Client,
    shared: &Shared,
    folder: &Folder,
    turn: OwnedSemaphorePermit,
    abandoned: &mut watch::Receiver<usize>,
) -> Result<u64, Failure> {
    let path = Folder::memory(&folder.suspending());
    let (pieces, mut written) = begin_writing(shared, folder, turn).map_err(at(&path))?;
    let (reader, writer) = make_pipe().map_err(at(&path))?;
    let mut pipe = pipe::Receiver::from_owned_fd(reader).map_err(at(&path))?;
    prepare(client, writer).await?;
    client
        .run("migrate", Some(json!({ "uri": format!("fd:{PIPE}") })))
        .await?;
    crate::crash::point("suspend: begun");

    let mut piece = Vec::with_capacity(PIECE);
    let mut bytes = 0;
    // Whether all has come out of QEMU, QEMU says so, and the writer knows.
    let (mut all, mut done, mut told) = (false, false, false);
    loop {
        let limit = if told { SYNC } else { STALLED };
        tokio::select! {
            read = pipe.read_buf(&mut piece), if !all && piece.is_empty() => match read.map_err(at(&path))? {
                0 => all = true,
                read => bytes += read as u64,
            },
            // One that is gone has said why.
            Ok(room) = pieces.reserve(), if !piece.is_empty() => {
                room.send(Piece::Bytes(std::mem::replace(&mut piece, Vec::with_capacity(PIECE))));
            }
            Ok(room) = pieces.reserve(), if all && done && piece.is_empty() && !told => {
                crate::crash::point("suspend: all read");
                room.send(Piece::End);
                told = true;
            }
            ended = &mut written => {
                let ended = ended.unwrap_or_else(|_| Err(io::Error::other("it was not written to the end")));
                return ended.map(|()| bytes).map_err(at(&path));
            }
            event = client.event() => done |= arrived(client, event?).await?,
            () = given_up(abandoned) => return Err(Failure::Abandoned),
            () = sleep_until(Instant::now() + limit) => return Err(stalled(limit)),
        }
    }
}

/// What is to be written to the disk.
enum Piece {
    Bytes(Vec<u8>),
    /// That was all; it is to be made durable.
    End,
}

/// Begins to write pieces to a memory's file. The receiver hears when all is on the disk, or why it is not.
///
/// A disk may hang, and whoever writes to it then cannot be interrupted: that is a thread of its own, that nobody has to
/// wait for. It ends when the disk answers again, and has its turn until then.
fn begin_writing(
    shared: &Shared,
    folder: &Folder,
    turn: OwnedSemaphorePermit,
) -> io::Result<(mpsc::Sender<Piece>, oneshot::Receiver<io::Result<()>>)> {
    let (sender, pieces) = mpsc::channel(PIECES);
    let (reply, written) = oneshot::channel();
    let (folder, faults) = (folder.clone(), Faults::of(shared));
    std::thread::Builder::new()
        .name("memory".to_owned())
        .spawn(move || {
            let written = write_pieces(&folder, pieces, &faults);
            drop(turn);
            // Nobody is left if the guest was destroyed.
            let _ = reply.send(written);
        })?;
    Ok((sender, written))
}

fn write_pieces(folder: &Folder, mut pieces: mpsc::Receiver<Piece>, faults: &Faults) -> io::Result<()> {
    let within = folder.begin_suspending().map_err(|error| match error {
        Error::File { ref source, .. } => io::Error::new(source.kind(), error),
        error => io::Error::other(error),
    })?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(Folder::memory(&within))?;
    let mut bytes = 0;
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Bytes(piece) => {
                bytes += piece.len() as u64;
                faults.write(bytes)?;
                file.write_all(&piece)?;
            }
            Piece::End => {
                faults.sync();
                return file.sync_all();
            }
        }
    }
    Err(io::Error::other("it was given up"))
}

/// Gives a memory to a QEMU that waits for it. The guest stands still afterwards.
pub(super) async fn read(
    client: &mut Client,
    folder: &Folder,
    manifest: &Manifest,
    abandoned: &mut watch::Receiver<usize>,
) -> Result<(), Failure> {
    let path = Folder::memory(&folder.suspended());
    let length = fs::metadata(&path).await.map_err(at(&path))?.len();
    if length != manifest.bytes {
        return Err(Failure::Why(format!(
            "{} has {length} bytes and should have {}; it was changed, destroy the guest or restore the file",
            path.display(),
            manifest.bytes
        )));
    }
    let mut file = File::open(&path).await.map_err(at(&path))?;
    let (reader, writer) = make_pipe().map_err(at(&path))?;
    let mut pipe = Some(pipe::Sender::from_owned_fd(writer).map_err(at(&path))?);
    prepare(client, reader).await?;
    client
        .run("migrate-incoming", Some(json!({ "uri": format!("fd:{PIPE}") })))
        .await?;
    crate::crash::point("restore: begun");

    let mut piece = vec![0; PIECE];
    // What was read and is not given yet.
    let mut rest = 0..0;
    let mut done = false;
    while !done {
        if rest.is_empty() && pipe.is_some() {
            let read = tokio::select! {
                read = file.read(&mut piece) => read.map_err(at(&path))?,
                () = given_up(abandoned) => return Err(Failure::Abandoned),
                () = sleep_until(Instant::now() + STALLED) => return Err(stalled(STALLED)),
            };
            rest = 0..read;
            if read == 0 {
                pipe = None;
            }
        }
        tokio::select! {
            written = give(&mut pipe, &piece[rest.clone()]) => match written {
                Ok(written) => rest.start += written,
                // It says why as an event, or by its end.
                Err(_) => { pipe = None; rest = 0..0; }
            },
            event = client.event() => done = arrived(client, event?).await?,
            () = given_up(abandoned) => return Err(Failure::Abandoned),
            () = sleep_until(Instant::now() + STALLED) => return Err(stalled(STALLED)),
        }
    }
    Ok(())
}

/// Gives QEMU its end of the pipe.
async fn prepare(client: &mut Client, end: OwnedFd) -> Result<(), QmpError> {
    let capabilities = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    client.run("migrate-set-capabilities", Some(capabilities)).await?;
    client
        .run(
            "migrate-set-parameters",
            Some(json!({ "max-bandwidth": BANDWIDTH })),
        )
        .await?;
    client.hand_over(PIPE, end).await?;
    // All that was said before that answer is here by now.
    client.forget_migrations();
    Ok(())
}

/// Ends a migration that is not wanted any more, and waits until it has ended: until then there is no other.
pub(super) async fn cancel(client: &mut Client) -> Result<(), QmpError> {
    match client.run("migrate_cancel", None).await {
        // There is nothing to cancel.
        Ok(_) | Err(QmpError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    let until = Instant::now() + CANCEL;
    loop {
        let said = client.run("query-migrate", None).await?;
        // Without a status there never was one.
        if matches!(
            said["status"].as_str(),
            None | Some("none" | "completed" | "failed" | "cancelled")
        ) {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(QmpError::Silent {
                command: "migrate_cancel",
                limit: CANCEL,
            });
        }
        sleep_until(Instant::now() + CANCEL_LOOK).await;
    }
}

/// Whether an event says that all has arrived.
async fn arrived(client: &mut Client, event: Event) -> Result<bool, Failure> {
    let Event::Migration { status } = event else {
        // How the guest is, is asked for afterwards.
        return Ok(false);
    };
    match status.as_str() {
        "completed" => Ok(true),
        "failed" | "cancelled" => {
            let said = client.run("query-migrate", None).await?;
            let why = said["error-desc"].as_str().unwrap_or("QEMU gave up");
            Err(Failure::Why(why.to_owned()))
        }
        _ => Ok(false),
    }
}

/// Waits until the guest is to be destroyed. That nobody is left who could ask for it is no reason to stop half-way.
async fn given_up(abandoned: &mut watch::Receiver<usize>) {
    if abandoned.wait_for(|wanted| *wanted > 0).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for something until the guest is to be destroyed.
pub(super) async fn unless_given_up<T>(
    abandoned: &mut watch::Receiver<usize>,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        done = work => Ok(done),
        () = given_up(abandoned) => Err(Failure::Abandoned),
    }
}

async fn give(pipe: &mut Option<pipe::Sender>, bytes: &[u8]) -> io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.write(bytes).await,
        None => std::future::pending().await,
    }
}

fn make_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // Faster with room for more, and right without.
    let _ = fcntl(
        &reader,
        FcntlArg::F_SETPIPE_SZ(i32::try_from(PIECE).unwrap_or(i32::MAX)),
    );
    Ok((reader, writer))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    move |error| {
        let advice = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; make room on the disk",
            _ => "",
        };
        Failure::Why(format!("{}: {error}{advice}", path.display()))
    }
}

fn stalled(limit: Duration) -> Failure {
    Failure::Why(format!(
        "nothing moved for {} s; look whether the disk hangs",
        limit.as_secs()
    ))
}

/// What is to go wrong with the disk.
#[cfg(test)]
struct Faults {
    full_after: Option<u64>,
    hangs: Option<Hang>,
}

/// Where a disk hangs.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hang {
    Write,
    Sync,
    /// As long as one waits for it, when what is left of a memory is removed.
    Clean,
}

/// Before what is left of a memory is removed.
#[cfg(test)]
pub(super) async fn before_cleaning(shared: &Shared, folder: &Folder) {
    if shared.config.disk_hangs == Some(Hang::Clean) && folder.suspending().exists() {
        std::future::pending().await
    }
}

#[cfg(not(test))]
pub(super) async fn before_cleaning(_shared: &Shared, _folder: &Folder) {}

#[cfg(test)]
impl Faults {
    fn of(shared: &Shared) -> Self {
        Self {
            full_after: shared.config.disk_full_after,
            hangs: shared.config.disk_hangs,
        }
    }

    fn write(&self, bytes: u64) -> io::Result<()> {
        self.hang(Hang::Write);
        match self.full_after {
            Some(limit) if bytes > limit => Err(nix::errno::Errno::ENOSPC.into()),
            _ => Ok(()),
        }
    }

    fn sync(&self) {
        self.hang(Hang::Sync);
    }

    fn hang(&self, at: Hang) {
        while self.hangs == Some(at) {
            std::thread::park();
        }
    }
}

#[cfg(not(test))]
struct Faults;

#[cfg(not(test))]
impl Faults {
    fn of(_shared: &Shared) -> Self {
        Self
    }

    fn write(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) {}
}
