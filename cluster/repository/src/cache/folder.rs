//! The files of a cache, and what is known of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::Flock;

use crate::limits::{MAX_CACHED, MAX_MANIFEST};
use crate::manifest::{Manifest, ManifestId};
use crate::{Digest, Error, files};

const IMAGES: &str = "images";
const PARTIAL: &str = "partial";
const MANIFESTS: &str = "manifests";
const PINS: &str = "pins";

/// The length of a digest in a file's name.
const DIGITS: usize = 64;

/// A cache's folder, which one process has.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    _lock: Flock<File>,
}

/// An image in the cache.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) manifest: ManifestId,
    pub(super) size: u64,
    pub(super) whole: bool,
    pub(super) used: SystemTime,
}

/// What a folder was found to have.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) entries: BTreeMap<Digest, Entry>,
    pub(super) pins: BTreeMap<Digest, BTreeSet<String>>,
    /// Images that somebody uses and that nothing usable is known of, with what is wrong.
    pub(super) damaged: BTreeMap<Digest, String>,
}

impl Folder {
    pub(super) fn open(dir: &Path) -> Result<(Self, Found), Error> {
        for part in ["", IMAGES, PARTIAL, MANIFESTS, PINS] {
            files::private_folder(&dir.join(part))?;
        }
        let path = dir.join("lock");
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        let lock = files::lock(file, &path)?.ok_or_else(|| Error::InUse { dir: dir.to_owned() })?;
        let folder = Self {
            dir: dir.to_owned(),
            _lock: lock,
        };
        let found = folder.look()?;
        Ok((folder, found))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn image(&self, digest: Digest) -> PathBuf {
        self.dir.join(IMAGES).join(digest.to_string())
    }

    pub(super) fn partial(&self, digest: Digest) -> PathBuf {
        self.dir.join(PARTIAL).join(digest.to_string())
    }

    fn manifest_path(&self, digest: Digest) -> PathBuf {
        self.dir.join(MANIFESTS).join(digest.to_string())
    }

    fn pin_path(&self, digest: Digest, holder: &str) -> PathBuf {
        self.dir.join(PINS).join(format!("{digest}.{holder}"))
    }

    pub(super) fn read_manifest(&self, digest: Digest) -> Result<Option<Manifest>, Error> {
        let path = self.manifest_path(digest);
        let Some(length) = length(&path)? else {
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(MAX_MANIFEST);
        let bytes = files::read_part(&path, 0, length)?.unwrap_or_default();
        let manifest = Manifest::decode(&bytes).map_err(|why| Error::Damaged {
            path,
            why: why.to_string(),
        })?;
        Ok(Some(manifest))
    }

    pub(super) fn write_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        files::replace(&self.manifest_path(manifest.digest()), &manifest.encode())
    }

    /// Notes that an image is used now.
    pub(super) fn touch(&self, digest: Digest, now: SystemTime) -> Result<(), Error> {
        let path = self.manifest_path(digest);
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(now))
            .map_err(Error::file("touch", &path))
    }

    pub(super) fn pin(&self, digest: Digest, holder: &str) -> Result<(), Error> {
        let path = self.pin_path(digest, holder);
        files::new(&path)?;
        files::sync_parent(&path)
    }

    pub(super) fn unpin(&self, digest: Digest, holder: &str) -> Result<(), Error> {
        let path = self.pin_path(digest, holder);
        files::remove(&path)?;
        files::sync_parent(&path)
    }

    /// Removes an image: what says that it is whole, then the rest.
    pub(super) fn remove(&self, digest: Digest) -> Result<(), Error> {
        files::remove(&self.image(digest))?;
        files::remove(&self.partial(digest))?;
        files::remove(&self.manifest_path(digest))
    }

    /// Reads the folder, and removes what nobody can use. An image that somebody uses stays, whatever is wrong with it.
    fn look(&self) -> Result<Found, Error> {
        let mut found = Found::default();
        for name in self.names(PINS)? {
            let pin = name.split_at_checked(DIGITS);
            let pin =
                pin.and_then(|(digest, holder)| Some((digest.parse().ok()?, holder.strip_prefix('.')?)));
            if let Some((digest, holder)) = pin {
                found.pins.entry(digest).or_default().insert(holder.to_owned());
            }
        }
        for name in self.names(MANIFESTS)? {
            let Ok(digest) = name.parse::<Digest>() else {
                files::remove(&self.dir.join(MANIFESTS).join(&name))?;
                continue;
            };
            let pinned = found.pins.contains_key(&digest);
            match self.entry(digest) {
                Ok(Some(entry)) if pinned || found.entries.len() < MAX_CACHED => {
                    found.entries.insert(digest, entry);
                }
                Ok(_) if !pinned => files::remove(&self.manifest_path(digest))?,
                Err(Error::Damaged { .. }) if !pinned => files::remove(&self.manifest_path(digest))?,
                Ok(_) => {}
                Err(Error::Damaged { why, .. }) => {
                    found
                        .damaged
                        .insert(digest, format!("its manifest is not usable: {why}"));
                }
                // It may be read the next time.
                Err(error) => return Err(error),
            }
        }
        for digest in found.pins.keys() {
            match length(&self.image(*digest))? {
                Some(_) if !found.entries.contains_key(digest) => {
                    let why = || "its manifest is gone, or says another length".to_owned();
                    found.damaged.entry(*digest).or_insert_with(why);
                }
                Some(_) => {}
                // A guest has nothing to lose here.
                None => drop(found.damaged.remove(digest)),
            }
        }
        for folder in [IMAGES, PARTIAL] {
            for name in self.names(folder)? {
                let digest = name.parse::<Digest>().ok();
                let known = digest.and_then(|digest| found.entries.get(&digest));
                let pinned = digest.is_some_and(|digest| found.pins.contains_key(&digest));
                let needed = known.map(|entry| entry.whole) == Some(folder == IMAGES);
                if !(needed || pinned && folder == IMAGES) {
                    files::remove(&self.dir.join(folder).join(&name))?;
                }
            }
        }
        Ok(found)
    }

    /// What there is of an image. `None` if there is nothing of it.
    fn entry(&self, digest: Digest) -> Result<Option<Entry>, Error> {
        let manifest = self.read_manifest(digest)?;
        let Some(manifest) = manifest.filter(|manifest| manifest.digest() == digest) else {
            return Ok(None);
        };
        let whole = length(&self.image(digest))? == Some(manifest.size());
        if !whole && length(&self.partial(digest))?.is_none() {
            return Ok(None);
        }
        let used = fs::metadata(self.manifest_path(digest)).and_then(|meta| meta.modified());
        Ok(Some(Entry {
            manifest: manifest.id(),
            size: manifest.size(),
            whole,
            used: used.unwrap_or(SystemTime::UNIX_EPOCH),
        }))
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let path = self.dir.join(folder);
        let entries = fs::read_dir(&path).map_err(Error::file("list", &path))?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, std::io::Error>>()
            .map_err(Error::file("list", &path))
    }
}

/// How long a file is, if it is there.
fn length(path: &Path) -> Result<Option<u64>, Error> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("look at", path)(error)),
    }
}
