//! The chunks that are neither had nor asked, the rarest first.

use std::collections::BTreeSet;

use rand::Rng;

use super::Bitfield;

#[derive(Debug)]
pub(super) struct Wanted {
    /// By how many hosts have it, then by chance.
    order: BTreeSet<(u32, u32, u32)>,
    /// How many hosts have each chunk.
    rarity: Vec<u32>,
    /// The chance of each.
    chance: Vec<u32>,
    wanted: Bitfield,
}

impl Wanted {
    pub(super) fn new(have: &Bitfield, rng: &mut impl Rng) -> Self {
        let chance: Vec<_> = (0..have.len()).map(|_| rng.next_u32()).collect();
        let mut new = Self {
            order: BTreeSet::new(),
            rarity: vec![0; chance.len()],
            chance,
            wanted: Bitfield::empty(have.len()),
        };
        for chunk in (0..have.len()).filter(|chunk| !have.has(*chunk)) {
            new.insert(chunk);
        }
        new
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// How many hosts have a chunk.
    pub(super) fn rarity(&self, chunk: u32) -> u32 {
        self.rarity.get(chunk as usize).copied().unwrap_or(0)
    }

    fn place(&self, chunk: u32) -> (u32, u32, u32) {
        let chance = self.chance.get(chunk as usize).copied().unwrap_or(0);
        (self.rarity(chunk), chance, chunk)
    }

    /// True if it was not wanted before.
    pub(super) fn insert(&mut self, chunk: u32) -> bool {
        self.wanted.insert(chunk) && self.order.insert(self.place(chunk))
    }

    /// True if it was wanted.
    pub(super) fn remove(&mut self, chunk: u32) -> bool {
        self.wanted.remove(chunk) && self.order.remove(&self.place(chunk))
    }

    /// A host has other chunks than before.
    pub(super) fn changed(&mut self, before: &Bitfield, now: &Bitfield) {
        let differ = before.as_bytes().iter().zip(now.as_bytes());
        let differ: Vec<_> = (0_u32..)
            .zip(differ)
            .filter(|(_, (before, now))| before != now)
            .flat_map(|(byte, _)| 8 * byte..8 * byte + 8)
            .collect();
        for chunk in differ {
            let (had, has) = (before.has(chunk), now.has(chunk));
            if had == has {
                continue;
            }
            let wanted = self.remove(chunk);
            if let Some(rarity) = self.rarity.get_mut(chunk as usize) {
                *rarity = if has {
                    *rarity + 1
                } else {
                    rarity.saturating_sub(1)
                };
            }
            if wanted {
                self.insert(chunk);
            }
        }
    }

    /// How many of these are wanted.
    pub(super) fn useful(&self, have: &Bitfield) -> u32 {
        let both = self.wanted.as_bytes().iter().zip(have.as_bytes());
        both.map(|(wanted, had)| (wanted & had).count_ones()).sum()
    }

    /// The rarest of these that is wanted.
    pub(super) fn rarest_of(&self, have: &Bitfield) -> Option<u32> {
        self.order
            .iter()
            .map(|(_, _, chunk)| *chunk)
            .find(|chunk| have.has(*chunk))
    }
}
