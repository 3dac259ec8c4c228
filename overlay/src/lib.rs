//! The grid's control plane: one libp2p swarm per grid, in which only members of that grid can hold a connection.
//!
//! # How a node behaves
//!
//! A node dials its bootstrap addresses, and from the first member that it reaches it learns all the others: members
//! tell each other whom they are connected to, and at which addresses. In a grid of up to about sixty members
//! everybody is connected to everybody; beyond that a node keeps its Kademlia neighbours and a random rest. A node
//! that loses all its connections dials the bootstrap addresses and the members it knew again, with a jittered,
//! growing pause. A member that vanishes without a word is noticed by unanswered probes, and whoever notices tells
//! the others, who then probe at once (see [`Config::probe_interval`]).
//!
//! # Admission
//!
//! A peer shows its overlay credential *inside the upgrade* of the transport, directly after the handshake that
//! proves its key. Until both sides have accepted each other there is no connection: no multiplexer runs (TCP and
//! relayed) and no protocol is served. See [`admission`].
//!
//! # NAT
//!
//! Members with an open port ([`aerie_types::Role::Relay`]) carry circuits for the others. Every other member
//! reserves a place on up to two of them and advertises the relayed address, so that everybody can reach everybody;
//! hole punching (DCUtR) then replaces the relayed connection by a direct one where the NATs allow it.
//!
//! # Shape
//!
//! One task owns the swarm and all state ([`Overlay::spawn`]); a [`Handle`] sends it commands over a bounded channel,
//! and it reports [`Event`]s over another one.

pub mod admission;
mod behaviour;
mod codec;
mod config;
mod driver;
mod error;
mod handle;
mod liveness;
mod peer;
mod stats;
mod swarm;

pub use admission::{Gatekeeper, IdentityGate, Refusal};
pub use config::Config;
pub use error::{Error, RequestError};
pub use handle::{ConnectionInfo, Event, Handle, Member, Overlay, Protocol, Topic};
pub use libp2p::Multiaddr;
pub use stats::Stats;
