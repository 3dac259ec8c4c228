//! What a world is made of: its members, its bounds, and what may happen in it.

use std::time::Duration;

use aerie_dht_proto::{QuorumRule, Timings, Weaken};
use aerie_sim::peer;
use aerie_types::{Key, PeerId, VirtualAddr, VirtualRange};

use crate::state::{Budget, State};
use crate::step::{Step, key_of};

/// A bounded world. The checker explores every order of everything that may happen in it.
#[derive(Debug, Clone)]
pub struct World {
    /// By which it is chosen.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Members, up or not.
    pub nodes: usize,
    /// Members that run from the beginning; the others join.
    pub up: usize,
    /// The numbers of the quorum.
    pub rule: QuorumRule,
    /// Who claims the contested address, and how often.
    pub claimants: &'static [usize],
    /// Attempts of each claimant.
    pub claims: u8,
    /// Who may crash and be started again.
    pub mortal: &'static [usize],
    /// Who looks the address up.
    pub lookers: &'static [usize],
    /// Look-ups of each.
    pub look_ups: u8,
    /// Pairs that are not connected, from when the exploration begins.
    pub apart: &'static [(usize, usize)],
    /// The members on one side of a partition.
    pub side: &'static [usize],
    /// What may go wrong.
    pub budget: Budget,
    /// The kinds of requests about the contested key whose delivery is explored.
    pub kinds: &'static [&'static str],
    /// The kinds of requests the delivery of whose replies is explored.
    pub replies: &'static [&'static str],
    /// What has happened, without disorder, when the exploration begins.
    pub prelude: fn(&mut Step<'_>),
    /// How long the exploration lasts, in milliseconds of virtual time.
    pub lasts: u64,
    /// How much time passes in one step where nothing is sent, in milliseconds.
    pub stride: u64,
    /// Steps after which a run is cut off.
    pub depth: usize,
    /// Disks break their promise.
    pub lazy: bool,
    /// A rule of the core that is left out.
    pub weaken: Option<Weaken>,
    pub(crate) peers: Vec<PeerId>,
    pub(crate) addr: VirtualAddr,
    pub(crate) key: Key,
    pub(crate) range: VirtualRange,
}

/// Five witnesses of which four are needed: views that differ by d members and f liars are borne as long as
/// d + f <= 2. The relations of the numbers are those of nine, seven and thirteen.
pub const FOUR_OF_FIVE: QuorumRule = QuorumRule {
    witnesses: 5,
    quorum: 4,
    candidates: 7,
    reach: 7,
    near: 11,
};

/// What every world is, until it says otherwise.
impl Default for World {
    #[expect(clippy::expect_used, reason = "a range that is written here")]
    fn default() -> Self {
        let range: VirtualRange = "10.9.0.0/28".parse().expect("a range");
        let addr = range.nth(4);
        Self {
            name: "",
            about: "",
            nodes: 5,
            up: 5,
            rule: FOUR_OF_FIVE,
            claimants: &[0, 1],
            claims: 2,
            mortal: &[],
            lookers: &[],
            look_ups: 0,
            apart: &[],
            side: &[],
            budget: Budget::default(),
            kinds: &["claim", "release"],
            replies: &["claim"],
            prelude: |_| {},
            lasts: 3_000,
            stride: 1_000,
            depth: 60,
            lazy: false,
            weaken: None,
            peers: Vec::new(),
            addr,
            key: key_of(addr),
            range,
        }
    }
}

impl World {
    /// The times of every world: the design's, with a lease of a minute in the place of half an hour.
    pub(crate) fn timings(&self) -> Timings {
        Timings {
            ttl: Duration::from_secs(60),
            renew_every: Duration::from_secs(10),
            settle: Duration::from_secs(5),
            ..Timings::default()
        }
    }

    /// Whether two running nodes have a connection.
    pub(crate) fn connected(&self, state: &State, one: usize, other: usize) -> bool {
        let cut = state.torn && self.side.contains(&one) != self.side.contains(&other);
        let apart = self.apart.contains(&(one, other)) || self.apart.contains(&(other, one));
        !(cut || apart && state.begun)
    }

    /// Fixes what follows from the rest. Call it before the world is explored.
    #[must_use]
    pub(crate) fn ready(mut self) -> Self {
        self.peers = (0..self.nodes).map(peer).collect();
        self
    }
}
