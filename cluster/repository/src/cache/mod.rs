//! A host's images.
//!
//! ```text
//! lock                    held by the one process that has the cache
//! images/<digest>         whole images, verified, for guests to start from; they are not to be written
//! partial/<digest>        images that are being fetched
//! manifests/<digest>      the manifest of each; when it was last changed is when the image was last used
//! pins/<digest>.<holder>  who uses an image, such as a guest
//! ```
//!
//! [`Cache::fetch`] gives the path of a whole image, whatever it takes: the one that is there, or the one that is just
//! being fetched for somebody else, or chunks from the repository and from other hosts. To fetch before there is a guest
//! is the same call without a holder.
//!
//! There is no index. What a partial file has is found by comparing its chunks with their digests, so that a kill, or a
//! power cut, costs at most what had not been written. A pin is a file as well: guests outlive the process that started
//! them, and so do their pins. An image that is not pinned goes when there is no room for another, the one that was not
//! used for the longest time first.

mod driver;
mod folder;
mod job;
mod library;
mod news;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aerie_cluster_proto::description::Image;
use tokio::sync::watch;

use crate::http::{Client, Plain, Transport};
use crate::limits::{MAX_CACHED, MAX_FETCHES};
use crate::manifest::{Manifest, ManifestId, Recent};
use crate::overlay::{self, Backing};
use crate::swarm::Limits;
use crate::{Digest, Error, Format, files};
use folder::{Entry, Folder};
use job::Job;

/// How a cache is kept.
#[derive(Clone)]
pub struct CacheConfig {
    /// Its folder.
    pub dir: PathBuf,
    /// Most bytes of images; no bound but the disk's where `None`.
    pub max_bytes: Option<u64>,
    /// How many bytes of the disk are left to others.
    pub keep_free: u64,
    /// The port at which this cache is served, by a [`crate::Server`], so that others learn of it; 0 where it is not.
    pub port: u16,
    /// How much is asked of others at a time.
    pub limits: Limits,
    /// How long a fetch goes on without any chunk.
    pub patience: Duration,
    /// What a connection is.
    pub transport: Arc<dyn Transport>,
}

impl CacheConfig {
    /// The usual values: no bound but the disk's, of which 1 GiB is left free; not served; a minute without a chunk.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            max_bytes: None,
            keep_free: 1 << 30,
            port: 0,
            limits: Limits::default(),
            patience: Duration::from_secs(60),
            transport: Arc::new(Plain),
        }
    }
}

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The image.
    pub image: Image,
    /// The repository.
    pub origin: SocketAddr,
    /// Hosts that may have it, besides those that the repository knows of.
    pub hosts: Vec<SocketAddr>,
    /// Who will use it, such as a guest's id: up to 128 letters, digits and `.-_`. The image stays until it is released.
    pub holder: Option<String>,
}

/// An image on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// SHA-256 of its content.
    pub digest: Digest,
    /// Its file, which is not to be written.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its size in bytes.
    pub size: u64,
    /// The size of its disk in bytes.
    pub virtual_size: u64,
}

impl Cached {
    /// Makes a disk that begins as this image and keeps what is changed. The image has to be pinned for as long.
    ///
    /// # Errors
    /// Those of [`overlay::create`].
    pub fn make_overlay(&self, path: &Path) -> Result<(), Error> {
        let backing = Backing {
            path: self
                .path
                .canonicalize()
                .map_err(Error::file("find", &self.path))?,
            format: self.format,
        };
        overlay::create(path, &backing, self.virtual_size)
    }
}

/// Somebody's use of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin {
    /// The image.
    pub digest: Digest,
    /// Who.
    pub holder: String,
}

/// How far a fetch has come.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes of the image; 0 while that is not known.
    pub size: u64,
    /// Chunks that are here.
    pub chunks: u32,
    /// Chunks of the image.
    pub of: u32,
    /// Bytes a second, over the last seconds.
    pub rate: f64,
    /// How much longer it takes at that rate.
    pub left: Option<Duration>,
    /// How many sources are asked.
    pub sources: usize,
    /// How many were dropped since they were wrong, silent or broken.
    pub dropped: usize,
}

/// A fetch that is under way.
#[derive(Debug)]
pub struct Fetching {
    cache: Cache,
    job: Option<Arc<Job>>,
    digest: Digest,
    pinned: Option<String>,
}

impl Fetching {
    /// The image, which its name meant when the fetch began.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// How far it has come, again and again. `None` if there is nothing to wait for.
    #[must_use]
    pub fn progress(&self) -> Option<watch::Receiver<Progress>> {
        self.job.as_ref().map(|job| job.progress())
    }

    /// Waits for the image. The fetch goes on if nobody waits.
    ///
    /// # Errors
    /// What became of it; what has come is kept for the next time.
    pub async fn wait(self) -> Result<Cached, Error> {
        let result = match &self.job {
            Some(job) => job.wait().await,
            None => Ok(()),
        };
        let result = result.and_then(|()| self.cache.cached(self.digest));
        if let (Err(_), Some(holder)) = (&result, &self.pinned) {
            self.cache.release(self.digest, holder)?;
        }
        result
    }
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Digest, Entry>,
    pins: BTreeMap<Digest, BTreeSet<String>>,
    jobs: BTreeMap<Digest, Arc<Job>>,
    /// Images that are used and that nothing usable is known of, with what is wrong.
    damaged: BTreeMap<Digest, String>,
}

struct Inner {
    config: CacheConfig,
    folder: Folder,
    client: Client,
    manifests: Recent,
    state: Mutex<State>,
}

/// A host's images. Clones are the same cache.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("dir", &self.0.config.dir)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens the cache of a folder, making it if it is not there.
    ///
    /// # Errors
    /// [`Error::InUse`] or [`Error::File`]. An image that is used and damaged is no error here but where it is asked for.
    pub fn open(config: CacheConfig) -> Result<Self, Error> {
        let (folder, found) = Folder::open(&config.dir)?;
        let state = State {
            entries: found.entries,
            pins: found.pins,
            jobs: BTreeMap::new(),
            damaged: found.damaged,
        };
        for (digest, why) in &state.damaged {
            tracing::error!(image = %digest, %why, "an image that is used is damaged");
        }
        Ok(Self(Arc::new(Inner {
            client: Client::new(Arc::clone(&config.transport)),
            manifests: Recent::default(),
            config,
            folder,
            state: Mutex::new(state),
        })))
    }

    /// Gives an image's file, fetching it if it is not here.
    ///
    /// # Errors
    /// Those of [`Self::begin`] and [`Fetching::wait`].
    pub async fn fetch(&self, fetch: &Fetch) -> Result<Cached, Error> {
        self.begin(fetch).await?.wait().await
    }

    /// Begins to fetch an image, or joins whoever does. An image that is known by its digest and here is not asked
    /// about.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Ask`] or [`Error::Manifest`] if the repository does not give what it is,
    /// [`Error::BadName`] of the holder, [`Error::CacheFull`], [`Error::NoSpace`], [`Error::TooManyFetches`],
    /// [`Error::TooMany`], [`Error::Damaged`] if it is here, used and not usable, or [`Error::File`].
    pub async fn begin(&self, fetch: &Fetch) -> Result<Fetching, Error> {
        if let Some(holder) = &fetch.holder {
            files::plain_name(holder, "the holder of an image")?;
        }
        if let Image::Digest(digest) = &fetch.image
            && let Some(here) = self.join(&mut self.0.state(), Digest(*digest), fetch)?
        {
            return Ok(here);
        }
        let client = &self.0.client;
        let info = client.find(fetch.origin, &fetch.image).await?;
        if let Image::Digest(digest) = &fetch.image
            && info.digest.0 != *digest
        {
            return Err(Error::WrongDigest {
                what: format!("what {} gives", fetch.origin),
                expected: Digest(*digest),
                found: info.digest,
            });
        }
        if let Some(here) = self.join(&mut self.0.state(), info.digest, fetch)? {
            return Ok(here);
        }
        let manifest = client.manifest(fetch.origin, info.manifest).await?;
        if manifest.digest() != info.digest {
            return Err(Error::WrongDigest {
                what: format!("the manifest from {}", fetch.origin),
                expected: info.digest,
                found: manifest.digest(),
            });
        }
        // It removes files, and waits for the disk.
        let (cache, fetch) = (self.clone(), fetch.clone());
        tokio::task::spawn_blocking(move || cache.start(&fetch, info.manifest, manifest))
            .await
            .map_err(|_| Error::Ended)?
    }

    /// The image if it is here or being fetched.
    fn join(&self, state: &mut State, digest: Digest, fetch: &Fetch) -> Result<Option<Fetching>, Error> {
        self.0.is_usable(state, digest)?;
        let job = state.jobs.get(&digest).cloned();
        let whole = state.entries.get(&digest).is_some_and(|entry| entry.whole);
        if job.is_none() && !whole {
            return Ok(None);
        }
        if whole {
            self.0.used(state, digest)?;
        }
        let pinned = self.0.pin(state, digest, fetch.holder.as_deref())?;
        Ok(Some(Fetching {
            cache: self.clone(),
            job,
            digest,
            pinned,
        }))
    }

    fn start(&self, fetch: &Fetch, id: ManifestId, manifest: Manifest) -> Result<Fetching, Error> {
        let digest = manifest.digest();
        let mut state = self.0.state();
        // Somebody may have been faster, and nobody is from here on.
        if let Some(here) = self.join(&mut state, digest, fetch)? {
            return Ok(here);
        }
        if state.jobs.len() >= MAX_FETCHES {
            return Err(Error::TooManyFetches);
        }
        let same = state
            .entries
            .get(&digest)
            .is_some_and(|entry| entry.manifest == id);
        if !same {
            // Of another release, which cut it otherwise.
            self.0.folder.remove(digest)?;
        }
        self.0.make_room(&mut state, digest, manifest.size())?;
        let (folder, size) = (&self.0.folder, manifest.size());
        folder.write_manifest(&manifest)?;
        let job = Job::new(id, manifest);
        let entry = Entry {
            manifest: id,
            size,
            whole: false,
            used: SystemTime::now(),
        };
        state.entries.insert(digest, entry);
        let pinned = self.0.pin(&mut state, digest, fetch.holder.as_deref())?;
        state.jobs.insert(digest, Arc::clone(&job));
        drop(state);
        driver::spawn(Arc::clone(&self.0), Arc::clone(&job), fetch.clone());
        Ok(Fetching {
            cache: self.clone(),
            job: Some(job),
            digest,
            pinned,
        })
    }

    /// An image that is here.
    ///
    /// # Errors
    /// [`Error::NoImage`] if it is not, [`Error::Damaged`] or [`Error::File`].
    pub fn cached(&self, digest: Digest) -> Result<Cached, Error> {
        let absent = || Error::NoImage {
            image: digest.into(),
            place: self.0.config.dir.display().to_string(),
        };
        {
            let state = self.0.state();
            self.0.is_usable(&state, digest)?;
            if !state.entries.get(&digest).is_some_and(|entry| entry.whole) {
                return Err(absent());
            }
        }
        let manifest = self.0.folder.read_manifest(digest)?.ok_or_else(absent)?;
        Ok(Cached {
            digest,
            path: self.0.folder.image(digest),
            format: manifest.format(),
            size: manifest.size(),
            virtual_size: manifest.virtual_size(),
        })
    }

    /// Every whole image, by digest: a host on which an image is already suits a guest that starts from it.
    #[must_use]
    pub fn list(&self) -> Vec<Digest> {
        let state = self.0.state();
        let whole = state.entries.iter().filter(|(_, entry)| entry.whole);
        whole.map(|(digest, _)| *digest).collect()
    }

    /// Every pin, by image and holder.
    #[must_use]
    pub fn pins(&self) -> Vec<Pin> {
        let state = self.0.state();
        let pins = state.pins.iter().flat_map(|(digest, holders)| {
            holders.iter().map(|holder| Pin {
                digest: *digest,
                holder: holder.clone(),
            })
        });
        pins.collect()
    }

    /// Somebody does not use an image any more. It is no error if they did not.
    ///
    /// # Errors
    /// [`Error::BadName`] or [`Error::File`].
    pub fn release(&self, digest: Digest, holder: &str) -> Result<(), Error> {
        files::plain_name(holder, "the holder of an image")?;
        let mut state = self.0.state();
        self.0.folder.unpin(digest, holder)?;
        if let Some(holders) = state.pins.get_mut(&digest) {
            holders.remove(holder);
            if holders.is_empty() {
                state.pins.remove(&digest);
                // What nobody uses any more may be replaced.
                state.damaged.remove(&digest);
            }
        }
        Ok(())
    }

    /// Removes an image that nobody uses and nobody fetches; false if somebody does.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(&self, digest: Digest) -> Result<bool, Error> {
        let mut state = self.0.state();
        if state.pins.contains_key(&digest) || state.jobs.contains_key(&digest) {
            return Ok(false);
        }
        self.0.folder.remove(digest)?;
        state.entries.remove(&digest);
        Ok(true)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what is damaged and cannot be replaced, since somebody uses it.
    fn is_usable(&self, state: &State, digest: Digest) -> Result<(), Error> {
        match state.damaged.get(&digest) {
            Some(why) => Err(Error::Damaged {
                path: self.folder.image(digest),
                why: why.clone(),
            }),
            None => Ok(()),
        }
    }

    fn used(&self, state: &mut State, digest: Digest) -> Result<(), Error> {
        let now = SystemTime::now();
        if let Some(entry) = state.entries.get_mut(&digest) {
            entry.used = now;
            self.folder.touch(digest, now)?;
        }
        Ok(())
    }

    /// The holder, if it was not one before.
    fn pin(&self, state: &mut State, digest: Digest, holder: Option<&str>) -> Result<Option<String>, Error> {
        let Some(holder) = holder else {
            return Ok(None);
        };
        if state
            .pins
            .get(&digest)
            .is_some_and(|holders| holders.contains(holder))
        {
            return Ok(None);
        }
        self.folder.pin(digest, holder)?;
        state.pins.entry(digest).or_default().insert(holder.to_owned());
        Ok(Some(holder.to_owned()))
    }

    /// Makes room for an image, at the cost of those that nobody uses; of none if that is not enough.
    fn make_room(&self, state: &mut State, digest: Digest, size: u64) -> Result<(), Error> {
        let limit = self.config.max_bytes.unwrap_or(u64::MAX);
        let missing = size.saturating_sub(self.on_disk(digest));
        let kept = |state: &State, other: &Digest| {
            state.pins.contains_key(other) || state.jobs.contains_key(other) || *other == digest
        };
        let (mut held, mut used, mut evictable) = (0_u64, 0, 0_u64);
        for (other, entry) in state.entries.iter().filter(|(other, _)| **other != digest) {
            if kept(state, other) {
                (held, used) = (held.saturating_add(entry.size), used + 1);
            } else {
                evictable = evictable.saturating_add(self.on_disk(*other));
            }
        }
        if held.saturating_add(size) > limit {
            return Err(Error::CacheFull {
                need: size,
                held,
                limit,
            });
        }
        if used >= MAX_CACHED {
            return Err(Error::too_many_cached());
        }
        let free = self.free(state, digest)?;
        if missing > free.saturating_add(evictable) {
            return Err(self.no_space(missing, free));
        }
        loop {
            let others = || state.entries.iter().filter(|(other, _)| **other != digest);
            let bytes: u64 = others().map(|(_, entry)| entry.size).sum();
            let free = self.free(state, digest)?;
            let fits = bytes.saturating_add(size) <= limit && others().count() < MAX_CACHED;
            if fits && missing <= free {
                return Ok(());
            }
            let unused = others()
                .filter(|(other, _)| !kept(state, other))
                .min_by_key(|(_, entry)| (entry.whole, entry.used))
                .map(|(other, _)| *other);
            // Some file took up less than it seemed to, or somebody still has it open.
            let other = unused.ok_or_else(|| self.no_space(missing, free))?;
            self.folder.remove(other)?;
            state.entries.remove(&other);
            tracing::info!(image = %other, "evicted, to make room for another");
        }
    }

    /// How many bytes of the disk one more image may take: what others that are being fetched still need is theirs.
    fn free(&self, state: &State, but: Digest) -> Result<u64, Error> {
        let free = files::free(self.folder.dir())?.saturating_sub(self.config.keep_free);
        Ok(free.saturating_sub(self.awaited(state, but)))
    }

    /// How many bytes are still to come of images that are being fetched, but for one.
    fn awaited(&self, state: &State, but: Digest) -> u64 {
        let others = state.jobs.iter().filter(|(digest, _)| **digest != but);
        let missing = others.map(|(digest, job)| job.manifest.size().saturating_sub(self.on_disk(*digest)));
        missing.sum()
    }

    /// How many bytes of the disk an image takes up, whole or not.
    fn on_disk(&self, digest: Digest) -> u64 {
        let files = [self.folder.image(digest), self.folder.partial(digest)];
        let bytes = files.map(|path| std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512));
        bytes.iter().sum()
    }

    fn no_space(&self, need: u64, free: u64) -> Error {
        Error::NoSpace {
            path: self.folder.dir().to_owned(),
            need,
            free,
        }
    }
}
