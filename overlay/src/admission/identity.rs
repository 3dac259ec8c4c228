//! The gatekeeper of a real grid: the verifier of its CA.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use aerie_identity::{Credential, Verifier};
use aerie_types::WallMillis;
use tokio::sync::watch;

use super::{Gatekeeper, Refusal};

/// Admits those whose credential the grid's [`Verifier`] accepts by this machine's clock.
pub struct IdentityGate {
    verifier: Arc<RwLock<Verifier>>,
    own: watch::Receiver<Arc<Vec<u8>>>,
}

impl IdentityGate {
    /// A gatekeeper that shows the newest credential of `own` and judges by `verifier`, whose revocations may change.
    #[must_use]
    pub fn new(verifier: Arc<RwLock<Verifier>>, own: watch::Receiver<Arc<Vec<u8>>>) -> Self {
        Self { verifier, own }
    }
}

impl Gatekeeper for IdentityGate {
    fn admit(&self, der: &[u8]) -> Result<Arc<Credential>, Refusal> {
        let verifier = self.verifier.read().unwrap_or_else(PoisonError::into_inner);
        let credential = verifier.verify(der, WallMillis::from(SystemTime::now()))?;
        Ok(Arc::new(credential))
    }

    fn own(&self) -> Arc<[u8]> {
        Arc::from(self.own.borrow().as_slice())
    }
}
