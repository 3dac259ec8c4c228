//! The worlds, each with its bounds, and the weakenings, each with the world that finds it.

use aerie_dht_proto::{QuorumRule, Weaken};

use crate::checked::Order;
use crate::state::Budget;
use crate::world::{FOUR_OF_FIVE, World};

const NOTHING: Budget = Budget {
    losses: 0,
    doubles: 0,
    late: 0,
    crashes: 0,
    amnesias: 0,
    cuts: 0,
    releases: 0,
};

/// Every world.
#[must_use]
pub fn worlds() -> Vec<World> {
    vec![
        race(),
        crash(),
        amnesia(),
        join(),
        views(),
        partition(),
        given_back(),
    ]
}

/// Two claim one address of five members at the same time. One message is lost, one arrives twice, and once time
/// passes while messages are in flight.
fn race() -> World {
    World {
        name: "race",
        about: "two claimants, 4 of 5: one loss, one double, one late",
        budget: Budget {
            losses: 1,
            doubles: 1,
            late: 1,
            ..NOTHING
        },
        ..World::default()
    }
}

/// One holds the address by the least of majorities, since two members do not hear it; a witness of its crashes once
/// and is started again while another claims.
fn crash() -> World {
    World {
        name: "crash",
        about: "a holder by the least majority, a second claimant, one crash of a witness that keeps its disk",
        claimants: &[1],
        claims: 1,
        mortal: &[3],
        apart: &[(0, 1), (0, 4)],
        side: &[0, 2],
        budget: Budget {
            crashes: 1,
            cuts: 1,
            ..NOTHING
        },
        prelude: |step| step.acquire(0),
        replies: &[],
        stride: 6_000,
        lasts: 12_000,
        ..World::default()
    }
}

/// As `crash`, and the disk is lost.
fn amnesia() -> World {
    World {
        name: "amnesia",
        about: "a holder by the least majority, a second claimant, one crash of a witness that loses its disk",
        budget: Budget {
            amnesias: 1,
            cuts: 1,
            ..NOTHING
        },
        ..crash()
    }
}

/// Three members, of which two hold the address's quorum, and two that join.
fn join() -> World {
    World {
        name: "join",
        about: "a holder by two of three, two members join, the third claims: one loss",
        up: 3,
        claimants: &[1],
        apart: &[(0, 1)],
        budget: Budget { losses: 1, ..NOTHING },
        prelude: |step| step.acquire(0),
        replies: &[],
        lasts: 8_000,
        ..World::default()
    }
}

/// Eight members, so that the five closest vote; the two claimants' views of them differ by two.
fn views() -> World {
    World {
        name: "views",
        about: "eight members, 4 of the 5 closest, views that differ by two members, one loss",
        nodes: 8,
        up: 8,
        budget: Budget { losses: 1, ..NOTHING },
        claimants: &[0, 4],
        claims: 1,
        replies: &[],
        apart: &[(0, 1), (4, 3)],
        ..World::default()
    }
}

/// Five members torn into three and two, and healed, with a claimant on either side.
fn partition() -> World {
    World {
        name: "partition",
        about: "five members torn into three and two and healed at any moment, a claimant on either side",
        side: &[0, 2],
        budget: Budget { cuts: 1, ..NOTHING },
        lasts: 5_000,
        ..World::default()
    }
}

/// A holder gives its lease back, which not everybody hears; another takes it, and a third looks it up.
fn given_back() -> World {
    World {
        name: "given-back",
        about: "a lease given back of which a witness does not hear, its successor, and two look-ups",
        nodes: 8,
        up: 8,
        claimants: &[1],
        lookers: &[4],
        look_ups: 2,
        kinds: &["claim", "look-up", "hand-over"],
        replies: &[],
        prelude: |step| {
            step.acquire(0);
            step.deafen(Some(("release", 3)));
            step.release(0);
            step.deafen(None);
        },
        lasts: 2_000,
        ..World::default()
    }
}

/// A deliberate fault.
#[derive(Debug, Clone, Copy)]
pub struct Weakening {
    /// By which it is chosen.
    pub name: &'static str,
    /// In which order it is searched for.
    pub order: Order,
    /// The world that finds it.
    pub world: fn() -> World,
}

/// Every weakening. Their worlds begin shortly before the moment at which the rule matters.
pub const WEAKENINGS: [Weakening; 5] = [
    Weakening {
        name: "quorum-3-of-5",
        order: Order::Chance,
        world: || World {
            rule: QuorumRule {
                quorum: 3,
                ..FOUR_OF_FIVE
            },
            budget: NOTHING,
            lasts: 0,
            ..views()
        },
    },
    Weakening {
        name: "answer-before-persisting",
        order: Order::Breadth,
        world: || World {
            lazy: true,
            budget: NOTHING,
            prelude: |step| {
                step.acquire(0);
                step.settle();
                step.crash(3, false);
                step.relink(|state| state.torn = true);
                step.start(3);
            },
            ..crash()
        },
    },
    Weakening {
        name: "no-readiness-rule",
        order: Order::Breadth,
        world: || World {
            weaken: Some(Weaken::NoReadinessRule),
            budget: NOTHING,
            prelude: |step| {
                step.acquire(0);
                step.settle();
                step.crash(3, true);
                step.relink(|state| state.torn = true);
                step.start(3);
            },
            ..amnesia()
        },
    },
    Weakening {
        name: "new-witness-ignores-certificates",
        order: Order::Breadth,
        world: || World {
            weaken: Some(Weaken::NewWitnessIgnoresCertificates),
            budget: NOTHING,
            prelude: |step| {
                step.acquire(0);
                step.settle();
                step.start(3);
            },
            ..join()
        },
    },
    Weakening {
        name: "no-fencing",
        order: Order::Chance,
        world: || World {
            weaken: Some(Weaken::NoFencing),
            ..given_back()
        },
    },
];
