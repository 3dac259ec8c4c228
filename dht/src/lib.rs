//! The register's driver: addresses, names and sets for a running node.
//!
//! [`aerie_dht_proto`] decides; this crate gives it a disk ([`SqliteStore`]), keys ([`IdentityKeys`]), clocks, and a
//! way to other members by a [`Transport`], which the overlay fulfils. [`Dht::start`] gives a [`Handle`]:
//!
//! - inbound: [`Handle::serve`], [`Handle::gossip`], [`Handle::member_up`], [`Handle::member_down`];
//! - the own lease: [`Handle::acquire`], [`Handle::lease`], [`Handle::release_all`];
//! - others' leases: [`Handle::look_up_addr`], [`Handle::look_up_name`];
//! - sets: [`Handle::publish_set`], [`Handle::watch_set`], [`Handle::withdraw_set`].

mod driver;
mod error;
mod handle;
mod keys;
mod sqlite;
mod transport;

pub use aerie_dht_proto::limits::Timings;
pub use aerie_dht_proto::{
    Certificate, Event, Failure, Found, Kind, Leased, LostReason, Proof, PublishError, SetView, Stats,
};
pub use error::Error;
pub use handle::{Config, Dht, Handle, LeaseState};
pub use keys::IdentityKeys;
pub use sqlite::SqliteStore;
pub use transport::{MemoryNetwork, Transport, TransportError};
