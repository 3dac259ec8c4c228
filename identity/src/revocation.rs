//! The list of what is no longer trusted.
//!
//! The whole list is signed by the CA and has a rising serial; a member that holds one never goes back to an older
//! one. An entry names one credential by its serial, or a node, user or group together with the last serial that
//! was issued when the entry was made: everything up to it is revoked, while what is issued later, to somebody who
//! was readmitted under the same name, is not.

use std::collections::{BTreeMap, BTreeSet};

use aerie_types::{GridId, GroupName, NodeName, UserName, WallMillis};
use serde::{Deserialize, Serialize};

use crate::{Credential, Error, RevokedBy};

/// Most entries that a list may have: one for each node of a very large grid.
pub const MAX_REVOCATIONS: usize = 10_000;

/// The longest encoded signed list, in bytes: the most entries, each with a name of 40 bytes and a serial.
pub const MAX_SIGNED_REVOCATIONS: usize = 600 * 1024;

/// What is signed, before the list's bytes.
pub(crate) const CONTEXT: &str = "aerie revocation list 1";

const VERSION: u8 = 1;

/// What is revoked in a grid as of one serial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationList {
    /// The grid.
    pub grid: GridId,
    /// Rises with every list; not a credential's serial.
    pub serial: u64,
    /// When the list was signed, by the CA's clock.
    pub issued_at: WallMillis,
    /// Single credentials, by serial.
    pub serials: BTreeSet<u64>,
    /// Nodes, each with the last revoked serial.
    pub nodes: BTreeMap<NodeName, u64>,
    /// Users, each with the last revoked serial.
    pub users: BTreeMap<UserName, u64>,
    /// Groups, each with the last revoked serial.
    pub groups: BTreeMap<GroupName, u64>,
}

impl RevocationList {
    /// A list without entries.
    #[must_use]
    pub fn empty(grid: GridId, serial: u64, issued_at: WallMillis) -> Self {
        Self {
            grid,
            serial,
            issued_at,
            serials: BTreeSet::new(),
            nodes: BTreeMap::new(),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        }
    }

    /// Which entry revokes the credential, if one does.
    #[must_use]
    pub fn revokes(&self, credential: &Credential) -> Option<RevokedBy> {
        let covers = |upto: Option<&u64>| upto.is_some_and(|upto| credential.serial <= *upto);
        if self.serials.contains(&credential.serial) {
            Some(RevokedBy::Serial)
        } else if covers(self.nodes.get(&credential.node)) {
            Some(RevokedBy::Node)
        } else if covers(self.users.get(&credential.user)) {
            Some(RevokedBy::User)
        } else if covers(self.groups.get(&credential.group)) {
            Some(RevokedBy::Group)
        } else {
            None
        }
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.serials.len() + self.nodes.len() + self.users.len() + self.groups.len()
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes to sign.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        #[expect(
            clippy::expect_used,
            reason = "maps of texts and numbers always serialize into memory"
        )]
        bytes.extend(postcard::to_stdvec(self).expect("a list serializes"));
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let Some((&VERSION, body)) = bytes.split_first() else {
            return Err(Error::Revocations(
                "its version is unknown; bring this node to the grid's release",
            ));
        };
        match postcard::take_from_bytes::<Self>(body) {
            Ok((list, [])) if list.len() <= MAX_REVOCATIONS => Ok(list),
            Ok((_, [])) => Err(Error::Revocations("it has too many entries")),
            _ => Err(Error::Revocations("it is damaged")),
        }
    }
}

/// A revocation list's bytes with the CA's signature over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRevocations {
    /// The encoded list.
    pub bytes: Vec<u8>,
    /// ECDSA P-256 by the CA's key, in DER.
    pub signature: Vec<u8>,
}

impl SignedRevocations {
    /// One byte string, for files and messages.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        #[expect(clippy::expect_used, reason = "two byte strings always serialize into memory")]
        postcard::to_stdvec(self).expect("byte strings serialize")
    }

    /// Reads what [`Self::encode`] wrote. The signature is not checked: that is [`crate::Verifier::apply`]'s part.
    ///
    /// # Errors
    /// [`Error::Revocations`] if it is damaged or longer than [`MAX_SIGNED_REVOCATIONS`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_SIGNED_REVOCATIONS {
            return Err(Error::Revocations("it is too long"));
        }
        match postcard::take_from_bytes(bytes) {
            Ok((signed, [])) => Ok(signed),
            _ => Err(Error::Revocations("it is damaged")),
        }
    }

    /// The list inside, without a check of its signature: for choosing the newest, or for showing.
    ///
    /// # Errors
    /// [`Error::Revocations`] if it is damaged.
    pub fn list_unverified(&self) -> Result<RevocationList, Error> {
        RevocationList::from_bytes(&self.bytes)
    }
}
