//! Many members on a virtual clock, joined by nothing but the messages that they send each other.
//!
//! ```text
//!    Dial ── three round trips ──► linked ── one ──► each side has the other's addresses by identify
//!      └── one, if nobody is there ──► failed          FIND_NODE: two (its stream is agreed on first)
//! ```
//!
//! A member that dies stays dead; who comes back is added anew. Those linked to it are told as by a kernel that closes
//! the connections of a process. Everything follows from the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_types::{Key, PeerId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Contact;
use super::figures::Found;
use super::kademlia::Stats;
use super::member::{Act, Member};
use super::mesh::Begin;
use super::settings::Settings;

/// One-way delays from a dial to a connection that carries streams: TCP, Noise and yamux.
pub(crate) const HANDSHAKE: u32 = 6;

/// One-way delays from a connection to the addresses of the other side.
pub(crate) const IDENTIFY: u32 = 2;

/// One-way delays of a request on a stream that is agreed on first, and those until a refused dial is known.
pub(crate) const REQUEST: u32 = 3;
pub(crate) const REFUSED: u32 = 2;

#[derive(Debug, Clone)]
enum Action {
    Linked {
        from: usize,
        to: usize,
    },
    Refused {
        from: usize,
        to: usize,
    },
    Identified {
        at: usize,
        other: usize,
    },
    Closed {
        at: usize,
        other: usize,
    },
    FindNode {
        from: usize,
        to: usize,
        query: u64,
        place: Key,
    },
    Closer {
        from: usize,
        to: usize,
        query: u64,
        closer: Vec<Contact>,
    },
    Whom {
        from: usize,
        to: usize,
        known: BTreeSet<PeerId>,
    },
    Named {
        from: usize,
        to: usize,
        named: Vec<Contact>,
    },
    Timer {
        at: usize,
    },
}

struct Node {
    contact: Contact,
    member: Member,
    is_up: bool,
    links: BTreeSet<usize>,
    /// Look-ups under way: what is looked for, and since when.
    seeking: BTreeMap<u64, (Key, Duration)>,
    timer: Option<Duration>,
}

/// Many members on a virtual clock.
pub struct Network {
    settings: Settings,
    nodes: Vec<Node>,
    by_peer: BTreeMap<PeerId, usize>,
    queue: BTreeMap<(Duration, u64), Action>,
    order: u64,
    now: Duration,
    rng: ChaCha8Rng,
    found: Vec<Found>,
    refreshed: Stats,
    messages: u64,
}

impl Network {
    /// A network of nobody.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            nodes: Vec::new(),
            by_peer: BTreeMap::new(),
            queue: BTreeMap::new(),
            order: 0,
            now: Duration::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            found: Vec::new(),
            refreshed: Stats::default(),
            messages: 0,
        }
    }

    /// The virtual time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Adds a member that begins at another one, unless it is the first. Its number.
    pub fn join(&mut self, peer: PeerId, first: Option<usize>) -> usize {
        let index = self.nodes.len();
        let contact = Contact::from(peer);
        let first = first.and_then(|first| self.nodes.get(first));
        let begin = Begin {
            bootstrap: first.map(|node| node.contact).into_iter().collect(),
            ..Begin::default()
        };
        let member = Member::new(contact, &begin, &self.settings, self.rng.random(), self.now);
        self.nodes.push(Node {
            contact,
            member,
            is_up: true,
            links: BTreeSet::new(),
            seeking: BTreeMap::new(),
            timer: None,
        });
        self.by_peer.insert(peer, index);
        self.drain(index);
        index
    }

    /// Lets a member die.
    pub fn die(&mut self, index: usize) {
        let Some(node) = self.nodes.get_mut(index) else {
            return;
        };
        node.is_up = false;
        node.timer = None;
        node.seeking.clear();
        for other in std::mem::take(&mut node.links) {
            self.later(
                1,
                Action::Closed {
                    at: other,
                    other: index,
                },
            );
        }
    }

    /// Lets a member look for those closest to a place. What it found will be in [`Self::found`].
    pub fn locate(&mut self, index: usize, place: Key) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(index).filter(|node| node.is_up) else {
            return;
        };
        let query = node.member.locate(place, now);
        node.seeking.insert(query, (place, now));
        self.drain(index);
    }

    /// Runs until a time.
    pub fn run_until(&mut self, end: Duration) {
        while let Some(entry) = self.queue.first_entry() {
            let (at, _) = *entry.key();
            if at > end {
                break;
            }
            let action = entry.remove();
            self.now = at;
            self.act(action);
        }
        self.now = self.now.max(end);
    }

    /// The look-ups that have ended, in order; to be taken once.
    pub fn found(&mut self) -> Vec<Found> {
        std::mem::take(&mut self.found)
    }

    /// Whether a look-up is under way anywhere, bootstraps aside.
    #[must_use]
    pub fn seeks(&self) -> bool {
        self.nodes.iter().any(|node| !node.seeking.is_empty())
    }

    /// The members that run.
    #[must_use]
    pub fn members(&self) -> Vec<Contact> {
        let up = self.nodes.iter().filter(|node| node.is_up);
        up.map(|node| node.contact).collect()
    }

    /// What bootstraps have cost so far.
    #[must_use]
    pub fn refreshed(&self) -> Stats {
        self.refreshed
    }

    /// Messages carried so far, and the questions of whom somebody is connected to among them.
    #[must_use]
    pub fn messages(&self) -> (u64, u64) {
        let questions = self.nodes.iter().map(|node| node.member.mesh().questions()).sum();
        (self.messages, questions)
    }

    /// To how many members each one that runs is linked, and how many stand in its table.
    #[must_use]
    pub fn degrees(&self) -> Vec<(usize, usize)> {
        let up = self.nodes.iter().filter(|node| node.is_up);
        up.map(|node| (node.links.len(), node.member.kad().table().len()))
            .collect()
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Linked { from, to } => self.link(from, to),
            Action::Refused { from, to } => self.dial_failed(from, to),
            Action::Identified { at, other } => self.on(at, Some(other), |node, other, now| {
                node.member.identified(other, now);
            }),
            Action::Closed { at, other } => self.unlink(at, other),
            Action::FindNode {
                from,
                to,
                query,
                place,
            } => {
                let mut closer = Vec::new();
                let asked = self.on_linked(to, from, |node, asker, now| {
                    closer = node.member.find_node(asker.peer, &place, now);
                });
                if asked {
                    self.later(
                        1,
                        Action::Closer {
                            from: to,
                            to: from,
                            query,
                            closer,
                        },
                    );
                }
            }
            Action::Closer {
                from,
                to,
                query,
                closer,
            } => {
                self.on_linked(to, from, |node, other, now| {
                    node.member.closer(query, other, &closer, now);
                });
            }
            Action::Whom { from, to, known } => {
                let mut named = Vec::new();
                let asked = self.on_linked(to, from, |node, asker, _| {
                    named = node.member.named(asker.peer, &known);
                });
                if asked {
                    self.later(
                        1,
                        Action::Named {
                            from: to,
                            to: from,
                            named,
                        },
                    );
                }
            }
            Action::Named { from, to, named } => {
                self.on_linked(to, from, |node, _, now| node.member.told(&named, now));
            }
            Action::Timer { at } => {
                if self
                    .nodes
                    .get(at)
                    .is_some_and(|node| node.timer == Some(self.now))
                {
                    self.on(at, None, |node, _, now| {
                        node.timer = None;
                        node.member.handle_timeout(now);
                    });
                }
            }
        }
    }

    fn link(&mut self, from: usize, to: usize) {
        if !self.is_up(to) {
            self.dial_failed(from, to);
            return;
        }
        if !self.is_up(from) {
            return;
        }
        for (at, other) in [(from, to), (to, from)] {
            self.on(at, Some(other), |node, contact, now| {
                if node.links.insert(other) {
                    node.member.linked(contact, now);
                }
            });
            self.later(IDENTIFY, Action::Identified { at, other });
        }
    }

    fn unlink(&mut self, at: usize, other: usize) {
        self.on(at, Some(other), |node, contact, now| {
            if node.links.remove(&other) {
                node.member.closed(contact, now);
            }
        });
    }

    fn dial_failed(&mut self, from: usize, to: usize) {
        self.on(from, Some(to), |node, contact, now| {
            node.member.dial_failed(contact, now);
        });
    }

    /// Lets something happen at a member that runs, and does what it wants done then.
    fn on(&mut self, at: usize, other: Option<usize>, happens: impl FnOnce(&mut Node, Contact, Duration)) {
        let other = self.nodes.get(other.unwrap_or(at)).map(|node| node.contact);
        let now = self.now;
        if let (Some(node), Some(other)) = (self.nodes.get_mut(at).filter(|node| node.is_up), other) {
            happens(node, other, now);
            self.drain(at);
        }
    }

    /// The same for what comes over a link. Whether the link was there.
    fn on_linked(
        &mut self,
        at: usize,
        other: usize,
        happens: impl FnOnce(&mut Node, Contact, Duration),
    ) -> bool {
        let linked = self
            .nodes
            .get(at)
            .is_some_and(|node| node.is_up && node.links.contains(&other));
        if linked {
            self.on(at, Some(other), happens);
        }
        linked
    }

    fn is_up(&self, index: usize) -> bool {
        self.nodes.get(index).is_some_and(|node| node.is_up)
    }

    /// Takes everything that a member wants done and told, and sets its timer.
    fn drain(&mut self, at: usize) {
        while let Some(act) = self.nodes.get_mut(at).and_then(|node| node.member.poll_act()) {
            self.act_for(at, act);
        }
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at) else {
            return;
        };
        let due = node.member.poll_timeout();
        let due = due.map(|due| due.max(now + Duration::from_micros(1)));
        if node.timer != due {
            node.timer = due;
            if let Some(due) = due {
                self.schedule(due, Action::Timer { at });
            }
        }
    }

    fn act_for(&mut self, at: usize, act: Act) {
        match act {
            Act::Dial(contact) => self.dial(at, contact),
            Act::Close(contact) => {
                if let Some(other) = self.index(contact) {
                    self.on(at, Some(other), |node, contact, now| {
                        node.member.dropped(contact, now)
                    });
                    self.unlink(at, other);
                    self.later(1, Action::Closed { at: other, other: at });
                }
            }
            Act::Whom { to, known } => {
                if let Some(to) = self.index(to) {
                    self.later(REQUEST, Action::Whom { from: at, to, known });
                }
            }
            Act::Find { to, query, place } => {
                if let Some(to) = self.index(to) {
                    let find = Action::FindNode {
                        from: at,
                        to,
                        query,
                        place,
                    };
                    self.later(REQUEST, find);
                }
            }
            Act::Located {
                query,
                closest,
                stats,
            } => {
                let now = self.now;
                let Some(node) = self.nodes.get_mut(at) else {
                    return;
                };
                if let Some((place, begun)) = node.seeking.remove(&query) {
                    self.found.push(Found {
                        asker: node.contact.peer,
                        place,
                        closest: closest.into_iter().map(|contact| contact.peer).collect(),
                        stats,
                        took: now - begun,
                    });
                }
            }
            Act::Refreshed(stats) => {
                self.refreshed.requests += stats.requests;
                self.refreshed.failures += stats.failures;
                self.refreshed.dials += stats.dials;
                self.refreshed.rounds = self.refreshed.rounds.max(stats.rounds);
            }
            // Nobody here asks for these.
            Act::Closest { .. } | Act::Reached(_) | Act::GivenUp(_) => {}
        }
    }

    fn index(&self, contact: Contact) -> Option<usize> {
        self.by_peer.get(&contact.peer).copied()
    }

    fn dial(&mut self, from: usize, contact: Contact) {
        let Some(to) = self.index(contact) else {
            return;
        };
        if self.is_up(to) {
            self.later(HANDSHAKE, Action::Linked { from, to });
        } else {
            self.later(REFUSED, Action::Refused { from, to });
        }
    }

    fn later(&mut self, delays: u32, action: Action) {
        self.messages += u64::from(!matches!(action, Action::Closed { .. }));
        let spread: f64 = self.rng.random();
        let delay = self.settings.delay.mul_f64(1.0 + self.settings.jitter * spread);
        self.schedule(self.now + delay * delays, action);
    }

    fn schedule(&mut self, at: Duration, action: Action) {
        self.order += 1;
        self.queue.insert((at, self.order), action);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kad::{K, PATIENCE, closest_of};
    use crate::peer;

    fn grid(members: usize, seed: u64) -> Network {
        let mut network = Network::new(Settings::default(), seed);
        for index in 0..members {
            network.join(peer(index), index.checked_sub(1).map(|last| last / 2));
            network.run_until(network.now() + Duration::from_millis(50));
        }
        network.run_until(network.now() + Duration::from_secs(40));
        network
    }

    #[test]
    fn members_that_know_one_other_find_the_closest_of_all() {
        let mut network = grid(100, 1);
        let members = network.members();
        for index in 0..12 {
            network.locate(index * 7, Key([u8::try_from(index).unwrap(); 32]).position());
            network.run_until(network.now() + Duration::from_secs(5));
        }
        let found = network.found();
        assert_eq!(found.len(), 12);
        for one in &found {
            let closest: Vec<_> = one.closest.iter().copied().map(Contact::from).collect();
            assert_eq!(closest, closest_of(&members, &one.place, Some(one.asker)));
        }
    }

    #[test]
    fn a_run_is_a_function_of_its_seed() {
        let run = |seed| {
            let mut network = grid(30, seed);
            network.locate(3, Key([1; 32]));
            network.run_until(network.now() + Duration::from_secs(5));
            (network.found(), network.messages(), network.degrees())
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5).1, run(6).1);
    }

    #[test]
    fn connections_stay_near_the_limit_in_a_grid_that_is_larger() {
        let network = grid(100, 2);
        let limit = Settings::default().limit;
        for (links, known) in network.degrees() {
            assert!(links >= K && links <= 2 * limit, "{links} links");
            assert!(known <= links, "{known} known, {links} linked");
        }
    }

    #[test]
    fn the_dead_are_not_named_and_cost_no_waiting_once_their_connections_closed() {
        let mut network = grid(90, 3);
        for index in (0..90).step_by(4) {
            network.die(index);
        }
        network.run_until(network.now() + Duration::from_secs(5));
        let members = network.members();
        for index in [1, 33, 77] {
            network.locate(index, Key([9; 32]));
        }
        network.run_until(network.now() + Duration::from_secs(5));
        let found = network.found();
        assert_eq!(found.len(), 3);
        for one in found {
            let living = one
                .closest
                .iter()
                .all(|peer| members.contains(&Contact::from(*peer)));
            assert!(living && one.took < PATIENCE, "{one:?}");
        }
    }
}
