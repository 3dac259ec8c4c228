//! The factory and manager of virtual clusters.
//!
//! What it does is decided in `aerie-cluster-manager-proto`; here is what carries it out.
//!
//! ```text
//!  callers ──► Manager ──► one task: the core ──► Journal: SQLite, a row per record, synced before anything is done
//!                │             │      ▲
//!                │             ▼      │ outcomes
//!                │          a task for each effect ──► HostLink, one for each host ──► NodeDriver
//!                └─ reads: the last state                                        └───► images, disks, networks
//!                          that is durable                └─► ContextService ──► the context broker
//! ```
//!
//! One task owns the core. It takes what has come, up to a bound, gives it to a copy of the core, writes the records
//! of all of it in one transaction, and only then puts the copy in the core's place, answers, and begins the effects
//! ([`Manager`] has the calls). Where the disk refuses, the copy is dropped: commands are refused with the reason, and
//! what hosts have answered is taken in again later. Whoever reads, reads the last state that is durable, and waits for
//! nobody.
//!
//! Hosts are reached through [`HostLink`]. [`LocalHost`] is one that is this process's own, over any node driver.
//! Contexts are made through [`ContextService`]; [`EmbeddedContexts`] is the broker within this process.

mod contexts;
mod crash;
mod error;
mod journal;
mod link;
mod local;
mod manager;
mod task;

#[cfg(test)]
mod tests;

pub use aerie_cluster_manager_proto as proto;
pub use contexts::{ContextService, EmbeddedContexts};
pub use error::Error;
pub use journal::MAX_RECORDS;
pub use link::{Console, HostLink};
pub use local::disks::{Disks, FolderDisks};
pub use local::images::{FolderImages, Images, Staged};
pub use local::networks::{Networks, NoNetworks};
pub use local::{Local, LocalHost};
pub use manager::{Config, Manager};
