//! One end of a relayed session.

use std::time::{Duration, Instant};

use aerie_types::{PeerId, UnderlayAddr};
use aws_lc_rs::hmac;

use super::ticket_key;
use crate::wire::{self, Mac};

/// Binds again after this long: keeps the NAT's mapping and the relay's session.
const REBIND: Duration = Duration::from_secs(15);
/// Gaps between binds that are not answered.
const RETRY_MS: [u64; 6] = [250, 500, 1000, 1000, 1000, 1000];
/// Binds again after this long while the other end is missing.
const WAIT_FAR: Duration = Duration::from_secs(1);
/// The other end is waited for so many times.
const MAX_WAITS: u32 = 15;

pub(crate) struct Link {
    pub(crate) relay: PeerId,
    pub(crate) addr: UnderlayAddr,
    pub(crate) far: PeerId,
    session: u64,
    end: u8,
    key: hmac::Key,
    sequence: u64,
    far_bound: bool,
    next: Instant,
    unanswered: u32,
    waits: u32,
    created: Instant,
}

impl Link {
    pub(crate) fn new(
        (relay, addr): (PeerId, UnderlayAddr),
        far: PeerId,
        (session, end, ticket): (u64, u8, &[u8; 16]),
        now: Instant,
    ) -> Self {
        Self {
            relay,
            addr,
            far,
            session,
            end,
            key: ticket_key(ticket),
            sequence: 0,
            far_bound: false,
            next: now,
            unanswered: 0,
            waits: 0,
            created: now,
        }
    }

    /// Goes to the relay by another way from now on; the session is the same. Whether that is another one.
    pub(crate) fn move_to(&mut self, addr: UnderlayAddr, now: Instant) -> bool {
        let other = self.addr != addr;
        if other {
            // A connection is a new chance; going back from one is none.
            if addr.stream().is_some() {
                self.unanswered = 0;
            }
            self.addr = addr;
            self.next = now;
        }
        other
    }

    /// The bind that is due.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.next || self.is_dead() {
            return None;
        }
        let gap = RETRY_MS.get(self.unanswered as usize).copied().unwrap_or(1000);
        self.next = now + Duration::from_millis(gap);
        self.unanswered += 1;
        self.sequence += 1;
        Some(wire::relay_bind(self.session, self.end, self.sequence, &self.key))
    }

    /// This host's network has changed: binds again from where it is now.
    pub(crate) fn rebind(&mut self, now: Instant) {
        self.unanswered = 0;
        self.next = now;
    }

    /// Asks the relay now whether it is there, unless it is being asked.
    pub(crate) fn hurry(&mut self, now: Instant) {
        if self.unanswered == 0 {
            self.next = now;
        }
    }

    /// The relay's answer: whether both ends are bound now and were not before. `None` if it is none.
    pub(crate) fn handle_bound(
        &mut self,
        (end, sequence, far_bound): (u8, u64, bool),
        mac: Mac<'_>,
        now: Instant,
    ) -> Option<bool> {
        if end != self.end || sequence != self.sequence || !mac.verify(&self.key) {
            return None;
        }
        self.unanswered = 0;
        self.next = if far_bound {
            now + REBIND
        } else {
            self.waits += 1;
            now + WAIT_FAR
        };
        let opened = far_bound && !self.far_bound;
        self.far_bound = far_bound;
        Some(opened)
    }

    /// Whether the relay was asked in vain more than once.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.unanswered > 1
    }

    /// Whether the relay has stopped to answer, or the far end never came.
    pub(crate) fn is_dead(&self) -> bool {
        self.unanswered as usize > RETRY_MS.len() || self.waits > MAX_WAITS
    }

    /// Whether it has existed for so long.
    pub(crate) fn is_older_than(&self, age: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.created) >= age
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        self.next
    }
}
