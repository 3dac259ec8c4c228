//! What a model checker and other tests need of the core: one number for its state, how much it keeps, and what a
//! message is about.

use std::hash::{Hash, Hasher};

use aerie_types::Key;

use crate::Register;
use crate::wire::{Request, from_bytes};

/// Everything that the next step depends on. Left out are the counters, what is fixed at the start (configuration and
/// keys), and what the driver has taken before it looks.
impl<S: Hash, K> Hash for Register<S, K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.me, self.instance, self.number, self.next_id).hash(state);
        (
            &self.draw,
            &self.members,
            &self.named,
            &self.readiness,
            &self.records,
        )
            .hash(state);
        (&self.holdings, &self.searches, &self.sets, &self.fence).hash(state);
        (&self.pending, &self.queries, &self.stale).hash(state);
        (self.handover_at, &self.untold, self.purge_at, self.save_at).hash(state);
        self.store.hash(state);
    }
}

/// How much a register keeps of what others send, against the bounds in [`crate::limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Keys with a grant, a certificate, hearsay or a release.
    pub keys: usize,
    /// Requests under way.
    pub pending: usize,
    /// Members known.
    pub members: usize,
    /// Credentials of members.
    pub credentials: usize,
}

/// Counts what a register keeps.
#[must_use]
pub fn kept<S, K>(register: &Register<S, K>) -> Kept {
    let (members, credentials) = register.members.kept();
    Kept {
        keys: register.records.len(),
        pending: register.pending.len(),
        members,
        credentials,
    }
}

/// What a request is about: its kind, and the first key that it names.
#[must_use]
pub fn request_kind(bytes: &[u8]) -> Option<(&'static str, Option<Key>)> {
    Some(match from_bytes::<Request>(bytes)? {
        Request::Claim(claim) => ("claim", Some(claim.terms.key)),
        Request::Release { key, .. } => ("release", Some(key)),
        Request::LookUp { key } => ("look-up", Some(key)),
        Request::Merge { .. } => ("merge", None),
        Request::Offer(summaries) => ("offer", summaries.first().map(|summary| summary.key)),
        Request::Fetch(keys) => ("fetch", keys.first().copied()),
        Request::HandOver(handed) => {
            let first = handed.first();
            (
                "hand-over",
                first.map(|handed| handed.proof.certificate.terms.key),
            )
        }
        Request::Conflict(handed) => ("conflict", Some(handed.proof.certificate.terms.key)),
        Request::Challenge { .. } => ("challenge", None),
        Request::Put { .. } => ("put", None),
        Request::Read { .. } => ("read", None),
        Request::Leave => ("leave", None),
    })
}
