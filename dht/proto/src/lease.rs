//! Terms, receipts and certificates: what a lease consists of, and how it proves itself.
//!
//! A witness signs a *receipt* over the *terms* of a lease together with its own number, time, life and count of
//! members. A *certificate* is the same terms with the receipts of a quorum. Whoever has the CA's certificate can
//! check it: each receipt is signed by the key that is its witness's peer id, and the witness's credential, which
//! travels beside the certificate in a [`Proof`] or is already known, makes that peer a member.
//!
//! How many receipts suffice follows from the largest count of members that any of them states:
//! [`quorum`] of it, a majority below fourteen members, seven above.
//!
//! `since` is the median of the witnesses' times in the very first certificate, carried along by the renewals, each
//! of which shows its predecessor; the order between two conflicting certificates goes by it, so that renewing does
//! not make a lease younger.

use std::cmp::Ordering;
use std::time::Duration;

use aerie_types::{GridId, Instance, Key, NodeName, PeerId, WallMillis};
use serde::{Deserialize, Serialize};

use crate::leased::Leased;
use crate::limits::{CLOCK_SKEW, MAX_RECEIPTS};
use crate::{Keys, QuorumRule, Signature};

/// More than half.
#[must_use]
pub fn majority(members: usize) -> usize {
    members / 2 + 1
}

/// Receipts that a certificate needs by the default rule when the largest count of members stated in it is `members`.
#[must_use]
pub fn quorum(members: usize) -> usize {
    QuorumRule::default().receipts(members)
}

/// What is leased to whom. The key is that of what is leased, or the one under which it is counted for its holder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// The grid.
    pub grid: GridId,
    /// For which of its two keys this is.
    pub key: Key,
    /// To whom.
    pub holder: PeerId,
    /// What is leased.
    pub leased: Leased,
    /// The holder's name.
    pub name: NodeName,
    /// The start of the holder that claimed.
    pub instance: Instance,
    /// Since when, by the median of the first witnesses' clocks; `None` in a first grant.
    pub since: Option<WallMillis>,
}

impl Terms {
    /// Whether the key is one of the two in this grid: that of an address or of its holder's name, that of a prefix
    /// or of its holder as a router.
    #[must_use]
    pub fn consistent(&self, grid: GridId) -> bool {
        self.grid == grid && (self.key == self.leased.key(grid) || self.is_home())
    }

    /// Whether the key is the one under which what the holder has is counted.
    #[must_use]
    pub fn is_home(&self) -> bool {
        self.key == self.leased.home_key(self.grid, &self.name)
    }
}

/// A witness's signed word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Receipt {
    /// Who granted.
    pub witness: PeerId,
    /// The number of the grant, rising at each witness: the time in milliseconds, or one more than the last.
    pub number: u64,
    /// The witness's wall time.
    pub time: WallMillis,
    /// For how long, in milliseconds.
    pub ttl_ms: u32,
    /// How many members the witness knows, itself included.
    pub members: u32,
    /// Over all of it and the terms.
    pub signature: Signature,
}

impl Receipt {
    /// Signs a receipt.
    pub(crate) fn sign(
        keys: &impl Keys,
        terms: &Terms,
        number: u64,
        time: WallMillis,
        ttl: Duration,
        members: usize,
    ) -> Self {
        let mut receipt = Self {
            witness: keys.me(),
            number,
            time,
            ttl_ms: millis(ttl),
            members: u32::try_from(members).unwrap_or(u32::MAX),
            signature: [0; 64].into(),
        };
        receipt.signature = keys.sign(&receipt.message(terms));
        receipt
    }

    /// Whether the signature is the witness's over these terms.
    pub(crate) fn verify(&self, keys: &impl Keys, terms: &Terms) -> bool {
        keys.verify(self.witness, &self.message(terms), &self.signature)
    }

    fn message(&self, terms: &Terms) -> Vec<u8> {
        let body = (
            terms,
            &self.witness,
            self.number,
            self.time,
            self.ttl_ms,
            self.members,
        );
        signed_message("aerie receipt 1", &body)
    }
}

/// Terms with the receipts of a quorum.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Certificate {
    /// What is leased to whom.
    pub terms: Terms,
    /// Who says so, in the order of the witnesses' ids.
    pub receipts: Vec<Receipt>,
}

impl Certificate {
    /// Makes a certificate of as many of the receipts as agree with their own counts of members: `needs` gives the
    /// quorum for the largest count. Receipts that state larger counts are left out first, so that one witness
    /// that exaggerates does not spoil the lease.
    pub(crate) fn assemble(
        terms: &Terms,
        receipts: &[&Receipt],
        needs: impl Fn(usize) -> usize,
    ) -> Option<Self> {
        let mut sorted = timely(receipts.iter().copied());
        sorted.sort_by_key(|receipt| (receipt.members, receipt.witness));
        while let Some(last) = sorted.last() {
            if sorted.len() >= needs(last.members as usize) {
                let mut receipts: Vec<_> = sorted.iter().take(MAX_RECEIPTS).copied().cloned().collect();
                receipts.sort_by_key(|receipt| receipt.witness);
                return Some(Self {
                    terms: terms.clone(),
                    receipts,
                });
            }
            sorted.pop();
        }
        None
    }

    /// The largest count of members that a receipt states.
    #[must_use]
    pub fn members(&self) -> usize {
        self.receipts
            .iter()
            .map(|receipt| receipt.members)
            .max()
            .unwrap_or(0) as usize
    }

    /// The life of the receipt that ends first.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        let ttl = self.receipts.iter().map(|receipt| receipt.ttl_ms).min();
        Duration::from_millis(ttl.unwrap_or(0).into())
    }

    /// The median of the witnesses' times: right as long as fewer than half of the clocks are wrong.
    #[must_use]
    pub fn median(&self) -> WallMillis {
        let mut times: Vec<_> = self.receipts.iter().map(|receipt| receipt.time).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(WallMillis(0))
    }

    /// The receipts that count: those of about the same time. Ones of another day were kept to make up a quorum of
    /// grants that never stood side by side, or their witness's clock is wrong.
    pub(crate) fn timely(&self) -> Vec<&Receipt> {
        timely(self.receipts.iter())
    }

    /// Since when the lease has been held.
    #[must_use]
    pub fn since(&self) -> WallMillis {
        self.terms.since.unwrap_or_else(|| self.median())
    }

    /// Whether this certificate survives against one of another holder.
    ///
    /// Where witnesses signed both, the one that they signed later does: they would not have signed it unless the other
    /// lease had been given back or had ended, so that nobody is evicted by a certificate that somebody kept. Where
    /// there is no such witness, or they differ, it is the older lease, then the lower H(key, holder).
    #[must_use]
    pub fn beats(&self, other: &Self) -> bool {
        match self.order(other) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => self.rank() < other.rank(),
        }
    }

    /// Whether the witnesses that signed both signed this one earlier or later, by the numbers of their grants.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let number = |receipt: &Receipt| {
            let same = other.receipts.iter().find(|one| one.witness == receipt.witness)?;
            Some((receipt.number, same.number))
        };
        order_of(self.receipts.iter().filter_map(number))
    }

    /// A short name of the certificate: its hash.
    #[must_use]
    pub fn digest(&self) -> Key {
        Key::of("aerie/certificate", &[&encode(self)])
    }

    /// Whether the form is right: receipts in strict order, not too many, keys that fit.
    pub(crate) fn well_formed(&self, grid: GridId) -> bool {
        self.terms.consistent(grid)
            && (1..=MAX_RECEIPTS).contains(&self.receipts.len())
            && self
                .receipts
                .windows(2)
                .all(|pair| pair[0].witness < pair[1].witness)
    }

    fn rank(&self) -> (WallMillis, Key) {
        let tie = Key::of("aerie/tie", &[&self.terms.key.0, &self.terms.holder.0]);
        (self.since(), tie)
    }
}

/// A certificate with the credentials of its witnesses. These may be left out for a reader who has them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Proof {
    /// The certificate.
    pub certificate: Certificate,
    /// Credentials (DER), in no particular order.
    pub credentials: Vec<Vec<u8>>,
}

impl Proof {
    /// The bytes of the proof.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

/// Which of two certificates most of their common witnesses signed later, by each one's two numbers.
pub(crate) fn order_of(numbers: impl Iterator<Item = (u64, u64)>) -> Ordering {
    let balance: i32 = numbers.map(|(one, other)| one.cmp(&other) as i32).sum();
    balance.cmp(&0)
}

fn timely<'r>(receipts: impl Iterator<Item = &'r Receipt>) -> Vec<&'r Receipt> {
    let mut receipts: Vec<&Receipt> = receipts.collect();
    let mut times: Vec<_> = receipts.iter().map(|receipt| receipt.time).collect();
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or(WallMillis(0));
    receipts.retain(|receipt| receipt.time.since(median).max(median.since(receipt.time)) <= CLOCK_SKEW * 2);
    receipts
}

/// A duration in milliseconds for the wire, at most 49 days.
pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A context and a body, each preceded by its length, so that no two kinds of message are mistaken for each other.
pub(crate) fn signed_message(context: &str, body: &impl Serialize) -> Vec<u8> {
    let body = encode(body);
    let mut message = Vec::with_capacity(16 + context.len() + body.len());
    for part in [context.as_bytes(), &body] {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

/// Postcard of a value of this crate.
#[expect(
    clippy::expect_used,
    reason = "these types have no map, no float and no unknown length, the only things that fail"
)]
pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn terms(holder: u8, since: Option<WallMillis>) -> Terms {
        let grid = GridId([1; 16]);
        let leased = Leased::Addr(std::net::Ipv4Addr::new(10, 0, 0, 1).into());
        Terms {
            grid,
            key: leased.key(grid),
            holder: PeerId([holder; 32]),
            leased,
            name: "w1".parse().unwrap(),
            instance: Instance(1),
            since,
        }
    }

    #[test]
    fn majorities_of_neighbouring_sizes_share_a_member() {
        for members in 1..30 {
            assert!(majority(members) + majority(members + 1) > members + 1);
        }
        assert_eq!((quorum(1), quorum(8), quorum(13), quorum(1000)), (1, 5, 7, 7));
    }

    #[test]
    fn a_lease_given_back_does_not_evict_its_successor_and_else_the_older_one_survives() {
        let certificate = |holder, since, numbers: &[(u8, u64)]| {
            let receipt = |(witness, number): &(u8, u64)| Receipt {
                witness: PeerId([*witness; 32]),
                number: *number,
                time: WallMillis(since),
                ttl_ms: 1,
                members: 9,
                signature: [0; 64].into(),
            };
            Certificate {
                terms: terms(holder, Some(WallMillis(since))),
                receipts: numbers.iter().map(receipt).collect(),
            }
        };
        let given_back = certificate(1, 100, &[(1, 4), (2, 7), (3, 1)]);
        let successor = certificate(2, 500, &[(2, 8), (3, 2), (4, 1)]);
        assert!(successor.beats(&given_back) && !given_back.beats(&successor));
        let torn = certificate(2, 500, &[(4, 8), (5, 2), (6, 1)]);
        assert!(given_back.beats(&torn) && !torn.beats(&given_back));
    }

    #[test]
    fn a_receipt_of_another_hour_does_not_count() {
        let terms = terms(1, None);
        let receipt = |witness, seconds: u64| Receipt {
            witness: PeerId([witness; 32]),
            number: 1,
            time: WallMillis(1_800_000_000_000 + seconds * 1000),
            ttl_ms: 1_800_000,
            members: 5,
            signature: [0; 64].into(),
        };
        let receipts = [receipt(1, 4000), receipt(2, 3600), receipt(3, 0)];
        let certificate = Certificate {
            terms: terms.clone(),
            receipts: receipts.to_vec(),
        };
        assert_eq!(certificate.timely().len(), 2);
        let all: Vec<_> = receipts.iter().collect();
        assert!(
            Certificate::assemble(&terms, &all, quorum).is_none(),
            "two of five are no majority"
        );
        assert!(Certificate::assemble(&terms, &all, |_| 2).is_some());
    }

    #[test]
    fn a_witness_that_exaggerates_the_membership_is_left_out() {
        let terms = terms(1, None);
        let receipt = |witness, members| Receipt {
            witness: PeerId([witness; 32]),
            number: 1,
            time: WallMillis(1),
            ttl_ms: 1,
            members,
            signature: [0; 64].into(),
        };
        let receipts = [receipt(1, 3), receipt(2, u32::MAX), receipt(3, 3)];
        let all: Vec<_> = receipts.iter().collect();
        let certificate = Certificate::assemble(&terms, &all, quorum).unwrap();
        assert_eq!(certificate.receipts.len(), 2);
        assert!(Certificate::assemble(&terms, &all[1..], quorum).is_none());
    }
}
