//! One way to a peer and what is known of it.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::signal::CandidateKind;

/// Probes of a way that has not answered yet, before it counts as failed. Together about six seconds.
pub(super) const BURST: u32 = 8;
/// Gaps between those probes: fast at first, when both sides begin at the same moment.
const BURST_GAPS_MS: [u64; BURST as usize] = [80, 160, 320, 640, 1000, 1200, 1500, 1500];
/// Gap between probes of a way that has answered before and does not answer now.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// So many unanswered probes end a way that was alive: two and a half seconds.
pub(super) const LOST_AFTER: u32 = 5;
/// Probes of the chosen way: keep the NAT's mapping (20 s at worst), measure, and notice its death.
pub(super) const KEEPALIVE_SELECTED: Duration = Duration::from_secs(15);
/// Probes of other ways that are alive.
pub(super) const KEEPALIVE_OTHERS: Duration = Duration::from_secs(60);
/// Probes of failed ways while nothing better than a relay is found: within a NAT's 30 s, so that those of both
/// sides meet.
const SLOW: Duration = Duration::from_secs(10);
/// After so many slow probes only the common rounds go on.
const SLOW_TRIES: u32 = 6;
/// Probes that may still be answered.
const MAX_INFLIGHT: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Being probed; `tries` have gone out.
    Probing,
    /// Answered, and not `LOST_AFTER` probes ago.
    Alive,
    /// Did not answer, or stopped to.
    Failed(Failure),
}

/// Why a way cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It never answered.
    NoAnswer { probes: u32 },
    /// It stopped to answer.
    Lost,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer { probes } => write!(f, "no answer to {probes} probes"),
            Self::Lost => write!(f, "answered before, then no more"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) kind: CandidateKind,
    pub(super) state: State,
    /// Probes since the last answer or restart.
    pub(super) tries: u32,
    /// Probes ever sent without any answer.
    pub(super) unanswered: u32,
    pub(super) next: Option<Instant>,
    pub(super) last_probe: Option<Instant>,
    inflight: VecDeque<(u64, Instant)>,
    pub(super) rtt: Option<Duration>,
    /// When it answered last.
    pub(super) answered_at: Option<Instant>,
    /// When something has happened that may have ended it, if it has not answered since.
    pub(super) doubted: Option<Instant>,
}

impl Pair {
    pub(super) fn new(kind: CandidateKind, now: Instant) -> Self {
        Self {
            kind,
            state: State::Probing,
            tries: 0,
            unanswered: 0,
            next: Some(now),
            last_probe: None,
            inflight: VecDeque::new(),
            rtt: None,
            answered_at: None,
            doubted: None,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.state == State::Alive
    }

    /// It may have ended: asks at once.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.doubted = Some(now);
        self.hurry(now, Duration::ZERO);
    }

    /// Whether it is alive beyond doubt.
    pub(super) fn is_sure(&self) -> bool {
        self.is_alive() && self.doubted.is_none()
    }

    /// Whether it has answered since then.
    pub(super) fn has_answered_since(&self, then: Instant) -> bool {
        self.is_alive() && self.answered_at.is_some_and(|at| at >= then)
    }

    /// Whether two probes have gone unanswered, the last for so long.
    pub(super) fn is_late(&self, patience: Duration, now: Instant) -> bool {
        let since = self.last_probe.filter(|_| self.tries > 1);
        since.is_some_and(|at| now.saturating_duration_since(at) >= patience)
    }

    /// Probes anew from the start.
    pub(super) fn restart(&mut self, now: Instant) {
        self.state = State::Probing;
        self.tries = 0;
        self.next = Some(now);
    }

    /// Probes now, whatever the plan was, unless a probe has just gone out.
    pub(super) fn hurry(&mut self, now: Instant, at_most_every: Duration) {
        let recently = self
            .last_probe
            .is_some_and(|last| now.saturating_duration_since(last) < at_most_every);
        if !recently {
            self.next = Some(self.next.map_or(now, |next| next.min(now)));
        }
    }

    /// Notes a probe and plans the next. `slow`: whether a failed way is probed further.
    pub(super) fn probed(&mut self, transaction: u64, slow: bool, now: Instant) {
        if self.inflight.len() == MAX_INFLIGHT {
            self.inflight.pop_front();
        }
        self.inflight.push_back((transaction, now));
        self.last_probe = Some(now);
        self.tries += 1;
        self.unanswered += 1;
        self.next = match self.state {
            State::Alive if self.tries > LOST_AFTER => {
                self.state = State::Failed(Failure::Lost);
                self.tries = 0;
                Some(now + RETRY)
            }
            State::Alive => Some(now + RETRY),
            State::Probing if self.tries >= BURST => {
                self.state = State::Failed(Failure::NoAnswer {
                    probes: self.unanswered,
                });
                slow.then_some(now + SLOW)
            }
            State::Probing => BURST_GAPS_MS
                .get(self.tries as usize)
                .map(|gap| now + Duration::from_millis(*gap)),
            State::Failed(_) => (slow && self.tries < BURST + SLOW_TRIES).then_some(now + SLOW),
        };
    }

    /// Takes an answer. `false` if nothing asked for it.
    pub(super) fn answered(&mut self, transaction: u64, now: Instant) -> bool {
        let Some(at) = self.inflight.iter().position(|(id, _)| *id == transaction) else {
            return false;
        };
        let Some((_, sent)) = self.inflight.remove(at) else {
            return false;
        };
        let sample = now.saturating_duration_since(sent);
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        self.state = State::Alive;
        self.answered_at = Some(now);
        self.doubted = None;
        self.tries = 0;
        self.unanswered = 0;
        true
    }
}
