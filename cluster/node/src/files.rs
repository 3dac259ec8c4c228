//! Small files, replaced whole or not at all, and locks.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// The longest file of the driver's own in bytes. A definition with all its disks has some kilobytes.
const MAX_FILE: u64 = 1024 * 1024;

/// How much of a log's end is shown in an error, in bytes.
const TAIL: u64 = 2048;

/// Reads a file of JSON; `None` if it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(Error::file("read", path))?;
    let value = serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    Ok(Some(value))
}

/// Replaces a file, or leaves the old one untouched: the bytes reach the disk before the name does.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let written = serde_json::to_vec_pretty(value)
        .map_err(std::io::Error::from)
        .and_then(|bytes| {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            crate::crash::point("file written");
            fs::rename(&beside, path)?;
            sync_parent(path)
        });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(Error::file("write", path))
}

/// Makes a folder that nobody else can look into, with those above it if they are not there.
pub(crate) fn private_folders(path: &Path) -> Result<(), Error> {
    make_folder(path, true)
}

/// Makes a folder that nobody else can look into, in one that is there.
pub(crate) fn private_folder(path: &Path) -> Result<(), Error> {
    make_folder(path, false)
}

fn make_folder(path: &Path, above: bool) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(above)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("make", path))
}

/// Gives a file or folder its other name, for good.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to)
        .and_then(|()| sync_parent(to))
        .map_err(Error::file("rename", from))
}

/// Removes a folder with all in it, if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes the names in a file's folder durable.
pub(crate) fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Takes a lock that goes with the open file, and so with every process that inherits it. `None` if somebody has it.
///
/// It is let go when the last of them closes the file, and not before: the lock of [`nix::fcntl::Flock`] is let go for
/// all of them when the first drops it.
pub(crate) fn lock(path: &Path) -> Result<Option<File>, Error> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("open", path))?;
    // SAFETY: the descriptor is open; the call touches no memory.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(Some(file));
    }
    let error = std::io::Error::last_os_error();
    match error.kind() {
        ErrorKind::WouldBlock => Ok(None),
        _ => Err(Error::file("lock", path)(error)),
    }
}

/// The last lines of a log, for people.
pub(crate) fn last_lines(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    text.lines()
        .map(|line| line.replace(char::is_control, " "))
        .collect::<Vec<_>>()
        .join("; ")
}

/// A part of a log: where it begins, and its bytes.
pub(crate) fn read_part(path: &Path, from: u64, limit: usize, kept: u64) -> std::io::Result<(u64, Vec<u8>)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((0, Vec::new())),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let from = from.max(first_kept(length, kept)).min(length);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok((from, bytes))
}

/// Gives the disk back what of a log is not kept. Offsets stay as they are, and whoever writes is not disturbed:
/// a hole takes the place of what is gone.
pub(crate) fn trim(path: &Path, kept: u64) -> std::io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let hole = first_kept(file.metadata()?.len(), kept);
    if hole > 0 {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, 0, i64::try_from(hole).unwrap_or(i64::MAX))?;
    }
    Ok(())
}

/// The first byte of a log that is kept. In steps, so that a reader does not lose the begin of a log with each look.
fn first_kept(length: u64, kept: u64) -> u64 {
    let step = (kept / 4).max(1);
    length.saturating_sub(kept).div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_log_keeps_its_end_and_its_offsets_when_it_is_trimmed() {
        const KEPT: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let all: Vec<u8> = (0..3 * KEPT + 17).map(|at| (at / 4096) as u8).collect();
        fs::write(&path, &all).unwrap();
        trim(&path, KEPT).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), all.len() as u64);
        assert!(
            meta.blocks() * 512 <= KEPT + 8192,
            "{} blocks are left",
            meta.blocks()
        );
        let (from, bytes) = read_part(&path, 0, usize::MAX, KEPT).unwrap();
        assert!(
            from > 2 * KEPT - 18 && bytes.len() as u64 >= KEPT * 3 / 4 - 18,
            "{from}"
        );
        assert_eq!(bytes, all[usize::try_from(from).unwrap()..]);
        // Beyond its end there is nothing.
        assert_eq!(
            read_part(&path, u64::MAX, 10, KEPT).unwrap(),
            (all.len() as u64, vec![])
        );
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        assert!(read_json::<u8>(&path).unwrap().is_none());
        fs::write(&path, "7 {").unwrap();
        let error = read_json::<u8>(&path).unwrap_err().to_string();
        assert!(error.contains("run.json is damaged: trailing"), "{error}");
        write_json(&path, &7).unwrap();
        assert_eq!(read_json(&path).unwrap(), Some(7));
    }

    #[test]
    fn a_lock_is_had_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap().unwrap();
        assert!(lock(&path).unwrap().is_none());
        // Who inherits it has it for as long.
        let inherited = held.try_clone().unwrap();
        drop(held);
        assert!(lock(&path).unwrap().is_none());
        drop(inherited);
        assert!(lock(&path).unwrap().is_some());
    }
}
