//! One member's overlay as the register uses it: Kademlia, the rule of whom to be connected to, and the driver's glue.
//!
//! ```text
//!   closest ── everybody is connected ──────────────────────────► told at once
//!      │ has just joined: waits for a member to name the others    ▲
//!      └──► Kademlia looks up ── done, or out of patience ─────────┘
//!
//!   want ── connected ──► reached;  known ──► dialled;  not known, or not reached ──► looked up, dialled ──► given up
//! ```
//!
//! As long as a member has room for more connections it is connected to everybody, so that the connected members are
//! the answer and Kademlia is not asked. The rules are those of `overlay/src/driver` (`closest.rs`, `requests.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aerie_types::{Key, PeerId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::kademlia::{Kademlia, Output, Stats};
use super::mesh::{Begin, Mesh, Wish};
use super::{Contact, Distance, K, PATIENCE, Settings};

/// How long the look-ups of a member that has just joined wait for somebody to name the others.
const DEFERRED: Duration = Duration::from_secs(1);

/// How long a member that is wanted may take to be reached.
const REACHED_WITHIN: Duration = Duration::from_secs(10);

/// Look-ups under way at once; more are answered from what is known.
const MAX_QUERIES: usize = 256;

/// What a member wants done, or tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Connect to somebody. To be followed by `linked` or `dial_failed`.
    Dial(Contact),
    /// Close the connections to somebody, unless they are in use. To be followed by `dropped` and `closed`.
    Close(Contact),
    /// Send a `FIND_NODE` to a connected member.
    Find {
        /// To whom.
        to: Contact,
        /// To be given back with the answer.
        query: u64,
        /// The place asked for.
        place: Key,
    },
    /// Ask a connected member whom else it is connected to.
    Whom {
        /// To whom.
        to: Contact,
        /// Those that the asker is connected to.
        known: BTreeSet<PeerId>,
    },
    /// The members closest to a place, nearest first, without this one.
    Closest {
        /// The number that was given with the question.
        ticket: u64,
        /// They.
        closest: Vec<PeerId>,
        /// What it cost, if Kademlia was asked.
        cost: Option<Stats>,
    },
    /// A look-up that was begun by [`Member::locate`] has ended.
    Located {
        /// Which one.
        query: u64,
        /// The closest members that answered.
        closest: Vec<Contact>,
        /// What it cost.
        stats: Stats,
    },
    /// One look-up of a bootstrap has ended.
    Refreshed(Stats),
    /// A member that was wanted is connected.
    Reached(PeerId),
    /// A member that was wanted cannot be reached.
    GivenUp(PeerId),
}

#[derive(Debug, Clone)]
enum Purpose {
    /// To be told as it is.
    Locate,
    /// To be told with those that are known besides.
    Closest { ticket: u64, place: Key },
    /// To learn where somebody is.
    Find(Contact),
}

#[derive(Debug, Clone)]
struct Wanted {
    contact: Contact,
    until: Duration,
    searched: bool,
}

/// One member's overlay.
#[derive(Debug, Clone)]
pub struct Member {
    local: Contact,
    kad: Kademlia,
    mesh: Mesh,
    forget_closed: bool,
    /// Dials under way, of whichever part.
    dialling: BTreeSet<PeerId>,
    queries: BTreeMap<u64, Purpose>,
    /// Look-ups under way, and when patience with them ends.
    impatient: VecDeque<(Duration, u64)>,
    /// Look-ups that wait for somebody to name the others, with their tickets, and until when.
    deferred: VecDeque<(Duration, u64, Key)>,
    wanted: BTreeMap<PeerId, Wanted>,
    acts: VecDeque<Act>,
}

impl Member {
    /// A member that is connected to nobody yet.
    #[must_use]
    pub fn new(local: Contact, begin: &Begin, settings: &Settings, seed: u64, now: Duration) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut member = Self {
            local,
            kad: Kademlia::new(local, rng.random(), now),
            mesh: Mesh::new(local, begin, settings.limit, rng.random(), now),
            forget_closed: settings.forget_closed,
            dialling: BTreeSet::new(),
            queries: BTreeMap::new(),
            impatient: VecDeque::new(),
            deferred: VecDeque::new(),
            wanted: BTreeMap::new(),
            acts: VecDeque::new(),
        };
        member.pump(now);
        member
    }

    /// Its part in Kademlia.
    #[must_use]
    pub fn kad(&self) -> &Kademlia {
        &self.kad
    }

    /// Whom it is connected to, and whom it should be.
    #[must_use]
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The first connection to a member is there.
    pub fn linked(&mut self, other: Contact, now: Duration) {
        self.dialling.remove(&other.peer);
        self.mesh.connected(other, now);
        self.kad.connected(other, now);
        if self.wanted.remove(&other.peer).is_some() {
            self.acts.push_back(Act::Reached(other.peer));
        }
        self.seek_all(now);
        self.pump(now);
    }

    /// A connected member has told its addresses.
    pub fn identified(&mut self, other: Contact, now: Duration) {
        self.kad.confirmed(other, now);
        self.pump(now);
    }

    /// The last connection to a member closed.
    pub fn closed(&mut self, other: Contact, now: Duration) {
        self.kad.closed(other, now);
        if self.forget_closed {
            self.kad.forget(other, now);
        }
        self.mesh.closed(other, now);
        self.pump(now);
    }

    /// A member is about to be dropped since there are too many; `closed` follows.
    pub fn dropped(&mut self, other: Contact, now: Duration) {
        self.mesh.dropped(other, now);
    }

    /// A member could not be reached.
    pub fn dial_failed(&mut self, other: Contact, now: Duration) {
        self.dialling.remove(&other.peer);
        if self.mesh.is_live(other.peer) {
            return;
        }
        self.kad.dial_failed(other, now);
        if self.mesh.dial_failed(other, now) {
            self.kad.forget(other, now);
            self.not_reached(other, now);
        }
        self.pump(now);
    }

    /// The answer to a connected member's `FIND_NODE`.
    pub fn find_node(&mut self, from: PeerId, place: &Key, now: Duration) -> Vec<Contact> {
        self.kad.answer(from, place, now)
    }

    /// A connected member answered a `FIND_NODE`.
    pub fn closer(&mut self, query: u64, from: Contact, closer: &[Contact], now: Duration) {
        self.kad.answered(query, from, closer, now);
        self.pump(now);
    }

    /// The answer to a connected member's question of whom this one is connected to.
    #[must_use]
    pub fn named(&self, asker: PeerId, known: &BTreeSet<PeerId>) -> Vec<Contact> {
        self.mesh.named(asker, known)
    }

    /// A connected member answered that question.
    pub fn told(&mut self, named: &[Contact], now: Duration) {
        if self.mesh.answered(named, now) {
            self.seek_all(now);
        }
        self.begin_deferred(now);
        self.pump(now);
    }

    /// Looks in Kademlia for the members closest to a place. [`Act::Located`] follows with the number returned.
    pub fn locate(&mut self, place: Key, now: Duration) -> u64 {
        let query = self.search(place, Purpose::Locate, now);
        self.pump(now);
        query
    }

    /// Finds the members closest to a place as the register is told of them. [`Act::Closest`] follows.
    pub fn closest(&mut self, ticket: u64, place: Key, now: Duration) {
        // One that has just joined is connected to one other and knows no better.
        let hears_soon = !self.mesh.is_alone() && !self.mesh.has_heard();
        if hears_soon && self.deferred.len() < MAX_QUERIES {
            self.deferred.push_back((now + DEFERRED, ticket, place));
        } else {
            self.look_up(ticket, place, now);
        }
        self.pump(now);
    }

    /// Sets out to reach a member that is not connected. [`Act::Reached`] or [`Act::GivenUp`] follows.
    pub fn want(&mut self, contact: Contact, now: Duration) {
        self.wanted.entry(contact.peer).or_insert(Wanted {
            contact,
            until: now + REACHED_WITHIN,
            searched: false,
        });
        self.seek(contact, now);
        self.pump(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.mesh.handle_timeout(now);
        self.begin_deferred(now);
        while let Some((until, query)) = self.impatient.front().copied() {
            if until > now {
                break;
            }
            self.impatient.pop_front();
            if self.queries.contains_key(&query) {
                self.kad.finish(query, now);
            }
        }
        let late = |wanted: &Wanted| wanted.until <= now;
        let late: Vec<_> = self.wanted.values().filter(|wanted| late(wanted)).collect();
        let late: Vec<_> = late.into_iter().map(|wanted| wanted.contact.peer).collect();
        for peer in late {
            self.give_up(peer);
        }
        self.kad.handle_timeout(now);
        self.pump(now);
    }

    /// When something is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let impatient = self.impatient.front().map(|(until, _)| *until);
        let deferred = self.deferred.front().map(|(until, ..)| *until);
        let wanted = self.wanted.values().map(|wanted| wanted.until).min();
        let parts = [self.mesh.poll_timeout(), self.kad.poll_timeout()];
        let own = [impatient, deferred, wanted];
        parts.into_iter().chain(own).flatten().min()
    }

    /// What is to be done or told next.
    pub fn poll_act(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    fn look_up(&mut self, ticket: u64, place: Key, now: Duration) {
        let complete = self.mesh.has_room() && self.mesh.untried().next().is_none();
        if complete || self.mesh.is_alone() || self.queries.len() >= MAX_QUERIES {
            return self.tell(ticket, &place, &[], None);
        }
        self.search(place, Purpose::Closest { ticket, place }, now);
    }

    fn search(&mut self, place: Key, purpose: Purpose, now: Duration) -> u64 {
        let query = self.kad.locate(place, now);
        self.queries.insert(query, purpose);
        self.impatient.push_back((now + PATIENCE, query));
        query
    }

    /// Tells who is closest of those found and of those that are known.
    fn tell(&mut self, ticket: u64, place: &Key, found: &[Contact], cost: Option<Stats>) {
        let known = self.mesh.live().chain(self.mesh.untried());
        let all = known.chain(found.iter().copied());
        let mut all: Vec<(Distance, PeerId)> = all
            .filter(|contact| *contact != self.local)
            .map(|contact| (contact.distance(place), contact.peer))
            .collect();
        all.sort_unstable();
        all.dedup();
        let closest = all.into_iter().take(K).map(|(_, peer)| peer).collect();
        self.acts.push_back(Act::Closest {
            ticket,
            closest,
            cost,
        });
    }

    /// Begins the look-ups that waited for a member to name the others: it has, or has not in time.
    fn begin_deferred(&mut self, now: Duration) {
        while let Some((until, ticket, place)) = self.deferred.front().copied() {
            if !self.mesh.is_alone() && !self.mesh.has_heard() && until > now {
                return;
            }
            self.deferred.pop_front();
            self.look_up(ticket, place, now);
        }
    }

    fn seek_all(&mut self, now: Duration) {
        let wanted: Vec<_> = self.wanted.values().map(|wanted| wanted.contact).collect();
        for contact in wanted {
            self.seek(contact, now);
        }
    }

    /// A pause after a failure does not hold up who is wanted, but one that was not reached a moment ago is asked for
    /// first.
    fn seek(&mut self, contact: Contact, now: Duration) {
        let searched = self
            .wanted
            .get(&contact.peer)
            .is_some_and(|wanted| wanted.searched);
        if searched || self.mesh.is_dialling(contact.peer) {
            return;
        }
        if !self.mesh.may_dial(contact, now) || !self.mesh.dial(contact) {
            self.find(contact, now);
        }
    }

    /// While there is nobody to ask, who is wanted waits for that.
    fn find(&mut self, contact: Contact, now: Duration) {
        if self.mesh.is_alone() || self.queries.len() >= MAX_QUERIES {
            return;
        }
        if let Some(wanted) = self.wanted.get_mut(&contact.peer) {
            wanted.searched = true;
        }
        self.search(contact.position, Purpose::Find(contact), now);
    }

    fn not_reached(&mut self, contact: Contact, now: Duration) {
        match self.wanted.get(&contact.peer) {
            Some(wanted) if wanted.searched => self.give_up(contact.peer),
            Some(_) => self.find(contact, now),
            None => {}
        }
    }

    fn give_up(&mut self, peer: PeerId) {
        if self.wanted.remove(&peer).is_some() {
            self.acts.push_back(Act::GivenUp(peer));
        }
    }

    fn located(&mut self, query: u64, closest: Vec<Contact>, stats: Stats, now: Duration) {
        for contact in &closest {
            self.mesh.learn(*contact, now);
        }
        match self.queries.remove(&query) {
            Some(Purpose::Locate) => self.acts.push_back(Act::Located {
                query,
                closest,
                stats,
            }),
            Some(Purpose::Closest { ticket, place }) => self.tell(ticket, &place, &closest, Some(stats)),
            Some(Purpose::Find(contact))
                if self.wanted.contains_key(&contact.peer) && !self.mesh.dial(contact) =>
            {
                self.give_up(contact.peer);
            }
            Some(Purpose::Find(_)) | None => {}
        }
    }

    /// Takes everything that the parts want done and tell.
    fn pump(&mut self, now: Duration) {
        loop {
            while let Some(wish) = self.mesh.poll_wish() {
                match wish {
                    Wish::Dial(contact) => self.dial(contact),
                    Wish::Close(contact) => self.acts.push_back(Act::Close(contact)),
                    Wish::Ask(to) => {
                        let known = self.mesh.known();
                        self.acts.push_back(Act::Whom { to, known });
                    }
                }
            }
            match self.kad.poll_output() {
                Some(Output::Dial(contact)) => self.dial(contact),
                Some(Output::Ask { to, query, place }) => {
                    self.acts.push_back(Act::Find { to, query, place });
                }
                Some(Output::Located {
                    query,
                    closest,
                    stats,
                }) => self.located(query, closest, stats, now),
                Some(Output::Refreshed(stats)) => self.acts.push_back(Act::Refreshed(stats)),
                None => return,
            }
        }
    }

    fn dial(&mut self, contact: Contact) {
        if !self.mesh.is_live(contact.peer) && self.dialling.insert(contact.peer) {
            self.acts.push_back(Act::Dial(contact));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer;

    const NOW: Duration = Duration::ZERO;
    const PLACE: Key = Key([9; 32]);

    fn contact(index: usize) -> Contact {
        peer(index).into()
    }

    fn member(limit: usize, linked: std::ops::RangeInclusive<usize>) -> Member {
        let settings = Settings {
            limit,
            ..Settings::default()
        };
        let mut member = Member::new(contact(0), &Begin::default(), &settings, 1, NOW);
        for index in linked {
            member.linked(contact(index), NOW);
            member.identified(contact(index), NOW);
        }
        acts(&mut member);
        member
    }

    fn acts(member: &mut Member) -> Vec<Act> {
        std::iter::from_fn(|| member.poll_act()).collect()
    }

    fn closest(acts: &[Act]) -> Option<Vec<PeerId>> {
        acts.iter().find_map(|act| match act {
            Act::Closest { closest, .. } => Some(closest.clone()),
            _ => None,
        })
    }

    fn finds(acts: &[Act]) -> usize {
        acts.iter().filter(|act| matches!(act, Act::Find { .. })).count()
    }

    #[test]
    fn while_there_is_room_the_connected_members_are_the_answer_and_nobody_is_asked() {
        let mut member = member(64, 1..=30);
        member.told(&[], NOW);
        member.closest(7, PLACE, NOW);
        let acts = acts(&mut member);
        let mut wanted: Vec<_> = (1..=30).map(contact).collect();
        wanted.sort_by_key(|contact| contact.distance(&PLACE));
        let wanted: Vec<_> = wanted.into_iter().take(K).map(|contact| contact.peer).collect();
        assert_eq!((closest(&acts), finds(&acts)), (Some(wanted), 0));
    }

    #[test]
    fn without_room_kademlia_looks_up_and_the_answer_comes_in_time_whoever_keeps_silent() {
        let mut member = member(20, 1..=25);
        member.told(&[], NOW);
        member.closest(7, PLACE, NOW);
        let begun = acts(&mut member);
        assert_eq!((closest(&begun), finds(&begun)), (None, 3));
        let (now, told) = loop {
            let now = member.poll_timeout().unwrap();
            member.handle_timeout(now);
            if let Some(told) = closest(&acts(&mut member)) {
                break (now, told);
            }
        };
        assert_eq!((now, told.len()), (PATIENCE, K));
        assert!(!told.contains(&peer(0)));
    }

    #[test]
    fn one_that_has_just_joined_waits_for_the_others_to_be_named() {
        let mut member = member(64, 1..=1);
        member.closest(1, PLACE, NOW);
        assert_eq!(closest(&acts(&mut member)), None);
        member.told(&[contact(2)], NOW);
        let told = closest(&acts(&mut member));
        // The one that was named is not tried yet, so that Kademlia is asked.
        assert_eq!(told, None);
        member.linked(contact(2), NOW);
        member.closest(2, PLACE, NOW);
        assert_eq!(closest(&acts(&mut member)).map(|told| told.len()), Some(2));

        let mut lonely = self::member(64, 1..=1);
        lonely.closest(1, PLACE, NOW);
        lonely.handle_timeout(DEFERRED);
        assert_eq!(closest(&acts(&mut lonely)), Some(vec![peer(1)]));
    }

    #[test]
    fn who_is_wanted_is_dialled_then_searched_for_and_given_up_in_the_end() {
        let mut member = member(64, 1..=1);
        member.told(&[contact(2)], NOW);
        member.want(contact(2), NOW);
        assert_eq!(acts(&mut member), [Act::Dial(contact(2))]);
        member.dial_failed(contact(2), NOW);
        let [Act::Find { query, .. }] = acts(&mut member)[..] else {
            panic!("not searched for");
        };
        member.closer(query, contact(1), &[contact(2)], NOW);
        assert_eq!(acts(&mut member), [Act::Dial(contact(2))]);
        member.dial_failed(contact(2), NOW);
        // That was Kademlia's own dial, which ends the search; with what it found the member is tried once more.
        assert_eq!(acts(&mut member), [Act::Dial(contact(2))]);
        member.dial_failed(contact(2), NOW);
        assert_eq!(acts(&mut member), [Act::GivenUp(peer(2))]);
    }

    #[test]
    fn who_is_wanted_and_connects_is_reached() {
        let mut member = member(64, 1..=1);
        member.told(&[contact(2)], NOW);
        member.want(contact(2), NOW);
        member.linked(contact(2), NOW);
        assert!(acts(&mut member).contains(&Act::Reached(peer(2))));
        member.want(contact(3), NOW);
        member.handle_timeout(REACHED_WITHIN);
        assert!(acts(&mut member).contains(&Act::GivenUp(peer(3))));
    }
}
