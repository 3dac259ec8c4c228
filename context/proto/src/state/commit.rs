//! Applying records. It follows from the records alone, so that a replay ends where the broker was.

use std::collections::BTreeMap;

use aerie_types::WallMillis;

use super::{Context, Decision, Effects, Exit, Member, Provided, Published, Record, State};
use crate::cluster::{Cluster, member_name};
use crate::error::{Corrupt, Refusal};
use crate::names::{InstanceHash, MemberName, SetName};

use super::Command;

impl Context {
    /// The context that these records make.
    ///
    /// # Errors
    /// [`Corrupt`] if they are not the records of one context in their order.
    pub fn replay(records: impl IntoIterator<Item = Record>) -> Result<Self, Corrupt> {
        let mut records = records.into_iter().enumerate();
        let mut context = match records.next() {
            Some((_, first)) => Self::begin(first)?,
            None => {
                return Err(Corrupt {
                    index: 0,
                    why: "there is none",
                });
            }
        };
        for (index, record) in records {
            context.commit(record).map_err(|why| Corrupt { index, why })?;
        }
        Ok(context)
    }

    fn begin(record: Record) -> Result<Self, Corrupt> {
        let corrupt = |why| Corrupt { index: 0, why };
        match record {
            Record::Snapshot { context } => Ok(*context),
            Record::Created {
                at,
                id,
                cluster,
                settings,
                open,
            } => {
                let data = cluster.data().map_err(|_| corrupt("its data is not usable"))?;
                let mut context = Self {
                    id,
                    settings,
                    created_at: at,
                    open,
                    destroyed: false,
                    counters: BTreeMap::new(),
                    members: BTreeMap::new(),
                    data_bytes: data.values().map(String::len).sum(),
                    dirty_data: data.keys().cloned().collect(),
                    data,
                    instances: BTreeMap::new(),
                    addresses: BTreeMap::new(),
                    host_names: BTreeMap::new(),
                    pending: 0,
                    published: Published::default(),
                    dirty_members: std::collections::BTreeSet::new(),
                    heard: super::Heard::default(),
                    cluster,
                };
                let sets: Vec<_> = context
                    .cluster
                    .workspaces
                    .iter()
                    .map(|s| (s.name.clone(), s.quantity))
                    .collect();
                for (set, quantity) in sets {
                    context.add_members(&set, quantity, at);
                }
                context.settle(at);
                Ok(context)
            }
            _ => Err(corrupt("it does not create a context")),
        }
    }

    /// Applies a record that [`Self::decide`] gave, once it is durable.
    ///
    /// # Errors
    /// Why the record is not one of this context in this state.
    pub fn commit(&mut self, record: Record) -> Result<Effects, &'static str> {
        if self.destroyed {
            return Err("it comes after the context's end");
        }
        let version = self.published.version;
        let at = match record {
            Record::Created { .. } | Record::Snapshot { .. } => return Err("it begins a context anew"),
            Record::Registered {
                at,
                member,
                instance,
                provided,
            } => {
                self.registered(member, instance, provided, at)?;
                at
            }
            Record::Exited { at, member, exit } => {
                self.exited(&member, exit, at)?;
                at
            }
            Record::Gone { at, member } => {
                self.gone(&member)?;
                at
            }
            Record::Injected { at, name, content } => {
                self.data_bytes += content.len();
                let replaced = self.data.insert(name.clone(), content);
                self.data_bytes -= replaced.map_or(0, |old| old.len());
                self.dirty_data.insert(name);
                at
            }
            Record::Closed { at } => {
                self.open = false;
                at
            }
            Record::Expected { at, set, more } => {
                if self.set(&set).is_none() {
                    return Err("it expects members of an unknown workspace");
                }
                self.add_members(&set, more, at);
                at
            }
            Record::Ticked { at } => {
                self.ticked(at);
                at
            }
            Record::Destroyed { at } => {
                self.destroyed = true;
                at
            }
        };
        if !self.destroyed {
            self.settle(at);
        }
        Ok(Effects {
            published: self.published.version > version,
            destroyed: self.destroyed,
        })
    }

    /// Decides and commits in one, where nothing has to be durable.
    ///
    /// # Errors
    /// [`Refusal`]; the context is as it was.
    pub fn apply(&mut self, command: Command, now: WallMillis) -> Result<(Decision, Effects), Refusal> {
        let decision = self.decide(command, now)?;
        let effects = match &decision.record {
            Some(record) => self.commit(record.clone()).map_err(|why| Refusal::Invalid {
                what: "the command",
                why: why.to_owned(),
            })?,
            None => Effects::default(),
        };
        Ok((decision, effects))
    }

    /// One record in place of all before it.
    #[must_use]
    pub fn snapshot(&self) -> Record {
        Record::Snapshot {
            context: Box::new(self.clone()),
        }
    }

    /// The names that the next members of a set get.
    pub(super) fn next_names(&self, set: &SetName, more: u32) -> Vec<(MemberName, u32)> {
        let quantity = self.set(set).map_or(0, |set| set.quantity);
        let mut index = self.counters.get(set).copied().unwrap_or(0);
        let mut names = Vec::new();
        while names.len() < more as usize && index < u32::MAX {
            index += 1;
            let name = member_name(set, index, quantity);
            // Another set may have a member of that name.
            if !self.members.contains_key(&name) {
                names.push((name, index));
            }
        }
        names
    }

    fn add_members(&mut self, set: &SetName, more: u32, at: WallMillis) {
        for (name, index) in self.next_names(set, more) {
            let member = Member {
                set: set.clone(),
                index,
                since: at,
                deadline: at.plus(self.settings.report()),
                state: State::Expected,
                exit: None,
                exit_at: at,
                overdue: 0,
            };
            self.members.insert(name, member);
            self.counters.insert(set.clone(), index);
            self.pending += 1;
        }
    }

    fn registered(
        &mut self,
        name: MemberName,
        instance: InstanceHash,
        provided: Provided,
        at: WallMillis,
    ) -> Result<(), &'static str> {
        let member = self.members.get_mut(&name).ok_or("it is of an unknown member")?;
        match member.state {
            State::Expected => self.pending -= 1,
            State::Missing => {}
            State::Reported { .. } => return Err("its member has reported before"),
        }
        for identity in &provided.identities {
            self.addresses.insert(identity.ip, name.clone());
            if let Some(hostname) = &identity.hostname {
                self.host_names.insert(hostname.clone(), name.clone());
            }
        }
        self.data_bytes += provided.data.values().map(String::len).sum::<usize>();
        self.instances.insert(instance, name.clone());
        member.state = State::Reported {
            at,
            instance,
            provided,
        };
        self.dirty_members.insert(name);
        Ok(())
    }

    fn exited(&mut self, name: &MemberName, exit: Exit, at: WallMillis) -> Result<(), &'static str> {
        let member = self.members.get_mut(name).ok_or("it is of an unknown member")?;
        // A report that comes late is better than none.
        if member.overdue == exit.version {
            member.overdue = 0;
        }
        member.exit = Some(exit);
        member.exit_at = at;
        Ok(())
    }

    fn gone(&mut self, name: &MemberName) -> Result<(), &'static str> {
        let member = self.members.remove(name).ok_or("it is of an unknown member")?;
        self.heard.0.remove(name);
        match member.state {
            State::Expected => self.pending -= 1,
            State::Missing => {}
            State::Reported {
                instance, provided, ..
            } => {
                self.instances.remove(&instance);
                self.addresses.retain(|_, by| by != name);
                self.host_names.retain(|_, by| by != name);
                self.data_bytes -= provided.data.values().map(String::len).sum::<usize>();
                self.dirty_members.insert(name.clone());
            }
        }
        Ok(())
    }

    fn ticked(&mut self, at: WallMillis) {
        let due: Vec<_> = self
            .members
            .iter()
            .filter(|(name, member)| self.deadline(name, member).is_some_and(|deadline| deadline <= at))
            .map(|(name, member)| (name.clone(), self.version_for(name, member)))
            .collect();
        for (name, version) in due {
            let Some(member) = self.members.get_mut(&name) else {
                continue;
            };
            match member.state {
                State::Expected => {
                    member.state = State::Missing;
                    self.pending -= 1;
                }
                State::Missing => {}
                State::Reported { .. } => member.overdue = version,
            }
        }
    }

    /// The cluster document with the numbers of members as they are now.
    pub(super) fn as_expected(&self) -> Cluster {
        let mut cluster = self.cluster.clone();
        for set in &mut cluster.workspaces {
            set.quantity = u32::try_from(self.sets_members(&set.name)).unwrap_or(u32::MAX);
        }
        for (name, content) in &self.data {
            for data in cluster
                .workspaces
                .iter_mut()
                .flat_map(|set| &mut set.requires.data)
            {
                if data.name == *name {
                    data.content = Some(content.clone());
                }
            }
        }
        cluster
    }
}
