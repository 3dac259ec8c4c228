//! Files that survive a power cut: replaced as a whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use crate::Error;

/// The longest file of keys or certificates that is read, in bytes: many times what they need.
const MAX_FILE: u64 = 64 * 1024;

/// Makes a folder, with its parents, that only its owner may enter (mode 0700).
///
/// An existing folder is taken over and its mode set.
///
/// # Errors
/// [`Error::Io`] if the system refuses.
pub fn private_dir(dir: &Path) -> Result<(), Error> {
    let io_error = |source| Error::Io {
        action: "make the folder",
        path: dir.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io_error)
}

/// Replaces a file by one with these bytes and this mode, or leaves the old one untouched.
///
/// The bytes reach the disk before the name does, and the name before this returns, so that a crash at any point
/// leaves the old file or the new one. A crash may leave a file `.<name>.<pid>-<n>.tmp` of the same mode.
///
/// # Errors
/// [`Error::Io`] if the system refuses.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    replace(path, bytes, mode).map_err(|source| Error::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// Reads a small file. `None` if it does not exist.
///
/// The bytes are wiped when dropped, because the file may hold keys.
///
/// # Errors
/// [`Error::Io`] if the system refuses, or the file is longer than 64 KiB.
pub fn read_small(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let io_error = |source| Error::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE => {
            return Err(io_error(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is longer than 64 KiB",
            )));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    }
    fs::read(path)
        .map(|bytes| Some(Zeroizing::new(bytes)))
        .map_err(io_error)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let name = path.file_name().ok_or_else(invalid)?.to_string_lossy();
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => return Err(invalid()),
    };
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(".{name}.{}-{unique}.tmp", std::process::id()));
    let written = write_new(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The reason already in hand matters more than a file that could not be removed.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(dir)?.sync_all()
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The mode given to open is cut by the umask; what was asked for counts.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_has_the_bytes_and_the_mode_and_leaves_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomic(&path, b"old", 0o644).unwrap();
        write_atomic(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_says_where() {
        let message = write_atomic(Path::new("/nonexistent/dir/key"), b"", 0o600)
            .unwrap_err()
            .to_string();
        assert!(message.contains("/nonexistent/dir/key"), "{message}");
    }

    #[test]
    fn a_missing_file_reads_as_none() {
        assert!(read_small(Path::new("/nonexistent/key")).unwrap().is_none());
    }
}
