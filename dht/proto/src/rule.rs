//! Who votes, and how many votes make a certificate.

use crate::lease::majority;
use crate::limits::{CANDIDATES, NEAR, QUORUM, REACH, WITNESSES};

/// The numbers of the register's quorums. All members of a grid must have the same.
///
/// The default is the design's; a model of the register runs with smaller ones, whose relations are the same: two
/// quorums among the same `reach` share a member (2q > reach), and two quorums of witnesses whose views differ by d
/// members share an honest one when f of them lie, as long as d + f <= 2q - n - 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuorumRule {
    /// Members that vote on a key: the closest ones that are ready.
    pub witnesses: usize,
    /// Receipts that make a certificate where there are enough members.
    pub quorum: usize,
    /// How far a claim goes down the list of closest members for witnesses that answer. A grid of no more members
    /// votes as a whole, by majority.
    pub candidates: usize,
    /// Connected members closer to a key than a witness beyond which that witness does not vote, in a grid that does
    /// not vote as a whole.
    pub reach: usize,
    /// Members of a large grid that exchange what they know of each other's keys.
    pub near: usize,
}

impl Default for QuorumRule {
    fn default() -> Self {
        Self {
            witnesses: WITNESSES,
            quorum: QUORUM,
            candidates: CANDIDATES,
            reach: REACH,
            near: NEAR,
        }
    }
}

impl QuorumRule {
    /// Receipts that a certificate needs when the largest count of members stated in it is `members`.
    #[must_use]
    pub fn receipts(&self, members: usize) -> usize {
        majority(members).min(self.quorum)
    }

    /// How many whole states a witness without a store has to merge before it votes, in a grid of so many members,
    /// itself included: one more than could all be strangers to a certificate that it signed and forgot.
    pub(crate) fn states(&self, members: usize) -> usize {
        if members > self.candidates {
            return self.witnesses - self.quorum + 1;
        }
        members - majority(members) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_without_a_store_hears_one_of_every_quorum_that_it_may_have_been_in() {
        let rule = QuorumRule::default();
        for members in 2..=CANDIDATES {
            let others = members - 1;
            let signed_with_it = majority(members) - 1;
            assert!(
                signed_with_it == 0 || rule.states(members) + signed_with_it > others,
                "{members}"
            );
            assert!(
                rule.states(members) <= others,
                "{members}: nobody could ever join"
            );
        }
        assert_eq!(rule.states(1000), 3);
    }
}
