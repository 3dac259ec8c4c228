//! What a person is told: how far a context is, and who waits for what.

use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

use super::publish::Missing;
use super::{Context, Exit, Identity, Member, State};
use crate::limits::MAX_WAITS;
use crate::names::{ContextId, MemberName, SetName};

/// How far a context is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The context.
    pub id: ContextId,
    /// The newest version; 0 before the first.
    pub version: u32,
    /// How old the context is, in seconds.
    pub age_secs: u64,
    /// Whether data and providers may still be added; nothing is published before it is closed.
    pub open: bool,
    /// Whether it has ended.
    pub destroyed: bool,
    /// Whether every expected member has reported or failed.
    pub complete: bool,
    /// Whether it is complete and every member ended its configuration with ok.
    pub all_ok: bool,
    /// Whether some member has failed.
    pub error_present: bool,
    /// How many members there are.
    pub total_nodes: usize,
    /// How many of them have reported.
    pub registered: usize,
    /// How many are done.
    pub ok: usize,
    /// How many have failed.
    pub failed: usize,
    /// Who waits for what, a line each.
    pub waits: Vec<String>,
    /// The members by set and number.
    pub members: Vec<MemberStatus>,
}

/// Where a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has not reported.
    Expected,
    /// It has not reported by its deadline.
    Missing,
    /// It has reported and waits for others.
    Reported,
    /// It has a version to configure itself by.
    Due,
    /// It tries once more.
    Retrying,
    /// It is configured.
    Ok,
    /// It is not, and tries no more.
    Failed,
}

impl Phase {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expected => "expected",
            Self::Missing => "missing",
            Self::Reported => "reported",
            Self::Due => "due",
            Self::Retrying => "retrying",
            Self::Ok => "ok",
            Self::Failed => "failed",
        }
    }
}

/// How far a member is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: MemberName,
    /// Its set.
    pub set: SetName,
    /// Where it is.
    pub phase: Phase,
    /// Why it waits or has failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The newest version that has news for it; 0 if none has.
    pub version: u32,
    /// Its identities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<Identity>,
    /// How many seconds ago it was heard of, as far as the broker remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_secs: Option<u64>,
    /// Its last exit report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

impl Context {
    /// How far the context is.
    #[must_use]
    pub fn status(&self, now: WallMillis) -> Status {
        let mut members: Vec<_> = self.members.iter().collect();
        let order = |set: &SetName| {
            self.cluster
                .workspaces
                .iter()
                .position(|other| other.name == *set)
        };
        members.sort_by_key(|(_, member)| (order(&member.set), member.index));
        let members: Vec<_> = members
            .into_iter()
            .map(|(name, member)| self.member_status(name, member, now))
            .collect();
        let count = |phases: &[Phase]| {
            members
                .iter()
                .filter(|member| phases.contains(&member.phase))
                .count()
        };
        let failed = count(&[Phase::Missing, Phase::Failed]);
        let ok = count(&[Phase::Ok]);
        let complete = self.is_complete();
        let mut waits: Vec<String> = Vec::new();
        if self.open {
            waits.push("the context is open: close it when nothing is to be added".to_owned());
        }
        let waiting = members.iter().filter(|member| !member.reason.is_empty());
        waits.extend(waiting.map(|member| format!("{} {}", member.name, member.reason)));
        if waits.len() > MAX_WAITS {
            let rest = waits.len() - MAX_WAITS;
            waits.truncate(MAX_WAITS);
            waits.push(format!("and {rest} more"));
        }
        Status {
            id: self.id,
            version: self.version(),
            age_secs: now.since(self.created_at).as_secs(),
            open: self.open,
            destroyed: self.destroyed,
            complete,
            all_ok: complete && ok == members.len(),
            error_present: failed > 0,
            total_nodes: members.len(),
            registered: members.len() - count(&[Phase::Expected, Phase::Missing]),
            ok,
            failed,
            waits,
            members,
        }
    }

    fn member_status(&self, name: &MemberName, member: &Member, now: WallMillis) -> MemberStatus {
        let (phase, reason) = self.phase(name, member, now);
        MemberStatus {
            name: name.clone(),
            set: member.set.clone(),
            phase,
            reason,
            version: self.version_for(name, member),
            identities: member
                .provided()
                .map(|provided| provided.identities.clone())
                .unwrap_or_default(),
            heard_secs: self.heard.0.get(name).map(|at| now.since(*at).as_secs()),
            exit: member.exit.clone(),
        }
    }

    fn phase(&self, name: &MemberName, member: &Member, now: WallMillis) -> (Phase, String) {
        let ago = |at: WallMillis| now.since(at).as_secs();
        match &member.state {
            State::Expected => {
                let left = member.deadline.since(now).as_secs();
                let reason = format!(
                    "has not reported for {} s; it has {left} s left",
                    ago(member.since)
                );
                return (Phase::Expected, reason);
            }
            State::Missing => {
                let reason = format!("did not report within {} s", self.settings.report_secs);
                return (Phase::Missing, reason);
            }
            State::Reported { .. } => {}
        }
        let version = self.version_for(name, member);
        let missing = self.missing_roles(member);
        if version == 0 {
            let waits: Vec<_> = self.awaited(member).collect();
            let reason = if waits.is_empty() {
                String::new()
            } else {
                format!("waits for {}", waits.join(", "))
            };
            return (Phase::Reported, reason);
        }
        if let Some(missing) = missing.first() {
            let reason = format!("cannot be configured: {}", self.absent(missing));
            return (Phase::Failed, reason);
        }
        match &member.exit {
            Some(exit) if exit.version == version && exit.ok => (Phase::Ok, String::new()),
            Some(exit) if exit.version == version && exit.attempt >= self.settings.attempts => {
                let reason = format!("failed at attempt {}: {}", exit.attempt, told(exit));
                (Phase::Failed, reason)
            }
            _ if member.overdue >= version => {
                let reason = format!(
                    "sent no exit report for version {version} within {} s",
                    self.settings.exit_secs
                );
                (Phase::Failed, reason)
            }
            Some(exit) if exit.version == version => {
                let reason = format!(
                    "tries again after attempt {} of {} failed: {}",
                    exit.attempt,
                    self.settings.attempts,
                    told(exit)
                );
                (Phase::Retrying, reason)
            }
            _ => {
                let since = ago(self.published_at(version));
                (
                    Phase::Due,
                    format!("configures itself by version {version} for {since} s"),
                )
            }
        }
    }

    /// What a member that has reported waits for, before it is published.
    fn awaited<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = String> + 'a {
        let set = self.set_of(member);
        let roles = set.into_iter().flat_map(|set| &set.requires.roles);
        roles.filter_map(|required| {
            let missing = Missing::Role(required.name.clone());
            let (here, all) = self.players(&missing);
            if all == 0 {
                Some(format!("{missing}: no workspace provides it"))
            } else if here == 0 {
                Some(format!("{missing}: provided by nobody yet"))
            } else if here < all {
                Some(format!("{missing}: provided by {here} of {all} yet"))
            } else {
                None
            }
        })
    }

    /// How many members have reported that provide something, and how many are to.
    fn players(&self, missing: &Missing) -> (usize, usize) {
        let sets: Vec<_> = self.providers(missing).map(|set| &set.name).collect();
        let of_sets = || self.members.values().filter(|member| sets.contains(&&member.set));
        let here = of_sets().filter(|member| member.provided().is_some()).count();
        let lost = of_sets().filter(|member| member.state == State::Missing).count();
        (here, of_sets().count() - lost)
    }

    fn absent(&self, missing: &Missing) -> String {
        let sets: Vec<_> = self.providers(missing).map(|set| set.name.to_string()).collect();
        if sets.is_empty() {
            format!("{missing} is provided by nobody")
        } else {
            format!(
                "{missing} is provided by nobody; {} should have",
                sets.join(" or ")
            )
        }
    }
}

fn told(exit: &Exit) -> String {
    if exit.message.is_empty() {
        "it gave no reason".to_owned()
    } else {
        exit.message
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }
}
