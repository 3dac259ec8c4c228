//! Whether a certificate proves what it says, by the credentials that are known here.

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_types::{PeerId, WallMillis};

use crate::lease::{Certificate, Proof, Receipt, millis};
use crate::limits::{CLOCK_SKEW, MAX_CREDENTIAL, MAX_RECEIPTS};
use crate::record::Seen;
use crate::store::Store;
use crate::wire::Handed;
use crate::{Keys, Member, Now, Register};

/// Why a certificate does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The credential of one of its witnesses is not known here.
    UnknownWitness,
    Invalid,
}

impl<S: Store, K: Keys> Register<S, K> {
    /// How long a certificate has to be honoured, or why not at all. Learns the credentials that it brings.
    pub(crate) fn check(&mut self, proof: &Proof, now: Now) -> Result<Duration, Flaw> {
        let certificate = &proof.certificate;
        let invalid = |register: &mut Self| {
            register.stats.bad_certificates += 1;
            Err(Flaw::Invalid)
        };
        if !certificate.well_formed(self.config.grid) || proof.credentials.len() > MAX_RECEIPTS {
            return invalid(self);
        }
        let timely = certificate.timely();
        let most = self.config.timings.ttl;
        let ttls = timely
            .iter()
            .map(|receipt| Duration::from_millis(receipt.ttl_ms.into()));
        let ttl = ttls.min().unwrap_or_default().min(most);
        // It proves a lease until the first of its grants ends.
        let ends = timely.iter().map(|receipt| {
            let ttl = Duration::from_millis(receipt.ttl_ms.into()).min(most);
            receipt.time.plus(ttl + CLOCK_SKEW)
        });
        let life = ends.min().unwrap_or(WallMillis(0)).since(now.wall).min(ttl);
        if certificate.median() > now.wall.plus(CLOCK_SKEW) || life.is_zero() {
            return invalid(self);
        }
        let settled = self.members.settled(self.config.timings.settle, now.instant);
        let needed = self.needed(certificate.members().max(settled));
        if timely.len() < needed {
            return invalid(self);
        }
        for credential in &proof.credentials {
            self.learn(credential, now);
        }
        // What a witness keeps it has verified, and it is shown the same certificate many times.
        let seen = self
            .records
            .get(&certificate.terms.key)
            .and_then(|record| record.seen.as_ref());
        let verified = seen.is_some_and(|seen| seen.certificate == *certificate);
        // Also those that are not needed: the order of certificates counts the numbers of all.
        let signed = |receipt: &Receipt| receipt.verify(&self.keys, &certificate.terms);
        if !verified && !certificate.receipts.iter().all(signed) {
            return invalid(self);
        }
        let (mut valid, mut unknown) = (0, 0);
        let mut names = BTreeSet::new();
        for receipt in timely {
            if self.known_credential(receipt.witness).is_none() {
                unknown += 1;
            } else if let Some(member) = self.member(receipt.witness, now) {
                valid += 1;
                names.extend(self.named.has(&member.node).then_some(member.node));
            }
        }
        // Without the receipts of members revoked meanwhile the rest has to suffice.
        if valid < needed && valid + unknown >= needed {
            return Err(Flaw::UnknownWitness);
        }
        if valid < needed || self.named.is_on() && names.len() < needed {
            return invalid(self);
        }
        Ok(life)
    }

    /// A certificate with what is known of its witnesses' credentials.
    pub(crate) fn proof_of(&self, certificate: Certificate) -> Proof {
        let witnesses = certificate.receipts.iter().map(|receipt| receipt.witness);
        let credentials = witnesses
            .filter_map(|witness| self.known_credential(witness))
            .collect();
        Proof {
            certificate,
            credentials,
        }
    }

    pub(crate) fn handed(&self, seen: &Seen, now: Now) -> Handed {
        Handed {
            proof: self.proof_of(seen.certificate.clone()),
            remaining_ms: millis(seen.until.saturating_duration_since(now.instant)),
        }
    }

    pub(crate) fn known_credential(&self, peer: PeerId) -> Option<Vec<u8>> {
        if peer == self.me {
            return Some(self.keys.credential());
        }
        self.members.credential(peer).cloned()
    }

    /// What the known credential of a peer says, if it is valid now.
    pub(crate) fn member(&mut self, peer: PeerId, now: Now) -> Option<Member> {
        let credential = self.known_credential(peer)?;
        match self.keys.member(&credential, now.wall) {
            Ok(member) if member.peer == peer => Some(member),
            _ => {
                self.stats.bad_credentials += 1;
                None
            }
        }
    }

    /// Keeps a credential if it is valid, and says whose it is.
    pub(crate) fn learn(&mut self, credential: &[u8], now: Now) -> Option<Member> {
        if credential.len() > MAX_CREDENTIAL {
            self.stats.bad_credentials += 1;
            return None;
        }
        match self.keys.member(credential, now.wall) {
            Ok(member) => {
                self.named.meet(&member);
                if member.peer != self.me {
                    self.members.learn(member.peer, credential);
                }
                Some(member)
            }
            Err(_) => {
                self.stats.bad_credentials += 1;
                None
            }
        }
    }
}
