//! Judging commands. Nothing here changes a context.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aerie_types::WallMillis;

use super::{
    Answer, Command, Context, Decision, Exit, Member, Provided, Record, Registration, State, Verdict,
};
use crate::cluster::{Workspace, is_data};
use crate::error::Refusal;
use crate::limits::{
    MAX_ATTEMPTS, MAX_DATA, MAX_DATA_BYTES, MAX_DATA_TOTAL, MAX_INTERFACES, MAX_LOGS, MAX_MEMBER_DATA_BYTES,
    MAX_MEMBERS, MAX_MESSAGE, MAX_STEP_LOG, MAX_STEPS, MAX_VERSIONS,
};
use crate::names::{DataName, InstanceHash, MemberName, SetName};

impl Decision {
    fn nothing(answer: Answer) -> Self {
        Self { record: None, answer }
    }

    fn with(record: Record, answer: Answer) -> Self {
        Self {
            record: Some(record),
            answer,
        }
    }
}

impl Context {
    /// Judges a command: what would be written down, and what would be answered then.
    ///
    /// # Errors
    /// [`Refusal`]; the context is as it was.
    pub fn decide(&self, command: Command, now: WallMillis) -> Result<Decision, Refusal> {
        if self.destroyed {
            return match command {
                Command::Destroy | Command::Tick => Ok(Decision::nothing(Answer::Done)),
                _ => Err(Refusal::Destroyed(self.id)),
            };
        }
        match command {
            Command::Register(registration) => self.register(registration, now),
            Command::Exit {
                member,
                instance,
                exit,
            } => self.exit(member, instance, exit, now),
            Command::Leave { member, instance } => {
                self.theirs(&member, instance)?;
                Ok(Decision::with(Record::Gone { at: now, member }, Answer::Done))
            }
            Command::Remove { member } => {
                self.member(&member)?;
                Ok(Decision::with(Record::Gone { at: now, member }, Answer::Done))
            }
            Command::Inject { name, content } => self.inject(name, content, now),
            Command::Close => self.close(now),
            Command::Expect { set, quantity } => self.expect(set, quantity, now),
            Command::Destroy => Ok(Decision::with(Record::Destroyed { at: now }, Answer::Done)),
            Command::Tick => {
                let due = self.next_deadline().is_some_and(|deadline| deadline <= now);
                let record = due.then_some(Record::Ticked { at: now });
                Ok(Decision {
                    record,
                    answer: Answer::Done,
                })
            }
        }
    }

    /// The member of this name, if the asker is it.
    pub(super) fn theirs(&self, name: &MemberName, instance: InstanceHash) -> Result<&Member, Refusal> {
        let member = self.member(name)?;
        if member.instance() != Some(instance) {
            return Err(Refusal::NotYours(name.clone()));
        }
        Ok(member)
    }

    fn member(&self, name: &MemberName) -> Result<&Member, Refusal> {
        self.members
            .get(name)
            .ok_or_else(|| Refusal::UnknownMember(name.clone()))
    }

    fn register(&self, registration: Registration, now: WallMillis) -> Result<Decision, Refusal> {
        let Registration {
            member: wished,
            set: set_name,
            instance,
            provided,
        } = registration;
        let set = self
            .set(&set_name)
            .ok_or_else(|| Refusal::UnknownSet(set_name.clone()))?;
        if let Some(name) = self.instances.get(&instance) {
            return self.register_again(name, wished.as_ref(), &set_name, &provided);
        }
        let name = match wished {
            Some(name) => {
                let member = self.member(&name)?;
                if member.set != set_name {
                    return Err(Refusal::NotYours(name));
                }
                if member.provided().is_some() {
                    return Err(Refusal::NotYours(name));
                }
                name
            }
            None => self.free_place(&set_name)?,
        };
        self.check_versions()?;
        self.check_provided(set, &provided)?;
        self.check_unique(&provided)?;
        let record = Record::Registered {
            at: now,
            member: name.clone(),
            instance,
            provided,
        };
        Ok(Decision::with(record, Answer::Registered(name)))
    }

    fn register_again(
        &self,
        name: &MemberName,
        wished: Option<&MemberName>,
        set: &SetName,
        provided: &Provided,
    ) -> Result<Decision, Refusal> {
        let member = self.member(name)?;
        if wished.is_some_and(|wished| wished != name) || member.set != *set {
            return Err(Refusal::AlreadyMember(name.clone()));
        }
        let differs = |what| {
            Err(Refusal::Differs {
                member: name.clone(),
                what,
            })
        };
        match member.provided() {
            Some(before) if before.identities != provided.identities => differs("identities"),
            Some(before) if before.data != provided.data => differs("data"),
            _ => Ok(Decision::nothing(Answer::Registered(name.clone()))),
        }
    }

    /// The first place of a set that nobody has: one still expected, or else one given up.
    fn free_place(&self, set: &SetName) -> Result<MemberName, Refusal> {
        let of_set = || self.members.iter().filter(|(_, member)| member.set == *set);
        let free = of_set()
            .filter(|(_, member)| member.provided().is_none())
            .min_by_key(|(_, member)| (member.state == State::Missing, member.index));
        match free {
            Some((name, _)) => Ok(name.clone()),
            None => Err(Refusal::NoPlace {
                set: set.clone(),
                quantity: of_set().count(),
            }),
        }
    }

    fn check_versions(&self) -> Result<(), Refusal> {
        limit(
            "versions",
            self.published.version as usize + 1,
            MAX_VERSIONS as usize,
        )
    }

    /// Whether a report has what the set's document promises, and what others need of it.
    fn check_provided(&self, set: &Workspace, provided: &Provided) -> Result<(), Refusal> {
        limit(
            "interfaces of a member",
            provided.identities.len(),
            MAX_INTERFACES,
        )?;
        if provided.identities.is_empty() {
            return Err(Refusal::IdentityMissing(set.name.clone()));
        }
        let reported = |interface| {
            let mut identities = provided.identities.iter();
            identities.any(|identity| identity.interface.as_ref() == Some(interface))
        };
        let named = set
            .provides
            .identities
            .iter()
            .filter_map(|identity| identity.interface.as_ref());
        for interface in named {
            if !reported(interface) {
                return Err(Refusal::InterfaceMissing {
                    set: set.name.clone(),
                    interface: interface.clone(),
                });
            }
        }
        for role in &set.provides.roles {
            let Some(identity) = provided.playing(role.interface.as_ref()) else {
                return Err(Refusal::IdentityMissing(set.name.clone()));
            };
            for (by, required) in self.requirers(&role.name) {
                let missing = if required.hostname && identity.hostname.is_none() {
                    "host name"
                } else if required.pubkey && identity.pubkey.is_none() {
                    "SSH host key"
                } else {
                    continue;
                };
                return Err(Refusal::PartMissing {
                    set: set.name.clone(),
                    what: missing,
                    by: by.clone(),
                });
            }
        }
        self.check_data(set, provided)
    }

    fn check_data(&self, set: &Workspace, provided: &Provided) -> Result<(), Refusal> {
        let problem = |problem, name: &DataName| {
            Err(Refusal::Data {
                set: set.name.clone(),
                problem,
                name: name.clone(),
            })
        };
        if let Some(name) = provided
            .data
            .keys()
            .find(|name| !set.provides.data.contains(name))
        {
            return problem("must not report", name);
        }
        if let Some(name) = set
            .provides
            .data
            .iter()
            .find(|name| !provided.data.contains_key(name))
        {
            return problem("did not report", name);
        }
        for (name, content) in &provided.data {
            if content.len() > MAX_MEMBER_DATA_BYTES {
                return problem("reports more than 8192 bytes as", name);
            }
            if !is_data(content) {
                return problem(
                    "reports control characters, which need an encoding such as base64, in",
                    name,
                );
            }
        }
        let bytes: usize = provided.data.values().map(String::len).sum();
        limit("bytes of data", self.data_bytes + bytes, MAX_DATA_TOTAL)
    }

    fn check_unique(&self, provided: &Provided) -> Result<(), Refusal> {
        let mut seen = BTreeSet::new();
        for identity in &provided.identities {
            if !seen.insert(identity.ip) {
                return Err(Refusal::Invalid {
                    what: "the report",
                    why: format!("it has the address {} twice", identity.ip),
                });
            }
            if let IpAddr::V6(v6) = identity.ip
                && let Some(v4) = v6.to_ipv4_mapped()
            {
                return Err(Refusal::Invalid {
                    what: "the report",
                    why: format!("{} is an address of IPv4: write it as {v4}", identity.ip),
                });
            }
            if identity.ip.is_loopback() || identity.ip.is_unspecified() || identity.ip.is_multicast() {
                return Err(Refusal::Invalid {
                    what: "the report",
                    why: format!("{} reaches no member from another", identity.ip),
                });
            }
            if let Some(by) = self.addresses.get(&identity.ip) {
                return Err(Refusal::IdentityTaken {
                    what: "the address",
                    value: identity.ip.to_string(),
                    by: by.clone(),
                });
            }
            if let Some(hostname) = &identity.hostname
                && let Some(by) = self.host_names.get(hostname)
            {
                return Err(Refusal::IdentityTaken {
                    what: "the host name",
                    value: hostname.to_string(),
                    by: by.clone(),
                });
            }
        }
        Ok(())
    }

    fn exit(
        &self,
        name: MemberName,
        instance: InstanceHash,
        exit: Exit,
        now: WallMillis,
    ) -> Result<Decision, Refusal> {
        let member = self.theirs(&name, instance)?;
        check_exit(&exit)?;
        let version = self.version_for(&name, member);
        // Only what the member was given can have ended.
        if exit.version == 0 || exit.version > version {
            return Err(Refusal::UnknownVersion {
                member: name,
                version: exit.version,
            });
        }
        if exit.version < version {
            return Ok(Decision::nothing(Answer::Exit(Verdict::Superseded)));
        }
        let verdict = Answer::Exit(self.verdict(&exit));
        match &member.exit {
            Some(before) if *before == exit => Ok(Decision::nothing(verdict)),
            Some(before) if before.version == exit.version && before.attempt > exit.attempt => {
                Ok(Decision::nothing(Answer::Exit(Verdict::Superseded)))
            }
            Some(before) if before.version == exit.version && before.attempt == exit.attempt => {
                Err(Refusal::Differs {
                    member: name,
                    what: "results of the same attempt",
                })
            }
            _ => Ok(Decision::with(
                Record::Exited {
                    at: now,
                    member: name,
                    exit,
                },
                verdict,
            )),
        }
    }

    fn verdict(&self, exit: &Exit) -> Verdict {
        if exit.ok {
            Verdict::Accepted
        } else if exit.attempt < self.settings.attempts {
            Verdict::Retry {
                after: self.settings.retry(),
            }
        } else {
            Verdict::GivenUp
        }
    }

    fn inject(&self, name: DataName, content: String, now: WallMillis) -> Result<Decision, Refusal> {
        if self.data.get(&name) == Some(&content) {
            return Ok(Decision::nothing(Answer::Done));
        }
        if !self.open {
            return Err(Refusal::Closed);
        }
        if content.len() > MAX_DATA_BYTES || !is_data(&content) {
            return Err(Refusal::Invalid {
                what: "the data",
                why: format!(
                    "up to {MAX_DATA_BYTES} bytes of text without control characters are accepted; encode what is \
                     binary, such as by base64"
                ),
            });
        }
        let replaced = self.data.get(&name);
        limit(
            "data blobs",
            self.data.len() + usize::from(replaced.is_none()),
            MAX_DATA,
        )?;
        let bytes = self.data_bytes - replaced.map_or(0, String::len) + content.len();
        limit("bytes of data", bytes, MAX_DATA_TOTAL)?;
        let record = Record::Injected {
            at: now,
            name,
            content,
        };
        Ok(Decision::with(record, Answer::Done))
    }

    fn close(&self, now: WallMillis) -> Result<Decision, Refusal> {
        if !self.open {
            return Ok(Decision::nothing(Answer::Done));
        }
        self.as_expected().check_provided()?;
        Ok(Decision::with(Record::Closed { at: now }, Answer::Done))
    }

    fn expect(&self, set: SetName, quantity: u32, now: WallMillis) -> Result<Decision, Refusal> {
        if self.set(&set).is_none() {
            return Err(Refusal::UnknownSet(set));
        }
        let present = u32::try_from(self.sets_members(&set)).unwrap_or(u32::MAX);
        let Some(more) = quantity.checked_sub(present) else {
            return Err(Refusal::Invalid {
                what: "the number of members",
                why: format!("'{set}' has {present} already; remove members by their names"),
            });
        };
        limit("members", self.members.len() + more as usize, MAX_MEMBERS)?;
        self.check_versions()?;
        if more == 0 {
            return Ok(Decision::nothing(Answer::Expected(self.names_of(&set))));
        }
        let record = Record::Expected {
            at: now,
            set: set.clone(),
            more,
        };
        let mut names = self.names_of(&set);
        names.extend(self.next_names(&set, more).into_iter().map(|(name, _)| name));
        Ok(Decision::with(record, Answer::Expected(names)))
    }

    fn names_of(&self, set: &SetName) -> Vec<MemberName> {
        let mut of_set: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.set == *set)
            .collect();
        of_set.sort_by_key(|(_, member)| member.index);
        of_set.into_iter().map(|(name, _)| name.clone()).collect()
    }
}

fn check_exit(exit: &Exit) -> Result<(), Refusal> {
    limit("steps in a report", exit.steps.len(), MAX_STEPS)?;
    limit("bytes in a report's message", exit.message.len(), MAX_MESSAGE)?;
    if exit.attempt == 0 || exit.attempt > MAX_ATTEMPTS {
        return Err(Refusal::Invalid {
            what: "the report",
            why: format!("attempt {} is not between 1 and {MAX_ATTEMPTS}", exit.attempt),
        });
    }
    for step in &exit.steps {
        limit("bytes in a step's log", step.log.len(), MAX_STEP_LOG)?;
    }
    let logs = exit.steps.iter().map(|step| step.log.len()).sum();
    limit("bytes of logs in a report", logs, MAX_LOGS)?;
    Ok(())
}

pub(super) fn limit(what: &'static str, found: usize, limit: usize) -> Result<(), Refusal> {
    if found > limit {
        Err(Refusal::Limit { what, limit })
    } else {
        Ok(())
    }
}
