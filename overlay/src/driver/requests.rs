//! Requests to members and from members.
//!
//! ```text
//!   request ── connected ─────────────────────────────► sent ──► answer, failure or timeout
//!      │ not connected                                    ▲
//!      ▼                                                  │ connected
//!   waiting ──► dial ── not reached ──► find ──► dial ────┘
//!      │                                 │ nobody knows, or not reached again
//!      └── time over ──► unreachable ◄───┘
//! ```
//!
//! A node that is connected to nobody has nobody to ask: its requests wait until it is, or their time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use aerie_types::PeerId;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use libp2p::request_response::{self, InboundRequestId, OutboundFailure, OutboundRequestId, ResponseChannel};
use tokio::sync::oneshot;

use super::Driver;
use crate::behaviour::RequestsEvent;
use crate::config::{MAX_UNANSWERED, MAX_WAITING, MAX_WAITING_PER_PEER};
use crate::error::RequestError;
use crate::handle::{Event, Protocol};
use crate::peer::{from_libp2p, to_libp2p};
use crate::stats::Counters;

type Reply = oneshot::Sender<Result<Vec<u8>, RequestError>>;

const REFUSED: &str = "one side refused the other's credential";

/// The caller's answer to a member's request; `None` if it dropped the request.
pub(super) struct CallersAnswer {
    protocol: Protocol,
    channel: ResponseChannel<Vec<u8>>,
    bytes: Option<Vec<u8>>,
}

#[derive(Default)]
pub(super) struct Requests {
    sent: BTreeMap<(Protocol, OutboundRequestId), Reply>,
    waiting: BTreeMap<PeerId, Vec<Waiting>>,
    searched: BTreeSet<PeerId>,
    received: BTreeSet<(Protocol, InboundRequestId)>,
    in_flight: BTreeMap<PeerId, usize>,
    pub(super) answers: FuturesUnordered<BoxFuture<'static, CallersAnswer>>,
}

impl Requests {
    /// Whether no request waits for a connection to its member.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

struct Waiting {
    protocol: Protocol,
    bytes: Vec<u8>,
    reply: Reply,
    deadline: Instant,
}

impl Requests {
    /// Whether a request to or from the member is under way.
    pub(super) fn in_flight(&self, peer: PeerId) -> bool {
        self.in_flight.contains_key(&peer)
    }

    fn begin(&mut self, peer: PeerId) {
        *self.in_flight.entry(peer).or_default() += 1;
    }

    fn end(&mut self, peer: PeerId) {
        if let Some(count) = self.in_flight.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&peer);
            }
        }
    }
}

impl Driver {
    pub(super) fn request(&mut self, to: PeerId, protocol: Protocol, bytes: Vec<u8>, reply: Reply) {
        if to == self.local {
            let _ = reply.send(Err(RequestError::ToSelf));
            return;
        }
        if self.live.contains_key(&to) {
            self.send(to, protocol, bytes, reply);
            return;
        }
        let total: usize = self.requests.waiting.values().map(Vec::len).sum();
        let queue = self.requests.waiting.entry(to).or_default();
        if queue.len() >= MAX_WAITING_PER_PEER || total >= MAX_WAITING {
            Counters::add(&self.counters().dropped);
            let _ = reply.send(Err(RequestError::Busy));
            return;
        }
        let now = Instant::now();
        queue.push(Waiting {
            protocol,
            bytes,
            reply,
            deadline: now + self.config.request_timeout,
        });
        self.seek(to, now);
    }

    /// Sets out to reach a member for which requests wait. A pause after a failure does not hold them up, but a member
    /// that was not reached a moment ago is asked for in the network first.
    fn seek(&mut self, peer: PeerId, now: Instant) {
        if self.dials.is_dialling(peer) || self.requests.searched.contains(&peer) {
            return;
        }
        if self.book.is_refused(peer, now) {
            self.give_up(peer, REFUSED);
            return;
        }
        let known = self.book.get(peer).is_some_and(|entry| !entry.addrs.is_empty());
        if known && !self.book.is_resting(peer, now) {
            self.dial(peer, now);
        } else {
            self.search(peer);
        }
    }

    /// Asks the network for the member. While there is nobody to ask, its requests wait for that.
    fn search(&mut self, peer: PeerId) {
        if self.find(peer) {
            self.requests.searched.insert(peer);
        }
    }

    /// Somebody new is connected or known: sets out again for whom requests wait.
    pub(super) fn seek_waiting(&mut self, now: Instant) {
        for peer in self.requests.waiting.keys().copied().collect::<Vec<_>>() {
            self.seek(peer, now);
        }
    }

    /// A look-up of a member's addresses ended.
    pub(super) fn found(&mut self, peer: PeerId) {
        if self.requests.waiting.contains_key(&peer) {
            self.dial(peer, Instant::now());
        } else {
            self.requests.searched.remove(&peer);
        }
    }

    /// A dial reached nobody.
    pub(super) fn not_reached(&mut self, peer: PeerId, refused: bool) {
        if !self.requests.waiting.contains_key(&peer) {
            return;
        }
        if refused {
            self.give_up(peer, REFUSED);
        } else if self.requests.searched.contains(&peer) {
            self.give_up(peer, "no address of it answers, directly or through a relay");
        } else {
            self.search(peer);
        }
    }

    fn give_up(&mut self, peer: PeerId, why: &str) {
        self.requests.searched.remove(&peer);
        for waiting in self.requests.waiting.remove(&peer).unwrap_or_default() {
            Counters::add(&self.counters().requests_failed);
            let _ = waiting.reply.send(Err(RequestError::Unreachable(why.to_owned())));
        }
    }

    /// A member is connected: sends what waited for it.
    pub(super) fn flush_waiting(&mut self, peer: PeerId) {
        self.requests.searched.remove(&peer);
        for waiting in self.requests.waiting.remove(&peer).unwrap_or_default() {
            self.send(peer, waiting.protocol, waiting.bytes, waiting.reply);
        }
    }

    pub(super) fn expire_waiting(&mut self, now: Instant) {
        let mut expired = Vec::new();
        self.requests.waiting.retain(|_, queue| {
            expired.extend(queue.extract_if(.., |waiting| waiting.deadline <= now));
            !queue.is_empty()
        });
        let waiting = &self.requests.waiting;
        self.requests.searched.retain(|peer| waiting.contains_key(peer));
        for waiting in expired {
            Counters::add(&self.counters().requests_failed);
            let why = "no address of it answered in time".to_owned();
            let _ = waiting.reply.send(Err(RequestError::Unreachable(why)));
        }
    }

    fn send(&mut self, to: PeerId, protocol: Protocol, bytes: Vec<u8>, reply: Reply) {
        Counters::add(&self.counters().requests_sent);
        let id = self
            .swarm
            .behaviour_mut()
            .requests(protocol)
            .send_request(&to_libp2p(to), bytes);
        self.requests.begin(to);
        self.requests.sent.insert((protocol, id), reply);
    }

    pub(super) fn on_requests(&mut self, protocol: Protocol, event: RequestsEvent) {
        match event {
            request_response::Event::Message { peer, message, .. } => {
                let Some(peer) = from_libp2p(&peer) else { return };
                match message {
                    request_response::Message::Request {
                        request_id,
                        request,
                        channel,
                    } => self.on_request(peer, (protocol, request_id), request, channel),
                    request_response::Message::Response { request_id, response } => {
                        self.finish(peer, (protocol, request_id), Ok(response));
                    }
                }
            }
            request_response::Event::OutboundFailure {
                peer,
                request_id,
                error,
                ..
            } => {
                let Some(peer) = from_libp2p(&peer) else { return };
                let error = match error {
                    OutboundFailure::DialFailure => RequestError::Unreachable("it has just gone".to_owned()),
                    OutboundFailure::Timeout => RequestError::Timeout,
                    OutboundFailure::ConnectionClosed => RequestError::ConnectionClosed,
                    OutboundFailure::UnsupportedProtocols => RequestError::Unsupported,
                    OutboundFailure::Io(error) => RequestError::NoAnswer(error.to_string()),
                };
                self.finish(peer, (protocol, request_id), Err(error));
            }
            request_response::Event::InboundFailure {
                peer,
                request_id,
                error,
                ..
            } => {
                tracing::debug!(%peer, %request_id, %error, "a member's request failed");
                self.answered(&peer, (protocol, request_id));
            }
            request_response::Event::ResponseSent { peer, request_id, .. } => {
                self.answered(&peer, (protocol, request_id));
            }
        }
    }

    fn finish(
        &mut self,
        peer: PeerId,
        id: (Protocol, OutboundRequestId),
        result: Result<Vec<u8>, RequestError>,
    ) {
        self.requests.end(peer);
        if result.is_err() {
            Counters::add(&self.counters().requests_failed);
        }
        if let Some(reply) = self.requests.sent.remove(&id) {
            let _ = reply.send(result);
        }
    }

    fn on_request(
        &mut self,
        from: PeerId,
        id: (Protocol, InboundRequestId),
        bytes: Vec<u8>,
        channel: ResponseChannel<Vec<u8>>,
    ) {
        let (protocol, _) = id;
        if self.requests.answers.len() >= MAX_UNANSWERED {
            Counters::add(&self.counters().dropped);
            return;
        }
        let (reply, answer) = oneshot::channel();
        let event = Event::Request {
            from,
            protocol,
            bytes,
            reply,
        };
        if self.offer(event) {
            Counters::add(&self.counters().requests_received);
            self.requests.begin(from);
            self.requests.received.insert(id);
            let wait = async move {
                CallersAnswer {
                    protocol,
                    channel,
                    bytes: answer.await.ok(),
                }
            };
            self.requests.answers.push(wait.boxed());
        }
    }

    fn answered(&mut self, peer: &libp2p::PeerId, id: (Protocol, InboundRequestId)) {
        if self.requests.received.remove(&id)
            && let Some(peer) = from_libp2p(peer)
        {
            self.requests.end(peer);
        }
    }

    pub(super) fn send_answer(&mut self, answer: CallersAnswer) {
        if let Some(bytes) = answer.bytes {
            // An asker that has gone needs no answer.
            let _ = self
                .swarm
                .behaviour_mut()
                .requests(answer.protocol)
                .send_response(answer.channel, bytes);
        }
    }
}
