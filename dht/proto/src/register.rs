//! The register: takes inputs with the time, keeps the state, gives outputs.

mod claiming;
mod lookups;
mod serving;
mod spreading;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use aerie_types::{GridId, Instance, Key, NodeName, PeerId, VirtualAddr, VirtualRange, WallMillis};
use rand::Rng;

use crate::claimant::{Claimant, LeaseState};
use crate::leases::Leases;
use crate::members::Members;
use crate::sets::{SetView, Sets};
use crate::wire::{Answer, Request, decode, encode};
use crate::{Certificate, Error, Keys, OwnState, Store};
use lookups::LookUp;
use spreading::OwnSet;

/// How long an answer is waited for.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// How many requests may be unanswered at once; more are not sent, as if they had failed.
const MAX_CALLS: usize = 4096;

/// How many searches for a key's neighbourhood may run at once.
const MAX_LOCATES: usize = 1024;

/// How often the tables are swept while all is well, and while the node is not ready.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_EVERY_UNREADY: Duration = Duration::from_secs(1);

/// The time, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// The monotonic clock.
    pub now: Instant,
    /// The wall clock.
    pub wall: WallMillis,
}

impl Time {
    fn pair(self) -> (Instant, WallMillis) {
        (self.now, self.wall)
    }
}

/// How a register is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// The grid.
    pub grid: GridId,
    /// This node.
    pub me: PeerId,
    /// Its name, as its credential has it.
    pub name: NodeName,
    /// The grid's range.
    pub range: VirtualRange,
    /// An address that the node must have, instead of any.
    pub fixed: Option<VirtualAddr>,
    /// Whether the node founds the grid, and may be the only witness while it knows nobody else.
    pub founder: bool,
}

/// A request got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendError;

/// What happens to the register.
#[derive(Debug, Clone)]
pub enum Input {
    /// An admitted member asks something; the answer comes as [`Output::Answer`].
    Request {
        /// Who asks.
        from: PeerId,
        /// Names the request towards the caller.
        id: u64,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The answer to [`Output::Send`].
    Reply {
        /// The request's id.
        id: u64,
        /// The answer.
        result: Result<Vec<u8>, SendError>,
    },
    /// The answer to [`Output::Locate`].
    Located {
        /// The query's id.
        query: u64,
        /// Members, nearest first.
        peers: Vec<PeerId>,
    },
    /// A message spread to all.
    Gossip {
        /// The member that it came from.
        from: PeerId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A member is connected.
    MemberUp {
        /// Which.
        peer: PeerId,
    },
    /// A member is no longer connected.
    MemberDown {
        /// Which.
        peer: PeerId,
    },
}

/// What the register wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Answer a request.
    Answer {
        /// The request's id.
        id: u64,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Ask a member.
    Send {
        /// Whom.
        to: PeerId,
        /// Names the request.
        id: u64,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Find the members closest to a key.
    Locate {
        /// Names the query.
        query: u64,
        /// The key.
        key: Key,
    },
    /// Spread a message to all.
    Gossip(Vec<u8>),
    /// Tell the node.
    Event(Event),
}

/// What the node should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The node's lease stands otherwise now.
    Lease(LeaseState),
    /// A set has changed.
    SetChanged(String),
    /// A look-up is done.
    LookedUp {
        /// Its id.
        id: u64,
        /// What was found.
        found: Option<Found>,
    },
}

/// The holder of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who.
    pub holder: PeerId,
    /// Its node name.
    pub name: NodeName,
    /// Its address.
    pub addr: VirtualAddr,
    /// For how long yet.
    pub remaining: Duration,
}

/// What was dropped, and what was done, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that could not be read.
    pub malformed: u64,
    /// Certificates that were not valid.
    pub bad_certificates: u64,
    /// Set entries that were refused.
    pub bad_entries: u64,
    /// Claims granted.
    pub granted: u64,
    /// Claims refused.
    pub refused: u64,
    /// Failures of the store.
    pub store_failures: u64,
    /// Requests not sent because too many were unanswered.
    pub overrun: u64,
}

/// What a request was sent for.
#[derive(Debug)]
enum Purpose {
    Claim { round: u64, keys: Vec<Key> },
    LookUp { id: u64 },
    Sync,
    ReadSet,
    Tell,
}

#[derive(Debug)]
struct Call {
    to: PeerId,
    purpose: Purpose,
    deadline: Instant,
}

/// What is to be done once a key's witnesses are known.
#[derive(Debug)]
enum Task {
    Claim { round: u64, slot: usize },
    LookUp { id: u64 },
    Tell(Request),
    ReadSet(String),
}

/// The register of one node.
pub struct Register<S: Store> {
    config: Config,
    keys: Box<dyn Keys>,
    store: S,
    rng: Box<dyn Rng + Send>,
    members: Members,
    leases: Leases,
    sets: Sets,
    claimant: Claimant,
    ready: bool,
    synced: BTreeSet<PeerId>,
    calls: BTreeMap<u64, Call>,
    locates: BTreeMap<u64, (Key, Task, Instant)>,
    lookups: BTreeMap<u64, LookUp>,
    cache: BTreeMap<Key, (Certificate, Instant)>,
    own_sets: BTreeMap<String, OwnSet>,
    outputs: VecDeque<Output>,
    counters: Counters,
    next_id: u64,
    next_sweep: Instant,
}

impl<S: Store> Register<S> {
    /// A register with what its store holds.
    ///
    /// # Errors
    /// [`Error::Store`] if the store cannot be read.
    pub fn new(
        config: Config,
        keys: Box<dyn Keys>,
        mut store: S,
        mut rng: Box<dyn Rng + Send>,
        time: Time,
    ) -> Result<Self, Error> {
        let known = store.load_members()?;
        let leases = Leases::load(store.load()?, time.now, time.wall);
        let own = store.load_own()?.unwrap_or_default();
        let persisted = known.is_some();
        let members = Members::new(config.me, known.unwrap_or_default());
        let ready = persisted || (config.founder && members.known() == 1);
        let claimant = Claimant::new(
            (config.me, config.name.clone()),
            (config.range, config.fixed),
            (Instance(rng.next_u64()), own.instances),
            own.addr,
        );
        let mut register = Self {
            config,
            keys,
            store,
            rng,
            members,
            leases,
            sets: Sets::default(),
            claimant,
            ready,
            synced: BTreeSet::new(),
            calls: BTreeMap::new(),
            locates: BTreeMap::new(),
            lookups: BTreeMap::new(),
            cache: BTreeMap::new(),
            own_sets: BTreeMap::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            next_id: 0,
            next_sweep: time.now,
        };
        if ready {
            register.store.save_members(&register.members.saved())?;
        }
        Ok(register)
    }

    /// Takes an input.
    pub fn handle(&mut self, input: Input, time: Time) {
        match input {
            Input::Request { from, id, bytes } => self.on_request(from, id, &bytes, time),
            Input::Reply { id, result } => self.on_reply(id, result.ok(), time),
            Input::Located { query, peers } => {
                if let Some((key, task, _)) = self.locates.remove(&query) {
                    let witnesses = self.members.closest(&key, peers);
                    self.run(task, witnesses, time);
                }
            }
            Input::Gossip { from, bytes } => match decode::<Request>(&bytes) {
                Ok(Request::Publish(entry)) => {
                    self.members.see(from, time.wall);
                    self.accept_entry(entry, None, time);
                }
                _ => self.counters.malformed += 1,
            },
            Input::MemberUp { peer } => self.on_member_up(peer, time),
            Input::MemberDown { peer } => self.on_member_down(&peer, time),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, time: Time) {
        let overdue: Vec<_> = self
            .calls
            .iter()
            .filter(|(_, call)| call.deadline <= time.now)
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            self.on_reply(id, None, time);
        }
        let unlocated: Vec<_> = self
            .locates
            .iter()
            .filter(|(_, (_, _, deadline))| *deadline <= time.now)
            .map(|(id, _)| *id)
            .collect();
        for query in unlocated {
            let peers = self.members.live().iter().copied().collect();
            self.handle(Input::Located { query, peers }, time);
        }
        self.expire_lookups(time);
        for set in self.sets.expire(time.now) {
            self.event(Event::SetChanged(set));
        }
        self.announce(time);
        if self.next_sweep <= time.now {
            self.sweep(time);
        }
        self.drive_claim(time);
    }

    /// When [`Self::handle_timeout`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let calls = self.calls.values().map(|call| call.deadline).min();
        let locates = self.locates.values().map(|(_, _, deadline)| *deadline).min();
        let lookups = self.lookups.values().map(|lookup| lookup.deadline).min();
        let own = self.own_sets.values().map(|set| set.next).min();
        [
            calls,
            locates,
            lookups,
            own,
            self.sets.next_expiry(),
            self.claimant.deadline(),
            Some(self.next_sweep),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next thing to do; to be asked until it is `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// How the node's lease stands.
    #[must_use]
    pub fn lease(&self) -> &LeaseState {
        &self.claimant.state
    }

    /// The entries of a set.
    #[must_use]
    pub fn set(&self, set: &str) -> Vec<SetView> {
        self.sets.view(set)
    }

    /// Whether this node grants claims.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// How many members are known, this node included.
    #[must_use]
    pub fn members_known(&self) -> usize {
        self.members.known()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Hands the store back, for a restart.
    #[must_use]
    pub fn into_store(self) -> S {
        self.store
    }

    fn sweep(&mut self, time: Time) {
        self.next_sweep = time.now
            + if self.ready {
                SWEEP_EVERY
            } else {
                SWEEP_EVERY_UNREADY
            };
        if self.leases.expire(&mut self.store, time.now).is_err() {
            self.counters.store_failures += 1;
        }
        self.cache.retain(|_, (_, until)| *until > time.now);
        for peer in self.members.live().clone() {
            self.members.see(peer, time.wall);
        }
        self.members.expire(time.wall);
        self.save_members();
        self.sync_some(time);
    }

    fn save_members(&mut self) {
        if self.ready && self.store.save_members(&self.members.saved()).is_err() {
            self.counters.store_failures += 1;
        }
    }

    fn save_own(&mut self, addr: Option<VirtualAddr>) -> Result<(), Error> {
        let claimant = &self.claimant;
        let mut instances = claimant.previous.clone();
        instances.push(claimant.instance);
        let skip = instances.len().saturating_sub(crate::claimant::MAX_STARTS);
        self.store.save_own(&OwnState {
            addr,
            instances: instances.split_off(skip),
        })?;
        Ok(())
    }

    /// Finds the witnesses of a key, then does the task.
    fn with_witnesses(&mut self, key: Key, task: Task, time: Time) {
        if self.members.is_small() {
            let witnesses = self.members.all();
            return self.run(task, witnesses, time);
        }
        if self.locates.len() >= MAX_LOCATES {
            self.counters.overrun += 1;
            let witnesses = self.members.closest(&key, self.members.live().iter().copied());
            return self.run(task, witnesses, time);
        }
        let query = self.id();
        self.locates.insert(query, (key, task, time.now + CALL_TIMEOUT));
        self.outputs.push_back(Output::Locate { query, key });
    }

    fn run(&mut self, task: Task, witnesses: Vec<PeerId>, time: Time) {
        match task {
            Task::Claim { round, slot } => self.ask_witnesses(round, slot, witnesses, time),
            Task::LookUp { id } => self.begin_look_up(id, witnesses, time),
            Task::Tell(request) => {
                for peer in witnesses {
                    if peer == self.config.me {
                        self.answer(peer, request.clone(), time);
                    } else {
                        self.send(peer, &request, Purpose::Tell, time);
                    }
                }
            }
            Task::ReadSet(set) => {
                let me = self.config.me;
                for peer in witnesses.into_iter().filter(|peer| *peer != me) {
                    self.send(
                        peer,
                        &Request::ReadSet { set: set.clone() },
                        Purpose::ReadSet,
                        time,
                    );
                }
            }
        }
    }

    /// Sends a request. `false` if it could not be.
    fn send(&mut self, to: PeerId, request: &Request, purpose: Purpose, time: Time) -> bool {
        let Ok(bytes) = encode(request) else {
            return false;
        };
        if self.calls.len() >= MAX_CALLS {
            self.counters.overrun += 1;
            return false;
        }
        let id = self.id();
        self.calls.insert(
            id,
            Call {
                to,
                purpose,
                deadline: time.now + CALL_TIMEOUT,
            },
        );
        self.outputs.push_back(Output::Send { to, id, bytes });
        true
    }

    fn on_reply(&mut self, id: u64, bytes: Option<Vec<u8>>, time: Time) {
        let Some(Call { to, purpose, .. }) = self.calls.remove(&id) else {
            return;
        };
        let answer = bytes.and_then(|bytes| {
            let answer = decode::<Answer>(&bytes);
            self.counters.malformed += u64::from(answer.is_err());
            answer.ok()
        });
        match purpose {
            Purpose::Claim { round, keys } => self.on_claim_answer((to, round, &keys), answer, time),
            Purpose::LookUp { id } => self.on_found(id, to, answer, time),
            Purpose::Sync => self.on_state(to, answer, time),
            Purpose::ReadSet => {
                if let Some(Answer::Set(entries)) = answer {
                    self.accept_entries(entries, time);
                }
            }
            Purpose::Tell => {}
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}
