//! What a guest is told about itself over HTTP, as EC2 and OpenStack tell it.
//!
//! ```text
//!  request ──► no guest has this address ──► 404
//!     │
//!     ├─ X-Forwarded-For ──► 403
//!     │
//!     ├─ PUT /latest/api/token ──► time to live from 1 s to 21,600 s? else 400 ──► token
//!     │
//!     └─ GET ──► token: live? else 401 ─┬─► the tree of its facts ──► a text, a list of names, or 404
//!               no token: v1 allowed? ──┘
//! ```
//!
//! The asker is known by the bridge and by its address; the filters see to it that nobody else has it. A token is good
//! for the guest that asked for it, and for this process: after a restart all are void, and clients ask again. Answers
//! travel one hop, so that what a guest lends its network to, such as containers behind a NAT, does not hear them.
//!
//! OpenStack's paths have no tokens of their own. They are open to who has one of EC2's, or may do without.

mod serve;
mod tree;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use aerie_cluster_node::Mac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ipnet::Ipv4Net;
use zeroize::Zeroizing;

use crate::plan::{Facts, Plan};
use crate::{NetworkId, PortId};

pub(crate) use serve::serve;

/// Tokens of one guest: it may have many programs, and the oldest goes when there are more.
const MAX_TOKENS: usize = 64;

/// The longest path that is looked at in bytes.
const MAX_PATH: usize = 1024;

const TOKEN_PATH: [&str; 3] = ["latest", "api", "token"];

/// How long a token may live, in seconds.
const TOKEN_SECONDS: std::ops::RangeInclusive<u64> = 1..=21_600;

/// Random bytes of a token.
pub(crate) const TOKEN_BYTES: usize = 32;

/// Versions of EC2's service whose clients find what they look for here.
const VERSIONS: [&str; 9] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2008-02-01",
    "2009-04-04",
    "2016-09-02",
    "2018-09-24",
    "2021-03-23",
    "latest",
];

/// One guest on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) id: PortId,
    pub(crate) mac: Mac,
    pub(crate) subnet: Ipv4Net,
    pub(crate) mtu: u16,
    pub(crate) facts: Arc<Facts>,
}

/// The guests of one network by address.
pub(crate) type Guests = BTreeMap<Ipv4Addr, Guest>;

/// The guests of a network of a plan.
pub(crate) fn guests(plan: &Plan, id: &NetworkId) -> Guests {
    let Some(network) = plan.networks.get(id) else {
        return Guests::new();
    };
    let guests = plan.ports_on(id).map(|(id, port)| {
        let guest = Guest {
            id: *id,
            mac: port.mac(id),
            subnet: network.subnet,
            mtu: network.mtu,
            facts: Arc::clone(&port.facts),
        };
        (port.address, guest)
    });
    guests.collect()
}

/// What is read of a request.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) token: Option<&'a str>,
    /// The wished time to live of a token.
    pub(crate) ttl: Option<&'a str>,
    /// Whether somebody passed it on.
    pub(crate) forwarded: bool,
}

/// An answer: HTTP's number, what the body is, and the body.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) body: Vec<u8>,
    /// How long a token lives in seconds, of an answer that is one.
    pub(crate) ttl: Option<u64>,
}

impl Response {
    fn refusal(status: u16, why: &str) -> Self {
        Self {
            status,
            kind: "text/plain",
            body: format!("{why}\n").into_bytes(),
            ttl: None,
        }
    }
}

/// The session tokens of one network's guests.
#[derive(Debug, Default)]
pub(crate) struct Tokens(BTreeMap<PortId, VecDeque<Token>>);

struct Token {
    text: Zeroizing<String>,
    /// On the caller's clock.
    until: Duration,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token(until {:?})", self.until)
    }
}

impl Tokens {
    fn make(&mut self, guest: PortId, random: [u8; TOKEN_BYTES], ttl: Duration, now: Duration) -> String {
        let own = self.0.entry(guest).or_default();
        own.retain(|token| token.until > now);
        if own.len() >= MAX_TOKENS {
            own.pop_front();
        }
        let text = URL_SAFE_NO_PAD.encode(random);
        own.push_back(Token {
            text: Zeroizing::new(text.clone()),
            until: now + ttl,
        });
        text
    }

    fn holds(&self, guest: PortId, text: &str, now: Duration) -> bool {
        let own = self.0.get(&guest).into_iter().flatten();
        // A guest that measures how long this takes learns about its own tokens alone.
        own.filter(|token| token.until > now)
            .any(|token| *token.text == text)
    }

    /// Forgets the tokens of guests that are gone.
    fn keep(&mut self, guests: &Guests) {
        self.0
            .retain(|id, _| guests.values().any(|guest| guest.id == *id));
    }
}

/// Answers a request from an address. `now` is any clock that only goes forward; `random` is used for a token at most.
pub(crate) fn answer(
    request: Request<'_>,
    from: Ipv4Addr,
    guests: &Guests,
    tokens: &mut Tokens,
    random: [u8; TOKEN_BYTES],
    now: Duration,
) -> Response {
    let Some(guest) = guests.get(&from) else {
        return Response::refusal(404, "no guest is known by this address");
    };
    // Whoever can make a proxy in the guest send requests does not get at its secrets by that.
    if request.forwarded {
        return Response::refusal(403, "requests that were passed on are not answered");
    }
    if request.path.len() > MAX_PATH {
        return Response::refusal(414, "no path here is so long");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts == TOKEN_PATH {
        return token(request, guest, guests, tokens, random, now);
    }
    if !matches!(request.method, "GET" | "HEAD") {
        return Response::refusal(405, "only GET and HEAD are answered here");
    }
    match request.token {
        Some(text) if tokens.holds(guest.id, text, now) => (),
        None if guest.facts.allow_v1 => (),
        _ => return Response::refusal(401, "PUT /latest/api/token first, and show the token"),
    }
    match find(&parts, from, guest) {
        Some((kind, body)) => Response {
            status: 200,
            kind,
            body,
            ttl: None,
        },
        None => Response::refusal(404, "there is nothing of this name"),
    }
}

fn token(
    request: Request<'_>,
    guest: &Guest,
    guests: &Guests,
    tokens: &mut Tokens,
    random: [u8; TOKEN_BYTES],
    now: Duration,
) -> Response {
    if request.method != "PUT" {
        return Response::refusal(405, "a token is got by PUT");
    }
    let ttl = request.ttl.and_then(|text| text.trim().parse().ok());
    let Some(seconds) = ttl.filter(|seconds| TOKEN_SECONDS.contains(seconds)) else {
        let why = "say by X-aws-ec2-metadata-token-ttl-seconds how long it is to live, 1 to 21600";
        return Response::refusal(400, why);
    };
    tokens.keep(guests);
    Response {
        status: 200,
        kind: "text/plain",
        body: tokens
            .make(guest.id, random, Duration::from_secs(seconds), now)
            .into_bytes(),
        ttl: Some(seconds),
    }
}

fn find(parts: &[&str], address: Ipv4Addr, guest: &Guest) -> Option<(&'static str, Vec<u8>)> {
    match parts {
        [] => Some(("text/plain", VERSIONS.join("\n").into_bytes())),
        ["openstack", rest @ ..] => tree::openstack(address, guest).find(rest),
        [version, rest @ ..] if VERSIONS.contains(version) => tree::ec2(address, guest).find(rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
