//! What the journal makes.
//!
//! Clusters and hosts are shared between copies until one of them changes, so that a copy of the whole costs little.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use aerie_cluster_proto::ledger::{self, Ledger, RequestId};
use aerie_cluster_proto::placement::HostState;
use aerie_context_proto::{HostName, MemberName};
use aerie_types::WallMillis;

use crate::error::Corrupt;
use crate::events::{Event, What};
use crate::ids::{GuestId, ManagerId};
use crate::limits::{MAX_ENDED, MAX_EVENTS, MAX_PASSED};
use crate::records::{Entry, Record, Snapshot};
use crate::state::{Cluster, Fault, Goal, Host, Member, Phase, Reached, Why};
use crate::view::MemberState;

/// All clusters, hosts and what is held of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    pub(crate) manager: Option<ManagerId>,
    /// The number of the next guest.
    pub(crate) next: u64,
    /// Numbers before the next one that this journal did not give, from the first to behind the last.
    pub(crate) passed: Vec<(u64, u64)>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) hosts: BTreeMap<HostName, Arc<Host>>,
    pub(crate) clusters: BTreeMap<RequestId, Arc<Cluster>>,
    /// Those that have ended, the oldest first.
    pub(crate) ended: VecDeque<(RequestId, Arc<Cluster>)>,
    pub(crate) events: VecDeque<Arc<Event>>,
    pub(crate) next_event: u64,
}

impl World {
    /// All clusters that live.
    pub fn clusters(&self) -> impl Iterator<Item = (&RequestId, &Cluster)> {
        self.clusters.iter().map(|(id, cluster)| (id, cluster.as_ref()))
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = (&HostName, &Host)> {
        self.hosts.iter().map(|(name, host)| (name, host.as_ref()))
    }

    /// What is held.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Applies a line of the journal.
    ///
    /// # Errors
    /// [`Corrupt`] where it does not follow from those before it.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Corrupt> {
        if self.manager.is_none() && !matches!(entry.record, Record::Begun { .. } | Record::Snapshot(_)) {
            return Err(Corrupt::new("the journal has no beginning"));
        }
        self.change(&entry.record)?;
        for (cluster, what) in self.news(&entry.record) {
            self.tell(entry.at, cluster, what);
        }
        if let Record::Ended { id } = &entry.record {
            self.bury(id)?;
        }
        Ok(())
    }

    fn change(&mut self, record: &Record) -> Result<(), Corrupt> {
        match record {
            Record::Begun { manager } => match self.manager.replace(*manager) {
                None => {}
                Some(_) => return Err(Corrupt::new("the journal begins twice")),
            },
            Record::Snapshot(snapshot) => *self = Self::restore(snapshot.as_ref().clone())?,
            Record::Ledger(record) => {
                self.book(record)?;
                if let ledger::Record::Committed { id, at, .. } = record {
                    self.cluster(id)?.since = Some(*at);
                }
            }
            Record::HostTold { host, facts } => {
                let state = self.hosts.get(host).map_or(HostState::Up, |host| host.state);
                let facts = facts.clone();
                self.hosts.insert(host.clone(), Arc::new(Host { facts, state }));
            }
            Record::HostStaged { host, image } => {
                self.host(host)?.facts.images.insert(image.clone());
            }
            Record::HostSet { host, state } => self.host(host)?.state = *state,
            Record::HostForgotten { host } => drop(self.hosts.remove(host)),
            Record::Requested { id, cluster, next } => {
                if self
                    .clusters
                    .insert(id.clone(), Arc::new((**cluster).clone()))
                    .is_some()
                {
                    return Err(Corrupt::new(format!("'{id}' is requested twice")));
                }
                self.next = *next;
            }
            Record::Renewed { id, member, guest } => {
                let after = guest.number() + 1;
                self.next = self.next.max(after);
                let target = self.cluster(id)?.description.target;
                let member = self.member(id, member)?;
                *member = Member {
                    guest: *guest,
                    goal: Goal::of(target),
                    reached: Reached::Nothing,
                    doing: None,
                    deployed: false,
                    fault: None,
                    problem: None,
                    renew: false,
                    save: None,
                    report: None,
                    ..member.clone()
                };
            }
            Record::Removed { id, member } => drop(self.cluster(id)?.members.remove(member)),
            Record::Context { id, there } => self.cluster(id)?.has_context = *there,
            Record::Deployed { id, .. } => self.cluster(id)?.phase = Phase::Deployed,
            Record::Warned { id, until } => self.cluster(id)?.warned = Some(*until),
            Record::Ending { id, why } => self.end(id, why)?,
            Record::Ended { id } => drop(self.cluster(id)?),
            Record::Ahead { guest, .. } => self.pass_over(*guest),
            Record::Told(_) => {}
            other => self.change_member(other)?,
        }
        Ok(())
    }

    fn change_member(&mut self, record: &Record) -> Result<(), Corrupt> {
        match record {
            Record::Aimed {
                id,
                members,
                goal,
                renew,
                save,
            } => {
                for name in members {
                    let member = self.member(id, name)?;
                    member.goal = *goal;
                    member.renew = *renew;
                    member.save = save.get(name).cloned();
                    member.fault = None;
                    member.problem = None;
                }
            }
            Record::Begins { id, member, step } => self.member(id, member)?.doing = Some(*step),
            Record::Reached { id, member, reached } => {
                let member = self.member(id, member)?;
                member.doing = None;
                member.reached = *reached;
                if !member.goal.is_absent() && member.goal.is_met(*reached) {
                    member.deployed = true;
                    member.problem = None;
                }
            }
            Record::Saved { id, member } => self.member(id, member)?.save = None,
            Record::Faulted { id, member, fault } => {
                let member = self.member(id, member)?;
                if matches!(fault, Fault::Failed(_)) {
                    // Nothing of it stays on its host.
                    member.goal = Goal::Absent { graceful: false };
                }
                member.doing = None;
                member.fault = Some(fault.clone());
            }
            Record::Reverted {
                id,
                member,
                goal,
                why,
            } => {
                let member = self.member(id, member)?;
                member.doing = None;
                member.goal = *goal;
                member.save = None;
                member.deployed |= goal.is_met(member.reached);
                member.problem = Some(why.clone());
            }
            Record::Troubled { id, member, why } => self.member(id, member)?.problem = Some(why.clone()),
            Record::Reported { id, member, report } => self.member(id, member)?.report = Some(report.clone()),
            _ => {}
        }
        Ok(())
    }

    /// All of a cluster is to be gone.
    fn end(&mut self, id: &RequestId, why: &Why) -> Result<(), Corrupt> {
        let cluster = self.cluster(id)?;
        cluster.phase = Phase::Ending(why.clone());
        for member in cluster.members.values_mut() {
            let graceful = !matches!(why, Why::Failed(_));
            member.goal = Goal::Absent { graceful };
            member.renew = false;
        }
        Ok(())
    }

    /// Numbers up to that of a guest were given by a journal that went further than this one: they are never given
    /// again, and their guests are nobody's of ours.
    fn pass_over(&mut self, guest: GuestId) {
        let (first, after) = (self.next, guest.number() + 1);
        if after <= first {
            return;
        }
        self.next = after;
        let full = self.passed.len() >= MAX_PASSED;
        match self.passed.last_mut() {
            // Beyond the bound a range takes in some that were given here: such a guest is left, and not destroyed.
            Some((_, end)) if *end == first || full => *end = after,
            _ => self.passed.push((first, after)),
        }
    }

    /// Whether a guest of this manager's was given its number by this journal.
    pub(crate) fn has_given(&self, guest: GuestId) -> bool {
        let number = guest.number();
        let passed = |(first, end): &(u64, u64)| (*first..*end).contains(&number);
        number < self.next && !self.passed.iter().any(passed)
    }

    fn book(&mut self, record: &ledger::Record) -> Result<(), Corrupt> {
        Arc::make_mut(&mut self.ledger)
            .commit(record)
            .map_err(Corrupt::new)
    }

    fn host(&mut self, name: &HostName) -> Result<&mut Host, Corrupt> {
        let host = self.hosts.get_mut(name);
        host.map(Arc::make_mut)
            .ok_or_else(|| Corrupt::new(format!("there is no host '{name}' yet")))
    }

    fn cluster(&mut self, id: &RequestId) -> Result<&mut Cluster, Corrupt> {
        let cluster = self.clusters.get_mut(id);
        cluster
            .map(Arc::make_mut)
            .ok_or_else(|| Corrupt::new(format!("there is no cluster '{id}' yet")))
    }

    fn member(&mut self, id: &RequestId, name: &MemberName) -> Result<&mut Member, Corrupt> {
        let member = self.cluster(id)?.members.get_mut(name);
        member.ok_or_else(|| Corrupt::new(format!("the cluster '{id}' has no member '{name}'")))
    }

    /// What a record that was applied means to those who listen.
    fn news(&self, record: &Record) -> Vec<(Option<RequestId>, What)> {
        let of = |id: &RequestId, what| vec![(Some(id.clone()), what)];
        let general = |what| vec![(None, what)];
        match record {
            Record::HostTold { host, .. } => general(What::HostChanged { host: host.clone() }),
            Record::HostSet { host, state } => general(What::HostSet {
                host: host.clone(),
                state: *state,
            }),
            Record::HostForgotten { host } => general(What::HostForgotten { host: host.clone() }),
            Record::Told(what) => general(what.clone()),
            Record::Ahead { host, guest } => general(What::GuestAhead {
                host: host.clone(),
                guest: *guest,
            }),
            Record::Ledger(ledger::Record::Extended { id, until }) => {
                of(id, What::Extended { until: *until })
            }
            Record::Requested { id, cluster, .. } => of(
                id,
                What::Requested {
                    members: cluster.members.len(),
                    left_out: cluster.left_out.len(),
                },
            ),
            Record::Deployed { id, until } => of(id, What::Deployed { until: *until }),
            Record::Warned { id, until } => of(id, What::Warned { until: *until }),
            Record::Ending { id, why } => of(id, What::Ending(why.clone())),
            Record::Ended { id } => match self.clusters.get(id).map(|cluster| &cluster.phase) {
                Some(Phase::Ending(why)) => of(id, What::Ended(why.clone())),
                _ => Vec::new(),
            },
            Record::Reported { id, member, report } => of(
                id,
                What::Context {
                    member: member.clone(),
                    report: report.clone(),
                },
            ),
            Record::Reverted { id, member, why, .. } | Record::Troubled { id, member, why } => of(
                id,
                What::Problem {
                    member: member.clone(),
                    why: why.clone(),
                },
            ),
            Record::Aimed { id, members, .. } => {
                let each = members.iter().filter_map(|member| self.state_of(id, member));
                each.map(|what| (Some(id.clone()), what)).collect()
            }
            Record::Reached { id, member, .. }
            | Record::Faulted { id, member, .. }
            | Record::Renewed { id, member, .. } => {
                let what = self.state_of(id, member);
                what.map(|what| (Some(id.clone()), what)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn state_of(&self, id: &RequestId, name: &MemberName) -> Option<What> {
        let member = self.clusters.get(id)?.members.get(name)?;
        Some(What::Member {
            member: name.clone(),
            state: MemberState::of(member, false),
            why: member.fault.as_ref().map(|fault| fault.why().to_owned()),
        })
    }

    fn tell(&mut self, at: WallMillis, cluster: Option<RequestId>, what: What) {
        let owner = |id: RequestId| {
            let owner = self.clusters.get(&id)?.owner.clone();
            Some((id, owner))
        };
        let event = Event {
            number: self.next_event,
            at,
            cluster: cluster.and_then(owner),
            what,
        };
        self.next_event += 1;
        self.events.push_back(Arc::new(event));
        if self.events.len() > MAX_EVENTS {
            self.events.pop_front();
        }
    }

    fn bury(&mut self, id: &RequestId) -> Result<(), Corrupt> {
        if self.ledger.hold(id).is_some() {
            return Err(Corrupt::new(format!("'{id}' ends and holds something yet")));
        }
        let cluster = self.clusters.remove(id);
        let cluster = cluster.ok_or_else(|| Corrupt::new(format!("there is no cluster '{id}' to end")))?;
        self.ended.push_back((id.clone(), cluster));
        if self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
        }
        Ok(())
    }

    /// All of it in one piece, to be kept in the place of the journal.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let own = |(id, cluster): (&RequestId, &Arc<Cluster>)| (id.clone(), cluster.as_ref().clone());
        Snapshot {
            manager: self.manager,
            next: self.next,
            passed: self.passed.clone(),
            ledger: self.ledger.snapshot(),
            hosts: self
                .hosts
                .iter()
                .map(|(name, host)| (name.clone(), host.as_ref().clone()))
                .collect(),
            clusters: self.clusters.iter().map(own).collect(),
            ended: self
                .ended
                .iter()
                .map(|(id, cluster)| own((id, cluster)))
                .collect(),
            events: self.events.iter().map(|event| event.as_ref().clone()).collect(),
            next_event: self.next_event,
        }
    }

    fn restore(snapshot: Snapshot) -> Result<Self, Corrupt> {
        let share = |(id, cluster)| (id, Arc::new(cluster));
        Ok(Self {
            manager: snapshot.manager,
            next: snapshot.next,
            passed: snapshot.passed,
            ledger: Arc::new(Ledger::restore(snapshot.ledger).map_err(Corrupt::new)?),
            hosts: snapshot
                .hosts
                .into_iter()
                .map(|(name, host)| (name, Arc::new(host)))
                .collect(),
            clusters: snapshot.clusters.into_iter().map(share).collect(),
            ended: snapshot.ended.into_iter().map(share).collect(),
            events: snapshot.events.into_iter().map(Arc::new).collect(),
            next_event: snapshot.next_event,
        })
    }
}
