//! One member's part in Kademlia: what libp2p's behaviour does with connections, addresses, requests and time.
//!
//! ```text
//!   connected ──► confirmed (it speaks the protocol, at an address) ──► in the table, connected
//!                                                                            │ last connection closed
//!       taken out by the driver  ◄── forget ──────────────────────  in the table, not connected
//! ```
//!
//! A look-up asks members over connections that are there, and has others dialled. While the table has fewer than
//! [`K`] entries, each new one starts a *bootstrap* half a second later: a look-up of the own place, then one in each
//! bucket beyond the nearest member's. Later that is done once in [`BOOTSTRAP_EVERY`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aerie_types::{Key, PeerId};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::bucket::{Inserted, Status};
use super::lookup::{Lookup, Step};
use super::table::{Presence, Table};
use super::{BOOTSTRAP_EVERY, BOOTSTRAP_SOON, Contact, K, PEER_TIMEOUT, QUERY_TIMEOUT, REQUEST_TIMEOUT};

/// What a member wants done, or tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Connect to a member. To be followed by `connected` or `dial_failed`, unless a connection is there or under way.
    Dial(Contact),
    /// Send a `FIND_NODE` over a connection that is there.
    Ask {
        /// To whom.
        to: Contact,
        /// To be given back with the answer.
        query: u64,
        /// The place asked for.
        place: Key,
    },
    /// A look-up has ended.
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
}

/// What a look-up cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// `FIND_NODE` requests, those included that were never sent since the member could not be reached.
    pub requests: u32,
    /// Those of them that failed.
    pub failures: u32,
    /// Members that had to be dialled for it.
    pub dials: u32,
    /// See [`Lookup::rounds`].
    pub rounds: u32,
}

#[derive(Debug, Clone)]
enum Purpose {
    Locate,
    /// With the places that are still to be looked up; `None` before the first look-up, that of the own place.
    Bootstrap(Option<VecDeque<Key>>),
}

#[derive(Debug, Clone)]
struct Query {
    lookup: Lookup,
    purpose: Purpose,
    begun: Duration,
    stats: Stats,
    /// Members to be asked as soon as they are connected.
    unsent: BTreeSet<Contact>,
    /// Requests under way and when they fail.
    sent: BTreeMap<Contact, Duration>,
}

/// One member's part in Kademlia.
#[derive(Debug, Clone)]
pub struct Kademlia {
    table: Table,
    connected: BTreeSet<PeerId>,
    queries: BTreeMap<u64, Query>,
    next_query: u64,
    soon: Option<Duration>,
    periodic: Duration,
    bootstraps: usize,
    rng: ChaCha8Rng,
    outputs: VecDeque<Output>,
}

impl Kademlia {
    /// A member that knows nobody.
    #[must_use]
    pub fn new(local: Contact, seed: u64, now: Duration) -> Self {
        Self {
            table: Table::new(local),
            connected: BTreeSet::new(),
            queries: BTreeMap::new(),
            next_query: 0,
            soon: None,
            periodic: now + BOOTSTRAP_EVERY,
            bootstraps: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            outputs: VecDeque::new(),
        }
    }

    /// Whom the member knows.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Whether any look-up is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.queries.is_empty()
    }

    /// The first connection to a member is there.
    pub fn connected(&mut self, contact: Contact, now: Duration) {
        self.connected.insert(contact.peer);
        for (id, query) in &mut self.queries {
            if query.unsent.remove(&contact) {
                query.sent.insert(contact, now + REQUEST_TIMEOUT);
                self.outputs.push_back(Output::Ask {
                    to: contact,
                    query: *id,
                    place: query.lookup.place(),
                });
            }
        }
    }

    /// A connected member speaks the protocol and has an address: identify told both.
    pub fn confirmed(&mut self, contact: Contact, now: Duration) {
        match self.table.presence(contact, now) {
            Presence::Present(Status::Connected) | Presence::Pending(Status::Connected) => {}
            Presence::Present(_) | Presence::Pending(_) => {
                self.table.update(contact, Status::Connected, now);
            }
            Presence::Absent => match self.table.insert(contact, Status::Connected, now) {
                Inserted::Added if self.table.len() < K => self.soon = Some(now + BOOTSTRAP_SOON),
                Inserted::Pending(oldest) if !self.connected.contains(&oldest.peer) => {
                    self.outputs.push_back(Output::Dial(oldest));
                }
                _ => {}
            },
        }
    }

    /// The last connection to a member closed.
    pub fn closed(&mut self, contact: Contact, now: Duration) {
        for query in self.queries.values_mut() {
            query.failed(contact);
        }
        self.table.update(contact, Status::Disconnected, now);
        self.connected.remove(&contact.peer);
        self.advance(now);
    }

    /// Takes a member out of the table, as the overlay does with those whose last connection closed.
    pub fn forget(&mut self, contact: Contact, now: Duration) {
        self.table.remove(contact, now);
    }

    /// A member could not be reached.
    pub fn dial_failed(&mut self, contact: Contact, now: Duration) {
        for query in self.queries.values_mut() {
            query.failed(contact);
        }
        self.advance(now);
    }

    /// The answer to a `FIND_NODE` of another member.
    pub fn answer(&mut self, from: PeerId, place: &Key, now: Duration) -> Vec<Contact> {
        self.table.closest(place, Some(from), now)
    }

    /// A member answered.
    pub fn answered(&mut self, query: u64, from: Contact, closer: &[Contact], now: Duration) {
        let local = self.table.local();
        if let Some(query) = self.queries.get_mut(&query) {
            query.sent.remove(&from);
            let others: Vec<_> = closer.iter().copied().filter(|one| *one != local).collect();
            query.lookup.answered(from, &others);
        }
        self.advance(now);
    }

    /// Begins to look for the members closest to a place.
    pub fn locate(&mut self, place: Key, now: Duration) -> u64 {
        let id = self.next_query;
        self.next_query += 1;
        self.begin(id, place, Purpose::Locate, now);
        self.advance(now);
        id
    }

    /// Ends a look-up with what it has found.
    pub fn finish(&mut self, query: u64, now: Duration) {
        if let Some(query) = self.queries.get_mut(&query) {
            query.lookup.finish();
        }
        self.advance(now);
    }

    /// Begins a bootstrap, if anybody is known.
    pub fn bootstrap(&mut self, now: Duration) {
        self.soon = None;
        self.periodic = now + BOOTSTRAP_EVERY;
        if !self.table.is_empty() {
            self.bootstraps += 1;
            let id = self.next_query;
            self.next_query += 1;
            let here = self.table.local().position;
            self.begin(id, here, Purpose::Bootstrap(None), now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Duration) {
        let due = |at: Duration| at <= now;
        if self.bootstraps == 0 && (self.soon.is_some_and(due) || due(self.periodic)) {
            self.bootstrap(now);
        }
        for query in self.queries.values_mut() {
            let late: Vec<_> = query.sent.iter().filter(|(_, until)| due(**until)).collect();
            let late: Vec<_> = late.into_iter().map(|(contact, _)| *contact).collect();
            for contact in late {
                query.failed(contact);
            }
        }
        self.advance(now);
    }

    /// When something is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let bootstrap = (self.bootstraps == 0).then(|| self.soon.unwrap_or(self.periodic).min(self.periodic));
        let of_query = |query: &Query| {
            let sent = query.sent.values().copied().min();
            // Nobody counts as silent before the whole query is too late.
            const { assert!(QUERY_TIMEOUT.as_nanos() <= PEER_TIMEOUT.as_nanos()) };
            let whole = Some(query.begun + QUERY_TIMEOUT);
            sent.into_iter().chain(whole).min()
        };
        let queries = self.queries.values().filter_map(of_query).min();
        bootstrap.into_iter().chain(queries).min()
    }

    /// What is to be done or told next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn begin(&mut self, id: u64, place: Key, purpose: Purpose, now: Duration) {
        let known = self.table.closest(&place, None, now);
        let query = Query {
            lookup: Lookup::new(place, &known),
            purpose,
            begun: now,
            stats: Stats::default(),
            unsent: BTreeSet::new(),
            sent: BTreeMap::new(),
        };
        self.queries.insert(id, query);
    }

    /// Takes every query as far as it goes without further answers.
    fn advance(&mut self, now: Duration) {
        let mut ended = Vec::new();
        for (id, query) in &mut self.queries {
            if query.advance(*id, &self.connected, &mut self.outputs, now) {
                ended.push(*id);
            }
        }
        let again = !ended.is_empty();
        for id in ended {
            if let Some(query) = self.queries.remove(&id) {
                self.ended(id, query, now);
            }
        }
        if again {
            self.advance(now);
        }
    }

    fn ended(&mut self, id: u64, query: Query, now: Duration) {
        let stats = Stats {
            rounds: query.lookup.rounds(),
            ..query.stats
        };
        let timed_out = query.is_late(now);
        match query.purpose {
            Purpose::Locate => self.outputs.push_back(Output::Located {
                query: id,
                closest: query.lookup.found(),
                stats,
            }),
            Purpose::Bootstrap(places) => {
                self.outputs.push_back(Output::Refreshed(stats));
                let mut places = match places {
                    Some(places) => places,
                    // A look-up of the own place that timed out ends the bootstrap.
                    None if timed_out => VecDeque::new(),
                    None => self.table.refresh_places(&mut self.rng, now).into(),
                };
                match places.pop_front() {
                    Some(place) => self.begin(id, place, Purpose::Bootstrap(Some(places)), now),
                    None => self.bootstraps -= 1,
                }
            }
        }
    }
}

impl Query {
    fn failed(&mut self, contact: Contact) {
        self.unsent.remove(&contact);
        self.sent.remove(&contact);
        self.stats.failures += u32::from(self.lookup.failed(contact));
    }

    fn is_late(&self, now: Duration) -> bool {
        now >= self.begun + QUERY_TIMEOUT
    }

    /// Asks whom to ask now. Whether the look-up is over.
    fn advance(
        &mut self,
        id: u64,
        connected: &BTreeSet<PeerId>,
        outputs: &mut VecDeque<Output>,
        now: Duration,
    ) -> bool {
        loop {
            match self.lookup.step(now) {
                Step::Done => return true,
                Step::Wait => return self.is_late(now),
                Step::Ask(to) => {
                    self.stats.requests += 1;
                    if connected.contains(&to.peer) {
                        self.sent.insert(to, now + REQUEST_TIMEOUT);
                        let place = self.lookup.place();
                        outputs.push_back(Output::Ask { to, query: id, place });
                    } else {
                        self.stats.dials += 1;
                        self.unsent.insert(to);
                        outputs.push_back(Output::Dial(to));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer;

    const NOW: Duration = Duration::ZERO;

    fn contact(index: usize) -> Contact {
        peer(index).into()
    }

    fn outputs(member: &mut Kademlia) -> Vec<Output> {
        std::iter::from_fn(|| member.poll_output()).collect()
    }

    fn met(count: usize) -> Kademlia {
        let mut member = Kademlia::new(contact(0), 1, NOW);
        for index in 1..=count {
            member.connected(contact(index), NOW);
            member.confirmed(contact(index), NOW);
        }
        member
    }

    #[test]
    fn a_new_member_is_looked_around_for_half_a_second_later_and_only_while_few_are_known() {
        let mut member = met(1);
        assert_eq!(member.poll_timeout(), Some(BOOTSTRAP_SOON));
        member.handle_timeout(BOOTSTRAP_SOON);
        let here = contact(0).position;
        let ask = Output::Ask {
            to: contact(1),
            query: 0,
            place: here,
        };
        assert_eq!(outputs(&mut member), [ask]);

        let mut member = met(K + 30);
        assert!(member.table().len() >= K);
        member.handle_timeout(BOOTSTRAP_SOON);
        assert!(member.is_busy());
        while let Some(output) = member.poll_output() {
            if let Output::Ask { to, query, .. } = output {
                member.answered(query, to, &[], BOOTSTRAP_SOON);
            }
        }
        assert!(!member.is_busy());
        member.connected(contact(90), BOOTSTRAP_SOON);
        member.confirmed(contact(90), BOOTSTRAP_SOON);
        assert_eq!(member.poll_timeout(), Some(BOOTSTRAP_SOON + BOOTSTRAP_EVERY));
    }

    #[test]
    fn a_bootstrap_looks_up_the_own_place_and_then_each_farther_bucket() {
        let mut member = met(60);
        member.bootstrap(NOW);
        member.handle_timeout(NOW);
        let mut places = Vec::new();
        while let Some(output) = member.poll_output() {
            if let Output::Ask { to, query, place } = output {
                if places.last() != Some(&place) {
                    places.push(place);
                }
                member.answered(query, to, &[], NOW);
            }
        }
        assert_eq!(places.first(), Some(&contact(0).position));
        assert!(places.len() >= 4, "{} places", places.len());
        assert!(!member.is_busy());
    }

    #[test]
    fn members_that_are_named_are_dialled_and_then_asked() {
        let mut member = met(1);
        let query = member.locate(Key([3; 32]), NOW);
        assert_eq!(outputs(&mut member).len(), 1);
        member.answered(query, contact(1), &[contact(0), contact(2), contact(3)], NOW);
        let mut dialled = outputs(&mut member);
        dialled.sort_by_key(|output| matches!(output, Output::Dial(to) if *to == contact(3)));
        assert_eq!(dialled, [Output::Dial(contact(2)), Output::Dial(contact(3))]);
        member.dial_failed(contact(3), NOW);
        member.connected(contact(2), NOW);
        let [Output::Ask { to, .. }] = outputs(&mut member)[..] else {
            panic!("not asked");
        };
        assert_eq!(to, contact(2));
        member.answered(query, contact(2), &[], NOW);
        let [
            Output::Located {
                ref closest, stats, ..
            },
        ] = outputs(&mut member)[..]
        else {
            panic!("not found");
        };
        let found: BTreeSet<_> = closest.iter().copied().collect();
        assert_eq!(found, [contact(1), contact(2)].into());
        let cost = Stats {
            requests: 3,
            failures: 1,
            dials: 2,
            rounds: 2,
        };
        assert_eq!(stats, cost);
    }

    #[test]
    fn a_request_that_nobody_answers_fails_by_its_own_time_limit() {
        let mut member = met(1);
        let _ = member.locate(Key([3; 32]), NOW);
        member.soon = None;
        assert_eq!(member.poll_timeout(), Some(REQUEST_TIMEOUT));
        member.handle_timeout(REQUEST_TIMEOUT);
        let last = outputs(&mut member).pop();
        let Some(Output::Located { closest, stats, .. }) = last else {
            panic!("not ended");
        };
        assert_eq!((closest.len(), stats.failures), (0, 1));
    }

    #[test]
    fn a_look_up_ends_in_time_whatever_is_still_under_way() {
        let mut member = met(1);
        let query = member.locate(Key([3; 32]), NOW);
        member.answered(query, contact(1), &[contact(2)], NOW);
        member.soon = None;
        assert_eq!(member.poll_timeout(), Some(QUERY_TIMEOUT));
        member.handle_timeout(QUERY_TIMEOUT);
        let last = outputs(&mut member).pop();
        let Some(Output::Located { closest, .. }) = last else {
            panic!("not ended");
        };
        assert_eq!(closest, [contact(1)]);
    }

    #[test]
    fn an_answer_names_the_closest_connected_members_without_the_asker() {
        let mut member = met(40);
        let place = Key([9; 32]);
        let asker = member.answer(peer(99), &place, NOW)[0];
        let named = member.answer(asker.peer, &place, NOW);
        assert_eq!(named.len(), K);
        assert!(!named.contains(&asker));
        assert!(named.is_sorted_by_key(|contact| contact.distance(&place)));
        let first = named[0];
        member.closed(first, NOW);
        assert!(member.answer(asker.peer, &place, NOW).contains(&first));
        member.forget(first, NOW);
        assert!(!member.answer(asker.peer, &place, NOW).contains(&first));
    }
}
