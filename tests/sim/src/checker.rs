//! What must be true at every moment of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_dht_proto::HeldLease;
use aerie_types::Key;

#[derive(Debug, Clone, Copy)]
struct Valid {
    holder: usize,
    until: Duration,
}

/// Keeps every valid certificate of the run, by the holder's own reckoning, and looks for two of one key.
#[derive(Debug, Default)]
pub struct Checker {
    valid: BTreeMap<Key, Vec<Valid>>,
    violations: Vec<String>,
}

impl Checker {
    /// A node has both certificates of a lease, valid until `until` of the simulated time.
    pub(crate) fn holds(&mut self, node: usize, lease: &HeldLease, until: Duration, now: Duration) {
        for certificate in [&lease.certificate, &lease.name_certificate] {
            let valid = self.valid.entry(certificate.terms.key).or_default();
            valid.retain(|other| other.until > now && other.holder != node);
            for other in valid.iter() {
                self.violations.push(format!(
                    "at {now:?} node {node} and node {} hold valid certificates of {} (until {until:?} and {:?})",
                    other.holder, lease.addr, other.until
                ));
            }
            valid.push(Valid { holder: node, until });
        }
    }

    /// A node has given everything back.
    pub(crate) fn gave_back(&mut self, node: usize) {
        for valid in self.valid.values_mut() {
            valid.retain(|other| other.holder != node);
        }
    }

    /// What was violated, in the order of time.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }
}
