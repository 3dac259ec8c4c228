//! What the overlay counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Refusal;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the start of the overlay; those named `*_now` are what is at this moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// The numbers by name, for an exporter.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Exchanges of credentials in which both sides admitted each other.
    admitted,
    /// Peers that this node refused for their credential.
    refused_credentials,
    /// Peers that sent something else than a credential, or nothing in time.
    refused_garbage,
    /// Peers that refused this node.
    refused_by_remote,
    /// Incoming connections that failed before any credential was shown (strangers, scanners, other grids).
    failed_handshakes,
    /// Members cut off because their credential expired or was revoked while they were connected.
    expelled,
    /// Members connected now.
    members_now,
    /// Connections now, direct and relayed.
    connections_now,
    /// Relayed connections now.
    relayed_now,
    /// Places reserved on relays now.
    reservations_now,
    /// Dials begun.
    dials,
    /// Dials that reached nobody.
    dial_failures,
    /// Relayed connections that hole punching replaced by a direct one.
    punched,
    /// Attempts at hole punching that were given up.
    punch_failures,
    /// Requests sent.
    requests_sent,
    /// Requests that failed.
    requests_failed,
    /// Requests from members handed to the caller.
    requests_received,
    /// Messages published to all.
    gossip_sent,
    /// Messages of others handed to the caller.
    gossip_received,
    /// Connections closed because probes went unanswered.
    dead_connections,
    /// Reports by other members of somebody who may be gone.
    suspicions,
    /// Requests, messages and reports dropped because a queue was full.
    dropped,
    /// Messages of members that could not be decoded.
    malformed,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn set(gauge: &AtomicU64, value: usize) {
        gauge.store(value as u64, Ordering::Relaxed);
    }

    pub(crate) fn admitted(&self) {
        Self::add(&self.admitted);
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        Self::add(match refusal {
            Refusal::Credential(aerie_identity::Rejection::Malformed(_))
            | Refusal::Oversized { .. }
            | Refusal::Stalled
            | Refusal::Broken(_) => &self.refused_garbage,
            Refusal::Credential(_) | Refusal::KeyMismatch | Refusal::NotAdmitted => &self.refused_credentials,
            Refusal::ByRemote(_) => &self.refused_by_remote,
            Refusal::Handshake(_) => &self.failed_handshakes,
        });
    }
}
