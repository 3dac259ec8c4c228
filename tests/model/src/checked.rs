//! The worlds as the model checker sees them: first state, what may happen, what follows, what must always hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_dht_proto::Kind;
use stateright::{Checker, HasDiscoveries, Model, Property, UniformChooser};

use crate::disk::Disk;
use crate::state::{Budget, Slot, State};
use crate::step::Step;
use crate::world::World;

/// How long the members get to find each other and to settle before the exploration begins.
const WARM_UP: u64 = 20_000;

/// From which the random choices come.
const SEED: u64 = 1;

/// What may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A message arrives.
    Deliver(Flight),
    /// A message is lost.
    Lose(Flight),
    /// A message arrives, and a copy of it stays in flight.
    Double(Flight),
    /// Time passes.
    Tick,
    /// A node claims the contested address.
    Claim(usize),
    /// A holder gives its lease back.
    Release(usize),
    /// A node looks up who has the address.
    LookUp(usize),
    /// A node is killed; its disk stays.
    Crash(usize),
    /// A node is killed and its disk is lost.
    Forget(usize),
    /// A node that is down is started, or joins.
    Start(usize),
    /// The world is torn in two.
    Tear,
    /// The world is whole again.
    Heal,
}

/// A message in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flight {
    at: usize,
    kind: &'static str,
    reply: bool,
    from: u8,
    to: u8,
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.beginning()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        let budget = &state.budget;
        for (at, message) in state.flight.iter().enumerate() {
            if at > 0 && state.flight[at - 1].digest == message.digest {
                continue;
            }
            let (kind, reply, from, to) = (message.kind, message.is_reply(), message.from, message.to);
            let flight = Flight {
                at,
                kind,
                reply,
                from,
                to,
            };
            actions.push(Action::Deliver(flight));
            if budget.losses > 0 {
                actions.push(Action::Lose(flight));
            }
            if budget.doubles > 0 && !reply {
                actions.push(Action::Double(flight));
            }
        }
        for (index, slot) in state.nodes.iter().enumerate() {
            let Some(core) = &slot.core else {
                actions.push(Action::Start(index));
                continue;
            };
            let first = slot.claims == self.claims;
            if slot.claims > 0 && core.lease(Kind::Addr).is_none() && (first || state.flight.is_empty()) {
                actions.push(Action::Claim(index));
            }
            if budget.releases > 0 && slot.held.is_some() {
                actions.push(Action::Release(index));
            }
            if slot.look_ups > 0 {
                actions.push(Action::LookUp(index));
            }
            if self.mortal.contains(&index) {
                if budget.crashes > 0 {
                    actions.push(Action::Crash(index));
                }
                if budget.amnesias > 0 {
                    actions.push(Action::Forget(index));
                }
            }
        }
        if state.torn {
            actions.push(Action::Heal);
        } else if budget.cuts > 0 {
            actions.push(Action::Tear);
        }
        if state.flight.is_empty() || budget.late > 0 {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut step = Step::new(self, state.clone());
        let budget = &mut step.state.budget;
        match action {
            Action::Deliver(flight) => {
                let message = step.state.flight.remove(flight.at);
                step.deliver(&message);
            }
            Action::Lose(flight) => {
                budget.losses -= 1;
                step.state.flight.remove(flight.at);
            }
            Action::Double(flight) => {
                budget.doubles -= 1;
                let message = Arc::clone(&step.state.flight[flight.at]);
                step.deliver(&message);
            }
            Action::Tick => {
                if !step.state.flight.is_empty() {
                    budget.late -= 1;
                }
                if !step.tick() {
                    return None;
                }
            }
            Action::Claim(index) => {
                step.slot(index).claims -= 1;
                step.acquire(index);
            }
            Action::Release(index) => {
                budget.releases -= 1;
                step.release(index);
            }
            Action::LookUp(index) => {
                step.slot(index).look_ups -= 1;
                step.look_up(index);
            }
            Action::Crash(index) => {
                budget.crashes -= 1;
                step.crash(index, false);
            }
            Action::Forget(index) => {
                budget.amnesias -= 1;
                step.crash(index, true);
            }
            Action::Start(index) => step.start(index),
            Action::Tear => {
                budget.cuts -= 1;
                step.relink(|state| state.torn = true);
            }
            Action::Heal => step.relink(|state| state.torn = false),
        }
        Some(step.finish())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("safe", |_, state: &State| state.violation.is_none()),
            Property::sometimes("taken", |world: &Self, state: &State| {
                world.claimants.iter().any(|index| {
                    let slot = &state.nodes[*index];
                    slot.held.is_some() && slot.claims < world.claims
                })
            }),
        ]
    }
}

impl World {
    /// All members up, acquainted and ready; then what the world's prelude says.
    fn beginning(&self) -> State {
        let node = |index: usize| {
            let claims = if self.claimants.contains(&index) {
                self.claims
            } else {
                0
            };
            let look_ups = if self.lookers.contains(&index) {
                self.look_ups
            } else {
                0
            };
            Arc::new(Slot {
                core: None,
                disk: Some(Disk::new(self.lazy)),
                start: 0,
                held: None,
                tenure: 0,
                used: 0,
                claims,
                look_ups,
                digest: 0,
            })
        };
        let state = State {
            now: 0,
            end: u64::MAX,
            nodes: (0..self.nodes).map(node).collect(),
            flight: Vec::new(),
            budget: Budget::default(),
            torn: false,
            begun: false,
            tenures: 0,
            violation: None,
        };
        let mut step = Step::new(self, state);
        step.at_once = true;
        for index in 0..self.up {
            step.start(index);
            step.settle();
        }
        step.pass(WARM_UP);
        step.relink(|state| state.begun = true);
        step.settle();
        (self.prelude)(&mut step);
        step.settle();
        step.at_once = false;
        step.state.budget = self.budget;
        step.state.end = step.state.now + self.lasts;
        step.finish()
    }
}

/// What the exploration of a world has shown.
#[derive(Debug)]
pub struct Verdict {
    /// The world.
    pub world: &'static str,
    /// States generated, with repetitions.
    pub states: usize,
    /// Different states.
    pub unique: usize,
    /// The longest run.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// Whether everything within the world's bounds was seen.
    pub whole: bool,
    /// Whether a claimant got the address in some run, so that the world is not safe for want of anything.
    pub taken: bool,
    /// What was violated, and the steps that lead to it.
    pub violation: Option<(String, Vec<String>)>,
}

/// In which order a world is explored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// To the end of one run after the other: little memory.
    Depth,
    /// All shorter runs first: the shortest way to a violation.
    Breadth,
    /// One run of random choices after the other, without end unless something is violated or so many states are.
    Chance,
}

/// Explores a world until everything within its bounds is seen, or something is violated, or so many states are.
#[must_use]
pub fn explore(world: World, order: Order, threads: usize, most: usize) -> Verdict {
    let began = Instant::now();
    let (name, depth) = (world.name, world.depth);
    let builder = world.ready().checker().threads(threads).target_max_depth(depth);
    let builder = builder
        .target_state_count(most)
        .finish_when(HasDiscoveries::AnyFailures);
    match order {
        Order::Depth => verdict((name, most), began, &builder.spawn_dfs().join()),
        Order::Breadth => verdict((name, most), began, &builder.spawn_bfs().join()),
        Order::Chance => {
            let checker = builder.spawn_simulation(SEED, UniformChooser).join();
            verdict((name, 0), began, &checker)
        }
    }
}

fn verdict((name, most): (&'static str, usize), began: Instant, checker: &impl Checker<World>) -> Verdict {
    let violation = checker.discovery("safe").map(|path| {
        let what = path
            .last_state()
            .violation
            .as_deref()
            .unwrap_or_default()
            .to_owned();
        let actions = path.into_actions().into_iter();
        (what, actions.map(|action| action.to_string()).collect())
    });
    Verdict {
        world: name,
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        whole: violation.is_none() && checker.state_count() < most,
        taken: checker.discovery("taken").is_some(),
        time: began.elapsed(),
        violation,
    }
}

impl std::fmt::Display for Flight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.reply { "answer to " } else { "" };
        write!(f, "the {what}{} {} -> {}", self.kind, self.from, self.to)
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deliver(flight) => write!(f, "{flight} arrives"),
            Self::Lose(flight) => write!(f, "{flight} is lost"),
            Self::Double(flight) => write!(f, "{flight} arrives, and will again"),
            Self::Tick => write!(f, "time passes"),
            Self::Claim(index) => write!(f, "node {index} claims the address"),
            Self::Release(index) => write!(f, "node {index} gives its lease back"),
            Self::LookUp(index) => write!(f, "node {index} looks the address up"),
            Self::Crash(index) => write!(f, "node {index} is killed"),
            Self::Forget(index) => write!(f, "node {index} is killed and its disk is lost"),
            Self::Start(index) => write!(f, "node {index} starts"),
            Self::Tear => write!(f, "the grid is torn"),
            Self::Heal => write!(f, "the grid is whole again"),
        }
    }
}
