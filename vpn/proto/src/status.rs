//! What a person may ask of the tunnels.

use std::fmt;
use std::time::Duration;

use aerie_types::{NodeName, PeerId, UnderlayAddr, VirtualAddr};

use crate::reflexive::Mapping;
use crate::signal::{Candidate, CandidateKind};

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
        /// Whether this node has it over TLS, as UDP does not pass.
        stream: bool,
    },
    /// Over TLS between this node and the peer, which relays for others.
    Stream {
        /// The peer's address; `None` where the peer has connected to this node.
        to: Option<UnderlayAddr>,
    },
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lan(addr) => write!(f, "lan {addr}"),
            Self::Direct(addr) => write!(f, "direct {addr}"),
            Self::Relayed { via, addr, stream } => {
                let over = if *stream { " over TLS" } else { "" };
                write!(f, "relayed via {} {addr}{over}", via.short())
            }
            Self::Stream { to: Some(addr) } => write!(f, "tls {addr}"),
            Self::Stream { to: None } => f.write_str("tls"),
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

/// How a candidate pair has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairState {
    /// It is being probed, and has not answered yet.
    Probing {
        /// Probes sent.
        probes: u32,
    },
    /// It answers.
    Alive,
    /// It has never answered.
    NoAnswer {
        /// Probes sent.
        probes: u32,
    },
    /// It answered before, then no more.
    Lost,
}

/// One way to a peer: this node's data socket and an address of the peer's, or a relay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairStatus {
    /// How the address became known.
    pub kind: CandidateKind,
    /// To where datagrams go: the peer, or the relay.
    pub addr: UnderlayAddr,
    /// The relay.
    pub via: Option<PeerId>,
    /// How it has done.
    pub state: PairState,
    /// Whether it is the way in use.
    pub selected: bool,
    /// Round trip, smoothed.
    pub rtt: Option<Duration>,
    /// Since its last answer.
    pub answered: Option<Duration>,
}

/// Why the way to a peer is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The peer's own address on the same network answers.
    SameNetwork,
    /// The peer's own address answers, as nothing translates it.
    Public,
    /// The outside of the peer's NAT answers.
    Punched,
    /// A port answers that the peer's router leads to it.
    Mapped,
    /// The peer is heard, and answers, at an address that it did not know of.
    Unannounced,
    /// Nothing has asked for a way for a while.
    Asleep,
    /// The peer has not answered over the overlay.
    NoExchange {
        /// Offers sent since there was a way last.
        offers: u32,
    },
    /// Direct ways are still being tried.
    Trying,
    /// The peer announced no address that can be tried.
    NoCandidates,
    /// Both NATs give every destination another port.
    BothSymmetric,
    /// This node's NAT gives every destination another port, and the peer's admits only those that it knows.
    OwnSymmetric,
    /// The same with the sides exchanged.
    PeerSymmetric,
    /// This host gets no answer over UDP from anybody who was asked.
    UdpSilent,
    /// The peer gets no answer over UDP from anybody whom it has asked.
    PeerUdpSilent,
    /// No address of the peer's answers, for a reason that cannot be seen from here.
    NoAnswer,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameNetwork => "its own address on this network answers",
            Self::Public => "its own address answers; nothing translates it",
            Self::Punched => "the outside of its NAT answers",
            Self::Mapped => "the port answers that its router leads to it",
            Self::Unannounced => "it answers at an address that it did not know of, the outside of its NAT",
            Self::Asleep => "no packet has asked for a way for a while",
            Self::NoExchange { offers: 0 } => "it has not been asked for its addresses yet",
            Self::NoExchange { .. } => "it does not answer over the overlay, so its addresses are not known",
            Self::Trying => "direct ways are still being tried",
            Self::NoCandidates => "it announced no address that can be tried",
            Self::BothSymmetric => {
                "both NATs give every destination another port (symmetric), so that neither knows the other's"
            }
            Self::OwnSymmetric => {
                "our NAT gives every destination another port (symmetric), and the peer's side admits only ports \
                 that it knows"
            }
            Self::PeerSymmetric => {
                "its NAT gives every destination another port (symmetric), and our side admits only ports that it \
                 knows"
            }
            Self::UdpSilent => "no member answers this node over UDP, which something seems to block",
            Self::PeerUdpSilent => {
                "no member answers the peer over UDP, which something at its side seems to block"
            }
            Self::NoAnswer => {
                "none of its addresses answers: a firewall may drop UDP at one of the two sides, or it is away"
            }
        })
    }
}

/// A change of the way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// How long ago.
    pub ago: Duration,
    /// The way from then on.
    pub path: PathKind,
}

/// Everything about the way to one peer.
#[derive(Debug, Clone)]
pub struct PathStatus {
    /// The peer.
    pub peer: PeerStatus,
    /// Why its way is what it is.
    pub reason: Reason,
    /// Since when the way is in use.
    pub since: Option<Duration>,
    /// Every way that is known, the one in use first.
    pub pairs: Vec<PairStatus>,
    /// What this node announces.
    pub candidates: Vec<Candidate>,
    /// What the NAT in front of this host does.
    pub mapping: Mapping,
    /// Whether the peer's NAT gives every destination another port; `None` until it has answered.
    pub peer_symmetric: Option<bool>,
    /// Until addresses are exchanged again.
    pub next_offer: Option<Duration>,
    /// The last changes, the newest last.
    pub changes: Vec<Change>,
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
    /// Copies of inner packets to all, before they were sealed.
    copies,
    /// The same that were not made, as there were too many.
    copies_limited,
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
