//! When the network changes, of this host or of the peer.
//!
//! A change puts ways in doubt ([`Pair::doubt`](super::pair::Pair::doubt)): they are asked at once, stay in use while
//! there is nothing better, and the first that answers is taken, whatever was used before.
//!
//! - This host has other addresses or another way to the outside, as its kernel said: every way is in doubt, and the
//!   peer is told the new candidates as they become known.
//! - The peer no longer announces an address that it announced: that one is in doubt.
//! - The peer is heard by another way than the one in use, which does not answer: so is that one. Nobody has said
//!   anything, as when a router was restarted.

use std::time::{Duration, Instant};

use super::{Agent, MIN_ROUND, REOPEN, Route};

/// Two offers after the own network has changed are at least so far apart: what others see of it is told as soon as it
/// is known.
const MOVED_ROUND: Duration = Duration::from_millis(50);
/// While the peer is heard by another way than the one in use, that one has so long to answer, and two round trips.
const ELSEWHERE: Duration = Duration::from_millis(200);

impl Agent {
    /// This host's candidates have changed: tell the peer, unless the way is direct already.
    pub(crate) fn local_changed(&mut self, now: Instant) {
        let settled = matches!(self.selected, Some(Route::Direct(_))) && !self.is_in_doubt();
        if self.awake && self.remote.is_some() && !settled {
            let gap = if self.is_in_doubt() {
                MOVED_ROUND
            } else {
                MIN_ROUND
            };
            let at = self.last_round.map_or(now, |last| now.max(last + gap));
            self.offer_at = Some(self.offer_at.map_or(at, |planned| planned.min(at)));
        }
    }

    /// Every way is in doubt: this host's network has changed.
    pub(crate) fn network_changed(&mut self, now: Instant) {
        if self.awake {
            self.search(now);
            for pair in self.pairs.values_mut() {
                pair.doubt(now);
            }
            self.relay_at = Some(now + REOPEN);
        }
    }

    /// Whether something has happened to the way in use since it answered last.
    fn is_in_doubt(&self) -> bool {
        let selected = self.selected.and_then(|selected| self.pairs.get(&selected));
        selected.is_some_and(|pair| pair.doubted.is_some())
    }

    /// A packet of the session came in.
    pub(crate) fn heard(&mut self, route: Route, now: Instant) {
        if self.selected == Some(route) {
            self.sent_at = None;
            self.suspected_at = None;
            self.heard_at = Some(now);
            return;
        }
        if self.follow(route, now) {
            return;
        }
        self.learn(route, now);
        if let Some(pair) = self.pairs.get_mut(&route)
            && !pair.is_alive()
        {
            pair.hurry(now, Duration::from_millis(200));
        }
        if let Some(pair) = self.selected.and_then(|selected| self.pairs.get_mut(&selected)) {
            let patience = ELSEWHERE + 2 * pair.rtt.unwrap_or_default();
            // A probe that is late is followed by another sooner than it would be by itself.
            let pause = if pair.tries == 1 {
                patience
            } else {
                Duration::from_secs(1)
            };
            pair.hurry(now, pause);
            // The peer sends elsewhere, and this one does not answer: it is left for any that does. That is found out
            // once, and not with every packet.
            if pair.doubted.is_none() && pair.is_late(patience, now) {
                pair.doubted = Some(now);
                self.ask_others(now);
            }
        }
    }

    /// A way is in doubt: which of the others answers?
    pub(super) fn ask_others(&mut self, now: Instant) {
        let alive = self.pairs.values_mut().filter(|pair| pair.is_sure());
        alive.for_each(|pair| pair.hurry(now, Duration::ZERO));
    }
}
