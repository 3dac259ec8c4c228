//! The connected members by their places in the key space, so that the closest to a place are found without a look at
//! all.
//!
//! Places that share more leading bits with a place are closer to it, whatever follows, and those that share so many
//! lie side by side in the order of places.

use std::ops::Range;

use aerie_types::{Key, PeerId};

/// A place, or the distance of two, as a number: its high and its low half.
type Place = (u128, u128);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Connected {
    place: Place,
    peer: PeerId,
    votes: bool,
}

/// Connected members in the order of their places, and whether each votes. They are few, and looked through far more
/// often than one comes or goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Near(Vec<Connected>);

impl Near {
    /// Somebody is connected, and votes or does not.
    pub(crate) fn set(&mut self, place: Key, peer: PeerId, votes: bool) {
        let place = number(place);
        let connected = Connected { place, peer, votes };
        match self.find(place) {
            Ok(at) => self.0[at] = connected,
            Err(at) => self.0.insert(at, connected),
        }
    }

    pub(crate) fn remove(&mut self, place: Key) {
        if let Ok(at) = self.find(number(place)) {
            self.0.remove(at);
        }
    }

    /// Those closer to `position` than `place` is, in no order, and whether they vote.
    pub(crate) fn closer(&self, position: Key, place: Key) -> impl Iterator<Item = (PeerId, bool)> + '_ {
        let (position, place) = (number(position), number(place));
        let limit = far(place, position);
        self.0[self.sharing(position, shared(limit))]
            .iter()
            .filter(move |other| far(other.place, position) < limit)
            .map(|other| (other.peer, other.votes))
    }

    /// The first `count` of them and of one more, closest to a position first.
    pub(crate) fn closest(&self, position: Key, count: usize, one_more: (Key, PeerId)) -> Vec<PeerId> {
        let position = number(position);
        let sharing = self.sharing_most(position, count);
        let mut all: Vec<_> = self.0[sharing]
            .iter()
            .map(|other| (far(other.place, position), other.peer))
            .chain([(far(number(one_more.0), position), one_more.1)])
            .collect();
        all.sort_unstable();
        all.truncate(count);
        all.into_iter().map(|(_, peer)| peer).collect()
    }

    /// At least `count`, or all, of whom each shares more leading bits with a place than any that is left out: on
    /// either side of the place the next one shares no more than the one before it.
    fn sharing_most(&self, place: Place, count: usize) -> Range<usize> {
        let middle = self.0.partition_point(|connected| connected.place < place);
        let bits = |at: Option<usize>| {
            let connected = at.and_then(|at| self.0.get(at));
            connected.map(|connected| shared(far(connected.place, place)))
        };
        let (mut found, mut fewest) = (middle..middle, None);
        loop {
            let (before, after) = (bits(found.start.checked_sub(1)), bits(Some(found.end)));
            let most = before.max(after);
            if most.is_none() || found.len() >= count && most < fewest {
                return found;
            }
            fewest = most;
            if before > after {
                found.start -= 1;
            } else {
                found.end += 1;
            }
        }
    }

    fn find(&self, place: Place) -> Result<usize, usize> {
        self.0.binary_search_by_key(&place, |connected| connected.place)
    }

    /// Those that share so many leading bits with a place.
    fn sharing(&self, place: Place, bits: u32) -> Range<usize> {
        let free = (
            u128::MAX.checked_shr(bits).unwrap_or(0),
            u128::MAX.checked_shr(bits.saturating_sub(128)).unwrap_or(0),
        );
        let first = (place.0 & !free.0, place.1 & !free.1);
        let last = (place.0 | free.0, place.1 | free.1);
        let begin = self.0.partition_point(|connected| connected.place < first);
        let rest = &self.0[begin..];
        begin..begin + rest.partition_point(|connected| connected.place <= last)
    }
}

fn number(place: Key) -> Place {
    let half = |from: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&place.0[from..from + 16]);
        u128::from_be_bytes(bytes)
    };
    (half(0), half(16))
}

fn far(one: Place, other: Place) -> Place {
    (one.0 ^ other.0, one.1 ^ other.1)
}

/// How many leading bits two places at this distance have in common.
fn shared(distance: Place) -> u32 {
    match distance {
        (0, low) => 128 + low.leading_zeros(),
        (high, _) => high.leading_zeros(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Keys that often share long beginnings.
    fn key() -> impl Strategy<Value = Key> {
        (0_usize..=32, any::<[u8; 32]>()).prop_map(|(from, random)| {
            Key(std::array::from_fn(
                |index| if index < from { 7 } else { random[index] },
            ))
        })
    }

    proptest! {
        #[test]
        fn those_found_are_those_that_a_look_at_all_finds(
            places in vec(key(), 0..60),
            position in key(),
            mine in key(),
            count in 0_usize..30,
        ) {
            let mut near = Near::default();
            for place in &places {
                near.set(*place, PeerId(place.0), place.0[31] % 2 == 0);
            }
            let distance = |place: Key| place.distance(&position);
            let mut all: Vec<Key> = near.0.iter().map(|connected| Key(connected.peer.0)).collect();
            let mut closer: Vec<_> = near.closer(position, mine).map(|(peer, _)| Key(peer.0)).collect();
            let mut expected = all.clone();
            expected.retain(|place| distance(*place) < distance(mine));
            closer.sort_unstable();
            prop_assert_eq!(closer, expected);

            let closest = near.closest(position, count, (mine, PeerId(mine.0)));
            all.push(mine);
            all.sort_by_key(|place| distance(*place));
            let expected: Vec<_> = all.into_iter().take(count).map(|place| PeerId(place.0)).collect();
            prop_assert_eq!(closest, expected);
        }
    }
}
