//! Whole clusters on a virtual clock: a network that loses, doubles and reorders requests and answers, agents that
//! ask again, and a broker that is killed at any point and starts again from its journal.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;

use aerie_context_proto::{
    Answer, Command, Context, ContextId, Creation, Exit, Instance, InstanceHash, MemberName, Phase, Provided,
    Record, Refusal, Registration, Retrieved, SetName, Settings, Status, Verdict, xml,
};
use aerie_types::WallMillis;
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;

use crate::common::{T0, provided};

/// What is wrong in the world.
#[derive(Debug, Clone, Copy)]
struct Faults {
    /// Of 100 messages, so many are lost, and so many come twice.
    lost: u64,
    doubled: u64,
    /// Of 100 agents, so many never report, and so many fail at every attempt.
    dead: u64,
    failing: u64,
    /// The requests at which the broker is killed, one out of so many; 0 for never.
    crash_every: u64,
}

/// Where in a request the broker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    BeforeTheWrite,
    AfterTheWrite,
    AfterTheAnswer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    Register,
    Retrieve(u32),
    Exit(Exit),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Registered(MemberName),
    View(u32),
    Nothing,
    Verdict(Exit, Verdict),
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// A request reaches the broker.
    Request(usize, Ask),
    /// An answer reaches an agent.
    Answer(usize, Told),
    /// An agent asks, if it still waits for the answer to its request of this number.
    Ask(usize, u64),
    /// The broker looks at its deadlines.
    Tick,
}

struct Agent {
    set: SetName,
    proof: InstanceHash,
    provided: Provided,
    failing: bool,
    name: Option<MemberName>,
    version: u32,
    exit: Option<Exit>,
    done: bool,
    asked: u64,
    /// What the broker answered it, in order.
    registered: Option<MemberName>,
    accepted: Option<Exit>,
}

struct World {
    rng: ChaCha8Rng,
    faults: Faults,
    now: WallMillis,
    queue: BinaryHeap<Reverse<(WallMillis, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    agents: Vec<Agent>,
    journal: Vec<Record>,
    context: Context,
    requests: u64,
    crash_at: Option<(u64, Kill)>,
    crashes: u64,
}

const SETTINGS: Settings = Settings {
    report_secs: 300,
    exit_secs: 120,
    attempts: 2,
    retry_secs: 5,
};

impl World {
    /// A head and so many workers, each of which requires the other.
    fn new(seed: u64, workers: usize, faults: Faults) -> Self {
        let document = format!(
            "<cluster><workspace><name>head</name><ctx><provides><identity/><role>head</role></provides>\
             <requires><role name=\"worker\"/></requires></ctx></workspace>\
             <workspace><name>worker</name><quantity>{workers}</quantity><ctx><provides><identity/>\
             <role>worker</role></provides><requires><role name=\"head\"/></requires></ctx></workspace></cluster>"
        );
        let creation = Creation {
            id: ContextId([1; 16]),
            cluster: xml::read_cluster(&document).unwrap(),
            settings: SETTINGS,
            open: false,
        };
        let journal = vec![Context::create(creation, T0).unwrap()];
        let mut world = Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            faults,
            now: T0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            agents: Vec::new(),
            context: Context::replay(journal.clone()).unwrap(),
            journal,
            requests: 0,
            crash_at: None,
            crashes: 0,
        };
        for index in 0..=workers {
            let set = if index == 0 { "head" } else { "worker" };
            let mut proof = [0; 32];
            proof[..8].copy_from_slice(&(index as u64).to_be_bytes());
            let failing = world.chance(faults.failing);
            // Without the head all would fail for one reason.
            let dead = index > 0 && world.chance(faults.dead);
            world.agents.push(Agent {
                set: set.parse().unwrap(),
                proof: Instance::new(proof).hash(),
                provided: provided(&format!("10.{}.{}.9", index / 250, index % 250)),
                failing,
                name: None,
                version: 0,
                exit: None,
                done: dead,
                asked: 0,
                registered: None,
                accepted: None,
            });
            if !dead {
                let boot = world.below(60_000);
                world.later(boot, Event::Ask(index, 0));
            }
        }
        world.later(1000, Event::Tick);
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn later(&mut self, millis: u64, event: Event) {
        self.sequence += 1;
        self.queue
            .push(Reverse((WallMillis(self.now.0 + millis), self.sequence)));
        self.events.insert(self.sequence, event);
    }

    /// Puts a message on the network.
    fn send(&mut self, make: impl Fn() -> Event) {
        let copies = if self.chance(self.faults.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.chance(self.faults.lost) {
                // Up to four seconds, longer than an agent waits: messages overtake each other.
                let delay = if self.chance(10) { 4000 } else { 200 };
                let delay = self.below(delay);
                self.later(delay, make());
            }
        }
    }

    fn agent_asks(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        if agent.done {
            return;
        }
        agent.asked += 1;
        let asked = agent.asked;
        let ask = match (&agent.name, &agent.exit) {
            (None, _) => Ask::Register,
            (Some(_), Some(exit)) => Ask::Exit(exit.clone()),
            (Some(_), None) => Ask::Retrieve(agent.version),
        };
        self.send(|| Event::Request(index, ask.clone()));
        self.later(3000, Event::Ask(index, asked));
    }

    fn agent_hears(&mut self, index: usize, told: Told) {
        let agent = &mut self.agents[index];
        match told {
            Told::Registered(name) => {
                assert!(
                    agent.name.as_ref().is_none_or(|known| *known == name),
                    "one name for good"
                );
                agent.name = Some(name);
            }
            Told::View(version) if version > agent.version && agent.exit.is_none() => {
                agent.version = version;
                agent.exit = Some(Exit {
                    version,
                    attempt: 1,
                    ok: !agent.failing,
                    message: String::new(),
                    steps: Vec::new(),
                });
            }
            Told::Verdict(exit, verdict) if agent.exit.as_ref() == Some(&exit) => match verdict {
                Verdict::Retry { .. } => agent.exit.as_mut().unwrap().attempt += 1,
                Verdict::Superseded => agent.exit = None,
                Verdict::Accepted | Verdict::GivenUp => {
                    agent.exit = None;
                    agent.done = true;
                }
            },
            Told::View(_) | Told::Verdict(..) | Told::Nothing => {}
        }
    }

    fn crashes_here(&mut self, kill: Kill) -> bool {
        let chosen = self.crash_at == Some((self.requests, kill));
        let every = self.faults.crash_every;
        if !chosen && (every == 0 || self.below(every * 3) != 0) {
            return false;
        }
        self.crashes += 1;
        let again = Context::replay(self.journal.iter().cloned()).unwrap();
        if kill != Kill::AfterTheWrite {
            assert_eq!(again, self.context, "a restart changes nothing");
        }
        self.context = again;
        true
    }

    /// The broker: judge, write down, commit, answer, and a kill between any two.
    fn broker(&mut self, command: Command) -> Result<Option<Answer>, Refusal> {
        self.requests += 1;
        let decision = self.context.decide(command, self.now)?;
        if self.crashes_here(Kill::BeforeTheWrite) {
            return Ok(None);
        }
        if let Some(record) = decision.record {
            self.journal.push(record.clone());
            if self.crashes_here(Kill::AfterTheWrite) {
                return Ok(None);
            }
            self.context.commit(record).unwrap();
        }
        self.crashes_here(Kill::AfterTheAnswer);
        Ok(Some(decision.answer))
    }

    fn request(&mut self, index: usize, ask: Ask) {
        let agent = &self.agents[index];
        let (proof, name) = (agent.proof, agent.name.clone());
        let told = match (ask, name) {
            (Ask::Register, _) => {
                let registration = Registration {
                    member: None,
                    set: agent.set.clone(),
                    instance: proof,
                    provided: agent.provided.clone(),
                };
                match self.broker(Command::Register(registration)).unwrap() {
                    Some(Answer::Registered(name)) => {
                        self.agents[index].registered = Some(name.clone());
                        Some(Told::Registered(name))
                    }
                    other => {
                        assert_eq!(other, None);
                        None
                    }
                }
            }
            (Ask::Retrieve(after), Some(name)) => {
                Some(match self.context.retrieve(&name, proof, after).unwrap() {
                    Retrieved::View(view) => {
                        assert!(view.missing.is_empty(), "{view:?}");
                        Told::View(view.version)
                    }
                    Retrieved::Wait => Told::Nothing,
                })
            }
            (Ask::Exit(exit), Some(member)) => {
                let command = Command::Exit {
                    member,
                    instance: proof,
                    exit: exit.clone(),
                };
                match self.broker(command).unwrap() {
                    Some(Answer::Exit(verdict)) => {
                        if verdict == Verdict::Accepted {
                            self.agents[index].accepted = Some(exit.clone());
                        }
                        Some(Told::Verdict(exit, verdict))
                    }
                    other => {
                        assert_eq!(other, None);
                        None
                    }
                }
            }
            (_, None) => unreachable!("an agent without a name registers"),
        };
        if let Some(told) = told {
            self.send(|| Event::Answer(index, told.clone()));
        }
    }

    /// Plays until nobody waits for anything.
    fn play(&mut self) -> Status {
        let latest =
            WallMillis(T0.0 + 1000 * (SETTINGS.report_secs + 3 * (SETTINGS.exit_secs + SETTINGS.retry_secs)));
        while let Some(Reverse((at, sequence))) = self.queue.pop() {
            assert!(
                at <= latest,
                "somebody still waits: {:?}",
                self.context.status(at).waits
            );
            self.now = at;
            match self.events.remove(&sequence).unwrap() {
                Event::Request(index, ask) => self.request(index, ask),
                Event::Answer(index, told) => self.agent_hears(index, told),
                Event::Ask(index, asked) => {
                    if self.agents[index].asked == asked {
                        self.agent_asks(index);
                    }
                }
                Event::Tick => {
                    self.broker(Command::Tick).unwrap();
                    if self.context.is_complete() && self.context.next_deadline().is_none() {
                        break;
                    }
                    self.later(1000, Event::Tick);
                }
            }
        }
        self.judge()
    }

    /// What has to hold at the end, whatever happened on the way.
    fn judge(&self) -> Status {
        let status = self.context.status(self.now);
        assert!(status.complete, "{:?}", status.waits);
        let by_name: BTreeMap<_, _> = status
            .members
            .iter()
            .map(|member| (&member.name, member))
            .collect();
        for member in &status.members {
            let ended = matches!(member.phase, Phase::Ok | Phase::Failed | Phase::Missing);
            assert!(ended, "{} is stuck in {:?}", member.name, member.phase);
        }
        for agent in &self.agents {
            if let Some(name) = &agent.registered {
                let member = by_name[name];
                assert_eq!(
                    member.identities, agent.provided.identities,
                    "an answered report is kept"
                );
            }
            if let Some(exit) = &agent.accepted {
                let name = agent.registered.as_ref().unwrap();
                assert_eq!(
                    by_name[name].exit.as_ref(),
                    Some(exit),
                    "an answered exit is kept"
                );
            }
        }
        status
    }
}

const NETWORK: Faults = Faults {
    lost: 10,
    doubled: 10,
    dead: 0,
    failing: 0,
    crash_every: 0,
};

#[test]
fn a_thousand_members_complete_or_fail_explicitly_by_the_deadline() {
    let mut summary = String::new();
    for seed in 1..=3 {
        println!("seed {seed}");
        let faults = Faults {
            dead: 3,
            failing: 3,
            crash_every: 300,
            ..NETWORK
        };
        let mut world = World::new(seed, 999, faults);
        let dead = world.agents.iter().filter(|agent| agent.done).count();
        let failing = world
            .agents
            .iter()
            .filter(|agent| !agent.done && agent.failing)
            .count();
        let status = world.play();
        assert_eq!(status.total_nodes, 1000);
        assert_eq!(
            (status.ok, status.failed),
            (1000 - dead - failing, dead + failing)
        );
        assert_eq!(status.version, 1, "one version for all");
        assert!(world.crashes > 0);
        let secs = (world.now.0 - T0.0) / 1000;
        let _ = writeln!(
            summary,
            "seed {seed}: {} crashes, over after {secs} s",
            world.crashes
        );
    }
    println!("{summary}");
}

#[test]
fn without_faults_a_thousand_members_are_ready_as_soon_as_the_last_has_booted() {
    let calm = Faults {
        lost: 0,
        doubled: 0,
        ..NETWORK
    };
    let mut world = World::new(9, 999, calm);
    let status = world.play();
    assert!(status.all_ok);
    let secs = (world.now.0 - T0.0) / 1000;
    assert!(
        secs < 90,
        "{secs} s; the last boots within 60 s, and agents ask every 3 s"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_broker_killed_at_any_point_loses_nothing_that_it_answered(
        seed in any::<u64>(), request in 1u64..200, kill in 0usize..3,
    ) {
        let faults = Faults { dead: 10, failing: 10, ..NETWORK };
        let mut world = World::new(seed, 12, faults);
        let kill = [Kill::BeforeTheWrite, Kill::AfterTheWrite, Kill::AfterTheAnswer][kill];
        world.crash_at = Some((request, kill));
        world.play();
    }

    #[test]
    fn a_broker_killed_again_and_again_still_ends(seed in any::<u64>()) {
        let mut world = World::new(seed, 8, Faults { crash_every: 3, dead: 10, ..NETWORK });
        world.play();
    }
}
