//! How creators and members of contexts speak to a broker: blocking HTTPS that trusts one certificate.
//!
//! The broker is known by the fingerprint of its certificate and by nothing else: neither names nor dates count, so
//! that a guest whose clock is wrong, or that reaches the broker by another address than the next guest, works.
//! Nothing is sent before the fingerprint was seen to be right. A member proves its context's key in the same
//! handshake; a creator sends the broker's token.
//!
//! One thread and no runtime: the agent in a guest is small.

mod error;
mod pin;

use std::time::Duration;

use aerie_context_proto::wire::{
    CreateQuery, Created, ErrorAnswer, ExitAnswer, INSTANCE_HEADER, MAX_ANSWER_BYTES, MAX_WAIT_SECS, Members,
    Quantity, Registered, Report,
};
use aerie_context_proto::{
    BrokerFile, Contact, ContextId, DataName, Exit, Fingerprint, Instance, MemberName, SetName, Status,
    Token, UserData, View, check_url,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, TcpConnector};

pub use error::Error;
use pin::PinnedTls;

/// How long a request may take, beside what it waits for news.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take until the broker accepts a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A broker, as somebody reaches it.
pub struct Client {
    agent: ureq::Agent,
    tls: PinnedTls,
    url: String,
    fingerprint: Fingerprint,
    token: Option<Token>,
}

/// The form of a cluster document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As Nimbus has it.
    Xml,
    /// The same in JSON.
    Json,
}

struct Ask<'a> {
    method: Method,
    path: String,
    instance: Option<&'a Instance>,
    content_type: &'static str,
    body: Vec<u8>,
    wait: Duration,
}

impl<'a> Ask<'a> {
    fn new(method: Method, path: String) -> Self {
        Self {
            method,
            path,
            instance: None,
            content_type: "application/json",
            body: Vec::new(),
            wait: Duration::ZERO,
        }
    }

    fn by(mut self, instance: &'a Instance) -> Self {
        self.instance = Some(instance);
        self
    }

    fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        self.body = serde_json::to_vec(body).map_err(|error| Error::Request(error.to_string()))?;
        Ok(self)
    }
}

impl Client {
    /// As somebody who has the broker's token.
    ///
    /// # Errors
    /// [`Error::Url`] or [`Error::Tls`].
    pub fn creator(file: &BrokerFile) -> Result<Self, Error> {
        let tls = PinnedTls::new(file.fingerprint, None)?;
        Self::new(&file.url, file.fingerprint, tls, Some(file.token.clone()))
    }

    /// As a member of a context.
    ///
    /// # Errors
    /// [`Error::Url`] or [`Error::Tls`].
    pub fn member(contact: &Contact) -> Result<Self, Error> {
        let tls = PinnedTls::new(contact.fingerprint, Some((&contact.certificate, &contact.secret)))?;
        Self::new(&contact.broker_url, contact.fingerprint, tls, None)
    }

    fn new(url: &str, fingerprint: Fingerprint, tls: PinnedTls, token: Option<Token>) -> Result<Self, Error> {
        check_url(url).map_err(|source| Error::Url {
            url: url.to_owned(),
            source,
        })?;
        let config = ureq::Agent::config_builder()
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .max_idle_connections(0)
            .user_agent(concat!("aerie/", env!("CARGO_PKG_VERSION")))
            .build();
        let connector = TcpConnector::default().chain(tls.clone());
        Ok(Self {
            agent: ureq::Agent::with_parts(config, connector, DefaultResolver::default()),
            tls,
            url: url.trim_end_matches('/').to_owned(),
            fingerprint,
            token,
        })
    }

    /// Creates a context.
    ///
    /// # Errors
    /// [`Error`]
    pub fn create(&self, document: &str, form: Form, query: &CreateQuery) -> Result<Created, Error> {
        let mut path = format!("/ctx/?open={}", query.open);
        let numbers = [
            ("report_secs", query.report_secs),
            ("exit_secs", query.exit_secs),
            ("attempts", query.attempts.map(u64::from)),
            ("retry_secs", query.retry_secs),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={value}"));
            }
        }
        let mut ask = Ask::new(Method::POST, path);
        ask.content_type = match form {
            Form::Xml => "application/xml",
            Form::Json => "application/json",
        };
        ask.body = document.as_bytes().to_vec();
        self.answer(&ask)
    }

    /// How far all contexts are, without their members.
    ///
    /// # Errors
    /// [`Error`]
    pub fn list(&self) -> Result<Vec<Status>, Error> {
        self.answer(&Ask::new(Method::GET, "/ctx/".to_owned()))
    }

    /// How far a context is.
    ///
    /// # Errors
    /// [`Error`]
    pub fn status(&self, id: ContextId) -> Result<Status, Error> {
        self.answer(&Ask::new(Method::GET, format!("/ctx/{id}")))
    }

    /// The user-data of a machine of a set, and of one member of it where that is decided.
    ///
    /// # Errors
    /// [`Error`]
    pub fn user_data(
        &self,
        id: ContextId,
        set: &SetName,
        member: Option<&MemberName>,
    ) -> Result<UserData, Error> {
        let query = member.map_or_else(String::new, |member| format!("?member={member}"));
        self.answer(&Ask::new(
            Method::GET,
            format!("/ctx/{id}/user-data/{set}{query}"),
        ))
    }

    /// Says that nothing more is added.
    ///
    /// # Errors
    /// [`Error`]
    pub fn close(&self, id: ContextId) -> Result<(), Error> {
        self.done(&Ask::new(Method::POST, format!("/ctx/{id}/close")))
    }

    /// Adds a data blob.
    ///
    /// # Errors
    /// [`Error`]
    pub fn inject(&self, id: ContextId, name: &DataName, content: &str) -> Result<(), Error> {
        let mut ask = Ask::new(Method::PUT, format!("/ctx/{id}/data/{name}"));
        ask.content_type = "text/plain; charset=utf-8";
        ask.body = content.as_bytes().to_vec();
        self.done(&ask)
    }

    /// Expects so many members of a set in all.
    ///
    /// # Errors
    /// [`Error`]
    pub fn expect(&self, id: ContextId, set: &SetName, quantity: u32) -> Result<Vec<MemberName>, Error> {
        let ask = Ask::new(Method::PUT, format!("/ctx/{id}/sets/{set}")).json(&Quantity { quantity })?;
        Ok(self.answer::<Members>(&ask)?.members)
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// [`Error`]
    pub fn remove(&self, id: ContextId, member: &MemberName) -> Result<(), Error> {
        self.done(&Ask::new(Method::DELETE, format!("/ctx/{id}/members/{member}")))
    }

    /// Ends a context.
    ///
    /// # Errors
    /// [`Error`]
    pub fn destroy(&self, id: ContextId) -> Result<(), Error> {
        self.done(&Ask::new(Method::DELETE, format!("/ctx/{id}")))
    }

    /// Reports a member.
    ///
    /// # Errors
    /// [`Error`]
    pub fn register(&self, id: ContextId, instance: &Instance, report: &Report) -> Result<MemberName, Error> {
        let ask = Ask::new(Method::POST, format!("/ctx/{id}/members"));
        let ask = ask.by(instance).json(report)?;
        Ok(self.answer::<Registered>(&ask)?.member)
    }

    /// What a member that has the version `after` has not been given yet; `None` if that does not come within `wait`.
    ///
    /// # Errors
    /// [`Error`]
    pub fn retrieve(
        &self,
        id: ContextId,
        instance: &Instance,
        member: &MemberName,
        after: u32,
        wait: Duration,
    ) -> Result<Option<View>, Error> {
        let wait = wait.min(Duration::from_secs(MAX_WAIT_SECS));
        let path = format!("/ctx/{id}/members/{member}?after={after}&wait={}", wait.as_secs());
        let mut ask = Ask::new(Method::GET, path).by(instance);
        ask.wait = wait;
        let body = self.send(&ask)?;
        if body.is_empty() {
            return Ok(None);
        }
        self.parse(&body).map(Some)
    }

    /// Sends a member's exit report.
    ///
    /// # Errors
    /// [`Error`]
    pub fn exit(
        &self,
        id: ContextId,
        instance: &Instance,
        member: &MemberName,
        exit: &Exit,
    ) -> Result<ExitAnswer, Error> {
        let ask = Ask::new(Method::POST, format!("/ctx/{id}/members/{member}/exit"));
        self.answer(&ask.by(instance).json(exit)?)
    }

    /// Leaves the context.
    ///
    /// # Errors
    /// [`Error`]
    pub fn leave(&self, id: ContextId, instance: &Instance, member: &MemberName) -> Result<(), Error> {
        let ask = Ask::new(Method::DELETE, format!("/ctx/{id}/members/{member}"));
        self.done(&ask.by(instance))
    }

    fn answer<T: DeserializeOwned>(&self, ask: &Ask<'_>) -> Result<T, Error> {
        self.parse(&self.send(ask)?)
    }

    fn done(&self, ask: &Ask<'_>) -> Result<(), Error> {
        self.send(ask).map(drop)
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body).map_err(|error| Error::BadAnswer {
            url: self.url.clone(),
            why: error.to_string(),
        })
    }

    fn send(&self, ask: &Ask<'_>) -> Result<Vec<u8>, Error> {
        let failed = |error: ureq::Error| {
            if self.tls.was_mismatched() {
                return Error::WrongBroker {
                    url: self.url.clone(),
                    fingerprint: self.fingerprint,
                };
            }
            Error::Unreachable {
                url: self.url.clone(),
                why: error.to_string(),
            }
        };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{}{}", self.url, ask.path))
            .header("accept", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.expose()));
        }
        if let Some(instance) = ask.instance {
            request = request.header(INSTANCE_HEADER, instance.expose().as_str());
        }
        if !ask.body.is_empty() {
            request = request.header("content-type", ask.content_type);
        }
        let bad = |error: ureq::http::Error| Error::Request(error.to_string());
        let answered = if ask.body.is_empty() {
            self.run(request.body(()).map_err(bad)?, ask.wait)
        } else {
            self.run(request.body(ask.body.as_slice()).map_err(bad)?, ask.wait)
        };
        let mut response = answered.map_err(failed)?;
        let status = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES as u64)
            .read_to_vec()
            .map_err(failed)?;
        if status.is_success() {
            return Ok(body);
        }
        let told: ErrorAnswer = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorAnswer {
            code: "http".to_owned(),
            message: format!("it answers with HTTP {status}"),
        });
        Err(Error::Refused {
            status: status.as_u16(),
            code: told.code,
            message: told.message,
        })
    }

    fn run(
        &self,
        request: Request<impl ureq::AsSendBody>,
        wait: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let timeout = Some(wait + TIMEOUT);
        let request = self
            .agent
            .configure_request(request)
            .timeout_global(timeout)
            .build();
        self.agent.run(request)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}
