//! What look-ups found and cost.

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_types::{Key, PeerId};

use super::kademlia::Stats;
use super::{Contact, Distance, K};

/// A look-up that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who asked.
    pub asker: PeerId,
    /// The place asked for.
    pub place: Key,
    /// The closest members that answered.
    pub closest: Vec<PeerId>,
    /// What it cost.
    pub stats: Stats,
    /// How long it took.
    pub took: Duration,
}

/// Some numbers, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// The number below which half of them lie.
    pub p50: f64,
    /// The number below which 19 of 20 lie.
    pub p95: f64,
}

/// What many look-ups found and cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    /// How many look-ups.
    pub count: usize,
    /// `FIND_NODE` requests of each.
    pub messages: Spread,
    /// Questions of which each was prompted by the answer of the one before.
    pub rounds: Spread,
    /// Members that had to be dialled.
    pub dials: Spread,
    /// Requests that failed.
    pub failures: Spread,
    /// Time, in milliseconds.
    pub took_ms: Spread,
    /// The share of the truly closest members that was found, 0 to 1.
    pub accuracy: Spread,
}

impl Figures {
    /// Judges look-ups against the members that ran at the time.
    #[must_use]
    pub fn of(found: &[Found], members: &[Contact]) -> Self {
        let spread = |figure: &dyn Fn(&Found) -> f64| Spread::of(found.iter().map(figure).collect());
        Self {
            count: found.len(),
            messages: spread(&|one| f64::from(one.stats.requests)),
            rounds: spread(&|one| f64::from(one.stats.rounds)),
            dials: spread(&|one| f64::from(one.stats.dials)),
            failures: spread(&|one| f64::from(one.stats.failures)),
            took_ms: spread(&|one| one.took.as_secs_f64() * 1e3),
            accuracy: spread(&|one| accuracy(one, members)),
        }
    }
}

impl Spread {
    /// Sums numbers up. All zero if there are none.
    #[must_use]
    pub fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        if numbers.is_empty() {
            return Self::default();
        }
        Self {
            mean: numbers.iter().sum::<f64>() / numbers.len() as f64,
            p50: percentile(&numbers, 0.5),
            p95: percentile(&numbers, 0.95),
        }
    }
}

/// The smallest of some sorted numbers at or below which a share of them lies; zero if there are none.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    let at = rank.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

/// The members truly closest to a place, as nobody in the network can know.
#[must_use]
pub fn closest_of(members: &[Contact], place: &Key, except: Option<PeerId>) -> Vec<Contact> {
    let mut all: Vec<(Distance, Contact)> = members
        .iter()
        .filter(|contact| Some(contact.peer) != except)
        .map(|contact| (contact.distance(place), *contact))
        .collect();
    all.sort_unstable();
    all.into_iter().map(|(_, contact)| contact).take(K).collect()
}

fn accuracy(found: &Found, members: &[Contact]) -> f64 {
    let true_ones = closest_of(members, &found.place, Some(found.asker));
    let named: BTreeSet<_> = found.closest.iter().collect();
    let hits = true_ones
        .iter()
        .filter(|contact| named.contains(&contact.peer))
        .count();
    hits as f64 / true_ones.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer;

    #[test]
    fn percentiles_are_numbers_that_occurred() {
        let numbers: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(percentile(&numbers, 0.5), 10.0);
        assert_eq!(percentile(&numbers, 0.95), 19.0);
        assert_eq!(percentile(&numbers, 1.0), 20.0);
        assert_eq!(percentile(&[4.0], 0.01), 4.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn accuracy_is_the_share_of_the_true_twenty_and_leaves_the_asker_out() {
        let members: Vec<Contact> = (0..100).map(|index| peer(index).into()).collect();
        let place = Key([4; 32]);
        let mut all = closest_of(&members, &place, None);
        let asker = all.remove(0).peer;
        let closest = closest_of(&members, &place, Some(asker));
        assert_eq!(closest[..19], all[..]);
        let mut found = Found {
            asker,
            place,
            closest: closest.iter().map(|contact| contact.peer).take(15).collect(),
            stats: Stats::default(),
            took: Duration::ZERO,
        };
        assert_eq!(accuracy(&found, &members), 0.75);
        found.closest.clear();
        let figures = Figures::of(&[found], &members);
        assert_eq!((figures.count, figures.accuracy.mean), (1, 0.0));
    }
}
