//! Token buckets: one, and one per source address with a bounded memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::MAX_RATED_SOURCES;

/// A token bucket. Tokens are whatever the caller counts: packets or bytes.
#[derive(Debug, Clone)]
pub(crate) struct TokenBucket {
    per_second: u64,
    burst: u64,
    tokens: u64,
    filled: Instant,
}

impl TokenBucket {
    pub(crate) fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        Self {
            per_second,
            burst,
            tokens: burst,
            filled: now,
        }
    }

    /// Takes tokens if there are enough.
    pub(crate) fn take(&mut self, count: u64, now: Instant) -> bool {
        let elapsed = now
            .saturating_duration_since(self.filled)
            .min(Duration::from_secs(3600));
        let gained = elapsed.as_micros() as u64 * self.per_second / 1_000_000;
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(self.burst);
            // Only as far as whole tokens reach, so that asking often loses no fraction.
            self.filled = if self.tokens == self.burst {
                now
            } else {
                self.filled + Duration::from_micros(gained * 1_000_000 / self.per_second)
            };
        }
        let enough = self.tokens >= count;
        if enough {
            self.tokens -= count;
        }
        enough
    }

    fn is_full(&self, now: Instant) -> bool {
        self.clone().take(self.burst, now)
    }
}

/// A rate per source address and one for all sources together. A source over its own rate takes nothing of the
/// common one, so that one noisy address does not silence the others.
#[derive(Debug)]
pub(crate) struct SourceLimiter {
    per_source: u32,
    sources: BTreeMap<IpAddr, TokenBucket>,
    total: TokenBucket,
}

impl SourceLimiter {
    pub(crate) fn new(per_source: u32, total: u32, now: Instant) -> Self {
        let total = TokenBucket::new(total.into(), total.into(), now);
        Self {
            per_source,
            sources: BTreeMap::new(),
            total,
        }
    }

    pub(crate) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_RATED_SOURCES {
            self.sources.retain(|_, bucket| !bucket.is_full(now));
            if self.sources.len() >= MAX_RATED_SOURCES {
                // Every remembered source is busy: make room, and let the common rate decide.
                self.sources.pop_first();
            }
        }
        let rate = u64::from(self.per_source);
        let bucket = self
            .sources
            .entry(source)
            .or_insert_with(|| TokenBucket::new(rate, rate, now));
        bucket.take(1, now) && self.total.take(1, now)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
mod tests {
    use super::*;

    #[test]
    fn a_source_over_its_rate_leaves_the_others_theirs() {
        let start = Instant::now();
        let mut limiter = SourceLimiter::new(20, 100, start);
        let noisy = IpAddr::from([192, 0, 2, 1]);
        let allowed = (0..1000).filter(|_| limiter.allow(noisy, start)).count();
        assert_eq!(allowed, 20);
        assert!(limiter.allow(IpAddr::from([192, 0, 2, 2]), start));
        assert!(limiter.allow(noisy, start + Duration::from_secs(1)));
    }

    #[test]
    fn the_memory_of_sources_is_bounded() {
        let start = Instant::now();
        let mut limiter = SourceLimiter::new(1, 1_000_000, start);
        for n in 0..(MAX_RATED_SOURCES as u32 * 3) {
            limiter.allow(IpAddr::from(n.to_be_bytes()), start);
        }
        assert!(limiter.sources.len() <= MAX_RATED_SOURCES);
    }

    #[test]
    fn a_bucket_refills_at_its_rate_however_often_it_is_asked() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10, 10, start);
        assert!(bucket.take(10, start));
        let mut got = 0;
        for ms in 0..=1000 {
            got += u32::from(bucket.take(1, start + Duration::from_millis(ms)));
        }
        assert_eq!(got, 10);
    }
}
