//! A deterministic simulator of the register: real cores, a virtual clock, a network that misbehaves by a seed.
//!
//! ```text
//!   seed ──► World ──┬── nodes: the shipping core, a store in memory, a skewed and drifting clock
//!                    ├── network: loss, delay, doubling, reordering, partition, stale views of the closest members
//!                    ├── faults: crash, restart with and without the store, joining, leaving
//!                    └── Checker: no two valid certificates of one key at one moment
//! ```
//!
//! A run is a function of its seed. A test that fails prints the seed; running that seed again repeats the failure.

mod checker;
pub mod kad;
mod keys;
mod node;
mod world;

pub use checker::Checker;
pub use keys::{SimKeys, name, peer, worker};
pub use node::{Clock, Node, Told};
pub use world::{Conditions, World};
