//! The context broker: contexts that survive the broker's death, behind HTTPS.
//!
//! Contextualization is what a set of machines has to know of each other before they are a cluster. Its rules are in
//! `aerie-context-proto`; here is what drives them.
//!
//! ```text
//!  creator (token)  ─┐                          ┌─ Store: SQLite, a record per change, synced before
//!                    ├─ HTTPS ─ Server ─ Broker ┤         anything is answered
//!  members          ─┘   the context's key      └─ one Context in memory for each that lives
//!  (certificate)         proves a member
//! ```
//!
//! Every change of a context goes through [`Broker::ask`], one at a time for each context:
//!
//! 1. the context judges the command and gives a record,
//! 2. the record is committed to the database,
//! 3. the context applies it,
//! 4. members that wait are woken if there is a new version, and the answer is given.
//!
//! A kill between any two leaves a context that either has the record or has not answered. The four steps run on a
//! thread of their own, so that a caller that goes away cannot end them half-way.
//!
//! Members know the broker by the fingerprint of its certificate, which lives as long as the broker's folder. The
//! broker knows members by their context's certificate, whose key they got in their user-data. Creators show a token
//! that only who can read the broker's folder has.

mod broker;
mod error;
mod keys;
mod server;
mod store;

pub use broker::{Broker, Created, MAX_CONTEXTS};
pub use error::{Denied, Error};
pub use server::{Clock, ServeConfig, Server, system_clock};
