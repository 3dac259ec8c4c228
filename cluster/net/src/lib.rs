//! The networks of guests on one host: bridges, a TAP for each NIC, filters against guests that lie, addresses, and
//! what guests are told about themselves.
//!
//! ```text
//!  Plan (networks, NICs) ──► HostNetworks::open, attach, detach ──► interfaces, one table of rules a family
//!       │                                                               │
//!       ├── rules: text for nft                                         ▼
//!       ├── dhcp: frame in, frame out                          DHCP and metadata on each bridge
//!       └── metadata: request in, answer out
//! ```
//!
//! A guest is not trusted. It may send from its own Ethernet address and IP addresses alone, hears the guests of its own
//! network and nobody else, and reaches of the host nothing but DHCP, ping, and `http://169.254.169.254`. What is
//! decided is decided in parts without sockets, clocks or files ([`Plan`], and the modules `rules`, `dhcp` and
//! `metadata`); the driver is [`HostNetworks`].
//!
//! The same can be given to a guest as a disc ([`disc()`]).
//!
//! Guests outlive the process that plugged them in. Everything that keeps them apart is in the kernel, carries the
//! instance's mark, and is found again by it; only DHCP and metadata pause while no driver runs.
//!
//! A host's own firewall comes after these rules, and may drop more: it has to let in TCP to port 80 from the bridges,
//! and let guests through where `br_netfilter` shows it what passes a bridge.
//!
//! Needs `nft` 1.0 or later, and CAP_NET_ADMIN and CAP_NET_RAW.

mod dhcp;
mod disc;
mod error;
mod host;
mod ids;
mod links;
mod metadata;
mod nft;
mod plan;
mod rules;
mod tap;
mod watch;

pub use disc::{DiscKind, disc};
pub use error::{BadDisc, BadPlan, Error, METADATA};
pub use host::HostNetworks;
pub use ids::{InstanceId, InterfaceName, NetworkId, PortId};
pub use plan::{
    Facts, MAX_DNS, MAX_IPV6, MAX_KEY, MAX_KEYS, MAX_MTU, MAX_NETWORKS, MAX_PORTS, MAX_THROUGH,
    MAX_USER_DATA, MIN_MTU, Network, Plan, Port, UserData, link_local,
};
