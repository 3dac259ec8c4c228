//! What follows for a cluster from how its members are: its phase, and what is held for it.

use std::collections::BTreeSet;

use aerie_cluster_proto::ledger;
use aerie_cluster_proto::ledger::RequestId;
use aerie_context_proto::MemberName;

use super::{Core, Hearing, Key, Now};
use crate::error::Refusal;
use crate::ids::GuestId;
use crate::records::Record;
use crate::state::{Cluster, Fault, Phase, Reached, Why};

/// What a cluster's state asks for. One thing at a time: the state is looked at anew after each.
enum Move {
    /// A member's host was lost before it was deployed.
    Lose(MemberName, String),
    End(Why),
    Commit,
    Renew(MemberName),
    Remove(MemberName),
    Release,
    Bury,
}

impl Core {
    /// Does all that follows from what has changed. To be called once after everything that came at a time.
    pub fn settle(&mut self, now: Now) {
        while let Some(id) = self.run.dirty.pop_first() {
            // Every move makes a member or the cluster go further, so that their number is bounded.
            while let Some(next) = self.next_move(&id) {
                if self.defect.is_some() {
                    return;
                }
                self.make(&id, next, now);
            }
            self.plan(&id, now);
        }
    }

    fn next_move(&self, id: &RequestId) -> Option<Move> {
        let cluster = self.world.clusters.get(id)?;
        if cluster.is_ending() {
            return self.next_of_ending(id, cluster);
        }
        let gone =
            |member: &&crate::state::Member| member.goal.is_absent() && member.reached == Reached::Gone;
        for (name, member) in &cluster.members {
            if gone(&member) && member.renew {
                return Some(Move::Renew(name.clone()));
            }
            if gone(&member) && member.fault.is_none() {
                return Some(if cluster.members.len() == 1 {
                    Move::End(Why::Undeployed)
                } else {
                    Move::Remove(name.clone())
                });
            }
        }
        match cluster.phase {
            Phase::Deploying => self.next_of_deploying(cluster),
            Phase::Deployed | Phase::Ending(_) => None,
        }
    }

    fn next_of_deploying(&self, cluster: &Cluster) -> Option<Move> {
        let (mut waiting, mut deployed, mut failed) = (false, 0_usize, None);
        for (name, member) in &cluster.members {
            if let Some(fault) = &member.fault {
                failed.get_or_insert_with(|| format!("'{name}' {}", fault.why()));
            } else if member.deployed {
                deployed += 1;
            } else if !member.goal.is_absent() {
                if self.hearing(&member.host) == Hearing::Lost {
                    let why = format!("lost its host '{}', which was silent for too long", member.host);
                    return Some(Move::Lose(name.clone(), why));
                }
                waiting = true;
            }
        }
        match failed {
            Some(why) if cluster.description.all_or_none || (deployed == 0 && !waiting) => {
                Some(Move::End(Why::Failed(why)))
            }
            _ if waiting || deployed == 0 => None,
            _ => Some(Move::Commit),
        }
    }

    fn next_of_ending(&self, id: &RequestId, cluster: &Cluster) -> Option<Move> {
        let gone = cluster
            .members
            .values()
            .all(|member| member.reached == Reached::Gone);
        if !gone {
            return None;
        }
        if self.world.ledger.hold(id).is_some() {
            return Some(Move::Release);
        }
        (!cluster.has_context).then_some(Move::Bury)
    }

    fn make(&mut self, id: &RequestId, next: Move, now: Now) {
        let id = id.clone();
        let refused = match next {
            Move::Lose(member, why) => {
                let fault = Fault::Failed(why);
                self.record(Record::Faulted { id, member, fault }, now);
                Ok(())
            }
            Move::End(why) => {
                self.record(Record::Ending { id, why }, now);
                Ok(())
            }
            Move::Commit => {
                self.commit(id, now);
                Ok(())
            }
            Move::Renew(member) => {
                let manager = self.world.manager.unwrap_or(crate::ManagerId([0; 7]));
                let guest = GuestId::new(manager, self.world.next);
                self.drop_guest(&id, &member);
                self.record(Record::Renewed { id, member, guest }, now);
                Ok(())
            }
            Move::Remove(member) => {
                self.drop_guest(&id, &member);
                let members = BTreeSet::from([member.clone()]);
                let booked = self.book(
                    ledger::Command::GiveBack {
                        id: id.clone(),
                        members,
                    },
                    now,
                );
                self.record(Record::Removed { id, member }, now);
                booked
            }
            Move::Release => self.book(ledger::Command::Release { id }, now),
            Move::Bury => {
                let members: Vec<_> = self
                    .world
                    .clusters
                    .get(&id)
                    .map_or_else(Vec::new, |cluster| cluster.members.keys().cloned().collect());
                for member in &members {
                    self.drop_guest(&id, member);
                }
                self.run.retries.remove(&Key::Context(id.clone()));
                self.run.looks.remove(&id);
                self.record(Record::Ended { id }, now);
                Ok(())
            }
        };
        if let Err(refusal) = refused {
            // Ends and gifts are never refused; to go on would leave more held than there is.
            self.defect.get_or_insert(crate::Corrupt::new(refusal));
        }
    }

    fn commit(&mut self, id: RequestId, now: Now) {
        match self.book(ledger::Command::Commit { id: id.clone() }, now) {
            Ok(()) => {
                let until = self.world.ledger.hold(&id).map_or(now.wall, ledger::Hold::until);
                self.record(Record::Deployed { id, until }, now);
            }
            Err(Refusal::Ledger(ledger::Refusal::Lapsed(_))) => {
                let why = Why::Failed(self.too_late());
                self.record(Record::Ending { id, why }, now);
            }
            Err(refusal) => drop(self.defect.get_or_insert(crate::Corrupt::new(refusal))),
        }
    }

    pub(super) fn too_late(&self) -> String {
        let within = humantime::format_duration(self.settings.deploy_within);
        format!(
            "it took longer than {within}, for which its place was held; look at its events for what was slow"
        )
    }

    /// Forgets what was noted of a guest that is no more.
    pub(super) fn drop_guest(&mut self, id: &RequestId, name: &MemberName) {
        let member = self
            .world
            .clusters
            .get(id)
            .and_then(|cluster| cluster.members.get(name));
        if let Some(guest) = member.map(|member| member.guest) {
            self.run.retries.remove(&Key::Guest(guest));
            self.run.touched.remove(&guest);
        }
    }
}
