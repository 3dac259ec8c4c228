//! What a person asks when a path is not as it should be: wire forms of the control socket (JSON), beside
//! [`crate::status`].

use serde::{Deserialize, Serialize};

/// Everything about the way to one member.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PathReport {
    pub(crate) node: String,
    pub(crate) addr: String,
    /// `direct`, `lan`, `relayed`, `tls` (with a relay itself) or `none`.
    pub(crate) path: String,
    /// The path with its addresses; empty while there is none.
    pub(crate) through: String,
    pub(crate) rtt_ms: Option<f64>,
    /// Seconds since this path was chosen.
    pub(crate) since_secs: Option<f64>,
    /// The cipher of the session; empty while there is none.
    pub(crate) cipher: String,
    /// The longest packet in bytes that was found to fit without fragments.
    pub(crate) mtu: Option<usize>,
    /// Why the path is what it is.
    pub(crate) reason: String,
    /// What a person can do about it; empty if nothing.
    pub(crate) hint: String,
    /// Why the round trip failed by which the path was woken; empty if it did not.
    pub(crate) failure: String,
    pub(crate) pairs: Vec<PairReport>,
    /// What this node announces to the other.
    pub(crate) announced: Vec<CandidateReport>,
    pub(crate) own_nat: String,
    /// Empty until the other has told.
    pub(crate) peer_nat: String,
    /// Seconds until addresses are exchanged again, where something better is looked for.
    pub(crate) next_exchange_secs: Option<f64>,
    /// The newest last.
    pub(crate) changes: Vec<ChangeReport>,
}

/// One candidate pair: this node's data socket and where it sends to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PairReport {
    /// `host`, `reflexive`, `port-mapped`, `peer-reflexive`, `relayed` or `tls`.
    pub(crate) kind: String,
    pub(crate) addr: String,
    /// The relay's node name.
    pub(crate) via: Option<String>,
    /// `probing`, `answers`, `no-answer` or `lost`.
    pub(crate) state: String,
    /// Probes that have gone unanswered since the last answer.
    pub(crate) unanswered: u32,
    pub(crate) selected: bool,
    pub(crate) rtt_ms: Option<f64>,
    /// Seconds since its last answer.
    pub(crate) answered_secs: Option<f64>,
}

/// An address that this node announces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CandidateReport {
    pub(crate) kind: String,
    pub(crate) addr: String,
}

/// A change of the path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ChangeReport {
    /// How many seconds ago.
    pub(crate) secs: f64,
    /// The path from then on.
    pub(crate) path: String,
}

/// How the network in front of this node looks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetcheckReport {
    /// The data socket's UDP port.
    pub(crate) port: u16,
    /// Addresses of this machine's interfaces.
    pub(crate) addresses: Vec<String>,
    /// Whether members answer over UDP; none where nobody could be asked.
    pub(crate) udp: Option<bool>,
    /// Whether this node was seen, or has an address, outside of private ranges in IPv6.
    pub(crate) ipv6: bool,
    /// `open`, `endpoint-independent`, `address-and-port-dependent` or `unknown` (RFC 4787).
    pub(crate) mapping: String,
    /// Whether datagrams come in from members to which nothing was sent; none where it could not be tried.
    pub(crate) admits_strangers: Option<bool>,
    /// Whether a datagram to this node's own outside address comes back; none where there is no NAT.
    pub(crate) hairpin: Option<bool>,
    /// Whether the router gives this node a port.
    #[serde(default)]
    pub(crate) port_mapping: MappingReport,
    /// How this node is seen by others.
    pub(crate) seen_as: Vec<String>,
    /// The nearest first.
    pub(crate) relays: Vec<RelayReport>,
    /// The relays to which this node is connected over TLS, as UDP does not pass.
    pub(crate) tls: Vec<TlsReport>,
    /// The TCP port at which this node, a relay, takes members that UDP does not reach.
    pub(crate) tls_port: Option<u16>,
    /// Why it takes none although it should; empty if it does, or is no relay.
    pub(crate) tls_problem: String,
    /// Length of packets in bytes: of the interface, and the least and the most that was found to fit a member's path.
    pub(crate) mtu: u16,
    pub(crate) path_mtu: Option<(usize, usize)>,
    /// What the kernel does not do for the tunnel.
    pub(crate) offloads_off: Vec<String>,
    /// What it comes to.
    pub(crate) verdict: String,
    /// What a person can do; empty if nothing.
    pub(crate) hint: String,
    /// Whether this node is reached well enough that nothing needs to be done.
    pub(crate) good: bool,
}

/// A port of the router that leads to this node's data socket.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct MappingReport {
    /// `held`, `asking`, `none`, or `off` where routers are not asked.
    pub(crate) state: String,
    /// The port with the address on the router's outside.
    pub(crate) addr: Option<String>,
    /// `PCP`, `NAT-PMP` or `UPnP`.
    pub(crate) by: Option<String>,
    /// Why there is none; empty if there is.
    pub(crate) why: String,
}

/// A relay to which this node is connected over TLS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TlsReport {
    pub(crate) node: String,
    pub(crate) addr: String,
}

/// A member that relays, and sees this node from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RelayReport {
    pub(crate) node: String,
    pub(crate) addr: String,
    /// How it sees this node; none if it does not answer.
    pub(crate) seen_as: Option<String>,
    pub(crate) rtt_ms: Option<f64>,
}
