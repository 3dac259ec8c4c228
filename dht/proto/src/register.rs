//! The register: one state, moved by inputs and by time.
//!
//! The caller gives every input to [`Register::handle_input`], calls [`Register::handle_timeout`] when
//! [`Register::poll_timeout`] is due, and after either of them takes all of [`Register::poll_output`] and
//! [`Register::poll_event`]. Nothing waits inside: each request of a member is answered within the call that brings
//! it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use aerie_types::{Instance, Key, PeerId};
use rand_core::Rng;

use crate::draw::Draw;
use crate::fence::Fence;
use crate::holder::Holdings;
use crate::limits::{MAX_MEMBERS, MAX_OUTPUTS, MAX_PENDING};
use crate::members::Members;
use crate::ready::Readiness;
use crate::record::Record;
use crate::rows::row_error;
use crate::search::Searches;
use crate::sets::Sets;
use crate::store::{Change, Store, Table};
use crate::strict::Named;
use crate::wire::{Answer, Gossip, Request, from_bytes, to_bytes};
use crate::witness::{NUMBER_ROW, remove};
use crate::{Config, Error, Event, Input, Keys, Now, Output, SendError, Stats};

/// How often what has ended is forgotten.
pub(crate) const PURGE_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// How often it is noted that connected members are still there; a small part of the day for which they count.
pub(crate) const SAVE_EVERY: std::time::Duration = std::time::Duration::from_secs(3600);

/// What an answer is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Claim {
        round: u64,
    },
    Merge {
        page: usize,
    },
    Fetch,
    Offer,
    Challenge {
        key: Key,
        current: Instance,
    },
    /// The holder of a certificate that survives this node's own is asked whether it holds the key yet.
    Rival {
        key: Key,
    },
    LookUp {
        search: u64,
    },
    Spread {
        search: u64,
    },
    Put {
        set: String,
    },
    Read {
        set: String,
    },
    Leaving,
    Nothing,
}

/// What a location is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Wanted {
    Round(u64),
    Search(u64),
    Set(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pending {
    to: PeerId,
    purpose: Purpose,
    deadline: Instant,
}

/// The register of one node in one grid.
#[derive(Debug, Clone)]
pub struct Register<S, K> {
    pub(crate) config: Config,
    pub(crate) me: PeerId,
    pub(crate) instance: Instance,
    pub(crate) keys: K,
    pub(crate) store: S,
    pub(crate) draw: Draw,
    pub(crate) members: Members,
    pub(crate) named: Named,
    pub(crate) readiness: Readiness,
    pub(crate) records: BTreeMap<Key, Record>,
    /// The number of the last grant.
    pub(crate) number: u64,
    pub(crate) holdings: Holdings,
    pub(crate) searches: Searches,
    pub(crate) sets: Sets,
    pub(crate) fence: Fence,
    pub(crate) handover_at: Option<Instant>,
    /// Members that may not have got what they were offered, or may have forgotten it, since the last handing over.
    pub(crate) untold: BTreeSet<PeerId>,
    pub(crate) stats: Stats,
    pub(crate) pending: BTreeMap<u64, Pending>,
    pub(crate) queries: BTreeMap<u64, (Wanted, Instant)>,
    pub(crate) next_id: u64,
    /// Requests of this node to itself, and those for which there was no room.
    local: VecDeque<(u64, Option<Request>)>,
    outputs: VecDeque<Output>,
    events: VecDeque<Event>,
    /// Rows of the store whose contents have ended.
    pub(crate) stale: BTreeSet<(Table, Key)>,
    /// What is written with the next transaction, or at the end of the call.
    pub(crate) unwritten: Vec<Change>,
    pub(crate) purge_at: Instant,
    pub(crate) save_at: Instant,
}

impl<S: Store, K: Keys> Register<S, K> {
    /// Reads the store, draws this start's instance, and begins to get ready.
    ///
    /// # Errors
    /// [`Error::Load`] or [`Error::Row`]: a witness must not start without what it granted before; [`Error::Named`].
    pub fn new(config: Config, keys: K, mut store: S, rng: &mut impl Rng, now: Now) -> Result<Self, Error> {
        let me = keys.me();
        let mut load = |table: Table| {
            let source = store.load(table);
            source.map_err(|source| Error::Load {
                table: table.name(),
                source,
            })
        };
        let (grants, certificates) = (load(Table::Grants)?, load(Table::Certificates)?);
        let (members, meta) = (load(Table::Members)?, load(Table::Meta)?);
        let meta: BTreeMap<Vec<u8>, Vec<u8>> = meta.into_iter().collect();
        let instance = Instance(rng.next_u64());
        let draw = Draw::new(rng.next_u64());
        let number = match meta.get(NUMBER_ROW) {
            None => 0,
            Some(bytes) => {
                let bytes: [u8; 8] = bytes.as_slice().try_into().map_err(|_| row_error(Table::Meta))?;
                let number = u64::from_be_bytes(bytes);
                // No witness lives to grant so much, and the next number has to be a higher one.
                if number > u64::MAX / 2 {
                    return Err(row_error(Table::Meta));
                }
                number
            }
        };
        let readiness = Readiness::at_start(&meta);
        let holdings = Holdings::at_start(&meta)?;
        let mut register = Self {
            me,
            instance,
            draw,
            members: Members::new(me),
            named: Named::new(&config.witnesses)?,
            readiness,
            records: BTreeMap::new(),
            number,
            holdings,
            searches: Searches::default(),
            sets: Sets::default(),
            fence: Fence::default(),
            handover_at: None,
            untold: BTreeSet::new(),
            stats: Stats::default(),
            pending: BTreeMap::new(),
            queries: BTreeMap::new(),
            next_id: 1,
            local: VecDeque::new(),
            outputs: VecDeque::new(),
            events: VecDeque::new(),
            stale: BTreeSet::new(),
            unwritten: Vec::new(),
            purge_at: now.instant + PURGE_EVERY,
            save_at: now.instant + SAVE_EVERY,
            config,
            keys,
            store,
        };
        register.learn(&register.keys.credential(), now);
        register.load_members(members, now)?;
        register.load_records(grants, certificates, now)?;
        register.found_or_wait(now);
        Ok(register)
    }

    /// Moves the register by one input.
    pub fn handle_input(&mut self, input: Input, now: Now) {
        match input {
            Input::Request { from, id, bytes } => {
                let answer = self.request(from, &bytes, now);
                self.output(Output::Answer {
                    id,
                    bytes: to_bytes(&answer),
                });
            }
            Input::Reply { id, result } => {
                let result = result.map(|bytes| from_bytes::<Answer>(&bytes));
                self.reply(id, result, now);
            }
            Input::Located { query, peers } => self.located(query, &peers, now),
            Input::Gossip { from, bytes } => match from_bytes::<Gossip>(&bytes) {
                Some(gossip) => self.gossiped(from, gossip, now),
                None => self.stats.malformed += 1,
            },
            Input::MemberUp { peer } => self.member_up(peer, now),
            Input::MemberDown { peer } => self.member_down(peer, now),
        }
        self.settle(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        let late = |deadline: &Instant| *deadline <= now.instant;
        // What was asked later has its deadline later.
        let lost: Vec<u64> = self
            .pending
            .iter()
            .take_while(|(_, pending)| late(&pending.deadline))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.reply(id, Err(SendError::Timeout), now);
        }
        let lost: Vec<u64> = self
            .queries
            .iter()
            .take_while(|(_, (_, deadline))| late(deadline))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.located(id, &[], now);
        }
        self.readiness_due(now);
        self.handover_due(now);
        self.holder_due(now);
        self.sets_due(now);
        if self.purge_at <= now.instant {
            self.purge(now);
        }
        self.settle(now);
    }

    /// When [`Self::handle_timeout`] is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let pending = self.pending.values().next().map(|pending| pending.deadline);
        let queries = self.queries.values().next().map(|(_, deadline)| *deadline);
        pending
            .into_iter()
            .chain(queries)
            .chain(self.handover_at)
            .chain(self.readiness_timeout())
            .chain(self.holder_timeout())
            .chain(self.sets.timeout())
            .chain([self.purge_at])
            .min()
    }

    /// What the driver is to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What the caller may want to know next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// This start of this node.
    #[must_use]
    pub fn instance(&self) -> Instance {
        self.instance
    }

    /// How many members this node counts, itself included.
    #[must_use]
    pub fn members_known(&self, now: Now) -> usize {
        self.members.count(now.instant)
    }

    /// What this witness knows of a key, for a person who looks for a fault.
    #[must_use]
    pub fn explain(&self, key: Key) -> String {
        match self.records.get(&key) {
            Some(record) => format!("{record:?}"),
            None => "nothing".to_owned(),
        }
    }

    /// An administrator declared a member gone, or revoked it: it does not count in the quorum of a small grid.
    pub fn forget(&mut self, peer: PeerId, now: Now) {
        self.left(peer, now);
        self.settle(now);
    }

    /// Gives the store back, as a crash leaves it.
    #[must_use]
    pub fn into_store(self) -> S {
        self.store
    }

    /// The store.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    fn request(&mut self, from: PeerId, bytes: &[u8], now: Now) -> Answer {
        let Some(request) = from_bytes::<Request>(bytes) else {
            self.stats.malformed += 1;
            return Answer::Malformed;
        };
        self.stats.requests += 1;
        self.answer(from, request, now)
    }

    fn answer(&mut self, from: PeerId, request: Request, now: Now) -> Answer {
        match request {
            Request::Claim(claim) => self.claim(from, &claim, now),
            Request::Release {
                key,
                instance,
                seq,
                held,
            } => self.released(from, key, instance, (seq, held), now),
            Request::LookUp { key } => self.looked_up_here(key, now),
            Request::Merge {
                credential,
                votes,
                members,
                after,
            } => self.merge_asked(from, &credential, votes, &members, after, now),
            Request::Offer(summaries) => self.offered(&summaries, now),
            Request::Fetch(keys) => self.fetched(&keys, now),
            Request::HandOver(handed) => self.handed_over(&handed, now),
            Request::Conflict(handed) => self.handed_over(std::slice::from_ref(&handed), now),
            Request::Challenge { instance } => {
                if instance == self.instance && from != self.me {
                    self.assert_soon(now);
                }
                Answer::Alive {
                    instance: self.instance,
                }
            }
            Request::Put { entry, credential } => self.put_here(from, &entry, credential.as_deref(), now),
            Request::Read { set, have } => self.read_here(&set, &have, now),
            Request::Leave => {
                self.left(from, now);
                Answer::Done
            }
        }
    }

    fn reply(&mut self, id: u64, result: Result<Option<Answer>, SendError>, now: Now) {
        let Some(pending) = self.pending.remove(&id) else {
            self.stats.stray_answers += 1;
            return;
        };
        let answer = match result {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                self.stats.malformed += 1;
                Err(SendError::Unreachable)
            }
            Err(error) => Err(error),
        };
        let from = pending.to;
        match pending.purpose {
            Purpose::Claim { round } => self.claim_answered(round, from, answer, now),
            Purpose::Merge { page } => self.merge_answered(from, page, answer, now),
            Purpose::Fetch => self.fetch_answered(answer, now),
            Purpose::Offer => self.offer_answered(from, answer, now),
            Purpose::Challenge { key, current } => {
                if let Ok(Answer::Alive { instance }) = answer {
                    self.challenge_answered(key, from, current, instance);
                }
            }
            Purpose::Rival { key } => self.rival_answered(from, key, &answer, now),
            Purpose::LookUp { search } => self.look_up_answered(search, from, answer, now),
            Purpose::Spread { search } => self.spread_answered(search, now),
            Purpose::Put { set } => self.put_answered(&set, from, answer, now),
            Purpose::Read { set } => self.read_answered(&set, answer, now),
            Purpose::Leaving => self.leaving_answered(),
            Purpose::Nothing => {}
        }
    }

    fn located(&mut self, query: u64, peers: &[PeerId], now: Now) {
        match self.queries.remove(&query) {
            None => self.stats.stray_answers += 1,
            Some((Wanted::Round(round), _)) => self.round_located(round, peers, now),
            Some((Wanted::Search(search), _)) => self.search_located(search, peers, now),
            Some((Wanted::Set(set), _)) => self.set_located(&set, peers, now),
        }
    }

    fn gossiped(&mut self, from: PeerId, gossip: Gossip, now: Now) {
        match gossip {
            Gossip::Entry { entry, credential } => self.entry_gossiped(&entry, &credential, now),
            Gossip::Restarting { holder, instance } => {
                if holder == self.me && instance != self.instance {
                    self.assert_soon(now);
                }
            }
            Gossip::Leave => self.left(from, now),
        }
    }

    fn member_up(&mut self, peer: PeerId, now: Now) {
        if peer == self.me {
            return;
        }
        self.members.up(peer, now.instant);
        self.save_member(peer, now);
        self.merge_with(peer, now);
        self.schedule_handover(now);
        self.holder_nudged(now);
        self.sets_nudged(now);
    }

    fn member_down(&mut self, peer: PeerId, now: Now) {
        self.members.down(peer, now.instant);
        self.save_member(peer, now);
        self.untell(peer);
        self.holdings.untold(peer);
        self.readiness.forget(peer);
        self.schedule_handover(now);
    }

    /// A member may not have got what it was offered, or may have forgotten it.
    pub(crate) fn untell(&mut self, peer: PeerId) {
        if self.untold.len() >= MAX_MEMBERS {
            // To offer something twice does no harm.
            self.untold.clear();
            for record in self.records.values_mut() {
                record.offered.clear();
            }
        }
        self.untold.insert(peer);
    }

    fn left(&mut self, peer: PeerId, now: Now) {
        self.members.left(peer, now.instant);
        // Forgotten later only makes the quorum of a small grid larger than it has to be.
        self.persist_soon(remove(Table::Members, &peer.0));
        self.holder_nudged(now);
    }

    /// Asks a member, this node itself included.
    pub(crate) fn ask(&mut self, to: PeerId, request: &Request, purpose: Purpose, now: Now) {
        let id = self.next_id;
        self.next_id += 1;
        let full = self.pending.len() >= MAX_PENDING;
        let deadline = now.instant + self.config.timings.request_timeout;
        self.pending.insert(
            id,
            Pending {
                to,
                purpose,
                deadline,
            },
        );
        if full {
            self.stats.over_bound += 1;
            self.local.push_back((id, None));
        } else if to == self.me {
            self.local.push_back((id, Some(request.clone())));
        } else {
            let bytes = to_bytes(request);
            self.output(Output::Send { to, id, bytes });
        }
    }

    pub(crate) fn locate(&mut self, key: Key, wanted: Wanted, now: Now) {
        let query = self.next_id;
        self.next_id += 1;
        let deadline = now.instant + self.config.timings.request_timeout * 2;
        self.queries.insert(query, (wanted, deadline));
        self.output(Output::Locate { query, key });
    }

    pub(crate) fn gossip(&mut self, gossip: &Gossip) {
        self.output(Output::Gossip(to_bytes(gossip)));
    }

    pub(crate) fn event(&mut self, event: Event) {
        if self.events.len() >= MAX_OUTPUTS {
            self.stats.over_bound += 1;
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn output(&mut self, output: Output) {
        if self.outputs.len() >= MAX_OUTPUTS {
            self.stats.over_bound += 1;
            self.outputs.pop_front();
        }
        self.outputs.push_back(output);
    }

    /// Lets this node answer itself until nothing is left to answer.
    pub(crate) fn settle(&mut self, now: Now) {
        while let Some((id, request)) = self.local.pop_front() {
            let result = match request {
                Some(request) => Ok(Some(self.answer(self.me, request, now))),
                None => Err(SendError::Unreachable),
            };
            self.reply(id, result, now);
        }
        // What was not written is known until the next restart.
        let _ = self.persist(&[]);
    }
}
