//! Asks others for images.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aerie_cluster_proto::description::Image;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

use super::stall::Stalling;
use super::wire::Ask;
use super::{Plain, Transport};
use crate::error::BadManifest;
use crate::limits::{CONNECT, MAX_ANSWER, MAX_CHUNKS, MAX_MANIFEST, MAX_PEERS, SENDING, STALL};
use crate::manifest::{Manifest, ManifestId};
use crate::store::ImageInfo;
use crate::swarm::Bitfield;
use crate::{Digest, Error};

/// Connections to one source that wait for their next use.
const MAX_IDLE: usize = 4;

/// How long an answer that is no chunk may take.
const ANSWER: Duration = Duration::from_secs(30);

/// What came of asking for a chunk.
#[derive(Debug)]
pub(crate) enum Got {
    Chunk(Vec<u8>),
    Absent,
    Busy,
    Broken(String),
}

type Idle = BTreeMap<SocketAddr, Vec<SendRequest<Empty<Bytes>>>>;

/// Asks others for images, over connections that are used again.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    idle: Arc<Mutex<Idle>>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new(Arc::new(Plain))
    }
}

impl Client {
    /// Over such connections.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self {
            transport,
            idle: Arc::default(),
        }
    }

    /// What a repository knows of an image.
    ///
    /// # Errors
    /// [`Error::NoImage`] or [`Error::Ask`].
    pub async fn find(&self, at: SocketAddr, image: &Image) -> Result<ImageInfo, Error> {
        let ask = Ask::Image(image.clone());
        let bytes = self.small(at, "an image", Method::GET, &ask, MAX_ANSWER).await?;
        let bytes = bytes.ok_or_else(|| Error::NoImage {
            image: image.clone(),
            place: at.to_string(),
        })?;
        serde_json::from_slice(&bytes).map_err(|error| failed(at, "an image", error.to_string()))
    }

    /// A manifest, which is proved to be the one that is asked for.
    ///
    /// # Errors
    /// [`Error::Manifest`] or [`Error::Ask`].
    pub async fn manifest(&self, at: SocketAddr, id: ManifestId) -> Result<Manifest, Error> {
        let what = "a manifest";
        let bytes = self
            .small(at, what, Method::GET, &Ask::Manifest(id), MAX_MANIFEST)
            .await?;
        let bytes = bytes.ok_or_else(|| failed(at, what, "it is not there".to_owned()))?;
        let bad = |why| Error::Manifest {
            from: at.to_string(),
            why,
        };
        if Digest::of(&bytes) != id.0 {
            return Err(bad(BadManifest::Other));
        }
        Manifest::decode(&bytes).map_err(bad)
    }

    /// Which of an image's so many chunks somebody has. `None` if they do not know the image.
    ///
    /// # Errors
    /// [`Error::Ask`].
    pub async fn have(&self, at: SocketAddr, id: ManifestId, chunks: u32) -> Result<Option<Bitfield>, Error> {
        let (what, limit) = ("its chunks", (MAX_CHUNKS / 8) as usize);
        let Some(bytes) = self.small(at, what, Method::GET, &Ask::Have(id), limit).await? else {
            return Ok(None);
        };
        let have = Bitfield::from_bytes(&bytes, chunks);
        have.map(Some)
            .ok_or_else(|| failed(at, what, "it answers for another image".to_owned()))
    }

    /// Says that an image's chunks can be had here, at a port of this host's, and asks who else has some. With port 0 it
    /// only asks.
    ///
    /// # Errors
    /// [`Error::Ask`].
    pub async fn announce(
        &self,
        at: SocketAddr,
        id: ManifestId,
        port: u16,
    ) -> Result<Vec<SocketAddr>, Error> {
        let what = "other hosts";
        let ask = Ask::Announce(id, port);
        let bytes = self.small(at, what, Method::POST, &ask, MAX_ANSWER).await?;
        let mut hosts: Vec<SocketAddr> = serde_json::from_slice(&bytes.unwrap_or_else(|| b"[]".to_vec()))
            .map_err(|error| failed(at, what, error.to_string()))?;
        hosts.truncate(MAX_PEERS);
        Ok(hosts)
    }

    /// A chunk of so many bytes, not compared with anything. `moved` is called when some came.
    pub(crate) async fn chunk(
        &self,
        at: SocketAddr,
        id: ManifestId,
        chunk: u32,
        length: usize,
        moved: &mut (dyn FnMut() + Send),
    ) -> Got {
        match self
            .ask(at, Method::GET, &Ask::Chunk(id, chunk), length, moved)
            .await
        {
            Ok((StatusCode::OK, bytes)) => Got::Chunk(bytes),
            Ok((StatusCode::SERVICE_UNAVAILABLE, _)) => Got::Busy,
            Ok((StatusCode::NOT_FOUND, _)) => Got::Absent,
            Ok((status, _)) => Got::Broken(format!("it answers {status}")),
            Err(why) => Got::Broken(why),
        }
    }

    /// The body of an answer; `None` if there is nothing of what was asked for.
    async fn small(
        &self,
        at: SocketAddr,
        what: &'static str,
        method: Method,
        ask: &Ask,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut moved = || ();
        let answer = self.ask(at, method, ask, limit, &mut moved);
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok((StatusCode::OK, bytes))) => Ok(Some(bytes)),
            Ok(Ok((StatusCode::NOT_FOUND, _))) => Ok(None),
            Ok(Ok((_, bytes))) => {
                let text = String::from_utf8_lossy(&bytes);
                Err(failed(
                    at,
                    what,
                    text.chars().take(300).flat_map(char::escape_debug).collect(),
                ))
            }
            Ok(Err(why)) => Err(failed(at, what, why)),
            Err(_) => Err(failed(
                at,
                what,
                format!("no answer came in {} s", ANSWER.as_secs()),
            )),
        }
    }

    async fn ask(
        &self,
        at: SocketAddr,
        method: Method,
        ask: &Ask,
        limit: usize,
        moved: &mut (dyn FnMut() + Send),
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let request = || {
            Request::builder()
                .method(method.clone())
                .uri(ask.to_string())
                .header(HOST, at.to_string())
                .body(Empty::new())
                .map_err(|error| error.to_string())
        };
        let (mut sender, mut answer) = (None, None);
        // One that waited may have been closed by the other side.
        if let Some(mut idle) = self.take(at)
            && idle.ready().await.is_ok()
            && let Ok(response) = idle.send_request(request()?).await
        {
            (sender, answer) = (Some(idle), Some(response));
        }
        let (sender, answer) = match (sender, answer) {
            (Some(sender), Some(answer)) => (sender, answer),
            _ => {
                let mut sender = self.connect(at).await?;
                let answer = sender
                    .send_request(request()?)
                    .await
                    .map_err(|error| shown(&error))?;
                (sender, answer)
            }
        };
        let status = answer.status();
        let limit = if status == StatusCode::OK {
            limit
        } else {
            MAX_ANSWER
        };
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| shown(&error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > limit {
                return Err(format!("its answer has more than {limit} bytes"));
            }
            bytes.extend_from_slice(&data);
            moved();
        }
        self.put_back(at, sender);
        Ok((status, bytes))
    }

    async fn connect(&self, at: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, String> {
        let stream = tokio::time::timeout(CONNECT, self.transport.connect(at))
            .await
            .map_err(|_| format!("it does not answer within {} s", CONNECT.as_secs()))?
            .map_err(|error| error.to_string())?;
        let io = TokioIo::new(Stalling::new(stream, STALL, SENDING));
        let (sender, connection) = http1::handshake(io).await.map_err(|error| shown(&error))?;
        // It ends with the sender, or when it stands still.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%at, %error, "a connection for images ended");
            }
        });
        Ok(sender)
    }

    fn take(&self, at: SocketAddr) -> Option<SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = idle.get_mut(&at)?;
        while let Some(sender) = waiting.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        idle.remove(&at);
        None
    }

    fn put_back(&self, at: SocketAddr, sender: SendRequest<Empty<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() > MAX_PEERS {
            idle.retain(|_, waiting| {
                waiting.retain(|sender| !sender.is_closed());
                !waiting.is_empty()
            });
        }
        let waiting = idle.entry(at).or_default();
        if waiting.len() < MAX_IDLE && !sender.is_closed() {
            waiting.push(sender);
        }
    }
}

fn failed(at: SocketAddr, what: &'static str, why: String) -> Error {
    Error::Ask {
        source_name: at.to_string(),
        what,
        why,
    }
}

/// With the reason beneath it, which hyper leaves to the asker.
fn shown(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
