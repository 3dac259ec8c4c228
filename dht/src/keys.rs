//! The core's keys, made of the grid's identity.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use aerie_dht_proto::{Keys, Member, NotMember, Signature};
use aerie_identity::{CLOCK_SKEW, Credential, OverlaySigner, Verifier, sha256, verify_overlay};
use aerie_types::{PeerId, WallMillis};
use tokio::sync::watch;

/// Credentials whose verification is remembered, about 1 KiB each. Certificates name the same witnesses over and over.
const MAX_VERIFIED: usize = 1024;

/// Signs with the node's overlay key, and judges others by the grid's verifier.
pub struct IdentityKeys {
    signer: OverlaySigner,
    verifier: Arc<RwLock<Verifier>>,
    own: watch::Receiver<Arc<Vec<u8>>>,
    verified: Mutex<Verified>,
}

#[derive(Default)]
struct Verified {
    /// The revocation list under which these were verified.
    serial: u64,
    credentials: BTreeMap<[u8; 32], Arc<Credential>>,
}

impl IdentityKeys {
    /// Keys that sign with `signer`, judge by `verifier`, and show the newest credential of `own` (DER).
    #[must_use]
    pub fn new(
        signer: OverlaySigner,
        verifier: Arc<RwLock<Verifier>>,
        own: watch::Receiver<Arc<Vec<u8>>>,
    ) -> Self {
        Self {
            signer,
            verifier,
            own,
            verified: Mutex::default(),
        }
    }

    fn credential_of(&self, der: &[u8], wall: WallMillis) -> Result<Arc<Credential>, NotMember> {
        let verifier = self.verifier.read().unwrap_or_else(PoisonError::into_inner);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.serial != verifier.revocation_serial() {
            verified.serial = verifier.revocation_serial();
            verified.credentials.clear();
        }
        let name = sha256(der);
        let known = verified.credentials.get(&name).cloned();
        let timely = |known: &Arc<Credential>| {
            wall.plus(CLOCK_SKEW) >= known.not_before && wall <= known.not_after.plus(CLOCK_SKEW)
        };
        if let Some(known) = known.filter(timely) {
            return Ok(known);
        }
        let credential = verifier
            .verify(der, wall)
            .map_err(|rejection| NotMember(rejection.to_string()))?;
        let credential = Arc::new(credential);
        if verified.credentials.len() >= MAX_VERIFIED {
            verified.credentials.clear();
        }
        verified.credentials.insert(name, Arc::clone(&credential));
        Ok(credential)
    }
}

impl Keys for IdentityKeys {
    fn me(&self) -> PeerId {
        self.signer.peer_id()
    }

    fn credential(&self) -> Vec<u8> {
        self.own.borrow().to_vec()
    }

    fn sign(&self, message: &[u8]) -> Signature {
        self.signer.sign(message).into()
    }

    fn verify(&self, peer: PeerId, message: &[u8], signature: &Signature) -> bool {
        verify_overlay(&peer, message, &<[u8; 64]>::from(*signature))
    }

    fn member(&self, credential: &[u8], wall: WallMillis) -> Result<Member, NotMember> {
        let credential = self.credential_of(credential, wall)?;
        Ok(Member {
            peer: credential.peer,
            node: credential.node.clone(),
            group: credential.group.clone(),
            roles: credential.roles,
        })
    }
}
