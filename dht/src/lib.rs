//! Runs the grid's register on tokio, with SQLite for its store and the node's identity for its keys.
//!
//! One task owns the [`Register`](aerie_dht_proto::Register) and does nothing but feed it: no lock is shared with
//! it. Messages are carried by whoever implements [`Transport`].
//!
//! ```text
//!   Handle ──commands──▶ ┌────────┐ ──request, closest, publish──▶ Transport
//!   lease()  ◀──watch─── │ driver │ ◀──────── answers ────────────┘
//!   watch_set ◀──watch── │ + core │ ──▶ SQLite (written and synced before a grant leaves)
//!                        └────────┘
//! ```
//!
//! The store is written within the driver's task: a grant is rare (two keys for each member every five minutes), and
//! the answer has to wait for the disk anyway.

mod driver;
mod error;
mod handle;
mod keys;
mod store;
mod transport;

pub use aerie_dht_proto::{Counters, Found, LeaseState, SetView};
pub use driver::Config;
pub use error::Error;
pub use handle::{Dht, Handle, Status};
pub use keys::IdentityKeys;
pub use store::SqliteStore;
pub use transport::{BoxFuture, Transport, TransportError};
