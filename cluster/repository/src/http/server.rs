//! Gives images to whoever may connect.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};

use super::announced::Announced;
use super::stall::Stalling;
use super::wire::Ask;
use super::{Plain, Transport};
use crate::limits::{
    CONNECT, HEAD, MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ONE, MAX_SERVED_CHUNKS, SENDING, STALL,
};
use crate::manifest::ManifestId;
use crate::{Error, Library};

/// How long the listener rests when the system gives it no more connections.
const REST: Duration = Duration::from_millis(100);

/// How to serve.
#[derive(Clone)]
pub struct ServerConfig {
    /// Most connections at a time; others wait.
    pub connections: usize,
    /// Most chunks in memory at a time; who asks for more is told to come again.
    pub chunks: usize,
    /// How long the head of a request may take.
    pub head: Duration,
    /// What a connection is.
    pub transport: Arc<dyn Transport>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            chunks: MAX_SERVED_CHUNKS,
            head: HEAD,
            transport: Arc::new(Plain),
        }
    }
}

/// A running server. Dropping it ends its connections.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves a library at a socket that listens.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn start(
        listener: TcpListener,
        library: Arc<dyn Library>,
        config: ServerConfig,
    ) -> Result<Self, Error> {
        let local_addr = listener.local_addr().map_err(|source| Error::Listen { source })?;
        let sent = Arc::new(AtomicU64::new(0));
        let shared = Arc::new(Shared {
            library,
            chunks: Arc::new(Semaphore::new(config.chunks)),
            sent: Arc::clone(&sent),
            announced: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, shared, config));
        tracing::info!(%local_addr, "images are served");
        Ok(Self {
            local_addr,
            sent,
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many bytes of chunks were given to the network so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, config: ServerConfig) {
    let slots = Arc::new(Semaphore::new(config.connections));
    let (counts, mut connections) = (Counts::default(), JoinSet::new());
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(seat) = Seat::take(&counts, from.ip().to_canonical()) else {
                    tracing::debug!(%from, "one address has too many connections for images");
                    continue;
                };
                let (shared, config) = (Arc::clone(&shared), config.clone());
                connections.spawn(async move {
                    let _held = (slot, seat);
                    if let Err(why) = serve(stream, from, shared, config).await {
                        tracing::debug!(%from, why, "a connection for images ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection for images can be accepted");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    from: SocketAddr,
    shared: Arc<Shared>,
    config: ServerConfig,
) -> Result<(), String> {
    let stream = tokio::time::timeout(CONNECT, config.transport.accepted(stream))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.answer(&request, from).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.head)
        .serve_connection(TokioIo::new(Stalling::new(stream, STALL, SENDING)), service)
        .await
        .map_err(|error| error.to_string())
}

struct Shared {
    library: Arc<dyn Library>,
    chunks: Arc<Semaphore>,
    sent: Arc<AtomicU64>,
    announced: Mutex<Announced>,
}

/// A chunk or a manifest on its way, which counts as long as it is in memory.
struct Held {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

type Answer = Response<Full<Bytes>>;

impl Shared {
    async fn answer(self: &Arc<Self>, request: &Request<Incoming>, from: SocketAddr) -> Answer {
        let ask = Ask::read(request.uri().path());
        let answer = match (request.method(), ask) {
            (&Method::POST, Some(Ask::Announce(id, port))) => self.announce(id, from, port).await,
            (&Method::GET, Some(Ask::Image(image))) => {
                let found = self.blocking(move |library| library.find(&image)).await;
                found.map(|found| found.map(|info| json(&info)))
            }
            (&Method::GET, Some(Ask::Manifest(id))) => {
                // A manifest can be larger than a chunk. Whoever asks for one has nothing else to do but to wait.
                let Ok(permit) = Arc::clone(&self.chunks).acquire_owned().await else {
                    return plain(StatusCode::SERVICE_UNAVAILABLE, "the server ends");
                };
                let found = self.blocking(move |library| library.manifest(id)).await;
                found.map(|found| {
                    found.map(|manifest| {
                        Bytes::from_owner(Held {
                            bytes: manifest.encode(),
                            _permit: permit,
                        })
                    })
                })
            }
            (&Method::GET, Some(Ask::Have(id))) => {
                let found = self.blocking(move |library| library.have(id)).await;
                found.map(|found| found.map(|have| have.as_bytes().to_vec().into()))
            }
            (&Method::GET, Some(Ask::Chunk(id, chunk))) => {
                let Ok(permit) = Arc::clone(&self.chunks).try_acquire_owned() else {
                    return plain(StatusCode::SERVICE_UNAVAILABLE, "too many chunks are asked for");
                };
                let found = self.blocking(move |library| library.chunk(id, chunk)).await;
                found.map(|found| {
                    found.map(|bytes| {
                        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        Bytes::from_owner(Held {
                            bytes,
                            _permit: permit,
                        })
                    })
                })
            }
            _ => return plain(StatusCode::BAD_REQUEST, "there is nothing of that kind"),
        };
        match answer {
            Ok(Some(bytes)) => Response::new(Full::new(bytes)),
            Ok(None) => plain(StatusCode::NOT_FOUND, "it is not here"),
            Err(error) => {
                tracing::warn!(%from, %error, "an image cannot be served");
                plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&dyn Library) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let library = Arc::clone(&self.library);
        tokio::task::spawn_blocking(move || work(library.as_ref()))
            .await
            .map_err(|_| Error::Ended)?
    }

    async fn announce(
        self: &Arc<Self>,
        id: ManifestId,
        from: SocketAddr,
        port: u16,
    ) -> Result<Option<Bytes>, Error> {
        let known = self.blocking(move |library| library.manifest(id)).await?;
        if known.is_none() {
            return Ok(None);
        }
        let own = SocketAddr::new(from.ip(), port);
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(json(&announced.heard(id, own, Instant::now()))))
    }
}

/// How many connections each address has.
type Counts = Arc<Mutex<BTreeMap<IpAddr, usize>>>;

/// One connection of an address, counted as long as this lives.
struct Seat {
    counts: Counts,
    from: IpAddr,
}

impl Seat {
    fn take(counts: &Counts, from: IpAddr) -> Option<Self> {
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(from).or_default();
        if *count >= MAX_CONNECTIONS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Self {
            counts: Arc::clone(counts),
            from,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.from);
            }
        }
    }
}

fn json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn plain(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *answer.status_mut() = status;
    answer
}
