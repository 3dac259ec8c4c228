//! What people and programs are told of clusters and hosts. Everything here has a form in JSON.

use std::collections::BTreeSet;
use std::fmt;

use aerie_cluster_proto::amount::Resources;
use aerie_cluster_proto::ledger::{HoldState, Owner, RequestId};
use aerie_cluster_proto::placement::{Accelerator, HostState};
use aerie_context_proto::{ContextId, HostName, MemberName, SetName};
use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

use crate::core::{Core, Hearing};
use crate::error::Refusal;
use crate::events::{Event, EventsPage};
use crate::ids::GuestId;
use crate::limits::MAX_EVENTS_PAGE;
use crate::request::Caller;
use crate::state::{Cluster, ContextReport, Fault, Goal, Member, Phase, Reached, Why};

/// How a member is, in a word: where it is, or on its way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// Its image and disks come to its host.
    Propagating,
    /// Its disks are on its host; nothing runs.
    Propagated,
    /// It is on its way to run.
    Starting,
    /// It runs.
    Started,
    /// It is about to stand still.
    Pausing,
    /// It is in memory and stands still.
    Paused,
    /// It is about to run on.
    Unpausing,
    /// Its memory is written to a file.
    Suspending,
    /// Its memory is in a file.
    Suspended,
    /// Its memory is taken from its file.
    Restoring,
    /// It is asked to switch itself off.
    Stopping,
    /// It is switched off.
    Stopped,
    /// It is taken away.
    Undeploying,
    /// There is nothing of it.
    Gone,
    /// It was not deployed.
    Failed,
    /// It was, and is not what it was.
    Corrupted,
    /// Its host is lost, and nothing is known of it.
    Lost,
}

impl MemberState {
    pub(crate) fn of(member: &Member, lost: bool) -> Self {
        let goal = member.goal;
        match member.fault {
            Some(Fault::Failed(_)) => return Self::Failed,
            _ if lost && member.reached != Reached::Gone => return Self::Lost,
            Some(Fault::Corrupted(_)) if !goal.is_absent() => return Self::Corrupted,
            _ => {}
        }
        if member.goal.is_met(member.reached) {
            return match goal {
                Goal::Propagated => Self::Propagated,
                Goal::Started => Self::Started,
                Goal::Paused => Self::Paused,
                Goal::Suspended => Self::Suspended,
                Goal::Stopped => Self::Stopped,
                Goal::Absent { .. } => Self::Gone,
            };
        }
        match (goal, member.reached) {
            (Goal::Absent { .. }, _) => Self::Undeploying,
            (Goal::Propagated, _) | (_, Reached::Nothing) => Self::Propagating,
            (Goal::Started, Reached::Paused) => Self::Unpausing,
            (_, Reached::Suspended) => Self::Restoring,
            (Goal::Paused, Reached::Running) => Self::Pausing,
            (Goal::Started | Goal::Paused, _) => Self::Starting,
            (Goal::Suspended, _) => Self::Suspending,
            (Goal::Stopped, _) => Self::Stopping,
        }
    }

    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Propagating => "propagating",
            Self::Propagated => "propagated",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Unpausing => "unpausing",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Restoring => "restoring",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Undeploying => "undeploying",
            Self::Gone => "gone",
            Self::Failed => "failed",
            Self::Corrupted => "corrupted",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// What it is asked for by.
    pub id: RequestId,
    /// What its description calls it.
    pub name: SetName,
    /// Whose it is.
    pub owner: Owner,
    /// When it was requested.
    pub requested: WallMillis,
    /// How far it is.
    pub phase: Phase,
    /// Whether it has ended: nothing is left of it.
    pub ended: bool,
    /// Whether it is deployed and every member is where it is to be, and configured where it has a context.
    pub ready: bool,
    /// When it ends by itself: its life-time, or the time by which it has to be deployed.
    pub until: Option<WallMillis>,
    /// Its context, if it has one.
    pub context: Option<ContextId>,
    /// Its members.
    pub members: Vec<MemberStatus>,
    /// Members that found no place.
    pub left_out: BTreeSet<MemberName>,
}

/// How a member is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: MemberName,
    /// Its set.
    pub set: SetName,
    /// How it is.
    pub state: MemberState,
    /// Where it is.
    pub host: HostName,
    /// Its guest there.
    pub guest: GuestId,
    /// What it has there.
    pub amounts: Resources,
    /// Why it has failed or is corrupted; or else the last thing that did not go as it should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What its context says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ContextReport>,
}

/// How a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub name: HostName,
    /// Whether it takes members.
    pub state: HostState,
    /// Whether it is heard of.
    pub hearing: Hearing,
    /// What it has.
    pub capacity: Resources,
    /// What of that is held.
    pub held: Resources,
    /// How fast its guests run.
    pub accelerator: Accelerator,
    /// How many images are on it.
    pub images: usize,
}

impl Core {
    /// How a cluster is, of those that live and the last that have ended.
    ///
    /// # Errors
    /// [`Refusal::UnknownCluster`], [`Refusal::NotYours`]
    pub fn status(&self, caller: &Caller, id: &RequestId) -> Result<ClusterStatus, Refusal> {
        let world = self.world();
        let live = world.clusters.get(id).map(|cluster| (cluster, false));
        let ended = || world.ended.iter().rev().find(|(ended, _)| ended == id);
        let found = live.or_else(|| ended().map(|(_, cluster)| (cluster, true)));
        let (cluster, ended) = found.ok_or_else(|| Refusal::UnknownCluster(id.clone()))?;
        if !caller.may(&cluster.owner) {
            return Err(Refusal::NotYours(id.clone()));
        }
        Ok(self.cluster_status(id, cluster, ended))
    }

    /// All clusters that live and that the caller may see, without their members.
    #[must_use]
    pub fn list(&self, caller: &Caller) -> Vec<ClusterStatus> {
        let visible = self
            .world()
            .clusters()
            .filter(|(_, cluster)| caller.may(&cluster.owner));
        visible
            .map(|(id, cluster)| ClusterStatus {
                members: Vec::new(),
                ..self.cluster_status(id, cluster, false)
            })
            .collect()
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostStatus> {
        let ledger = self.world().ledger();
        let status = |(name, host): (&HostName, &crate::state::Host)| HostStatus {
            name: name.clone(),
            state: host.state,
            hearing: self.hearing(name),
            capacity: host.facts.capacity,
            held: ledger.held(name).unwrap_or_default(),
            accelerator: host.facts.accelerator,
            images: host.facts.images.len(),
        };
        self.world().hosts().map(status).collect()
    }

    /// Events from a number on that the caller may see, at most [`MAX_EVENTS_PAGE`].
    #[must_use]
    pub fn events(&self, caller: &Caller, from: u64) -> EventsPage {
        let kept = &self.world().events;
        let end = self.world().next_event;
        let first = kept.front().map_or(end, |event| event.number);
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let may = |event: &&Event| {
            let owner = event.cluster.as_ref().map(|(_, owner)| owner);
            owner.map_or(caller.admin, |owner| caller.may(owner))
        };
        let looked_at = kept.iter().skip(skip).take(MAX_EVENTS_PAGE);
        let next = looked_at
            .clone()
            .next_back()
            .map_or(end, |event| event.number + 1);
        EventsPage {
            events: looked_at.map(AsRef::as_ref).filter(may).cloned().collect(),
            next,
            missed: from < first,
            more: next < end,
        }
    }

    /// The number that the next event has.
    #[must_use]
    pub fn next_event(&self) -> u64 {
        self.world().next_event
    }

    fn cluster_status(&self, id: &RequestId, cluster: &Cluster, ended: bool) -> ClusterStatus {
        let hold = self.world().ledger().hold(id);
        let members: Vec<_> = cluster
            .members
            .iter()
            .map(|(name, member)| self.member_status(name, member))
            .collect();
        let is_well = |member: &Member| {
            member.is_wanted()
                && member.goal.is_met(member.reached)
                && (!cluster.has_context || member.report == Some(ContextReport::Configured))
        };
        let deployed = cluster.phase == Phase::Deployed;
        let lost = members.iter().any(|member| member.state == MemberState::Lost);
        ClusterStatus {
            id: id.clone(),
            name: cluster.description.name.clone(),
            owner: cluster.owner.clone(),
            requested: cluster.at,
            phase: cluster.phase.clone(),
            ended,
            ready: deployed && !lost && cluster.members.values().all(is_well),
            until: hold.map(|hold| match hold.state {
                HoldState::Reserved { until } | HoldState::Committed { until, .. } => until,
            }),
            context: cluster.has_context.then(|| cluster.context.context()),
            members,
            left_out: cluster.left_out.clone(),
        }
    }

    fn member_status(&self, name: &MemberName, member: &Member) -> MemberStatus {
        let lost = self.hearing(&member.host) == Hearing::Lost;
        let fault = member.fault.as_ref().map(|fault| fault.why().to_owned());
        MemberStatus {
            name: name.clone(),
            set: member.set.clone(),
            state: MemberState::of(member, lost),
            host: member.host.clone(),
            guest: member.guest,
            amounts: member.amounts,
            why: fault.or_else(|| member.problem.clone()),
            report: member.report.clone(),
        }
    }
}

impl ClusterStatus {
    /// Why it ends or has ended, if it does.
    #[must_use]
    pub fn why(&self) -> Option<&Why> {
        match &self.phase {
            Phase::Ending(why) => Some(why),
            Phase::Deploying | Phase::Deployed => None,
        }
    }
}
