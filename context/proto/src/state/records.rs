//! What a context is asked, what it writes down, and what it answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

use super::{Context, Settings};
use crate::cluster::Cluster;
use crate::names::{
    ContextId, DataName, HostKey, HostName, InstanceHash, Interface, MemberName, SetName, StepName,
};

/// One network identity of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Its address.
    pub ip: IpAddr,
    /// The host's name by which this address is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<HostName>,
    /// The SSH host key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pubkey: Option<HostKey>,
}

/// What a member reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provided {
    /// Its identities, in the order of its interfaces.
    pub identities: Vec<Identity>,
    /// Its data blobs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<DataName, String>,
}

/// A member's report of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Which member it is, where it was told.
    pub member: Option<MemberName>,
    /// Of which set it is.
    pub set: SetName,
    /// What it proves itself by from now on.
    pub instance: InstanceHash,
    /// What it contributes.
    pub provided: Provided,
}

/// How a member's configuration ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// Of which version.
    pub version: u32,
    /// At which attempt, counted from 1.
    pub attempt: u32,
    /// Whether every step succeeded.
    pub ok: bool,
    /// What went wrong, in a line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The steps that were taken, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// One step of a member's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The phase or its script.
    pub name: StepName,
    /// Its exit code; none if it was ended by its time limit or a signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// The end of what it wrote.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
}

/// What a context is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A member reports.
    Register(Registration),
    /// A member says how its configuration ended.
    Exit {
        /// The member.
        member: MemberName,
        /// Its proof.
        instance: InstanceHash,
        /// How it ended.
        exit: Exit,
    },
    /// A member leaves.
    Leave {
        /// The member.
        member: MemberName,
        /// Its proof.
        instance: InstanceHash,
    },
    /// The creator adds a data blob to an open context.
    Inject {
        /// Its name.
        name: DataName,
        /// Its content.
        content: String,
    },
    /// The creator has no more data to add.
    Close,
    /// The creator expects more members.
    Expect {
        /// Of which set.
        set: SetName,
        /// How many members the set is to have in all. A total, so that asking twice is asking once.
        quantity: u32,
    },
    /// The creator takes a member out.
    Remove {
        /// The member.
        member: MemberName,
    },
    /// The creator ends the context.
    Destroy,
    /// Time has passed.
    Tick,
}

/// What a command comes to: a record to be made durable and committed before the answer is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What changes; `None` if nothing does.
    pub record: Option<Record>,
    /// What to answer then.
    pub answer: Answer,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The member that the asker is.
    Registered(MemberName),
    /// What comes of an exit report.
    Exit(Verdict),
    /// The members of the set, after more were expected.
    Expected(Vec<MemberName>),
    /// Done, or done before.
    Done,
}

/// What a member does after its exit report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: wait for the next version.
    Accepted,
    /// Try the same version again.
    Retry {
        /// After this time.
        after: Duration,
    },
    /// No attempt is left.
    GivenUp,
    /// There is news already, or a later report.
    Superseded,
}

/// One entry of a context's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The first.
    Created {
        /// When.
        at: WallMillis,
        /// The context's id.
        id: ContextId,
        /// Its members.
        cluster: Cluster,
        /// Its time limits.
        settings: Settings,
        /// Whether data is still to be added.
        open: bool,
    },
    /// All before it, in one.
    Snapshot {
        /// The context.
        context: Box<Context>,
    },
    /// A member reported.
    Registered {
        /// When.
        at: WallMillis,
        /// Which.
        member: MemberName,
        /// Its proof.
        instance: InstanceHash,
        /// What it contributes.
        provided: Provided,
    },
    /// A member's configuration ended.
    Exited {
        /// When.
        at: WallMillis,
        /// Whose.
        member: MemberName,
        /// How.
        exit: Exit,
    },
    /// A member left or was taken out.
    Gone {
        /// When.
        at: WallMillis,
        /// Which.
        member: MemberName,
    },
    /// A data blob was added.
    Injected {
        /// When.
        at: WallMillis,
        /// Its name.
        name: DataName,
        /// Its content.
        content: String,
    },
    /// No more data is added.
    Closed {
        /// When.
        at: WallMillis,
    },
    /// More members are expected.
    Expected {
        /// When.
        at: WallMillis,
        /// Of which set.
        set: SetName,
        /// How many more.
        more: u32,
    },
    /// Deadlines passed.
    Ticked {
        /// Up to when.
        at: WallMillis,
    },
    /// The context ended.
    Destroyed {
        /// When.
        at: WallMillis,
    },
}

/// What a committed record means to those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects {
    /// There is a new version: members that wait for one should look again.
    pub published: bool,
    /// The context has ended.
    pub destroyed: bool,
}
