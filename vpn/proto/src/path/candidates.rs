//! Which addresses of a peer are tried.

use std::time::Instant;

use super::pair::Pair;
use super::{Agent, MAX_PAIRS, Route};
use crate::signal::{Candidate, CandidateKind};

/// Unannounced addresses among the ways: a peer that moves, or sits behind an odd NAT.
const MAX_PEER_REFLEXIVE: usize = 4;

impl Agent {
    /// Makes the source of an authenticated datagram a candidate, within bounds.
    pub(super) fn learn(&mut self, route: Route, now: Instant) {
        if self.pairs.contains_key(&route) || self.remote.is_none() || matches!(route, Route::Relayed(_)) {
            return;
        }
        let unannounced = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.kind == CandidateKind::PeerReflexive);
        if unannounced.clone().count() >= MAX_PEER_REFLEXIVE || self.pairs.len() >= MAX_PAIRS {
            let stale = unannounced
                .filter(|(_, pair)| !pair.is_alive())
                .map(|(route, _)| *route)
                .next();
            let Some(stale) = stale else { return };
            self.pairs.remove(&stale);
        }
        let kind = match route {
            Route::Stream(_) => CandidateKind::Stream,
            _ => CandidateKind::PeerReflexive,
        };
        self.pairs.insert(route, Pair::new(kind, now));
    }

    pub(super) fn take_candidates(&mut self, candidates: &[Candidate], now: Instant) {
        let announced = |route: &Route| {
            candidates
                .iter()
                .any(|candidate| *route == Route::Direct(candidate.addr))
        };
        self.pairs.retain(|route, pair| {
            pair.is_alive()
                || matches!(
                    pair.kind,
                    CandidateKind::Relayed | CandidateKind::PeerReflexive | CandidateKind::Stream
                )
                || announced(route)
        });
        // What the peer no longer says of itself may have ended with its former network.
        let mut doubt = false;
        for (route, pair) in &mut self.pairs {
            let told = matches!(
                pair.kind,
                CandidateKind::Host | CandidateKind::Reflexive | CandidateKind::Mapped
            );
            if told && pair.is_sure() && !announced(route) {
                pair.doubt(now);
                doubt = true;
            }
        }
        if doubt {
            self.ask_others(now);
        }
        for candidate in candidates {
            let route = Route::Direct(candidate.addr);
            if let Some(pair) = self.pairs.get_mut(&route) {
                pair.kind = candidate.kind;
            } else if self.pairs.len() < MAX_PAIRS {
                self.pairs.insert(route, Pair::new(candidate.kind, now));
            }
        }
        self.reselect(now);
    }
}
