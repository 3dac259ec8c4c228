//! The register of leases and sets: who holds which virtual address and name, and who announces what.
//!
//! Addresses are *quorum leases with receipts*. A claimant asks the nine members closest to the key of an address, its
//! *witnesses*; each grants by its own rule and signs a receipt; seven receipts are a certificate, which proves the
//! lease to anybody who knows the grid's CA. In a grid of fewer than nine members everybody is a witness, and a
//! majority of the members of the last day is needed. See [`limits`] for the numbers and their reasons, and the
//! modules' own texts for their rules: granting, refusing and telling clones from restarts (`witness`), claiming and
//! keeping (`holder`), counting votes (`round`), who may vote after a start (`ready`), look-ups (`search`), sets
//! (`sets`), what a certificate proves (`lease`).
//!
//! # Safety
//!
//! At no moment are there two valid certificates of different holders for one key, as long as: witnesses keep their
//! stores (a grant is persisted before it is answered), monotonic clocks run equally fast to within 1.5%, and of any
//! two quorums formed at the same time, views that differ by d members and f lying witnesses have d + f <= 4. How that
//! comes about: a holder counts its lease from before it asked the first witness, and a witness from when it grants,
//! so that a certificate ends before any of its grants; a witness grants only one holder at a time; and two quorums
//! share a witness (seven of the same thirteen closest, or majorities of memberships that differ by a joining member,
//! which became ready through n - q + 1 of the others).
//!
//! # Shape
//!
//! Pure: no clock, socket, file or runtime. Time and the random source are arguments; signatures and credentials come
//! by [`Keys`], durability by [`Store`]; the state is plain, ordered and cloned at will, so that the same core runs in
//! the daemon, in the simulator and under a model checker.

mod draw;
mod error;
mod fence;
mod holder;
mod keys;
mod lease;
pub mod limits;
mod members;
pub mod model;
mod ready;
mod record;
mod register;
mod round;
mod rule;
mod search;
mod sets;
mod stats;
mod store;
mod voting;
#[cfg(feature = "weaken")]
mod weaken;
mod wire;
mod witness;

pub use error::{Error, StoreError};
pub use fence::Fence;
pub use holder::{AcquireRequest, Failure, HeldLease, LostReason};
pub use keys::{Keys, Member, NotMember, Now, Signature};
pub use lease::{Certificate, Proof, Receipt, Terms, addr_key, majority, name_key, quorum};
pub use limits::Timings;
pub use register::{Config, Event, Found, Input, Output, Register, SendError};
pub use rule::QuorumRule;
pub use sets::{PublishError, SetView, set_key};
pub use stats::Stats;
pub use store::{Change, MemoryStore, Rows, Store, Table};
#[cfg(feature = "weaken")]
pub use weaken::Weaken;
