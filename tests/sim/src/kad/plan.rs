//! One and the same course of events for the stand-in and for the real thing: who joins when and where, who asks for
//! what, who dies.
//!
//! ```text
//!   joins, one by one ── settle ── look-ups, one by one ── some die ── pause ── look-ups of those that are left
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_types::{Key, PeerId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::figures::Figures;
use super::network::Network;
use super::settings::Settings;
use super::{Contact, PATIENCE};

/// A course of events.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The members in the order in which they join.
    pub members: Vec<PeerId>,
    /// From this everything that is left to chance follows.
    pub seed: u64,
    /// The time from one member's joining to the next one's.
    pub join_every: Duration,
    /// The time from the last one's joining to the first look-up.
    pub settle: Duration,
    /// Look-ups before and after members die, and the time from one to the next.
    pub lookups: usize,
    /// The time from one look-up to the next.
    pub lookup_every: Duration,
    /// The share of the members that dies, 0 to 1.
    pub dying: f64,
    /// The time from their death to the first look-up thereafter.
    pub pause: Duration,
}

/// What came of a course of events.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Look-ups while all lived.
    pub before: Figures,
    /// Look-ups after members died.
    pub after: Figures,
    /// `FIND_NODE` requests for bootstraps, for each member.
    pub refresh: f64,
    /// Members linked to each one, when all had joined and settled.
    pub links: f64,
    /// Members in each one's table at that time.
    pub known: f64,
    /// Questions of whom somebody is connected to, of each member in the last minute of settling. Not counted with
    /// the real thing.
    pub questions: f64,
}

impl Plan {
    /// The usual course with these members: ten join each second.
    #[must_use]
    pub fn new(members: Vec<PeerId>, seed: u64) -> Self {
        Self {
            members,
            seed,
            join_every: Duration::from_millis(100),
            settle: Duration::from_secs(45),
            lookups: 200,
            lookup_every: Duration::from_millis(100),
            dying: 0.2,
            pause: Duration::from_secs(10),
        }
    }

    /// At which member each one begins: any that is there already.
    #[must_use]
    pub fn firsts(&self) -> Vec<Option<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let count = self.members.len();
        (0..count)
            .map(|index| (index > 0).then(|| rng.random_range(0..index)))
            .collect()
    }

    /// Who dies.
    #[must_use]
    pub fn dead(&self) -> BTreeSet<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 1);
        let count = self.members.len();
        let wanted = (count as f64 * self.dying) as usize;
        let mut dead = BTreeSet::new();
        while dead.len() < wanted.min(count) {
            dead.insert(rng.random_range(0..count));
        }
        dead
    }

    /// Who asks for which key, before or after members died.
    #[must_use]
    pub fn asks(&self, after: bool) -> Vec<(usize, Key)> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ if after { 2 } else { 3 });
        let dead = if after { self.dead() } else { BTreeSet::new() };
        let living: Vec<_> = (0..self.members.len())
            .filter(|index| !dead.contains(index))
            .collect();
        let ask = |rng: &mut ChaCha8Rng| {
            let asker = rng.random_range(0..living.len().max(1));
            Some((living.get(asker).copied()?, Key(rng.random())))
        };
        (0..self.lookups).filter_map(|_| ask(&mut rng)).collect()
    }

    /// The members that are left.
    #[must_use]
    pub fn living(&self, after: bool) -> Vec<Contact> {
        let dead = if after { self.dead() } else { BTreeSet::new() };
        let living = self
            .members
            .iter()
            .enumerate()
            .filter(|(index, _)| !dead.contains(index));
        living.map(|(_, peer)| Contact::from(*peer)).collect()
    }

    /// What comes of it with the stand-in.
    #[must_use]
    pub fn simulate(&self, settings: Settings) -> Outcome {
        let mut network = Network::new(settings, self.seed);
        for (peer, first) in self.members.iter().zip(self.firsts()) {
            network.join(*peer, first);
            network.run_until(network.now() + self.join_every);
        }
        let minute = Duration::from_secs(60).min(self.settle);
        network.run_until(network.now() + self.settle - minute);
        let (_, earlier) = network.messages();
        network.run_until(network.now() + minute);
        let (_, later) = network.messages();
        let asked = later.saturating_sub(earlier) as f64 * 60.0 / minute.as_secs_f64().max(1.0);
        let questions = asked / self.members.len().max(1) as f64;
        let degrees = network.degrees();
        let mean = |of: &dyn Fn(&(usize, usize)) -> usize| {
            degrees.iter().map(of).sum::<usize>() as f64 / degrees.len().max(1) as f64
        };
        let refresh = f64::from(network.refreshed().requests) / self.members.len().max(1) as f64;
        let (links, known) = (mean(&|(links, _)| *links), mean(&|(_, known)| *known));
        let before = self.look_up(&mut network, false);
        for index in self.dead() {
            network.die(index);
        }
        network.run_until(network.now() + self.pause);
        let after = self.look_up(&mut network, true);
        Outcome {
            before,
            after,
            refresh,
            links,
            known,
            questions,
        }
    }

    fn look_up(&self, network: &mut Network, after: bool) -> Figures {
        for (asker, key) in self.asks(after) {
            network.locate(asker, key.position());
            network.run_until(network.now() + self.lookup_every);
        }
        network.run_until(network.now() + 2 * PATIENCE);
        Figures::of(&network.found(), &self.living(after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer;

    #[test]
    fn a_plan_is_the_same_each_time_and_its_dead_ask_nothing() {
        let plan = Plan::new((0..100).map(peer).collect(), 9);
        assert_eq!((plan.firsts(), plan.asks(true)), (plan.firsts(), plan.asks(true)));
        let dead = plan.dead();
        assert_eq!((dead.len(), plan.living(true).len()), (20, 80));
        assert!(plan.asks(true).iter().all(|(asker, _)| !dead.contains(asker)));
        assert!(plan.asks(false).iter().any(|(asker, _)| dead.contains(asker)));
        let earlier = plan.firsts().into_iter().enumerate();
        assert!(
            earlier
                .skip(1)
                .all(|(index, first)| first.is_some_and(|first| first < index))
        );
    }

    #[test]
    fn nearly_all_of_the_closest_are_found_even_after_a_fifth_died() {
        let mut plan = Plan::new((0..90).map(peer).collect(), 4);
        plan.lookups = 20;
        let outcome = plan.simulate(Settings::default());
        for figures in [outcome.before, outcome.after] {
            assert_eq!(figures.count, 20);
            assert!(figures.accuracy.mean > 0.97, "{figures:?}");
            assert!(figures.messages.mean >= 20.0, "{figures:?}");
        }
    }
}
