//! What people ask for. A command that is refused has changed nothing.

use std::collections::{BTreeMap, BTreeSet};

use aerie_cluster_proto::Fault as Warning;
use aerie_cluster_proto::amount::Lifetime;
use aerie_cluster_proto::description::{Description, Image, Workspace};
use aerie_cluster_proto::ledger::{self, Ask, Owner, RequestId, Reservation};
use aerie_cluster_proto::placement::{self, HostState, Plan, Rules, place, place_some};
use aerie_context_proto::{HostName, MemberName, member_name};
use aerie_types::WallMillis;

use super::{Core, Hearing, Now};
use crate::error::Refusal;
use crate::ids::GuestId;
use crate::limits::MAX_CLUSTERS;
use crate::records::Record;
use crate::request::{Caller, Command, Request};
use crate::state::{Cluster, Fault, Goal, Member, Phase, Reached, Why, kept};

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A cluster has its place; or had it, from the same request before.
    Placed {
        /// Where its members are.
        plan: Plan,
        /// Those that found no place.
        left_out: BTreeSet<MemberName>,
        /// What will most likely surprise in its description.
        warnings: Vec<Warning>,
    },
    /// It is done, or under way.
    Done,
}

/// What would come of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// Where members would be, as things are.
    pub plan: Plan,
    /// Those that would find no place.
    pub left_out: BTreeSet<MemberName>,
    /// Images that hosts would have to get first.
    pub to_stage: BTreeSet<(HostName, Image)>,
    /// What will most likely surprise in the description.
    pub warnings: Vec<Warning>,
}

struct Judged {
    owner: Owner,
    lifetime: Lifetime,
    plan: Plan,
    left_out: BTreeSet<MemberName>,
    warnings: Vec<Warning>,
}

impl Core {
    /// Does what it is told.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn command(&mut self, caller: &Caller, command: Command, now: Now) -> Result<Answer, Refusal> {
        match command {
            Command::Request(request) => self.request(caller, *request, now),
            Command::Operate {
                cluster,
                scope,
                operation,
            } => self.operate(caller, &cluster, &scope, &operation, now),
            Command::Extend { cluster, until } => self.extend(caller, &cluster, until, now),
            Command::SetHost { host, state } => self.set_host(caller, host, state, now),
            Command::ForgetHost { host } => self.forget_host(caller, host, now),
        }
    }

    /// What would come of a request. It promises nothing: another may come first.
    ///
    /// # Errors
    /// [`Refusal`] with what is missing.
    pub fn dry_run(&self, caller: &Caller, request: &Request, now: Now) -> Result<DryRun, Refusal> {
        let judged = self.judge(caller, request, now)?;
        let sets = sets(&request.description);
        let to_stage = judged.plan.members.iter().filter_map(|(name, placed)| {
            let image = sets.get(name)?.image.clone();
            let host = self.world.hosts.get(&placed.host)?;
            (!host.facts.images.contains(&image)).then(|| (placed.host.clone(), image))
        });
        Ok(DryRun {
            to_stage: to_stage.collect(),
            plan: judged.plan,
            left_out: judged.left_out,
            warnings: judged.warnings,
        })
    }

    /// Judges a request in full, and finds its place.
    fn judge(&self, caller: &Caller, request: &Request, now: Now) -> Result<Judged, Refusal> {
        let description = &request.description;
        let owner = owner(caller, request)?;
        let warnings = description.check(&self.settings.bounds)?;
        kept::admit(description)?;
        if self.world.clusters.len() >= MAX_CLUSTERS {
            return Err(Refusal::Limit {
                what: "clusters",
                limit: MAX_CLUSTERS,
            });
        }
        // A description that names none was refused where there is no default.
        let lifetime = self.settings.bounds.lifetime(description);
        let lifetime = lifetime.unwrap_or(self.settings.bounds.max_lifetime);
        let members = description.members();
        let ledger = self.world.ledger();
        let quotas = &self.settings.quotas;
        if description.all_or_none {
            let least = Ask::minimum(&members, lifetime.duration());
            ledger
                .admit(quotas, &owner, &least, now.wall)
                .map_err(ledger::Refusal::from)?;
        }
        let hosts = self.places();
        let find = |rules: &Rules| {
            let found = if description.all_or_none {
                place(&members, &hosts, rules).map(|plan| (plan, Vec::new()))
            } else {
                place_some(&members, &hosts, rules)
            };
            let found = found.and_then(|(plan, left)| match plan.members.is_empty() {
                // Nobody finds a place: why, is said as if all were wanted.
                true => place(&members, &hosts, rules).map(|plan| (plan, left)),
                false => Ok((plan, left)),
            });
            found.map_err(|source| Refusal::Placement {
                cluster: request.id.clone(),
                source,
            })
        };
        let admit = |plan: &Plan| ledger.admit(quotas, &owner, &Ask::of(plan, lifetime.duration()), now.wall);
        let mut rules = self.settings.rules;
        let (mut plan, mut left) = find(&rules)?;
        if rules.grow && admit(&plan).is_err() {
            rules.grow = false;
            (plan, left) = find(&rules)?;
        }
        admit(&plan).map_err(ledger::Refusal::from)?;
        Ok(Judged {
            owner,
            lifetime,
            plan,
            left_out: left.into_iter().collect(),
            warnings,
        })
    }

    /// The hosts as the placement sees them. One that is not heard of takes no members.
    fn places(&self) -> Vec<placement::Host> {
        let place = |(name, host): (&HostName, &crate::state::Host)| {
            let watch = self.run.hosts.get(name);
            let ready = watch.is_some_and(|watch| watch.connected && watch.hearing == Hearing::Heard);
            placement::Host {
                name: name.clone(),
                total: host.facts.capacity,
                free: self.world.ledger.free(name).unwrap_or_default(),
                images: host.facts.images.clone(),
                connections: host.facts.connections.clone(),
                state: if ready { host.state } else { HostState::Draining },
                accelerator: host.facts.accelerator,
            }
        };
        self.world.hosts().map(place).collect()
    }

    fn request(&mut self, caller: &Caller, request: Request, now: Now) -> Result<Answer, Refusal> {
        let id = request.id.clone();
        if let Some(cluster) = self.world.clusters.get(&id) {
            let same =
                cluster.owner == owner(caller, &request)? && cluster.description == request.description;
            return match &cluster.phase {
                _ if !same => Err(Refusal::Differs(id)),
                Phase::Ending(_) => Err(Refusal::Ending(id)),
                Phase::Deploying | Phase::Deployed => Ok(Answer::Placed {
                    plan: self
                        .world
                        .ledger
                        .hold(&id)
                        .map(|hold| hold.plan.clone())
                        .unwrap_or_default(),
                    left_out: cluster.left_out.clone(),
                    warnings: Vec::new(),
                }),
            };
        }
        let judged = self.judge(caller, &request, now)?;
        let reserve = ledger::Command::Reserve(Reservation {
            id: id.clone(),
            owner: judged.owner.clone(),
            plan: judged.plan.clone(),
            lease: self.settings.deploy_within,
            lifetime: judged.lifetime,
            quotas: self.settings.quotas.clone(),
        });
        let reserved = match self.world.ledger.decide(reserve, now.wall)? {
            ledger::Decision::Record(record) => record,
            // A hold without its cluster cannot be: both are written down together.
            ledger::Decision::Already => return Err(Refusal::Ended(id)),
        };
        let (cluster, next) = self.new_cluster(request.description, &judged, now);
        self.record(Record::Ledger(reserved), now);
        self.run.dirty.insert(id.clone());
        let cluster = Box::new(cluster);
        self.record(Record::Requested { id, cluster, next }, now);
        Ok(Answer::Placed {
            plan: judged.plan,
            left_out: judged.left_out,
            warnings: judged.warnings,
        })
    }

    /// The cluster with the guests that its members will be, and the number of the guest after them.
    fn new_cluster(&self, description: Description, judged: &Judged, now: Now) -> (Cluster, u64) {
        let manager = self.world.manager.unwrap_or(crate::ManagerId([0; 7]));
        let mut next = self.world.next;
        let mut number = || {
            let guest = GuestId::new(manager, next);
            next += 1;
            guest
        };
        let context = number();
        let goal = Goal::of(description.target);
        let sets = sets(&description);
        let mut members = BTreeMap::new();
        for (name, placed) in &judged.plan.members {
            let Some(set) = sets.get(name) else {
                continue;
            };
            let member = Member {
                set: set.name.clone(),
                guest: number(),
                host: placed.host.clone(),
                amounts: placed.amounts,
                goal,
                reached: Reached::Nothing,
                doing: None,
                deployed: false,
                fault: None,
                problem: None,
                renew: false,
                save: None,
                report: None,
            };
            members.insert(name.clone(), member);
        }
        let cluster = Cluster {
            owner: judged.owner.clone(),
            description,
            at: now.wall,
            since: None,
            phase: Phase::Deploying,
            members,
            left_out: judged.left_out.clone(),
            context,
            has_context: false,
            warned: None,
        };
        (cluster, next)
    }

    /// A cluster that the caller may change.
    pub(super) fn owned(&self, caller: &Caller, id: &RequestId) -> Result<&Cluster, Refusal> {
        let Some(cluster) = self.world.clusters.get(id) else {
            return Err(Refusal::UnknownCluster(id.clone()));
        };
        if caller.may(&cluster.owner) {
            Ok(cluster)
        } else {
            Err(Refusal::NotYours(id.clone()))
        }
    }

    fn extend(
        &mut self,
        caller: &Caller,
        id: &RequestId,
        until: WallMillis,
        now: Now,
    ) -> Result<Answer, Refusal> {
        let cluster = self.owned(caller, id)?;
        if cluster.is_ending() {
            return Err(Refusal::Ending(id.clone()));
        }
        let most = self.settings.bounds.max_lifetime;
        let latest = cluster.since.unwrap_or(cluster.at).plus(most.duration());
        let promised = self.world.ledger.hold(id).map(ledger::Hold::until);
        let longer = promised.is_some_and(|promised| until > promised);
        if longer && until > latest && !caller.admin {
            return Err(Refusal::TooLong {
                cluster: id.clone(),
                latest,
                most,
            });
        }
        let quotas = self.settings.quotas.clone();
        let id = id.clone();
        self.book(ledger::Command::Extend { id, until, quotas }, now)?;
        Ok(Answer::Done)
    }

    fn set_host(
        &mut self,
        caller: &Caller,
        host: HostName,
        state: HostState,
        now: Now,
    ) -> Result<Answer, Refusal> {
        let known = self.known_host(caller, &host)?;
        if known.state != state {
            self.record(Record::HostSet { host, state }, now);
        }
        Ok(Answer::Done)
    }

    fn known_host(&self, caller: &Caller, host: &HostName) -> Result<&crate::state::Host, Refusal> {
        if !caller.admin {
            return Err(Refusal::NotAdmin);
        }
        let known = self.world.hosts.get(host);
        known
            .map(AsRef::as_ref)
            .ok_or_else(|| Refusal::UnknownHost(host.clone()))
    }

    /// All that was on a host is gone, because somebody who knows says so.
    fn forget_host(&mut self, caller: &Caller, host: HostName, now: Now) -> Result<Answer, Refusal> {
        self.known_host(caller, &host)?;
        let used = self
            .world
            .clusters()
            .any(|(_, cluster)| cluster.members.values().any(|member| member.host == host));
        if used && self.hearing(&host) != Hearing::Lost {
            return Err(Refusal::HostAlive(host));
        }
        self.lose_members(&host, now)?;
        self.book(ledger::Command::RemoveHost { host: host.clone() }, now)?;
        self.run.hosts.remove(&host);
        self.record(Record::HostForgotten { host }, now);
        Ok(Answer::Done)
    }

    fn lose_members(&mut self, host: &HostName, now: Now) -> Result<(), Refusal> {
        let clusters: Vec<RequestId> = self.world.clusters.keys().cloned().collect();
        for id in clusters {
            let Some(cluster) = self.world.clusters.get(&id) else {
                continue;
            };
            let on_it = cluster.members.iter().filter(|(_, member)| member.host == *host);
            let lost: BTreeMap<_, _> = on_it.map(|(name, member)| (name.clone(), member.guest)).collect();
            if lost.is_empty() {
                continue;
            }
            let all = lost.len() == cluster.members.len();
            let ending = cluster.is_ending();
            let why = format!("its host '{host}' was given up");
            for (member, guest) in &lost {
                if let Some(op) = self.run.busy.get(guest).copied() {
                    self.forget_op(op);
                }
                self.drop_guest(&id, member);
                let (id, member) = (id.clone(), member.clone());
                let fault = Fault::Failed(why.clone());
                self.record(
                    Record::Faulted {
                        id: id.clone(),
                        member: member.clone(),
                        fault,
                    },
                    now,
                );
                let reached = Reached::Gone;
                self.record(Record::Reached { id, member, reached }, now);
            }
            let members = lost.into_keys().collect::<BTreeSet<_>>();
            if all {
                if !ending {
                    let why = Why::Failed(why);
                    self.record(Record::Ending { id: id.clone(), why }, now);
                }
                self.book(ledger::Command::Release { id: id.clone() }, now)?;
            } else {
                let id = id.clone();
                if self.world.ledger.hold(&id).is_some() {
                    let members = members.clone();
                    self.book(
                        ledger::Command::GiveBack {
                            id: id.clone(),
                            members,
                        },
                        now,
                    )?;
                }
                for member in members {
                    self.record(
                        Record::Removed {
                            id: id.clone(),
                            member,
                        },
                        now,
                    );
                }
            }
            self.run.dirty.insert(id);
        }
        Ok(())
    }
}

fn owner(caller: &Caller, request: &Request) -> Result<Owner, Refusal> {
    match &request.group {
        Some(group) if !caller.groups.contains(group) => Err(Refusal::NotInGroup(group.clone())),
        group => Ok(Owner {
            user: caller.user.clone(),
            group: group.clone(),
        }),
    }
}

/// The set that each member is of.
fn sets<'d>(description: &'d Description) -> BTreeMap<MemberName, &'d Workspace> {
    let of = |set: &'d Workspace| {
        let named = move |index| (member_name(&set.name, index, set.count), set);
        (1..=set.count).map(named)
    };
    description.workspaces.iter().flat_map(of).collect()
}
