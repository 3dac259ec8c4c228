//! What happens when: a queue by time, and by the order of its making where times are the same.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// What stands in the heap, which moves its entries about: not what happens itself, but its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Duration,
    order: u64,
    place: usize,
}

/// A queue of what is to come.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<Entry>>,
    order: u64,
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            order: 0,
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Queue<T> {
    pub(crate) fn push(&mut self, at: Duration, what: T) {
        self.order += 1;
        let order = self.order;
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place] = Some(what);
                place
            }
            None => {
                self.places.push(Some(what));
                self.places.len() - 1
            }
        };
        self.heap.push(Reverse(Entry { at, order, place }));
    }

    /// When the next is due.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// The next one, with its time and its number.
    pub(crate) fn pop(&mut self) -> Option<(Duration, u64, T)> {
        let Reverse(Entry { at, order, place }) = self.heap.pop()?;
        let what = self.places[place].take()?;
        self.free.push(place);
        Some((at, order, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_at_one_time_comes_in_the_order_of_its_making() {
        let mut queue = Queue::default();
        for (at, what) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            queue.push(Duration::from_secs(at), what);
        }
        let all: String = std::iter::from_fn(|| queue.pop().map(|(_, _, what)| what)).collect();
        assert_eq!(all, "abcd");
    }
}
