//! Files that are made whole or not at all, locks, and room on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::Error;
use crate::limits::BLOCK;

/// Makes a folder that only its owner looks into.
pub(crate) fn private_folder(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("make", path))
}

/// Makes the names in a file's folder durable.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Error> {
    match path.parent() {
        Some(parent) => File::open(parent)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::file("sync", parent)),
        None => Ok(()),
    }
}

/// Gives a file its other name, for good.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::file("rename", from))?;
    sync_parent(to)
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Writes a small file, or leaves the old one untouched.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let written = new(&beside).and_then(|file| {
        file.write_all_at(bytes, 0)
            .and_then(|()| file.sync_all())
            .map_err(Error::file("write", &beside))?;
        rename(&beside, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Opens a file for reading and writing that is empty and its owner's alone.
pub(crate) fn new(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("make", path))
}

/// Takes a lock that goes with the open file. `None` if somebody has it.
pub(crate) fn lock(file: File, path: &Path) -> Result<Option<Flock<File>>, Error> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(Error::file("lock", path)(error.into())),
    }
}

/// How many bytes of a file system a user may still write.
pub(crate) fn free(path: &Path) -> Result<u64, Error> {
    let stat = nix::sys::statvfs::statvfs(path)
        .map_err(|error| Error::file("ask for the room on", path)(error.into()))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Turns a full disk into an error that says how full.
pub(crate) fn writing(path: &Path, need: u64) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Error::NoSpace {
            free: path.parent().and_then(|dir| free(dir).ok()).unwrap_or(0),
            path,
            need,
        },
        _ => Error::File {
            what: "write",
            path,
            source,
        },
    }
}

/// Reads until the buffer is full or the input ends; how much it was.
pub(crate) fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A buffer for [`fill`].
pub(crate) fn buffer() -> Vec<u8> {
    vec![0; BLOCK]
}

/// Whether a text can be the name of a file beside others, and of nothing else.
pub(crate) fn plain_name(text: &str, what: &'static str) -> Result<(), Error> {
    let good = text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    if good {
        return Ok(());
    }
    Err(Error::BadName {
        shown: text.chars().take(60).flat_map(char::escape_debug).collect(),
        what,
    })
}

/// Reads a part of a file. `None` if there is no such file, or it is shorter.
pub(crate) fn read_part(path: &Path, at: u64, length: usize) -> Result<Option<Vec<u8>>, Error> {
    let absent = |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof);
    let mut bytes = vec![0; length];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, at));
    match read {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if absent(&error) => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}
