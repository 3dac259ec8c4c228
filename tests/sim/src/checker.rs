//! What must be true at every moment of a run.
//!
//! The checker keeps every certificate on which its holder relies, by the holder's own reckoning, and looks for two of
//! one key. Two that overlap are one of these:
//!
//! - *A violation*: one witness signed both; or no witness did, and yet the grid was whole while both came about, so
//!   that the two sets of witnesses had no reason to differ by more than four.
//! - *Torn* (G3): no witness signed both, and one of them came about while the grid was torn in two. That is counted,
//!   and G2 has to end it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_dht_proto::{Certificate, HeldLease, Kind, Leased};
use aerie_types::{Key, PeerId, VirtualAddr, VirtualPrefix};

/// A certificate came about at most this long before its holder has it: the longest round of votes.
const ROUND: Duration = Duration::from_secs(16);

#[derive(Debug, Clone)]
struct Valid {
    holder: usize,
    kind: Kind,
    /// When the holder got it.
    since: Duration,
    until: Duration,
    witnesses: Vec<PeerId>,
}

/// Keeps every valid certificate of the run, by the holder's own reckoning, and looks for two of one key.
#[derive(Debug, Default)]
pub struct Checker {
    valid: BTreeMap<Key, Vec<Valid>>,
    violations: Vec<String>,
    /// When the grid was torn, and until when.
    torn: Vec<(Duration, Option<Duration>)>,
    /// Which two held one key since the grid was torn.
    pairs: BTreeSet<(Key, usize, usize)>,
    /// How many pairs there were in all.
    double: u64,
    liars: BTreeSet<PeerId>,
    /// Everything that was ever leased.
    addrs: BTreeSet<VirtualAddr>,
    prefixes: BTreeSet<VirtualPrefix>,
}

impl Checker {
    /// The grid is torn, or whole again.
    pub(crate) fn torn(&mut self, torn: bool, now: Duration) {
        match (self.torn.last_mut(), torn) {
            (Some((_, end @ None)), false) => *end = Some(now),
            (Some((_, None)), true) | (_, false) => {}
            (_, true) => self.torn.push((now, None)),
        }
    }

    /// A witness lies: that it signs twice is no violation, that its lies have an effect is.
    pub(crate) fn liar(&mut self, peer: PeerId) {
        self.liars.insert(peer);
    }

    /// Those of other nodes' certificates that a lease meets: key and holder.
    pub(crate) fn rivals(&self, node: usize, lease: &HeldLease, now: Duration) -> Vec<(Key, usize)> {
        let mut rivals = Vec::new();
        for certificate in [&lease.certificate, &lease.name_certificate] {
            let key = certificate.terms.key;
            let others = self.valid.get(&key).into_iter().flatten();
            let others = others.filter(|other| other.holder != node && other.until > now);
            rivals.extend(others.map(|other| (key, other.holder)));
        }
        rivals
    }

    /// A node does not rely on a key any more.
    pub(crate) fn moved_on(&mut self, key: Key, node: usize) {
        if let Some(valid) = self.valid.get_mut(&key) {
            valid.retain(|other| other.holder != node);
        }
    }

    /// A node has both certificates of a lease, valid until `until` of the simulated time.
    pub(crate) fn holds(&mut self, node: usize, lease: &HeldLease, until: Duration, now: Duration) {
        self.overlaps(node, lease.leased, now);
        for certificate in [&lease.certificate, &lease.name_certificate] {
            let key = certificate.terms.key;
            let mut valid = self.valid.remove(&key).unwrap_or_default();
            valid.retain(|other| other.until > now && other.holder != node);
            let new = Valid {
                holder: node,
                kind: lease.leased.kind(),
                since: now,
                until,
                witnesses: certificate
                    .receipts
                    .iter()
                    .map(|receipt| receipt.witness)
                    .collect(),
            };
            for other in &valid {
                self.compare(certificate, &new, other);
            }
            valid.push(new);
            self.valid.insert(key, valid);
        }
    }

    /// Different keys cannot tell that what they stand for overlaps: nothing that is leased may, at any time.
    fn overlaps(&mut self, node: usize, leased: Leased, now: Duration) {
        let other = match leased {
            Leased::Addr(addr) => {
                let new = self.addrs.insert(addr);
                let around = self.prefixes.iter().find(|prefix| prefix.contains(addr));
                around.filter(|_| new).map(ToString::to_string)
            }
            Leased::Prefix(prefix) => {
                let new = self.prefixes.insert(prefix);
                let crosses = |other: &&VirtualPrefix| **other != prefix && other.overlaps(&prefix);
                let block = self.prefixes.iter().find(crosses).map(ToString::to_string);
                let addr = || {
                    self.addrs
                        .iter()
                        .find(|addr| prefix.contains(**addr))
                        .map(ToString::to_string)
                };
                block.or_else(addr).filter(|_| new)
            }
        };
        if let Some(other) = other {
            self.violated(format!(
                "at {now:?} node {node} holds {leased}, which overlaps {other}"
            ));
        }
    }

    fn compare(&mut self, certificate: &Certificate, new: &Valid, other: &Valid) {
        let key = certificate.terms.key;
        let pair = (key, new.holder.min(other.holder), new.holder.max(other.holder));
        let both: Vec<_> = new
            .witnesses
            .iter()
            .filter(|witness| other.witnesses.contains(witness))
            .collect();
        let honest = both.iter().any(|witness| !self.liars.contains(witness));
        let torn = self.was_torn(new.since) || self.was_torn(other.since);
        if self.pairs.contains(&pair) {
            return;
        }
        if !honest && torn && both.is_empty() {
            self.pairs.insert(pair);
            self.double += 1;
            return;
        }
        let signed = both.len();
        self.violations.push(format!(
            "at {:?} nodes {} and {} hold valid certificates of {} of {} (until {:?} and {:?}); {signed} witnesses \
             signed both",
            new.since, new.holder, other.holder, certificate.terms.leased, certificate.terms.name, new.until,
            other.until
        ));
    }

    /// Whether the grid was torn when a certificate that came now was made.
    fn was_torn(&self, at: Duration) -> bool {
        let from = at.saturating_sub(ROUND);
        self.torn
            .iter()
            .any(|(start, end)| *start <= at && end.is_none_or(|end| end >= from))
    }

    /// A node has given back what it had of a kind.
    pub(crate) fn gave_back(&mut self, node: usize, kind: Kind) {
        for valid in self.valid.values_mut() {
            valid.retain(|other| (other.holder, other.kind) != (node, kind));
        }
    }

    /// Whether a node has a valid certificate of a key that it has not given up.
    pub(crate) fn relies(&self, key: Key, node: usize, now: Duration) -> bool {
        let valid = self.valid.get(&key).into_iter().flatten();
        valid
            .into_iter()
            .any(|valid| valid.holder == node && valid.until > now)
    }

    /// How many pairs of holders had one key at a time since the grid was torn.
    #[must_use]
    pub fn double_grants(&self) -> u64 {
        self.double
    }

    /// The healed grid has had its time to agree: from now on no pair of holders is excused.
    pub(crate) fn settled(&mut self) {
        self.pairs.clear();
    }

    /// Whether a node may have lost a key to another one because the grid was torn.
    pub(crate) fn was_rival(&self, node: usize, other: usize) -> bool {
        let pair = (node.min(other), node.max(other));
        self.pairs.iter().any(|(_, low, high)| (*low, *high) == pair)
    }

    /// Something else than the uniqueness of holders was violated.
    pub fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    /// What was violated, in the order of time.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }
}
