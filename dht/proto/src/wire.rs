//! Messages between members: one byte of version, then postcard.
//!
//! Requests come over a connection that the overlay has authenticated, so `from` is certain and nothing but receipts
//! and entries of sets is signed. Times cross as durations.

use std::time::Duration;

use aerie_types::{Instance, Key, PeerId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::lease::{Certificate, Proof, Receipt, Terms, encode, millis};
use crate::leased::Leased;
use crate::limits::MAX_MESSAGE;
use crate::sets::SignedEntry;

/// The version of every message.
const VERSION: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    Claim(Box<Claim>),
    /// Gives up what this instance was granted by claims up to this sequence number.
    Release {
        key: Key,
        instance: Instance,
        seq: u64,
        /// A lease was held, and is not any more; not only a claim that fell short.
        held: bool,
    },
    LookUp {
        key: Key,
    },
    /// Tells whom I know, and asks what you know. `after` continues a long answer.
    Merge {
        credential: Vec<u8>,
        /// Count me: I vote, or am about to.
        votes: bool,
        members: Vec<Told>,
        after: Option<Key>,
    },
    /// I have certificates of these.
    Offer(Vec<Summary>),
    Fetch(Vec<Key>),
    HandOver(Vec<Handed>),
    /// You hold a key, and this certificate of another holder survives against yours.
    Conflict(Box<Handed>),
    /// Are you this instance?
    Challenge {
        instance: Instance,
    },
    Put {
        entry: SignedEntry,
        credential: Option<Vec<u8>>,
    },
    /// What is in a set, beyond these?
    Read {
        set: String,
        have: Vec<(PeerId, u64)>,
    },
    /// I leave the grid and come back as a newcomer, if at all.
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) terms: Terms,
    /// Rises with every round of this instance.
    pub(crate) seq: u64,
    pub(crate) ttl_ms: u32,
    /// The current certificate of the claimant for this key.
    pub(crate) proof: Option<Proof>,
    /// For the key of what is leased: the certificate of the claimant's name with it.
    pub(crate) home: Option<Proof>,
    pub(crate) credential: Option<Vec<u8>>,
    pub(crate) want_credential: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Granted {
        receipt: Receipt,
        credential: Option<Vec<u8>>,
        /// A later instance of the same holder that was refused.
        clone: Option<Instance>,
    },
    Refused(Refusal),
    /// This witness does not vote (yet).
    Unready,
    /// Say it again with all credentials.
    NeedCredentials,
    Done,
    NotFound,
    Found(Box<Handed>),
    State(Box<State>),
    Want(Vec<Key>),
    Certificates(Vec<Handed>),
    Alive {
        instance: Instance,
    },
    /// The entry's sequence number is not above this one.
    Stale {
        seq: u64,
    },
    Entries(Vec<ReadEntry>),
    Malformed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// Another holder has it. `certified` tells a lease from a vote in a race.
    Taken {
        holder: PeerId,
        remaining_ms: u32,
        certified: bool,
        proof: Option<Box<Proof>>,
    },
    /// Another instance of the same holder is alive, or has replaced this one.
    Cloned {
        current: Instance,
    },
    /// An earlier instance has this long to speak up.
    Restarting {
        wait_ms: u32,
    },
    /// The holder has leased as many addresses, or prefixes, as one may have; the first ends after this.
    Moved {
        wait_ms: u32,
    },
    /// The claim builds on a certificate that does not hold here.
    BadProof,
    BadCredential,
    /// Not this witness's key.
    TooFar,
    /// A bound was reached.
    Busy,
    /// The claim was released before it came.
    Late,
    /// No address or prefix of this grid.
    OutOfRange {
        leased: Leased,
    },
}

/// A member that the sender knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) credential: Vec<u8>,
    /// How long ago it was last heard of.
    pub(crate) age_ms: u32,
}

/// A key that the sender has granted or of which it has seen a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) key: Key,
    pub(crate) holder: PeerId,
    pub(crate) remaining_ms: u32,
    /// Receipts of the certificate that the sender has of it; 0 if it has none.
    pub(crate) receipts: u8,
}

impl Summary {
    pub(crate) fn new(
        key: Key,
        holder: PeerId,
        remaining: Duration,
        certificate: Option<&Certificate>,
    ) -> Self {
        let receipts = certificate.map_or(0, |certificate| certificate.receipts.len());
        Self {
            key,
            holder,
            remaining_ms: millis(remaining),
            receipts: u8::try_from(receipts).unwrap_or(u8::MAX),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Whether the sender's own state is whole: it votes, or has its grants of before a restart.
    pub(crate) whole: bool,
    pub(crate) credential: Vec<u8>,
    pub(crate) members: Vec<Told>,
    pub(crate) summaries: Vec<Summary>,
    /// After which key the next page begins.
    pub(crate) next: Option<Key>,
}

/// A certificate with the rest of its life by the sender's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handed {
    pub(crate) proof: Proof,
    pub(crate) remaining_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadEntry {
    pub(crate) entry: SignedEntry,
    pub(crate) credential: Vec<u8>,
    pub(crate) remaining_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Gossip {
    /// A set changed.
    Entry { entry: SignedEntry, credential: Vec<u8> },
    /// A later instance of this holder wants its lease: let the earlier one speak up, if it lives.
    Restarting { holder: PeerId, instance: Instance },
    /// The author leaves the grid.
    Leave,
}

pub(crate) fn to_bytes(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&encode(message));
    bytes
}

/// Reads a whole message. `None` for another version, a wrong form, bytes left over, or more than is allowed.
pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    if bytes.len() > MAX_MESSAGE {
        return None;
    }
    let (&VERSION, body) = bytes.split_first()? else {
        return None;
    };
    let (message, rest) = postcard::take_from_bytes(body).ok()?;
    rest.is_empty().then_some(message)
}
