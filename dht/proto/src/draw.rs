//! A small deterministic source of jitter, seeded once from the source that the caller gives.

use std::time::Duration;

/// SplitMix64. Not for secrets: it spreads retries in time and nothing else, and it can be copied and compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration in `0..max`, in whole milliseconds.
    pub(crate) fn up_to(&mut self, max: Duration) -> Duration {
        let millis = u64::try_from(max.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.next() % millis)
    }

    /// The duration, a tenth more or less.
    pub(crate) fn about(&mut self, duration: Duration) -> Duration {
        duration * 9 / 10 + self.up_to(duration / 5)
    }
}
