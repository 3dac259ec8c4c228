//! The manager of virtual clusters, without its disk, its hosts and its clock.
//!
//! What somebody asks for is a description (`aerie-cluster-proto`). The manager finds a place for it, holds the place,
//! brings every member to its state, keeps it there for its life-time, and takes it away again.
//!
//! ```text
//!  commands ────┐                          ┌──► records: made durable before anything else happens
//!  answers ─────┼──► Core ── a transaction ┤
//!  inventories ─┤    (a cheap copy)        └──► effects: steps on hosts, inventories, contexts
//!  time ────────┘
//! ```
//!
//! The state is what the journal of [`Record`]s makes of it ([`World`]); what is done next follows from the state
//! alone ([`Core`]). Whoever drives the core works on a copy of it, which costs little:
//!
//! 1. it gives the copy what came: commands, answers, inventories, the time; then [`Core::settle`],
//! 2. it makes the copy's records durable, all or none; if that fails it drops the copy: nothing has happened,
//! 3. it puts the copy in the core's place, gives the answers, and carries out the effects.
//!
//! A kill between any two leaves a state that has all of it or none; steps may be repeated, and every one of them may
//! be. After a restart nothing is done to a host's guests before its inventory was looked at.

mod core;
mod error;
mod events;
mod host;
mod ids;
pub mod limits;
mod records;
mod request;
mod state;
mod view;
mod world;

pub use crate::core::{Answer, Core, DryRun, Effect, Hearing, Now, Outcome, Settings};
pub use error::{Corrupt, Refusal};
pub use events::{Event, EventsPage, What};
pub use host::{Facts, Failure, FailureKind, Found, GuestState, Inventory, Spec, Work};
pub use ids::{BadId, GuestId, ManagerId, OpId};
pub use records::{Entry, Record, Snapshot};
pub use request::{Caller, Command, Operation, Request, Scope};
pub use state::{Cluster, ContextReport, Fault, Goal, Host, Member, Phase, Reached, Step, Why};
pub use view::{ClusterStatus, HostStatus, MemberState, MemberStatus};
pub use world::World;
