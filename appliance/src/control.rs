//! The control socket: one JSON request a line, one JSON reply a line.
//!
//! The socket is the daemon's only door for local commands. It is open to the machine's users for reading the
//! status; requests that change something are served to root alone, judged by the socket's peer credentials.

use serde::{Deserialize, Serialize};

use crate::diagnosis::{NetcheckReport, PathReport};
use crate::status::{PeerReport, Report};

/// The longest request, in bytes: the longest signed revocation list in hexadecimal, and what is around it.
pub(crate) const MAX_REQUEST: usize = 2 * aerie_identity::MAX_SIGNED_REVOCATIONS + 1024;

/// What a command asks of a daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// The whole status.
    Status,
    /// The members.
    Peers,
    /// One round trip to a node, through the tunnel.
    Ping {
        /// A node's name, its full name, its `C` name or its virtual address of either family.
        target: String,
    },
    /// Everything about the way to a node, which is woken for it.
    Path {
        /// As of a ping.
        target: String,
    },
    /// A new look at the network in front of this node.
    Netcheck,
    /// Take a signed revocation list and spread it (hexadecimal).
    Revocations {
        /// The encoded list.
        list: String,
    },
    /// Give the address back, stop HTCondor and end.
    Leave,
}

impl Request {
    /// Whether the request changes anything, so that only root may make it.
    pub(crate) fn changes_state(&self) -> bool {
        matches!(self, Self::Revocations { .. } | Self::Leave)
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// The status.
    Status(Box<Report>),
    /// The members.
    Peers {
        /// One record per member, by name.
        peers: Vec<PeerReport>,
    },
    /// A round trip was made.
    Pong {
        /// The node that answered.
        node: String,
        /// Its virtual address.
        addr: String,
        /// Milliseconds.
        rtt_ms: f64,
        /// The path that the datagrams took.
        path: String,
        /// How the address at its other end became known: `host`, `reflexive`, `port-mapped` or `peer-reflexive`; none
        /// where the path is not direct.
        #[serde(default)]
        candidate: Option<String>,
    },
    /// The way to a node.
    Path(Box<PathReport>),
    /// The network in front of this node.
    Netcheck(Box<NetcheckReport>),
    /// Done; the text says what.
    Ok {
        /// What was done.
        message: String,
    },
    /// Refused or failed.
    Error {
        /// Why, and what to do.
        message: String,
    },
}
