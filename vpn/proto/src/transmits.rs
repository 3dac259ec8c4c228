//! A batch of datagrams to send, in one piece of memory.
//!
//! Packets are sealed straight into the batch. Datagrams to one address stand side by side, so that an engine
//! with segmentation offload can hand a whole run of equal length to the kernel at once ([`Transmits::runs`]).
//! The caller owns the batch and keeps its memory from one wake-up to the next.
//!
//! A datagram may be one that has to stay whole ([`Transmits::push_whole`]): no host and no router may cut it into
//! fragments. Such a one is a run of its own.

use aerie_types::UnderlayAddr;

/// Datagrams to send, in order.
#[derive(Debug, Default)]
pub struct Transmits {
    /// As long as the longest batch so far, so that no byte is written twice.
    bytes: Vec<u8>,
    used: usize,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    to: UnderlayAddr,
    start: usize,
    len: usize,
    whole: bool,
}

/// Datagrams to one address that lie side by side: all as long as the first, but that the last may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// Where to.
    pub to: UnderlayAddr,
    /// All of them.
    pub bytes: &'a [u8],
    /// Length of each but the last.
    pub segment: usize,
    /// Whether it is one datagram that must not be cut into fragments. What the host's own link does not take is to
    /// be told by [`Tunnels::refused`](crate::Tunnels::refused).
    pub whole: bool,
}

/// What the kernel takes in one send with UDP_SEGMENT: 64 segments and an IPv4 datagram's length.
const RUN_BYTES: usize = 65_507;
/// The memory grows in such steps: some tens of full packets.
const GROWTH: usize = 1 << 16;

impl Transmits {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The number of datagrams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Bytes of all datagrams.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// Forgets the datagrams, keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.segments.clear();
    }

    /// Adds a datagram.
    pub fn push(&mut self, to: UnderlayAddr, datagram: &[u8]) {
        self.push_with(to, datagram.len(), |slot| {
            slot.copy_from_slice(datagram);
            true
        });
    }

    /// Adds a datagram of `len` bytes that `fill` writes, all of them; what lies there before is of no meaning.
    /// Nothing is added where `fill` says `false`.
    pub fn push_with(&mut self, to: UnderlayAddr, len: usize, fill: impl FnOnce(&mut [u8]) -> bool) -> bool {
        self.add(to, len, false, fill)
    }

    /// Adds a datagram as [`Transmits::push_with`] does, which must not be cut into fragments.
    pub(crate) fn push_whole(
        &mut self,
        to: UnderlayAddr,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        self.add(to, len, true, fill)
    }

    fn add(
        &mut self,
        to: UnderlayAddr,
        len: usize,
        whole: bool,
        fill: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        let start = self.used;
        let end = start + len;
        if self.bytes.len() < end {
            self.bytes.resize(end.next_multiple_of(GROWTH), 0);
        }
        let filled = fill(&mut self.bytes[start..end]);
        if filled {
            self.segments.push(Segment {
                to,
                start,
                len,
                whole,
            });
            self.used = end;
        }
        filled
    }

    /// Adds all of another batch, which is empty afterwards.
    pub fn append(&mut self, other: &mut Self) {
        if self.is_empty() {
            std::mem::swap(self, other);
        }
        for segment in &other.segments {
            let datagram = &other.bytes[segment.start..segment.start + segment.len];
            self.add(segment.to, segment.len, segment.whole, |slot| {
                slot.copy_from_slice(datagram);
                true
            });
        }
        other.clear();
    }

    /// The datagrams one by one.
    pub fn iter(&self) -> impl Iterator<Item = (UnderlayAddr, &[u8])> {
        self.segments.iter().map(|segment| {
            (
                segment.to,
                &self.bytes[segment.start..segment.start + segment.len],
            )
        })
    }

    /// The datagrams in runs of at most `max` segments.
    pub fn runs(&self, max: usize) -> impl Iterator<Item = Run<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = *self.segments.get(at)?;
            let mut end = first.start + first.len;
            at += 1;
            let mut count = 1;
            let mut closed = false;
            while let Some(next) = self.segments.get(at) {
                let fits = next.to == first.to
                    && !first.whole
                    && !next.whole
                    && !closed
                    && count < max
                    && next.len <= first.len
                    && next.len > 0
                    && end - first.start + next.len <= RUN_BYTES;
                if !fits {
                    break;
                }
                closed = next.len < first.len;
                end += next.len;
                count += 1;
                at += 1;
            }
            Some(Run {
                to: first.to,
                bytes: &self.bytes[first.start..end],
                segment: first.len,
                whole: first.whole,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> UnderlayAddr {
        UnderlayAddr(([192, 0, 2, 1], port).into())
    }

    #[test]
    fn a_run_ends_after_a_shorter_datagram_or_at_another_address() {
        let mut batch = Transmits::new();
        for (port, len) in [(1, 10), (1, 10), (1, 4), (1, 10), (2, 10), (2, 12)] {
            batch.push(addr(port), &vec![7; len]);
        }
        let runs: Vec<_> = batch
            .runs(64)
            .map(|run| (run.to.0.port(), run.bytes.len(), run.segment))
            .collect();
        assert_eq!(runs, [(1, 24, 10), (1, 10, 10), (2, 10, 10), (2, 12, 12)]);
        assert_eq!(batch.runs(1).count(), 6);
    }

    #[test]
    fn a_datagram_that_must_stay_whole_is_a_run_of_its_own() {
        let mut batch = Transmits::new();
        let mut other = Transmits::new();
        batch.push(addr(1), b"one");
        other.push_whole(addr(1), 3, |slot| {
            slot.copy_from_slice(b"two");
            true
        });
        other.push(addr(1), b"six");
        batch.append(&mut other);
        let runs: Vec<_> = batch.runs(64).map(|run| (run.bytes, run.whole)).collect();
        assert_eq!(runs, [(&b"one"[..], false), (b"two", true), (b"six", false)]);
    }

    #[test]
    fn a_datagram_that_could_not_be_filled_leaves_no_trace() {
        let mut batch = Transmits::new();
        batch.push(addr(1), b"one");
        assert!(!batch.push_with(addr(1), 9, |_| false));
        let mut other = Transmits::new();
        other.push(addr(2), b"two");
        batch.append(&mut other);
        let all: Vec<_> = batch.iter().map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(all, [b"one".to_vec(), b"two".to_vec()]);
        assert!(other.is_empty());
    }
}
