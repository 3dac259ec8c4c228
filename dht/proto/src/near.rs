//! The connected members by their places in the key space, so that the closest to a place are found without a look at
//! all.
//!
//! Places that share more leading bits with a place are closer to it, whatever follows, and those that share so many
//! lie side by side in the order of places.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use aerie_types::{Key, PeerId};

/// Connected members by place, and whether each votes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Near(BTreeMap<Key, (PeerId, bool)>);

impl Near {
    /// Somebody is connected, and votes or does not.
    pub(crate) fn set(&mut self, place: Key, peer: PeerId, votes: bool) {
        self.0.insert(place, (peer, votes));
    }

    pub(crate) fn remove(&mut self, place: Key) {
        self.0.remove(&place);
    }

    /// Those closer to `position` than `place` is, in no order, and whether they vote.
    pub(crate) fn closer(&self, position: Key, place: Key) -> impl Iterator<Item = (PeerId, bool)> + '_ {
        let limit = far(place, position);
        self.0
            .range(sharing(position, shared(position, place)))
            .filter(move |(other, _)| far(**other, position) < limit)
            .map(|(_, found)| *found)
    }

    /// The first `count` of them and of one more, closest to a position first.
    pub(crate) fn closest(&self, position: Key, count: usize, one_more: (Key, PeerId)) -> Vec<PeerId> {
        let mut bits = (self.0.len() / count.max(1))
            .checked_ilog2()
            .map_or(0, |halvings| halvings + 1);
        while bits > 0 && self.0.range(sharing(position, bits)).take(count).count() < count {
            bits -= 1;
        }
        let sharing = self.0.range(sharing(position, bits));
        let mut all: Vec<_> = sharing
            .map(|(place, (peer, _))| (far(*place, position), *peer))
            .chain([(far(one_more.0, position), one_more.1)])
            .collect();
        all.sort_unstable();
        all.truncate(count);
        all.into_iter().map(|(_, peer)| peer).collect()
    }
}

/// The distance of two positions as numbers, which compare faster than bytes.
fn far(one: Key, other: Key) -> [u128; 2] {
    let half = |place: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&one.distance(&other)[place..place + 16]);
        u128::from_be_bytes(bytes)
    };
    [half(0), half(16)]
}

/// How many leading bits two positions have in common.
fn shared(one: Key, other: Key) -> u32 {
    match far(one, other) {
        [0, low] => 128 + low.leading_zeros(),
        [high, _] => high.leading_zeros(),
    }
}

/// All positions that share so many leading bits with one.
fn sharing(position: Key, bits: u32) -> RangeInclusive<Key> {
    let bound = |fill: u8| {
        Key(std::array::from_fn(|index| {
            let free = 8 * (u32::try_from(index).unwrap_or(u32::MAX) + 1);
            let free = free.saturating_sub(bits).min(8);
            let mask = u8::try_from((1_u16 << free) - 1).unwrap_or(u8::MAX);
            position.0[index] & !mask | fill & mask
        }))
    };
    bound(0)..=bound(u8::MAX)
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
            let mut all: Vec<Key> = near.0.keys().copied().collect();
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
