//! UPnP Internet Gateway Device, as far as a port needs it.
//!
//! ```text
//!  search (UDP, to the router alone) ──► its description (HTTP) ──► services ──► the first with an outside address
//!                                                                                     │
//!      the entry of the port: free, ours, or another host's ◄─────────────────────────┘
//! ```
//!
//! The router of the default route is asked and nobody else, and nothing is fetched from anybody else: what answers a
//! question to all is any host of the network. What comes is bounded in size and time.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use self::messages::{Action, Answer, Control, Fault, Url};
use super::PortProtocol;

mod messages;

/// Where a router listens for searches.
pub(super) const SSDP: u16 = 1900;
/// How long it has to answer one, which is repeated so often meanwhile: datagrams are lost.
const SEARCH: Duration = Duration::from_secs(2);
const SEARCHES: u32 = 3;
/// The longest answer to a search in bytes.
const MAX_ANSWER: usize = 2048;
/// How long the router has to answer a question by HTTP, and the longest document in bytes; descriptions have ten to
/// thirty thousand.
const QUESTION: Duration = Duration::from_secs(3);
const MAX_DOCUMENT: usize = 256 * 1024;
/// How many other ports are tried where the one that was asked for is another host's.
const OTHER_PORTS: usize = 3;
/// The lowest port that is asked for by chance.
const FIRST_PORT: u16 = 20_000;
/// The router's refusals: no entry of that port, the port is another host's, it knows no such question, and it leads
/// ports for ever alone.
const NO_ENTRY: u32 = 714;
const CONFLICT: u32 = 718;
const INVALID_ACTION: u32 = 401;
const ONLY_FOR_EVER: u32 = 725;

/// A router's service that leads ports.
#[derive(Debug)]
pub(super) struct Gateway {
    control: Control,
}

/// A port that leads to this host.
#[derive(Debug)]
pub(super) struct Port {
    gateway: Gateway,
    protocol: PortProtocol,
    inside: SocketAddrV4,
    seconds: u32,
    outside: SocketAddr,
}

impl Port {
    /// Asks the router, at the place where it listens for searches, for a port that leads to `inside` for so long. The
    /// same port outside as inside is preferred.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn ask(
        router: SocketAddrV4,
        protocol: PortProtocol,
        inside: SocketAddrV4,
        lifetime: Duration,
    ) -> Result<Self, String> {
        let (gateway, ip) = Gateway::find(router, *inside.ip()).await?;
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let mut port = Self {
            gateway,
            protocol,
            inside,
            seconds,
            outside: (ip, inside.port()).into(),
        };
        let others = (0..OTHER_PORTS).map(|_| rand::random_range(FIRST_PORT..=u16::MAX));
        let mut taken = Err("it has no port left".to_owned());
        for outside in [inside.port()].into_iter().chain(others) {
            port.outside.set_port(outside);
            taken = port.take().await;
            match &taken {
                Ok(Taken::Mine) => return Ok(port),
                Ok(Taken::Others) => {}
                Err(_) => break,
            }
        }
        Err(match taken {
            Ok(_) => "its ports are other hosts'".to_owned(),
            Err(why) => why,
        })
    }

    /// The port's address on the router's outside.
    pub(super) fn outside(&self) -> SocketAddr {
        self.outside
    }

    /// Keeps the port for as long again. The router may have another address by now.
    ///
    /// # Errors
    /// Why it is not renewed.
    pub(super) async fn renew(&mut self) -> Result<(), String> {
        match self.take().await? {
            Taken::Mine => {}
            Taken::Others => return Err(format!("port {} is another host's by now", self.outside.port())),
        }
        self.outside.set_ip(self.gateway.external_ip().await?);
        Ok(())
    }

    /// Gives the port back, if it is still this host's.
    ///
    /// # Errors
    /// Why the router did not take it.
    pub(super) async fn release(self) -> Result<(), String> {
        let (protocol, outside) = (self.protocol, self.outside.port());
        if self.leads_to().await?.is_none_or(|client| client == self.inside) {
            let removed = self.gateway.ask(Action::Remove { protocol, outside }).await?;
            removed.map_err(|fault| fault.to_string())?;
        }
        Ok(())
    }

    /// Makes the port lead here, unless it leads to another host: some routers give it to whoever asks last.
    async fn take(&self) -> Result<Taken, String> {
        let (protocol, inside, seconds) = (self.protocol, self.inside, self.seconds);
        let outside = self.outside.port();
        if self.leads_to().await?.is_some_and(|client| client != inside) {
            return Ok(Taken::Others);
        }
        let add = Action::Add {
            protocol,
            outside,
            inside,
            seconds,
        };
        match self.gateway.ask(add).await? {
            Ok(_) => Ok(Taken::Mine),
            Err(fault) if fault.code == CONFLICT => Ok(Taken::Others),
            // What was not given back would lead to whoever has this host's address later.
            Err(fault) if fault.code == ONLY_FOR_EVER => Err("it leads ports for ever alone".to_owned()),
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// To whom the port leads now; `None` if to nobody, or if the router does not say.
    async fn leads_to(&self) -> Result<Option<SocketAddrV4>, String> {
        let (protocol, outside) = (self.protocol, self.outside.port());
        match self.gateway.ask(Action::Entry { protocol, outside }).await? {
            Ok(answer) => Ok(answer.client),
            Err(fault) if [NO_ENTRY, INVALID_ACTION].contains(&fault.code) => Ok(None),
            // It tells only its administrator, or not at all.
            Err(fault) => {
                tracing::debug!(%fault, outside, "the router does not say to whom a port leads");
                Ok(None)
            }
        }
    }
}

/// Whose a port is.
#[derive(Debug)]
enum Taken {
    Mine,
    Others,
}

impl Gateway {
    /// The first service of the router with an address of its outside, and that address.
    async fn find(router: SocketAddrV4, here: Ipv4Addr) -> Result<(Self, IpAddr), String> {
        let description = search(router, here).await?;
        let text = ask(Method::GET, &description, None).await?;
        let mut why = "it has no service that leads ports".to_owned();
        for control in messages::controls(&text, &description)? {
            let gateway = Self { control };
            match gateway.external_ip().await {
                Ok(ip) => return Ok((gateway, ip)),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    async fn external_ip(&self) -> Result<IpAddr, String> {
        let answer = self.ask(Action::ExternalIp).await?;
        let answer = answer.map_err(|fault| fault.to_string())?;
        let ip = answer.external_ip.filter(|ip| !ip.is_unspecified());
        ip.ok_or_else(|| "it has no address on its outside".to_owned())
    }

    async fn ask(&self, action: Action) -> Result<Result<Answer, Fault>, String> {
        let service = self.control.service;
        let body = (action.header(service), action.body(service));
        let text = ask(Method::POST, &self.control.url, Some(body)).await?;
        messages::answer(&text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it refuses: {} ({})", self.says, self.code)
    }
}

/// Asks the router where its description is.
async fn search(router: SocketAddrV4, here: Ipv4Addr) -> Result<Url, String> {
    let not_asked = |error: std::io::Error| format!("it cannot be asked: {error}");
    let socket = UdpSocket::bind((here, 0)).await.map_err(not_asked)?;
    let question = messages::search(*router.ip());
    let end = Instant::now() + SEARCH;
    let mut answer = vec![0; MAX_ANSWER];
    let mut why = "it does not answer a search".to_owned();
    for turn in 1..=SEARCHES {
        socket
            .send_to(question.as_bytes(), router)
            .await
            .map_err(not_asked)?;
        let until = end - SEARCH * (SEARCHES - turn) / SEARCHES;
        while let Ok(received) = timeout_at(until, socket.recv_from(&mut answer)).await {
            // A router that listens there no more says so by an error.
            let Ok((length, from)) = received else { break };
            // It may answer from another port.
            if from.ip() != IpAddr::V4(*router.ip()) {
                continue;
            }
            match messages::found(&answer[..length], *router.ip()) {
                Ok(url) => return Ok(url),
                Err(wrong) => why = wrong,
            }
        }
    }
    Err(why)
}

/// One request on a connection of its own; with the value of `SOAPACTION` and a body, one to a service. The body of the
/// reply.
async fn ask(method: Method, url: &Url, action: Option<(String, String)>) -> Result<Bytes, String> {
    let asked = timeout(QUESTION, ask_at_leisure(method, url, action)).await;
    asked.map_err(|_| "it did not answer in time".to_owned())?
}

async fn ask_at_leisure(
    method: Method,
    url: &Url,
    action: Option<(String, String)>,
) -> Result<Bytes, String> {
    let no_http = |error: hyper::Error| format!("it speaks no HTTP: {error}");
    let stream = TcpStream::connect(url.at)
        .await
        .map_err(|error| format!("nobody is at {}: {error}", url.at))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(no_http)?;
    // Dropped with this call, which ends the connection whatever the router does.
    let mut connections = JoinSet::new();
    connections.spawn(connection);

    let mut request = Request::builder()
        .method(method)
        .uri(&url.path)
        .header(HOST, url.at.to_string());
    let is_question = action.is_some();
    let mut body = String::new();
    if let Some((header, text)) = action {
        request = request
            .header(CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
            .header("SOAPACTION", header);
        body = text;
    }
    let request = request
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| format!("it cannot be asked: {error}"))?;
    let reply = sender.send_request(request).await.map_err(no_http)?;
    let status = reply.status();
    // A service says by this status that it refuses, and by the body why.
    if status != StatusCode::OK && !(is_question && status == StatusCode::INTERNAL_SERVER_ERROR) {
        return Err(format!("it answers {status}"));
    }
    let body = http_body_util::Limited::new(reply.into_body(), MAX_DOCUMENT);
    let body = body
        .collect()
        .await
        .map_err(|error| format!("its reply cannot be read: {error}"))?;
    Ok(body.to_bytes())
}

#[cfg(test)]
mod tests;
