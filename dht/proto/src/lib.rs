//! The grid's register, without sockets, clocks or files: who holds which address and which name.
//!
//! A key (an address, a name) is leased by the members that are its *witnesses*. Each gives a signed [`Receipt`];
//! the receipts of a quorum are a [`Certificate`], which proves itself to every member of the grid. As two quorums
//! share a witness, and a witness never grants one key to two holders at once, no key has two holders.
//!
//! ```text
//!   claimant                         witnesses of the key (nine closest, or all in a small grid)
//!      │── Claim ───────────────────────▶│ save, then sign
//!      │◀──────────── Receipts / Refused │
//!      │   q receipts = certificate      │
//!      │── HandOver(certificate) ───────▶│ kept for look-ups
//!   others ── LookUp ───────────────────▶│── Found(certificate)
//! ```
//!
//! Beside leases the register keeps *sets*: small signed entries such as the grid's managers, each from a publisher
//! whose credential has the role that the set asks for.
//!
//! [`Register`] is given its inputs with the time, and asked for its outputs:
//!
//! ```text
//!   Input ──▶ handle ──┐
//!   time  ──▶ handle_timeout ──▶ Register ──▶ poll_output ──▶ Output
//!                      └──────────▶ poll_timeout: when to be woken
//! ```

mod claimant;
mod error;
mod leases;
mod members;
mod ports;
mod receipt;
mod register;
mod sets;
mod wire;

#[cfg(test)]
mod tests;

pub use claimant::{FIRST_TTL, LEASE_TTL, LeaseState, RENEW_EVERY};
pub use error::Error;
pub use ports::{Keys, Member, OwnState, Store, StoreError, StoredGrant, StoredLease};
pub use receipt::{Certificate, Receipt, ReceiptBody, addr_key, name_key, quorum};
pub use register::{Config, Counters, Event, Found, Input, Output, Register, SendError, Time};
pub use sets::{DEFAULT_SET_TTL, MAX_SET_NAME, MAX_SET_VALUE, SetEntry, SetView, required_role};
pub use wire::{Answer, ClaimReq, MAX_MESSAGE, Refusal, Request, WireSet};
