//! Virtual clusters before there is any machine: what is asked for, where it fits, and what is promised to whom.
//!
//! ```text
//!  document ──► Description ──► members ──► place(hosts, rules) ──► Plan ──► Ledger::decide ──► Record
//!   TOML           checked                       │                               │
//!   JSON                                         ▼                               ▼
//!   XML                                 Refusal, with the               Refusal: capacity, or
//!                                       nearest that would fit          quotas, or another of that id
//! ```
//!
//! - [`description`]: workspaces, sets of equal ones, and aggregates of sets, as typed documents (seeds 001 and 003).
//! - [`placement`]: which member runs on which host, and with how much of it; or the nearest thing that would fit.
//! - [`ledger`]: what is reserved on every host, as a journal of records; quotas of people and groups.
//!
//! Everything here is pure: no runtime, socket, file or clock. Times are arguments, and the same input gives the same
//! output on every machine.

pub mod amount;
pub mod description;
mod error;
pub mod ledger;
pub mod limits;
pub mod placement;

pub use error::{BadValue, Corrupt, Fault, Faults, Path, Place, Severity};
