//! A node's connections.

/// A node's connections with their numbers, by the node at their other end: two with one node where both dialled at the
/// same time, or where one is dead and that is not noticed yet. Those with one node stand in the order of their making.
///
/// A node has about as many as fit into a few lines of the processor's memory, and each message looks for one of them.
#[derive(Debug, Default)]
pub(crate) struct Links(Vec<(usize, u64)>);

impl Links {
    /// The connections with a node.
    pub(crate) fn with(&self, other: usize) -> &[(usize, u64)] {
        let begin = self.0.partition_point(|(one, _)| *one < other);
        let rest = &self.0[begin..];
        let end = rest.iter().position(|(one, _)| *one != other);
        &rest[..end.unwrap_or(rest.len())]
    }

    pub(crate) fn has(&self, other: usize) -> bool {
        self.0.binary_search_by_key(&other, |(one, _)| *one).is_ok()
    }

    /// Adds a connection. Whether it is the first one with that node.
    pub(crate) fn add(&mut self, other: usize, connection: u64) -> bool {
        let end = self.0.partition_point(|(one, _)| *one <= other);
        let is_first = end == 0 || self.0[end - 1].0 != other;
        self.0.insert(end, (other, connection));
        is_first
    }

    /// Takes a connection away. Whether it was there and the last one with that node.
    pub(crate) fn remove(&mut self, other: usize, connection: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|one| *one != (other, connection));
        self.0.len() < before && !self.has(other)
    }

    /// All of them: the nodes at the other ends, and the connections' numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.0.iter().copied()
    }

    /// The nodes at the other ends.
    pub(crate) fn others(&self) -> Vec<usize> {
        let mut others: Vec<usize> = self.0.iter().map(|(other, _)| *other).collect();
        others.dedup();
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_connection_with_a_node_is_neither_its_first_nor_does_the_node_go_with_it() {
        let mut links = Links::default();
        assert!(links.add(5, 9) && links.add(3, 2));
        assert!(!links.add(5, 4));
        assert_eq!(links.with(5), [(5, 9), (5, 4)]);
        assert_eq!(links.others(), [3, 5]);
        assert!(!links.remove(5, 9) && links.has(5));
        assert!(!links.remove(5, 9) && !links.remove(4, 4));
        assert!(links.remove(5, 4) && !links.has(5));
        assert_eq!(links.iter().collect::<Vec<_>>(), [(3, 2)]);
    }
}
