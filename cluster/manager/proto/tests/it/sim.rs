//! The world: hosts, a context broker and a journal that outlive the manager, messages that take their time, and a
//! random source from a seed. The manager may be killed at each write and at each effect.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_cluster_manager_proto::{
    Answer, Caller, Command, ContextReport, Core, Effect, Entry, Facts, Failure, Found, GuestId, GuestState,
    Inventory, ManagerId, Now, Operation, Outcome, Reached, Refusal, Request, Scope, Settings, Work, World,
};
use aerie_cluster_proto::amount::{Bytes, Resources};
use aerie_cluster_proto::description::{Description, Document, Image};
use aerie_cluster_proto::ledger::RequestId;
use aerie_cluster_proto::placement::{Accelerator, Connections};
use aerie_context_proto::{ContextId, HostName, MemberName};
use aerie_types::WallMillis;

use crate::host::{Host, describe};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MANAGER: ManagerId = ManagerId([7; 7]);
const BEGAN: WallMillis = WallMillis(1_900_000_000_000);

/// Numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}

#[derive(Debug, Clone)]
enum Due {
    /// Something reaches whom it is for.
    Arrives(Effect, u64),
    /// An answer reaches the manager that asked.
    Answers(Effect, Outcome, u64),
    HostDies(HostName),
    HostBack(HostName),
    Restart,
    Ask(Caller, Command),
}

/// Everything.
pub(crate) struct Sim {
    pub(crate) rng: Rng,
    pub(crate) settings: Settings,
    pub(crate) core: Option<Core>,
    /// Which manager it is, counted by restarts.
    life: u64,
    pub(crate) now: Duration,
    due: BTreeMap<(Duration, u64), Due>,
    number: u64,
    pub(crate) journal: Vec<Entry>,
    pub(crate) hosts: BTreeMap<HostName, Host>,
    pub(crate) contexts: BTreeSet<ContextId>,
    /// Images that the repository has, and whose disks they are.
    pub(crate) kept: BTreeMap<Image, Option<GuestId>>,
    pub(crate) reports: BTreeMap<MemberName, ContextReport>,
    /// How many writes and effects there were.
    pub(crate) boundaries: u64,
    /// At which of them the manager is killed.
    pub(crate) crash_at: Option<u64>,
    /// Of so many steps one fails.
    pub(crate) fail_one_in: u64,
    /// The disk is full.
    pub(crate) disk_full: bool,
    pub(crate) works: Vec<String>,
    pub(crate) answers: Vec<Result<Answer, Refusal>>,
    pub(crate) forgotten: BTreeSet<u64>,
    /// The steps that hosts do are written down.
    pub(crate) noted: bool,
    /// Invariants are not looked at.
    pub(crate) unchecked: bool,
}

pub(crate) fn caller(user: &str) -> Caller {
    Caller {
        user: user.parse().unwrap(),
        groups: ["chem".parse().unwrap()].into(),
        admin: user == "root",
    }
}

pub(crate) fn id(text: &str) -> RequestId {
    text.parse().unwrap()
}

pub(crate) fn amounts(cpus: u32, memory_gib: u64, disk_gib: u64) -> Resources {
    Resources {
        cpus,
        memory: Bytes::gib(memory_gib),
        disk: Bytes::gib(disk_gib),
    }
}

/// A description of sets: name, how many, image.
pub(crate) fn description(target: &str, all: bool, sets: &[(&str, u32, &str)]) -> Description {
    let mut text =
        format!("version = 1\nname = \"c\"\ntarget = \"{target}\"\nall_or_none = {all}\nlifetime = \"2h\"\n");
    for (name, count, image) in sets {
        text += &format!(
            "[[workspace]]\nname = \"{name}\"\ncount = {count}\nimage = \"{image}\"\n\
             resources = {{ cpus = 1, memory = \"1 GiB\", disk = \"4 GiB\" }}\n"
        );
    }
    Document::from_toml(&text).unwrap().description
}

pub(crate) fn request(name: &str, description: Description) -> Command {
    Command::Request(Box::new(Request {
        id: id(name),
        group: None,
        description,
    }))
}

pub(crate) fn operate(cluster: &str, scope: Scope, operation: Operation) -> Command {
    Command::Operate {
        cluster: id(cluster),
        scope,
        operation,
    }
}

pub(crate) const UNDEPLOY: Operation = Operation::Undeploy { save: None };

impl Sim {
    pub(crate) fn new(seed: u64, hosts: &[(&str, Resources)]) -> Self {
        let host = |(name, capacity): &(&str, Resources)| {
            let host = Host::new(*capacity);
            (name.parse().unwrap(), host)
        };
        let mut sim = Self {
            rng: Rng(seed),
            settings: Settings::default(),
            core: None,
            life: 0,
            now: Duration::ZERO,
            due: BTreeMap::new(),
            number: 0,
            journal: Vec::new(),
            hosts: hosts.iter().map(host).collect(),
            contexts: BTreeSet::new(),
            kept: BTreeMap::new(),
            reports: BTreeMap::new(),
            boundaries: 0,
            crash_at: None,
            fail_one_in: 0,
            disk_full: false,
            works: Vec::new(),
            answers: Vec::new(),
            forgotten: BTreeSet::new(),
            noted: false,
            unchecked: false,
        };
        sim.settings.contexts = true;
        sim.start();
        sim
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            wall: BEGAN.plus(self.now),
            mono: self.now,
        }
    }

    /// A manager on the journal.
    pub(crate) fn start(&mut self) {
        self.life += 1;
        let mut world = World::default();
        for entry in &self.journal {
            // As it is read from the disk.
            let text = serde_json::to_string(entry).unwrap();
            world.apply(&serde_json::from_str(&text).unwrap()).unwrap();
        }
        let mut core = if self.journal.is_empty() {
            Core::begin(MANAGER, self.settings.clone(), self.now())
        } else {
            Core::resume(world, self.settings.clone(), self.now())
        };
        for host in self.hosts.keys() {
            core.connect(host.clone(), self.now());
        }
        self.core = Some(core);
        self.work(|_, _| ());
    }

    /// Whether the manager is killed here.
    fn boundary(&mut self) -> bool {
        self.boundaries += 1;
        if self.crash_at == Some(self.boundaries) {
            self.kill();
            return true;
        }
        false
    }

    pub(crate) fn kill(&mut self) {
        self.core = None;
        let after = Duration::from_millis(self.rng.below(20_000));
        self.later(after, Due::Restart);
    }

    fn later(&mut self, after: Duration, due: Due) {
        self.number += 1;
        self.due.insert((self.now + after, self.number), due);
    }

    /// One turn of the manager: the copy, the disk, the effects.
    fn work<T>(&mut self, change: impl FnOnce(&mut Core, Now) -> T) -> Option<T> {
        let now = self.now();
        let mut next = self.core.clone()?;
        let answer = change(&mut next, now);
        next.tick(now);
        next.settle(now);
        let records = next.take_records().unwrap();
        let effects = next.take_effects();
        if !records.is_empty() && (self.boundary() || self.disk_full) {
            return None;
        }
        self.journal.extend(records);
        self.core = Some(next);
        for effect in effects {
            if let Effect::Forget(op) = effect {
                self.forgotten.insert(op.0);
                continue;
            }
            if self.boundary() {
                return None;
            }
            let after = Duration::from_millis(1 + self.rng.below(400));
            let life = self.life;
            self.later(after, Due::Arrives(effect, life));
        }
        if self.boundary() {
            return None;
        }
        Some(answer)
    }

    pub(crate) fn command(&mut self, caller: &Caller, command: Command) -> Result<Answer, Refusal> {
        let asked = self.work(|core, now| core.command(caller, command, now));
        asked.expect("the manager lives")
    }

    pub(crate) fn ask_later(&mut self, after: Duration, caller: &Caller, command: Command) {
        self.later(after, Due::Ask(caller.clone(), command));
    }

    pub(crate) fn die_later(&mut self, after: Duration, host: &str, back: Duration) {
        let host: HostName = host.parse().unwrap();
        self.later(after, Due::HostDies(host.clone()));
        self.later(after + back, Due::HostBack(host));
    }

    /// The manager does nothing for some time, and comes to itself before anybody else does.
    pub(crate) fn stand_still(&mut self, time: Duration) {
        self.now += time;
        self.work(|_, _| ());
    }

    /// Until so much time has passed.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let wake = self.core.as_ref().map_or(end, |core| core.next(self.now()));
            let wake = wake.max(self.now + Duration::from_millis(1));
            let first = self.due.keys().next().map(|(at, _)| *at);
            let next = first.map_or(wake, |at| at.min(wake));
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            let due = first
                .is_some_and(|at| at <= self.now)
                .then(|| self.due.pop_first())
                .flatten();
            match due {
                Some((_, due)) => self.happens(due),
                None => drop(self.work(|_, _| ())),
            }
            self.check();
        }
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Arrives(effect, life) => self.arrives(effect, life),
            Due::Answers(effect, outcome, life) => {
                if life == self.life && self.core.is_some() && !self.boundary() {
                    let op = op_of(&effect);
                    self.work(|core, now| core.outcome(op, outcome, now));
                }
            }
            Due::HostDies(name) => {
                let host = self.hosts.get_mut(&name).unwrap();
                host.up = false;
                for guest in host.guests.values_mut() {
                    if matches!(guest.state, GuestState::Running | GuestState::Paused) {
                        let why = "its host went down".to_owned();
                        guest.state = GuestState::Crashed { why };
                    }
                }
            }
            Due::HostBack(name) => self.hosts.get_mut(&name).unwrap().up = true,
            Due::Restart => {
                if self.core.is_none() {
                    self.start();
                }
            }
            Due::Ask(caller, command) => {
                match self.work(|core, now| core.command(&caller, command.clone(), now)) {
                    Some(answer) => self.answers.push(answer),
                    // The manager is down, or went down: whoever asked asks again.
                    None => self.later(5 * SECOND, Due::Ask(caller, command)),
                }
            }
        }
    }

    /// An effect reaches its host or the context broker, of the manager that lives or of one before.
    fn arrives(&mut self, effect: Effect, life: u64) {
        let mut takes = Duration::from_millis(self.rng.below(300));
        if let Effect::Perform {
            work: Work::Stage { .. } | Work::Suspend(_) | Work::Start(_),
            ..
        } = &effect
        {
            takes = Duration::from_millis(self.rng.below(8000));
        }
        let name = match &effect {
            Effect::Ask { host, .. } | Effect::Perform { host, .. } | Effect::Deliver { host, .. } => {
                Some(host.clone())
            }
            _ => None,
        };
        if name.is_some_and(|name| !self.hosts[&name].up) {
            // Nobody answers; some notice.
            if self.rng.one_in(2) {
                let failure = Failure::unreachable("the host does not answer");
                let outcome = match &effect {
                    Effect::Ask { .. } => Outcome::Inventory(Err(failure)),
                    _ => Outcome::Performed(Err(failure)),
                };
                self.later(takes, Due::Answers(effect, outcome, life));
            }
            return;
        }
        let outcome = self.performs(&effect);
        self.check();
        if !self.boundary() {
            self.later(takes, Due::Answers(effect, outcome, life));
        } else {
            // The manager was killed just then; nobody waits for the answer.
        }
    }

    fn performs(&mut self, effect: &Effect) -> Outcome {
        match effect {
            Effect::Ask { host, .. } => {
                let host = &self.hosts[host];
                Outcome::Inventory(Ok(Inventory {
                    facts: Facts {
                        capacity: host.capacity,
                        images: host.images.clone(),
                        connections: Connections::default(),
                        accelerator: Accelerator::Kvm,
                    },
                    guests: host
                        .guests
                        .iter()
                        .map(|(guest, is)| Found {
                            guest: *guest,
                            state: is.state.clone(),
                        })
                        .collect(),
                }))
            }
            Effect::Perform { host, work, .. } => Outcome::Performed(self.step(host, work)),
            Effect::Deliver {
                host, guest, context, ..
            } => {
                let there = self.contexts.contains(context);
                let host = self.hosts.get_mut(host).unwrap();
                Outcome::Performed(match host.guests.get_mut(guest) {
                    _ if !there => Err(Failure::refused("there is no such context")),
                    Some(guest) => {
                        guest.has_context = true;
                        Ok(None)
                    }
                    None => Err(Failure::refused("there is no such guest")),
                })
            }
            Effect::MakeContext { context, .. } => {
                self.contexts.insert(*context);
                Outcome::Context(Ok(()))
            }
            Effect::RemoveContext { context, .. } => {
                self.contexts.remove(context);
                Outcome::Context(Ok(()))
            }
            Effect::Look { .. } => Outcome::Looked(Ok(self.reports.clone())),
            Effect::Forget(_) => unreachable!("nobody is sent it"),
        }
    }

    fn step(&mut self, name: &HostName, work: &Work) -> Result<Option<GuestState>, Failure> {
        let (what, guest) = describe(work);
        if self.noted {
            self.works.push(format!("{name} {what}"));
        }
        let fails = self.fail_one_in > 0 && self.rng.one_in(self.fail_one_in);
        let host = self.hosts.get_mut(name).unwrap();
        if let Some(at) = host.fails.iter().position(|(step, _)| *step == what) {
            return Err(host.fails.remove(at).1);
        }
        let gone = guest.is_some_and(|guest| host.destroyed.contains(&guest));
        if gone && !matches!(work, Work::Destroy(_)) {
            return Err(Failure::refused("it was destroyed"));
        }
        if fails && !matches!(work, Work::Destroy(_)) {
            return Err(Failure::failed("by chance"));
        }
        if let Work::Save { guest, image } = work
            && *self.kept.entry(image.clone()).or_insert(Some(*guest)) != Some(*guest)
        {
            return Err(Failure::refused(format!("the repository has '{image}' already")));
        }
        if !host.ignores.contains(what) {
            host.perform(work)?;
        }
        if fails {
            return Err(Failure::unreachable("the answer was lost"));
        }
        Ok(guest.and_then(|guest| host.guests.get(&guest).map(|guest| guest.state.clone())))
    }

    /// What has to be true at every moment.
    pub(crate) fn check(&self) {
        let Some(core) = self.core.as_ref().filter(|_| !self.unchecked) else {
            return;
        };
        let world = core.world();
        assert!(world.ledger().is_within(), "more is held than there is");
        for (name, host) in &self.hosts {
            for guest in host.guests.keys() {
                let held = world.clusters().any(|(id, cluster)| {
                    let is = |(member, of): (&MemberName, &aerie_cluster_manager_proto::Member)| {
                        let hold = world.ledger().hold(id);
                        let placed = hold.and_then(|hold| hold.plan.members.get(member));
                        of.guest == *guest
                            && of.host == *name
                            && placed.is_some_and(|placed| placed.host == *name)
                    };
                    cluster.members.iter().any(is)
                });
                assert!(
                    held,
                    "guest {guest} on {name} is held for nobody at {:?}",
                    self.now
                );
            }
        }
        for (id, _) in world.ledger().holds() {
            assert!(
                world.clusters().any(|(cluster, _)| cluster == id),
                "'{id}' holds and is no cluster"
            );
        }
    }

    /// Every member is where it is to be, or has a reason why not.
    pub(crate) fn is_settled(&self) -> Result<(), String> {
        let world = self.core.as_ref().ok_or("there is no manager")?.world();
        for (id, cluster) in world.clusters() {
            if cluster.is_ending() {
                return Err(format!("'{id}' is still ending"));
            }
            for (name, member) in &cluster.members {
                let met = member.goal.is_met(member.reached);
                let failed =
                    member.fault.is_some() && (!member.goal.is_absent() || member.reached == Reached::Gone);
                if !met && !failed {
                    return Err(format!("{id}/{name} is stuck: {member:?}"));
                }
            }
        }
        Ok(())
    }

    /// Nothing is left of anything.
    pub(crate) fn is_empty(&self) -> Result<(), String> {
        let world = self.core.as_ref().ok_or("there is no manager")?.world();
        if let Some((id, cluster)) = world.clusters().next() {
            return Err(format!("'{id}' is left: {cluster:?}"));
        }
        if let Some((id, _)) = world.ledger().holds().next() {
            return Err(format!("'{id}' is held"));
        }
        for (name, host) in &self.hosts {
            if let Some(guest) = host.guests.keys().next() {
                return Err(format!("guest {guest} is left on {name}"));
            }
        }
        match self.contexts.first() {
            Some(context) => Err(format!("context {context} is left")),
            None => Ok(()),
        }
    }

    pub(crate) fn core(&self) -> &Core {
        self.core.as_ref().unwrap()
    }

    pub(crate) fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.get_mut(&name.parse::<HostName>().unwrap()).unwrap()
    }
}

fn op_of(effect: &Effect) -> aerie_cluster_manager_proto::OpId {
    match effect {
        Effect::Ask { op, .. }
        | Effect::Perform { op, .. }
        | Effect::Deliver { op, .. }
        | Effect::MakeContext { op, .. }
        | Effect::RemoveContext { op, .. }
        | Effect::Look { op, .. }
        | Effect::Forget(op) => *op,
    }
}
