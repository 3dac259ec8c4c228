//! The replay window: which counters of a session have been seen.
//!
//! A ring of bits, one word ahead of the window so that a word can be cleared as a whole when the window moves
//! (RFC 6479). The window is [`WINDOW`] counters wide: the newest one and the `WINDOW - 1` before it. Batches
//! that take different paths reorder by thousands of packets, so WireGuard's 8128 is not more than enough.

/// Width of the window in counters.
pub const WINDOW: u64 = 8192;
const WORDS: usize = WINDOW as usize / 64 + 1;

/// The counters seen in one direction of a session.
#[derive(Debug)]
pub(crate) struct Replay {
    /// One more than the newest counter accepted; zero while there is none.
    end: u64,
    bits: [u64; WORDS],
}

impl Replay {
    pub(crate) fn new() -> Self {
        Self {
            end: 0,
            bits: [0; WORDS],
        }
    }

    /// Whether a counter could still be accepted. Cheap: asked before a packet is opened.
    pub(crate) fn may_accept(&self, counter: u64) -> bool {
        if counter >= self.end {
            return true;
        }
        self.end - counter <= WINDOW && self.bits[word(counter)] & bit(counter) == 0
    }

    /// Takes the counter of a packet that opened. `false` if it was seen or is too old.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if !self.may_accept(counter) || counter == u64::MAX {
            return false;
        }
        if counter >= self.end {
            let newest = self.end.saturating_sub(1) / 64;
            let ahead = (counter / 64 - newest).min(WORDS as u64);
            for step in 1..=ahead {
                self.bits[((newest + step) % WORDS as u64) as usize] = 0;
            }
            self.end = counter + 1;
        }
        self.bits[word(counter)] |= bit(counter);
        true
    }
}

fn word(counter: u64) -> usize {
    (counter / 64 % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_ends_exactly_where_it_says() {
        for newest in [WINDOW, WINDOW + 63, WINDOW + 64, 5 * WINDOW + 17] {
            let mut replay = Replay::new();
            assert!(replay.accept(newest));
            assert!(!replay.accept(newest), "the newest twice");
            assert!(!replay.accept(newest - WINDOW), "just outside");
            assert!(replay.accept(newest - WINDOW + 1), "the oldest inside");
            assert!(!replay.accept(newest - WINDOW + 1), "the oldest inside twice");
            assert!(replay.accept(newest + 1));
            assert!(!replay.accept(newest - WINDOW + 1), "it moved out");
            assert!(replay.accept(newest - WINDOW + 2));
        }
    }

    #[test]
    fn a_jump_over_the_whole_window_forgets_nothing_that_is_inside() {
        let mut replay = Replay::new();
        for counter in 0..200 {
            assert!(replay.accept(counter));
        }
        assert!(replay.accept(WINDOW * 3));
        assert!(!replay.accept(199));
        for counter in WINDOW * 2 + 1..WINDOW * 3 {
            assert!(replay.accept(counter), "{counter}");
        }
    }

    #[test]
    fn the_last_counter_is_never_accepted() {
        let mut replay = Replay::new();
        assert!(!replay.accept(u64::MAX));
        assert!(replay.accept(u64::MAX - 1));
        assert!(!replay.accept(u64::MAX - 1));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(counters in prop::collection::vec(0u64..40_000, 1..400)) {
            let mut replay = Replay::new();
            let mut seen = BTreeSet::new();
            for counter in counters {
                let newest = seen.last().copied();
                let inside = newest.is_none_or(|newest: u64| counter + WINDOW > newest);
                prop_assert_eq!(replay.accept(counter), inside && !seen.contains(&counter));
                if inside {
                    seen.insert(counter);
                }
            }
        }
    }
}
