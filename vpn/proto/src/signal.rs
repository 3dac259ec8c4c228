//! Messages that two members exchange over the authenticated overlay, before and beside the tunnel.
//!
//! The caller carries them as opaque bytes and says truthfully from whom they came. First byte: the version.

use std::net::IpAddr;

use aerie_types::{PeerId, UnderlayAddr, VirtualNet};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

const SIGNAL_VERSION: u8 = 3;
/// Longest signal: an offer with all its candidates takes about 500 bytes.
pub const MAX_SIGNAL: usize = 2048;
/// Candidates of one offer. A host has a few addresses; each costs the other side a dozen probes.
pub(crate) const MAX_CANDIDATES: usize = 12;

/// How a candidate became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CandidateKind {
    /// An address of one of the host's interfaces.
    Host,
    /// What a member saw as the source of a query: the outside of a NAT.
    Reflexive,
    /// A port of the router that leads to the host, as the router said.
    Mapped,
    /// The source of an authenticated datagram that nobody had announced.
    PeerReflexive,
    /// Through a relay.
    Relayed,
    /// Over TLS, as UDP does not pass.
    Stream,
}

impl std::fmt::Display for CandidateKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Reflexive => "reflexive",
            Self::Mapped => "port-mapped",
            Self::PeerReflexive => "peer-reflexive",
            Self::Relayed => "relayed",
            Self::Stream => "tls",
        })
    }
}

/// An address at which a member may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Candidate {
    /// How it became known.
    pub kind: CandidateKind,
    /// The address.
    pub addr: UnderlayAddr,
}

/// One side of the path exchange.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Offer {
    /// By which probes and handshakes address this side.
    pub(crate) tag: u64,
    /// This side's half of the probes' key.
    pub(crate) secret: [u8; 32],
    /// Whether this answers the other side's offer; an answer is not answered.
    pub(crate) answer: bool,
    /// Whether this side's NAT gives every destination another port.
    pub(crate) symmetric: bool,
    /// Whether nobody answers this side over UDP.
    pub(crate) unheard: bool,
    #[zeroize(skip)]
    pub(crate) candidates: Vec<Candidate>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Signal {
    Offer(Offer),
    /// To a relay: carry datagrams between the sender and `far`.
    RelayRequest {
        id: u64,
        far: PeerId,
    },
    /// From a relay: a ticket for each end.
    RelayGrant {
        id: u64,
        session: u64,
        tickets: [[u8; 16]; 2],
    },
    /// From a relay: no.
    RelayDenied {
        id: u64,
    },
    /// To the far end: bind to this session of a relay.
    RelayInvite {
        relay: PeerId,
        addr: UnderlayAddr,
        session: u64,
        ticket: [u8; 16],
    },
    /// The sender has forgotten the exchange with this tag of its own.
    Bye {
        tag: u64,
    },
    /// Send one datagram to `addr`, which the sender takes for its own outside: to see whether it admits strangers.
    Knock {
        addr: UnderlayAddr,
        transaction: u64,
    },
    /// That was done.
    Knocked {
        transaction: u64,
    },
}

impl Signal {
    #[expect(clippy::expect_used, reason = "no field of a signal can fail to serialise")]
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![SIGNAL_VERSION]).expect("a signal is plain data")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() > MAX_SIGNAL {
            return Err("it is too long");
        }
        let (&version, rest) = bytes.split_first().ok_or("it is empty")?;
        if version != SIGNAL_VERSION {
            return Err("its version is unknown");
        }
        let (signal, rest) = postcard::take_from_bytes(rest).map_err(|_| "it is damaged")?;
        if !rest.is_empty() {
            return Err("something follows it");
        }
        match &signal {
            Self::Offer(offer) if offer.candidates.len() > MAX_CANDIDATES => {
                Err("it has too many candidates")
            }
            _ => Ok(signal),
        }
    }
}

/// Whether datagrams may be sent to an address that another member named: not into the grid itself, not to
/// groups, not to this host unless `loopback`.
pub(crate) fn is_usable(addr: UnderlayAddr, net: VirtualNet, loopback: bool) -> bool {
    let ip = addr.0.ip();
    let special = match ip {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    addr.0.port() != 0
        && addr.stream().is_none()
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !special
        && (loopback || !ip.is_loopback())
        && !net.contains(ip)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use aerie_types::GridId;
    use proptest::prelude::*;

    use super::*;

    fn offer(candidates: usize) -> Signal {
        let candidate = Candidate {
            kind: CandidateKind::Host,
            addr: UnderlayAddr("[2001:db8::1]:4242".parse().unwrap()),
        };
        Signal::Offer(Offer {
            tag: u64::MAX,
            secret: [255; 32],
            answer: false,
            symmetric: true,
            unheard: true,
            candidates: vec![candidate; candidates],
        })
    }

    #[test]
    fn the_largest_signal_fits_and_reads_back() {
        let signal = offer(MAX_CANDIDATES);
        let bytes = signal.encode();
        assert!(bytes.len() <= MAX_SIGNAL, "{}", bytes.len());
        assert!(Signal::decode(&bytes) == Ok(signal));
        assert!(Signal::decode(&offer(MAX_CANDIDATES + 1).encode()).is_err());
    }

    #[test]
    fn addresses_that_a_member_must_not_make_us_send_to_are_refused() {
        let net = VirtualNet::new(GridId([9; 16]), "100.96.0.0/11".parse().unwrap());
        let inside = UnderlayAddr(SocketAddr::new(net.ula.prefix().addr().into(), 4242));
        assert!(!is_usable(inside, net, false), "{inside}");
        for (addr, usable) in [
            ("192.0.2.1:4242", true),
            ("10.1.2.3:1", true),
            ("[2001:db8::1]:9", true),
            ("192.0.2.1:0", false),
            ("100.96.0.1:4242", false),
            ("255.255.255.255:1", false),
            ("224.0.0.1:1", false),
            ("0.0.0.0:1", false),
            ("127.0.0.1:1", false),
            ("169.254.169.254:80", false),
            ("[fe80::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("[100::1]:1", false),
        ] {
            assert_eq!(
                is_usable(UnderlayAddr(addr.parse().unwrap()), net, false),
                usable,
                "{addr}"
            );
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Signal::decode(&bytes);
            let mut versioned = vec![SIGNAL_VERSION];
            versioned.extend(&bytes);
            let _ = Signal::decode(&versioned);
        }
    }
}
