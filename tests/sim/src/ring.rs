//! The members in the order of their positions, for the closest ones to a key without a look at all of them.
//!
//! The positions that share a prefix stand side by side, so that a sorted list is a trie: a step down halves it at the
//! next bit, and the half with the key's own bit is the closer one.

use aerie_types::Key;

/// Lists this short are sorted instead of halved on.
const SHORT: usize = 8;

/// A position and the node there.
type Place = (Key, usize);

/// Running members by position.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ring(Vec<Place>);

impl Ring {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get(&self, place: usize) -> Option<usize> {
        self.0.get(place).map(|(_, index)| *index)
    }

    pub(crate) fn insert(&mut self, position: Key, index: usize) {
        if let Err(place) = self.0.binary_search(&(position, index)) {
            self.0.insert(place, (position, index));
        }
    }

    pub(crate) fn remove(&mut self, position: Key, index: usize) {
        if let Ok(place) = self.0.binary_search(&(position, index)) {
            self.0.remove(place);
        }
    }

    /// The first `count` wanted members by their distance to a position.
    pub(crate) fn closest(&self, to: &Key, count: usize, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut found = Vec::with_capacity(count.min(self.0.len()));
        walk(&self.0, 0, to, count, &wanted, &mut found);
        found
    }

    /// Every member that may count the one at this position among its `count` closest: those of each branch beside
    /// the position's path that is small enough.
    pub(crate) fn around(&self, position: &Key, count: usize) -> Vec<usize> {
        let mut found = Vec::new();
        let mut rest = self.0.as_slice();
        for depth in 0..256 {
            if rest.len() <= SHORT {
                break;
            }
            let (near, far) = halves(rest, depth, position);
            if far.len() <= count {
                found.extend(far.iter().map(|(_, index)| *index));
            }
            rest = near;
        }
        found.extend(rest.iter().map(|(_, index)| *index));
        found
    }
}

/// The half on the position's side of a bit, and the other one.
fn halves<'a>(sorted: &'a [Place], depth: usize, position: &Key) -> (&'a [Place], &'a [Place]) {
    let place = sorted.partition_point(|(other, _)| !bit(other, depth));
    let (zeros, ones) = sorted.split_at(place);
    if bit(position, depth) {
        (ones, zeros)
    } else {
        (zeros, ones)
    }
}

fn walk(
    sorted: &[Place],
    depth: usize,
    to: &Key,
    count: usize,
    wanted: &impl Fn(usize) -> bool,
    found: &mut Vec<usize>,
) {
    if sorted.is_empty() || found.len() >= count {
        return;
    }
    if sorted.len() > SHORT && depth < 256 {
        let (near, far) = halves(sorted, depth, to);
        walk(near, depth + 1, to, count, wanted, found);
        return walk(far, depth + 1, to, count, wanted, found);
    }
    let mut rest: Vec<_> = sorted.iter().filter(|(_, index)| wanted(*index)).collect();
    rest.sort_unstable_by_key(|(position, index)| (position.distance(to), *index));
    let room = count - found.len();
    found.extend(rest.into_iter().take(room).map(|(_, index)| *index));
}

fn bit(key: &Key, depth: usize) -> bool {
    key.0[depth / 8] >> (7 - depth % 8) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::peer;

    #[test]
    fn the_closest_are_those_that_sorting_everybody_gives() {
        let mut ring = Ring::default();
        let mut all: Vec<_> = (0..500).map(|index| (peer(index).position(), index)).collect();
        for (position, index) in &all {
            ring.insert(*position, *index);
        }
        for (position, index) in all.split_off(400) {
            ring.remove(position, index);
        }
        for key in 0..50_u8 {
            let key = Key([key.wrapping_mul(37); 32]);
            let even = |index: usize| index.is_multiple_of(2);
            let mut sorted: Vec<_> = all.iter().filter(|(_, index)| even(*index)).collect();
            sorted.sort_by_key(|(position, _)| position.distance(&key));
            let sorted: Vec<_> = sorted.into_iter().map(|(_, index)| *index).collect();
            assert_eq!(ring.closest(&key, 20, even), sorted[..20]);
        }
    }

    #[test]
    fn whoever_counts_a_newcomer_among_its_closest_is_around_it() {
        let mut ring = Ring::default();
        for index in 0..300 {
            ring.insert(peer(index).position(), index);
        }
        let newcomer = 100;
        let around = ring.around(&peer(newcomer).position(), 24);
        assert!(around.len() < 200, "{}", around.len());
        for index in (0..300).filter(|index| *index != newcomer) {
            let closest = ring.closest(&peer(index).position(), 24, |other| other != index);
            assert!(!closest.contains(&newcomer) || around.contains(&index), "{index}");
        }
    }
}
