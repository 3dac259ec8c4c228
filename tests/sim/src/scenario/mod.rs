//! Whole runs of the register: each plays a course of faults that follows from its seed, and checks what is promised.

mod churn;
mod halves;
mod herd;
mod liars;
mod mixed;

use std::time::Duration;

use aerie_types::VirtualRange;

use crate::overlay::Routing;
use crate::tally::Tally;
use crate::world::World;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A course of faults, and what must hold in it.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it plays and checks.
    pub about: &'static str,
    /// How many nodes it has unless told otherwise.
    pub nodes: usize,
    /// With fewer nodes it makes no sense.
    pub fewest: usize,
    /// How its nodes find each other unless told otherwise.
    pub routing: Routing,
    /// Whether its nodes have views that no overlay has.
    pub oracle_only: bool,
    play: fn(u64, usize, Routing) -> World,
}

/// Every scenario.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "mixed",
        about: mixed::ABOUT,
        nodes: 60,
        fewest: 3,
        // Thousands of seeds of it are played, and Kademlia costs twice the time.
        routing: Routing::Oracle,
        oracle_only: false,
        play: mixed::play,
    },
    Scenario {
        name: "herd24",
        about: herd::ABOUT_24,
        nodes: 250,
        fewest: 10,
        routing: Routing::Kademlia,
        oracle_only: false,
        play: herd::play_24,
    },
    Scenario {
        name: "herd16",
        about: herd::ABOUT_16,
        nodes: 10_000,
        fewest: 10,
        routing: Routing::Kademlia,
        oracle_only: false,
        play: herd::play_16,
    },
    Scenario {
        name: "halves",
        about: halves::ABOUT,
        nodes: 1000,
        fewest: 80,
        routing: Routing::Kademlia,
        oracle_only: false,
        play: halves::play,
    },
    Scenario {
        name: "churn",
        about: churn::ABOUT,
        nodes: 1000,
        fewest: 60,
        routing: Routing::Kademlia,
        oracle_only: false,
        play: churn::play,
    },
    Scenario {
        name: "liars",
        about: liars::ABOUT,
        nodes: 30,
        fewest: 20,
        routing: Routing::Oracle,
        oracle_only: true,
        play: liars::play,
    },
    Scenario {
        name: "revenant",
        about: liars::ABOUT_REVENANT,
        nodes: 30,
        fewest: 20,
        routing: Routing::Oracle,
        oracle_only: true,
        play: liars::play_revenant,
    },
    Scenario {
        name: "chooser",
        about: liars::ABOUT_CHOOSER,
        nodes: 40,
        fewest: 30,
        routing: Routing::Oracle,
        oracle_only: true,
        play: liars::play_chooser,
    },
];

/// What came of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed of the run.
    pub seed: u64,
    /// A hash over everything that happened; two runs of one seed have the same.
    pub trace: u64,
    /// Events of the run.
    pub steps: u64,
    /// How much virtual time it took.
    pub simulated: Duration,
    /// What was violated.
    pub violations: Vec<String>,
    /// What happened.
    pub tally: Tally,
}

impl Scenario {
    /// The scenario of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Plays it once.
    #[must_use]
    pub fn run(&self, seed: u64, nodes: usize, routing: Routing) -> Report {
        let world = (self.play)(seed, nodes, routing);
        let (seed, steps, trace) = world.trace();
        let mut tally = world.tally.clone();
        tally.torn = world.checker.double_grants();
        Report {
            seed,
            trace,
            steps,
            simulated: world.now(),
            violations: world.checker.violations().to_vec(),
            tally,
        }
    }
}

/// The range of a scenario.
#[expect(clippy::expect_used, reason = "the scenarios' ranges are constants")]
pub(crate) fn range(text: &str) -> VirtualRange {
    text.parse().expect("a range")
}
