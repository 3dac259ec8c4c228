//! Where the lab keeps what is dear to make, and the lock under which it is made.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The folder of things that are dear to make: `$AERIE_CACHE`, else `$XDG_CACHE_HOME/aerie`, else `~/.cache/aerie`.
///
/// # Errors
/// When none of the three variables is set, or the folder cannot be made.
pub fn cache_dir() -> Result<PathBuf> {
    let dir = match (var("AERIE_CACHE"), var("XDG_CACHE_HOME"), var("HOME")) {
        (Some(dir), _, _) => dir,
        (None, Some(xdg), _) => xdg.join("aerie"),
        (None, None, Some(home)) => home.join(".cache/aerie"),
        (None, None, None) => anyhow::bail!("no place for the cache: set AERIE_CACHE to a folder"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot make the cache folder {}", dir.display()))?;
    Ok(dir)
}

fn var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Takes an exclusive lock on a file, which is made if absent; `waiting` is called once if somebody else holds it.
/// The lock ends when the returned value is dropped, or with the process.
///
/// # Errors
/// When the file cannot be opened or locked.
pub fn lock(path: &Path, waiting: impl FnOnce()) -> Result<Flock<File>> {
    let describe = || format!("cannot lock {}", path.display());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(describe)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => {
            waiting();
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| errno)
                .with_context(describe)
        }
        Err((_, errno)) => Err(errno).with_context(describe),
    }
}
