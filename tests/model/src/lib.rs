//! A model checker over the register's own core: every order of what may happen, in small worlds.
//!
//! ```text
//!   World (members, bounds) ──► beginning: all up, acquainted, ready; then the prelude
//!                                   │
//!                                   ▼            every action that the bounds allow
//!                               ┌───────┐ ──────────────────────────────────────────► next state
//!                               │ State │   deliver, lose or double a message; let time pass; claim, give back,
//!                               └───────┘   look up; kill with or without the disk, start; tear, heal
//!                                   │
//!                                   └──► safe? no two valid certificates of one address; nobody falls back to a
//!                                        lease that was given up
//! ```
//!
//! The nodes are cores of the register that ships, each over a disk of the model and keys of the simulator. What is
//! scaled down is their configuration: five witnesses of which four are needed, and a lease of a minute.
//!
//! # What makes it finite
//!
//! - Time is virtual and the same everywhere. It passes in steps: to the next due timer, rounded up to a tenth of a
//!   second, and on from there until something is sent or the world's stride is over; and it ends. While messages
//!   are in flight it passes only as often as the world's budget says.
//! - Messages about the contested address, of the kinds that the world names, are in flight until the checker
//!   chooses to deliver them, in any order. All other messages (of the names' keys, and between members that merge
//!   their states) arrive at once.
//! - Losses, doubles, crashes and partitions come out of a budget.
//!
//! Two states are the same when the cores' states, the messages in flight, the time and the budget are. A certificate
//! counts as valid until its end by its holder's clock, also when its holder has crashed, unless it was given back.
//! The bounds of each world are in its text; what was not seen for want of states is said in the verdict.
//!
//! # Weakenings
//!
//! A checker that finds nothing proves nothing unless it is seen to find something. Each of [`WEAKENINGS`] leaves one
//! rule out, and has the world in which that is found.

mod checked;
mod disk;
mod state;
mod step;
mod world;
mod worlds;

pub use checked::{Action, Flight, Order, Verdict, explore};
pub use disk::Disk;
pub use state::{Body, Budget, Core, Held, Message, Slot, State};
pub use step::Step;
pub use world::{FOUR_OF_FIVE, World};
pub use worlds::{WEAKENINGS, Weakening, worlds};
