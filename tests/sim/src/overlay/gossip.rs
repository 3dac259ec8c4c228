//! What is told to all members, and by whom it was heard.

use std::cell::RefCell;

/// A message to all members. Its copies share it, so that who has heard it is forgotten when none is under way.
#[derive(Debug)]
pub(crate) struct Gossip {
    pub(crate) author: usize,
    pub(crate) number: u64,
    pub(crate) bytes: Vec<u8>,
    /// By node, the start of it that heard this last; starts count from one.
    heard: RefCell<Vec<u64>>,
}

impl Gossip {
    pub(crate) fn new(author: usize, number: u64, bytes: Vec<u8>) -> Self {
        Self {
            author,
            number,
            bytes,
            heard: RefCell::default(),
        }
    }

    /// This start of a node hears the message. Whether that is news to it.
    pub(crate) fn is_news_to(&self, node: usize, start: u64) -> bool {
        let mut heard = self.heard.borrow_mut();
        if heard.len() <= node {
            heard.resize(node + 1, 0);
        }
        std::mem::replace(&mut heard[node], start) != start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_news_to_each_start_of_a_node_once() {
        let gossip = Gossip::new(0, 1, Vec::new());
        assert!(gossip.is_news_to(3, 1) && !gossip.is_news_to(3, 1));
        assert!(gossip.is_news_to(1, 1));
        assert!(gossip.is_news_to(3, 2) && !gossip.is_news_to(3, 2));
    }
}
