//! How simulated nodes are connected and find each other where Kademlia routes: by nothing but messages.
//!
//! ```text
//!   Dial ── Knock ──► nobody there: refused     FIND_NODE, questions of whom one is connected to, and their answers
//!     │       └─────► accepted ── Opened ──► linked ── Identified ──► each stands in the other's table
//!     └── ten seconds ──► failed                 │
//!                              the process died, the network tore ──► closed, at once or when it is noticed
//! ```
//!
//! Each node has a [`Member`]: the Kademlia and the connections that its overlay would have. What these send goes
//! through the queue of the [`World`] and is subject to its conditions. The register's links are the connections made
//! so, its look-ups are Kademlia's, and what it sends to somebody who is not connected waits for a dial.
//!
//! The overlay's messages run over TCP: a lost segment is sent again after 200 ms, doubled each time, so that a
//! loss is a delay. (Messages of the register are lost as a whole, as where the oracle routes: a stalled connection
//! outlasts the register's patience.) A partition breaks connections, in whichever direction it lets nothing through,
//! since no acknowledgement comes back; either end notices within [`Conditions::detection`](crate::Conditions), unless
//! the network is whole again by then. A node that stands still keeps its connections.
//!
//! A node begins at the first [`BOOTSTRAPS`] members that have not left for good, as every blob of a grid names the
//! same relays; those of the very first drop nobody. After a restart it also begins at those that it was connected to
//! in its last run, if that took longer than the minute after which the daemon writes them down.
//!
//! Gossip goes to all that its author is connected to, and each node passes what is new to it on to [`COPIES`] of its
//! own by lot. That is gossipsub with its flood of the author's own messages, and without the repair by which those
//! that heard nothing ask for it.

mod connections;
mod gossip;
mod links;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use aerie_dht_proto::{Input, SendError};
use aerie_types::{Key, PeerId};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::kad::{Act, Begin, Contact, Member, REQUEST, Settings, Stats};
use crate::net::Action;
use crate::world::World;
use gossip::Gossip;
use links::Links;

/// How nodes find each other and whom they are connected to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Routing {
    /// Everybody knows everybody, by a view that may be stale, and connections heal at once.
    #[default]
    Oracle,
    /// By the overlay's messages alone.
    Kademlia,
}

impl std::fmt::Display for Routing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Oracle => "oracle",
            Self::Kademlia => "kademlia",
        })
    }
}

impl std::str::FromStr for Routing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "oracle" => Ok(Self::Oracle),
            "kademlia" => Ok(Self::Kademlia),
            _ => Err(format!("{text} is no routing: it is either oracle or kademlia")),
        }
    }
}

/// Members named in the blob from which nodes are started.
const BOOTSTRAPS: usize = 3;

/// How long a dial may take until it has failed.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// After this time a segment is sent again, and after twice that once more, and so on.
const RETRANSMIT: Duration = Duration::from_millis(200);

/// How long a request of the register may take in all.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Members to which a node passes gossip on: the degree of gossipsub's mesh.
const COPIES: usize = 6;

/// How often the daemon writes down whom it has met.
const REMEMBERED_EVERY: Duration = Duration::from_secs(60);

/// What is under way between two overlays, or due at one.
#[derive(Debug)]
pub(crate) enum Carried {
    Knock {
        from: usize,
        dial: u64,
    },
    Opened {
        other: usize,
        dial: u64,
        connection: u64,
    },
    DialFailed {
        other: usize,
        dial: u64,
    },
    Identified {
        other: usize,
        connection: u64,
    },
    /// The other end is gone, and this one is told.
    Closed {
        other: usize,
        connection: u64,
    },
    /// The network was torn, and this end would notice now.
    Silent {
        other: usize,
        connection: u64,
    },
    FindNode {
        from: usize,
        query: u64,
        place: Key,
    },
    Closer {
        from: usize,
        query: u64,
        closer: Vec<Contact>,
    },
    Whom {
        from: usize,
        known: BTreeSet<PeerId>,
    },
    Named {
        from: usize,
        named: Vec<Contact>,
    },
    Gossip {
        from: usize,
        gossip: Rc<Gossip>,
    },
    Timer,
}

impl Carried {
    /// Who sent it over a connection, if it is what an open connection carries.
    pub(crate) fn sender(&self) -> Option<usize> {
        match self {
            Self::FindNode { from, .. }
            | Self::Closer { from, .. }
            | Self::Whom { from, .. }
            | Self::Named { from, .. }
            | Self::Gossip { from, .. } => Some(*from),
            _ => None,
        }
    }

    /// What of it goes into the trace.
    pub(crate) fn traced(&self) -> u64 {
        let (kind, node, number) = match self {
            Self::Knock { from, dial } => (1, *from, *dial),
            Self::Opened {
                other, connection, ..
            } => (2, *other, *connection),
            Self::DialFailed { other, dial } => (3, *other, *dial),
            Self::Identified { other, connection } => (4, *other, *connection),
            Self::Closed { other, connection } => (5, *other, *connection),
            Self::Silent { other, connection } => (6, *other, *connection),
            Self::FindNode { from, query, .. } => (7, *from, *query),
            Self::Closer { from, query, closer } => (8, *from, *query ^ ((closer.len() as u64) << 32)),
            Self::Whom { from, known } => (9, *from, known.len() as u64),
            Self::Named { from, named } => (10, *from, named.len() as u64),
            Self::Gossip { from, gossip } => (11, *from, gossip.number),
            Self::Timer => (12, 0, 0),
        };
        kind << 56 ^ (node as u64) << 36 ^ number
    }
}

/// A running node's overlay.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(crate) member: Member,
    links: Links,
    dials: BTreeMap<usize, u64>,
    /// What the register sent to somebody who is not connected.
    waiting: BTreeMap<PeerId, Vec<(u64, Vec<u8>)>>,
    /// The register's requests under way: to whom, and since when.
    requests: BTreeMap<u64, (usize, Duration)>,
    timer: Option<Duration>,
}

impl World {
    /// Chooses how nodes find each other.
    ///
    /// # Panics
    /// If there are nodes already.
    #[must_use]
    pub fn with_routing(mut self, routing: Routing) -> Self {
        assert!(
            self.nodes.is_empty(),
            "the routing is chosen before there are nodes"
        );
        self.routing = routing;
        self
    }

    /// How nodes find each other.
    #[must_use]
    pub fn routing(&self) -> Routing {
        self.routing
    }

    /// Whether a node may leave for good: those that every blob names crash and come back, but do not.
    #[must_use]
    pub fn may_go(&self, index: usize) -> bool {
        self.routing == Routing::Oracle || index >= BOOTSTRAPS
    }

    /// Those that a node is connected to, as far as it knows.
    #[must_use]
    pub fn connected(&self, index: usize) -> &BTreeSet<usize> {
        &self.nodes[index].known_links
    }

    fn contact(&self, index: usize) -> Contact {
        let node = &self.nodes[index];
        Contact {
            peer: self.peer_of(index),
            position: node.position,
        }
    }

    /// A node has started: its overlay begins with an empty table.
    pub(crate) fn join_overlay(&mut self, index: usize) {
        let returns = |other: &usize| self.nodes[*other].is_up() || self.nodes[*other].store.is_some();
        let bootstrap = (0..self.nodes.len()).filter(|other| *other != index && returns(other));
        let bootstrap: Vec<usize> = bootstrap.take(BOOTSTRAPS).collect();
        let begin = Begin {
            bootstrap: bootstrap.iter().map(|other| self.contact(*other)).collect(),
            known: self.nodes[index].remembered.clone(),
            relay: index < BOOTSTRAPS,
        };
        let (seed, now) = (self.rng.random(), self.local(index));
        let member = Member::new(self.contact(index), &begin, &Settings::default(), seed, now);
        let node = &mut self.nodes[index];
        node.overlay = Some(Box::new(Overlay {
            member,
            links: Links::default(),
            dials: BTreeMap::new(),
            waiting: BTreeMap::new(),
            requests: BTreeMap::new(),
            timer: None,
        }));
        self.drain_overlay(index);
    }

    /// A node has stopped: its connections close, which the others notice in their time.
    pub(crate) fn leave_overlay(&mut self, index: usize) {
        let now = self.now;
        let node = &mut self.nodes[index];
        node.links.clear();
        node.known_links.clear();
        let Some(overlay) = node.overlay.take() else {
            return;
        };
        if node.store.is_none() {
            node.remembered.clear();
        } else if now.saturating_sub(node.came) >= REMEMBERED_EVERY {
            node.remembered = overlay.member.mesh().remembered();
        }
        for (at, connection) in overlay.links.iter() {
            let noticed = self.noticed();
            let closed = Carried::Closed {
                other: index,
                connection,
            };
            self.schedule(now + noticed, Action::Overlay { at, what: closed });
        }
    }

    /// Finds the members closest to a key for a node's register.
    pub(crate) fn locate(&mut self, index: usize, query: u64, key: Key) {
        self.on_overlay(index, |overlay, now| {
            overlay.member.closest(query, key.position(), now);
        });
    }

    /// Sends a request of the register once its member is connected.
    pub(crate) fn send_later(&mut self, from: usize, to: PeerId, id: u64, bytes: Vec<u8>) {
        let contact = self.by_peer.get(&to).map(|to| self.contact(*to));
        let contact = contact.unwrap_or_else(|| Contact::from(to));
        self.on_overlay(from, |overlay, local| {
            overlay.waiting.entry(to).or_default().push((id, bytes));
            overlay.member.want(contact, local);
        });
    }

    /// Tells all members something.
    pub(crate) fn flood(&mut self, index: usize, bytes: Vec<u8>) {
        self.connections += 1;
        let gossip = Gossip::new(index, self.connections, bytes);
        self.pass_on(index, &Rc::new(gossip));
    }

    fn pass_on(&mut self, index: usize, gossip: &Rc<Gossip>) {
        let node = &self.nodes[index];
        let Some(overlay) = &node.overlay else {
            return;
        };
        if !gossip.is_news_to(index, node.start) {
            return;
        }
        let author = gossip.author;
        let mut links = overlay.links.others();
        links.retain(|at| *at != author);
        if index != author && links.len() > COPIES {
            let (drawn, _) = links.partial_shuffle(&mut self.rng, COPIES);
            links = drawn.to_vec();
        }
        for at in links {
            let what = Carried::Gossip {
                from: index,
                gossip: Rc::clone(gossip),
            };
            self.carry(1, at, what);
        }
        if index != author {
            let (from, bytes) = (self.peer_of(author), gossip.bytes.clone());
            self.input(index, Input::Gossip { from, bytes });
        }
    }

    /// The timer of a node that stands still rings when it goes on.
    pub(crate) fn put_off(&mut self, index: usize, until: Duration) {
        if let Some(overlay) = &mut self.nodes[index].overlay {
            overlay.timer = Some(until);
        }
    }

    /// Something reaches a node's overlay.
    pub(crate) fn arrive(&mut self, at: usize, what: Carried) {
        match what {
            Carried::Timer => self.overlay_timer(at),
            Carried::Knock { from, dial } => self.knock(at, from, dial),
            Carried::Opened {
                other,
                dial,
                connection,
            } => self.opened(at, other, dial, connection),
            Carried::DialFailed { other, dial } => self.dial_failed(at, other, dial),
            Carried::Identified { other, connection } => {
                if self.has_connection(at, other, connection) {
                    let contact = self.contact(other);
                    self.on_overlay(at, |overlay, now| overlay.member.identified(contact, now));
                }
            }
            Carried::Closed { other, connection } => self.close(at, other, connection),
            Carried::Silent { other, connection } => {
                let whole = self.connectable(at, other) && self.has_connection(other, at, connection);
                if !whole {
                    self.close(at, other, connection);
                }
            }
            Carried::FindNode { from, query, place } if self.takes(from, at) => {
                let asker = self.peer_of(from);
                let now = self.local(at);
                let overlay = self.nodes[at].overlay.as_mut();
                let closer = overlay.map(|overlay| overlay.member.find_node(asker, &place, now));
                let closer = closer.unwrap_or_default();
                self.tally.finds += 1;
                self.carry(
                    1,
                    from,
                    Carried::Closer {
                        from: at,
                        query,
                        closer,
                    },
                );
            }
            Carried::Closer { from, query, closer } if self.takes(from, at) => {
                let contact = self.contact(from);
                self.on_overlay(at, |overlay, now| {
                    overlay.member.closer(query, contact, &closer, now);
                });
            }
            Carried::Whom { from, known } if self.takes(from, at) => {
                let asker = self.peer_of(from);
                let overlay = self.nodes[at].overlay.as_ref();
                let named = overlay.map(|overlay| overlay.member.named(asker, &known));
                let named = named.unwrap_or_default();
                self.tally.questions += 1;
                self.carry(1, from, Carried::Named { from: at, named });
            }
            Carried::Named { from, named } if self.takes(from, at) => {
                self.on_overlay(at, |overlay, now| overlay.member.told(&named, now));
            }
            Carried::Gossip { from, gossip } if self.takes(from, at) => self.pass_on(at, &gossip),
            // Into a partition, or over a connection that is no more.
            Carried::FindNode { .. }
            | Carried::Closer { .. }
            | Carried::Whom { .. }
            | Carried::Named { .. }
            | Carried::Gossip { .. } => self.tally.swallowed += 1,
        }
    }

    fn overlay_timer(&mut self, at: usize) {
        let now = self.local(at);
        let Some(overlay) = &mut self.nodes[at].overlay else {
            return;
        };
        if overlay.timer != Some(self.now) {
            return;
        }
        overlay.timer = None;
        let due = overlay.member.poll_timeout().is_some_and(|due| due <= now);
        self.on_overlay(at, |overlay, now| {
            if due {
                overlay.member.handle_timeout(now);
            }
        });
    }

    /// Lets something happen at a running node's overlay, and does what it wants done then.
    fn on_overlay(&mut self, at: usize, happens: impl FnOnce(&mut Overlay, Duration)) {
        let now = self.local(at);
        if let Some(overlay) = &mut self.nodes[at].overlay {
            happens(overlay, now);
            self.drain_overlay(at);
        }
    }

    fn drain_overlay(&mut self, at: usize) {
        while let Some(overlay) = &mut self.nodes[at].overlay {
            let Some(act) = overlay.member.poll_act() else {
                break;
            };
            self.overlay_act(at, act);
        }
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(overlay) = &mut node.overlay else {
            return;
        };
        let Some(due) = overlay.member.poll_timeout() else {
            return;
        };
        let due = node.clock.simulated(due).max(now + Duration::from_micros(1));
        if overlay.timer.is_none_or(|timer| timer > due) {
            overlay.timer = Some(due);
            let what = Carried::Timer;
            self.schedule(due, Action::Overlay { at, what });
        }
    }

    fn overlay_act(&mut self, at: usize, act: Act) {
        match act {
            Act::Dial(contact) => self.dial(at, contact),
            Act::Close(contact) => {
                let other = self.by_peer.get(&contact.peer).copied();
                if let Some(other) = other.filter(|other| !self.in_flight(at, *other)) {
                    self.hang_up(at, other);
                }
            }
            Act::Find { to, query, place } => {
                if let Some(to) = self.by_peer.get(&to.peer).copied() {
                    self.tally.finds += 1;
                    let find = Carried::FindNode {
                        from: at,
                        query,
                        place,
                    };
                    self.carry(REQUEST, to, find);
                }
            }
            Act::Whom { to, known } => {
                if let Some(to) = self.by_peer.get(&to.peer).copied() {
                    self.tally.questions += 1;
                    self.carry(REQUEST, to, Carried::Whom { from: at, known });
                }
            }
            Act::Closest {
                ticket,
                closest,
                cost,
            } => self.closest_found(at, ticket, closest, cost),
            Act::Reached(peer) => {
                for (id, bytes) in self.take_waiting(at, peer) {
                    self.send(at, peer, id, bytes);
                }
            }
            Act::GivenUp(peer) => {
                let start = self.nodes[at].start;
                for (id, _) in self.take_waiting(at, peer) {
                    let result = Err(SendError::Unreachable);
                    let reply = Action::Reply {
                        to: at,
                        start,
                        id,
                        result,
                    };
                    self.schedule(self.now, reply);
                }
            }
            Act::Located { .. } | Act::Refreshed(_) => {}
        }
    }

    fn closest_found(&mut self, at: usize, query: u64, peers: Vec<PeerId>, cost: Option<Stats>) {
        let start = self.nodes[at].start;
        self.located.extend(cost);
        let told = Action::Located {
            to: at,
            start,
            query,
            peers,
        };
        self.schedule(self.now, told);
    }

    fn take_waiting(&mut self, at: usize, peer: PeerId) -> Vec<(u64, Vec<u8>)> {
        let overlay = self.nodes[at].overlay.as_mut();
        let waiting = overlay.and_then(|overlay| overlay.waiting.remove(&peer));
        waiting.unwrap_or_default()
    }

    /// Sends something over so many one-way trips to a node's overlay. When it arrives.
    fn carry(&mut self, trips: u32, at: usize, what: Carried) -> Duration {
        let mut delay = self.delay() * trips;
        if self.conditions.loss > 0.0 {
            for _ in 0..trips {
                let mut again = RETRANSMIT;
                while self.rng.random_bool(self.conditions.loss) {
                    delay += again;
                    again *= 2;
                }
            }
        }
        let arrives = self.now + delay;
        self.schedule(arrives, Action::Overlay { at, what });
        arrives
    }
}
