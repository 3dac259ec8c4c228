//! Looking for the members closest to a place by asking ever closer ones.
//!
//! ```text
//!                 three answers in a row with nobody closer
//!   iterating ────────────────────────────────────────────────► stalled
//!    asks 3      ◄──────────────────────────────────────────     asks 20
//!    at once           an answer with somebody closer            at once
//!        │                                                          │
//!        └──────► done: the 20 closest of those that did not ◄──────┘
//!                 fail have answered, or nobody is left to ask
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use aerie_types::{Key, PeerId};

use super::{ALPHA, Contact, Distance, K, PEER_TIMEOUT};

/// What a look-up wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask this member.
    Ask(Contact),
    /// Wait for answers.
    Wait,
    /// It is over.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Iterating { fruitless: usize },
    Stalled,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    NotYet,
    Waiting {
        until: Duration,
    },
    /// No answer in time; one may still come.
    Silent,
    Failed,
    Answered,
}

#[derive(Debug, Clone)]
struct Candidate {
    contact: Contact,
    asked: Asked,
    /// How many questions, each prompted by the answer before it, lead to this one.
    round: u32,
}

/// One search for the members closest to a place.
#[derive(Debug, Clone)]
pub struct Lookup {
    place: Key,
    state: State,
    candidates: BTreeMap<Distance, Candidate>,
    waiting: usize,
    /// The round of the latest answer or failure.
    round: u32,
    rounds: u32,
}

impl Lookup {
    /// A search that begins at the closest members known.
    #[must_use]
    pub fn new(place: Key, known: &[Contact]) -> Self {
        let candidate = |contact: &Contact| (contact.distance(&place), Candidate::new(*contact));
        Self {
            place,
            state: State::Iterating { fruitless: 0 },
            candidates: known.iter().take(K).map(candidate).collect(),
            waiting: 0,
            round: 0,
            rounds: 0,
        }
    }

    /// What is looked for.
    #[must_use]
    pub fn place(&self) -> Key {
        self.place
    }

    /// The longest chain of questions of which each was prompted by the answer, or failure, of the one before.
    #[must_use]
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// A member that was asked named others. Whether an answer was wanted of it.
    pub fn answered(&mut self, from: Contact, closer: &[Contact]) -> bool {
        if self.state == State::Done {
            return false;
        }
        let distance = from.distance(&self.place);
        if !self.settle(&distance, Asked::Answered) {
            return false;
        }
        let known = self.candidates.len();
        let in_range = self
            .candidates
            .keys()
            .nth(K - 1)
            .or(self.candidates.keys().last());
        let in_range = in_range.copied().unwrap_or(distance);
        let mut progress = known < K;
        for contact in closer {
            let distance = contact.distance(&self.place);
            let before = self.candidates.len();
            self.candidates
                .entry(distance)
                .or_insert_with(|| Candidate::new(*contact));
            progress |= self.candidates.len() > before && distance < in_range;
        }
        self.state = match self.state {
            State::Iterating { .. } | State::Stalled if progress => State::Iterating { fruitless: 0 },
            State::Iterating { fruitless } if fruitless + 1 < ALPHA => State::Iterating {
                fruitless: fruitless + 1,
            },
            _ => State::Stalled,
        };
        true
    }

    /// A member that was asked cannot be reached or did not answer. Whether an answer was wanted of it.
    pub fn failed(&mut self, from: Contact) -> bool {
        self.state != State::Done && self.settle(&from.distance(&self.place), Asked::Failed)
    }

    /// Whom to ask next. To be called until it says to wait.
    pub fn step(&mut self, now: Duration) -> Step {
        if self.state == State::Done {
            return Step::Done;
        }
        let most = match self.state {
            State::Stalled => K.max(ALPHA),
            _ => ALPHA,
        };
        let busy = self.waiting >= most;
        let mut answered = Some(0);
        for candidate in self.candidates.values_mut() {
            match candidate.asked {
                Asked::Waiting { until } if now >= until => {
                    self.waiting -= 1;
                    candidate.asked = Asked::Silent;
                }
                Asked::Waiting { .. } if busy => return Step::Wait,
                Asked::Waiting { .. } => answered = None,
                Asked::Answered => {
                    if let Some(count) = &mut answered {
                        *count += 1;
                        if *count >= K {
                            self.state = State::Done;
                            return Step::Done;
                        }
                    }
                }
                Asked::NotYet if busy => return Step::Wait,
                Asked::NotYet => {
                    candidate.asked = Asked::Waiting {
                        until: now + PEER_TIMEOUT,
                    };
                    candidate.round = self.round + 1;
                    self.rounds = self.rounds.max(candidate.round);
                    self.waiting += 1;
                    return Step::Ask(candidate.contact);
                }
                Asked::Silent | Asked::Failed => {}
            }
        }
        if self.waiting > 0 {
            return Step::Wait;
        }
        self.state = State::Done;
        Step::Done
    }

    /// When a member that was asked counts as silent.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let until = |candidate: &Candidate| match candidate.asked {
            Asked::Waiting { until } => Some(until),
            _ => None,
        };
        self.candidates.values().filter_map(until).min()
    }

    /// Ends the search with what it has found.
    pub fn finish(&mut self) {
        self.state = State::Done;
    }

    /// The closest members that answered, the closest first.
    #[must_use]
    pub fn found(&self) -> Vec<Contact> {
        let answered = |candidate: &&Candidate| candidate.asked == Asked::Answered;
        let found = self.candidates.values().filter(answered);
        found.map(|candidate| candidate.contact).take(K).collect()
    }

    /// Whether an answer of the member is awaited.
    #[must_use]
    pub fn awaits(&self, peer: PeerId) -> bool {
        self.candidates.values().any(|candidate| {
            candidate.contact.peer == peer && matches!(candidate.asked, Asked::Waiting { .. })
        })
    }

    fn settle(&mut self, distance: &Distance, asked: Asked) -> bool {
        let Some(candidate) = self.candidates.get_mut(distance) else {
            return false;
        };
        match candidate.asked {
            Asked::Waiting { .. } => self.waiting -= 1,
            Asked::Silent => {}
            Asked::NotYet | Asked::Failed | Asked::Answered => return false,
        }
        candidate.asked = asked;
        self.round = candidate.round;
        true
    }
}

impl Candidate {
    fn new(contact: Contact) -> Self {
        Self {
            contact,
            asked: Asked::NotYet,
            round: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::peer;

    const NOW: Duration = Duration::ZERO;

    fn contacts(members: std::ops::Range<usize>, place: &Key) -> Vec<Contact> {
        let mut contacts: Vec<Contact> = members.map(|index| peer(index).into()).collect();
        contacts.sort_by_key(|contact| contact.distance(place));
        contacts
    }

    fn asks(lookup: &mut Lookup, now: Duration) -> Vec<Contact> {
        std::iter::from_fn(|| match lookup.step(now) {
            Step::Ask(contact) => Some(contact),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn three_are_asked_at_once_and_twenty_when_nobody_closer_is_named() {
        let place = Key([7; 32]);
        let known = contacts(0..40, &place);
        let (near, _) = known.split_at(30);
        let mut lookup = Lookup::new(place, near);
        let first = asks(&mut lookup, NOW);
        assert_eq!(first, near[..3]);
        for (at, contact) in first.iter().enumerate() {
            assert!(lookup.answered(*contact, &[]));
            let more = asks(&mut lookup, NOW).len();
            assert_eq!(more, if at == 2 { 15 } else { 1 }, "after answer {at}");
        }
        assert_eq!(lookup.rounds(), 2);
    }

    #[test]
    fn an_answer_ends_a_search_only_when_the_twenty_closest_have_answered() {
        let place = Key([7; 32]);
        let known = contacts(0..60, &place);
        let mut lookup = Lookup::new(place, &known[40..]);
        let mut asked = 0;
        let mut waiting = asks(&mut lookup, NOW);
        while let Some(next) = waiting.pop() {
            asked += 1;
            lookup.answered(next, &known[..K]);
            waiting.extend(asks(&mut lookup, NOW));
        }
        assert_eq!(lookup.step(NOW), Step::Done);
        assert_eq!(lookup.found(), known[..K]);
        assert!(asked < 60, "{asked} asked");
    }

    #[test]
    fn silent_and_failed_members_are_passed_over_and_not_named() {
        let place = Key([7; 32]);
        let known = contacts(0..10, &place);
        let mut lookup = Lookup::new(place, &known);
        let first = asks(&mut lookup, NOW);
        assert!(lookup.failed(first[0]));
        assert!(!lookup.failed(first[0]));
        assert_eq!(lookup.due(), Some(PEER_TIMEOUT));
        let mut later = asks(&mut lookup, PEER_TIMEOUT);
        later.remove(0);
        for contact in later {
            lookup.answered(contact, &[]);
        }
        while let [next, ..] = asks(&mut lookup, PEER_TIMEOUT)[..] {
            lookup.answered(next, &[]);
            if lookup.awaits(next.peer) {
                panic!("asked again");
            }
        }
        assert!(!lookup.found().contains(&first[0]));
        assert!(!lookup.found().contains(&first[1]));
    }

    proptest! {
        /// In a grid in which everybody knows its neighbours and some others, whatever fails and in whatever order
        /// answers come, a search ends, asks nobody twice, and names only members that answered.
        #[test]
        fn a_search_ends_and_asks_nobody_twice(
            members in 1..80_usize,
            dead in prop::collection::btree_set(0..80_usize, 0..30),
            order in prop::collection::vec(any::<prop::sample::Index>(), 400),
            place: [u8; 32],
        ) {
            let place = Key(place);
            let all = contacts(0..members, &place);
            let dead: BTreeSet<_> = dead.into_iter().map(peer).collect();
            let names: BTreeMap<_, _> = all.iter().map(|contact| {
                let mut known = all.clone();
                known.sort_by_key(|other| other.distance(&contact.position));
                known.truncate(30);
                known.sort_by_key(|other| other.distance(&place));
                known.truncate(K);
                (contact.peer, known)
            }).collect();
            let mut lookup = Lookup::new(place, &all[members / 2..]);
            let mut asked = BTreeSet::new();
            let mut answered = BTreeSet::new();
            let mut waiting = Vec::new();
            let mut order = order.into_iter().cycle();
            loop {
                for contact in asks(&mut lookup, NOW) {
                    prop_assert!(asked.insert(contact), "asked twice");
                    waiting.push(contact);
                }
                prop_assert!(waiting.len() <= K + ALPHA);
                if waiting.is_empty() {
                    break;
                }
                let Some(index) = order.next() else { break };
                let next = waiting.swap_remove(index.index(waiting.len()));
                if dead.contains(&next.peer) {
                    lookup.failed(next);
                } else if lookup.answered(next, &names[&next.peer]) {
                    answered.insert(next);
                }
            }
            prop_assert_eq!(lookup.step(NOW), Step::Done);
            let found = lookup.found();
            prop_assert!(found.len() <= K);
            prop_assert!(found.iter().all(|contact| answered.contains(contact)));
            prop_assert!(found.is_sorted_by_key(|contact| contact.distance(&place)));
        }
    }
}
