//! What a person may ask of the tunnels.

use std::fmt;
use std::time::Duration;

use aerie_types::{NodeName, PeerId, UnderlayAddr, VirtualAddr};

/// How packets get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// Not at all, at present.
    None,
    /// Within one network: the peer's own private address.
    Lan(UnderlayAddr),
    /// Straight to the peer's public or mapped address.
    Direct(UnderlayAddr),
    /// Through a relay.
    Relayed {
        /// The relay's peer id.
        via: PeerId,
        /// Its address.
        addr: UnderlayAddr,
    },
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lan(addr) => write!(f, "lan {addr}"),
            Self::Direct(addr) => write!(f, "direct {addr}"),
            Self::Relayed { via, addr } => write!(f, "relayed via {} {addr}", via.short()),
        }
    }
}

/// One peer, as it is now.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Who.
    pub peer: PeerId,
    /// Its node name, once its credential was seen in a handshake.
    pub name: Option<NodeName>,
    /// The virtual addresses bound to it.
    pub addrs: Vec<VirtualAddr>,
    /// The way in use.
    pub path: PathKind,
    /// Round trip over that way, smoothed.
    pub rtt: Option<Duration>,
    /// The longest inner packet in bytes that was found to go to it in one datagram without fragments; `None` while
    /// that is not known.
    pub mtu: Option<usize>,
    /// Since the last handshake.
    pub handshake_age: Option<Duration>,
    /// The cipher of the session.
    pub suite: Option<crate::Suite>,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Why the way is not direct, where it is not; or why there is no session.
    pub why: Option<String>,
    /// Whether packets have gone to it or come from it in the last minutes.
    pub active: bool,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts since the start. Drops are by reason.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Every counter with its name, for metrics.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Inner packets sealed.
    sent,
    /// Inner packets opened and delivered.
    received,
    /// Handshakes completed.
    handshakes,
    /// Datagrams that are none of this protocol and version.
    malformed,
    /// MACs and AEAD tags that were wrong.
    forged,
    /// Counters and timestamps seen before.
    replayed,
    /// Datagrams for sessions or exchanges that are not known.
    unknown,
    /// Handshakes over the rate.
    handshakes_limited,
    /// Handshakes whose credential was refused.
    credential_refused,
    /// Inner packets whose source is not bound to the peer that sent them.
    spoofed_source,
    /// Inner packets that are not for this node, not from it, or no IP.
    misdirected,
    /// Packets dropped because a queue was full.
    queue_full,
    /// Packets dropped because their peer could not be reached, or because this host takes no IPv6.
    undeliverable,
    /// Inner packets of this host that are too long for their peer's path, and may not be cut.
    too_long,
    /// Inner packets that were cut into fragments to fit their peer's path.
    cut,
    /// Frames forwarded as a relay.
    relayed,
    /// Frames not forwarded: no session, a stranger, or over the rate.
    relay_refused,
    /// Queries not answered because of their rate.
    queries_limited,
    /// Events lost because nobody took them.
    events_lost,
}
