//! UPnP Internet Gateway Device, as far as a port needs it.
//!
//! ```text
//!  search (UDP) ──► its description (HTTP) ──► services ──► the first with an outside address
//!                                                                │
//!      the entry of the port: free, ours, or another host's ◄────┘
//! ```
//!
//! The router of the default route is believed and nobody else, and nothing is fetched from anybody else: what answers a
//! question to all is any host of the network. What comes is bounded in size and time.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use self::messages::{Action, Answer, Control, Fault, Url};
use super::{NotRenewed, PortProtocol, is_outside};

mod messages;

/// Where a router listens for searches.
pub(super) const SSDP: u16 = 1900;
/// Where all are asked; the router alone is believed.
const ALL: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
/// How long it has to answer one, which is repeated so often meanwhile: datagrams are lost.
const SEARCH: Duration = Duration::from_millis(if cfg!(test) { 400 } else { 2000 });
const SEARCHES: u32 = 3;
/// After the first answer, further ones are waited for so long: a router may be more than one device.
const GATHER: Duration = Duration::from_millis(150);
const MAX_DEVICES: usize = 4;
/// The longest answer to a search in bytes.
const MAX_ANSWER: usize = 2048;
/// How long the router has to answer a question by HTTP, and the longest document in bytes; descriptions have ten to
/// thirty thousand.
const QUESTION: Duration = Duration::from_millis(if cfg!(test) { 600 } else { 3000 });
const MAX_DOCUMENT: usize = 256 * 1024;
/// The router's refusals that another port does not change: it knows no such question, this host may not ask, and it
/// leads ports for ever alone.
const INVALID_ACTION: u32 = 401;
const NOT_AUTHORIZED: u32 = 606;
const ONLY_FOR_EVER: u32 = 725;
/// Nobody has the port.
const NO_ENTRY: u32 = 714;
/// A router is asked no more to whom a port leads after it did not answer so often in a row.
const MUTE: u8 = 2;
/// The port is another host's, or some routers say so of this host's own.
const CONFLICT: u32 = 718;

/// A router's service that leads ports.
#[derive(Debug)]
pub(super) struct Gateway {
    control: Control,
    /// This host's address towards it.
    here: Ipv4Addr,
}

/// A port that leads to this host.
#[derive(Debug)]
pub(super) struct Port {
    gateway: Gateway,
    protocol: PortProtocol,
    inside: SocketAddrV4,
    seconds: u32,
    outside: SocketAddr,
    /// How often in a row the router did not say to whom a port leads.
    mute: u8,
    /// The router said last that the port leads here.
    kept: bool,
}

impl Port {
    /// Asks the router, at the place where it listens for searches, for a port that leads to `inside` for so long: for
    /// the first of `outside` that does not lead to another host.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn ask(
        router: SocketAddrV4,
        protocol: PortProtocol,
        inside: SocketAddrV4,
        outside: &[u16],
        lifetime: Duration,
    ) -> Result<Self, String> {
        let (gateway, ip) = Gateway::find(router, *inside.ip()).await?;
        let mut port = Self {
            gateway,
            protocol,
            inside,
            seconds: u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX),
            outside: (ip, 0).into(),
            mute: 0,
            kept: false,
        };
        let mut why = "it has no port left".to_owned();
        for outside in outside {
            port.outside.set_port(*outside);
            match port.take().await? {
                Ok(()) => return Ok(port),
                Err(fault) => {
                    why = fault.to_string();
                    let another = ![INVALID_ACTION, NOT_AUTHORIZED, ONLY_FOR_EVER]
                        .map(Some)
                        .contains(&fault.code);
                    if !another {
                        break;
                    }
                }
            }
        }
        Err(why)
    }

    /// The port's address on the router's outside.
    pub(super) fn outside(&self) -> SocketAddr {
        self.outside
    }

    /// Keeps the port for as long again. The router may have another address by now.
    ///
    /// # Errors
    /// Why it is not renewed.
    pub(super) async fn renew(&mut self) -> Result<(), NotRenewed> {
        let taken = self.take().await.map_err(NotRenewed::NoAnswer)?;
        taken.map_err(|fault| NotRenewed::Lost(fault.to_string()))?;
        let ip = self.gateway.external_ip().await;
        self.outside.set_ip(ip.map_err(NotRenewed::NoAnswer)?);
        Ok(())
    }

    /// Gives the port back, if it is still this host's.
    ///
    /// # Errors
    /// Why the router did not take it.
    pub(super) async fn release(mut self) -> Result<(), String> {
        let leads = self.leads_to().await;
        if leads == Leads::Here || leads == Leads::Unknown && self.kept {
            self.remove().await?.map_err(|fault| fault.to_string())?;
        }
        Ok(())
    }

    async fn remove(&self) -> Result<Result<Answer, Fault>, String> {
        let (protocol, outside) = (self.protocol, self.outside.port());
        self.gateway.ask(Action::Remove { protocol, outside }).await
    }

    /// Makes the port lead here, unless it leads to another host: some routers give it to whoever asks last. The inner
    /// error is why this port is not to be had.
    async fn take(&mut self) -> Result<Result<(), Fault>, String> {
        let leads = self.leads_to().await;
        self.kept = false;
        if leads == Leads::Elsewhere {
            return Ok(Err(Fault {
                code: Some(CONFLICT),
                says: "the port is another host's".to_owned(),
            }));
        }
        let add = Action::Add {
            protocol: self.protocol,
            outside: self.outside.port(),
            inside: self.inside,
            seconds: self.seconds,
        };
        let mut added = match self.gateway.ask(add).await {
            Ok(added) => added,
            // It may have done it, and be slow to say so.
            Err(_) if self.leads_to().await == Leads::Here => Ok(Answer::default()),
            Err(why) => return Err(why),
        };
        if leads == Leads::Here && added.as_ref().is_err_and(|fault| fault.code == Some(CONFLICT)) {
            // Its own entry is in its way.
            let _ = self.remove().await?;
            added = self.gateway.ask(add).await?;
        }
        self.kept = added.is_ok();
        Ok(added.map(drop).map_err(|mut fault| {
            if fault.code == Some(ONLY_FOR_EVER) {
                // What was not given back would lead to whoever has this host's address later.
                "it leads ports for ever alone".clone_into(&mut fault.says);
            }
            fault
        }))
    }

    /// To whom the port leads now. Some routers know no such question, or end the connection at it.
    async fn leads_to(&mut self) -> Leads {
        if self.mute >= MUTE {
            return Leads::Unknown;
        }
        let (protocol, outside) = (self.protocol, self.outside.port());
        match self.gateway.ask(Action::Entry { protocol, outside }).await {
            Ok(Ok(answer)) => {
                self.mute = 0;
                let here = |client: &messages::Client| {
                    client.ip.parse() == Ok(*self.inside.ip()) && client.port == Some(self.inside.port())
                };
                match &answer.client {
                    Some(client) if here(client) => Leads::Here,
                    Some(_) => Leads::Elsewhere,
                    None => Leads::Unknown,
                }
            }
            Ok(Err(fault)) if fault.code == Some(NO_ENTRY) => Leads::Nobody,
            Ok(Err(fault)) => {
                tracing::debug!(%fault, outside, "the router does not say to whom a port leads");
                self.mute = MUTE;
                Leads::Unknown
            }
            Err(why) => {
                tracing::debug!(why, outside, "the router does not say to whom a port leads");
                self.mute += 1;
                Leads::Unknown
            }
        }
    }
}

/// To whom a port leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    Nobody,
    Here,
    Elsewhere,
    Unknown,
}

impl Gateway {
    /// The first service of the router with an address of its outside, and that address.
    async fn find(router: SocketAddrV4, here: Ipv4Addr) -> Result<(Self, IpAddr), String> {
        let mut why = "it has no service that leads ports".to_owned();
        for description in search(router, here).await? {
            let text = ask(Method::GET, here, &description, None).await;
            let controls = text.and_then(|(text, _)| messages::controls(&text, &description));
            let controls = controls.unwrap_or_else(|wrong| {
                why = wrong;
                Vec::new()
            });
            for control in controls {
                let gateway = Self { control, here };
                match gateway.external_ip().await {
                    Ok(ip) => return Ok((gateway, ip)),
                    Err(wrong) => why = wrong,
                }
            }
        }
        Err(why)
    }

    async fn external_ip(&self) -> Result<IpAddr, String> {
        let answer = self.ask(Action::ExternalIp).await?;
        let answer = answer.map_err(|fault| fault.to_string())?;
        let ip = answer.external_ip.filter(|ip| is_outside(*ip));
        ip.ok_or_else(|| "it has no address on its outside".to_owned())
    }

    async fn ask(&self, action: Action) -> Result<Result<Answer, Fault>, String> {
        let service = self.control.service;
        let body = (action.header(service), action.body(service));
        let (text, is_refusal) = ask(Method::POST, self.here, &self.control.url, Some(body)).await?;
        messages::answer(&text, is_refusal)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it refuses: {}", self.says)?;
        self.code.map_or(Ok(()), |code| write!(f, " ({code})"))
    }
}

/// Asks the router where its descriptions are. Some answer only what all are asked.
async fn search(router: SocketAddrV4, here: Ipv4Addr) -> Result<Vec<Url>, String> {
    let not_asked = |error: io::Error| format!("it cannot be asked: {error}");
    let socket = UdpSocket::bind((here, 0)).await.map_err(not_asked)?;
    SockRef::from(&socket)
        .set_multicast_if_v4(&here)
        .map_err(not_asked)?;
    let [question, to_all] = [*router.ip(), ALL].map(messages::search);
    let end = Instant::now() + SEARCH;
    let (mut found, mut why) = (Vec::new(), "it does not answer a search".to_owned());
    for turn in 1..=SEARCHES {
        if !found.is_empty() {
            break;
        }
        socket
            .send_to(question.as_bytes(), router)
            .await
            .map_err(not_asked)?;
        if router.port() == SSDP {
            // A host without such a route asks the router all the same.
            let _ = socket.send_to(to_all.as_bytes(), (ALL, SSDP)).await;
        }
        let mut until = end - SEARCH * (SEARCHES - turn) / SEARCHES;
        let mut answer = [0; MAX_ANSWER];
        while let Ok(received) = timeout_at(until, socket.recv_from(&mut answer)).await {
            let Ok((length, from)) = received else {
                sleep_until(until).await;
                break;
            };
            // It may answer from another port.
            if from.ip() != IpAddr::V4(*router.ip()) {
                continue;
            }
            match messages::found(&answer[..length], *router.ip()) {
                Ok(url) if found.is_empty() => {
                    until = Instant::now() + GATHER;
                    found.push(url);
                }
                Ok(url) if found.len() < MAX_DEVICES && !found.contains(&url) => found.push(url),
                Ok(_) => {}
                Err(wrong) => why = wrong,
            }
        }
    }
    if found.is_empty() { Err(why) } else { Ok(found) }
}

/// One request on a connection of its own; with the value of `SOAPACTION` and a body, one to a service. The body of the
/// reply, and whether its status says that the service refuses.
async fn ask(
    method: Method,
    here: Ipv4Addr,
    url: &Url,
    action: Option<(String, String)>,
) -> Result<(Bytes, bool), String> {
    let asked = timeout(QUESTION, ask_at_leisure(method, here, url, action)).await;
    asked.map_err(|_| "it did not answer in time".to_owned())?
}

async fn ask_at_leisure(
    method: Method,
    here: Ipv4Addr,
    url: &Url,
    action: Option<(String, String)>,
) -> Result<(Bytes, bool), String> {
    let no_http = |error: hyper::Error| format!("it speaks no HTTP: {error}");
    // The router leads a port to the address that asks for it.
    let connect = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((here, 0).into())?;
        socket.connect(url.at.into()).await
    };
    let stream = connect
        .await
        .map_err(|error| format!("nobody is at {}: {error}", url.at))?;
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(no_http)?;
    // Dropped with this call, which ends the connection whatever the router does.
    let mut connections = JoinSet::new();
    connections.spawn(connection);

    let mut request = Request::builder()
        .method(method)
        .uri(&url.path)
        .header(HOST, url.at.to_string())
        .header(CONNECTION, "close");
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
    let is_refusal = is_question && status == StatusCode::INTERNAL_SERVER_ERROR;
    if status != StatusCode::OK && !is_refusal {
        return Err(format!("it answers {status}"));
    }
    let body = Limited::new(reply.into_body(), MAX_DOCUMENT).collect().await;
    let body = body.map_err(|error| format!("its reply cannot be read: {error}"))?;
    Ok((body.to_bytes(), is_refusal))
}

#[cfg(test)]
mod tests;
