//! A context: what its members reported, and what each of them is given.
//!
//! ```text
//!  context
//!            create             close          every expected member has reported or failed
//!    (none) ───────► open ───────────────► gathering ───────────────► stable, version n ──┐
//!                     │                     ▲  a member joins,                            │
//!                     │                     └──leaves, or reports late ◄──────────────────┘
//!                     └─ destroy, from every state ─► destroyed: its agents are told so and end
//!
//!  member
//!    expected ── register ──► reported ── a version with news for it ──► due ── ok ──► ok
//!       │ deadline               ▲                                       ▲ │ │
//!       ▼                        │                          attempts left└─┤ │ no exit report by its deadline,
//!    missing ─── register, late ─┘                                   error─┘ ▼ or no attempt left
//!                                                                          failed
//!    and from every state: leave, or be removed ─► gone
//! ```
//!
//! Nothing is given to anybody before all that is expected has come or failed, so that no member configures itself
//! by half of the truth; then all is *published* under a version number. A member is given a version only when that
//! differs, for what the member requires, from what it was given last. A later change (a join, a departure, a late
//! report) is gathered in the same way and published under the next number.
//!
//! A context is a journal of [`Record`]s. [`Context::decide`] judges a command and changes nothing: it gives the
//! record that the command would add, and the answer. The driver makes the record durable, *then* applies it with
//! [`Context::commit`], and only then answers. [`Context::replay`] gives the same context from the same records, so
//! that a crash at any point loses nothing that was answered, and whatever was not is asked again: every command is
//! idempotent.
//!
//! Times are wall times, since deadlines outlive the broker's process; a clock that steps moves them, and nothing
//! else depends on their order.

mod commit;
mod decide;
mod publish;
mod records;
mod status;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

pub use records::{
    Answer, Command, Decision, Effects, Exit, Identity, Provided, Record, Registration, Step, Verdict,
};
pub use status::{MemberStatus, Phase, Status};
pub use view::{Blob, Player, Retrieved, View};

use crate::cluster::{Cluster, Workspace};
use crate::error::Refusal;
use crate::limits::{MAX_ATTEMPTS, MAX_LIMIT_SECS};
use crate::names::{ContextId, DataName, HostName, InstanceHash, MemberName, RoleName, SetName};

/// Time limits of a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How long after it is expected a member has to have reported, in seconds.
    pub report_secs: u64,
    /// How long after a version is published a member has to have sent its exit report, in seconds.
    pub exit_secs: u64,
    /// How often a member may try a version until it ends with ok.
    pub attempts: u32,
    /// How long a member waits before it tries again, in seconds.
    pub retry_secs: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            report_secs: 15 * 60,
            exit_secs: 15 * 60,
            attempts: 3,
            retry_secs: 5,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<(), Refusal> {
        let invalid = |what, why: String| Err(Refusal::Invalid { what, why });
        for (what, secs) in [("report_secs", self.report_secs), ("exit_secs", self.exit_secs)] {
            if !(1..=MAX_LIMIT_SECS).contains(&secs) {
                return invalid(
                    what,
                    format!("{secs} s is not between 1 s and {MAX_LIMIT_SECS} s"),
                );
            }
        }
        if self.retry_secs > MAX_LIMIT_SECS {
            return invalid(
                "retry_secs",
                format!("{} s is over {MAX_LIMIT_SECS} s", self.retry_secs),
            );
        }
        if !(1..=MAX_ATTEMPTS).contains(&self.attempts) {
            return invalid(
                "attempts",
                format!("{} is not between 1 and {MAX_ATTEMPTS}", self.attempts),
            );
        }
        Ok(())
    }

    fn report(&self) -> Duration {
        Duration::from_secs(self.report_secs)
    }

    fn exit(&self) -> Duration {
        Duration::from_secs(self.exit_secs)
    }

    fn retry(&self) -> Duration {
        Duration::from_secs(self.retry_secs)
    }
}

/// A context to create.
#[derive(Debug, Clone)]
pub struct Creation {
    /// Its id, drawn at random.
    pub id: ContextId,
    /// Its members.
    pub cluster: Cluster,
    /// Its time limits.
    pub settings: Settings,
    /// Whether data and providers are still to be added. Nothing is published before it is closed.
    pub open: bool,
}

/// A context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    id: ContextId,
    cluster: Cluster,
    settings: Settings,
    created_at: WallMillis,
    open: bool,
    destroyed: bool,
    /// The number of the last member ever expected, by set: names are not used twice.
    counters: BTreeMap<SetName, u32>,
    members: BTreeMap<MemberName, Member>,
    /// The creator's data blobs.
    data: BTreeMap<DataName, String>,
    data_bytes: usize,
    // Indexes of what members reported.
    instances: BTreeMap<InstanceHash, MemberName>,
    addresses: BTreeMap<IpAddr, MemberName>,
    host_names: BTreeMap<HostName, MemberName>,
    /// How many members are expected and have neither reported nor failed.
    pending: usize,
    published: Published,
    /// What changed since the last version.
    dirty_members: BTreeSet<MemberName>,
    dirty_data: BTreeSet<DataName>,
    /// When members were last heard of. It is not worth a write to the disk, and starts anew with the broker.
    #[serde(skip)]
    heard: Heard,
}

/// Not a part of what a context is.
#[derive(Debug, Clone, Default)]
struct Heard(BTreeMap<MemberName, WallMillis>);

impl PartialEq for Heard {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Heard {}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Member {
    set: SetName,
    index: u32,
    /// When it was expected first, and by when it has to report.
    since: WallMillis,
    deadline: WallMillis,
    state: State,
    exit: Option<Exit>,
    exit_at: WallMillis,
    /// The version for which its exit report did not come in time.
    overdue: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Expected,
    Missing,
    Reported {
        at: WallMillis,
        instance: InstanceHash,
        provided: Provided,
    },
}

impl Member {
    fn provided(&self) -> Option<&Provided> {
        match &self.state {
            State::Reported { provided, .. } => Some(provided),
            State::Expected | State::Missing => None,
        }
    }

    fn instance(&self) -> Option<InstanceHash> {
        match &self.state {
            State::Reported { instance, .. } => Some(*instance),
            State::Expected | State::Missing => None,
        }
    }
}

/// What was published: the newest version, and for each part the version that changed it last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Published {
    /// 0 before the first.
    version: u32,
    /// When each version was published; the first is version 1.
    times: Vec<WallMillis>,
    members: BTreeMap<MemberName, PublishedMember>,
    identities_changed: u32,
    roles: BTreeMap<RoleName, Part<BTreeMap<MemberName, Identity>>>,
    data: BTreeMap<DataName, Part<BTreeMap<Source, String>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PublishedMember {
    provided: Provided,
    /// The version with which it came.
    joined: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Part<T> {
    value: T,
    changed: u32,
}

/// Who brought a data blob: the creator (`""`) or a member. A text, since JSON has no other keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Source(String);

impl Source {
    fn creator() -> Self {
        Self(String::new())
    }

    fn member(name: &MemberName) -> Self {
        Self(name.to_string())
    }
}

impl Context {
    /// Judges a new context, and gives its first record.
    ///
    /// # Errors
    /// [`Refusal`]: a document that is not usable, or a role that is required and that nobody can provide.
    pub fn create(creation: Creation, now: WallMillis) -> Result<Record, Refusal> {
        creation.settings.check()?;
        creation.cluster.check(creation.open)?;
        Ok(Record::Created {
            at: now,
            id: creation.id,
            cluster: creation.cluster,
            settings: creation.settings,
            open: creation.open,
        })
    }

    /// The context's id.
    #[must_use]
    pub fn id(&self) -> ContextId {
        self.id
    }

    /// The cluster document that it was created by.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The newest version; 0 before the first.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.published.version
    }

    /// Whether it was destroyed.
    #[must_use]
    pub fn is_destroyed(&self) -> bool {
        self.destroyed
    }

    /// Whether every expected member has reported or failed, and all that came is published.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.published.version > 0 && self.pending == 0 && self.is_clean()
    }

    fn is_clean(&self) -> bool {
        self.dirty_members.is_empty() && self.dirty_data.is_empty()
    }

    /// Notes that a member was heard of. A member that does not show its instance is not noted.
    pub fn touch(&mut self, member: &MemberName, instance: InstanceHash, now: WallMillis) {
        if self.members.get(member).and_then(Member::instance) == Some(instance) {
            self.heard.0.insert(member.clone(), now);
        }
    }

    /// When [`Command::Tick`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<WallMillis> {
        if self.destroyed {
            return None;
        }
        let waiting = self.members.iter();
        waiting
            .filter_map(|(name, member)| self.deadline(name, member))
            .min()
    }

    /// By when something has to come from a member.
    fn deadline(&self, name: &MemberName, member: &Member) -> Option<WallMillis> {
        match member.state {
            State::Expected => Some(member.deadline),
            State::Missing => None,
            State::Reported { .. } => self.exit_deadline(name, member),
        }
    }

    /// By when a member's exit report has to come, where one is due and not overdue yet.
    fn exit_deadline(&self, name: &MemberName, member: &Member) -> Option<WallMillis> {
        let version = self.version_for(name, member);
        if version == 0 || member.overdue >= version || !self.missing_roles(member).is_empty() {
            return None;
        }
        match &member.exit {
            Some(exit) if exit.version == version => {
                let again = !exit.ok && exit.attempt < self.settings.attempts;
                again.then(|| {
                    member
                        .exit_at
                        .plus(self.settings.retry())
                        .plus(self.settings.exit())
                })
            }
            _ => Some(self.published_at(version).plus(self.settings.exit())),
        }
    }

    fn published_at(&self, version: u32) -> WallMillis {
        let index = (version as usize).saturating_sub(1);
        self.published
            .times
            .get(index)
            .copied()
            .unwrap_or(self.created_at)
    }

    fn set(&self, name: &SetName) -> Option<&Workspace> {
        self.cluster.workspaces.iter().find(|set| set.name == *name)
    }

    fn set_of(&self, member: &Member) -> Option<&Workspace> {
        self.set(&member.set)
    }

    fn sets_members(&self, set: &SetName) -> usize {
        self.members.values().filter(|member| member.set == *set).count()
    }
}
