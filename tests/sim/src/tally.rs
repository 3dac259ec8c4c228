//! What happened in a run, counted: how often each kind of fault struck, and what came of it.

use std::time::Duration;

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident: $text:literal),* $(,)?) => {
        /// Counts of one run, or of many.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Tally {
            $($(#[$doc])* pub $name: u64,)*
            /// The times of claims from asking to holding, in virtual milliseconds.
            pub claims: Vec<u32>,
            /// The times from the healing of a partition until an address had one holder again, likewise.
            pub agreements: Vec<u32>,
        }

        impl Tally {
            /// Adds another run's counts.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
                self.claims.extend_from_slice(&other.claims);
                self.agreements.extend_from_slice(&other.agreements);
            }

            /// Every count with its name and what it counts.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $text, self.$name)),*]
            }
        }
    };
}

tally! {
    /// Messages of the register handed to the network.
    messages: "messages",
    /// Messages of Kademlia: `FIND_NODE` and its answer.
    finds: "messages of Kademlia",
    /// Questions of whom somebody is connected to, and their answers.
    questions: "questions about connections, and answers",
    /// Dials.
    dials: "dials",
    /// Messages that it lost.
    lost: "messages lost",
    /// Requests that it delivered twice.
    doubled: "requests doubled",
    /// Messages into a partition, or to a node that is down and not yet known to be.
    swallowed: "messages swallowed by a partition or a dead node",
    /// Partitions of which neither side reaches the other.
    partitions: "partitions, both ways",
    /// Partitions of which one side reaches the other.
    one_way: "partitions, one way",
    /// Partitions that healed.
    heals: "partitions healed",
    /// Nodes killed.
    crashes: "crashes",
    /// Starts with the store of before.
    restarts: "restarts with the store",
    /// Starts of a node whose store was lost.
    amnesias: "restarts without the store",
    /// Newcomers.
    joins: "joins",
    /// Clean leaves.
    leaves: "clean leaves",
    /// Nodes that stood still for a while.
    pauses: "pauses",
    /// Nodes whose wall clock is more than a second off.
    skewed: "clocks skewed",
    /// Nodes whose monotonic clock is too fast or too slow.
    drifting: "clocks drifting",
    /// Answers of lying witnesses.
    lies: "lies told",
    /// Claims begun.
    asked: "claims",
    /// Claims of one fixed address by several nodes at once.
    contested: "contested claims",
    /// Claims that got an address.
    held: "claims served",
    /// Claims refused for a reason that the claimant was told.
    refused: "claims refused",
    /// Claims of a prefix begun.
    routed: "claims of a prefix",
    /// Claims that got a prefix.
    routes: "prefixes leased",
    /// Renewals.
    renewed: "renewals",
    /// Leases that had ended before they were renewed.
    lapsed: "renewals after the end",
    /// Pairs of certificates from two sides of a partition (G3).
    torn: "double grants of a torn grid (G3)",
    /// Nodes that yielded an address to an older lease.
    yielded: "conflicts resolved",
    /// Live leases lost to a certificate of one that its holder had given up.
    revived: "live leases lost to one given up",
    /// Live leases lost without such a conflict.
    live_lost: "live leases lost",
    /// Look-ups of a held key.
    look_ups: "look-ups",
    /// Look-ups that found the holder.
    answered: "look-ups answered",
    /// Look-ups that found another one than the holder.
    misled: "look-ups misled",
}

impl Tally {
    /// The time of a claim that the given part of all claims did not exceed.
    #[must_use]
    pub fn claim_time(&self, part: f64) -> Option<Duration> {
        ranked(&self.claims, part)
    }

    /// The same of the times from a healing to one holder.
    #[must_use]
    pub fn agreement_time(&self, part: f64) -> Option<Duration> {
        ranked(&self.agreements, part)
    }
}

fn ranked(millis: &[u32], part: f64) -> Option<Duration> {
    let mut millis = millis.to_vec();
    millis.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a part of a length is one of its places"
    )]
    let place = (millis.len().saturating_sub(1) as f64 * part).round() as usize;
    let millis = millis.get(place)?;
    Some(Duration::from_millis((*millis).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_two_runs_add_up_and_their_claims_are_ranked_together() {
        let mut all = Tally {
            crashes: 2,
            claims: vec![30, 10],
            ..Tally::default()
        };
        let other = Tally {
            crashes: 3,
            claims: vec![20],
            agreements: vec![700],
            ..Tally::default()
        };
        all.add(&other);
        assert_eq!(all.crashes, 5);
        assert_eq!(all.claim_time(0.5), Some(Duration::from_millis(20)));
        assert_eq!(all.claim_time(1.0), Some(Duration::from_millis(30)));
        assert_eq!(all.agreement_time(0.5), Some(Duration::from_millis(700)));
        assert_eq!(Tally::default().claim_time(0.5), None);
    }
}
