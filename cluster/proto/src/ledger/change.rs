//! Changes of a reservation while it is held: more time, and fewer members.

use std::collections::BTreeSet;

use aerie_context_proto::MemberName;
use aerie_types::WallMillis;

use super::{Ask, Decision, HoldState, Ledger, Quota, Record, Refusal, RequestId, Spent, Subject};
use crate::limits::MAX_LIFETIME;
use crate::placement::Plan;

impl Ledger {
    pub(super) fn decide_extend(
        &self,
        id: RequestId,
        until: WallMillis,
        quotas: &[(Subject, Quota)],
        now: WallMillis,
    ) -> Result<Decision, Refusal> {
        let Some(hold) = self.holds.get(&id) else {
            return Err(self.gone(id));
        };
        let HoldState::Committed {
            since,
            until: promised,
        } = hold.state
        else {
            return Err(Refusal::NotCommitted(id));
        };
        if until <= promised {
            return Ok(Decision::Already);
        }
        let given = until.since(since);
        if given > MAX_LIFETIME {
            return Err(Refusal::Time { id, given });
        }
        // Held against the quotas anew and as a whole, as if it were not there yet.
        let ask = Ask::of(&hold.plan, given);
        self.admit_but(Some(&id), quotas, &hold.owner, &ask, now)?;
        Ok(Decision::Record(Record::Extended { id, until }))
    }

    pub(super) fn decide_give_back(
        &self,
        id: RequestId,
        mut members: BTreeSet<MemberName>,
        at: WallMillis,
    ) -> Result<Decision, Refusal> {
        let Some(hold) = self.holds.get(&id) else {
            return Err(self.gone(id));
        };
        members.retain(|member| hold.plan.members.contains_key(member));
        if members.is_empty() {
            return Ok(Decision::Already);
        }
        if members.len() == hold.plan.members.len() {
            return Err(Refusal::Empty(id));
        }
        Ok(Decision::Record(Record::GaveBack { id, members, at }))
    }

    pub(super) fn give_back_some(
        &mut self,
        id: &RequestId,
        members: &BTreeSet<MemberName>,
        at: WallMillis,
    ) -> Result<(), &'static str> {
        let hold = self
            .holds
            .get_mut(id)
            .ok_or("it gives back of what is not there")?;
        let held = |member: &MemberName| hold.plan.members.contains_key(member);
        if members.is_empty() || members.len() >= hold.plan.members.len() || !members.iter().all(held) {
            return Err("it gives back other members than are held");
        }
        let mut back = Plan::default();
        for member in members {
            if let Some(placed) = hold.plan.members.remove(member) {
                back.members.insert(member.clone(), placed);
            }
        }
        for placed in back.members.values() {
            if let Some(books) = self.hosts.get_mut(&placed.host) {
                // It was added when the plan was held; a host that is in use is not removed.
                books.held = books.held.minus(&placed.amounts).unwrap_or(books.held);
            }
        }
        if let HoldState::Committed { since, .. } = hold.state {
            let spent = Spent::of(&back, at.since(since));
            self.spent.entry(hold.owner.clone()).or_default().add(spent);
        }
        Ok(())
    }
}
