//! How long a datagram may be on the way to a peer: path MTU discovery by probes (RFC 8899).
//!
//! A datagram that is longer than a link of its way is cut into fragments, and many networks drop those: what is
//! long vanishes, what is short passes, and a stream hangs. No ICMP is believed to tell of it: it is filtered as
//! often, and anybody can forge it. So padded probes that must not be cut are sent over the way in use, and what was
//! answered is known to pass.
//!
//! ```text
//!        a way is chosen                    answered
//!   Off ─────────────────► First (longest) ─────────────────────────► Found ◄──────────────┐
//!    ▲                        │ no answer in 2 round trips, or           │ confirmed 3 times │
//!    │ no way                 │ refused by this host's own link         │ in vain           │
//!  (all)                      ▼                                         ▼                   │
//!                          Ladder (all lengths at once, 3 rounds) ◄──── floor in force      │
//!                             │       └──────the longest that was answered──────────────────┘
//!                             └─nothing was answered─► Unknown ──10 s, 20 s .. 10 min──► First
//! ```
//!
//! Most ways take the longest datagram that this node ever sends, so that one probe and one round trip settle it.
//! Otherwise all lengths of a ladder are asked for at once, rather than one after another as the RFC has it: their
//! sum is about that of a TCP connection's first flight (RFC 6928), and what passes is known one round trip later,
//! before a stream that lost its first segments has tried again for the second time. It is used from then on, while
//! two more rounds make sure of the longer ones: a length counts as too long only after three probes of it were lost.
//!
//! Before anything is known, and while nothing is answered at all (a peer that answers no padded probe, or a way
//! narrower than the floor), there is no limit: datagrams go as long as they are and may be cut. Where something was
//! answered before, the floor stays in force for some seconds of silence.
//!
//! What was found is confirmed: soon after long datagrams went out and nothing came back, else every half minute
//! while long ones go out, else every ten minutes. After three probes in vain the way has become a black hole: the
//! floor is in force at once, and the ladder is asked again. Every ten minutes the lengths above what was found are
//! tried once more.
//!
//! What it costs, with the usual inner MTU of 1,420: one probe of 1.5 KB for each new way, or 36 to 55 KB where the
//! ladder is needed; then 9 KB an hour for a peer that gets short packets alone, 175 KB while it gets long ones,
//! 525 KB at worst for one that gets long packets and sends nothing back. What is tried above a found length adds 80
//! KB an hour at most, and a way on which nothing is ever answered costs 200 KB in its first hour. An idle peer costs
//! nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Route;
use crate::limits::FLOOR;
use crate::wire::DATA_OVERHEAD;

/// MTUs of links that are met with, each with the headers of IP: jumbo frames, Google's and InfiniBand's, Ethernet,
/// PPPoE, 6in4 and IPIP, GRE, VXLAN and cloud networks, WireGuard, other tunnels, and the least of IPv6. Between two
/// of them the shorter is found, which costs a hundredth or two of the rate.
const LINKS: [usize; 18] = [
    9000, 8896, 4092, 2044, 1500, 1492, 1480, 1476, 1460, 1450, 1430, 1420, 1400, 1380, 1360, 1340, 1300,
    1280,
];
/// Probes of one length before it counts as too long: with a twentieth of all datagrams lost, one search in a
/// thousand comes out too low, until the next try above it. It is the RFC's MAX_PROBES.
const TRIES: u32 = 3;
/// A found length is confirmed so often while long datagrams go out.
const CONFIRM_BUSY: Duration = Duration::from_secs(30);
/// And so often at least, while the peer is not idle (RFC 8899, 5.1.1).
const CONFIRM: Duration = Duration::from_secs(600);
/// The lengths above it are tried so often.
const RAISE: Duration = Duration::from_secs(600);
/// Long datagrams out and nothing in for this long: the length is in doubt, as the way itself is.
const SUSPECT: Duration = Duration::from_millis(1500);
/// For doubt it is confirmed at most so often: a flow without answers is usual.
const SUSPECT_GAP: Duration = Duration::from_secs(10);
/// So many searches in vain keep the floor in force on a way on which a length was found before.
const KEPT: u32 = 4;
/// Between them.
const SOON: Duration = Duration::from_secs(1);
/// The first search after one in which nothing was answered; each further one waits twice as long.
const AGAIN: Duration = Duration::from_secs(10);
/// Up to this.
const AGAIN_MAX: Duration = Duration::from_secs(600);
/// Probes that may still be answered: three rounds of the ladder.
const MAX_INFLIGHT: usize = 3 * (LINKS.len() + 2);

/// The way in use, as far as lengths matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) route: Route,
    /// Whether the first address on it is of IPv6.
    pub(crate) v6: bool,
    /// Bytes of a relay's frame.
    pub(crate) frame: usize,
    /// The longest inner packet that this host makes.
    pub(crate) inner: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    First { sent: bool },
    Ladder { rounds: u32, best: Option<usize> },
    Found { tries: u32 },
    Unknown,
}

/// What is known of the lengths that pass to one peer. Lengths are those of UDP's payload, frame and all.
#[derive(Debug)]
pub(crate) struct Mtu {
    way: Option<Way>,
    /// The longest first, the floor last.
    lengths: Vec<usize>,
    state: State,
    /// The longest inner packet that goes whole; `usize::MAX` while nothing is known. Looked at for every packet.
    inner: usize,
    /// The datagram that is in force.
    limit: Option<usize>,
    /// Whether the limit was found, and is no floor taken in need: then the host may be told.
    proved: bool,
    /// This host's own link takes no more.
    ceiling: usize,
    inflight: VecDeque<(u64, usize)>,
    /// When to go on, but in `Found` with nothing asked.
    next: Instant,
    /// The last proof of the limit.
    confirmed: Instant,
    /// Before then it is not asked for out of doubt.
    doubt_after: Instant,
    raise_at: Instant,
    /// Whether the network may have changed since then.
    recheck: bool,
    /// Whether something longer than the floor went out since then.
    long_sent: bool,
    /// Since when something longer than the floor went out with nothing coming back.
    unheard: Option<Instant>,
    /// Searches in a row in which nothing was answered.
    vain: u32,
    /// Whether a length was found on this way before.
    found: bool,
}

impl Mtu {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            way: None,
            lengths: Vec::new(),
            state: State::Off,
            inner: usize::MAX,
            limit: None,
            proved: false,
            ceiling: usize::MAX,
            inflight: VecDeque::new(),
            next: now,
            confirmed: now,
            doubt_after: now,
            raise_at: now,
            recheck: false,
            long_sent: false,
            unheard: None,
            vain: 0,
            found: false,
        }
    }

    /// The longest inner packet that goes to the peer in one datagram without fragments; `usize::MAX` while that is
    /// not known.
    pub(crate) fn inner(&self) -> usize {
        self.inner
    }

    /// The same, if it was found by probes: then others may be told.
    pub(crate) fn proved(&self) -> Option<usize> {
        (self.proved && self.limit.is_some()).then_some(self.inner)
    }

    /// Another way is in use, or none. Nothing that was known is true of it.
    pub(crate) fn set_way(&mut self, way: Option<Way>, now: Instant) {
        if self.way == way {
            return;
        }
        *self = Self::new(now);
        let Some(to) = way else { return };
        self.way = way;
        let need = to.inner + DATA_OVERHEAD + to.frame;
        let headers = if to.v6 { 48 } else { 28 };
        let below = |len: &usize| (FLOOR + 1..need).contains(len);
        self.lengths.push(need);
        self.lengths
            .extend(LINKS.iter().map(|link| link - headers).filter(below));
        if need > FLOOR {
            self.lengths.push(FLOOR);
        }
        self.state = State::First { sent: false };
    }

    /// The network may have changed under the way: what was found stays in force, and everything is asked again now.
    pub(crate) fn recheck(&mut self, now: Instant) {
        match self.state {
            State::Found { .. } => {
                self.recheck = true;
                self.raise_at = now;
            }
            State::Unknown => {
                self.vain = 0;
                self.next = now;
            }
            // What was answered before may not be true any more.
            State::First { .. } | State::Ladder { .. } => {
                self.state = State::First { sent: false };
                self.inflight.clear();
                self.ceiling = usize::MAX;
                self.next = now;
            }
            State::Off => {}
        }
    }

    /// A datagram of this length was sealed to the peer. Says when to look again, if that is news.
    pub(crate) fn sent(&mut self, len: usize, now: Instant) -> Option<Instant> {
        if len <= FLOOR {
            return None;
        }
        let news = !std::mem::replace(&mut self.long_sent, true) || self.unheard.is_none();
        self.unheard.get_or_insert(now);
        if news { self.poll_timeout() } else { None }
    }

    /// Something has come from the peer.
    pub(crate) fn heard(&mut self) {
        self.unheard = None;
    }

    /// Takes the answer to a probe. `false` if it answers none of these, or came another way than it was asked.
    pub(crate) fn answered(&mut self, route: Route, transaction: u64, now: Instant) -> bool {
        let asked = self.inflight.iter().position(|(id, _)| *id == transaction);
        let here = self.way.is_some_and(|way| way.route == route);
        let Some((_, len)) = asked.filter(|_| here).and_then(|at| self.inflight.remove(at)) else {
            return false;
        };
        self.unheard = None;
        match self.state {
            State::Off => {}
            State::Ladder { rounds, best } => {
                let best = best.map_or(len, |best| best.max(len));
                self.state = State::Ladder {
                    rounds,
                    best: Some(best),
                };
                let known = self.proved && self.limit.is_some_and(|limit| best > limit);
                // The floor is asked for last: what else would be answered has been, most likely.
                let last = self.lengths.last() == Some(&len);
                if self.open(Some(best)).next().is_none() {
                    self.settle(best, now);
                } else if known || last {
                    self.limit_to(Some(best), true);
                }
            }
            State::First { .. } | State::Found { .. } | State::Unknown => {
                if self.limit.is_none_or(|limit| len >= limit) {
                    self.settle(len, now);
                }
            }
        }
        true
    }

    /// This host's own link does not take a probe of this length.
    pub(crate) fn refused(&mut self, len: usize, now: Instant) {
        if !self.inflight.iter().any(|(_, asked)| *asked == len) {
            return;
        }
        self.inflight.retain(|(_, asked)| *asked < len);
        self.ceiling = self.ceiling.min(len - 1);
        match self.state {
            State::First { .. } => self.next = now,
            State::Ladder { best, .. } if self.open(best).next().is_none() => match best {
                Some(best) => self.settle(best, now),
                None => self.next = now,
            },
            State::Found { .. } if self.limit.is_some_and(|limit| limit >= len) => self.fall(now),
            State::Off | State::Ladder { .. } | State::Found { .. } | State::Unknown => {}
        }
    }

    /// The probes that are due, each with its number and its length.
    pub(crate) fn poll(
        &mut self,
        rtt: Option<Duration>,
        now: Instant,
        mut random: impl FnMut() -> u64,
    ) -> Vec<(u64, usize)> {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut due: Vec<usize> = Vec::new();
        let rtt = rtt.unwrap_or(Duration::from_millis(200));
        // A round trip may be overstated: the first waits for neighbours to be found.
        let patience = (rtt * 3).clamp(Duration::from_millis(400), Duration::from_secs(1));
        match self.state {
            State::Off => {}
            State::Unknown => {
                self.ceiling = usize::MAX;
                self.first(rtt, now, &mut due);
            }
            State::First { sent: false } => self.first(rtt, now, &mut due),
            State::First { sent: true } => {
                self.state = State::Ladder {
                    rounds: 0,
                    best: None,
                };
                self.climb(patience, now, &mut due);
            }
            State::Ladder { .. } => self.climb(patience, now, &mut due),
            State::Found { tries } => {
                if now >= self.raise_at {
                    self.raise_at = now + RAISE;
                    self.ceiling = usize::MAX;
                    due.extend(self.open(self.limit));
                }
                let unanswered = tries > 0 && now >= self.next;
                if unanswered && tries >= TRIES {
                    self.fall(now);
                    self.climb(patience, now, &mut due);
                } else if unanswered || (tries == 0 && now >= self.doubt()) {
                    if self.unheard.is_some_and(|since| now >= since + SUSPECT) {
                        self.doubt_after = now + SUSPECT_GAP;
                    }
                    self.state = State::Found { tries: tries + 1 };
                    self.next = now + patience;
                    due.extend(self.limit);
                }
            }
        }
        let numbered: Vec<(u64, usize)> = due.into_iter().map(|len| (random(), len)).collect();
        self.inflight.extend(numbered.iter().copied());
        while self.inflight.len() > MAX_INFLIGHT {
            self.inflight.pop_front();
        }
        numbered
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Off => None,
            State::First { .. } | State::Ladder { .. } | State::Unknown => Some(self.next),
            State::Found { tries } => {
                let confirm = if tries > 0 { self.next } else { self.doubt() };
                let all = self.limit == self.lengths.first().copied();
                Some(if all { confirm } else { confirm.min(self.raise_at) })
            }
        }
    }

    fn first(&mut self, rtt: Duration, now: Instant, due: &mut Vec<usize>) {
        self.state = State::First { sent: true };
        self.next = now + (rtt * 2).clamp(Duration::from_millis(100), Duration::from_millis(500));
        due.extend(self.lengths.first());
    }

    /// Ends a round of the ladder and begins the next, if there is to be one.
    fn climb(&mut self, patience: Duration, now: Instant, due: &mut Vec<usize>) {
        let State::Ladder { rounds, best } = self.state else {
            return;
        };
        // Where nothing passed the last time either, one round shows that nothing has changed.
        let vain = self.vain > 0 && rounds > 0 && best.is_none();
        if vain || rounds >= TRIES || self.open(best).next().is_none() {
            match best {
                Some(best) => self.settle(best, now),
                None => self.give_up(now),
            }
            return;
        }
        if best.is_some() && (!self.proved || best > self.limit) {
            // What passes is used while the rest is made sure of.
            self.limit_to(best, true);
        }
        self.state = State::Ladder {
            rounds: rounds + 1,
            best,
        };
        self.next = now + patience;
        due.extend(self.open(best));
    }

    /// The lengths above one that may still be found to pass, the longest first.
    fn open(&self, best: Option<usize>) -> impl Iterator<Item = usize> {
        let ceiling = self.ceiling;
        self.lengths
            .iter()
            .copied()
            .filter(move |len| *len <= ceiling && best.is_none_or(|best| *len > best))
    }

    fn settle(&mut self, len: usize, now: Instant) {
        if !matches!(self.state, State::Found { .. }) {
            self.raise_at = now + RAISE;
        }
        self.state = State::Found { tries: 0 };
        self.limit_to(Some(len), true);
        self.confirmed = now;
        self.recheck = false;
        self.long_sent = false;
        self.vain = 0;
        self.found = true;
    }

    /// A black hole: the floor is in force while the lengths are asked for again.
    fn fall(&mut self, now: Instant) {
        self.limit_to(self.lengths.last().copied(), false);
        self.state = State::Ladder {
            rounds: 0,
            best: None,
        };
        self.next = now;
        // A late answer to what was asked before would prove nothing of what passes now.
        self.inflight.clear();
    }

    fn give_up(&mut self, now: Instant) {
        self.state = State::Unknown;
        let kept = if self.found { KEPT } else { 0 };
        if self.vain < kept {
            // What answered before is rather away for a moment than deaf to probes: the floor stays in force.
            self.next = now + SOON;
        } else {
            self.limit_to(None, false);
            self.next = now + (AGAIN * (1 << (self.vain - kept).min(6))).min(AGAIN_MAX);
        }
        self.vain += 1;
    }

    fn limit_to(&mut self, limit: Option<usize>, proved: bool) {
        self.limit = limit;
        self.proved = proved;
        let frame = self.way.map_or(0, |way| way.frame);
        self.inner = limit.map_or(usize::MAX, |limit| limit - DATA_OVERHEAD - frame);
    }

    /// When the limit is next in doubt.
    fn doubt(&self) -> Instant {
        if self.recheck {
            return self.confirmed;
        }
        let usual = if self.long_sent { CONFIRM_BUSY } else { CONFIRM };
        let usual = self.confirmed + usual;
        self.unheard
            .map_or(usual, |since| usual.min((since + SUSPECT).max(self.doubt_after)))
    }
}

#[cfg(test)]
mod tests;
