//! Messages between members: a version byte and postcard.

use aerie_types::{Instance, Key, NodeName, PeerId, VirtualAddr, WallMillis};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Certificate, Error, Receipt, SetEntry};

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

const VERSION: u8 = 1;

/// A claim of keys, granted all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimReq {
    /// Who claims; the sender itself.
    pub holder: PeerId,
    /// Its node name, which its credential must have.
    pub name: NodeName,
    /// The address, for the name's key too.
    pub addr: VirtualAddr,
    /// This start of the claimant.
    pub instance: Instance,
    /// Earlier starts that this one knows of from its own disk.
    pub previous: Vec<Instance>,
    /// The claimant's round; rises with every round of one start.
    pub round: u64,
    /// How long the grant shall stand.
    pub ttl_ms: u32,
    /// The keys.
    pub keys: Vec<Key>,
    /// The claimant's credential.
    pub credential: Vec<u8>,
}

/// What one member asks of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Grant keys.
    Claim(ClaimReq),
    /// Give back keys that the sender holds or asked for up to this round.
    Release {
        /// The keys.
        keys: Vec<Key>,
        /// The start that holds them.
        instance: Instance,
        /// The last round that this undoes.
        round: u64,
    },
    /// Who holds a key?
    LookUp {
        /// The key.
        key: Key,
    },
    /// Keep these certificates.
    HandOver {
        /// The certificates.
        certificates: Vec<Certificate>,
    },
    /// Keep this entry of a set. Also what is spread by gossip.
    Publish(SetEntry),
    /// What is in a set?
    ReadSet {
        /// The set.
        set: String,
    },
    /// What do you know? Answered in pages.
    Sync {
        /// The last key of the page before.
        after: Option<Key>,
    },
}

/// Why a witness grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Another member holds one of the keys.
    Held {
        /// Which.
        key: Key,
        /// Who.
        holder: PeerId,
        /// Its node name.
        name: NodeName,
        /// For how long yet.
        remaining_ms: u64,
    },
    /// The witness has not yet learnt what the others know.
    NotReady,
    /// Another start of the same member, from a copy of its disk, has taken over.
    Cloned,
    /// The witness could not store the grant.
    StoreFailed,
    /// The claim is not of its sender, or its credential is not valid.
    NotYours,
}

/// A set entry on its way, with the life it has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireSet {
    /// The entry.
    pub entry: SetEntry,
    /// How long it still counts.
    pub remaining_ms: u32,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The keys are granted.
    Receipts(Vec<Receipt>),
    /// They are not.
    Refused(Refusal),
    /// The keys are free.
    Released,
    /// What is known of a key.
    Found {
        /// Its certificate.
        certificate: Option<Certificate>,
        /// How long it still counts.
        remaining_ms: u64,
    },
    /// The entries of a set.
    Set(Vec<WireSet>),
    /// A page of what a member knows.
    State {
        /// Certificates, by rising key.
        leases: Vec<Certificate>,
        /// Members, with the time each was last seen.
        members: Vec<(PeerId, WallMillis)>,
        /// Set entries; on the first page.
        sets: Vec<WireSet>,
        /// Where the next page begins, if there is one.
        next: Option<Key>,
    },
    /// Done.
    Ok,
}

/// Writes a message.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let bytes =
        postcard::to_extend(message, vec![VERSION]).map_err(|_| Error::Malformed("it does not serialize"))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(Error::TooLong {
            len: bytes.len(),
            max: MAX_MESSAGE,
        });
    }
    Ok(bytes)
}

/// Reads a message, all of it.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > MAX_MESSAGE {
        return Err(Error::TooLong {
            len: bytes.len(),
            max: MAX_MESSAGE,
        });
    }
    let (&version, body) = bytes.split_first().ok_or(Error::Malformed("it is empty"))?;
    if version != VERSION {
        return Err(Error::Version {
            found: version,
            ours: VERSION,
        });
    }
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|_| Error::Malformed("it is not a message"))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(Error::Malformed("something follows it"))
    }
}

/// The length of a value within a message.
pub(crate) fn size_of<T: Serialize>(value: &T) -> usize {
    postcard::experimental::serialized_size(value).unwrap_or(MAX_MESSAGE)
}
