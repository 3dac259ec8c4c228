//! What people have done to members of a cluster: to all that they name, or to none.

use std::collections::{BTreeMap, BTreeSet};

use aerie_cluster_proto::description::Image;
use aerie_cluster_proto::ledger::{Owner, RequestId};
use aerie_context_proto::MemberName;

use super::{Answer, Core, Hearing, Now};
use crate::error::Refusal;
use crate::records::Record;
use crate::request::{Caller, Operation, Scope};
use crate::state::{Cluster, Fault, Goal, Member, Reached, Why};
use crate::view::MemberState;

impl Core {
    pub(super) fn operate(
        &mut self,
        caller: &Caller,
        id: &RequestId,
        scope: &Scope,
        operation: &Operation,
        now: Now,
    ) -> Result<Answer, Refusal> {
        let cluster = self.owned(caller, id)?;
        let members = selected(id, cluster, scope)?;
        let undeploy = matches!(operation, Operation::Undeploy { .. });
        if cluster.is_ending() {
            // To ask again is no error; anything else comes too late.
            return if undeploy {
                Ok(Answer::Done)
            } else {
                Err(Refusal::Ending(id.clone()))
            };
        }
        let mut aims: BTreeMap<(Goal, bool), BTreeSet<MemberName>> = BTreeMap::new();
        for (name, member) in &members {
            match aim(member, operation) {
                Ok(None) => {}
                Ok(Some(aim)) => drop(aims.entry(aim).or_default().insert((*name).clone())),
                Err(advice) => {
                    return Err(Refusal::State {
                        operation: operation.clone(),
                        member: (*name).clone(),
                        state: MemberState::of(member, self.hearing(&member.host) == Hearing::Lost),
                        advice,
                    });
                }
            }
        }
        let save = match operation {
            Operation::Undeploy { save: Some(image) } => {
                if !caller.admin {
                    in_account(image, &cluster.owner)?;
                }
                images(image, &members)?
            }
            _ => BTreeMap::new(),
        };
        let whole = undeploy && save.is_empty() && members.len() == cluster.members.len();
        let guests: Vec<_> = members.values().map(|member| member.guest).collect();
        for guest in guests {
            // What somebody asks for anew is tried anew.
            self.run.retries.remove(&super::Key::Guest(guest));
        }
        if whole {
            let why = Why::Undeployed;
            self.record(Record::Ending { id: id.clone(), why }, now);
        } else {
            for ((goal, renew), members) in aims {
                let save = save.clone();
                let id = id.clone();
                self.record(
                    Record::Aimed {
                        id,
                        members,
                        goal,
                        renew,
                        save,
                    },
                    now,
                );
            }
        }
        self.run.dirty.insert(id.clone());
        Ok(Answer::Done)
    }
}

fn selected<'c>(
    id: &RequestId,
    cluster: &'c Cluster,
    scope: &Scope,
) -> Result<BTreeMap<&'c MemberName, &'c Member>, Refusal> {
    let members = cluster.members.iter().filter(|(name, member)| match scope {
        Scope::Cluster => true,
        Scope::Set(set) => member.set == *set,
        Scope::Member(wanted) => **name == *wanted,
    });
    let members: BTreeMap<_, _> = members.collect();
    match scope {
        Scope::Set(set) if members.is_empty() => Err(Refusal::UnknownSet {
            cluster: id.clone(),
            set: set.clone(),
        }),
        Scope::Member(member) if members.is_empty() => Err(Refusal::UnknownMember {
            cluster: id.clone(),
            member: member.clone(),
        }),
        _ => Ok(members),
    }
}

/// What an operation makes of a member, and whether it is made anew; nothing where it is so already; or what would be
/// right.
fn aim(member: &Member, operation: &Operation) -> Result<Option<(Goal, bool)>, &'static str> {
    use Operation as O;
    let to = |goal: Goal| Ok((member.goal != goal || member.fault.is_some()).then_some((goal, false)));
    if let O::Undeploy { save } = operation {
        return match (save, member.reached) {
            (Some(_), Reached::Suspended) => {
                Err("start it first, for its disk is of one moment with its memory")
            }
            (Some(_), Reached::Nothing | Reached::Gone) => Err("it has no disk to keep; undeploy it without"),
            _ => Ok(Some((Goal::Absent { graceful: true }, false))),
        };
    }
    let crashed = member.reached == Reached::Crashed;
    match (operation, &member.fault, member.goal) {
        (O::Deploy, Some(_), _) => Ok(Some((Goal::Absent { graceful: false }, true))),
        (O::Deploy, None, Goal::Absent { .. }) if member.renew => Ok(None),
        (O::Deploy, None, Goal::Absent { .. }) => Err("wait until it is gone, and ask for a new cluster"),
        (O::Deploy, None, _) => Ok(None),
        (_, _, Goal::Absent { .. }) if member.fault.is_none() => Err("it is being undeployed"),
        (O::Start, Some(Fault::Corrupted(_)), _) if crashed => to(Goal::Started),
        (O::Stop, Some(Fault::Corrupted(_)), _) if crashed => to(Goal::Stopped),
        (_, Some(_), _) => Err("deploy it anew, or undeploy it"),
        (O::Start, None, _) => to(Goal::Started),
        (O::Unpause, None, Goal::Paused | Goal::Started) => to(Goal::Started),
        (O::Unpause, None, _) => Err("it does not stand still; start it"),
        (O::Pause, None, Goal::Started | Goal::Paused) => to(Goal::Paused),
        (O::Suspend, None, Goal::Started | Goal::Paused | Goal::Suspended) => to(Goal::Suspended),
        (O::Stop, None, Goal::Started | Goal::Paused | Goal::Stopped) => to(Goal::Stopped),
        (O::Stop, None, Goal::Suspended) => Err("start it first, or undeploy it"),
        (O::Pause | O::Suspend | O::Stop, None, _) => Err("it does not run; start it first"),
        (O::Undeploy { .. }, _, _) => Ok(None),
    }
}

/// Images that people keep begin with the name of the account that their cluster is on, so that nobody takes a name
/// that others start from.
fn in_account(image: &Image, owner: &Owner) -> Result<(), Refusal> {
    let account = owner
        .group
        .as_ref()
        .map_or_else(|| owner.user.to_string(), ToString::to_string);
    let first = |name: &str| name.split_once('/').is_some_and(|(first, _)| first == account);
    match image {
        Image::Named { name, .. } if first(name) => Ok(()),
        _ => Err(Refusal::SaveAccount {
            name: image.to_string(),
            account,
        }),
    }
}

/// The image as which each member's disk is kept.
fn images(
    image: &Image,
    members: &BTreeMap<&MemberName, &Member>,
) -> Result<BTreeMap<MemberName, Image>, Refusal> {
    let Image::Named { name, version: None } = image else {
        return Err(Refusal::SaveName(image.to_string()));
    };
    let single = members.len() == 1;
    let each = members.keys().map(|member| {
        let text = if single {
            name.clone()
        } else {
            format!("{name}/{member}")
        };
        let image = text.parse().map_err(|_| Refusal::SaveName(text))?;
        Ok(((*member).clone(), image))
    });
    each.collect()
}
