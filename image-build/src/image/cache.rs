//! What is dear to make and kept between builds, each piece under a name made of its inputs.
//!
//! `debs/` holds packages by their SHA-256, `tools-*/` the unpacked programs, `root-*.tar` root file systems,
//! `apt-*/` the archives' lists. A piece is made beside its place and moved there by one rename: who sees it sees all
//! of it. A build holds the lock of the cache, so that two of them do not make the same piece at once.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::Error;

/// What an unfinished build leaves behind begins with this.
const WORK: &str = "work-";

/// How many pieces of a kind are kept, of those used last. A root file system has half a gigabyte, and a lab has about
/// three images; programs are those of the images and the emulator.
const KEPT: [(&str, usize); 3] = [("root-", 4), ("tools-", 4), ("apt-", 3)];

/// How long a package is kept after its last use: of one's own program each build is another.
const DEB_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The folder of the pieces.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache in this folder, which is made if absent.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at(dir: &Path) -> Result<Self, Error> {
        let debs = dir.join("debs");
        fs::create_dir_all(&debs).map_err(Error::file("make the folder", &debs))?;
        let dir = fs::canonicalize(dir).map_err(Error::file("find", dir))?;
        Ok(Self { dir })
    }

    /// The user's own: `images` in `$AERIE_CACHE`, else in `$XDG_CACHE_HOME/aerie`, else in `~/.cache/aerie`.
    ///
    /// # Errors
    /// When none of the variables is set, or the folder cannot be made.
    pub fn of_user() -> Result<Self, Error> {
        let var = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let base = var("AERIE_CACHE")
            .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("aerie")))
            .or_else(|| var("HOME").map(|dir| dir.join(".cache/aerie")))
            .ok_or(Error::Cache)?;
        Self::at(&base.join("images"))
    }

    /// The place of a piece.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The place of a package.
    pub(crate) fn deb(&self, sha256: &str) -> PathBuf {
        self.dir.join("debs").join(format!("{sha256}.deb"))
    }

    /// A place for work that is removed when the returned value is dropped.
    pub(crate) fn work(&self) -> Result<tempfile::TempDir, Error> {
        tempfile::Builder::new()
            .prefix(WORK)
            .tempdir_in(&self.dir)
            .map_err(Error::file("make a folder in", &self.dir))
    }

    /// Notes that a piece is used.
    pub(crate) fn used(path: &Path) -> Result<(), Error> {
        File::open(path)
            .and_then(|file| file.set_modified(SystemTime::now()))
            .map_err(Error::file("note the use of", path))
    }

    /// Removes what builds that were cut off have left, and the pieces that were not used for the longest time. For
    /// who holds the lock.
    fn tidy(&self) -> Result<(), Error> {
        let entries = fs::read_dir(&self.dir).map_err(Error::file("read", &self.dir))?;
        let mut pieces = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::file("read", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let modified = entry.metadata().and_then(|data| data.modified());
            pieces.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), name, entry.path()));
        }
        pieces.sort();
        pieces.reverse();
        let of = |prefix: &'static str| pieces.iter().filter(move |(_, name, _)| name.starts_with(prefix));
        let old = KEPT
            .into_iter()
            // The log of the last installation is no piece.
            .flat_map(|(prefix, kept)| of(prefix).filter(|(_, name, _)| name != "root.log").skip(kept));
        for (_, _, path) in of(WORK).chain(old) {
            let removed = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
            removed.map_err(Error::file("remove", path))?;
        }
        self.tidy_debs()
    }

    /// Removes packages that were not used for long, each with what is kept beside it.
    fn tidy_debs(&self) -> Result<(), Error> {
        let debs = self.dir.join("debs");
        for entry in fs::read_dir(&debs).map_err(Error::file("read", &debs))? {
            let path = entry.map_err(Error::file("read", &debs))?.path();
            let used = fs::metadata(&path).and_then(|data| data.modified());
            let age = used.ok().and_then(|used| used.elapsed().ok());
            if path.extension().is_some_and(|kind| kind == "deb") && age.is_some_and(|age| age > DEB_KEPT) {
                fs::remove_file(&path).map_err(Error::file("remove", &path))?;
                // It may not be there.
                let _ = fs::remove_file(path.with_extension("control"));
            }
        }
        Ok(())
    }

    /// Takes the cache for a build; `waiting` is called once if another build has it. The lock ends when the returned
    /// value is dropped.
    pub(crate) fn lock(&self, waiting: impl FnOnce()) -> Result<Flock<File>, Error> {
        let path = self.dir.join("lock");
        let failed = |errno: Errno| Error::file("lock", &path)(errno.into());
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::file("write", &path))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, Errno::EWOULDBLOCK)) => {
                waiting();
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno))?
            }
            Err((_, errno)) => return Err(failed(errno)),
        };
        self.tidy()?;
        Ok(lock)
    }
}

/// A name for a piece made of these inputs: the first 16 digits of their SHA-256.
pub(crate) fn key<'a>(inputs: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update((input.len() as u64).to_be_bytes());
        hash.update(input);
    }
    hex::encode(&hash.finalize()[..8])
}

/// The SHA-256 of a file, as hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::file("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = std::io::Read::read(&mut file, &mut buffer).map_err(Error::file("read", path))?;
        if read == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_told_apart_by_their_borders() {
        let one: [&[u8]; 2] = [b"ab", b"c"];
        let other: [&[u8]; 2] = [b"a", b"bc"];
        assert_ne!(key(one), key(other));
        assert_eq!(key(one), key(one));
    }

    #[test]
    fn what_was_used_last_is_kept_and_what_was_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        fs::create_dir(dir.path().join("work-x")).unwrap();
        fs::write(dir.path().join("root.log"), "").unwrap();
        for nth in 0..6 {
            let file = File::create(dir.path().join(format!("root-{nth}.tar"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(nth))
                .unwrap();
        }
        Cache::used(&dir.path().join("root-0.tar")).unwrap();
        drop(cache.lock(|| panic!("nobody else has it")).unwrap());
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "debs",
                "lock",
                "root-0.tar",
                "root-3.tar",
                "root-4.tar",
                "root-5.tar",
                "root.log"
            ]
        );
    }

    #[test]
    fn a_package_goes_a_week_after_its_last_use() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        for (name, days) in [("old", 8), ("new", 6)] {
            fs::write(cache.deb(name).with_extension("control"), "").unwrap();
            let age = Duration::from_secs(days * 24 * 3600);
            let file = File::create(cache.deb(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        drop(cache.lock(|| panic!("nobody else has it")).unwrap());
        assert!(!cache.deb("old").exists() && !cache.deb("old").with_extension("control").exists());
        assert!(cache.deb("new").exists() && cache.deb("new").with_extension("control").exists());
    }

    #[test]
    fn a_second_build_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let lock = cache.lock(|| panic!("nobody else has it")).unwrap();
        let file = File::open(dir.path().join("lock")).unwrap();
        assert!(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err());
        drop(lock);
        let file = File::open(dir.path().join("lock")).unwrap();
        assert!(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok());
    }
}
