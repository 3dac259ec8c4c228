//! How this host looks from outside: its address and port as other members see them.
//!
//! Any member answers a query on its data socket with the source address that it saw, at a bounded rate and with
//! no more bytes than it was asked with. Two members that see different ports of one socket show a NAT that gives
//! every destination another mapping (RFC 4787, "symmetric"): then the address is of little use to a third.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aerie_types::UnderlayAddr;

use crate::wire;

/// Members asked: two show the NAT's kind, more make it robust.
const MAX_SERVERS: usize = 4;
/// A query is repeated so often, a second apart.
const TRIES: u32 = 4;
const RETRY: Duration = Duration::from_millis(700);
/// So many queries make a member silent that were not answered before their next was due: after a second and a half.
const SILENT: u32 = 2;
/// What a peer has answered shortly before counts against silence.
const PROOF: Duration = Duration::from_secs(1);
/// While somebody is being reached, an answer older than this is asked for again.
const FRESH: Duration = Duration::from_secs(20);
/// Peers whose sight of this host is remembered, and how long: their keep-alives come more often.
const MAX_WITNESSES: usize = 32;
const WITNESSED: Duration = Duration::from_secs(60);
/// An answer is used so long.
const MAX_AGE: Duration = Duration::from_secs(600);
/// And asked for again after this long, for the status that a person reads.
const REFRESH: Duration = Duration::from_secs(300);

/// What the NAT in front of this host does with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Not enough answers yet.
    Unknown,
    /// None: the address seen is one of this host's own.
    Open,
    /// One port for all destinations.
    Independent,
    /// Another port for each destination.
    Dependent,
}

impl std::fmt::Display for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Open => "no NAT",
            Self::Independent => "one port for all destinations",
            Self::Dependent => "another port for each destination (symmetric)",
        })
    }
}

#[derive(Default)]
pub(crate) struct Reflexive {
    servers: BTreeMap<UnderlayAddr, Server>,
    /// When somebody has answered over UDP, other than to a query.
    proved: Option<Instant>,
    /// How peers that were probed directly saw this host.
    witnesses: BTreeMap<UnderlayAddr, (UnderlayAddr, Instant)>,
}

struct Server {
    next: Instant,
    tries: u32,
    /// Queries since its last answer that were not answered in time.
    unanswered: u32,
    transaction: Option<u64>,
    /// When it was asked first, of the tries that are under way.
    asked: Instant,
    seen: Option<(UnderlayAddr, Instant)>,
    rtt: Option<Duration>,
}

impl Server {
    fn new(now: Instant) -> Self {
        Self {
            next: now,
            tries: 0,
            unanswered: 0,
            transaction: None,
            asked: now,
            seen: None,
            rtt: None,
        }
    }
}

/// What a member that was asked said of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observer {
    /// The member's data socket.
    pub addr: UnderlayAddr,
    /// This host's address and port as it saw them; `None` if it has not answered.
    pub observed: Option<UnderlayAddr>,
    /// Round trip of that answer.
    pub rtt: Option<Duration>,
}

impl Reflexive {
    /// Asks these members from now on.
    pub(crate) fn set_servers(&mut self, addrs: impl IntoIterator<Item = UnderlayAddr>, now: Instant) {
        let wanted: BTreeSet<_> = addrs.into_iter().take(MAX_SERVERS).collect();
        self.servers.retain(|addr, _| wanted.contains(addr));
        for addr in wanted {
            self.servers.entry(addr).or_insert(Server::new(now));
        }
    }

    /// Somebody is about to be reached: make sure that the answers are fresh.
    pub(crate) fn refresh(&mut self, now: Instant) {
        for server in self.servers.values_mut() {
            let fresh = server
                .seen
                .is_some_and(|(_, at)| now.saturating_duration_since(at) < FRESH);
            if !fresh && (server.tries == 0 || server.tries > TRIES) {
                server.tries = 0;
                server.next = now;
            }
        }
    }

    /// Asks everybody anew, without forgetting what they said.
    pub(crate) fn ask_again(&mut self, now: Instant) {
        for server in self.servers.values_mut() {
            let under_way = server.transaction.is_some() && server.next > now && server.next <= now + RETRY;
            if !under_way {
                server.tries = 0;
                server.next = now;
            }
        }
    }

    /// What each said since then.
    pub(crate) fn observers(&self, then: Instant) -> Vec<Observer> {
        self.servers
            .iter()
            .map(|(addr, server)| {
                let seen = server.seen.filter(|(_, at)| *at >= then);
                Observer {
                    addr: *addr,
                    observed: seen.map(|(observed, _)| observed),
                    rtt: server.rtt.filter(|_| seen.is_some()),
                }
            })
            .collect()
    }

    /// Whether everybody has answered since then, or was asked often enough.
    pub(crate) fn is_told_since(&self, then: Instant) -> bool {
        let told = |server: &Server| server.seen.is_some_and(|(_, at)| at >= then) || server.tries > TRIES;
        self.servers.values().all(told)
    }

    /// An address at which this host was seen since then, IPv4 before IPv6.
    pub(crate) fn seen_since(&self, then: Instant) -> Option<UnderlayAddr> {
        let fresh = self.servers.values().filter_map(|server| server.seen);
        let fresh = fresh.filter(|(_, at)| *at >= then).map(|(addr, _)| addr);
        fresh.min_by_key(|addr| (addr.0.is_ipv6(), *addr))
    }

    /// How far a member is that was asked at this address, if it answered.
    pub(crate) fn rtt(&self, addr: UnderlayAddr) -> Option<Duration> {
        self.servers.get(&addr)?.rtt
    }

    /// Whether a member is asked at this address.
    pub(crate) fn asks(&self, addr: UnderlayAddr) -> bool {
        self.servers.contains_key(&addr)
    }

    /// Whether nobody answers any more, neither those asked nor anybody else: most likely UDP does not pass.
    pub(crate) fn is_silent(&self) -> bool {
        let silent = |server: &Server| {
            let proved = self.proved.is_some_and(|at| at + PROOF >= server.asked);
            server.unanswered >= SILENT && !proved
        };
        !self.servers.is_empty() && self.servers.values().all(silent)
    }

    /// Somebody has answered over UDP, and proved who it is.
    pub(crate) fn proved(&mut self, now: Instant) {
        self.proved = Some(now);
    }

    /// Whether anybody has answered over UDP since then.
    pub(crate) fn is_heard_since(&self, then: Instant) -> bool {
        let told = self.servers.values().filter_map(|server| server.seen);
        told.map(|(_, at)| at).chain(self.proved).any(|at| at > then)
    }

    /// Whether anybody has answered, of those asked; `None` while that may still change.
    pub(crate) fn is_heard(&self) -> Option<bool> {
        if self.is_silent() {
            return Some(false);
        }
        if self.proved.is_some() || self.servers.values().any(|server| server.seen.is_some()) {
            return Some(true);
        }
        let asked = self.servers.values().all(|server| server.tries > TRIES);
        (asked && !self.servers.is_empty()).then_some(false)
    }

    /// The network has changed: nothing seen before is true any more.
    pub(crate) fn reset(&mut self, now: Instant) {
        for server in self.servers.values_mut() {
            *server = Server::new(now);
        }
        self.witnesses.clear();
        self.proved = None;
    }

    /// The queries that are due.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        mut random: impl FnMut() -> u64,
    ) -> Vec<(UnderlayAddr, Vec<u8>)> {
        let mut out = Vec::new();
        for (addr, server) in &mut self.servers {
            if server.next > now {
                continue;
            }
            if server.tries > TRIES {
                server.tries = 0;
            }
            if server.tries == 0 {
                server.transaction = None;
                server.asked = now;
            }
            server.tries += 1;
            server.next = now + if server.tries > TRIES { REFRESH } else { RETRY };
            // One number for all tries of a time: on a long line the answer to the first comes after the second.
            let transaction = match server.transaction {
                Some(transaction) => {
                    server.unanswered += 1;
                    transaction
                }
                None => random(),
            };
            server.transaction = Some(transaction);
            out.push((*addr, wire::reflexive_query(transaction)));
        }
        out
    }

    /// Takes an answer. `true` if what is known has changed.
    pub(crate) fn answered(
        &mut self,
        from: UnderlayAddr,
        transaction: u64,
        observed: UnderlayAddr,
        now: Instant,
    ) -> bool {
        let Some(server) = self.servers.get_mut(&from) else {
            return false;
        };
        if server.transaction != Some(transaction) {
            return false;
        }
        server.transaction = None;
        server.tries = 0;
        server.unanswered = 0;
        server.next = now + REFRESH;
        let changed = server.seen.is_none_or(|(before, _)| before != observed);
        server.seen = Some((observed, now));
        server.rtt = Some(now.saturating_duration_since(server.asked));
        changed
    }

    /// A peer that was probed directly saw this host at an address. That counts for what the NAT does, and is no
    /// candidate: one member must not be able to send others to an address of its choice.
    pub(crate) fn witnessed(&mut self, from: UnderlayAddr, observed: UnderlayAddr, now: Instant) {
        if self.servers.contains_key(&from) {
            return;
        }
        if self.witnesses.len() >= MAX_WITNESSES && !self.witnesses.contains_key(&from) {
            self.witnesses
                .retain(|_, (_, at)| now.saturating_duration_since(*at) < WITNESSED);
            if self.witnesses.len() >= MAX_WITNESSES {
                return;
            }
        }
        self.witnesses.insert(from, (observed, now));
    }

    /// The addresses seen, each once.
    pub(crate) fn addrs(&self, now: Instant) -> BTreeSet<UnderlayAddr> {
        self.addrs_if(|at| now.saturating_duration_since(at) < MAX_AGE)
    }

    fn addrs_if(&self, counts: impl Fn(Instant) -> bool) -> BTreeSet<UnderlayAddr> {
        self.servers
            .values()
            .filter_map(|server| server.seen)
            .filter(|(_, at)| counts(*at))
            .map(|(addr, _)| addr)
            .collect()
    }

    pub(crate) fn mapping(&self, own: &BTreeSet<IpAddr>, now: Instant) -> Mapping {
        self.mapping_if(own, now, |at| now.saturating_duration_since(at) < MAX_AGE)
    }

    /// The same by answers since then alone.
    pub(crate) fn mapping_since(&self, own: &BTreeSet<IpAddr>, then: Instant, now: Instant) -> Mapping {
        self.mapping_if(own, now, |at| at >= then)
    }

    fn mapping_if(&self, own: &BTreeSet<IpAddr>, now: Instant, counts: impl Fn(Instant) -> bool) -> Mapping {
        let addrs = self.addrs_if(&counts);
        // Members on a private network see the host's own address; only what is seen through a NAT tells of it.
        let mut outside: BTreeSet<_> = addrs.iter().filter(|addr| !own.contains(&addr.0.ip())).collect();
        // Of peers only those that see the same outside as the members asked: others may be behind it too.
        let ips: BTreeSet<IpAddr> = outside.iter().map(|addr| addr.0.ip()).collect();
        let witnesses = self.witnesses.values().filter(|(observed, at)| {
            ips.contains(&observed.0.ip()) && now.saturating_duration_since(*at) < WITNESSED
        });
        let witnesses: Vec<_> = witnesses.map(|(observed, _)| observed).collect();
        outside.extend(&witnesses);
        let of_family = |v4: bool| outside.iter().filter(|addr| addr.0.is_ipv4() == v4).count();
        let answers = self
            .servers
            .values()
            .filter(|server| server.seen.is_some_and(|(_, at)| counts(at)))
            .count()
            + witnesses.len();
        match (addrs.is_empty(), outside.is_empty()) {
            (true, _) => Mapping::Unknown,
            (false, true) => Mapping::Open,
            (false, false) if of_family(true) > 1 || of_family(false) > 1 => Mapping::Dependent,
            (false, false) if answers > 1 => Mapping::Independent,
            (false, false) => Mapping::Unknown,
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.servers.values().map(|server| server.next).min()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
mod tests {
    use super::*;

    fn addr(last: u8, port: u16) -> UnderlayAddr {
        UnderlayAddr(([192, 0, 2, last], port).into())
    }

    fn after_answers(seen: [UnderlayAddr; 2]) -> Mapping {
        let now = Instant::now();
        let mut reflexive = Reflexive::default();
        reflexive.set_servers([addr(1, 1), addr(2, 1)], now);
        let mut next = 0;
        let queries = reflexive.poll(now, || {
            next += 1;
            next
        });
        assert_eq!(queries.len(), 2);
        assert!(reflexive.answered(addr(1, 1), 1, seen[0], now));
        assert!(reflexive.answered(addr(2, 1), 2, seen[1], now));
        assert!(
            !reflexive.answered(addr(2, 1), 2, addr(66, 6), now),
            "an answer counts once"
        );
        reflexive.mapping(&BTreeSet::from([IpAddr::from([10, 0, 0, 1])]), now)
    }

    #[test]
    fn two_ports_of_one_socket_show_a_symmetric_nat() {
        assert_eq!(
            after_answers([addr(9, 4242), addr(9, 4242)]),
            Mapping::Independent
        );
        assert_eq!(after_answers([addr(9, 4242), addr(9, 4243)]), Mapping::Dependent);
        let own = UnderlayAddr(([10, 0, 0, 1], 4242).into());
        assert_eq!(after_answers([own, own]), Mapping::Open);
    }

    #[test]
    fn doubts_that_come_in_a_burst_cost_one_query_and_silence_nobody() {
        let mut now = Instant::now();
        let mut reflexive = Reflexive::default();
        reflexive.set_servers([addr(1, 1)], now);
        let mut asked = Vec::new();
        for number in 0..5 {
            reflexive.ask_again(now);
            asked.extend(reflexive.poll(now, || number));
            now += Duration::from_millis(3);
        }
        assert_eq!(asked.len(), 1);
        assert!(!reflexive.is_silent());
        assert!(reflexive.answered(addr(1, 1), 0, addr(9, 1), now));
    }

    #[test]
    fn an_answer_that_takes_longer_than_the_next_query_counts() {
        let start = Instant::now();
        let mut reflexive = Reflexive::default();
        reflexive.set_servers([addr(1, 1)], start);
        let mut number = 0;
        let mut next = || {
            number += 1;
            number
        };
        reflexive.poll(start, &mut next);
        reflexive.poll(start + RETRY, &mut next);
        let late = start + RETRY + Duration::from_millis(200);
        assert!(reflexive.answered(addr(1, 1), 1, addr(9, 1), late));
        assert_eq!(reflexive.rtt(addr(1, 1)), Some(late - start));
    }

    #[test]
    fn a_peer_that_answers_shows_that_it_is_not_udp_that_does_not_pass() {
        let mut now = Instant::now();
        let mut reflexive = Reflexive::default();
        reflexive.set_servers([addr(1, 1)], now);
        for _ in 0..4 {
            reflexive.poll(now, || 7);
            now += RETRY;
        }
        assert!(reflexive.is_silent());
        reflexive.proved(now);
        assert!(!reflexive.is_silent());
    }

    #[test]
    fn a_server_that_is_silent_is_asked_a_few_times_and_then_left_alone() {
        let mut now = Instant::now();
        let mut reflexive = Reflexive::default();
        reflexive.set_servers([addr(1, 1)], now);
        let mut asked = 0;
        for _ in 0..60 {
            asked += reflexive.poll(now, || 7).len();
            now += Duration::from_secs(1);
        }
        assert_eq!(asked as u32, TRIES + 1);
    }
}
