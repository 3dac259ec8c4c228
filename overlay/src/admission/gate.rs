//! The gate that all upgrades of one swarm share: the gatekeeper, the store of admitted credentials, the counters.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aerie_identity::Credential;
use aerie_types::PeerId;

use super::{Gatekeeper, Refusal};
use crate::stats::Counters;

/// How many credentials are remembered: several times the connections that a member holds, so that those of members
/// met lately are still at hand to check what they signed; about 3 MiB in all.
const MAX_STORED: usize = 2048;

/// Judges, and remembers whom it admitted.
pub struct Gate {
    keeper: Arc<dyn Gatekeeper>,
    store: Mutex<Store>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Store {
    entries: BTreeMap<PeerId, (u64, Arc<Credential>)>,
    clock: u64,
}

impl Gate {
    /// A gate with an empty store.
    #[must_use]
    pub fn new(keeper: Arc<dyn Gatekeeper>) -> Arc<Self> {
        Self::counting(keeper, Arc::default())
    }

    pub(crate) fn counting(keeper: Arc<dyn Gatekeeper>, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            keeper,
            store: Mutex::default(),
            counters,
        })
    }

    /// The credential by which the peer was admitted last.
    #[must_use]
    pub fn credential(&self, peer: PeerId) -> Option<Arc<Credential>> {
        self.store()
            .entries
            .get(&peer)
            .map(|(_, credential)| Arc::clone(credential))
    }

    /// Whether the peer was admitted and still belongs.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, peer: PeerId) -> Result<Arc<Credential>, Refusal> {
        let credential = self.credential(peer).ok_or(Refusal::NotAdmitted)?;
        self.keeper.standing(&credential)?;
        Ok(credential)
    }

    /// Our own credential (DER).
    #[must_use]
    pub fn own(&self) -> Arc<[u8]> {
        self.keeper.own()
    }

    /// Judges a credential shown by the peer that proved this key.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge(&self, der: &[u8], shown_by: PeerId) -> Result<Arc<Credential>, Refusal> {
        let credential = self.keeper.admit(der)?;
        if credential.peer == shown_by {
            Ok(credential)
        } else {
            Err(Refusal::KeyMismatch)
        }
    }

    /// Remembers an admitted credential, unless a newer one of the same peer is known.
    pub fn remember(&self, credential: Arc<Credential>) {
        let mut store = self.store();
        store.clock += 1;
        let clock = store.clock;
        match store.entries.get_mut(&credential.peer) {
            Some((seen, known)) => {
                *seen = clock;
                if credential.serial >= known.serial {
                    *known = credential;
                }
            }
            None => {
                if store.entries.len() >= MAX_STORED {
                    let oldest = store
                        .entries
                        .iter()
                        .min_by_key(|(_, (seen, _))| *seen)
                        .map(|(peer, _)| *peer);
                    if let Some(oldest) = oldest {
                        store.entries.remove(&oldest);
                    }
                }
                store.entries.insert(credential.peer, (clock, credential));
            }
        }
    }

    /// Forgets a peer, so that only a new admission lets it in.
    pub fn forget(&self, peer: PeerId) {
        self.store().entries.remove(&peer);
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
