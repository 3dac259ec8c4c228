//! Does the simulator's Kademlia behave like libp2p's, and how does it grow?
//!
//! ```text
//!               ┌──► aerie_sim::kad, virtual time ──► Outcome ──┐
//!   Plan ───────┤                                               ├──► Verdict: within a tenth, or not
//!               └──► libp2p, in memory, real time ──► Outcome ──┘
//! ```
//!
//! [`compare`] runs the same course of events with both. Members join in the same order at the same others, keep
//! connections by the same rule, look the same keys up, and the same ones die. [`growth`] runs the stand-in alone,
//! with more members than one process could hold of the real thing.

pub mod compare;
pub mod growth;
mod real;
mod watched;

pub use real::{members, run};
