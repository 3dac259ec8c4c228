//! When a relay dies for which another one can stand in.
//!
//! ```text
//!                     packets out, nothing in for 300 ms           the other answers, it does not, for 200 ms
//!  relayed, another ────────────────────────────────────► suspected ─────────────────────────────────────► the other
//!  relay at hand   ◄──────────────────────────────────────    │
//!                                it is heard, or answers      └── neither answers: as with any other way
//! ```
//!
//! Of the two members one notices first. The other follows, or suspects its own, as soon as packets of the session come
//! by the other relay and none by its own. A direct way is not given up so soon: what stands in for it is worse, and a full queue in front
//! of a slow link looks the same for a while.

use std::time::{Duration, Instant};

use super::pair::{Failure, State};
use super::{Agent, Route, SUSPECT, class};

/// The least silence that counts, and the least time to answer a probe. Round trips are added.
const SILENCE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_millis(200);
/// When a second relay is looked for, and again while there is none. The member with the greater id leaves it to the
/// other one for a while.
const SPARE_SOON: Duration = Duration::from_millis(500);
const SPARE_LATER: Duration = Duration::from_secs(3);
const SPARE_AGAIN: Duration = Duration::from_secs(30);

impl Agent {
    /// For how long packets may go out with nothing coming back.
    pub(super) fn suspect_after(&self) -> Duration {
        match self.stand_in() {
            Some(_) => (SILENCE + self.rtt().unwrap_or(SUSPECT)).min(SUSPECT),
            None => SUSPECT,
        }
    }

    /// The best other way that is alive, where the one in use is relayed.
    fn stand_in(&self) -> Option<Route> {
        if !matches!(self.selected, Some(Route::Relayed(_))) {
            return None;
        }
        self.pairs
            .iter()
            .filter(|(route, pair)| Some(**route) != self.selected && pair.is_alive())
            .min_by_key(|(route, pair)| (class::class(**route, Some(pair)), pair.rtt))
            .map(|(route, _)| *route)
    }

    /// The way in use is silent: asks whether it is alive, and whether what could stand in for it is.
    pub(super) fn suspect(&mut self, now: Instant) {
        if self.stand_in().is_none() {
            if let Some(pair) = self.selected.and_then(|selected| self.pairs.get_mut(&selected)) {
                pair.hurry(now, SUSPECT / 2);
            }
            return;
        }
        if self.suspected_at.is_none() {
            self.suspected_at = Some(now);
            let alive = self.pairs.values_mut().filter(|pair| pair.is_alive());
            alive.for_each(|pair| pair.hurry(now, Duration::ZERO));
        }
    }

    /// When it is known whether a suspected way is dead.
    pub(super) fn verdict_at(&self) -> Option<Instant> {
        let patience = PATIENCE + self.rtt().unwrap_or_default();
        self.suspected_at.map(|at| at + patience)
    }

    /// Gives a suspected way up for one that has answered meanwhile.
    pub(super) fn judge(&mut self, now: Instant) {
        let Some(suspected_at) = self.suspected_at.filter(|_| self.verdict_at() <= Some(now)) else {
            return;
        };
        self.suspected_at = None;
        let answers = |route: Route| {
            let pair = self.pairs.get(&route)?;
            pair.answered_at.filter(|at| *at >= suspected_at)
        };
        if self.stand_in().and_then(answers).is_none() {
            return;
        }
        if let Some(pair) = self.selected.and_then(|selected| self.pairs.get_mut(&selected)) {
            pair.state = State::Failed(Failure::Lost);
            pair.hurry(now, Duration::ZERO);
        }
        self.reselect(now);
    }

    /// A packet of the session came by another way than the one in use: perhaps by another relay, since the peer has
    /// given this one up. `true` if that one is in use now.
    ///
    /// Only the member with the greater id follows at once, or two that use a relay each would exchange them for ever.
    /// The other one asks first whether its own is dead.
    pub(super) fn follow(&mut self, route: Route, now: Instant) -> bool {
        let Some(old @ Route::Relayed(_)) = self.selected else {
            return false;
        };
        let answered_at = self.pairs.get(&old).and_then(|pair| pair.answered_at);
        let since = self.heard_at.max(self.selected_since).max(answered_at);
        let silent = since.is_none_or(|at| now.saturating_duration_since(at) >= PATIENCE);
        let alive = self.pairs.get(&route).is_some_and(super::Pair::is_alive);
        if !silent || !alive || !matches!(route, Route::Relayed(_)) {
            return false;
        }
        if self.own < self.peer {
            self.suspect(now);
            return false;
        }
        if let Some(pair) = self.pairs.get_mut(&old) {
            // It counts again when it answers.
            pair.restart(now);
        }
        self.select(Some(route), now);
        true
    }

    /// When a second relay is looked for.
    pub(super) fn spare_after(&self, now: Instant) -> Instant {
        now + if self.own < self.peer {
            SPARE_SOON
        } else {
            SPARE_LATER
        }
    }

    /// Whether a second relay is wanted now.
    pub(super) fn wants_spare(&mut self, now: Instant) -> bool {
        if self.spare_at.is_none_or(|at| at > now) {
            return false;
        }
        let relayed = matches!(self.selected, Some(Route::Relayed(_)));
        self.spare_at = relayed.then(|| now + SPARE_AGAIN);
        let relays = self.pairs.iter().filter(|(route, pair)| {
            matches!(route, Route::Relayed(_)) && !matches!(pair.state, State::Failed(_))
        });
        relayed && relays.count() < 2
    }
}
