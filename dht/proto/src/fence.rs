//! The fence: who has met a later certificate of a key takes no earlier one.
//!
//! ```text
//!            a certificate of another holder
//!  passed ──────────────────────────────────► later than what has passed? ── yes ──► passes, and is remembered
//!                                                          └── no ───► refused: its lease was given up meanwhile
//! ```
//!
//! A lease that is given up early leaves certificates behind that are valid until their receipts end: a witness that
//! did not hear of the release goes on handing them out, while the next holder has the key already. Whoever uses a
//! key (a look-up, a tunnel) therefore keeps, per key, the order of the last certificate that it used, and refuses one
//! of another holder that is earlier.
//!
//! The order is that of the witnesses that signed both, each of which numbers its grants: the certificate with the
//! higher numbers at most of them is the later one. As long as quorums intersect there is such a witness. Where there
//! is none, after a partition, the witnesses' times decide (their median). A lease that was held all the time passes
//! again with its next renewal, so that a fence never shuts out the holder that a conflict leaves for longer than
//! that.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aerie_types::{Key, PeerId, WallMillis};

use crate::Certificate;
use crate::lease::order_of;
use crate::limits::MAX_FENCED;

/// The order of one certificate among those of its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Order {
    holder: PeerId,
    /// The number of its grant at each witness.
    numbers: BTreeMap<PeerId, u64>,
    issued: WallMillis,
}

impl Order {
    fn of(certificate: &Certificate) -> Self {
        let receipts = certificate.receipts.iter();
        Self {
            holder: certificate.terms.holder,
            numbers: receipts
                .map(|receipt| (receipt.witness, receipt.number))
                .collect(),
            issued: certificate.median(),
        }
    }

    fn is_before(&self, other: &Self) -> bool {
        let common = |(witness, number): (&PeerId, &u64)| Some((*number, *other.numbers.get(witness)?));
        match order_of(self.numbers.iter().filter_map(common)) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => self.issued < other.issued,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Passed {
    order: Order,
    until: Instant,
}

/// The certificates that were used last, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Fence(BTreeMap<Key, Passed>);

impl Fence {
    /// Whether a certificate may be used; one that may is remembered. The caller has found it valid. `keep` is the
    /// longest life of a certificate, after which an earlier one has ended by itself.
    pub fn pass(&mut self, certificate: &Certificate, keep: Duration, now: Instant) -> bool {
        let key = certificate.terms.key;
        let order = Order::of(certificate);
        let known = self.0.get(&key).filter(|passed| passed.until > now);
        if let Some(Passed { order: last, .. }) = known
            && order.is_before(last)
        {
            // An earlier certificate of the same holder proves the same; it must not lower the fence.
            return order.holder == last.holder;
        }
        if self.0.len() >= MAX_FENCED && !self.0.contains_key(&key) {
            self.make_room(now);
        }
        let until = now + keep;
        self.0.insert(key, Passed { order, until });
        true
    }

    /// Forgets what has ended, and where that is not enough what ends first.
    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, passed| passed.until > now);
        if self.0.len() >= MAX_FENCED {
            let first = self.0.iter().min_by_key(|(_, passed)| passed.until);
            if let Some(key) = first.map(|(key, _)| *key) {
                self.0.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Receipt;
    use crate::lease::tests::terms;

    const KEEP: Duration = Duration::from_secs(1800);

    fn certificate(holder: u8, time: u64, numbers: &[(u8, u64)]) -> Certificate {
        let receipt = |(witness, number): &(u8, u64)| Receipt {
            witness: PeerId([*witness; 32]),
            number: *number,
            time: WallMillis(time),
            ttl_ms: 1000,
            members: 9,
            signature: [0; 64].into(),
        };
        Certificate {
            terms: terms(holder, None),
            receipts: numbers.iter().map(receipt).collect(),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test needs some instant to count from"
    )]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_lease_given_up_does_not_come_back_after_its_successor_whatever_the_clocks_say() {
        let (mut fence, now) = (Fence::default(), now());
        let first = certificate(1, 900, &[(1, 4), (2, 7), (3, 1)]);
        let second = certificate(2, 500, &[(2, 8), (3, 2), (4, 1)]);
        assert!(fence.pass(&first, KEEP, now));
        assert!(fence.pass(&second, KEEP, now));
        assert!(!fence.pass(&first, KEEP, now));
        assert!(
            fence.pass(&first, KEEP, now + KEEP),
            "after a whole life nothing earlier is left"
        );
    }

    #[test]
    fn without_a_common_witness_the_times_decide_and_a_renewal_passes() {
        let (mut fence, now) = (Fence::default(), now());
        assert!(fence.pass(&certificate(2, 500, &[(4, 1), (5, 1)]), KEEP, now));
        assert!(!fence.pass(&certificate(1, 400, &[(1, 9), (2, 9)]), KEEP, now));
        assert!(fence.pass(&certificate(1, 600, &[(1, 10), (2, 10)]), KEEP, now));
    }

    #[test]
    fn an_earlier_certificate_of_the_same_holder_passes_and_does_not_lower_the_fence() {
        let (mut fence, now) = (Fence::default(), now());
        assert!(fence.pass(&certificate(2, 500, &[(1, 5)]), KEEP, now));
        assert!(fence.pass(&certificate(2, 300, &[(1, 3)]), KEEP, now));
        assert!(!fence.pass(&certificate(1, 400, &[(1, 4)]), KEEP, now));
    }
}
