//! Which chunks somebody has.

/// A set of chunks of an image, as many bits as it has chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitfield {
    bytes: Vec<u8>,
    length: u32,
    ones: u32,
}

impl Bitfield {
    /// No chunk of so many.
    #[must_use]
    pub fn empty(length: u32) -> Self {
        Self {
            bytes: vec![0; length.div_ceil(8) as usize],
            length,
            ones: 0,
        }
    }

    /// All chunks of so many.
    #[must_use]
    pub fn full(length: u32) -> Self {
        let mut all = Self::empty(length);
        for chunk in 0..length {
            all.insert(chunk);
        }
        all
    }

    /// Reads what [`Self::as_bytes`] gave. `None` if it is not of so many chunks.
    #[must_use]
    pub fn from_bytes(bytes: &[u8], length: u32) -> Option<Self> {
        if bytes.len() != length.div_ceil(8) as usize {
            return None;
        }
        let ones = bytes.iter().map(|byte| byte.count_ones()).sum();
        let beyond = match (bytes.last(), length % 8) {
            (Some(last), used) if used != 0 => last & (0xff >> used) != 0,
            _ => false,
        };
        (!beyond).then(|| Self {
            bytes: bytes.to_vec(),
            length,
            ones,
        })
    }

    /// The bits, chunk 0 the most significant of the first byte; those beyond the last chunk are zero.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many chunks there are, had or not.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.length
    }

    /// Whether there are no chunks at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many chunks are had.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.ones
    }

    /// Whether all are.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.ones == self.length
    }

    /// Whether a chunk is had.
    #[must_use]
    pub fn has(&self, chunk: u32) -> bool {
        let byte = self.bytes.get((chunk / 8) as usize);
        byte.is_some_and(|byte| byte & (0x80 >> (chunk % 8)) != 0)
    }

    /// Adds a chunk. False if it was had, or there is no such chunk.
    pub fn insert(&mut self, chunk: u32) -> bool {
        if chunk >= self.length || self.has(chunk) {
            return false;
        }
        if let Some(byte) = self.bytes.get_mut((chunk / 8) as usize) {
            *byte |= 0x80 >> (chunk % 8);
            self.ones += 1;
        }
        true
    }

    /// Takes a chunk away. False if it was not had.
    pub fn remove(&mut self, chunk: u32) -> bool {
        if !self.has(chunk) {
            return false;
        }
        if let Some(byte) = self.bytes.get_mut((chunk / 8) as usize) {
            *byte &= !(0x80 >> (chunk % 8));
            self.ones -= 1;
        }
        true
    }

    /// The chunks that are had, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.length).filter(|chunk| self.has(*chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_stand_for_no_chunk_are_refused() {
        assert!(Bitfield::from_bytes(&[0xff, 0xc0], 10).unwrap().is_full());
        assert_eq!(Bitfield::from_bytes(&[0xff, 0xe0], 10), None);
        assert_eq!(Bitfield::from_bytes(&[0xff], 10), None);
        assert_eq!(Bitfield::from_bytes(&[0xff, 0, 0], 10), None);
    }

    #[test]
    fn what_is_inserted_is_had_until_it_is_removed() {
        let mut some = Bitfield::empty(10);
        assert!(some.insert(9) && !some.insert(9) && !some.insert(10));
        assert_eq!(some.iter().collect::<Vec<_>>(), [9]);
        assert_eq!(Bitfield::from_bytes(some.as_bytes(), 10), Some(some.clone()));
        assert!(some.remove(9) && !some.remove(9) && some.count() == 0);
    }
}
