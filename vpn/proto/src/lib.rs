//! The tunnel's protocol: Noise sessions, path choice, relaying. No socket, clock or runtime.
//!
//! [`Tunnels`] is one node's end of all its tunnels in one grid. Datagrams of the node's data socket and packets
//! of its TUN device go in; datagrams to send, packets to deliver and [`Event`]s come out. Two things are asked
//! of the caller: to say which member holds a virtual address ([`Event::Resolve`], answered by
//! [`Tunnels::resolved`]), and to carry small messages between members over a channel on which each knows who the
//! other is ([`Event::Signal`], [`Tunnels::signal`]). Everything else happens on the data socket.
//!
//! ```text
//!        TUN ──handle_inner──►┐                        ┌──► poll_event: Resolve, Signal, PathChanged, Pong
//!  resolved, signal, ping ───►│        Tunnels         │
//!  set_relays, set_hosts  ───►│  peers, path agents,   ├──► poll_transmits: datagrams to send
//!   UDP ──handle_datagram────►│  relay links and ends  │
//!   clock ─handle_timeout────►└                        └──► handle_datagram's range, poll_inner: packets to deliver
//! ```
//!
//! Order of calls: after any input, take [`Tunnels::poll_transmits`] first (probes and handshakes must not wait
//! behind bulk data) and [`Tunnels::poll_forwards`] last of what is sent, then [`Tunnels::poll_inner`] and
//! [`Tunnels::poll_event`] until they are empty, as well as [`Tunnels::poll_stream`], and ask [`Tunnels::poll_timeout`] again: it can have become due at
//! once.
//!
//! A packet that does not fit its peer's path is cut or answered, once the path's MTU is known: see `path::mtu` and
//! `tunnels::lengths`. Whoever can cut better, as TCP's segments are, asks [`Tunnels::room_for`] before.
//!
//! - `wire`: the datagrams; `handshake`, `session`, `replay`, `suite`: Noise and bulk sealing
//! - `path`: which way to a peer, and how long a datagram may be on it; `relay`: tickets and frames
//! - `reflexive`: how this host looks from outside; `netcheck`: the same in depth, when a person asks
//! - `peer`: one peer's sessions and timers; `tunnels`: all of them together
//! - `inner`: the packets inside and the ICMP errors about them; `fragments`: cutting them

mod error;
mod fragments;
mod handshake;
mod inner;
mod limits;
mod netcheck;
mod now;
mod path;
mod peer;
mod rate;
mod reflexive;
mod relay;
mod replay;
mod session;
mod signal;
mod status;
mod suite;
mod transmits;
mod tunnels;
mod wire;

pub use error::Error;
pub use handshake::{Identity, noise_public};
pub use netcheck::{Finding, NetworkStatus};
pub use now::Now;
pub use reflexive::{Mapping, Observer};
pub use relay::server::RelayLimits;
pub use replay::WINDOW as REPLAY_WINDOW;
pub use signal::{Candidate, CandidateKind, MAX_SIGNAL};
pub use status::{Change, Counters, PairState, PairStatus, PathKind, PathStatus, PeerStatus, Reason};
pub use suite::Suite;
pub use transmits::{Run, Transmits};
pub use tunnels::{
    Config, CredentialCheck, Event, MAX_COPIES, RelayInfo, RemoteIdentity, RemotePeer, StreamAction, Tunnels,
};
pub use wire::{DATA_HEADER, DATA_OVERHEAD, RELAY_OVERHEAD, VERSION};
