//! Applying records.

use aerie_types::WallMillis;

use super::{Books, Hold, HoldState, Ledger, Owner, Record, RequestId};
use crate::amount::{Lifetime, Resources};
use crate::error::Corrupt;
use crate::limits::{ENDED_KEPT, ENDED_ROOM, MAX_ENDED};
use crate::placement::Plan;

impl Ledger {
    /// Applies a record that has been made durable, or is read from a journal.
    ///
    /// # Errors
    /// [`Corrupt`] where it does not follow from those before it; nothing has changed then. A record of
    /// [`Ledger::decide`] follows, if no other came between.
    pub fn commit(&mut self, record: &Record) -> Result<(), Corrupt> {
        let index = self.records;
        self.apply(record).map_err(|why| Corrupt { index, why })?;
        self.records += 1;
        Ok(())
    }

    fn apply(&mut self, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::HostSet { host, capacity } => {
                let held = self.hosts.get(host).map_or(Resources::NONE, |books| books.held);
                let capacity = *capacity;
                self.hosts.insert(host.clone(), Books { capacity, held });
            }
            Record::HostRemoved { host } => match self.hosts.get(host) {
                None => return Err("it removes a host that is not there"),
                Some(books) if books.held != Resources::NONE => {
                    return Err("it removes a host that is in use");
                }
                Some(_) => {
                    self.hosts.remove(host);
                }
            },
            Record::Reserved {
                id,
                owner,
                plan,
                lifetime_secs,
                until,
            } => self.hold_plan(id, owner, plan, Lifetime::secs(*lifetime_secs), *until)?,
            Record::Committed { id, at, until } => {
                let hold = self.holds.get_mut(id).ok_or("it commits what is not reserved")?;
                if !matches!(hold.state, HoldState::Reserved { .. }) {
                    return Err("it commits what is committed already");
                }
                hold.state = HoldState::Committed {
                    since: *at,
                    until: *until,
                };
            }
            Record::Extended { id, until } => match self.holds.get_mut(id).map(|hold| &mut hold.state) {
                Some(HoldState::Committed { until: promised, .. }) => *promised = *until,
                Some(HoldState::Reserved { .. }) => return Err("it extends what is not committed"),
                None => return Err("it extends what is not there"),
            },
            Record::GaveBack { id, members, at } => self.give_back_some(id, members, *at)?,
            Record::Ended { id, at, .. } => self.give_back(id, *at)?,
            Record::PeriodBegun { at } => {
                self.spent.clear();
                for hold in self.holds.values_mut() {
                    if let HoldState::Committed { since, .. } = &mut hold.state {
                        *since = (*since).max(*at);
                    }
                }
            }
        }
        Ok(())
    }

    fn hold_plan(
        &mut self,
        id: &RequestId,
        owner: &Owner,
        plan: &Plan,
        lifetime: Lifetime,
        until: WallMillis,
    ) -> Result<(), &'static str> {
        if self.holds.contains_key(id) || self.ended.contains(id) {
            return Err("it reserves under an id that is in use");
        }
        if self.has_room(plan).is_err() {
            return Err("it reserves more than a host has");
        }
        for placed in plan.members.values() {
            if let Some(books) = self.hosts.get_mut(&placed.host) {
                // There is room for the sum, so that no part of it overflows.
                books.held = books.held.plus(&placed.amounts).unwrap_or(books.held);
            }
        }
        let hold = Hold {
            owner: owner.clone(),
            plan: plan.clone(),
            lifetime,
            state: HoldState::Reserved { until },
        };
        self.holds.insert(id.clone(), hold);
        Ok(())
    }

    fn give_back(&mut self, id: &RequestId, at: WallMillis) -> Result<(), &'static str> {
        let hold = self.holds.remove(id).ok_or("it ends what is not there")?;
        for placed in hold.plan.members.values() {
            if let Some(books) = self.hosts.get_mut(&placed.host) {
                // It was added when the plan was held; a host that is in use is not removed.
                books.held = books.held.minus(&placed.amounts).unwrap_or(books.held);
            }
        }
        if let HoldState::Committed { since, .. } = hold.state {
            let spent = hold.time(at.since(since));
            self.spent.entry(hold.owner).or_default().add(spent);
        }
        self.ended.insert(id.clone());
        self.ended_order.push_back((id.clone(), at));
        while self.forgets_first(at)
            && let Some((first, _)) = self.ended_order.pop_front()
        {
            self.ended.remove(&first);
        }
        Ok(())
    }

    /// Whether the id that ended first is to make room for others.
    fn forgets_first(&self, now: WallMillis) -> bool {
        let old = |(_, at): &(RequestId, WallMillis)| now.since(*at) >= ENDED_KEPT;
        let known = self.ended_order.len();
        known > MAX_ENDED || known > ENDED_ROOM && self.ended_order.front().is_some_and(old)
    }
}
