//! Ways to relays over TLS, for a host whose network lets no UDP pass.
//!
//! ```text
//!            nobody answers over UDP              stream_opened
//!   Closed ───────────────────────────► Opening ───────────────► Open
//!     ▲                                    │                       │
//!     ├──── failed or ended: again later ──┴───────────────────────┤
//!     └──── somebody answers over UDP again, or no such relay ─────┘
//! ```
//!
//! A connection takes the place of the data socket towards one relay: the same datagrams go over it, one by one, and
//! the caller gives it an address of its own ([`UnderlayAddr::of_stream`]). Nothing else changes: sessions and tickets
//! of the relay are the same, and so is what is sealed end to end. What a link was to the relay's data socket is moved
//! to the connection, and back as soon as UDP passes again, which is asked for as long as it does not. A relay is also
//! a member, and is reached as such over the same connection.
//!
//! TLS is not there to protect anything; it is what networks let pass that look at what they carry. What goes over the
//! connection is authenticated as if it had come over UDP.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use aerie_types::{PeerId, UnderlayAddr};

use super::{RelayInfo, Tunnels};
use crate::Now;

/// Relays to which a connection is held while UDP does not pass, whether they are in use or not: a second one takes
/// over when the first dies.
const HELD: usize = 2;
/// Connections at most: others may ask to be met at relays of their choice.
const MAX_STREAMS: usize = 8;
/// Tried again so long after a failure, and twice as long after each further one, up to the last.
const RETRY: Duration = Duration::from_secs(2);
const MAX_RETRY: Duration = Duration::from_secs(60);
/// A connection that is not there after this long is given up: the handshakes of TCP and TLS, some of it lost.
const OPENING: Duration = Duration::from_secs(10);
/// A connection beyond those held that nothing has used for so long is closed.
const UNUSED: Duration = Duration::from_secs(60);
/// What the caller has not taken of what is to be done. Each connection is opened and closed once at a time.
const MAX_ACTIONS: usize = 256;
/// How often it is asked whether UDP passes again.
const ASK: Duration = Duration::from_secs(15);

/// What is to be done about connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamAction {
    /// Connect to a relay over TLS, as UDP does not pass. To be answered by [`Tunnels::stream_opened`] or
    /// [`Tunnels::stream_failed`].
    Open {
        /// The relay.
        relay: PeerId,
        /// Where to.
        to: UnderlayAddr,
    },
    /// A connection is of no more use.
    Close(UnderlayAddr),
    /// Over this one a member has proved itself. Whoever has not after some time can be turned away.
    Proved(UnderlayAddr),
}

#[derive(Default)]
pub(super) struct Streams {
    by_relay: BTreeMap<PeerId, Stream>,
    /// Since when nobody answers over UDP.
    silent_since: Option<Instant>,
    ask_at: Option<Instant>,
    actions: VecDeque<StreamAction>,
}

struct Stream {
    /// Where the relay takes connections, and its data socket.
    to: UnderlayAddr,
    udp: UnderlayAddr,
    state: State,
    /// In a row, without an answer of the relay between them.
    failures: u32,
    used_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not to be opened before then.
    Closed(Instant),
    Opening(Instant),
    Open(UnderlayAddr),
}

impl Streams {
    /// Where a connection of this host goes to, by its address.
    pub(super) fn far(&self, stream: UnderlayAddr) -> Option<UnderlayAddr> {
        stream.stream()?;
        let mut all = self.by_relay.values();
        all.find(|known| known.state == State::Open(stream))
            .map(|known| known.to)
    }

    /// The relays that are reached over TLS, with their addresses.
    pub(super) fn relays(&self) -> Vec<(PeerId, UnderlayAddr)> {
        let open = |(relay, stream): (PeerId, _)| Some((relay, self.far(stream)?));
        self.open().filter_map(open).collect()
    }

    /// Whether connections are held because nobody answered over UDP.
    pub(super) fn are_wanted(&self) -> bool {
        self.silent_since.is_some()
    }

    /// Something that a member alone could send has come from here.
    pub(super) fn proved(&mut self, from: UnderlayAddr) {
        if from.stream().is_some() {
            self.act(StreamAction::Proved(from));
        }
    }

    /// The relay answers over this connection.
    pub(super) fn works(&mut self, stream: UnderlayAddr) {
        let mut all = self.by_relay.values_mut();
        if let Some(known) = all.find(|known| known.state == State::Open(stream)) {
            known.failures = 0;
        }
    }

    pub(super) fn next_action(&mut self) -> Option<StreamAction> {
        self.actions.pop_front()
    }

    fn act(&mut self, action: StreamAction) {
        let spare = match action {
            StreamAction::Proved(_) => self.actions.len() < MAX_ACTIONS / 2,
            _ => self.actions.len() < MAX_ACTIONS,
        };
        if spare {
            self.actions.push_back(action);
        }
    }

    /// The relays that have a connection, with its address.
    fn open(&self) -> impl Iterator<Item = (PeerId, UnderlayAddr)> {
        self.by_relay
            .iter()
            .filter_map(|(relay, stream)| match stream.state {
                State::Open(addr) => Some((*relay, addr)),
                _ => None,
            })
    }

    fn of(&self, relay: PeerId) -> Option<UnderlayAddr> {
        match self.by_relay.get(&relay)?.state {
            State::Open(addr) => Some(addr),
            _ => None,
        }
    }
}

impl Stream {
    fn ended(&mut self, now: Instant) {
        let pause = RETRY * 2_u32.saturating_pow(self.failures);
        self.failures = (self.failures + 1).min(16);
        self.state = State::Closed(now + pause.min(MAX_RETRY));
    }
}

impl Tunnels {
    /// The connection to a relay that [`StreamAction::Open`] asked for is there: datagrams to and from `stream` go over
    /// it.
    pub fn stream_opened(&mut self, relay: PeerId, stream: UnderlayAddr, now: Now) {
        let opening = self.streams.by_relay.get_mut(&relay);
        match opening.filter(|known| matches!(known.state, State::Opening(_))) {
            Some(known) if stream.stream().is_some() => {
                known.state = State::Open(stream);
                known.used_at = now.instant;
                self.reconsider(relay);
                self.move_links(relay, stream, now.instant);
            }
            _ => self.streams.act(StreamAction::Close(stream)),
        }
        self.wake_at(now.instant);
    }

    /// A connection to a relay was not opened.
    pub fn stream_failed(&mut self, relay: PeerId, now: Now) {
        if let Some(known) = self.streams.by_relay.get_mut(&relay)
            && matches!(known.state, State::Opening(_))
        {
            known.ended(now.instant);
        }
        self.wake_at(now.instant);
    }

    /// A connection has ended, whoever has opened it.
    pub fn stream_ended(&mut self, stream: UnderlayAddr, now: Now) {
        let at = now.instant;
        let mut all = self.streams.by_relay.iter_mut();
        let ours = all.find(|(_, known)| known.state == State::Open(stream));
        let ours = ours.map(|(relay, known)| {
            known.ended(at);
            (*relay, known.udp)
        });
        if let Some((relay, udp)) = ours {
            self.move_links(relay, udp, at);
        }
        self.leave(stream, at);
        self.wake_at(at);
    }

    /// Where datagrams to a relay go.
    pub(super) fn way_to(&self, relay: &RelayInfo) -> UnderlayAddr {
        self.streams.of(relay.peer).unwrap_or(relay.addr)
    }

    /// Whether a relay can be asked for a way: while UDP does not pass, those with a connection, if there are any.
    pub(super) fn is_within_reach(&self, relay: &RelayInfo) -> bool {
        let connected = self.streams.open().next().is_some();
        !connected || self.streams.of(relay.peer).is_some()
    }

    /// Opens and closes connections as UDP passes or not. The next time to look.
    pub(super) fn drive_streams(&mut self, now: Instant) -> Option<Instant> {
        self.drop_strangers(now);
        let since = match self.streams.silent_since {
            Some(since) => since,
            None if self.reflexive.is_silent() => *self.streams.silent_since.insert(now),
            None => return None,
        };
        if self.reflexive.is_heard_since(since) {
            self.streams.silent_since = None;
            self.streams.ask_at = None;
            // It may have been a peer that was heard: how this host looks from outside is still to be asked.
            self.reflexive.ask_again(now);
            for relay in self.streams.by_relay.keys().copied().collect::<Vec<_>>() {
                self.close(relay, now);
            }
            return None;
        }
        let ask_at = *self.streams.ask_at.get_or_insert(now + ASK);
        if now >= ask_at {
            self.streams.ask_at = Some(now + ASK);
            self.reflexive.ask_again(now);
        }
        self.close_unused(now);
        for stream in self.streams.by_relay.values_mut() {
            if matches!(stream.state, State::Opening(since) if now >= since + OPENING) {
                stream.ended(now);
            }
        }
        for relay in self.wanted(now) {
            let known = self.relays.iter().find(|known| known.peer == relay);
            let Some((to, udp)) = known.and_then(|known| Some((known.tls?, known.addr))) else {
                continue;
            };
            let stream = self.streams.by_relay.entry(relay).or_insert(Stream {
                to,
                udp,
                state: State::Closed(now),
                failures: 0,
                used_at: now,
            });
            (stream.to, stream.udp) = (to, udp);
            stream.state = State::Opening(now);
            self.streams.act(StreamAction::Open { relay, to });
        }
        for (relay, stream) in self.streams.open().collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(&relay)
                && peer.agent.is_awake()
                && peer.agent.add_stream(stream, now)
            {
                self.peers.look_at(relay, now);
            }
        }
        let states = self.streams.by_relay.values().map(|stream| stream.state);
        let due = states.filter_map(|state| match state {
            State::Opening(since) => Some(since + OPENING),
            State::Closed(until) => Some(until).filter(|until| *until > now),
            State::Open(_) => None,
        });
        due.chain(self.streams.ask_at).min()
    }

    /// The relays to which a connection is to be opened now: those in use, and others until enough are held.
    fn wanted(&self, now: Instant) -> Vec<PeerId> {
        let state = |relay: PeerId| self.streams.by_relay.get(&relay);
        let waits = |relay: PeerId| match state(relay).map(|stream| stream.state) {
            None => true,
            Some(State::Closed(until)) => until <= now,
            Some(State::Opening(_) | State::Open(_)) => false,
        };
        let used = self.used_relays();
        let up = |relay: &PeerId| {
            let stream = state(*relay).map(|stream| stream.state);
            matches!(stream, Some(State::Opening(_) | State::Open(_)))
        };
        let count = self.streams.by_relay.keys().filter(|relay| up(relay)).count();
        // In an order of its own for each member, so that not all hold the same ones.
        let own = self.identity.peer;
        let distance = |relay: PeerId| -> [u8; 32] { std::array::from_fn(|n| relay.0[n] ^ own.0[n]) };
        let mut relays: Vec<_> = self.relays.iter().map(|relay| relay.peer).collect();
        relays.retain(|relay| waits(*relay) && self.tls_of(*relay).is_some());
        relays.sort_by_key(|relay| {
            let failures = state(*relay).map_or(0, |stream| stream.failures);
            (!used.contains(relay), failures, distance(*relay))
        });
        let needed = relays.iter().filter(|relay| used.contains(relay)).count();
        let more = HELD.saturating_sub(count).max(needed);
        relays.truncate(more.min(MAX_STREAMS.saturating_sub(count)));
        relays
    }

    /// The relays over which ways go, or that are spoken to themselves.
    fn used_relays(&self) -> BTreeSet<PeerId> {
        let linked = self.links.values().map(|link| link.relay);
        let spoken_to = self.relays.iter().map(|relay| relay.peer).filter(|relay| {
            let peer = self.peers.get(relay);
            peer.is_some_and(|peer| peer.agent.is_awake())
        });
        linked.chain(spoken_to).collect()
    }

    /// Closes connections that nothing has used for a while, but for those that are held.
    fn close_unused(&mut self, now: Instant) {
        let used = self.used_relays();
        let mut idle = Vec::new();
        for (relay, stream) in &mut self.streams.by_relay {
            if used.contains(relay) {
                stream.used_at = now;
            } else if matches!(stream.state, State::Open(_)) && now >= stream.used_at + UNUSED {
                idle.push(*relay);
            }
        }
        let spare = self.streams.open().count().saturating_sub(HELD);
        for relay in idle.into_iter().take(spare) {
            self.close(relay, now);
        }
    }

    /// This host's network has changed, and with it most likely where its connections come from: they are made anew.
    pub(super) fn renew_streams(&mut self, now: Instant) {
        for (relay, stream) in self.streams.open().collect::<Vec<_>>() {
            if let Some(known) = self.streams.by_relay.get_mut(&relay) {
                known.state = State::Closed(now);
                known.failures = 0;
                let udp = known.udp;
                self.move_links(relay, udp, now);
            }
            self.leave(stream, now);
            self.streams.act(StreamAction::Close(stream));
        }
    }

    fn tls_of(&self, relay: PeerId) -> Option<UnderlayAddr> {
        let mut relays = self.relays.iter();
        relays.find(|known| known.peer == relay)?.tls
    }

    /// Ends connections to members that are no relays any more.
    fn drop_strangers(&mut self, now: Instant) {
        let known = |relay: &PeerId| self.relays.iter().any(|known| known.peer == *relay);
        let gone: Vec<PeerId> = self
            .streams
            .by_relay
            .keys()
            .filter(|relay| !known(relay))
            .copied()
            .collect();
        for relay in gone {
            self.close(relay, now);
        }
    }

    fn close(&mut self, relay: PeerId, now: Instant) {
        let Some(known) = self.streams.by_relay.remove(&relay) else {
            return;
        };
        if let State::Open(stream) = known.state {
            self.move_links(relay, known.udp, now);
            self.leave(stream, now);
            self.streams.act(StreamAction::Close(stream));
        }
    }

    /// No peer is reached over a connection any more.
    fn leave(&mut self, stream: UnderlayAddr, now: Instant) {
        self.peers
            .change(now, |peer| peer.agent.remove_stream(stream, now));
    }
}
