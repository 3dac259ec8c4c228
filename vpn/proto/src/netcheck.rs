//! A look at the NAT and the firewall in front of this host, when a person asks.
//!
//! ```text
//!  asked ──► members asked how they see this host ──► an outside address is known
//!                                                        │  hairpin: this host queries its own outside address
//!                                                        │  filtering: members to which nothing was sent are told to
//!                                                        ▼             send one datagram there
//!                                      both answered, or nothing for LIMIT ──► complete
//! ```
//!
//! The terms are RFC 4787's. Where a datagram of a member comes in to which this host has sent nothing, filtering is
//! endpoint-independent; where none comes, though one says that it has sent it, filtering depends on the address, or on
//! address and port, which is not told apart.
//! A member that was spoken to lately, or that shares an address with one, would come in for that reason: the caller
//! names others.

use std::time::{Duration, Instant};

use aerie_types::{PeerId, UnderlayAddr};

use crate::reflexive::{Mapping, Observer};

/// How long a check takes at most.
const LIMIT: Duration = Duration::from_secs(4);
/// Gaps between the tries, each of which may be lost.
const RETRY: Duration = Duration::from_millis(600);
/// How often it is looked whether an outside address is known.
const LOOK: Duration = Duration::from_millis(50);
/// So many tries of each kind.
const TRIES: u32 = 4;
/// Members asked to knock.
const MAX_KNOCKERS: usize = 3;

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It could not be tried.
    Untried,
    /// It is being tried.
    Open,
    /// Yes.
    Yes,
    /// No.
    No,
}

/// How the network looks from this host.
#[derive(Debug, Clone)]
pub struct NetworkStatus {
    /// This host's own addresses with the data socket's port.
    pub hosts: Vec<UnderlayAddr>,
    /// The port of the router that leads to this host.
    pub mapped: Option<UnderlayAddr>,
    /// What the members that were asked said.
    pub observers: Vec<Observer>,
    /// What the NAT does with ports.
    pub mapping: Mapping,
    /// Whether a datagram to this host's outside address comes back in.
    pub hairpin: Finding,
    /// Whether datagrams of members come in to which nothing was sent.
    pub admits_strangers: Finding,
    /// The relays to which this host is connected over TLS, as nobody answers over UDP.
    pub tls: Vec<(PeerId, UnderlayAddr)>,
    /// Whether the last check has ended, or none was asked for.
    pub complete: bool,
}

/// Something tried a few times until it is answered.
#[derive(Debug)]
struct Trial {
    transaction: u64,
    tries: u32,
    next: Instant,
    answered: bool,
    /// Whether somebody has said that it did what was asked.
    done: bool,
}

impl Trial {
    fn new(transaction: u64, now: Instant) -> Self {
        Self {
            transaction,
            tries: 0,
            next: now,
            answered: false,
            done: false,
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = !self.answered && self.tries < TRIES && self.next <= now;
        if due {
            self.tries += 1;
            self.next = now + RETRY;
        }
        due
    }

    fn finding(&self, over: bool) -> Finding {
        match (self.answered, self.tries) {
            (true, _) => Finding::Yes,
            (false, TRIES..) if over && self.done => Finding::No,
            (false, _) if over => Finding::Untried,
            (false, _) => Finding::Open,
        }
    }
}

/// One look.
#[derive(Debug)]
pub(crate) struct Check {
    began: Instant,
    knockers: Vec<PeerId>,
    hairpin: Trial,
    knock: Trial,
}

/// What a check wants done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    /// Query this host's own outside address.
    Query { to: UnderlayAddr, transaction: u64 },
    /// Tell these members to send a datagram to it.
    Knock {
        members: Vec<PeerId>,
        addr: UnderlayAddr,
        transaction: u64,
    },
}

impl Check {
    pub(crate) fn new(mut knockers: Vec<PeerId>, mut random: impl FnMut() -> u64, now: Instant) -> Self {
        knockers.truncate(MAX_KNOCKERS);
        Self {
            began: now,
            knockers,
            hairpin: Trial::new(random(), now),
            knock: Trial::new(random(), now),
        }
    }

    /// What is due, once an address of this host's is known by which others see it. `translated`: it is a NAT's.
    pub(crate) fn poll(&mut self, outside: Option<(UnderlayAddr, bool)>, now: Instant) -> Vec<Todo> {
        let Some((addr, translated)) = outside.filter(|_| !self.is_over(now)) else {
            return Vec::new();
        };
        let mut todo = Vec::new();
        if translated && self.hairpin.is_due(now) {
            self.hairpin.done = true;
            let transaction = self.hairpin.transaction;
            todo.push(Todo::Query {
                to: addr,
                transaction,
            });
        }
        if !self.knockers.is_empty() && self.knock.is_due(now) {
            todo.push(Todo::Knock {
                members: self.knockers.clone(),
                addr,
                transaction: self.knock.transaction,
            });
        }
        todo
    }

    /// Takes an answer to a query that no member was asked. `known`: this host has sent something to `from`.
    pub(crate) fn answered(&mut self, transaction: u64, known: bool) {
        if transaction == self.hairpin.transaction {
            self.hairpin.answered = true;
        }
        if transaction == self.knock.transaction && !known {
            self.knock.answered = true;
        }
    }

    /// A member says that it has sent what it was asked for.
    pub(crate) fn knocked(&mut self, from: PeerId, transaction: u64) {
        if transaction == self.knock.transaction && self.knockers.contains(&from) {
            self.knock.done = true;
        }
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.began + LIMIT
    }

    /// Whether nothing more is to be found out. `outside` as in [`Check::poll`]; `told`: nobody's answer is waited for.
    pub(crate) fn is_complete(
        &self,
        outside: Option<(UnderlayAddr, bool)>,
        told: bool,
        now: Instant,
    ) -> bool {
        let tried = outside.is_some_and(|(_, translated)| {
            (self.hairpin.answered || !translated) && (self.knock.answered || self.knockers.is_empty())
        });
        (tried && told) || self.is_over(now)
    }

    /// When it was asked for.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// What was found so far, or, once it is `complete`, at all.
    pub(crate) fn findings(&self, complete: bool) -> (Finding, Finding) {
        (self.hairpin.finding(complete), self.knock.finding(complete))
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        // Without an outside address nothing can be done yet; it comes with any datagram.
        let open = |trial: &Trial| {
            let is_open = !trial.answered && trial.tries < TRIES;
            is_open.then(|| trial.next.max(now + LOOK))
        };
        let end = self.began + LIMIT;
        let next = [open(&self.hairpin), open(&self.knock)]
            .into_iter()
            .flatten()
            .min();
        (!self.is_over(now)).then(|| next.map_or(end, |next| next.min(end)))
    }
}
