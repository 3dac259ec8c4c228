//! The next step of each member.

use std::sync::Arc;
use std::time::Duration;

use aerie_cluster_proto::amount::Bytes;
use aerie_cluster_proto::ledger::RequestId;
use aerie_context_proto::MemberName;

use super::{Core, Doing, Effect, Key, Now};
use crate::host::{Spec, Work};
use crate::limits::MAX_STEPS;
use crate::records::Record;
use crate::state::{Cluster, Goal, Member, Reached, Step};

/// How long the context broker has to answer.
const CONTEXT_LIMIT: Duration = Duration::from_secs(60);

impl Core {
    /// Begins whatever can be begun for a cluster.
    pub(super) fn plan(&mut self, id: &RequestId, now: Now) {
        let Some(cluster) = self.world.clusters.get(id).map(Arc::clone) else {
            return;
        };
        let mut wants_context = false;
        for (name, member) in &cluster.members {
            let Some(step) = next(member, &cluster, self.settings.contexts) else {
                continue;
            };
            if step == Step::Attach && !self.may_go_on(&cluster, &mut wants_context) {
                continue;
            }
            self.take(id, &cluster, name, member, step, now);
        }
        if wants_context {
            self.make_context(id, &cluster, now);
        }
        let gone = || {
            cluster
                .members
                .values()
                .all(|member| member.reached == Reached::Gone)
        };
        if cluster.has_context && cluster.is_ending() && gone() {
            self.remove_context(id, &cluster, now);
        }
    }

    /// Whether members may go beyond their disks: nobody starts before everybody's disks are there, and their context.
    fn may_go_on(&self, cluster: &Cluster, wants_context: &mut bool) -> bool {
        let behind = |member: &Member| member.is_wanted() && member.reached == Reached::Nothing;
        if !cluster.has_context && cluster.members.values().any(behind) {
            return false;
        }
        *wants_context = self.settings.contexts && !cluster.has_context;
        !*wants_context
    }

    fn take(
        &mut self,
        id: &RequestId,
        cluster: &Cluster,
        name: &MemberName,
        member: &Member,
        step: Step,
        now: Now,
    ) {
        let guest = member.guest;
        let Some(watch) = self.run.hosts.get_mut(&member.host) else {
            return;
        };
        if !watch.is_ready() || self.waits(&Key::Guest(guest), now) {
            return;
        }
        if let Some(busy) = self.run.busy.get(&guest).copied() {
            let doing = self.run.ops.get(&busy).map(|op| &op.doing);
            let destroys = matches!(
                doing,
                Some(
                    Doing::Orphan { .. }
                        | Doing::Member {
                            step: Step::Destroy,
                            ..
                        }
                )
            );
            if step != Step::Destroy || destroys {
                return;
            }
            // Whatever is being done to it is interrupted.
            self.forget_op(busy);
        }
        let Some(watch) = self.run.hosts.get_mut(&member.host) else {
            return;
        };
        if watch.steps >= MAX_STEPS {
            watch.waiting.insert(id.clone());
            return;
        }
        let Some(spec) = spec(id, cluster, name, member) else {
            return;
        };
        if step == Step::Stage {
            self.stage(id, spec, member, now);
            return;
        }
        let limit = match step {
            Step::Stop => step.limit() + self.settings.grace,
            _ => step.limit(),
        };
        if step.is_power() {
            let (id, member) = (id.clone(), name.clone());
            self.record(Record::Begins { id, member, step }, now);
        }
        let host = member.host.clone();
        let doing = Doing::Member {
            cluster: id.clone(),
            member: name.clone(),
            guest,
            host: host.clone(),
            step,
        };
        let op = self.begin_op(doing, limit, now);
        let work = match step {
            Step::Deliver => {
                self.effects.push(Effect::Deliver {
                    op,
                    host,
                    guest,
                    context: cluster.context.context(),
                    set: member.set.clone(),
                    member: name.clone(),
                });
                return;
            }
            Step::Stage => return,
            Step::Prepare => Work::Prepare(spec.into()),
            Step::Attach => Work::Attach(spec.into()),
            Step::Define => Work::Define(spec.into()),
            Step::Start => Work::Start(guest),
            Step::Pause => Work::Pause(guest),
            Step::Resume => Work::Resume(guest),
            Step::Suspend => Work::Suspend(guest),
            Step::Restore => Work::Restore(guest),
            Step::Stop => Work::Stop {
                guest,
                grace: self.settings.grace,
            },
            Step::Save => Work::Save {
                guest,
                image: member.save.clone().unwrap_or(spec.image),
            },
            Step::Destroy => Work::Destroy(guest),
        };
        self.effects.push(Effect::Perform { op, host, work });
    }

    /// Has an image brought to a host, once for all that wait for it there.
    fn stage(&mut self, id: &RequestId, spec: Spec, member: &Member, now: Now) {
        let (host, image) = (member.host.clone(), spec.image);
        let present = |host: &crate::state::Host| host.facts.images.contains(&image);
        if self.world.hosts.get(&host).is_some_and(|host| present(host)) {
            let member_name = spec.member.clone();
            self.prepare(id, &member_name, now);
            return;
        }
        let key = (host.clone(), image.clone());
        if self.run.staging.contains(&key) || self.waits(&Key::Image(host.clone(), image.clone()), now) {
            return;
        }
        let doing = Doing::Stage {
            host: host.clone(),
            image: image.clone(),
        };
        let op = self.begin_op(doing, Step::Stage.limit(), now);
        let work = Work::Stage { image };
        self.effects.push(Effect::Perform { op, host, work });
    }

    fn prepare(&mut self, id: &RequestId, name: &MemberName, now: Now) {
        let Some(cluster) = self.world.clusters.get(id).map(Arc::clone) else {
            return;
        };
        if let Some(member) = cluster.members.get(name) {
            self.take(id, &cluster, name, member, Step::Prepare, now);
        }
    }

    fn make_context(&mut self, id: &RequestId, cluster: &Cluster, now: Now) {
        if self.waits(&Key::Context(id.clone()), now) || self.is_asking_context(id) {
            return;
        }
        let op = self.begin_op(Doing::MakeContext(id.clone()), CONTEXT_LIMIT, now);
        let expected = cluster
            .description
            .members()
            .into_iter()
            .map(|member| member.name);
        let comes = |name: &MemberName| cluster.members.get(name).is_some_and(Member::is_wanted);
        self.effects.push(Effect::MakeContext {
            op,
            context: cluster.context.context(),
            document: Box::new(cluster.description.context_cluster()),
            absent: expected.filter(|name| !comes(name)).collect(),
        });
    }

    fn remove_context(&mut self, id: &RequestId, cluster: &Cluster, now: Now) {
        if self.waits(&Key::Context(id.clone()), now) || self.is_asking_context(id) {
            return;
        }
        let op = self.begin_op(Doing::RemoveContext(id.clone()), CONTEXT_LIMIT, now);
        let context = cluster.context.context();
        self.effects.push(Effect::RemoveContext { op, context });
    }

    fn is_asking_context(&self, id: &RequestId) -> bool {
        let about =
            |doing: &Doing| matches!(doing, Doing::MakeContext(of) | Doing::RemoveContext(of) if of == id);
        self.run.ops.values().any(|op| about(&op.doing))
    }

    /// Whether something that failed is not tried again yet.
    fn waits(&self, key: &Key, now: Now) -> bool {
        self.run
            .retries
            .get(key)
            .is_some_and(|retry| retry.until > now.mono)
    }
}

/// What brings a member nearer to its goal.
fn next(member: &Member, cluster: &Cluster, contexts: bool) -> Option<Step> {
    use Reached as R;
    if let Goal::Absent { graceful } = member.goal {
        let saves = member.save.is_some();
        return match member.reached {
            R::Gone => None,
            R::Running | R::Paused if graceful || saves => Some(Step::Stop),
            R::Nothing => Some(Step::Destroy),
            // Its disk is of one moment with its memory, in which it has what is not written yet.
            R::Suspended if saves => Some(Step::Restore),
            _ if saves => Some(Step::Save),
            _ => Some(Step::Destroy),
        };
    }
    if member.fault.is_some() || member.goal.is_met(member.reached) {
        return None;
    }
    // A context may be there from before the manager was told to do without; its members still get it.
    let contexts = contexts && cluster.has_context;
    match (member.goal, member.reached) {
        (_, R::Gone) | (Goal::Absent { .. }, _) => None,
        (_, R::Nothing) => Some(Step::Stage),
        (Goal::Propagated, _) => None,
        // Whoever is told to stand still or to stop while it comes up, comes up first.
        (_, R::Disks) => Some(Step::Attach),
        (_, R::Attached) if contexts => Some(Step::Deliver),
        (_, R::Attached | R::Delivered) => Some(Step::Define),
        (Goal::Started | Goal::Paused | Goal::Suspended, R::Defined | R::Stopped | R::Crashed) => {
            Some(Step::Start)
        }
        (Goal::Started, R::Paused) => Some(Step::Resume),
        (Goal::Started | Goal::Paused | Goal::Stopped, R::Suspended) => Some(Step::Restore),
        (Goal::Paused, R::Running) => Some(Step::Pause),
        (Goal::Suspended, R::Running | R::Paused) => Some(Step::Suspend),
        (Goal::Stopped, R::Running | R::Paused) => Some(Step::Stop),
        _ => None,
    }
}

/// A member as its host makes it.
fn spec(id: &RequestId, cluster: &Cluster, name: &MemberName, member: &Member) -> Option<Spec> {
    let mut sets = cluster.description.workspaces.iter();
    let set = sets.find(|set| set.name == member.set)?;
    let blank = set
        .partitions
        .iter()
        .map(|partition| partition.size.0)
        .sum::<u64>();
    Some(Spec {
        guest: member.guest,
        cluster: id.clone(),
        member: name.clone(),
        image: set.image.clone(),
        cpus: member.amounts.cpus,
        memory: member.amounts.memory,
        disk: Bytes(member.amounts.disk.0.saturating_sub(blank)),
        partitions: set.partitions.clone(),
        nics: set.nics.clone(),
    })
}
