//! Every bound and every time of the register, with its reason.

use std::time::Duration;

/// Members that vote on a key: the closest ones that are ready. `n` of the design.
pub const WITNESSES: usize = 9;

/// Receipts that make a certificate where there are enough members. `q` of the design.
pub const QUORUM: usize = 7;

/// How far a claim goes down the list of closest members for [`WITNESSES`] that answer. A grid of no more members votes
/// as a whole.
pub const CANDIDATES: usize = 13;

/// Members closer to a key than a witness beyond which that witness does not vote: two more than the witnesses, for
/// views that differ. A claimant that means no good chooses whom it asks; any two quorums of seven among the same
/// eleven share three, one of whom is honest where two lie.
pub const REACH: usize = 11;

/// Members of a large grid that exchange what they know of each other's keys. As many as a look-up returns.
pub const NEAR: usize = 20;

/// Bytes of one message: sixteen full certificates of nine credentials each, and some.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Bytes of a credential, as `identity` bounds it.
pub const MAX_CREDENTIAL: usize = 700;

/// Receipts in one certificate: a majority of the largest grid that still votes as a whole.
pub const MAX_RECEIPTS: usize = 20;

/// Keys a witness keeps. In a grid of 1000 members each has about 18; the rest is room for races and hostile claims.
pub const MAX_KEYS: usize = 8192;

/// Addresses that one holder may have leased within the life of a lease, and prefixes: the one that it has, and those that
/// it lost to others or left behind with an erased disk.
pub const MAX_LEASES_PER_HOLDER: usize = 4;

/// Keys a witness grants to one holder at once: an address, a name, a prefix, a router, and candidates given up within
/// ten seconds. As many releases of one holder are remembered.
pub const MAX_KEYS_PER_HOLDER: usize = 32;

/// Of these, keys of prefixes: a grid has few of them, and a member that means no good could hold all by claims that
/// it repeats every few seconds.
pub const MAX_PREFIX_KEYS_PER_HOLDER: usize = 8;

/// Members remembered. Beyond these only connected ones count.
pub const MAX_MEMBERS: usize = 4096;

/// Members named in one message, each with its credential.
pub const MAX_TOLD: usize = 64;

/// Credentials kept, 700 bytes each: 1.4 MiB.
pub const MAX_CREDENTIALS: usize = 2048;

/// Keys named in one page of state or one offer.
pub const MAX_SUMMARIES: usize = 512;

/// Certificates in one message: 16 of nine receipts with credentials are about 130 KiB.
pub const MAX_HANDED: usize = 16;

/// Requests under way. A renewal has 18, and as many for a prefix; look-ups have at most nine each.
pub const MAX_PENDING: usize = 8192;

/// Look-ups under way. A node that starts talks to a few tens of others.
pub const MAX_SEARCHES: usize = 512;

/// Outputs that wait for the driver, which takes all of them after each input.
pub const MAX_OUTPUTS: usize = 32 * 1024;

/// Sets that a replica keeps.
pub const MAX_SETS: usize = 64;

/// Publishers of one set: more managers than any grid has, and all of them fit into one message.
pub const MAX_PUBLISHERS: usize = 128;

/// Sets that one member publishes in.
pub const MAX_SETS_PER_PUBLISHER: usize = 8;

/// Bytes of a set's name.
pub const MAX_SET_NAME: usize = 64;

/// Bytes of a value in a set.
pub const MAX_SET_VALUE: usize = 1024;

/// The longest life of an entry of a set, whatever its publisher wishes.
pub const MAX_SET_TTL: Duration = Duration::from_secs(600);

/// Keys of which the last certificate used is remembered, about 1 KiB each: more than a node talks to in half an hour.
pub const MAX_FENCED: usize = 1024;

/// Instances of a holder remembered as superseded or refused, per key.
pub const MAX_INSTANCES: usize = 8;

/// How far clocks may be apart before certificates are refused for their times; the same as for credentials.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// How long a member that was not heard of still counts in the quorum of a small grid.
pub const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// Candidates drawn at random before the range is scanned.
pub const RANDOM_ATTEMPTS: u32 = 8;

/// Addresses tried in a scan before the range is called full, or blocks. A range of /22 or longer is scanned whole.
pub const SCAN: u32 = 1024;

/// Times that a fixed address or prefix is tried again after a split vote before the claim fails.
pub const FIXED_TRIES: u32 = 10;

/// Times at which the register acts. The defaults are the design's; tests shorten some.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Timings {
    /// The first grant of what is leased: short, so that a lost race or a crash does not block it for long.
    pub first_ttl: Duration,
    /// The grant on a certificate, and of a name, at most.
    pub ttl: Duration,
    /// Between renewals. Must be well below `ttl`.
    pub renew_every: Duration,
    /// How long an earlier instance has to speak up before a later one replaces it.
    pub probation: Duration,
    /// After this a request counts as lost.
    pub request_timeout: Duration,
    /// Before something that failed is tried again.
    pub retry: Duration,
    /// How long a restarted witness waits for others before it relies on its own store.
    pub patience: Duration,
    /// From a change of the membership to passing certificates on, so that a burst of changes costs one pass.
    pub handover: Duration,
    /// How long a member is known before certificates have to count it.
    pub settle: Duration,
    /// The life of an entry of a set.
    pub set_ttl: Duration,
    /// Between two renewals of an entry.
    pub set_renew: Duration,
    /// Between two readings of a watched set.
    pub set_poll: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            first_ttl: secs(10),
            ttl: secs(30 * 60),
            renew_every: secs(5 * 60),
            probation: secs(2),
            request_timeout: secs(2),
            retry: secs(1),
            patience: secs(5),
            handover: secs(1),
            settle: secs(60),
            set_ttl: secs(180),
            set_renew: secs(60),
            set_poll: secs(60),
        }
    }
}
