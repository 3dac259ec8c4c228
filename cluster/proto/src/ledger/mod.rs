//! What is reserved on every host, and by whom: nothing is promised twice.
//!
//! Between a placement and running machines lie minutes of copying images. The ledger holds the place meanwhile, and
//! then for as long as the machines live. A reservation is of a whole [`Plan`] or of nothing, under an id that its
//! asker chose: to ask again with the same id, after a crash or a lost answer, changes nothing. It is the same request
//! if it has the same owner, life-time and members. Their places may differ, for whoever asks again may have placed
//! anew, with its own hold in the way: the plan that is held stands, and [`Ledger::hold`] tells it.
//!
//! ```text
//!            reserve                  commit
//!  (unknown) ───────► Reserved ────────────────► Committed
//!                        │  until its lease         │  until its life-time, which may be extended
//!                        │ release                  │ release
//!                        │ expire, once due         │ expire, once due
//!                        └───────────┬──────────────┘
//!                                    ▼
//!                                  Ended ── after a day or more ──► (unknown)
//! ```
//!
//! A command is judged by [`Ledger::decide`], which changes nothing; the [`Record`] that comes of it is made durable
//! and then applied by [`Ledger::commit`], before the next command is judged: room and quotas are those of the ledger
//! that was asked. The journal of records is the state: [`Ledger::replay`] makes the same
//! ledger of it, up to whichever record the machine went down at.
//!
//! Time is given with each command. Nothing ends by itself: [`Ledger::due`] names what should, and whoever drives the
//! ledger first stops what runs there, then says [`Command::Expire`]. Until then the place is held, so that a host is
//! never promised while somebody is still on it. A host that shrank has what it has: what is held of it stays held,
//! and nothing new is promised of a kind until what is held fits again. That the clock goes back does no harm: times only grow within one
//! reservation. That it jumps ahead makes no id forgotten of the [`ENDED_ROOM`](crate::limits::ENDED_ROOM) that ended
//! last: ids are forgotten in the order of the records, to make room, and time only keeps them longer.

mod apply;
mod change;
mod quota;
mod records;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aerie_context_proto::HostName;
use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

pub use quota::{Ask, Exceeded, Limit, Overdrawn, PerRequest, Quota, Subject, Usage};
pub use records::{Command, Decision, End, Owner, Record, Refusal, RequestId, Reservation};
pub use snapshot::Snapshot;

use crate::amount::{Kind, Lifetime, Resources};
use crate::limits::{MAX_HELD_MEMBERS, MAX_HOLDS, MAX_HOSTS, MAX_LEASE, MAX_LIFETIME};
use crate::placement::Plan;

/// All reservations. See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    hosts: BTreeMap<HostName, Books>,
    holds: BTreeMap<RequestId, Hold>,
    /// The reservations that ended and whose ids are still known.
    ended: BTreeSet<RequestId>,
    /// These in the order of their records, with the times that those name.
    ended_order: VecDeque<(RequestId, WallMillis)>,
    /// What ended reservations used in this period.
    spent: BTreeMap<Owner, Spent>,
    records: u64,
}

/// A host's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Books {
    capacity: Resources,
    held: Resources,
}

/// A reservation that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Whose it is.
    pub owner: Owner,
    /// What is held where.
    pub plan: Plan,
    /// How long it lives once it is committed.
    pub lifetime: Lifetime,
    /// How far it is.
    pub state: HoldState,
}

/// How far a reservation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldState {
    /// The place is held.
    Reserved {
        /// When the lease ends.
        until: WallMillis,
    },
    /// Machines are there.
    Committed {
        /// Since when they count in this period.
        since: WallMillis,
        /// When the life-time ends.
        until: WallMillis,
    },
}

/// Time used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Spent {
    cpu_secs: u64,
    wall_secs: u64,
}

impl Hold {
    /// When it ends by itself.
    #[must_use]
    pub fn until(&self) -> WallMillis {
        match self.state {
            HoldState::Reserved { until } | HoldState::Committed { until, .. } => until,
        }
    }

    /// Its time from one moment to another.
    fn time(&self, wall: Duration) -> Spent {
        Spent::of(&self.plan, wall)
    }
}

impl Spent {
    /// The time of all members of a plan.
    fn of(plan: &Plan, wall: Duration) -> Self {
        let [cpus, ..] = plan.total();
        let times = |count: u128| u64::try_from(count * u128::from(wall.as_secs())).unwrap_or(u64::MAX);
        Self {
            cpu_secs: times(cpus),
            wall_secs: times(plan.members.len() as u128),
        }
    }

    fn add(&mut self, more: Self) {
        self.cpu_secs = self.cpu_secs.saturating_add(more.cpu_secs);
        self.wall_secs = self.wall_secs.saturating_add(more.wall_secs);
    }
}

impl Ledger {
    /// The ledger that a journal makes.
    ///
    /// # Errors
    /// [`Corrupt`](crate::Corrupt) with the first record that does not follow from those before it.
    pub fn replay(records: impl IntoIterator<Item = Record>) -> Result<Self, crate::Corrupt> {
        let mut ledger = Self::default();
        for record in records {
            ledger.commit(&record)?;
        }
        Ok(ledger)
    }

    /// Judges a command. Changes nothing: the record is for [`Ledger::commit`], once it is durable.
    ///
    /// # Errors
    /// [`Refusal`] with what is in the way.
    pub fn decide(&self, command: Command, now: WallMillis) -> Result<Decision, Refusal> {
        match command {
            Command::SetHost { host, capacity } => self.set_host(host, capacity),
            Command::RemoveHost { host } => self.remove_host(host),
            Command::Reserve(reservation) => self.reserve(reservation, now),
            Command::Commit { id } => self.decide_commit(id, now),
            Command::Extend { id, until, quotas } => self.decide_extend(id, until, &quotas, now),
            Command::GiveBack { id, members } => self.decide_give_back(id, members, now),
            Command::Release { id } => Ok(self.end(id, now, End::Released)),
            Command::Expire { id } => self.expire(id, now),
            Command::BeginPeriod => Ok(Decision::Record(Record::PeriodBegun { at: now })),
        }
    }

    fn set_host(&self, host: HostName, capacity: Resources) -> Result<Decision, Refusal> {
        let books = self.hosts.get(&host);
        if books.is_some_and(|books| books.capacity == capacity) {
            return Ok(Decision::Already);
        }
        if books.is_none() && self.hosts.len() >= MAX_HOSTS {
            return Err(Refusal::Limit {
                what: "hosts",
                limit: MAX_HOSTS,
            });
        }
        // It may be less than is held: a host that lost memory has lost it, whatever was promised of it before.
        Ok(Decision::Record(Record::HostSet { host, capacity }))
    }

    fn remove_host(&self, host: HostName) -> Result<Decision, Refusal> {
        let Some(books) = self.hosts.get(&host) else {
            return Ok(Decision::Already);
        };
        match Kind::ALL.into_iter().find(|kind| books.held.of(*kind) > 0) {
            Some(kind) => Err(Refusal::InUse {
                host,
                kind,
                held: books.held.of(kind),
            }),
            None => Ok(Decision::Record(Record::HostRemoved { host })),
        }
    }

    fn reserve(&self, reservation: Reservation, now: WallMillis) -> Result<Decision, Refusal> {
        let Reservation {
            id,
            owner,
            plan,
            lease,
            lifetime,
            quotas,
        } = reservation;
        if let Some(hold) = self.holds.get(&id) {
            // Places and amounts are not compared: whoever lost the answer may have placed anew, around its own hold.
            let same = hold.owner == owner
                && hold.lifetime == lifetime
                && hold.plan.members.keys().eq(plan.members.keys());
            return if same {
                Ok(Decision::Already)
            } else {
                Err(Refusal::Differs(id))
            };
        }
        if self.ended.contains(&id) {
            return Err(Refusal::Ended(id));
        }
        if self.holds.len() >= MAX_HOLDS {
            return Err(Refusal::Limit {
                what: "reservations",
                limit: MAX_HOLDS,
            });
        }
        if plan.members.is_empty() {
            return Err(Refusal::Empty(id));
        }
        let held: usize = self.holds.values().map(|hold| hold.plan.members.len()).sum();
        if held + plan.members.len() > MAX_HELD_MEMBERS {
            return Err(Refusal::Limit {
                what: "members",
                limit: MAX_HELD_MEMBERS,
            });
        }
        if lease < Duration::from_secs(1) || lease > MAX_LEASE {
            return Err(Refusal::Lease { id, given: lease });
        }
        let time = lifetime.duration();
        if time < Duration::from_secs(1) || time > MAX_LIFETIME {
            return Err(Refusal::Time { id, given: time });
        }
        self.admit(&quotas, &owner, &Ask::of(&plan, time), now)?;
        self.has_room(&plan)?;
        Ok(Decision::Record(Record::Reserved {
            id,
            owner,
            plan,
            lifetime_secs: lifetime.duration().as_secs(),
            until: now.plus(lease),
        }))
    }

    /// Whether every host has what a plan takes of it. Sums are of wide numbers: a plan may come from anywhere.
    fn has_room(&self, plan: &Plan) -> Result<(), Refusal> {
        let mut asked: BTreeMap<(&HostName, Kind), u128> = BTreeMap::new();
        for placed in plan.members.values() {
            for kind in Kind::ALL {
                *asked.entry((&placed.host, kind)).or_default() += u128::from(placed.amounts.of(kind));
            }
        }
        for ((host, kind), asked) in asked {
            let Some(free) = self.free(host) else {
                return Err(Refusal::UnknownHost(host.clone()));
            };
            if asked > u128::from(free.of(kind)) {
                return Err(Refusal::NoRoom {
                    host: host.clone(),
                    kind,
                    asked: u64::try_from(asked).unwrap_or(u64::MAX),
                    free: free.of(kind),
                });
            }
        }
        Ok(())
    }

    fn decide_commit(&self, id: RequestId, now: WallMillis) -> Result<Decision, Refusal> {
        let Some(hold) = self.holds.get(&id) else {
            return Err(self.gone(id));
        };
        match hold.state {
            HoldState::Committed { .. } => Ok(Decision::Already),
            HoldState::Reserved { until } if now >= until => Err(Refusal::Lapsed(id)),
            HoldState::Reserved { .. } => Ok(Decision::Record(Record::Committed {
                id,
                at: now,
                until: now.plus(hold.lifetime.duration()),
            })),
        }
    }

    pub(super) fn gone(&self, id: RequestId) -> Refusal {
        if self.ended.contains(&id) {
            Refusal::Ended(id)
        } else {
            Refusal::Unknown(id)
        }
    }

    /// Ends what there is; what is not there has ended already, or never began, and holds nothing either way.
    fn end(&self, id: RequestId, at: WallMillis, why: End) -> Decision {
        if self.holds.contains_key(&id) {
            Decision::Record(Record::Ended { id, at, why })
        } else {
            Decision::Already
        }
    }

    fn expire(&self, id: RequestId, now: WallMillis) -> Result<Decision, Refusal> {
        match self.holds.get(&id) {
            Some(hold) if now < hold.until() => Err(Refusal::NotDue {
                id,
                left: hold.until().since(now),
            }),
            _ => Ok(self.end(id, now, End::Expired)),
        }
    }

    /// Reservations that should end, the longest overdue first.
    #[must_use]
    pub fn due(&self, now: WallMillis) -> Vec<&RequestId> {
        let mut due: Vec<_> = self
            .holds
            .iter()
            .map(|(id, hold)| (hold.until(), id))
            .filter(|(until, _)| *until <= now)
            .collect();
        due.sort();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// When the next reservation ends by itself.
    #[must_use]
    pub fn next_due(&self) -> Option<WallMillis> {
        self.holds.values().map(Hold::until).min()
    }

    /// A reservation that has not ended.
    #[must_use]
    pub fn hold(&self, id: &RequestId) -> Option<&Hold> {
        self.holds.get(id)
    }

    /// All reservations that have not ended.
    pub fn holds(&self) -> impl Iterator<Item = (&RequestId, &Hold)> {
        self.holds.iter()
    }

    /// What a host has altogether; nothing for one that the ledger does not have.
    #[must_use]
    pub fn capacity(&self, host: &HostName) -> Option<Resources> {
        self.hosts.get(host).map(|books| books.capacity)
    }

    /// What is free of a host: nothing of a kind of which more is held than there is, since the host shrank.
    #[must_use]
    pub fn free(&self, host: &HostName) -> Option<Resources> {
        let books = self.hosts.get(host)?;
        Some(books.capacity.without(&books.held))
    }

    /// What is held of a host, which is more than it has where it shrank.
    #[must_use]
    pub fn held(&self, host: &HostName) -> Option<Resources> {
        self.hosts.get(host).map(|books| books.held)
    }

    /// What somebody has and has used, at a time.
    #[must_use]
    pub fn usage(&self, subject: &Subject, now: WallMillis) -> Usage {
        self.usage_but(None, subject, now)
    }

    /// As [`Ledger::usage`], without one reservation.
    fn usage_but(&self, without: Option<&RequestId>, subject: &Subject, now: WallMillis) -> Usage {
        let mut usage = Usage::default();
        for (_, spent) in self.spent.iter().filter(|(owner, _)| subject.has(owner)) {
            usage.add_time(*spent, Spent::default());
        }
        let counted = self
            .holds
            .iter()
            .filter(|(id, hold)| Some(*id) != without && subject.has(&hold.owner));
        for (_, hold) in counted {
            let (elapsed, whole) = match hold.state {
                HoldState::Reserved { .. } => (Duration::ZERO, hold.lifetime.duration()),
                HoldState::Committed { since, until } => {
                    let elapsed = now.since(since);
                    (elapsed, until.since(since).max(elapsed))
                }
            };
            usage.add_time(hold.time(elapsed), hold.time(whole.saturating_sub(elapsed)));
            usage.add_plan(&hold.plan);
        }
        usage
    }

    /// Whether a request stays within all quotas that apply to its owner, by what is used at this time.
    ///
    /// It is asked before a request is placed, to spare the work, and promises nothing: another may be reserved in
    /// between. What holds is the judgement of [`Command::Reserve`], which asks it again of the plan.
    ///
    /// # Errors
    /// [`Overdrawn`] with every quota that it would exceed.
    pub fn admit(
        &self,
        quotas: &[(Subject, Quota)],
        owner: &Owner,
        ask: &Ask,
        now: WallMillis,
    ) -> Result<(), Overdrawn> {
        self.admit_but(None, quotas, owner, ask, now)
    }

    /// As [`Ledger::admit`], as if one reservation were not there.
    fn admit_but(
        &self,
        without: Option<&RequestId>,
        quotas: &[(Subject, Quota)],
        owner: &Owner,
        ask: &Ask,
        now: WallMillis,
    ) -> Result<(), Overdrawn> {
        let mut exceeded = Vec::new();
        for (subject, quota) in quotas.iter().filter(|(subject, _)| subject.has(owner)) {
            let usage = self.usage_but(without, subject, now);
            exceeded.extend(quota.check(subject, &usage, ask));
        }
        if exceeded.is_empty() {
            Ok(())
        } else {
            Err(Overdrawn(exceeded))
        }
    }
}
