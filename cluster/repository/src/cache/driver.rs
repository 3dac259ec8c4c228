//! Fetches one image: the planner's requests go out as tasks, and what comes of them goes back to it.
//!
//! The loop of [`Driver::run`] has the planner to itself. In each round it
//!
//! 1. gives up what is late,
//! 2. does what the planner says: cancels requests, forgets sources,
//! 3. sends the requests that the planner gives,
//! 4. waits for a request that ends, for bytes, for news of others, or for the planner's next time.
//!
//! A chunk is compared with its digest before it is written, and written before others are told of it. When all are
//! there the whole image is compared with its digest too, and looked at as one that is put into a store is: neither the
//! manifest's maker nor anybody's disk is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{Whence, lseek64};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::job::{Job, Rate};
use super::news::{self, News};
use super::{Fetch, Inner};
use crate::error::BadContent;
use crate::http::{Client, Got};
use crate::limits::MAX_PEERS;
use crate::manifest::{Manifest, ManifestId};
use crate::swarm::{Bitfield, Dropped, Event, Failure, Limits, Request, Role, SourceId, Swarm};
use crate::{Digest, Error, files};

const ORIGIN: SourceId = SourceId(0);

/// News and signs of life that wait for the loop. Whoever has more of them waits, or leaves them out.
const WAITING: usize = 256;

/// How often a request says that bytes come.
const SIGN_OF_LIFE: Duration = Duration::from_millis(100);

/// Fetches in the background, and tells whoever waits.
pub(super) fn spawn(inner: Arc<Inner>, job: Arc<Job>, fetch: Fetch) {
    tokio::spawn(async move {
        let digest = job.manifest.digest();
        let work = tokio::spawn(work(Arc::clone(&inner), Arc::clone(&job), fetch));
        // A panic must not leave those who wait without an answer.
        let result = work.await.unwrap_or(Err(Error::Ended));
        let mut state = inner.state();
        state.jobs.remove(&digest);
        if let (Ok(()), Some(entry)) = (&result, state.entries.get_mut(&digest)) {
            entry.whole = true;
        } else if matches!(result, Err(Error::WrongDigest { .. } | Error::Content { .. })) {
            let _ = inner.folder.remove(digest);
            state.entries.remove(&digest);
        }
        drop(state);
        job.end(result);
    });
}

async fn work(inner: Arc<Inner>, job: Arc<Job>, fetch: Fetch) -> Result<(), Error> {
    let (opened, folder) = (Arc::clone(&inner), Arc::clone(&job.manifest));
    let (file, have) = blocking(move || open(&opened, &folder)).await?;
    let file = Arc::new(file);
    *job.have() = have.clone();
    if !have.is_full() {
        let config = &inner.config;
        let limits = Limits {
            // A request that creeps ends before the fetch does.
            chunk: config.limits.chunk.min(config.patience.mul_f64(0.75)),
            ..config.limits
        };
        let mut driver = Driver {
            swarm: Swarm::new(limits, have, StdRng::from_rng(&mut rand::rng())),
            job: Arc::clone(&job),
            file: Arc::clone(&file),
            client: inner.client.clone(),
            patience: config.patience,
            sources: BTreeMap::from([(ORIGIN, fetch.origin)]),
            banned: BTreeSet::new(),
            failed: BTreeMap::new(),
            running: BTreeMap::new(),
            next: 1,
            rate: Rate::default(),
        };
        let (to, news) = mpsc::channel(WAITING);
        let asking = news::ask(
            inner.client.clone(),
            fetch.clone(),
            job.id,
            job.manifest.chunks(),
            config.port,
            to,
        );
        let asking = tokio::spawn(asking);
        let done = driver.run(news, &fetch).await;
        asking.abort();
        done?;
    }
    blocking(move || finish(&inner, &job.manifest, &file)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Ended)?
}

/// Opens what there is of an image, and finds its chunks.
fn open(inner: &Inner, manifest: &Manifest) -> Result<(File, Bitfield), Error> {
    let path = inner.folder.partial(manifest.digest());
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::file("open", &path))?;
    file.set_len(manifest.size())
        .map_err(files::writing(&path, manifest.size()))?;
    files::sync_parent(&path)?;
    let mut have = Bitfield::empty(manifest.chunks());
    let mut buffer = vec![0; manifest.chunk_size() as usize];
    let mut chunk = 0;
    while let Some((at, length)) = manifest.place(chunk) {
        // What was never written is a hole, and need not be read.
        match lseek64(&file, i64::try_from(at).unwrap_or(i64::MAX), Whence::SeekData) {
            Err(nix::errno::Errno::ENXIO) => break,
            Ok(data) if data.unsigned_abs() >= at + length as u64 => {
                let next = data.unsigned_abs() / u64::from(manifest.chunk_size());
                chunk = u32::try_from(next).unwrap_or(u32::MAX);
                continue;
            }
            _ => {}
        }
        if let Some(bytes) = buffer.get_mut(..length)
            && file.read_exact_at(bytes, at).is_ok()
            && manifest.is_chunk(chunk, bytes)
        {
            have.insert(chunk);
        }
        chunk += 1;
    }
    Ok((file, have))
}

/// Makes an image of all its chunks.
fn finish(inner: &Inner, manifest: &Manifest, file: &File) -> Result<(), Error> {
    let digest = manifest.digest();
    let (partial, image) = (inner.folder.partial(digest), inner.folder.image(digest));
    let what = format!("the image {digest}");
    let found = Digest::of_file(file).map_err(Error::file("read", &partial))?;
    if found != digest {
        return Err(Error::WrongDigest {
            what,
            expected: digest,
            found,
        });
    }
    let inspected = crate::format::inspect(file, &what, Some(manifest.format()))?;
    if inspected.virtual_size != manifest.virtual_size() {
        return Err(Error::content(what)(BadContent::OtherDisk {
            said: manifest.virtual_size(),
            found: inspected.virtual_size,
        }));
    }
    file.sync_all()
        .map_err(files::writing(&partial, manifest.size()))?;
    crate::crash::point("fetch: synced");
    files::rename(&partial, &image)?;
    crate::crash::point("fetch: renamed");
    // Not before: whoever goes on with a partial file has to write it.
    file.set_permissions(fs::Permissions::from_mode(0o400))
        .map_err(Error::file("protect", &image))
}

/// What came of a request.
enum Came {
    Kept,
    Wrong,
    Failed(Failure, String),
    Disk(Error),
}

struct Driver {
    swarm: Swarm<StdRng>,
    job: Arc<Job>,
    file: Arc<File>,
    client: Client,
    patience: Duration,
    sources: BTreeMap<SourceId, SocketAddr>,
    /// Whoever was dropped is not asked again for this image.
    banned: BTreeSet<SocketAddr>,
    /// What is to be said of each if the image does not come.
    failed: BTreeMap<SocketAddr, String>,
    running: BTreeMap<Request, AbortHandle>,
    next: u32,
    rate: Rate,
}

impl Driver {
    async fn run(&mut self, mut news: mpsc::Receiver<News>, fetch: &Fetch) -> Result<(), Error> {
        let (life, mut moved) = mpsc::channel(WAITING);
        let mut requests = JoinSet::new();
        let mut gained = Instant::now();
        let everything = Bitfield::full(self.job.manifest.chunks());
        self.swarm.source_has(ORIGIN, Role::Origin, everything);
        loop {
            let now = Instant::now();
            self.swarm.handle_timeout(now);
            while let Some(event) = self.swarm.poll_event() {
                match event {
                    Event::Complete => {
                        self.tell(now);
                        return Ok(());
                    }
                    Event::Cancel(request) => {
                        if let Some(task) = self.running.remove(&request) {
                            task.abort();
                        }
                    }
                    Event::Dropped(source, why) => self.dropped(source, why),
                }
            }
            while let Some(request) = self.swarm.poll_request(now) {
                self.send(request, &life, &mut requests);
            }
            let give_up = gained + self.patience;
            if now >= give_up {
                return Err(self.nobody(fetch));
            }
            self.tell(now);
            let wake = self.swarm.poll_timeout(now).unwrap_or(give_up).min(give_up);
            tokio::select! {
                Some(done) = requests.join_next() => {
                    // One that was cancelled says nothing.
                    if let Ok((request, came)) = done
                        && self.running.remove(&request).is_some()
                    {
                        gained = self.came(request, came)?.unwrap_or(gained);
                    }
                }
                Some(heard) = news.recv() => self.heard(heard, fetch),
                Some(request) = moved.recv() => self.swarm.moved(request, Instant::now()),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    fn send(
        &mut self,
        request: Request,
        life: &mpsc::Sender<Request>,
        requests: &mut JoinSet<(Request, Came)>,
    ) {
        let Some(at) = self.sources.get(&request.source).copied() else {
            return;
        };
        let (client, file, job) = (self.client.clone(), Arc::clone(&self.file), Arc::clone(&self.job));
        let life = life.clone();
        let task = requests.spawn(async move {
            let mut last = Instant::now();
            let mut moved = || {
                if last.elapsed() >= SIGN_OF_LIFE {
                    last = Instant::now();
                    // Where many wait, one more says nothing new.
                    let _ = life.try_send(request);
                }
            };
            let came = ask(
                &client,
                at,
                job.id,
                &job.manifest,
                request.chunk,
                file,
                &mut moved,
            )
            .await;
            (request, came)
        });
        self.running.insert(request, task);
    }

    /// When a chunk was gained, if one was.
    fn came(&mut self, request: Request, came: Came) -> Result<Option<Instant>, Error> {
        let now = Instant::now();
        match came {
            Came::Kept => {
                self.job.have().insert(request.chunk);
                self.swarm.received(request, now);
                return Ok(Some(now));
            }
            Came::Wrong => self.swarm.wrong(request),
            Came::Failed(failure, why) => {
                if let Some(at) = self.sources.get(&request.source) {
                    self.failed.insert(*at, why);
                }
                self.swarm.failed(request, failure, now);
            }
            Came::Disk(error) => return Err(error),
        }
        Ok(None)
    }

    fn heard(&mut self, news: News, fetch: &Fetch) {
        match news {
            News::Origin(Ok(())) => {}
            News::Origin(Err(why)) => {
                self.failed.insert(fetch.origin, why);
            }
            News::Gone(at) => {
                self.failed.insert(at, "does not answer".to_owned());
                if let Some(id) = self.id_of(at) {
                    self.swarm.source_left(id);
                    self.sources.remove(&id);
                }
            }
            News::Has(at, have) => {
                if self.banned.contains(&at) || at == fetch.origin {
                    return;
                }
                let id = self.id_of(at).or_else(|| {
                    let room = self.sources.len() <= MAX_PEERS;
                    room.then(|| {
                        let id = SourceId(self.next);
                        self.next += 1;
                        self.sources.insert(id, at);
                        id
                    })
                });
                if let Some(id) = id {
                    self.swarm.source_has(id, Role::Host, have);
                }
            }
        }
    }

    fn id_of(&self, at: SocketAddr) -> Option<SourceId> {
        let mut sources = self.sources.iter().filter(|(id, _)| **id != ORIGIN);
        sources.find(|(_, other)| **other == at).map(|(id, _)| *id)
    }

    fn dropped(&mut self, source: SourceId, why: Dropped) {
        if let Some(at) = self.sources.remove(&source) {
            tracing::warn!(%at, image = %self.job.manifest.digest(), %why, "a source of an image is asked no more");
            self.failed.insert(at, why.to_string());
            self.banned.insert(at);
        }
    }

    fn tell(&mut self, now: Instant) {
        let (have, manifest) = (self.swarm.have().count(), &self.job.manifest);
        let bytes = (u64::from(have) * u64::from(manifest.chunk_size())).min(manifest.size());
        let rate = self.rate.at(now, bytes);
        let left = (manifest.size() - bytes) as f64 / rate;
        let (sources, dropped) = (self.swarm.sources(), self.banned.len());
        self.job.tell(|progress| {
            progress.bytes = bytes;
            progress.chunks = have;
            progress.rate = rate;
            progress.left = Duration::try_from_secs_f64(left).ok();
            progress.sources = sources;
            progress.dropped = dropped;
        });
    }

    fn nobody(&self, fetch: &Fetch) -> Error {
        let chunks = self.job.manifest.chunks();
        let mut tried: Vec<_> = self
            .failed
            .iter()
            .take(5)
            .map(|(at, why)| format!("{at}: {why}"))
            .collect();
        if tried.is_empty() {
            tried.push(format!("{} gives nothing", fetch.origin));
        }
        Error::NoSource {
            image: fetch.image.to_string(),
            missing: chunks - self.swarm.have().count(),
            chunks,
            tried: tried.join("; "),
        }
    }
}

/// Asks for a chunk, and keeps it if it is right.
async fn ask(
    client: &Client,
    at: SocketAddr,
    id: ManifestId,
    manifest: &Arc<Manifest>,
    chunk: u32,
    file: Arc<File>,
    moved: &mut (dyn FnMut() + Send),
) -> Came {
    let Some((start, length)) = manifest.place(chunk) else {
        return Came::Failed(Failure::Absent, "has no such chunk".to_owned());
    };
    let bytes = match client.chunk(at, id, chunk, length, moved).await {
        Got::Chunk(bytes) => bytes,
        Got::Absent => return Came::Failed(Failure::Absent, "has not what it said".to_owned()),
        Got::Busy => return Came::Failed(Failure::Busy, "has too much to do".to_owned()),
        Got::Broken(why) => return Came::Failed(Failure::Broken, why),
    };
    let manifest = Arc::clone(manifest);
    let kept = tokio::task::spawn_blocking(move || -> io::Result<bool> {
        if !manifest.is_chunk(chunk, &bytes) {
            return Ok(false);
        }
        file.write_all_at(&bytes, start)?;
        crate::crash::point("fetch: chunk written");
        Ok(true)
    });
    match kept.await {
        Ok(Ok(true)) => Came::Kept,
        Ok(Ok(false)) => Came::Wrong,
        Ok(Err(error)) => Came::Disk(files::writing(
            std::path::Path::new("the cache's disk"),
            length as u64,
        )(error)),
        Err(_) => Came::Disk(Error::Ended),
    }
}
