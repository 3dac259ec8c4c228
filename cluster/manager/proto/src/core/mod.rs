//! What is done next: a function of the state, of what is under way, and of what was heard.
//!
//! What is under way is not in the journal. After a restart nothing is, and the first inventory of each host says what
//! has become of what was; until it is there, nothing is done to the host's guests.

mod commands;
mod inventory;
mod operate;
mod outcome;
mod plan;
mod settle;
mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_cluster_proto::amount::Lifetime;
use aerie_cluster_proto::description::{Bounds, Image};
use aerie_cluster_proto::ledger::{self, Quota, RequestId, Subject};
use aerie_cluster_proto::limits::MAX_LEASE;
use aerie_cluster_proto::placement::Rules;
use aerie_context_proto::{Cluster as ContextDocument, ContextId, HostName, MemberName, SetName};
use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

pub use commands::{Answer, DryRun};

use crate::error::{Corrupt, Refusal};
use crate::host::{Failure, GuestState, Inventory, Work};
use crate::ids::{GuestId, ManagerId, OpId};
use crate::records::{Entry, Record};
use crate::state::{ContextReport, Goal, Step};
use crate::world::World;

/// The time, by two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// What people's clocks show; it may jump. Life-times go by it.
    pub wall: WallMillis,
    /// Time since the manager began; it never goes back. Time limits and silences go by it.
    pub mono: Duration,
}

/// How the manager works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What descriptions may ask for.
    pub bounds: Bounds,
    /// How members are placed.
    pub rules: Rules,
    /// What people and groups may have.
    pub quotas: Vec<(Subject, Quota)>,
    /// How long a deployment may take, up to an hour: its place is held for so long.
    pub deploy_within: Duration,
    /// How long a guest is given to switch itself off.
    pub grace: Duration,
    /// How long before its end a cluster's owner is warned, or a tenth of its life-time where that is less.
    pub warn_before: Duration,
    /// How often a host is asked what is on it.
    pub ask_every: Duration,
    /// After how long a silence a host is given nothing more to do.
    pub suspect_after: Duration,
    /// After how long a silence its members are lost.
    pub lose_after: Duration,
    /// How often the context broker is asked about members that are not configured.
    pub look_every: Duration,
    /// Whether there is a context broker.
    pub contexts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bounds: Bounds {
                default_lifetime: Some(Lifetime::secs(24 * 3600)),
                max_lifetime: Lifetime::secs(30 * 24 * 3600),
            },
            rules: Rules::default(),
            quotas: Vec::new(),
            deploy_within: MAX_LEASE,
            grace: Duration::from_secs(60),
            warn_before: Duration::from_secs(15 * 60),
            ask_every: Duration::from_secs(5),
            suspect_after: Duration::from_secs(20),
            lose_after: Duration::from_secs(60),
            look_every: Duration::from_secs(5),
            contexts: false,
        }
    }
}

/// Whether a host is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hearing {
    /// It answers.
    Heard,
    /// It has not answered for some time; it is given nothing more to do.
    Suspected,
    /// It has not answered for so long that nothing is known of what is on it. That stays held.
    Lost,
}

/// What is to be carried out. Each is answered by [`Core::outcome`] with its number, however it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask a host for its inventory.
    Ask {
        /// The number.
        op: OpId,
        /// The host.
        host: HostName,
    },
    /// Do something on a host.
    Perform {
        /// The number.
        op: OpId,
        /// The host.
        host: HostName,
        /// What.
        work: Work,
    },
    /// Get a member's user-data from the context broker and give it to its host.
    Deliver {
        /// The number.
        op: OpId,
        /// The host.
        host: HostName,
        /// The guest.
        guest: GuestId,
        /// Its context.
        context: ContextId,
        /// Its set.
        set: SetName,
        /// Its name.
        member: MemberName,
    },
    /// Have the context broker make a context. One that is there is no error.
    MakeContext {
        /// The number.
        op: OpId,
        /// The id that it is to have.
        context: ContextId,
        /// Its document.
        document: Box<ContextDocument>,
        /// The members that the document names and that will not come.
        absent: Vec<MemberName>,
    },
    /// Have the context broker remove a context. One that is not there is no error.
    RemoveContext {
        /// The number.
        op: OpId,
        /// Which.
        context: ContextId,
    },
    /// Ask the context broker about the members of a context.
    Look {
        /// The number.
        op: OpId,
        /// Which.
        context: ContextId,
    },
    /// Nobody waits for this any more. There is no outcome.
    Forget(OpId),
}

/// How an effect ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of [`Effect::Ask`].
    Inventory(Result<Inventory, Failure>),
    /// Of [`Effect::Perform`] and [`Effect::Deliver`]: how the guest is then, where the work was with its machine.
    Performed(Result<Option<GuestState>, Failure>),
    /// Of [`Effect::MakeContext`] and [`Effect::RemoveContext`].
    Context(Result<(), Failure>),
    /// Of [`Effect::Look`]: what there is to say of members.
    Looked(Result<BTreeMap<MemberName, ContextReport>, Failure>),
}

/// The manager. See the crate's documentation for the order of calls.
#[derive(Debug, Clone)]
pub struct Core {
    settings: std::sync::Arc<Settings>,
    world: World,
    run: Run,
    records: Vec<Entry>,
    effects: Vec<Effect>,
    defect: Option<Corrupt>,
}

/// The least time between two questions to a host that changes all the time.
const HINT_PAUSE: Duration = Duration::from_millis(250);

/// What is under way and what was heard: gone with the process.
#[derive(Debug, Clone, Default)]
struct Run {
    /// When the last turn was that came into effect.
    ticked: Option<Duration>,
    /// Counts ops, so that of two of them it is known which began first.
    last: u64,
    ops: BTreeMap<OpId, Op>,
    busy: BTreeMap<GuestId, OpId>,
    staging: BTreeSet<(HostName, Image)>,
    /// What failed, and when it is tried again.
    retries: BTreeMap<Key, Retry>,
    /// When something last ended with a guest: an inventory that began before says nothing of it.
    touched: BTreeMap<GuestId, u64>,
    hosts: BTreeMap<HostName, Watch>,
    /// Guests of a journal that is lost of which was told.
    ahead: BTreeSet<GuestId>,
    looks: BTreeMap<RequestId, Look>,
    dirty: BTreeSet<RequestId>,
}

#[derive(Debug, Clone)]
struct Op {
    doing: Doing,
    deadline: Duration,
}

#[derive(Debug, Clone)]
enum Doing {
    Member {
        cluster: RequestId,
        member: MemberName,
        guest: GuestId,
        host: HostName,
        step: Step,
    },
    Stage {
        host: HostName,
        image: Image,
    },
    Orphan {
        host: HostName,
        guest: GuestId,
    },
    Ask {
        host: HostName,
    },
    MakeContext(RequestId),
    RemoveContext(RequestId),
    Look(RequestId),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Guest(GuestId),
    Image(HostName, Image),
    Context(RequestId),
}

#[derive(Debug, Clone, Copy, Default)]
struct Retry {
    attempts: u32,
    until: Duration,
}

#[derive(Debug, Clone)]
struct Watch {
    /// Whether there is somebody to ask.
    connected: bool,
    /// Whether its inventory was looked at since there was reason to doubt what is on it.
    seen: bool,
    hearing: Hearing,
    heard: Duration,
    next: Duration,
    asking: Option<OpId>,
    /// Whether something may have changed since it was asked.
    hinted: bool,
    steps: usize,
    /// Clusters that wait for a step to end.
    waiting: BTreeSet<RequestId>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Look {
    next: Duration,
    asking: bool,
}

impl Core {
    /// A manager whose journal begins.
    #[must_use]
    pub fn begin(manager: ManagerId, settings: Settings, now: Now) -> Self {
        let mut core = Self::new(World::default(), settings);
        core.record(Record::Begun { manager }, now);
        core
    }

    /// The manager that a journal makes.
    #[must_use]
    pub fn resume(world: World, settings: Settings, now: Now) -> Self {
        let mut core = Self::new(world, settings);
        for host in core.world.hosts.keys() {
            core.run.hosts.insert(host.clone(), Watch::new(now.mono));
        }
        core.run.dirty = core.world.clusters.keys().cloned().collect();
        core
    }

    fn new(world: World, settings: Settings) -> Self {
        Self {
            settings: settings.into(),
            world,
            run: Run::default(),
            records: Vec::new(),
            effects: Vec::new(),
            defect: None,
        }
    }

    /// What the journal makes.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// How it works.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// There is somebody to ask about a host.
    pub fn connect(&mut self, host: HostName, now: Now) {
        let watch = self.run.hosts.entry(host).or_insert_with(|| Watch::new(now.mono));
        watch.connected = true;
        watch.seen = false;
        watch.next = now.mono;
    }

    /// There is nobody to ask about a host any more.
    pub fn disconnect(&mut self, host: &HostName) {
        if let Some(watch) = self.run.hosts.get_mut(host) {
            watch.connected = false;
        }
    }

    /// What hosts said was dropped: nothing is done on them before they were asked anew.
    pub fn doubt(&mut self, now: Now) {
        for watch in self.run.hosts.values_mut() {
            watch.seen = false;
            watch.next = now.mono;
        }
    }

    /// Something may have changed on a host: it is asked now.
    pub fn changed(&mut self, host: &HostName, now: Now) {
        if let Some(watch) = self.run.hosts.get_mut(host) {
            watch.hinted = watch.asking.is_some();
            watch.next = watch.next.min(now.mono.max(watch.heard + HINT_PAUSE));
        }
    }

    /// Other quotas apply from now on, to what is asked for then.
    pub fn set_quotas(&mut self, quotas: Vec<(Subject, Quota)>) {
        let mut settings = self.settings().clone();
        settings.quotas = quotas;
        self.settings = settings.into();
    }

    /// Whether a host is heard of; one that never was is lost.
    #[must_use]
    pub fn hearing(&self, host: &HostName) -> Hearing {
        self.run
            .hosts
            .get(host)
            .map_or(Hearing::Lost, |watch| watch.hearing)
    }

    /// The records since the last time, to be made durable all or none.
    ///
    /// # Errors
    /// [`Corrupt`] where the manager contradicts itself, which is a defect of the program: nothing may be made durable
    /// then, and this copy is to be dropped.
    pub fn take_records(&mut self) -> Result<Vec<Entry>, Corrupt> {
        match self.defect.take() {
            Some(defect) => Err(defect),
            None => Ok(std::mem::take(&mut self.records)),
        }
    }

    /// What is to be carried out, once the records are durable.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Writes something down, and applies it.
    fn record(&mut self, record: Record, now: Now) {
        let at = now.wall;
        let entry = Entry { at, record };
        match self.world.apply(&entry) {
            Ok(()) => self.records.push(entry),
            Err(defect) => drop(self.defect.get_or_insert(defect)),
        }
    }

    /// A member's goal becomes this, since it is so, or cannot be otherwise.
    fn revert(&mut self, id: RequestId, member: MemberName, goal: Goal, why: String, now: Now) {
        let record = Record::Reverted {
            id,
            member,
            goal,
            why,
        };
        self.record(record, now);
    }

    /// Tells the ledger something, and writes down what it says.
    fn book(&mut self, command: ledger::Command, now: Now) -> Result<(), Refusal> {
        if let ledger::Decision::Record(record) = self.world.ledger.decide(command, now.wall)? {
            self.record(Record::Ledger(record), now);
        }
        Ok(())
    }

    /// Begins something.
    fn begin_op(&mut self, doing: Doing, limit: Duration, now: Now) -> OpId {
        self.run.last += 1;
        let op = OpId(self.run.last);
        match &doing {
            Doing::Member { guest, host, .. } | Doing::Orphan { guest, host } => {
                self.run.busy.insert(*guest, op);
                self.count(host, 1);
            }
            Doing::Stage { host, image } => {
                self.run.staging.insert((host.clone(), image.clone()));
                self.count(host, 1);
            }
            Doing::Ask { .. } | Doing::MakeContext(_) | Doing::RemoveContext(_) | Doing::Look(_) => {}
        }
        let deadline = now.mono + limit;
        self.run.ops.insert(op, Op { doing, deadline });
        op
    }

    /// Takes note that something has ended; `None` if nobody waits for it any more.
    fn end_op(&mut self, op: OpId) -> Option<Doing> {
        let Op { doing, .. } = self.run.ops.remove(&op)?;
        match &doing {
            Doing::Member { guest, host, .. } => {
                self.run.busy.remove(guest);
                self.run.last += 1;
                self.run.touched.insert(*guest, self.run.last);
                self.count(host, -1);
            }
            Doing::Orphan { guest, host } => {
                self.run.busy.remove(guest);
                self.count(host, -1);
            }
            Doing::Stage { host, image } => {
                self.run.staging.remove(&(host.clone(), image.clone()));
                self.count(host, -1);
            }
            Doing::Ask { .. } | Doing::MakeContext(_) | Doing::RemoveContext(_) | Doing::Look(_) => {}
        }
        Some(doing)
    }

    fn count(&mut self, host: &HostName, change: isize) {
        if let Some(watch) = self.run.hosts.get_mut(host) {
            watch.steps = watch.steps.saturating_add_signed(change);
            if change < 0 {
                self.run.dirty.append(&mut watch.waiting);
            }
        }
    }

    fn forget_op(&mut self, op: OpId) {
        if self.end_op(op).is_some() {
            self.effects.push(Effect::Forget(op));
        }
    }

    /// Clusters with members on a host.
    fn dirty_host(&mut self, host: &HostName) {
        let on_it = self.world.clusters().filter(|(_, cluster)| {
            let mut members = cluster.members.values();
            members.any(|member| member.host == *host)
        });
        let ids: Vec<_> = on_it.map(|(id, _)| id.clone()).collect();
        self.run.dirty.extend(ids);
    }
}

impl Watch {
    fn new(now: Duration) -> Self {
        Self {
            connected: false,
            seen: false,
            hearing: Hearing::Heard,
            heard: now,
            next: now,
            asking: None,
            hinted: false,
            steps: 0,
            waiting: BTreeSet::new(),
        }
    }

    /// Whether it can be given something to do.
    fn is_ready(&self) -> bool {
        self.connected && self.seen && self.hearing == Hearing::Heard
    }
}
