//! How members learn of each other: they tell each other whom they are connected to.
//!
//! A node asks the first members that it meets, and from then on somebody at random: soon again after it learned of
//! anybody new, since the grid is changing, and ever more rarely while nothing is new. The question names by
//! fingerprint whom the asker is connected to, so that in a quiet grid the answer is empty.
//!
//! When a member is back that was dialled in vain, it may be the network that is whole again, and with it others are
//! back. The node then dials those nearby that it misses, whatever pause they are in, and asks the one that is back,
//! since others may have joined on its side meanwhile. Each node finds out by itself, and those that it dials find out
//! by that, so that the neighbours of a healed grid are connected within seconds.
//!
//! The same protocol hands a renewed credential to the connected members.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_types::PeerId;
use libp2p::Multiaddr;
use libp2p::request_response::{self, ResponseChannel};
use serde::{Deserialize, Serialize};

use super::dialer::LOST_SPREAD;
use super::{Driver, Link};
use crate::admission::Verdict;
use crate::behaviour::RequestsEvent;
use crate::config::MAX_ADDRS;
use crate::handle::Event;
use crate::peer::{from_libp2p, ip_of, to_libp2p};
use crate::stats::Counters;

/// The pause between questions when the grid is changing, and when nothing has been new for long.
const SHORTEST: Duration = Duration::from_millis(400);
const LONGEST: Duration = Duration::from_secs(300);

/// Members named in one answer.
const MAX_NAMED: usize = 64;

/// Members asked at once by the clock, and those asked as soon as they are met.
const ASKED: usize = 2;
const ASKED_FIRST: usize = 3;

/// How often a member that is back is taken for a sign that others are: dials and a question a few times a minute,
/// however many come back.
const RETURNED_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Mesh {
    next: Instant,
    /// From when on a member that is back is taken for that sign.
    returned: Instant,
    pause: Duration,
    /// Whether a member has named the others since this node was last alone.
    heard: bool,
}

#[derive(Serialize, Deserialize)]
enum Ask {
    /// Whom are you connected to, other than these?
    Peers { have: Vec<u64> },
    /// My credential is new.
    Renewed { der: Vec<u8> },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Peers(Vec<Named>),
    /// The verdict on a renewed credential.
    Judged(u8),
}

#[derive(Serialize, Deserialize)]
struct Named {
    peer: PeerId,
    /// Multiaddresses in their binary form.
    addrs: Vec<Vec<u8>>,
}

impl Mesh {
    pub(super) fn new() -> Self {
        Self {
            next: Instant::now(),
            returned: Instant::now(),
            pause: SHORTEST,
            heard: false,
        }
    }

    pub(super) fn has_heard(&self) -> bool {
        self.heard
    }

    /// The node is connected to nobody any more.
    pub(super) fn alone(&mut self) {
        self.heard = false;
    }

    fn something_new(&mut self) {
        self.pause = SHORTEST;
        self.next = self.next.min(Instant::now() + SHORTEST);
    }
}

impl Driver {
    /// A member has been met: asks it whom it knows, if it is one of the first.
    pub(super) fn meet(&mut self, peer: PeerId) {
        if self.live.len() <= ASKED_FIRST {
            self.mesh.something_new();
            self.ask_peers(peer);
        }
        self.seek_waiting(Instant::now());
    }

    /// A member that was dialled in vain is back, and others may be.
    pub(super) fn welcome_back(&mut self, peer: PeerId, now: Instant) {
        if now < self.mesh.returned {
            return;
        }
        self.mesh.returned = now + RETURNED_EVERY;
        for near in self.nearby() {
            let wait = self.wait_for(near, LOST_SPREAD);
            self.book.may_be_back(near, now, wait);
        }
        self.wake();
        // Of the first ones everybody is asked anyway.
        if self.live.len() > ASKED_FIRST {
            self.ask_peers(peer);
        }
    }

    /// Asks somebody at random when it is time to.
    pub(super) fn gossip_peers(&mut self, now: Instant) {
        if now < self.mesh.next || self.live.is_empty() {
            return;
        }
        self.mesh.next = now + self.mesh.pause.mul_f64(0.75 + rand::random::<f64>() / 2.0);
        self.mesh.pause = (self.mesh.pause * 2).min(LONGEST);
        let mut members: Vec<_> = self
            .live
            .keys()
            .map(|peer| (rand::random::<u32>(), *peer))
            .collect();
        members.sort_unstable();
        for (_, peer) in members.into_iter().take(ASKED) {
            self.ask_peers(peer);
        }
    }

    fn ask_peers(&mut self, peer: PeerId) {
        let have = self.live.keys().map(fingerprint).collect();
        self.ask_mesh(peer, &Ask::Peers { have });
    }

    /// Tells every connected member that the own credential is new.
    pub(super) fn announce_renewal(&mut self) {
        let ask = Ask::Renewed {
            der: self.gate.own().to_vec(),
        };
        for peer in self.live.keys().copied().collect::<Vec<_>>() {
            self.ask_mesh(peer, &ask);
        }
    }

    fn ask_mesh(&mut self, peer: PeerId, ask: &Ask) {
        if let Ok(bytes) = postcard::to_stdvec(ask) {
            self.swarm
                .behaviour_mut()
                .mesh
                .send_request(&to_libp2p(peer), bytes);
        }
    }

    pub(super) fn on_mesh(&mut self, event: RequestsEvent) {
        let request_response::Event::Message { peer, message, .. } = event else {
            return;
        };
        let Some(from) = from_libp2p(&peer) else { return };
        match message {
            request_response::Message::Request { request, channel, .. } => {
                match postcard::from_bytes(&request) {
                    Ok(Ask::Peers { have }) => {
                        let answer = Answer::Peers(self.named(from, &have));
                        self.answer_mesh(channel, &answer);
                    }
                    Ok(Ask::Renewed { der }) => {
                        let verdict = self.take_renewal(from, &der);
                        self.answer_mesh(channel, &Answer::Judged(verdict as u8));
                    }
                    Err(_) => Counters::add(&self.counters().malformed),
                }
            }
            request_response::Message::Response { response, .. } => match postcard::from_bytes(&response) {
                Ok(Answer::Peers(named)) => self.learn_named(from, named),
                Ok(Answer::Judged(verdict)) => {
                    if let Some(reason) = Verdict::reason(verdict) {
                        tracing::warn!(member = %from.short(), reason, "the renewed credential was not taken");
                    }
                }
                Err(_) => Counters::add(&self.counters().malformed),
            },
        }
    }

    fn answer_mesh(&mut self, channel: ResponseChannel<Vec<u8>>, answer: &Answer) {
        if let Ok(bytes) = postcard::to_stdvec(answer) {
            // An asker that has gone needs no answer.
            let _ = self.swarm.behaviour_mut().mesh.send_response(channel, bytes);
        }
    }

    fn named(&self, asker: PeerId, have: &[u64]) -> Vec<Named> {
        // Each asker is told others than the next one where there are more than fit.
        let (before, after) = (self.live.range(..asker), self.live.range(asker..));
        after
            .chain(before)
            .map(|(peer, _)| peer)
            .filter(|peer| **peer != asker && !have.contains(&fingerprint(peer)))
            .filter_map(|peer| {
                let addrs: Vec<_> = self
                    .book
                    .get(*peer)?
                    .addrs
                    .iter()
                    .map(Multiaddr::to_vec)
                    .collect();
                (!addrs.is_empty()).then_some(Named { peer: *peer, addrs })
            })
            .take(MAX_NAMED)
            .collect()
    }

    fn learn_named(&mut self, from: PeerId, named: Vec<Named>) {
        let locally = self.is_local(from);
        let mut news = false;
        for Named { peer, addrs } in named.into_iter().take(MAX_NAMED) {
            for addr in addrs.into_iter().take(MAX_ADDRS) {
                match Multiaddr::try_from(addr) {
                    Ok(addr) => news |= self.learn(peer, addr, locally),
                    Err(_) => Counters::add(&self.counters().malformed),
                }
            }
        }
        if news {
            self.mesh.something_new();
            let now = Instant::now();
            self.seek_waiting(now);
            self.dial_due(now);
        }
        self.mesh.heard = true;
        self.begin_deferred(Instant::now());
    }

    /// Whether a member is on this machine, as far as its direct connections tell.
    pub(super) fn is_local(&self, peer: PeerId) -> bool {
        let loops = |link: &Link| !link.relayed && ip_of(&link.remote).is_some_and(|ip| ip.is_loopback());
        self.live
            .get(&peer)
            .is_some_and(|live| live.connections.values().any(loops))
    }

    fn take_renewal(&mut self, from: PeerId, der: &[u8]) -> Verdict {
        let judged = self.gate.judge(der, from);
        let verdict = Verdict::of(&judged);
        match judged {
            Ok(credential) => {
                self.gate.remember(Arc::clone(&credential));
                if let Some(live) = self.live.get_mut(&from)
                    && credential.serial > live.credential.serial
                {
                    live.credential = Arc::clone(&credential);
                    self.report(Event::MemberRenewed {
                        peer: from,
                        credential,
                    });
                }
            }
            Err(reason) => {
                self.counters().refused(&reason);
                self.refused(None, Some(from), reason);
            }
        }
        verdict
    }
}

/// Ids are random keys already: their first bytes tell members apart well enough to save an answer.
fn fingerprint(peer: &PeerId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = peer.0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
