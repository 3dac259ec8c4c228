//! One session: the keys of one handshake, its counters and its replay window.

use std::time::Instant;

use crate::Suite;
use crate::handshake::Keys;
use crate::limits::{REJECT_AFTER, REKEY_AFTER};
use crate::replay::Replay;
use crate::suite::BulkKey;
use crate::wire::{self, DATA_HEADER};

pub(crate) struct Session {
    /// The index by which the other side addresses this session.
    pub(crate) local: u32,
    remote: u32,
    suite: Suite,
    send: BulkKey,
    receive: BulkKey,
    counter: u64,
    replay: Replay,
    pub(crate) created: Instant,
    /// Whether this side initiated: then it renews, too.
    pub(crate) initiator: bool,
}

/// Why a packet was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Replayed,
    Forged,
    Expired,
}

impl Session {
    pub(crate) fn new(local: u32, remote: u32, keys: &Keys, initiator: bool, now: Instant) -> Self {
        Self {
            local,
            remote,
            suite: keys.suite,
            send: BulkKey::new(keys.suite, &keys.send),
            receive: BulkKey::new(keys.suite, &keys.receive),
            counter: 0,
            replay: Replay::new(),
            created: now,
            initiator,
        }
    }

    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    /// As if so many packets had been sealed.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, counter: u64) {
        self.counter = counter;
    }

    /// Whether it may still be used.
    pub(crate) fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created) < REJECT_AFTER
            && self.counter < self.suite.reject_after_messages()
    }

    /// Whether this side should renew it, when it sends.
    pub(crate) fn wants_renewal(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.created);
        (self.initiator && age >= REKEY_AFTER) || self.counter >= self.suite.rekey_after_messages()
    }

    /// Seals a packet into a slot of `DATA_OVERHEAD` bytes more. `false` if the session is used up.
    pub(crate) fn seal(&mut self, plain: &[u8], slot: &mut [u8], now: Instant) -> bool {
        if !self.is_alive(now) {
            return false;
        }
        let header = wire::data_header(self.suite as u8, self.remote, self.counter);
        let Some((head, sealed)) = slot.split_at_mut_checked(DATA_HEADER) else {
            return false;
        };
        head.copy_from_slice(&header);
        // A counter is spent even if sealing fails: it never comes back.
        let counter = self.counter;
        self.counter += 1;
        self.send.seal(counter, &header, plain, sealed)
    }

    /// Opens a datagram in place; the packet is then at [`DATA_HEADER`] and so long.
    pub(crate) fn open(&mut self, datagram: &mut [u8], counter: u64, now: Instant) -> Result<usize, Refused> {
        if now.saturating_duration_since(self.created) >= REJECT_AFTER {
            return Err(Refused::Expired);
        }
        if !self.replay.may_accept(counter) {
            return Err(Refused::Replayed);
        }
        let (head, sealed) = datagram
            .split_at_mut_checked(DATA_HEADER)
            .ok_or(Refused::Forged)?;
        if head.get(2) != Some(&(self.suite as u8)) {
            return Err(Refused::Forged);
        }
        let len = self.receive.open(counter, head, sealed).ok_or(Refused::Forged)?;
        if self.replay.accept(counter) {
            Ok(len)
        } else {
            Err(Refused::Replayed)
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
mod tests {
    use std::time::Duration;

    use zeroize::Zeroizing;

    use super::*;
    use crate::replay::WINDOW;
    use crate::wire::DATA_OVERHEAD;

    fn pair(now: Instant) -> (Session, Session) {
        let keys = |send: u8, receive: u8| Keys {
            send: Zeroizing::new([send; 32]),
            receive: Zeroizing::new([receive; 32]),
            suite: Suite::Aes256Gcm,
        };
        (
            Session::new(1, 2, &keys(1, 2), true, now),
            Session::new(2, 1, &keys(2, 1), false, now),
        )
    }

    fn seal(session: &mut Session, plain: &[u8], now: Instant) -> Option<Vec<u8>> {
        let mut slot = vec![0; plain.len() + DATA_OVERHEAD];
        session.seal(plain, &mut slot, now).then_some(slot)
    }

    #[test]
    fn sealed_packets_open_in_any_order_within_the_window_and_once() {
        let now = Instant::now();
        let (mut a, mut b) = pair(now);
        let sealed: Vec<_> = (0..=WINDOW).map(|_| seal(&mut a, b"x", now).unwrap()).collect();
        let open = |b: &mut Session, n: usize| b.open(&mut sealed[n].clone(), n as u64, now);
        let newest = WINDOW as usize;
        assert_eq!(open(&mut b, newest), Ok(1));
        assert_eq!(open(&mut b, 0), Err(Refused::Replayed), "one outside the window");
        assert_eq!(open(&mut b, 1), Ok(1), "the oldest inside");
        assert_eq!(open(&mut b, 1), Err(Refused::Replayed));
        assert_eq!(open(&mut b, newest), Err(Refused::Replayed));
    }

    #[test]
    fn a_forgery_does_not_move_the_window() {
        let now = Instant::now();
        let (mut a, mut b) = pair(now);
        let good = seal(&mut a, b"x", now).unwrap();
        let mut forged = good.clone();
        forged[8..16].copy_from_slice(&(1u64 << 40).to_be_bytes());
        assert_eq!(b.open(&mut forged, 1 << 40, now), Err(Refused::Forged));
        assert_eq!(b.open(&mut good.clone(), 0, now), Ok(1));
    }

    #[test]
    fn an_old_session_neither_seals_nor_opens() {
        let now = Instant::now();
        let (mut a, mut b) = pair(now);
        let good = seal(&mut a, b"x", now).unwrap();
        let late = now + REJECT_AFTER;
        assert!(seal(&mut a, b"x", late).is_none());
        assert_eq!(b.open(&mut good.clone(), 0, late), Err(Refused::Expired));
        assert_eq!(
            b.open(&mut good.clone(), 0, late - Duration::from_millis(1)),
            Ok(1)
        );
    }

    #[test]
    fn a_session_that_sealed_too_much_asks_for_renewal_and_then_stops() {
        let now = Instant::now();
        let (mut a, _) = pair(now);
        a.counter = Suite::Aes256Gcm.rekey_after_messages();
        assert!(a.wants_renewal(now) && a.is_alive(now));
        a.counter = Suite::Aes256Gcm.reject_after_messages();
        assert!(seal(&mut a, b"x", now).is_none());
    }
}
