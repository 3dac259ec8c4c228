//! The register's messages as an attacker writes them: a second reading of the wire format, which does not ask the
//! core whether a message makes sense. A change of the format that nobody meant shows here.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::large_enum_variant,
    reason = "shared by test binaries, each of which uses a part"
)]

use aerie_dht_proto::{Leased, Proof, Receipt, Signature, Terms};
use aerie_types::{GridId, Instance, Key, PeerId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Claim(Claim),
    Release {
        key: Key,
        instance: Instance,
        seq: u64,
        held: bool,
    },
    LookUp {
        key: Key,
    },
    Merge {
        credential: Vec<u8>,
        votes: bool,
        members: Vec<Told>,
        after: Option<Key>,
    },
    Offer(Vec<Summary>),
    Fetch(Vec<Key>),
    HandOver(Vec<Handed>),
    Conflict(Handed),
    Challenge {
        instance: Instance,
    },
    Put {
        entry: SignedEntry,
        credential: Option<Vec<u8>>,
    },
    Read {
        set: String,
        have: Vec<(PeerId, u64)>,
    },
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub terms: Terms,
    pub seq: u64,
    pub ttl_ms: u32,
    pub proof: Option<Proof>,
    pub home: Option<Proof>,
    pub credential: Option<Vec<u8>>,
    pub want_credential: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Granted {
        receipt: Receipt,
        credential: Option<Vec<u8>>,
        clone: Option<Instance>,
    },
    Refused(Refusal),
    Unready,
    NeedCredentials,
    Done,
    NotFound,
    Found(Handed),
    State(State),
    Want(Vec<Key>),
    Certificates(Vec<Handed>),
    Alive {
        instance: Instance,
    },
    Stale {
        seq: u64,
    },
    Entries(Vec<ReadEntry>),
    Malformed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    Taken {
        holder: PeerId,
        remaining_ms: u32,
        certified: bool,
        proof: Option<Proof>,
    },
    Cloned {
        current: Instance,
    },
    Restarting {
        wait_ms: u32,
    },
    Moved {
        wait_ms: u32,
    },
    BadProof,
    BadCredential,
    TooFar,
    Busy,
    Late,
    OutOfRange {
        leased: Leased,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub credential: Vec<u8>,
    pub age_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub key: Key,
    pub holder: PeerId,
    pub remaining_ms: u32,
    pub receipts: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub whole: bool,
    pub credential: Vec<u8>,
    pub members: Vec<Told>,
    pub summaries: Vec<Summary>,
    pub next: Option<Key>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    pub proof: Proof,
    pub remaining_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub grid: GridId,
    pub set: String,
    pub publisher: PeerId,
    pub seq: u64,
    pub ttl_ms: u32,
    pub value: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedEntry {
    pub entry: Entry,
    pub signature: Signature,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadEntry {
    pub entry: SignedEntry,
    pub credential: Vec<u8>,
    pub remaining_ms: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gossip {
    Entry { entry: SignedEntry, credential: Vec<u8> },
    Restarting { holder: PeerId, instance: Instance },
    Leave,
}

/// The bytes of a message, its version first.
pub fn to_bytes(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend(postcard::to_stdvec(message).unwrap());
    bytes
}

/// Reads a whole message.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (1, body) = bytes.split_first().map(|(version, body)| (*version, body))? else {
        return None;
    };
    let (message, rest) = postcard::take_from_bytes(body).ok()?;
    rest.is_empty().then_some(message)
}

/// What a witness signs.
pub fn receipt_message(receipt: &Receipt, terms: &Terms) -> Vec<u8> {
    let body = (
        terms,
        receipt.witness,
        receipt.number,
        receipt.time,
        receipt.ttl_ms,
        receipt.members,
    );
    signed("aerie receipt 1", &body)
}

/// What a publisher signs.
pub fn entry_message(entry: &Entry) -> Vec<u8> {
    signed("aerie set entry 1", entry)
}

fn signed(context: &str, body: &impl Serialize) -> Vec<u8> {
    let body = postcard::to_stdvec(body).unwrap();
    let mut message = Vec::new();
    for part in [context.as_bytes(), &body] {
        message.extend((part.len() as u64).to_be_bytes());
        message.extend(part);
    }
    message
}
