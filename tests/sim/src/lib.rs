//! A deterministic simulator of the register: real cores, a virtual clock, a network that misbehaves by a seed.
//!
//! ```text
//!   seed ──► World ──┬── nodes: the shipping core, a store in memory, a skewed and drifting clock
//!                    ├── network: loss, delay, doubling, reordering, partition
//!                    ├── routing: connections and Kademlia by the overlay's messages, or an oracle's stale views
//!                    ├── faults: crash, restart with and without the store, standing still, joining, leaving
//!                    ├── Checker: no two valid certificates of one key at one moment
//!                    └── Tally: how often each fault struck, and what came of it
//! ```
//!
//! A run is a function of its seed. A test that fails prints the seed; running that seed again repeats the failure.
//! [`scenario`] has whole runs with their checks, which the `aerie-sim` program repeats for many seeds; [`growth`]
//! measures what claims and look-ups cost as the grid grows.

mod checker;
mod conditions;
pub mod growth;
pub mod kad;
mod keys;
mod liar;
mod net;
mod node;
mod overlay;
mod queue;
mod ring;
mod routed;
pub mod scenario;
mod tally;
mod topology;
mod world;

pub use checker::Checker;
pub use conditions::{Conditions, Cut};
pub use keys::{SimKeys, name, peer, worker};
pub use node::{Clock, Node, Routed, Told};
pub use overlay::Routing;
pub use tally::Tally;
pub use world::{REACHED, World};
