//! Counters, above all of what was refused or dropped.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What the register counted since its start.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Every counter with its name.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

stats! {
    /// Requests of members that were read.
    requests,
    /// Messages that could not be read, or that no honest member sends.
    malformed,
    /// Answers that fit no request, or came too late.
    stray_answers,
    /// Grants given.
    granted,
    /// Claims refused.
    refused,
    /// Claims not voted on because this witness is not ready.
    abstained,
    /// Certificates that do not prove what they say.
    bad_certificates,
    /// Receipts whose signature or terms are wrong.
    bad_receipts,
    /// Credentials that do not make a member.
    bad_credentials,
    /// Claims of holders that have as many addresses as one may have.
    over_quota,
    /// Claims for keys that are not this witness's.
    too_far,
    /// Later instances refused.
    clones,
    /// Two valid certificates met.
    conflicts,
    /// Certificates that survive this node's own and whose holder has given the key up.
    given_up,
    /// Certificates refused since a later one of the same key was used already.
    fenced,
    /// Certificates taken over from other witnesses.
    handed_over,
    /// Entries of sets refused: wrong role, wrong signature, over a bound.
    bad_entries,
    /// Something was dropped since a bound was reached.
    over_bound,
    /// The store failed to write.
    store_failures,
}
