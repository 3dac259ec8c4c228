//! The register's keys, by the node's identity.

use std::sync::{Arc, PoisonError, RwLock};

use aerie_dht_proto::{Keys, Member};
use aerie_identity::{OverlaySigner, Verifier, verify_overlay};
use aerie_types::{PeerId, WallMillis};
use tokio::sync::watch;

/// Signs with the node's overlay key and checks others by the grid's verifier.
#[derive(Debug, Clone)]
pub struct IdentityKeys {
    signer: OverlaySigner,
    verifier: Arc<RwLock<Verifier>>,
    credential: watch::Receiver<Arc<Vec<u8>>>,
}

impl IdentityKeys {
    /// Keys from the node's signer, the shared verifier, and the present overlay credential (DER).
    #[must_use]
    pub fn new(
        signer: OverlaySigner,
        verifier: Arc<RwLock<Verifier>>,
        credential: watch::Receiver<Arc<Vec<u8>>>,
    ) -> Self {
        Self {
            signer,
            verifier,
            credential,
        }
    }

    /// This node.
    #[must_use]
    pub fn peer_id(&self) -> PeerId {
        self.signer.peer_id()
    }
}

impl Keys for IdentityKeys {
    fn me(&self) -> PeerId {
        self.signer.peer_id()
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signer.sign(message).to_vec()
    }

    fn verify(&self, peer: &PeerId, message: &[u8], signature: &[u8]) -> bool {
        verify_overlay(peer, message, signature)
    }

    fn credential(&self) -> Vec<u8> {
        self.credential.borrow().to_vec()
    }

    fn credential_peer(&self, der: &[u8], wall: WallMillis) -> Option<Member> {
        let verifier = self.verifier.read().unwrap_or_else(PoisonError::into_inner);
        let credential = verifier.verify(der, wall).ok()?;
        Some(Member {
            peer: credential.peer,
            node: credential.node,
            group: credential.group,
            roles: credential.roles,
        })
    }
}
