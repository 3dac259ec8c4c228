//! The register of leases and sets: who holds which virtual address and name, or which prefix, and who announces what.
//!
//! Addresses are *quorum leases with receipts*. A claimant asks the nine members closest to the key of an address, its
//! *witnesses*; each grants by its own rule and signs a receipt; seven receipts are a certificate, which proves the
//! lease to anybody who knows the grid's CA. In a grid of fewer than nine members everybody is a witness, and a
//! majority of the members of the last day is needed. A node that routes for others leases a prefix beside its address
//! in the same way, a block out of a part of the range that is set aside for them (`leased`): what is said of addresses
//! here and in the modules holds for prefixes too. See [`limits`] for the numbers and their reasons, and the
//! modules' own texts for their rules: granting, refusing and telling clones from restarts (`witness`), claiming and
//! keeping (`holder`), counting votes (`round`), who may vote after a start (`ready`), look-ups (`search`), sets
//! (`sets`), witnesses named by the administrator (`strict`), what a certificate proves (`lease`), which certificate is the later one (`fence`).
//!
//! # Guarantees
//!
//! **G1.** At no moment are there two certificates of different holders for one key on which their holders rely, as
//! long as
//! - of any two quorums that form while either's lease lasts, d + f <= 4, where d is by how many members the sets of
//!   witnesses from which they came differ, and f is how many witnesses lie (in general d + f <= 2q - n - 1);
//! - witnesses keep their state: what was granted is persisted before it is answered, and who has lost its store is
//!   not a witness until it is ready anew;
//! - monotonic clocks run equally fast to within 1.5%.
//!
//! **G2.** After a partition has healed and each holder has refreshed its lease once, every key has at most one
//! holder, and exactly one if anybody held it and still runs: of two the one whose lease is the older, then the one
//! with the lower hash. (Of two that share witnesses it is the one that these signed later: the other was given back.)
//! The other yields as soon as it meets the certificate, unless the former holder says that it holds the key no more,
//! and claims anew. A holder that is away counts as one that runs until its lease ends. Until that refresh a look-up may
//! still show the one that yields.
//!
//! **G3.** A partition can do this and no more: in a grid that votes as a whole (up to thirteen members) only a side
//! with a majority of the members of the last day grants anything, so that G1 holds throughout, and on the other side
//! nobody gets a new lease. In a larger grid two sides may grant one key to two holders, when the witnesses that
//! answer on either side are enough there (then d > 4); G2 ends that. On either side a holder keeps its address until
//! it meets another's certificate, even beyond the end of its own when no quorum renews it; a lease that has ended
//! proves nothing to anybody, and is not one on which G1 counts.
//!
//! How G1 comes about: a holder counts its lease from before it asked the first witness, and a witness from when it
//! grants, so that a certificate ends before any of its grants; a witness grants only one holder at a time; and two
//! quorums share a witness (seven of the same eleven closest, or majorities of memberships that differ by a joining
//! member, which became ready through n - q + 1 of the others).
//!
//! Who *uses* a key may meet a certificate of a lease that was given up before its end; the [`Fence`] keeps it from
//! falling back to that after it has used a later one.
//!
//! The same core is run by a seeded simulator (`tests/sim`), which looks for all of this in long runs of many nodes,
//! and by a model checker (`tests/model`), which looks for violations of G1 and of the fence in every order of events of
//! small worlds, and is shown to find each of five rules when it is left out.
//!
//! # Shape
//!
//! Pure: no clock, socket, file or runtime. Time and the random source are arguments; signatures and credentials come
//! by [`Keys`], durability by [`Store`]; the state is plain, ordered and cloned at will, so that the same core runs in
//! the daemon, in the simulator and under a model checker.

mod draw;
mod error;
mod fence;
mod handover;
mod holder;
mod interface;
mod keys;
mod lease;
mod leased;
pub mod limits;
mod members;
pub mod model;
mod near;
mod proof;
mod ready;
mod record;
mod register;
mod round;
mod rows;
mod rule;
mod saved;
mod search;
mod sets;
mod stats;
mod store;
mod strict;
mod voting;
#[cfg(feature = "weaken")]
mod weaken;
mod wire;
mod witness;

pub use error::{Error, StoreError};
pub use fence::Fence;
pub use holder::{AcquireRequest, Failure, HeldLease, LostReason, Want};
pub use interface::{Config, Event, Found, Input, Output, SendError};
pub use keys::{Keys, Member, NotMember, Now, Signature};
pub use lease::{Certificate, Proof, Receipt, Terms, majority, quorum};
pub use leased::{Kind, Leased, addr_key, name_key, prefix_key, router_key};
pub use limits::Timings;
pub use register::Register;
pub use rule::QuorumRule;
pub use sets::{PublishError, SetView, set_key};
pub use stats::Stats;
pub use store::{Change, MemoryStore, Rows, Store, Table};
#[cfg(feature = "weaken")]
pub use weaken::Weaken;
