//! What becomes of what was begun.

use std::sync::Arc;

use aerie_cluster_proto::description::Image;
use aerie_cluster_proto::ledger::RequestId;
use aerie_context_proto::{HostName, MemberName, SetName};

use super::{Core, Doing, Key, Now, Outcome, Retry};
use crate::events::What;
use crate::host::{Failure, FailureKind, GuestState};
use crate::ids::{GuestId, OpId};
use crate::limits::{BACK_OFF, MAX_ATTEMPTS, MAX_BACK_OFF};
use crate::records::Record;
use crate::state::{Fault, Goal, Reached, Step};

/// A member's step, as it was begun.
struct Was {
    cluster: RequestId,
    member: MemberName,
    guest: GuestId,
    host: HostName,
    step: Step,
}

impl Core {
    /// Something has ended. What nobody waits for any more changes nothing.
    pub fn outcome(&mut self, op: OpId, outcome: Outcome, now: Now) {
        let Some(doing) = self.end_op(op) else {
            return;
        };
        match (doing, outcome) {
            (Doing::Ask { host }, Outcome::Inventory(found)) => self.heard(&host, op, found, now),
            (Doing::Stage { host, image }, Outcome::Performed(done)) => self.staged(host, image, done, now),
            (Doing::Orphan { host, guest }, Outcome::Performed(done)) => {
                if done.is_ok() {
                    self.record(Record::Told(What::OrphanRemoved { host, guest }), now);
                }
            }
            (
                Doing::Member {
                    cluster,
                    member,
                    guest,
                    host,
                    step,
                },
                Outcome::Performed(done),
            ) => {
                let was = Was {
                    cluster,
                    member,
                    guest,
                    host,
                    step,
                };
                self.performed(was, done, now);
            }
            (Doing::MakeContext(id), Outcome::Context(done)) => self.context_made(id, done, now),
            (Doing::RemoveContext(id), Outcome::Context(done)) => self.context_removed(id, done, now),
            (Doing::Look(id), Outcome::Looked(found)) => self.looked(&id, found, now),
            // An answer to another question is none.
            (_, _) => {}
        }
    }

    fn staged(&mut self, host: HostName, image: Image, done: Result<Option<GuestState>, Failure>, now: Now) {
        let key = Key::Image(host.clone(), image.clone());
        let waiting = self.waiting_for(&host, &image);
        self.run.dirty.extend(waiting.iter().map(|(id, _, _)| id.clone()));
        match done {
            Ok(_) => {
                self.run.retries.remove(&key);
                if self.world.hosts.contains_key(&host) {
                    self.record(Record::HostStaged { host, image }, now);
                }
            }
            Err(failure) => {
                if self.try_again(key.clone(), &host, &failure, false, now) {
                    return;
                }
                self.run.retries.remove(&key);
                for (cluster, member, guest) in waiting {
                    let was = Was {
                        cluster,
                        member,
                        guest,
                        host: host.clone(),
                        step: Step::Stage,
                    };
                    self.give_up(&was, &failure, now);
                }
            }
        }
    }

    /// Members that are on their way and for which an image comes to a host.
    fn waiting_for(&self, host: &HostName, image: &Image) -> Vec<(RequestId, MemberName, GuestId)> {
        let mut waiting = Vec::new();
        for (id, cluster) in self.world.clusters() {
            let of_image = |set: &SetName| {
                let mut sets = cluster.description.workspaces.iter();
                sets.any(|workspace| workspace.name == *set && workspace.image == *image)
            };
            for (name, member) in &cluster.members {
                let begins = member.is_wanted() && member.reached == Reached::Nothing;
                if member.host == *host && begins && of_image(&member.set) {
                    waiting.push((id.clone(), name.clone(), member.guest));
                }
            }
        }
        waiting
    }

    fn performed(&mut self, was: Was, done: Result<Option<GuestState>, Failure>, now: Now) {
        self.run.dirty.insert(was.cluster.clone());
        match done {
            Ok(state) if was.step.is_power() && !leads(was.step, state.as_ref()) => {
                self.led_elsewhere(was, state, now);
            }
            Ok(state) => {
                self.run.retries.remove(&Key::Guest(was.guest));
                self.progress(was, state, now);
            }
            Err(failure) => {
                let for_ever = was.step == Step::Destroy;
                if !self.try_again(Key::Guest(was.guest), &was.host, &failure, for_ever, now) {
                    self.give_up(&was, &failure, now);
                } else if for_ever {
                    self.trouble(&was, &failure, now);
                }
            }
        }
    }

    /// A machine is not what it was told to be, though nobody says that anything failed: that is an attempt, too.
    fn led_elsewhere(&mut self, was: Was, state: Option<GuestState>, now: Now) {
        let key = Key::Guest(was.guest);
        let attempts = |core: &Self| core.run.retries.get(&key).map_or(0, |retry| retry.attempts);
        let before = attempts(self);
        let (id, name) = (was.cluster.clone(), was.member.clone());
        self.observe(&id, &name, state.as_ref(), now);
        let member = self.world.clusters.get(&id).and_then(|it| it.members.get(&name));
        if member.is_none_or(|member| member.fault.is_some() || member.goal.is_met(member.reached)) {
            self.run.retries.remove(&key);
            return;
        }
        if attempts(self) != before {
            // A start that ended in a crash was counted as such.
            return;
        }
        let is = state.map_or("not there".to_owned(), |state| state.to_string());
        let failure = Failure::failed(format!("it is {is} afterwards"));
        if !self.try_again(key, &was.host, &failure, false, now) {
            self.give_up(&was, &failure, now);
        }
    }

    fn progress(&mut self, was: Was, state: Option<GuestState>, now: Now) {
        let (id, member) = (was.cluster, was.member);
        let reached = match was.step {
            Step::Stage => return,
            Step::Prepare => Reached::Disks,
            Step::Attach => Reached::Attached,
            Step::Deliver => Reached::Delivered,
            Step::Define => Reached::Defined,
            Step::Destroy => Reached::Gone,
            Step::Save => {
                self.record(Record::Saved { id, member }, now);
                return;
            }
            Step::Start | Step::Pause | Step::Resume | Step::Suspend | Step::Restore | Step::Stop => {
                self.observe(&id, &member, state.as_ref(), now);
                return;
            }
        };
        self.record(Record::Reached { id, member, reached }, now);
    }

    /// Takes note that something failed. Whether it is tried again.
    fn try_again(&mut self, key: Key, host: &HostName, failure: &Failure, for_ever: bool, now: Now) -> bool {
        if failure.kind == FailureKind::Unreachable
            && let Some(watch) = self.run.hosts.get_mut(host)
        {
            // It may have been done or not: the host is asked before anything else.
            watch.seen = false;
            watch.next = now.mono;
        }
        self.back_off(key, failure, for_ever, now)
    }

    fn back_off(&mut self, key: Key, failure: &Failure, for_ever: bool, now: Now) -> bool {
        let retry: &mut Retry = self.run.retries.entry(key).or_default();
        retry.attempts = retry.attempts.saturating_add(1);
        let doublings = retry.attempts.saturating_sub(1).min(16);
        let wait = BACK_OFF.saturating_mul(1 << doublings).min(MAX_BACK_OFF);
        retry.until = now.mono + wait;
        for_ever || (failure.kind != FailureKind::Refused && retry.attempts < MAX_ATTEMPTS)
    }

    /// A step is not tried again.
    fn give_up(&mut self, was: &Was, failure: &Failure, now: Now) {
        self.run.retries.remove(&Key::Guest(was.guest));
        let Some(cluster) = self.world.clusters.get(&was.cluster).map(Arc::clone) else {
            return;
        };
        let Some(member) = cluster.members.get(&was.member) else {
            return;
        };
        let (id, name) = (was.cluster.clone(), was.member.clone());
        let why = format!("could not {} on host '{}': {failure}", was.step, was.host);
        if let Goal::Absent { .. } = member.goal {
            let saves = member.save.is_some();
            if saves && !cluster.is_ending() {
                // What was to be kept is not lost: the member stays as it is.
                self.revert(id, name, member.reached.as_goal(), why, now);
                return;
            }
            self.trouble(was, failure, now);
            if saves {
                let (id, member) = (id.clone(), name.clone());
                self.record(Record::Saved { id, member }, now);
            }
            let aimed = Record::Aimed {
                id,
                members: [name].into(),
                goal: Goal::Absent { graceful: false },
                renew: member.renew,
                save: std::collections::BTreeMap::new(),
            };
            self.record(aimed, now);
        } else if member.deployed {
            self.revert(id, name, member.reached.as_goal(), why, now);
        } else {
            let (member, fault) = (name, Fault::Failed(why));
            self.record(Record::Faulted { id, member, fault }, now);
        }
    }

    /// Says what does not go as it should, once.
    fn trouble(&mut self, was: &Was, failure: &Failure, now: Now) {
        let why = format!("could not {} on host '{}': {failure}", was.step, was.host);
        let cluster = self.world.clusters.get(&was.cluster);
        let member = cluster.and_then(|cluster| cluster.members.get(&was.member));
        if member.is_some_and(|member| member.problem.as_ref() != Some(&why)) {
            let (id, member) = (was.cluster.clone(), was.member.clone());
            self.record(Record::Troubled { id, member, why }, now);
        }
    }

    fn context_made(&mut self, id: RequestId, done: Result<(), Failure>, now: Now) {
        self.run.dirty.insert(id.clone());
        let key = Key::Context(id.clone());
        let Err(failure) = done else {
            self.run.retries.remove(&key);
            if self.world.clusters.contains_key(&id) {
                self.record(Record::Context { id, there: true }, now);
            }
            return;
        };
        if self.back_off(key.clone(), &failure, false, now) {
            return;
        }
        self.run.retries.remove(&key);
        let Some(cluster) = self.world.clusters.get(&id).map(Arc::clone) else {
            return;
        };
        let wait = |(_, member): &(&MemberName, &crate::state::Member)| {
            member.is_wanted() && member.reached == Reached::Disks && member.goal != Goal::Propagated
        };
        for (name, member) in cluster.members.iter().filter(wait) {
            let was = Was {
                cluster: id.clone(),
                member: name.clone(),
                guest: member.guest,
                host: member.host.clone(),
                step: Step::Deliver,
            };
            self.give_up(&was, &failure, now);
        }
    }

    fn context_removed(&mut self, id: RequestId, done: Result<(), Failure>, now: Now) {
        self.run.dirty.insert(id.clone());
        let key = Key::Context(id.clone());
        if let Err(failure) = done {
            // Tried until it succeeds: a context left behind would take another's room.
            let _ = self.back_off(key, &failure, true, now);
            return;
        }
        self.run.retries.remove(&key);
        if self.world.clusters.contains_key(&id) {
            self.record(Record::Context { id, there: false }, now);
        }
    }
}

/// Whether a machine that is so is what a step leads to.
fn leads(step: Step, state: Option<&GuestState>) -> bool {
    state
        .and_then(GuestState::reached)
        .is_some_and(|reached| step.leads_to(reached))
}
