//! Timers and bounds of the protocol, each with its reason.
//!
//! The session timers are WireGuard's (whitepaper, section 6.1), because they are known to hold up.

use std::time::Duration;

/// A session older than this is renewed by the side that initiated it, when it sends.
pub(crate) const REKEY_AFTER: Duration = Duration::from_secs(120);
/// A session older than this neither seals nor opens.
pub(crate) const REJECT_AFTER: Duration = Duration::from_secs(180);
/// How long a handshake is tried before its queued packets are given up.
pub(crate) const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
/// Time between two tries of a handshake, to which up to [`REKEY_JITTER`] is added.
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Most that is added to a handshake's retry, so that two sides do not stay in step.
pub(crate) const REKEY_JITTER: Duration = Duration::from_millis(333);
/// The first tries of a handshake come faster: one lost datagram must not cost a person five seconds.
pub(crate) const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How many tries come faster.
pub(crate) const FAST_TRIES: u32 = 3;
/// Who has received and has nothing to send answers after this long with an empty packet.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(10);

/// Handshake messages of one member looked at a second, its inits and its responses: each costs up to four X25519
/// operations and a credential check, about 1 ms. An honest member sends one a second at most ([`FIRST_RETRY`]).
pub(crate) const HANDSHAKES_PER_PEER: u32 = 2;
/// And at once: all tries that come faster, and two that were under way when the peer was first heard.
pub(crate) const HANDSHAKES_BURST: u32 = 5;
/// Source addresses of queries whose rates are remembered; beyond it the oldest is forgotten.
pub(crate) const MAX_RATED_SOURCES: usize = 1024;
/// Reflexive queries answered of one source a second: a campus may share one address.
pub(crate) const QUERIES_PER_SOURCE: u32 = 50;
/// Reflexive queries answered in all a second.
pub(crate) const QUERIES_TOTAL: u32 = 500;

/// Members with state in the core. A grid of the papers has hundreds; each costs 6 KiB, and one more for each of its
/// sessions.
pub(crate) const MAX_PEERS: usize = 4096;
/// Changes of the way to a peer that are remembered, for a person who asks.
pub(crate) const MAX_CHANGES: usize = 8;
/// Datagrams sent a second because a member asked for one to its own outside address.
pub(crate) const KNOCKS_PER_SECOND: u32 = 20;
/// Virtual addresses whose holder is known.
pub(crate) const MAX_BINDINGS: usize = 8192;
/// Virtual addresses being looked up at once.
pub(crate) const MAX_LOOKUPS: usize = 256;
/// Packets kept for one destination that cannot be sent to yet: the first packets of a few connections.
pub(crate) const MAX_QUEUED: usize = 16;
/// Packets kept in all, so that a scan of the range cannot hold more than about 3 MiB.
pub(crate) const MAX_QUEUED_TOTAL: usize = 2048;
/// Largest inner packet kept or sent.
pub(crate) const MAX_INNER: usize = 65_535;
/// Addresses remembered as unreachable.
pub(crate) const MAX_UNREACHABLE: usize = 1024;
/// How long an address that could not be resolved is answered with "unreachable" without asking again.
pub(crate) const UNREACHABLE_FOR: Duration = Duration::from_secs(5);
/// A look-up is asked again after this long without an answer.
pub(crate) const LOOKUP_RETRY: Duration = Duration::from_secs(3);
/// A look-up is given up after this long; TCP's first retries fall within.
pub(crate) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(12);
/// The holder of an address is asked for again after this long, while the old answer stays in use.
pub(crate) const BINDING_REFRESH: Duration = Duration::from_secs(240);
/// An answer older than this is used no longer: the lease behind it lived 30 minutes at most.
pub(crate) const BINDING_MAX: Duration = Duration::from_secs(1500);
/// Unproved inner source addresses of one peer looked up a second: a peer has one address, or two while it moves.
pub(crate) const SOURCE_LOOKUPS: u32 = 2;
/// ICMP answers made a second.
pub(crate) const ICMP_PER_SECOND: u32 = 50;
/// Pings waiting for their answer.
pub(crate) const MAX_PINGS: usize = 64;
/// A ping is sent again after this long: the first may have been lost with the way it took.
pub(crate) const PING_RETRY: Duration = Duration::from_secs(3);
/// A ping is given up after this long.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Events waiting for the caller; it is told of the loss by a counter.
pub(crate) const MAX_EVENTS: usize = 4096;

/// Without inner packets for this long a peer is idle: nothing is sent to it, not even probes.
pub(crate) const IDLE_AFTER: Duration = Duration::from_secs(180);
/// Without inner packets for this long a peer is forgotten.
pub(crate) const FORGET_AFTER: Duration = Duration::from_secs(900);

/// What is assumed to pass everywhere, as payload of UDP: the least that QUIC demands of a path (RFC 9000, 14), for
/// the same reason. It fits an IPv6 link of the least MTU, and an IPv4 one with room for a tunnel or two. An inner
/// packet of 1,280 bytes does not fit it whole, no more than it fits that link; then it is cut inside the tunnel.
pub(crate) const FLOOR: usize = 1200;
