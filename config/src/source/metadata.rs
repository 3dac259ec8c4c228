//! User-data from metadata services: EC2's, and Nimbus's.
//!
//! EC2's protocol has two versions. The second wants a token, got by a `PUT`, with every request:
//!
//! ```text
//!  PUT /latest/api/token ──► token ──► GET /latest/user-data (with the token) ──► user-data, or 404: none
//!        │
//!        └─ refused or no answer ──► v1 allowed? ──► GET /latest/user-data ──► user-data, 401, 404
//! ```
//!
//! Nimbus leaves its server's address in a file, and serves as EC2's first version did.
//!
//! Plain HTTP without proxy, redirect or cookie: the service is on the link, and anything else is not the service.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{Answer, Ec2, Read};
use crate::bundle::{Bundle, MAX_USER_DATA_BYTES, read_bounded};
use crate::error::Error;

const TOKEN_PATH: &str = "/latest/api/token";
const USER_DATA_PATH: &str = "/latest/user-data";

/// The path that Nimbus's servers had before they knew `latest`.
const OLD_USER_DATA_PATH: &str = "/2007-01-19/user-data";

const TTL_HEADER: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");

/// How long a token is wanted for: it is used at once.
const TOKEN_SECONDS: HeaderValue = HeaderValue::from_static("60");

/// The longest token accepted in bytes; EC2's have 56.
const MAX_TOKEN_BYTES: usize = 1024;

/// How much of Nimbus's file is read in bytes.
const MAX_URL_BYTES: usize = 1024;

/// Asks EC2's service.
pub(super) async fn ec2(config: &Ec2, budget: Duration) -> Answer {
    let service = match Service::at(&config.base) {
        Ok(service) => service,
        Err(reason) => return Answer::Absent(reason),
    };
    match timeout(budget, service.ec2(config.allow_v1, budget / 2)).await {
        Ok(answer) => answer,
        Err(_) => Answer::Absent(no_answer(budget)),
    }
}

/// Asks the server that Nimbus's file names.
pub(super) async fn nimbus(file: &Path, budget: Duration) -> Answer {
    let read = std::fs::File::open(file).and_then(|file| read_bounded(file, MAX_URL_BYTES));
    let text = match read {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Answer::Absent("this is no Nimbus machine: there is no such file".to_owned());
        }
        Err(error) => return Answer::Refused(Error::io(format!("read {}", file.display()))(error)),
    };
    let base = text.as_deref().and_then(|text| std::str::from_utf8(text).ok());
    let base = base
        .and_then(|text| text.lines().next())
        .map(str::trim)
        .unwrap_or_default();
    let service = match Service::at(base) {
        Ok(service) => service,
        Err(reason) => return Answer::Absent(format!("{} names no server: {reason}", file.display())),
    };
    match timeout(budget, service.nimbus()).await {
        Ok(answer) => answer,
        Err(_) => Answer::Absent(no_answer(budget)),
    }
}

/// A metadata service.
struct Service {
    host: String,
    port: u16,
    /// What the base address has before the service's own paths.
    prefix: String,
}

/// A whole reply.
struct Reply {
    status: StatusCode,
    body: Zeroizing<Vec<u8>>,
}

/// Why there is no reply.
enum Silence {
    /// Nobody is there, or it speaks no HTTP.
    Nobody(String),
    /// The body is beyond the limit.
    TooLong,
}

impl Service {
    /// The service at `http://host[:port][/prefix]`.
    fn at(base: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "'{}' is not an http:// address",
                base.escape_debug().take(100).collect::<String>()
            )
        };
        let uri: Uri = base.parse().map_err(|_| refuse())?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        if uri.scheme_str() != Some("http") || host.is_empty() || uri.query().is_some() {
            return Err(refuse());
        }
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    async fn ec2(&self, allow_v1: bool, token_budget: Duration) -> Answer {
        let ask = self.ask(
            Method::PUT,
            TOKEN_PATH,
            Some((TTL_HEADER, TOKEN_SECONDS)),
            MAX_TOKEN_BYTES,
        );
        let why = match timeout(token_budget, ask).await {
            Ok(Ok(reply)) if reply.status == StatusCode::OK => {
                match HeaderValue::from_bytes(reply.body.trim_ascii()) {
                    Ok(mut token) if !token.is_empty() => {
                        token.set_sensitive(true);
                        return self.user_data(USER_DATA_PATH, Some((TOKEN_HEADER, token))).await;
                    }
                    _ => "its token is not usable".to_owned(),
                }
            }
            Ok(Ok(reply)) => format!("it answered the request for a token with {}", reply.status),
            Ok(Err(Silence::Nobody(reason))) => return Answer::Absent(reason),
            Ok(Err(Silence::TooLong)) => "its token is too long".to_owned(),
            Err(_) => format!(
                "{} to the request for a token; in a container, raise the instance's metadata hop limit to 2",
                no_answer(token_budget)
            ),
        };
        if allow_v1 {
            return self.user_data(USER_DATA_PATH, None).await;
        }
        Answer::Absent(format!(
            "{why}; the older IMDSv1 is not allowed here: allow it if this cloud has no other"
        ))
    }

    async fn nimbus(&self) -> Answer {
        match self
            .ask(Method::GET, USER_DATA_PATH, None, MAX_USER_DATA_BYTES)
            .await
        {
            Ok(reply) if reply.status == StatusCode::NOT_FOUND => {
                self.user_data(OLD_USER_DATA_PATH, None).await
            }
            other => taken(other),
        }
    }

    async fn user_data(&self, path: &str, header: Option<(HeaderName, HeaderValue)>) -> Answer {
        taken(self.ask(Method::GET, path, header, MAX_USER_DATA_BYTES).await)
    }

    /// One request on a connection of its own.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        header: Option<(HeaderName, HeaderValue)>,
        limit: usize,
    ) -> Result<Reply, Silence> {
        let nobody = |what: &str| {
            let what = what.to_owned();
            move |error: &dyn std::error::Error| Silence::Nobody(format!("{what}: {error}"))
        };
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| nobody("nobody is there")(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| nobody("it speaks no HTTP")(&error))?;
        // Dropped with this call, which ends the connection whatever the service does.
        let mut connections = JoinSet::new();
        connections.spawn(connection);

        let host = if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(HOST, host);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| nobody("it cannot be asked")(&error))?;
        let reply = sender
            .send_request(request)
            .await
            .map_err(|error| nobody("it speaks no HTTP")(&error))?;
        let status = reply.status();
        let mut stream = reply.into_body();
        let mut body = Zeroizing::new(Vec::new());
        while let Some(frame) = stream.frame().await {
            let frame = frame.map_err(|error| nobody("its reply breaks off")(&error))?;
            if let Some(data) = frame.data_ref() {
                if body.len() + data.len() > limit {
                    return Err(Silence::TooLong);
                }
                body.extend_from_slice(data);
            }
        }
        Ok(Reply { status, body })
    }
}

fn taken(reply: Result<Reply, Silence>) -> Answer {
    match reply {
        Err(Silence::Nobody(reason)) => Answer::Absent(reason),
        Err(Silence::TooLong) => Answer::Refused(Error::UserDataTooLarge {
            size: MAX_USER_DATA_BYTES + 1,
        }),
        Ok(reply) if reply.status == StatusCode::NOT_FOUND => {
            Answer::Absent("this instance was started without user-data".to_owned())
        }
        Ok(reply) if reply.status == StatusCode::UNAUTHORIZED => {
            Answer::Absent("the service wants an IMDSv2 token".to_owned())
        }
        Ok(reply) if reply.status != StatusCode::OK => {
            Answer::Absent(format!("the service answered {}", reply.status))
        }
        Ok(reply) if reply.body.trim_ascii().is_empty() => {
            Answer::Absent("this instance was started without user-data".to_owned())
        }
        Ok(reply) => match Bundle::from_user_data(&reply.body) {
            Ok(bundle) => Answer::Read(Read {
                bundle,
                warnings: Vec::new(),
            }),
            Err(error) => Answer::Refused(error),
        },
    }
}

fn no_answer(budget: Duration) -> String {
    format!("no answer within {:.1} s", budget.as_secs_f32())
}
