//! The path agent: which way to a peer is used, and why not a better one.
//!
//! Both sides tell each other, over the authenticated overlay, where they may be reached (an [`Offer`]) and agree
//! on a key for probes. Then both probe every address of the other at the same moment, so that their NATs let
//! the other's probes in. A way that answers is alive; among those alive the best is used: LAN before direct before
//! relayed, and within one class the shorter round trip, unless the gain is small. The relay is asked for at the
//! same time as the probes begin, so that packets flow at once, and the way moves up when a direct one answers.
//!
//! One way (candidate pair):
//!
//! ```text
//!            probe ×8, 6 s          no answer
//!   Probing ───────────────────────────────────► Failed(no answer) ──round of offers──► Probing
//!      │ answer                                    ▲
//!      ▼                                           │
//!    Alive ──5 probes, 0.5 s apart, unanswered──► Failed(lost)
//! ```
//!
//! The whole agent:
//!
//! ```text
//!              packet, offer                 a way answers
//!   Asleep ───────────────────► Searching ─────────────────► Relayed ──direct answers──► Direct
//!     ▲                           ▲  offer 1, 2, 4 .. 30 s      │  offer every 60 s         │
//!     └── idle 3 min ─────────────┴──────── all ways lost ──────┴───────────────────────────┘
//! ```
//!
//! A way is suspected when packets went out over it for 1.5 s and nothing came back, or when the peer is heard
//! over another way; then it is probed at once, so that its death is known within about four seconds. A datagram
//! of the session that comes from a new address makes that address a candidate: it is used only after it has
//! answered a probe, so that a replayed or redirected datagram moves nothing.
//!
//! How long a datagram may be on the way in use is a matter of its own: see `mtu`.

mod candidates;
mod class;
mod explain;
mod failover;
mod key;
mod mtu;
mod pair;
mod roaming;
mod select;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use aerie_types::{PeerId, UnderlayAddr};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::rate::TokenBucket;
use crate::signal::{Candidate, CandidateKind, Offer};
use crate::wire;

use class::class;
pub(crate) use explain::Seen;
pub(crate) use mtu::{Mtu, Way};
use pair::{Failure, KEEPALIVE_OTHERS, KEEPALIVE_SELECTED, Pair, State};

/// Ways to one peer that are tried: its announced candidates, some unannounced, a relay or two.
const MAX_PAIRS: usize = 16;
/// Probes sent to one peer a second: under a kilobyte with their headers. Of those that follow an exchange of
/// addresses, which have to be fast, so many go beyond that.
const PROBES_PER_SECOND: u64 = 10;
const PROBES_BURST: u64 = 64;
/// When a probe is tried again for which there was no room.
const POSTPONED: Duration = Duration::from_millis(100);
/// Packets out and nothing in for this long: the way is suspected.
const SUSPECT: Duration = Duration::from_millis(1500);
/// Two bursts asked for by offers are at least so far apart.
const MIN_ROUND: Duration = Duration::from_secs(1);
/// Offers while there is no way, in seconds after each other.
const OFFER_GAPS: [u64; 6] = [1, 2, 4, 8, 16, 30];
/// Common rounds while the way is relayed.
const RELAYED_ROUND: Duration = Duration::from_secs(60);
/// A peer that opened the exchange asks for a relay itself; after this long without a way, so do we.
const RELAY_PATIENCE: Duration = Duration::from_secs(2);
/// After idling a direct way is given so long before a relay is asked for.
const REOPEN: Duration = Duration::from_millis(600);

/// A way for datagrams to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Route {
    Direct(UnderlayAddr),
    /// Through a session of a relay.
    Relayed(u64),
    /// Over a connection between this host and the peer, as UDP does not pass.
    Stream(UnderlayAddr),
}

impl Route {
    /// The way by which a datagram has come from an address.
    pub(crate) fn from(addr: UnderlayAddr) -> Self {
        match addr.stream() {
            Some(_) => Self::Stream(addr),
            None => Self::Direct(addr),
        }
    }
}

/// What the agent wants done.
#[derive(Debug)]
pub(crate) enum Action {
    Probe {
        route: Route,
        datagram: Vec<u8>,
    },
    Offer {
        answer: bool,
    },
    NeedRelay,
    /// A second relay beside the one in use, in case that dies.
    NeedSpare,
    /// A relay's way has stopped to answer: is the relay still there?
    RelayLost {
        session: u64,
    },
    Selected {
        to: Option<Route>,
    },
}

struct Remote {
    tag: u64,
    symmetric: bool,
    unheard: bool,
    key: hmac::Key,
}

pub(crate) struct Agent {
    own: PeerId,
    peer: PeerId,
    tag: u64,
    secret: Zeroizing<[u8; 32]>,
    remote: Option<Remote>,
    pairs: BTreeMap<Route, Pair>,
    selected: Option<Route>,
    selected_since: Option<Instant>,
    awake: bool,
    /// When the next offer goes out, and how many have gone out without a way.
    offer_at: Option<Instant>,
    offers: u32,
    relay_at: Option<Instant>,
    last_round: Option<Instant>,
    /// Since when packets go out with nothing coming back.
    sent_at: Option<Instant>,
    /// When something came in last over the way in use.
    heard_at: Option<Instant>,
    /// Since when the way in use is suspected, while another can stand in for it.
    suspected_at: Option<Instant>,
    /// When a second relay is looked for.
    spare_at: Option<Instant>,
    /// Of probes, so that a peer that cannot be reached, or says that it has many addresses, costs little.
    budget: TokenBucket,
    actions: VecDeque<Action>,
}

/// What an offer changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// The same start of the peer as before.
    Same,
    /// The first that is known of the peer.
    First,
    /// Another one: whatever was agreed with the last is void.
    Restarted,
}

impl Agent {
    pub(crate) fn new(own: PeerId, peer: PeerId, tag: u64, secret: [u8; 32], now: Instant) -> Self {
        Self {
            own,
            peer,
            tag,
            secret: Zeroizing::new(secret),
            remote: None,
            pairs: BTreeMap::new(),
            selected: None,
            selected_since: None,
            awake: false,
            offer_at: None,
            offers: 0,
            relay_at: None,
            last_round: None,
            sent_at: None,
            heard_at: None,
            suspected_at: None,
            spare_at: None,
            budget: TokenBucket::new(PROBES_PER_SECOND, PROBES_BURST, now),
            actions: VecDeque::new(),
        }
    }

    pub(crate) fn tag(&self) -> u64 {
        self.tag
    }

    pub(crate) fn remote_tag(&self) -> Option<u64> {
        self.remote.as_ref().map(|remote| remote.tag)
    }

    pub(crate) fn key(&self) -> Option<&hmac::Key> {
        self.remote.as_ref().map(|remote| &remote.key)
    }

    /// The way in use.
    pub(crate) fn route(&self) -> Option<Route> {
        self.selected
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.selected.and_then(|route| self.pairs.get(&route)?.rtt)
    }

    pub(crate) fn is_awake(&self) -> bool {
        self.awake
    }

    /// Whether the way in use is direct and has been for so long.
    pub(crate) fn is_direct_for(&self, duration: Duration, now: Instant) -> bool {
        matches!(self.selected, Some(Route::Direct(_)))
            && self
                .selected_since
                .is_some_and(|since| now.saturating_duration_since(since) >= duration)
    }

    /// Whether the way in use is within one network: the peer's own private address answered.
    pub(crate) fn is_lan(&self, route: Route) -> bool {
        class(route, self.pairs.get(&route)) == 0
    }

    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// This side's offer.
    pub(crate) fn offer(
        &self,
        answer: bool,
        candidates: Vec<Candidate>,
        (symmetric, unheard): (bool, bool),
    ) -> Offer {
        Offer {
            tag: self.tag,
            secret: *self.secret,
            answer,
            symmetric,
            unheard,
            candidates,
        }
    }

    /// Packets want to go to the peer, or came from it.
    pub(crate) fn wake(&mut self, now: Instant) {
        if !self.awake {
            self.awake = true;
            self.search(now);
            // A direct way that has been idle is likely to open again before a relay could be had.
            let direct = matches!(self.selected, Some(Route::Direct(_)));
            self.relay_at = Some(if direct { now + REOPEN } else { now });
        }
    }

    /// The peer is idle: nothing is sent any more. The way in use is tried first at the next wake.
    pub(crate) fn sleep(&mut self) {
        self.awake = false;
        self.offer_at = None;
        self.relay_at = None;
        self.sent_at = None;
        self.suspected_at = None;
        self.spare_at = None;
        for pair in self.pairs.values_mut() {
            pair.next = None;
        }
    }

    /// Takes the peer's offer.
    pub(crate) fn handle_offer(&mut self, offer: &Offer, now: Instant) -> Exchange {
        let exchange = match &mut self.remote {
            Some(remote) if remote.tag == offer.tag => {
                remote.symmetric = offer.symmetric;
                remote.unheard = offer.unheard;
                Exchange::Same
            }
            _ => {
                let first = self.remote.is_none();
                let key = self.derive_key(offer);
                self.remote = Some(Remote {
                    tag: offer.tag,
                    symmetric: offer.symmetric,
                    unheard: offer.unheard,
                    key,
                });
                self.pairs
                    .retain(|route, _| first && matches!(route, Route::Relayed(_)));
                self.select(None, now);
                if first {
                    Exchange::First
                } else {
                    Exchange::Restarted
                }
            }
        };
        if !self.awake {
            self.awake = true;
            self.relay_at = Some(now + RELAY_PATIENCE);
        }
        if offer.answer {
            self.offers = 0;
            self.offer_at = Some(now + self.offer_gap());
        } else {
            self.actions.push_back(Action::Offer { answer: true });
            if self.offer_at.is_none() {
                self.offer_at = Some(now + self.offer_gap());
            }
        }
        self.take_candidates(&offer.candidates, now);
        let round_due = self
            .last_round
            .is_none_or(|last| now.saturating_duration_since(last) >= MIN_ROUND);
        if round_due || exchange != Exchange::Same {
            self.last_round = Some(now);
            self.pairs
                .values_mut()
                .filter(|pair| !pair.is_alive())
                .for_each(|pair| pair.restart(now));
        }
        exchange
    }

    /// The peer has forgotten the exchange.
    pub(crate) fn handle_bye(&mut self, tag: u64, now: Instant) -> bool {
        let ours = self.remote_tag() == Some(tag);
        if ours {
            self.remote = None;
            self.pairs.clear();
            self.select(None, now);
            if self.awake {
                self.search(now);
            }
        }
        ours
    }

    pub(crate) fn add_relay(&mut self, session: u64, now: Instant) {
        let route = Route::Relayed(session);
        if self.pairs.len() < MAX_PAIRS + 2 && !self.pairs.contains_key(&route) {
            self.pairs.insert(route, Pair::new(CandidateKind::Relayed, now));
        }
    }

    /// A connection to the peer is open. Whether that is news.
    pub(crate) fn add_stream(&mut self, stream: UnderlayAddr, now: Instant) -> bool {
        let route = Route::Stream(stream);
        let news = self.pairs.len() < MAX_PAIRS + 2 && !self.pairs.contains_key(&route);
        if news {
            self.pairs.insert(route, Pair::new(CandidateKind::Stream, now));
        }
        news
    }

    /// A connection to the peer has ended. Whether there was one.
    pub(crate) fn remove_stream(&mut self, stream: UnderlayAddr, now: Instant) -> bool {
        let removed = self.pairs.remove(&Route::Stream(stream)).is_some();
        if removed {
            self.reselect(now);
        }
        removed
    }

    pub(crate) fn remove_relay(&mut self, session: u64, now: Instant) {
        self.pairs.remove(&Route::Relayed(session));
        self.reselect(now);
        if self.awake && matches!(self.selected, Some(Route::Relayed(_))) {
            self.spare_at = Some(self.spare_after(now));
        }
    }

    /// Answers a probe whose MAC is right.
    pub(crate) fn handle_probe(
        &mut self,
        route: Route,
        transaction: u64,
        observed: UnderlayAddr,
        now: Instant,
    ) -> Option<Vec<u8>> {
        self.learn(route, now);
        let remote = self.remote.as_ref()?;
        if self.awake
            && let Some(pair) = self.pairs.get_mut(&route)
            && !pair.is_sure()
        {
            // The way is open at the other side now: our own probe is likely to pass.
            if matches!(pair.state, State::Failed(_)) {
                pair.restart(now);
            }
            pair.hurry(now, Duration::from_millis(50));
        }
        Some(wire::probe_reply(remote.tag, transaction, observed, &remote.key))
    }

    /// Takes a reply whose MAC is right. `false` if it answers nothing, or came another way than it was asked.
    pub(crate) fn handle_reply(&mut self, route: Route, transaction: u64, now: Instant) -> bool {
        let Some(pair) = self.pairs.get_mut(&route) else {
            return false;
        };
        if !pair.answered(transaction, now) {
            return false;
        }
        if self.selected == Some(route) {
            self.sent_at = None;
            self.suspected_at = None;
        }
        self.reselect(now);
        let selected = self.selected == Some(route);
        if let Some(pair) = self.pairs.get_mut(&route) {
            let gap = if selected {
                KEEPALIVE_SELECTED
            } else {
                KEEPALIVE_OTHERS
            };
            pair.next = self.awake.then_some(now + gap);
        }
        true
    }

    /// A packet went out over the way in use. Says when to look again, if that is news.
    pub(crate) fn sent(&mut self, now: Instant) -> Option<Instant> {
        if self.sent_at.is_some() || self.selected.is_none() {
            return None;
        }
        self.sent_at = Some(now);
        Some(now + self.suspect_after())
    }

    /// Does what is due. Probes are numbered at random: a peer may name the address of somebody else as its own, and
    /// must not be able to answer in its stead for those that it has not seen.
    pub(crate) fn handle_timeout(&mut self, now: Instant, mut random: impl FnMut() -> u64) {
        if !self.awake {
            return;
        }
        if self
            .sent_at
            .is_some_and(|sent| now >= sent + self.suspect_after())
        {
            self.sent_at = None;
            self.suspect(now);
        }
        self.judge(now);
        if self.wants_spare(now) {
            self.actions.push_back(Action::NeedSpare);
        }
        self.probe_due(now, &mut random);
        if self.offer_at.is_some_and(|at| now >= at) {
            self.offer_at = Some(now + self.offer_gap());
            self.offers = self.offers.saturating_add(1);
            self.last_round = Some(now);
            self.pairs
                .values_mut()
                .filter(|pair| !pair.is_alive())
                .for_each(|pair| pair.restart(now));
            self.actions.push_back(Action::Offer { answer: false });
            self.probe_due(now, &mut random);
        }
        if self.relay_at.is_some_and(|at| now >= at) {
            self.relay_at = None;
            if self.selected.is_none() || !self.pairs.values().any(Pair::is_sure) {
                self.relay_at = Some(now + RELAY_PATIENCE);
                self.actions.push_back(Action::NeedRelay);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if !self.awake {
            return None;
        }
        let probes = self.pairs.values().filter_map(|pair| pair.next);
        let probes = if self.remote.is_some() { probes.min() } else { None };
        [
            probes,
            self.offer_at,
            self.relay_at,
            self.sent_at.map(|sent| sent + self.suspect_after()),
            self.verdict_at(),
            self.spare_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn search(&mut self, now: Instant) {
        self.offers = 0;
        self.offer_at = Some(now);
        for pair in self.pairs.values_mut() {
            pair.restart(now);
        }
    }

    fn offer_gap(&self) -> Duration {
        match self.selected {
            // Nothing to negotiate; if the way dies the search begins anew.
            Some(Route::Direct(_)) => Duration::from_secs(3600),
            Some(Route::Relayed(_) | Route::Stream(_)) => RELAYED_ROUND,
            None => {
                let last = OFFER_GAPS[OFFER_GAPS.len() - 1];
                Duration::from_secs(OFFER_GAPS.get(self.offers as usize).copied().unwrap_or(last))
            }
        }
    }

    fn probe_due(&mut self, now: Instant, mut random: impl FnMut() -> u64) {
        let Some(remote) = &self.remote else { return };
        let slow = !matches!(self.selected, Some(Route::Direct(_)));
        let mut lost = false;
        let mut doubt = false;
        for (route, pair) in &mut self.pairs {
            if pair.next.is_none_or(|next| next > now) {
                continue;
            }
            // Relayed ways are few and name nobody else's address.
            let limited = matches!(route, Route::Direct(_)) && self.selected != Some(*route);
            if limited && !self.budget.take(1, now) {
                pair.next = Some(now + POSTPONED);
                continue;
            }
            let transaction = random();
            let datagram = wire::probe(remote.tag, transaction, &remote.key);
            pair.probed(transaction, slow, now);
            if let (Route::Relayed(session), State::Failed(Failure::Lost)) = (route, pair.state) {
                self.actions.push_back(Action::RelayLost { session: *session });
            }
            if self.selected == Some(*route) {
                doubt |= pair.tries >= 2;
                lost |= matches!(pair.state, State::Failed(Failure::Lost))
                    || (!pair.is_alive() && pair.tries >= pair::LOST_AFTER);
            }
            self.actions.push_back(Action::Probe {
                route: *route,
                datagram,
            });
        }
        if doubt {
            // The others may have to take over: know which of them still answer.
            let others = self
                .pairs
                .iter_mut()
                .filter(|(route, _)| self.selected != Some(**route));
            others.for_each(|(_, pair)| {
                if pair.is_alive() {
                    pair.hurry(now, pair::RETRY);
                }
            });
        }
        if lost {
            self.select(None, now);
        }
        self.reselect(now);
        if lost && self.selected.is_none() {
            self.search(now);
            self.relay_at = Some(now);
        } else if lost {
            // A relay carries on: look for a direct way again together.
            self.offer_at = Some(now);
        }
    }
}
