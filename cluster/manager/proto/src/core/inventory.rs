//! What hosts and the context broker say of themselves, asked from time to time.
//!
//! An inventory is the truth of the moment at which the host answered. A guest with which something was begun or ended
//! since the question is left to the next one.

use std::collections::{BTreeMap, BTreeSet};

use aerie_cluster_proto::ledger::{self, RequestId};
use aerie_context_proto::{HostName, MemberName};

use super::time::look_again;
use super::{Core, Doing, Effect, HINT_PAUSE, Hearing, Key, Now, Watch};
use crate::events::What;
use crate::host::{Facts, Failure, Found, GuestState, Inventory, Work, reason};
use crate::ids::{GuestId, ManagerId, OpId};
use crate::limits::{BACK_OFF, MAX_ATTEMPTS, MAX_FOUND, MAX_IMAGES, MAX_NUMBER, MAX_STEPS};
use crate::records::Record;
use crate::state::{ContextReport, Fault, Goal, Reached, Step};

impl Core {
    /// A host has answered, or not.
    pub(super) fn heard(&mut self, host: &HostName, op: OpId, found: Result<Inventory, Failure>, now: Now) {
        let next = now.mono + self.settings.ask_every;
        let Some(watch) = self.run.hosts.get_mut(host) else {
            return;
        };
        watch.asking = None;
        watch.next = if std::mem::take(&mut watch.hinted) {
            now.mono + HINT_PAUSE
        } else {
            next
        };
        // What was cut short says nothing of what is not in it: it is no answer.
        let Some((facts, guests)) = found.ok().and_then(|found| mine(found, self.world.manager)) else {
            return;
        };
        watch.heard = now.mono;
        let back = std::mem::replace(&mut watch.hearing, Hearing::Heard) != Hearing::Heard;
        let fresh = !std::mem::replace(&mut watch.seen, true);
        if back {
            self.record(Record::Told(What::HostBack { host: host.clone() }), now);
        }
        self.facts(host, facts, now);
        self.guests(host, op, &guests, now);
        if back || fresh {
            self.dirty_host(host);
        }
    }

    fn facts(&mut self, host: &HostName, mut facts: Facts, now: Now) {
        while facts.images.len() > MAX_IMAGES {
            facts.images.pop_last();
        }
        let known = self.world.hosts.get(host);
        let told_before = known.is_some_and(|known| known.facts == facts);
        if told_before {
            return;
        }
        let capacity = facts.capacity;
        let booked = self.book(
            ledger::Command::SetHost {
                host: host.clone(),
                capacity,
            },
            now,
        );
        // Beyond the ledger's bound of hosts there is no more room for another.
        if booked.is_ok() {
            let host = host.clone();
            self.record(Record::HostTold { host, facts }, now);
        }
    }

    fn guests(&mut self, host: &HostName, op: OpId, found: &[Found], now: Now) {
        let found: BTreeMap<GuestId, &GuestState> =
            found.iter().map(|found| (found.guest, &found.state)).collect();
        let mut ours = Vec::new();
        for (id, cluster) in self.world.clusters() {
            for (name, member) in cluster.members.iter().filter(|(_, member)| member.host == *host) {
                ours.push((id.clone(), name.clone(), member.guest));
            }
        }
        self.tell_ahead(host, &found, now);
        let orphans = self.orphans(&found);
        for (id, name, guest) in ours {
            let is_newer = |op: OpId| self.run.touched.get(&guest).is_none_or(|touched| *touched < op.0);
            if !self.run.busy.contains_key(&guest) && is_newer(op) {
                self.observe(&id, &name, found.get(&guest).copied(), now);
            }
        }
        for guest in orphans {
            self.remove_orphan(host, guest, now);
        }
    }

    /// Guests that this manager made as its journal was longer. They are told of, and left alone.
    fn tell_ahead(&mut self, host: &HostName, found: &BTreeMap<GuestId, &GuestState>, now: Now) {
        for guest in found.keys().copied() {
            let ours = self.world.manager.is_some_and(|manager| guest.is_of(manager));
            let told = self.run.ahead.contains(&guest) || self.run.ahead.len() >= MAX_FOUND;
            if !ours || told || self.world.has_given(guest) || guest.number() > MAX_NUMBER {
                continue;
            }
            self.run.ahead.insert(guest);
            let host = host.clone();
            self.record(Record::Ahead { host, guest }, now);
        }
    }

    /// Guests of this manager that no member is, or that a member was. One that a member is on a host of another name is
    /// none: the host goes by a new name, or its disks were moved.
    fn orphans(&self, found: &BTreeMap<GuestId, &GuestState>) -> Vec<GuestId> {
        let manager = self.world.manager;
        let members = self
            .world
            .clusters()
            .flat_map(|(_, cluster)| cluster.members.values());
        let there = members.filter(|member| member.reached != Reached::Gone);
        let belongs: BTreeSet<GuestId> = there.map(|member| member.guest).collect();
        let is_orphan = |guest: &GuestId| {
            let ours = manager.is_some_and(|manager| guest.is_of(manager));
            ours && self.world.has_given(*guest) && !belongs.contains(guest)
        };
        found.keys().copied().filter(is_orphan).collect()
    }

    fn remove_orphan(&mut self, host: &HostName, guest: GuestId, now: Now) {
        let steps = self.run.hosts.get(host).map_or(0, |watch| watch.steps);
        // Those that are too many are found again.
        if steps >= MAX_STEPS || self.run.busy.contains_key(&guest) {
            return;
        }
        let doing = Doing::Orphan {
            host: host.clone(),
            guest,
        };
        let op = self.begin_op(doing, Step::Destroy.limit(), now);
        let (host, work) = (host.clone(), Work::Destroy(guest));
        self.effects.push(Effect::Perform { op, host, work });
    }

    /// A guest is so, or is not there.
    pub(super) fn observe(
        &mut self,
        id: &RequestId,
        name: &MemberName,
        found: Option<&GuestState>,
        now: Now,
    ) {
        let Some(cluster) = self.world.clusters.get(id) else {
            return;
        };
        let Some(member) = cluster.members.get(name) else {
            return;
        };
        let (was, goal, doing, deployed) = (member.reached, member.goal, member.doing, member.deployed);
        let (host, guest) = (member.host.clone(), member.guest);
        // Nothing of it was found there: see `missing`.
        let lost = was == Reached::Nothing && matches!(member.fault, Some(Fault::Corrupted(_)));
        let (reached, why) = match found {
            None => return self.missing(id, name, now),
            Some(GuestState::Prepared) => match was {
                Reached::Nothing | Reached::Disks | Reached::Attached | Reached::Delivered => return,
                Reached::Gone => return,
                _ => (
                    Reached::Disks,
                    Some(format!("host '{host}' has its disks and no machine any more")),
                ),
            },
            Some(GuestState::Defined) if was == Reached::Nothing => return,
            Some(GuestState::Defined) => (Reached::Defined, None),
            Some(GuestState::Running) => (Reached::Running, None),
            Some(GuestState::Paused) => (Reached::Paused, None),
            Some(GuestState::Suspended) => (Reached::Suspended, None),
            Some(GuestState::Stopped) => (Reached::Stopped, None),
            Some(GuestState::Crashed { why }) => {
                (Reached::Crashed, Some(format!("it ended: {}", reason(why))))
            }
            Some(state @ (GuestState::Unresponsive { why } | GuestState::Damaged { why })) => {
                let what = match state {
                    GuestState::Damaged { .. } => "what its host keeps of it is damaged",
                    _ => "its hypervisor does not answer",
                };
                let why = format!("{what}: {}", reason(why));
                if member.problem.as_ref() != Some(&why) {
                    let (id, member) = (id.clone(), name.clone());
                    self.record(Record::Troubled { id, member, why }, now);
                }
                return;
            }
        };
        if reached == was && doing.is_none() {
            return;
        }
        self.run.dirty.insert(id.clone());
        let expected = doing.is_some_and(|step| step.leads_to(reached));
        if reached != was || expected {
            let (id, member) = (id.clone(), name.clone());
            self.record(Record::Reached { id, member, reached }, now);
        }
        if lost && goal.is_met(reached) {
            self.found_again(id, name, goal, now);
            return;
        }
        if expected || reached == was || goal.is_absent() {
            return;
        }
        let (id, name) = (id.clone(), name.clone());
        match (reached, why) {
            (Reached::Crashed | Reached::Disks, Some(why)) if deployed => {
                let fault = Fault::Corrupted(why);
                let member = name;
                self.record(Record::Faulted { id, member, fault }, now);
            }
            (Reached::Crashed, Some(why)) => self.crashed_early(id, name, guest, why, now),
            (Reached::Stopped, _) if matches!(goal, Goal::Started | Goal::Paused | Goal::Suspended) => {
                let why = "it switched itself off; start it to let it run again".to_owned();
                self.revert(id, name, Goal::Stopped, why, now);
            }
            (Reached::Paused, _) if goal == Goal::Started && was == Reached::Running => {
                let why =
                    "it stands still by itself, as one does whose disk is full; make room, then unpause it";
                self.revert(id, name, Goal::Paused, why.to_owned(), now);
            }
            _ => {}
        }
    }

    /// A guest that was not found is there, as it is to be: nothing is wrong with it.
    fn found_again(&mut self, id: &RequestId, name: &MemberName, goal: Goal, now: Now) {
        let aimed = Record::Aimed {
            id: id.clone(),
            members: [name.clone()].into(),
            goal,
            renew: false,
            save: BTreeMap::new(),
        };
        self.record(aimed, now);
    }

    /// It ended before it was deployed: as a start that failed.
    fn crashed_early(&mut self, id: RequestId, member: MemberName, guest: GuestId, why: String, now: Now) {
        let retry = self.run.retries.entry(Key::Guest(guest)).or_default();
        retry.attempts += 1;
        retry.until = now.mono + BACK_OFF.saturating_mul(retry.attempts);
        if retry.attempts >= MAX_ATTEMPTS {
            let why = format!("could not be started: {why}");
            let fault = Fault::Failed(why);
            self.record(Record::Faulted { id, member, fault }, now);
        }
    }

    /// Nothing of a guest is on its host.
    fn missing(&mut self, id: &RequestId, name: &MemberName, now: Now) {
        let member = self
            .world
            .clusters
            .get(id)
            .and_then(|cluster| cluster.members.get(name));
        let Some(member) = member else {
            return;
        };
        if matches!(member.reached, Reached::Gone | Reached::Nothing) {
            // Where there is nothing yet, nothing is missing; and what is to be removed is removed by a step, after
            // which nothing that was begun before is done any more.
            return;
        }
        let reached = Reached::Nothing;
        let wanted = member.is_wanted() && member.deployed;
        let why = format!("host '{}' has nothing of it any more", member.host);
        let (id, member) = (id.clone(), name.clone());
        self.run.dirty.insert(id.clone());
        self.record(
            Record::Reached {
                id: id.clone(),
                member: member.clone(),
                reached,
            },
            now,
        );
        if wanted {
            let fault = Fault::Corrupted(why);
            self.record(Record::Faulted { id, member, fault }, now);
        }
    }

    /// The context broker has said how members are.
    pub(super) fn looked(
        &mut self,
        id: &RequestId,
        found: Result<BTreeMap<MemberName, ContextReport>, Failure>,
        now: Now,
    ) {
        let Some(cluster) = self.world.clusters.get(id).cloned() else {
            return;
        };
        let look = self.run.looks.entry(id.clone()).or_default();
        look.asking = false;
        look.next = now.mono + look_again(&cluster, self.settings.look_every);
        let Ok(found) = found else {
            return;
        };
        for (name, member) in &cluster.members {
            let Some(report) = found.get(name) else {
                continue;
            };
            if member.report.as_ref() != Some(report) {
                let (id, member, report) = (id.clone(), name.clone(), report.clone());
                self.record(Record::Reported { id, member, report }, now);
            }
        }
    }
}

/// What a host has, and the guests on it that are this manager's; nothing where there are so many that some may be
/// left out.
fn mine(found: Inventory, manager: Option<ManagerId>) -> Option<(Facts, Vec<Found>)> {
    let Inventory { facts, mut guests } = found;
    guests.retain(|found| manager.is_some_and(|manager| found.guest.is_of(manager)));
    (guests.len() < MAX_FOUND).then_some((facts, guests))
}

impl Watch {
    /// What becomes of a host that was silent for so long.
    pub(super) fn silent(&self, silence: std::time::Duration, settings: &super::Settings) -> Hearing {
        if silence >= settings.lose_after {
            Hearing::Lost
        } else if silence >= settings.suspect_after {
            Hearing::Suspected
        } else {
            self.hearing
        }
    }
}
