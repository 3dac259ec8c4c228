//! What the register needs from its surroundings: keys and stable storage.

use aerie_types::{GroupName, Instance, Key, NodeName, PeerId, Roles, VirtualAddr, WallMillis};
use serde::{Deserialize, Serialize};

use crate::Certificate;

/// A member as its verified credential describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The member's id.
    pub peer: PeerId,
    /// Its node name.
    pub node: NodeName,
    /// Its user's group.
    pub group: GroupName,
    /// What it may do.
    pub roles: Roles,
}

/// This node's signing key, and the check of everybody else's credentials.
pub trait Keys: Send {
    /// This node's id.
    fn me(&self) -> PeerId;

    /// Signs as this node (64 bytes).
    fn sign(&self, message: &[u8]) -> Vec<u8>;

    /// Whether `signature` is the peer's over `message`.
    fn verify(&self, peer: &PeerId, message: &[u8], signature: &[u8]) -> bool;

    /// This node's present credential (DER).
    fn credential(&self) -> Vec<u8>;

    /// Whose credential this is; `None` if it is not valid now.
    fn credential_peer(&self, der: &[u8], wall: WallMillis) -> Option<Member>;
}

/// The stable storage refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}; check the disk's space and health")]
pub struct StoreError(pub String);

/// What a witness has granted for one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredGrant {
    /// The holder.
    pub holder: PeerId,
    /// The holder's node name.
    pub name: NodeName,
    /// The address, for the name's key too.
    pub addr: VirtualAddr,
    /// Which start of the holder holds it.
    pub instance: Instance,
    /// Earlier starts of the holder, which may not come back.
    pub superseded: Vec<Instance>,
    /// The claimant's round, so that a late release does not undo a newer claim.
    pub round: u64,
    /// How many grants this key has had.
    pub number: u64,
    /// When it was granted.
    pub granted: WallMillis,
    /// How long it stands.
    pub ttl_ms: u32,
}

/// All that a witness keeps for one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLease {
    /// Its own grant.
    pub grant: Option<StoredGrant>,
    /// The certificate that it was shown.
    pub certificate: Option<Certificate>,
}

/// What a node keeps of its own lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnState {
    /// The address last held.
    pub addr: Option<VirtualAddr>,
    /// The node's last starts, newest last.
    pub instances: Vec<Instance>,
}

/// Stable storage. Each call returns once the data would survive a loss of power.
pub trait Store: Send {
    /// Writes what is kept for a key.
    ///
    /// # Errors
    /// [`StoreError`] if it is not safely stored.
    fn save(&mut self, key: &Key, lease: &StoredLease) -> Result<(), StoreError>;

    /// Forgets a key.
    ///
    /// # Errors
    /// [`StoreError`] if the storage refuses.
    fn remove(&mut self, key: &Key) -> Result<(), StoreError>;

    /// Reads all keys.
    ///
    /// # Errors
    /// [`StoreError`] if the storage refuses.
    fn load(&mut self) -> Result<Vec<(Key, StoredLease)>, StoreError>;

    /// Writes the members known, with the time each was last seen.
    ///
    /// # Errors
    /// [`StoreError`] if the storage refuses.
    fn save_members(&mut self, members: &[(PeerId, WallMillis)]) -> Result<(), StoreError>;

    /// Reads the members known; `None` if none were ever saved, which marks a new witness.
    ///
    /// # Errors
    /// [`StoreError`] if the storage refuses.
    fn load_members(&mut self) -> Result<Option<Vec<(PeerId, WallMillis)>>, StoreError>;

    /// Writes the node's own state.
    ///
    /// # Errors
    /// [`StoreError`] if the storage refuses.
    fn save_own(&mut self, own: &OwnState) -> Result<(), StoreError>;

    /// Reads the node's own state.
    ///
    /// # Errors
    /// [`StoreError`] if the storage refuses.
    fn load_own(&mut self) -> Result<Option<OwnState>, StoreError>;
}
