//! The relay's side.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aerie_types::{PeerId, UnderlayAddr};
use aws_lc_rs::hmac;
use rand::Rng;

use super::ticket_key;
use crate::rate::TokenBucket;
use crate::wire::{self, Mac};

/// A session nobody has bound to after this long is forgotten.
const UNBOUND: Duration = Duration::from_secs(30);
/// A session is forgotten when neither end has bound again for this long: three binds missed.
const IDLE: Duration = Duration::from_secs(60);
/// The sessions of one member: it needs one per peer that it cannot reach itself, and a second in case that dies.
const MAX_PER_MEMBER: usize = 128;

/// What a relay gives.
#[derive(Debug, Clone, Copy)]
pub struct RelayLimits {
    /// Sessions at once.
    pub sessions: usize,
    /// Bytes a second of each session, both directions together; no limit where there is none.
    pub bytes_per_second: Option<u64>,
}

impl Default for RelayLimits {
    /// 512 sessions, each as fast as the relay can: it serves the members of its own grid alone.
    fn default() -> Self {
        Self {
            sessions: 512,
            bytes_per_second: None,
        }
    }
}

pub(crate) struct RelayServer {
    limits: RelayLimits,
    sessions: BTreeMap<u64, Session>,
}

struct Session {
    ends: [End; 2],
    bucket: Option<TokenBucket>,
    expires: Instant,
}

struct End {
    peer: PeerId,
    key: hmac::Key,
    addr: Option<UnderlayAddr>,
    sequence: u64,
}

#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) session: u64,
    pub(crate) tickets: [[u8; 16]; 2],
}

impl RelayServer {
    pub(crate) fn new(limits: RelayLimits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
        }
    }

    /// Opens a session between two members, or another one if they have one already. `None`: no room.
    pub(crate) fn grant(
        &mut self,
        near: PeerId,
        far: PeerId,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Grant> {
        let of_near = self
            .sessions
            .values()
            .filter(|session| session.ends[0].peer == near)
            .count();
        if near == far || of_near >= MAX_PER_MEMBER || self.sessions.len() >= self.limits.sessions {
            return None;
        }
        let mut tickets = [[0; 16]; 2];
        tickets.iter_mut().for_each(|ticket| rng.fill_bytes(ticket));
        let session = rng.next_u64();
        let end = |peer, ticket| End {
            peer,
            key: ticket_key(ticket),
            addr: None,
            sequence: 0,
        };
        // A quarter of a second at once, but at least a full socket buffer.
        let bucket = |rate: u64| TokenBucket::new(rate, (rate / 4).max(1 << 20), now);
        self.sessions.insert(
            session,
            Session {
                ends: [end(near, &tickets[0]), end(far, &tickets[1])],
                bucket: self.limits.bytes_per_second.map(bucket),
                expires: now + UNBOUND,
            },
        );
        Some(Grant { session, tickets })
    }

    /// Binds an end to the source of a bind. The datagrams to send; none if the bind is not right.
    pub(crate) fn bind(
        &mut self,
        (session_id, end_no, sequence): (u64, u8, u64),
        mac: Mac<'_>,
        from: UnderlayAddr,
        now: Instant,
    ) -> Vec<(UnderlayAddr, Vec<u8>)> {
        let Some(session) = self.sessions.get_mut(&session_id) else {
            return Vec::new();
        };
        let Some(end) = session.ends.get_mut(usize::from(end_no)) else {
            return Vec::new();
        };
        if sequence <= end.sequence || !mac.verify(&end.key) {
            return Vec::new();
        }
        let first = end.addr.is_none();
        end.addr = Some(from);
        end.sequence = sequence;
        session.expires = now + IDLE;
        let bound = |no: usize| session.ends.get(no).is_some_and(|end| end.addr.is_some());
        let tell = |no: usize| {
            let end = session.ends.get(no)?;
            let far_bound = bound(1 - no);
            Some((
                end.addr?,
                wire::relay_bound(session_id, no as u8, end.sequence, far_bound, &end.key),
            ))
        };
        let own = usize::from(end_no);
        // The other end has waited for this one: it is told at its first bind only.
        let mut out: Vec<_> = tell(own).into_iter().collect();
        if first {
            out.extend(tell(1 - own));
        }
        out
    }

    /// Where a frame from this source goes. `None`: nowhere.
    pub(crate) fn forward(
        &mut self,
        session: u64,
        from: UnderlayAddr,
        len: usize,
        now: Instant,
    ) -> Option<UnderlayAddr> {
        let session = self.sessions.get_mut(&session)?;
        let [near, far] = &session.ends;
        let (near, far) = (near.addr?, far.addr?);
        let to = if from == near {
            far
        } else if from == far {
            near
        } else {
            return None;
        };
        let bucket = session.bucket.as_mut();
        bucket
            .is_none_or(|bucket| bucket.take(len as u64, now))
            .then_some(to)
    }

    /// Ends every session of a member.
    pub(crate) fn revoke(&mut self, peer: PeerId) {
        self.sessions
            .retain(|_, session| session.ends.iter().all(|end| end.peer != peer));
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.sessions.retain(|_, session| session.expires > now);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.sessions.values().map(|session| session.expires).min()
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::wire::Packet;

    fn addr(last: u8) -> UnderlayAddr {
        UnderlayAddr(([192, 0, 2, last], 4242).into())
    }

    struct Bench {
        server: RelayServer,
        grant: Grant,
        now: Instant,
    }

    impl Bench {
        fn new(limits: RelayLimits) -> Self {
            let now = Instant::now();
            let mut server = RelayServer::new(limits);
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let grant = server
                .grant(PeerId([1; 32]), PeerId([2; 32]), now, &mut rng)
                .unwrap();
            Self { server, grant, now }
        }

        fn bind(&mut self, end: u8, sequence: u64, ticket: [u8; 16], from: UnderlayAddr) -> usize {
            let bytes = wire::relay_bind(self.grant.session, end, sequence, &ticket_key(&ticket));
            let Some(Packet::RelayBind {
                session,
                end,
                sequence,
                mac,
            }) = wire::parse(&bytes)
            else {
                panic!()
            };
            self.server
                .bind((session, end, sequence), mac, from, self.now)
                .len()
        }

        fn open(&mut self) {
            let [near, far] = self.grant.tickets;
            assert_eq!(self.bind(0, 1, near, addr(1)), 1);
            assert_eq!(self.bind(1, 1, far, addr(2)), 2, "both are told");
        }
    }

    #[test]
    fn frames_pass_only_between_the_two_bound_addresses() {
        let mut bench = Bench::new(RelayLimits::default());
        let session = bench.grant.session;
        assert_eq!(
            bench.server.forward(session, addr(1), 100, bench.now),
            None,
            "nobody is bound"
        );
        bench.open();
        assert_eq!(
            bench.server.forward(session, addr(1), 100, bench.now),
            Some(addr(2))
        );
        assert_eq!(
            bench.server.forward(session, addr(2), 100, bench.now),
            Some(addr(1))
        );
        assert_eq!(
            bench.server.forward(session, addr(3), 100, bench.now),
            None,
            "a stranger"
        );
        assert_eq!(
            bench.server.forward(session ^ 1, addr(1), 100, bench.now),
            None,
            "no such session"
        );
    }

    #[test]
    fn a_bind_needs_the_ticket_of_its_own_end_and_a_new_number() {
        let mut bench = Bench::new(RelayLimits::default());
        let [near, far] = bench.grant.tickets;
        assert_eq!(bench.bind(0, 1, [9; 16], addr(3)), 0);
        assert_eq!(bench.bind(0, 1, far, addr(3)), 0);
        assert_eq!(bench.bind(2, 1, near, addr(3)), 0);
        bench.open();
        assert_eq!(
            bench.bind(0, 1, near, addr(3)),
            0,
            "a recorded bind from elsewhere"
        );
        let session = bench.grant.session;
        assert_eq!(bench.server.forward(session, addr(3), 100, bench.now), None);
        assert_eq!(bench.bind(0, 2, near, addr(3)), 1, "the member itself has moved");
        assert_eq!(
            bench.server.forward(session, addr(3), 100, bench.now),
            Some(addr(2))
        );
    }

    #[test]
    fn a_session_has_a_rate_and_an_end() {
        let mut bench = Bench::new(RelayLimits {
            sessions: 1,
            bytes_per_second: Some(1 << 20),
        });
        bench.open();
        let session = bench.grant.session;
        let passed = (0..2000)
            .filter(|_| bench.server.forward(session, addr(1), 1024, bench.now).is_some())
            .count();
        assert_eq!(passed, 1024, "one burst");
        bench.now += Duration::from_secs(1);
        assert!(bench.server.forward(session, addr(1), 1024, bench.now).is_some());
        bench.server.handle_timeout(bench.now + IDLE);
        assert_eq!(bench.server.len(), 0);
    }

    #[test]
    fn sessions_are_bounded_in_all_and_per_member() {
        let mut bench = Bench::new(RelayLimits {
            sessions: 150,
            ..RelayLimits::default()
        });
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut grant = |near: u8, far: u8| {
            bench
                .server
                .grant(PeerId([near; 32]), PeerId([far; 32]), bench.now, &mut rng)
                .is_some()
        };
        let greedy = (0..200).filter(|far| grant(3, *far)).count();
        assert_eq!(greedy, MAX_PER_MEMBER);
        let others = (0..200).filter(|near| grant(*near, 250)).count();
        assert!(others < 100);
        assert_eq!(bench.server.len(), 150);
        bench.server.revoke(PeerId([250; 32]));
        assert!(bench.server.len() <= 1 + MAX_PER_MEMBER);
    }
}
