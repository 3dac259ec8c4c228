//! The service on one bridge. It hears what comes in by the bridge and nothing else: neither the host's own programs
//! nor whoever sends to the address from elsewhere.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::Rng as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{Guests, Request, Response, TOKEN_BYTES, Tokens};
use crate::error::METADATA;
use crate::{Error, InterfaceName};

/// Connections at a time, of all guests of a network and of one of them.
const MAX_CONNECTIONS: usize = 128;
const MAX_OF_ONE: usize = 8;

/// Connections that wait to be accepted: what comes beyond is tried again by the guest's kernel.
const BACKLOG: i32 = 64;

/// Bytes of a request's head, and its lines.
const MAX_HEAD: usize = 8192;
const MAX_HEADERS: usize = 32;

/// How long a connection may take, from its begin to its end, and the head of its request.
const CONNECTION: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(5);

/// How long is waited where the system has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(100);

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

struct Service {
    guests: watch::Receiver<Arc<Guests>>,
    tokens: Mutex<Tokens>,
    began: Instant,
}

/// Serves a network's guests, whoever they are at the time, until the task is ended. The bridge has the address.
pub(crate) fn serve(
    bridge: &InterfaceName,
    guests: watch::Receiver<Arc<Guests>>,
) -> Result<JoinHandle<()>, Error> {
    let listener = listen(bridge).map_err(|source| Error::Serve {
        what: "metadata",
        interface: bridge.clone(),
        source,
    })?;
    let service = Arc::new(Service {
        guests,
        tokens: Mutex::default(),
        began: Instant::now(),
    });
    Ok(tokio::spawn(accept(listener, service, bridge.clone())))
}

fn listen(bridge: &InterfaceName) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(bridge.as_str().as_bytes()))?;
    socket.set_ttl_v4(1)?;
    socket.bind(&SocketAddrV4::new(METADATA, 80).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts connections. Those that are open end with this task.
async fn accept(listener: TcpListener, service: Arc<Service>, bridge: InterfaceName) {
    let mut open = JoinSet::new();
    let counts = Counts::default();
    loop {
        tokio::select! {
            // Ends first, so that their room is there for whoever comes.
            biased;
            Some(ended) = open.join_next() => if let Err(error) = ended {
                tracing::error!(%bridge, %error, "an answer with metadata failed");
            },
            accepted = listener.accept(), if open.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, from)) => {
                    let IpAddr::V4(from) = from.ip() else { continue };
                    if let Some(seat) = Seat::take(&counts, from) {
                        open.spawn(connection(stream, seat, Arc::clone(&service)));
                    }
                }
                Err(error) => {
                    tracing::debug!(%bridge, %error, "no connection for metadata was accepted");
                    tokio::time::sleep(NO_ROOM).await;
                }
            },
        }
    }
}

/// How many connections each guest has.
type Counts = Arc<Mutex<BTreeMap<Ipv4Addr, usize>>>;

/// One connection of a guest, counted as long as this lives.
struct Seat {
    counts: Counts,
    from: Ipv4Addr,
}

impl Seat {
    fn take(counts: &Counts, from: Ipv4Addr) -> Option<Self> {
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(from).or_default();
        if *count >= MAX_OF_ONE {
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

async fn connection(stream: TcpStream, seat: Seat, service: Arc<Service>) {
    let answer = service_fn(|request| {
        let response = service.answer(&request, seat.from);
        async move { Ok::<_, Infallible>(response) }
    });
    let work = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    // A guest that breaks off, or is slow, is its own affair.
    let _ = tokio::time::timeout(CONNECTION, work).await;
}

impl Service {
    fn answer(&self, request: &hyper::Request<Incoming>, from: Ipv4Addr) -> hyper::Response<Full<Bytes>> {
        let header = |name: &HeaderName| request.headers().get(name)?.to_str().ok();
        let asked = Request {
            method: request.method().as_str(),
            path: request.uri().path(),
            token: header(&TOKEN),
            ttl: header(&TTL),
            forwarded: request.headers().contains_key(&FORWARDED),
        };
        let mut random = [0; TOKEN_BYTES];
        rand::rng().fill_bytes(&mut random);
        let guests = Arc::clone(&self.guests.borrow());
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let said = super::answer(asked, from, &guests, &mut tokens, random, self.began.elapsed());
        drop(tokens);
        respond(said)
    }
}

fn respond(said: Response) -> hyper::Response<Full<Bytes>> {
    let mut response = hyper::Response::new(Full::new(Bytes::from(said.body)));
    *response.status_mut() =
        hyper::StatusCode::from_u16(said.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(said.kind));
    if let Some(seconds) = said.ttl {
        headers.insert(TTL, HeaderValue::from(seconds));
    }
    response
}
