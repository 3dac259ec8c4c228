//! HTCondor as a part of a grid: what a member should run, its configuration, and the pool seen from here.
//!
//! The crate has a pure half and a driver. The pure half turns an [`Intent`] (who this node is, its roles, its
//! address, the managers that are known) into a [`Plan`]: the whole text of one file of HTCondor's `config.d`, the
//! map of certificates to identities, the map of users to groups, and the list of daemons. Two plans compare to
//! the [`Action`] that suffices to go from one to the other. [`choose_primary`] and [`PrimaryKeeper`] decide which
//! manager a node reports to and when it is given up.
//!
//! The driver is a [`Host`]: [`SystemHost`] writes files atomically, starts `condor_master` as its own child or by
//! systemd, adopts one that an earlier start of the daemon left running, and asks the pool. [`MemoryHost`] is its
//! twin for tests. [`Condor`] joins both halves: it keeps the plan that is in force and applies the next one.
//!
//! # Trust
//!
//! HTCondor's own idea of trust is a host name or a pool-wide secret. Here it is the certificate that the grid's
//! CA gave to each member: `/O=<grid>/OU=<role>/CN=<node>` becomes the identity `<node>@<role>.<grid>.grid`, and
//! every permission names such identities. No list ever allows everybody. A certificate speaks for one name:
//! managers refuse ads whose machine is not the sender's. See [`identity`] for the mapping and its limits.

mod action;
mod audit;
mod condor;
mod error;
mod host;
pub mod identity;
mod intent;
mod knobs;
mod plan;
mod pool;
mod primary;
mod security;

pub use action::{Action, lightest_action};
pub use audit::{Wildcard, wildcards};
pub use condor::{Applied, Condor};
pub use error::Error;
pub use host::{
    CondorVersion, Host, MasterState, MemoryHost, Shutdown, Supervision, SystemConfig, SystemHost,
};
pub use intent::{Credentials, Intent, Layout, Manager, Pair, Program};
pub use knobs::Knobs;
pub use plan::{FileContent, Owner, Plan, Waiting};
pub use pool::{Slot, parse_slots};
pub use primary::{AVOID, Choice, PROBE_AGAIN, PROBE_EVERY, PrimaryKeeper, choose_primary};
