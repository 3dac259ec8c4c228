//! One peer: its path agent, its sessions and their timers.
//!
//! ```text
//!            packet, path known                response, credential good
//!   Quiet ────────────────────────► Initiating ────────────────────────────► Current (initiator)
//!     │                               │  ▲  └─90 s without─► Quiet                │  120 s old and sending
//!     │ init, credential good         │  └──────1, 1, 1, 5 s..─ again             └────────► Initiating
//!     ▼                               │ init from the peer with the lower id
//!   Next (not confirmed) ◄────────────┘
//!     └──first packet that opens──► Current (responder); the former Current becomes Previous, for packets in flight
//! ```
//!
//! Both sides may initiate at the same moment. The init of the member with the lower id stands: it ignores the
//! other's, and the other drops its own when it sees it.

use std::collections::VecDeque;
use std::time::Instant;

use aerie_types::{NodeName, PeerId, VirtualAddr};

use crate::handshake::{Context, Finished, Initiated};
use crate::limits::{
    FAST_TRIES, FIRST_RETRY, HANDSHAKES_BURST, HANDSHAKES_PER_PEER, KEEPALIVE, MAX_CHANGES, MAX_QUEUED,
    REJECT_AFTER, REKEY_ATTEMPT, REKEY_JITTER, REKEY_TIMEOUT, SOURCE_LOOKUPS,
};
use crate::path::{Agent, Mtu};
use crate::rate::TokenBucket;
use crate::session::Session;
use crate::status::PathKind;

/// A handshake that waits for its response.
pub(crate) struct Attempt {
    pub(crate) state: Initiated,
    pub(crate) index: u32,
    pub(crate) context: Context,
    /// When the first of its tries went out.
    pub(crate) began: Instant,
    pub(crate) retry_at: Instant,
    pub(crate) tries: u32,
}

pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) noise_public: Option<[u8; 32]>,
    pub(crate) name: Option<NodeName>,
    pub(crate) addrs: Vec<VirtualAddr>,
    pub(crate) agent: Agent,
    /// How long a datagram may be on the way in use.
    pub(crate) mtu: Mtu,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) next: Option<Session>,
    pub(crate) current: Option<Session>,
    pub(crate) previous: Option<Session>,
    /// Packets and control messages that wait for a session.
    pub(crate) queue: VecDeque<Vec<u8>>,
    /// A session is wanted: packets wait, or the current one is old.
    pub(crate) wants_session: bool,
    /// The newest timestamp of a genuine init, whether it was answered or not: none counts twice.
    pub(crate) newest_init: u64,
    pub(crate) keepalive_at: Option<Instant>,
    /// By when something must have come back, else the session is renewed.
    pub(crate) silence_at: Option<Instant>,
    /// The last inner packet in either direction.
    pub(crate) active: Instant,
    /// Since when there is no way to it, while one is wanted.
    pub(crate) pathless_since: Option<Instant>,
    /// When its way was another one, and which, the newest last.
    pub(crate) changes: VecDeque<(Instant, PathKind)>,
    pub(crate) handshaken: Option<Instant>,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
    /// Why the last handshake failed.
    pub(crate) refusal: Option<String>,
    pub(crate) lookups: TokenBucket,
    /// Of its handshake messages: what one member floods costs no other member anything.
    pub(crate) handshakes: TokenBucket,
}

/// In which of a peer's sessions an index was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Next,
    Current,
    Previous,
}

impl Peer {
    pub(crate) fn new(id: PeerId, agent: Agent, now: Instant) -> Self {
        Self {
            id,
            noise_public: None,
            name: None,
            addrs: Vec::new(),
            agent,
            mtu: Mtu::new(now),
            attempt: None,
            next: None,
            current: None,
            previous: None,
            queue: VecDeque::new(),
            wants_session: false,
            newest_init: 0,
            keepalive_at: None,
            silence_at: None,
            active: now,
            pathless_since: None,
            changes: VecDeque::new(),
            handshaken: None,
            tx_bytes: 0,
            rx_bytes: 0,
            refusal: None,
            lookups: TokenBucket::new(SOURCE_LOOKUPS.into(), SOURCE_LOOKUPS.into(), now),
            handshakes: TokenBucket::new(HANDSHAKES_PER_PEER.into(), HANDSHAKES_BURST.into(), now),
        }
    }

    pub(crate) fn slot_of(&self, index: u32) -> Option<Slot> {
        let is = |session: &Option<Session>| session.as_ref().is_some_and(|session| session.local == index);
        if is(&self.current) {
            Some(Slot::Current)
        } else if is(&self.next) {
            Some(Slot::Next)
        } else if is(&self.previous) {
            Some(Slot::Previous)
        } else {
            None
        }
    }

    pub(crate) fn session(&mut self, slot: Slot) -> Option<&mut Session> {
        match slot {
            Slot::Next => self.next.as_mut(),
            Slot::Current => self.current.as_mut(),
            Slot::Previous => self.previous.as_mut(),
        }
    }

    /// The session to seal with.
    pub(crate) fn sealing(&mut self, now: Instant) -> Option<&mut Session> {
        self.current.as_mut().filter(|session| session.is_alive(now))
    }

    /// Keeps a packet until there is a session. `false` if there is no room.
    pub(crate) fn keep(&mut self, packet: &[u8]) -> bool {
        self.wants_session = true;
        let room = self.queue.len() < MAX_QUEUED;
        if room {
            self.queue.push_back(packet.to_vec());
        }
        room
    }

    /// Notes that the way is another one now.
    pub(crate) fn changed(&mut self, path: PathKind, now: Instant) {
        if self.changes.len() == MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back((now, path));
    }

    /// Makes a finished session the current one. Returns the indices that are free now.
    pub(crate) fn install(&mut self, session: Session, now: Instant) -> Vec<u32> {
        let mut freed: Vec<u32> = self.previous.take().map(|old| old.local).into_iter().collect();
        freed.extend(self.next.take().map(|old| old.local));
        self.previous = self.current.replace(session);
        self.wants_session = false;
        self.handshaken = Some(now);
        self.refusal = None;
        self.silence_at = None;
        freed
    }

    /// The peer has used the session that it asked for: it is the current one now.
    pub(crate) fn confirm_next(&mut self, now: Instant) -> Vec<u32> {
        match self.next.take() {
            Some(next) => self.install(next, now),
            None => Vec::new(),
        }
    }

    /// Ends all sessions and the handshake. Returns their indices.
    pub(crate) fn end_sessions(&mut self) -> Vec<u32> {
        self.keepalive_at = None;
        self.silence_at = None;
        let sessions = [self.next.take(), self.current.take(), self.previous.take()];
        let mut freed: Vec<u32> = sessions
            .into_iter()
            .flatten()
            .map(|session| session.local)
            .collect();
        freed.extend(self.attempt.take().map(|attempt| attempt.index));
        freed
    }

    /// Ends sessions that are too old for anything. Returns their indices.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<u32> {
        let old = |session: &mut Session| now.saturating_duration_since(session.created) >= REJECT_AFTER;
        let ended = [
            self.next.take_if(old),
            self.current.take_if(old),
            self.previous.take_if(old),
        ];
        ended.into_iter().flatten().map(|session| session.local).collect()
    }

    /// Notes that a packet was sealed. `data`: not a keepalive. Returns when the peer has to be looked at again.
    pub(crate) fn sealed(&mut self, data: bool, now: Instant) -> Option<Instant> {
        self.keepalive_at = None;
        if !data {
            return None;
        }
        let suspect = self.agent.sent(now);
        if self.silence_at.is_some() {
            return suspect;
        }
        let at = now + KEEPALIVE + REKEY_TIMEOUT;
        self.silence_at = Some(at);
        Some(suspect.map_or(at, |suspect| suspect.min(at)))
    }

    /// Notes that a packet was opened. Returns when the peer has to be looked at again.
    pub(crate) fn opened(&mut self, data: bool, now: Instant) -> Option<Instant> {
        self.silence_at = None;
        self.mtu.heard();
        let session = self.current.as_ref()?;
        let age = now.saturating_duration_since(session.created);
        if session.initiator && !self.wants_session && age >= REJECT_AFTER - KEEPALIVE - REKEY_TIMEOUT {
            self.wants_session = true;
            return Some(now);
        }
        if data && self.keepalive_at.is_none() {
            self.keepalive_at = Some(now + KEEPALIVE);
            return self.keepalive_at;
        }
        None
    }

    /// Whether this side's init stands against one of the peer's that has just come.
    pub(crate) fn keeps_own_attempt(&self, own: PeerId) -> bool {
        self.attempt
            .as_ref()
            .is_some_and(|attempt| own < self.id && attempt.tries <= FAST_TRIES)
    }

    /// When something is due after `now`, or already.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let way = self.agent.route().is_some();
        // Without a way nothing can be tried; a new way has the peer looked at.
        let attempt = self.attempt.as_ref().map(|attempt| {
            let given_up = attempt.began + REKEY_ATTEMPT;
            if way { attempt.retry_at } else { given_up }
        });
        // What was answered is waited for, and then asked for by this side.
        let confirmed = self.next.as_ref().map(|next| next.created + REKEY_TIMEOUT);
        let confirmed = confirmed.filter(|at| self.wants_session && self.attempt.is_none() && *at > now);
        let oldest = [&self.next, &self.current, &self.previous]
            .into_iter()
            .flatten()
            .map(|session| session.created + REJECT_AFTER)
            .min();
        [
            attempt,
            confirmed,
            oldest,
            self.keepalive_at,
            self.silence_at,
            self.agent.poll_timeout(),
            self.mtu.poll_timeout().filter(|_| self.agent.is_awake()),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

impl Attempt {
    /// When to try again after `tries`, with jitter of up to a third of a second.
    pub(crate) fn retry_after(tries: u32, jitter: u32, now: Instant) -> Instant {
        let base = if tries < FAST_TRIES {
            FIRST_RETRY
        } else {
            REKEY_TIMEOUT
        };
        now + base + REKEY_JITTER * (jitter % 1000) / 1000
    }
}

/// A finished handshake whose credential is good.
pub(crate) fn session_of(finished: &Finished, attempt: &Attempt, remote: u32, now: Instant) -> Session {
    Session::new(attempt.index, remote, &finished.keys, true, now)
}
