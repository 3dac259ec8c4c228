//! Receipts and certificates: proof of a lease that any member can check.
//!
//! ```text
//!   witness 1 ─ receipt ┐
//!   witness 2 ─ receipt ┼─▶ certificate: same key, holder, name, address, start; distinct witnesses;
//!   witness q ─ receipt ┘   as many as the largest grid that one of them saw asks for
//! ```

use std::collections::BTreeSet;

use aerie_types::{GridId, Instance, Key, NodeName, PeerId, VirtualAddr, WallMillis};
use serde::{Deserialize, Serialize};

use crate::{Error, Keys};

/// How many witnesses a key has at most.
pub(crate) const WITNESSES: usize = 9;

/// How many of nine witnesses make a quorum.
const QUORUM_OF_NINE: usize = 7;

/// The longest credential in a receipt.
const MAX_CREDENTIAL: usize = 1024;

const CONTEXT: &str = "aerie dht receipt 1";

/// The key under which an address is leased.
#[must_use]
pub fn addr_key(grid: &GridId, addr: VirtualAddr) -> Key {
    match addr.0 {
        std::net::IpAddr::V4(v4) => Key::of("addr", &[&grid.0, &v4.octets()]),
        std::net::IpAddr::V6(v6) => Key::of("addr", &[&grid.0, &v6.octets()]),
    }
}

/// The key under which a node name is leased.
#[must_use]
pub fn name_key(grid: &GridId, name: &NodeName) -> Key {
    Key::of("name", &[&grid.0, name.as_str().as_bytes()])
}

/// How many receipts a certificate needs in a grid of so many members.
#[must_use]
pub fn quorum(members: usize) -> usize {
    if members >= WITNESSES {
        QUORUM_OF_NINE
    } else {
        members / 2 + 1
    }
}

/// What a witness signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptBody {
    /// The grid.
    pub grid: GridId,
    /// The key.
    pub key: Key,
    /// Who holds it.
    pub holder: PeerId,
    /// The holder's node name.
    pub name: NodeName,
    /// The holder's address, for the name's key too.
    pub addr: VirtualAddr,
    /// Which start of the holder.
    pub instance: Instance,
    /// How many grants the witness has given for the key.
    pub number: u64,
    /// The witness.
    pub witness: PeerId,
    /// When, by the witness's clock.
    pub witness_time: WallMillis,
    /// For how long.
    pub ttl_ms: u32,
    /// How many members the witness knew, itself included.
    pub members_known: u16,
}

/// A witness's signed grant of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// What is signed.
    pub body: ReceiptBody,
    /// The witness's credential (DER).
    pub witness_credential: Vec<u8>,
    /// The witness's signature (64 bytes).
    pub signature: Vec<u8>,
}

impl Receipt {
    /// Signs a receipt.
    pub(crate) fn sign(body: ReceiptBody, keys: &dyn Keys) -> Result<Self, Error> {
        let signature = keys.sign(&signed("receipt", CONTEXT, &body)?);
        Ok(Self {
            body,
            witness_credential: keys.credential(),
            signature,
        })
    }

    /// Checks the witness's credential and signature.
    pub(crate) fn check(&self, keys: &dyn Keys, wall: WallMillis) -> Result<(), Error> {
        if self.witness_credential.len() > MAX_CREDENTIAL || self.signature.len() != 64 {
            return Err(Error::Certificate("a receipt has a field of a wrong length"));
        }
        let witness = self.body.witness;
        if keys
            .credential_peer(&self.witness_credential, wall)
            .is_none_or(|member| member.peer != witness)
        {
            return Err(Error::Certificate("a witness has no valid credential"));
        }
        if !keys.verify(
            &witness,
            &signed("receipt", CONTEXT, &self.body)?,
            &self.signature,
        ) {
            return Err(Error::Certificate("a signature is wrong"));
        }
        Ok(())
    }
}

/// A byte string to sign: a context that no other message has, then the value.
pub(crate) fn signed<T: Serialize>(what: &'static str, context: &str, value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = (context.len() as u64).to_be_bytes().to_vec();
    bytes.extend_from_slice(context.as_bytes());
    postcard::to_extend(value, bytes).map_err(|_| Error::Malformed(what))
}

/// The receipts of a quorum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The receipts, one a witness.
    pub receipts: Vec<Receipt>,
}

impl Certificate {
    /// Checks that the receipts belong together, are enough, are genuine and have not run out.
    ///
    /// # Errors
    /// [`Error::Certificate`] with the first reason found.
    pub fn check(&self, grid: &GridId, keys: &dyn Keys, wall: WallMillis) -> Result<(), Error> {
        let first = self.first()?;
        if first.grid != *grid {
            return Err(Error::Certificate("it is of another grid"));
        }
        if first.key != addr_key(grid, first.addr) && first.key != name_key(grid, &first.name) {
            return Err(Error::Certificate("its key is not that of its address or name"));
        }
        if self.receipts.len() > WITNESSES {
            return Err(Error::Certificate(
                "it has more receipts than a key has witnesses",
            ));
        }
        let agree = self.receipts.iter().all(|receipt| {
            let body = &receipt.body;
            (
                body.grid,
                body.key,
                body.holder,
                &body.name,
                body.addr,
                body.instance,
            ) == (
                first.grid,
                first.key,
                first.holder,
                &first.name,
                first.addr,
                first.instance,
            )
        });
        if !agree {
            return Err(Error::Certificate("its receipts speak of different leases"));
        }
        let witnesses: BTreeSet<_> = self.receipts.iter().map(|receipt| receipt.body.witness).collect();
        if witnesses.len() != self.receipts.len() {
            return Err(Error::Certificate("a witness stands in it twice"));
        }
        if self.receipts.len() < self.needed() {
            return Err(Error::Certificate("it has fewer receipts than a quorum"));
        }
        if self.expires()? <= wall {
            return Err(Error::Certificate("it has run out"));
        }
        self.receipts
            .iter()
            .try_for_each(|receipt| receipt.check(keys, wall))
    }

    /// How many receipts it needs: a quorum of the largest grid that one of its witnesses saw.
    #[must_use]
    pub fn needed(&self) -> usize {
        let members = self
            .receipts
            .iter()
            .map(|receipt| receipt.body.members_known)
            .max();
        quorum(usize::from(members.unwrap_or(0)))
    }

    /// What all its receipts say.
    ///
    /// # Errors
    /// [`Error::Certificate`] if it has none.
    pub fn first(&self) -> Result<&ReceiptBody, Error> {
        self.receipts
            .first()
            .map(|receipt| &receipt.body)
            .ok_or(Error::Certificate("it has no receipt"))
    }

    /// When it was granted: the median of its witnesses' clocks.
    ///
    /// # Errors
    /// [`Error::Certificate`] if it has no receipt.
    pub fn granted(&self) -> Result<WallMillis, Error> {
        median(self.receipts.iter().map(|receipt| receipt.body.witness_time.0))
    }

    /// When it runs out: the median over its witnesses.
    ///
    /// # Errors
    /// [`Error::Certificate`] if it has no receipt.
    pub fn expires(&self) -> Result<WallMillis, Error> {
        median(self.receipts.iter().map(|receipt| {
            receipt
                .body
                .witness_time
                .0
                .saturating_add(u64::from(receipt.body.ttl_ms))
        }))
    }

    /// Which of two holders keeps the key: the older grant, and of equals the lower tie value.
    pub(crate) fn beats(&self, other: &Self) -> bool {
        let rank = |certificate: &Self| {
            let body = certificate.first().ok()?;
            Some((
                certificate.granted().ok()?,
                Key::of("tie", &[&body.key.0, &body.holder.0]),
            ))
        };
        match (rank(self), rank(other)) {
            (Some(mine), Some(theirs)) => mine <= theirs,
            (mine, _) => mine.is_some(),
        }
    }
}

fn median(times: impl Iterator<Item = u64>) -> Result<WallMillis, Error> {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times
        .get(times.len() / 2)
        .copied()
        .map(WallMillis)
        .ok_or(Error::Certificate("it has no receipt"))
}
