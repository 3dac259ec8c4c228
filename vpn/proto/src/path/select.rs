//! Which of the ways that are alive is used.

use std::time::{Duration, Instant};

use super::class::class;
use super::pair::KEEPALIVE_SELECTED;
use super::{Action, Agent, RELAY_PATIENCE, Route};

/// A way of the same class must be better by a fifth and by this much.
const HYSTERESIS: Duration = Duration::from_millis(2);

impl Agent {
    /// Takes the best way: the best class, and within it the shortest round trip, unless the gain is small.
    pub(super) fn reselect(&mut self, now: Instant) {
        let best = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.is_alive())
            .min_by_key(|(route, pair)| (pair.doubted.is_some(), class(**route, Some(pair)), pair.rtt))
            .map(|(route, _)| *route);
        let current = self
            .selected
            .and_then(|route| Some((route, self.pairs.get(&route)?)));
        let Some(best) = best else {
            if self.selected.is_some() && current.is_none() {
                self.select(None, now);
            }
            return;
        };
        if let Some((route, pair)) = current
            && let Some(doubted) = pair.doubted.filter(|_| pair.is_alive())
        {
            // It is left for what has answered since, which may be no better, and for nothing else.
            let proved = self
                .pairs
                .iter()
                .filter(|(other, pair)| **other != route && pair.has_answered_since(doubted));
            let proved = proved.min_by_key(|(route, pair)| (class(**route, Some(pair)), pair.rtt));
            if let Some(to) = proved.map(|(route, _)| *route) {
                self.select(Some(to), now);
            }
            return;
        }
        if let Some((route, pair)) = current {
            let other = self.pairs.get(&best);
            let better_class = class(best, other) < class(route, Some(pair));
            let faster = match (pair.rtt, other.and_then(|other| other.rtt)) {
                (Some(ours), Some(other)) => other + HYSTERESIS < ours && other * 5 < ours * 4,
                _ => false,
            };
            let same_class = class(best, other) == class(route, Some(pair));
            let better = better_class || (same_class && faster);
            if pair.is_alive() && !better {
                return;
            }
        }
        self.select(Some(best), now);
    }

    pub(super) fn select(&mut self, to: Option<Route>, now: Instant) {
        if self.selected == to {
            return;
        }
        self.selected = to;
        self.selected_since = to.map(|_| now);
        self.sent_at = None;
        self.heard_at = None;
        self.suspected_at = None;
        let relayed = matches!(to, Some(Route::Relayed(_)));
        self.spare_at = (relayed && self.awake).then(|| self.spare_after(now));
        if to.is_some() {
            self.offers = 0;
            self.offer_at = self.awake.then(|| now + self.offer_gap());
            self.relay_at = None;
        } else if self.awake {
            self.offer_at = Some(now);
            self.relay_at = Some(now + RELAY_PATIENCE);
        }
        if let Some(pair) = to.and_then(|to| self.pairs.get_mut(&to)) {
            pair.next = self.awake.then_some(now + KEEPALIVE_SELECTED);
        }
        self.actions.push_back(Action::Selected { to });
    }
}
