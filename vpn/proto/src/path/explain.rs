//! Why a way is what it is, for a person.

use std::time::{Duration, Instant};

use super::pair::{Failure, Pair, State};
use super::{Agent, Route};
use crate::reflexive::Mapping;
use crate::signal::CandidateKind;
use crate::status::{PairState, Reason};

/// What is known of one way.
pub(crate) struct Seen {
    pub(crate) route: Route,
    pub(crate) kind: CandidateKind,
    pub(crate) state: PairState,
    pub(crate) selected: bool,
    pub(crate) rtt: Option<Duration>,
    pub(crate) answered: Option<Duration>,
}

impl Agent {
    /// Every way, the one in use first and then the better ones.
    pub(crate) fn seen(&self, now: Instant) -> Vec<Seen> {
        let ago = |at: Instant| now.saturating_duration_since(at);
        let mut seen: Vec<_> = self
            .pairs
            .iter()
            .map(|(route, pair)| Seen {
                route: *route,
                kind: pair.kind,
                state: pair.status(),
                selected: self.selected == Some(*route),
                rtt: pair.rtt,
                answered: pair.answered_at.map(ago),
            })
            .collect();
        seen.sort_by_key(|seen| {
            let class = super::class::class(seen.route, self.pairs.get(&seen.route));
            (!seen.selected, seen.state != PairState::Alive, class, seen.rtt)
        });
        seen
    }

    /// Since when the way in use is.
    pub(crate) fn selected_for(&self, now: Instant) -> Option<Duration> {
        self.selected_since.map(|at| now.saturating_duration_since(at))
    }

    /// Whether the peer said that its NAT is symmetric; `None` until it has said anything.
    pub(crate) fn peer_symmetric(&self) -> Option<bool> {
        self.remote.as_ref().map(|remote| remote.symmetric)
    }

    /// Until the next exchange of addresses, where one is planned because there is something to find.
    pub(crate) fn next_offer(&self, now: Instant) -> Option<Duration> {
        let direct = matches!(self.selected, Some(Route::Direct(_)));
        self.offer_at
            .filter(|_| self.awake && !direct)
            .map(|at| at.saturating_duration_since(now))
    }

    /// Why the way is what it is. `own`: what this host's NAT does. `heard`: whether anybody answers this host's
    /// queries, of those that were asked.
    pub(crate) fn reason(&self, own: Mapping, heard: Option<bool>) -> Reason {
        if let Some(Route::Direct(addr)) = self.selected {
            return match self.pairs.get(&Route::Direct(addr)).map(|pair| pair.kind) {
                Some(CandidateKind::Host) if addr.is_private() => Reason::SameNetwork,
                Some(CandidateKind::Host) => Reason::Public,
                Some(CandidateKind::PeerReflexive) => Reason::Unannounced,
                Some(CandidateKind::Mapped) => Reason::Mapped,
                _ => Reason::Punched,
            };
        }
        if !self.awake {
            return Reason::Asleep;
        }
        let Some(remote) = &self.remote else {
            return Reason::NoExchange { offers: self.offers };
        };
        if heard == Some(false) {
            return Reason::UdpSilent;
        }
        if remote.unheard {
            return Reason::PeerUdpSilent;
        }
        let direct = |route: &Route| matches!(route, Route::Direct(_));
        let mut direct = self.pairs.iter().filter(|(route, _)| direct(route)).peekable();
        if direct.peek().is_none() {
            return Reason::NoCandidates;
        }
        if direct.any(|(_, pair)| pair.is_new()) {
            return Reason::Trying;
        }
        match (own == Mapping::Dependent, remote.symmetric) {
            (true, true) => Reason::BothSymmetric,
            (true, false) => Reason::OwnSymmetric,
            (false, true) => Reason::PeerSymmetric,
            (false, false) => Reason::NoAnswer,
        }
    }

    /// Why the way in use is not direct: one reason for each address that was tried.
    pub(crate) fn why(&self, own_symmetric: bool) -> Option<String> {
        if matches!(self.selected, Some(Route::Direct(_))) {
            return None;
        }
        let Some(remote) = &self.remote else {
            return Some("the peer has not answered over the overlay yet".to_owned());
        };
        let mut reasons: Vec<String> = self
            .pairs
            .iter()
            .filter_map(|(route, pair)| {
                let Route::Direct(addr) = route else { return None };
                let state = match pair.state {
                    State::Failed(failure) => failure.to_string(),
                    State::Probing => format!("being probed ({} sent)", pair.tries),
                    State::Alive => "answers".to_owned(),
                };
                Some(format!("{addr} ({}): {state}", pair.kind))
            })
            .collect();
        if reasons.is_empty() {
            reasons.push("the peer announced no address that can be reached".to_owned());
        }
        match (own_symmetric, remote.symmetric) {
            (true, true) => {
                reasons.push("both NATs give every destination another port (symmetric)".to_owned())
            }
            (true, false) => {
                reasons.push("our NAT gives every destination another port (symmetric)".to_owned())
            }
            (false, true) => {
                reasons.push("the peer's NAT gives every destination another port (symmetric)".to_owned());
            }
            (false, false) => {}
        }
        Some(reasons.join("; "))
    }
}

impl Pair {
    fn status(&self) -> PairState {
        match self.state {
            State::Probing => PairState::Probing {
                probes: self.unanswered,
            },
            State::Alive => PairState::Alive,
            State::Failed(Failure::NoAnswer { .. }) => PairState::NoAnswer {
                probes: self.unanswered,
            },
            State::Failed(Failure::Lost) => PairState::Lost,
        }
    }

    /// Whether its first probes are still going out.
    fn is_new(&self) -> bool {
        self.state == State::Probing && self.unanswered < super::pair::BURST
    }
}
