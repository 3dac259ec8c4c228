//! A host as the manager sees it: what it has, what runs there, and what can be done there.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aerie_cluster_proto::amount::{Bytes, Resources};
use aerie_cluster_proto::description::{Image, Nic, Partition};
use aerie_cluster_proto::ledger::RequestId;
use aerie_cluster_proto::placement::{Accelerator, Connections};
use aerie_context_proto::MemberName;
use serde::{Deserialize, Serialize};

use crate::ids::GuestId;
use crate::limits::MAX_REASON;
use crate::state::Reached;

/// What a host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// What it has for members altogether.
    pub capacity: Resources,
    /// Images that are on it.
    pub images: BTreeSet<Image>,
    /// What a member's interfaces can be connected to.
    pub connections: Connections,
    /// How fast its guests run.
    pub accelerator: Accelerator,
}

/// What a host has, and what is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// What it has.
    pub facts: Facts,
    /// Every guest of which there is anything, its disks alone included; of whichever manager.
    pub guests: Vec<Found>,
}

/// A guest on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Who it is.
    pub guest: GuestId,
    /// How it is.
    pub state: GuestState,
}

/// How a guest is, as its host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// There are disks of it, or parts of them, and no machine.
    Prepared,
    /// There is a machine that never ran.
    Defined,
    /// It runs.
    Running,
    /// It is in memory and stands still.
    Paused,
    /// Its memory is in a file.
    Suspended,
    /// It is switched off.
    Stopped,
    /// It ended otherwise.
    Crashed {
        /// How.
        why: String,
    },
    /// Its hypervisor does not answer.
    Unresponsive {
        /// What was asked.
        why: String,
    },
    /// What its host keeps of it cannot be read: it is left as it is, whether it runs or not.
    Damaged {
        /// What is wrong, and where.
        why: String,
    },
}

impl GuestState {
    /// What a machine has reached that is so; nothing where that is not known.
    pub(crate) fn reached(&self) -> Option<Reached> {
        Some(match self {
            Self::Prepared => Reached::Disks,
            Self::Defined => Reached::Defined,
            Self::Running => Reached::Running,
            Self::Paused => Reached::Paused,
            Self::Suspended => Reached::Suspended,
            Self::Stopped => Reached::Stopped,
            Self::Crashed { .. } => Reached::Crashed,
            Self::Unresponsive { .. } | Self::Damaged { .. } => return None,
        })
    }
}

/// As what it is: "it is running".
impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepared => "without a machine",
            Self::Defined => "switched off, as it was from the beginning,",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Stopped => "switched off",
            Self::Crashed { .. } => "crashed",
            Self::Unresponsive { .. } => "unresponsive",
            Self::Damaged { .. } => "damaged",
        })
    }
}

/// A guest to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Who it is.
    pub guest: GuestId,
    /// The cluster that it is of.
    pub cluster: RequestId,
    /// Which member of it.
    pub member: MemberName,
    /// What it starts from.
    pub image: Image,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// The disk that is made from the image.
    pub disk: Bytes,
    /// Blank disks beside it.
    pub partitions: Vec<Partition>,
    /// Network interfaces.
    pub nics: Vec<Nic>,
}

/// One thing to do on a host. Each may be done again at any time, and is then no error: whoever asks may not have had
/// the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Have an image on the host.
    Stage {
        /// The image.
        image: Image,
    },
    /// Make a guest's disks, from an image that is on the host. Disks that are whole are left as they are.
    Prepare(Arc<Spec>),
    /// Make the guest's ends of its networks.
    Attach(Arc<Spec>),
    /// Make the machine known.
    Define(Arc<Spec>),
    /// Switch it on. Its networks are connected again where they are not.
    Start(GuestId),
    /// Let it stand still.
    Pause(GuestId),
    /// Let it run on.
    Resume(GuestId),
    /// Write its memory to a file, and end it.
    Suspend(GuestId),
    /// Take its memory from the file; it is as it was then. Its networks are connected again where they are not.
    Restore(GuestId),
    /// Ask it to switch itself off, and switch it off if it has not.
    Stop {
        /// Which.
        guest: GuestId,
        /// How long it may take.
        grace: Duration,
    },
    /// Keep its disk, switched off as it is, as an image. A name that the repository has already is refused, unless it
    /// is this very disk that was kept.
    Save {
        /// Which.
        guest: GuestId,
        /// Under which name.
        image: Image,
    },
    /// End it at once, whatever is being done to it, and remove all that there is of it: machine, networks, disks, and
    /// what it was given. What was begun for this guest before and is not done yet is never done after the answer.
    Destroy(GuestId),
}

/// Why something was not done on a host or by the context broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What to make of it.
    pub kind: FailureKind,
    /// What is wrong, where, and what to do, in a line.
    pub why: String,
}

/// What to make of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Nobody answered: it may have been done or not, or may be done yet.
    Unreachable,
    /// It was not done, and may be when it is tried again.
    Failed,
    /// It was not done, and would not be if it were tried again.
    Refused,
}

impl Failure {
    /// Nobody answered.
    pub fn unreachable(why: impl fmt::Display) -> Self {
        Self::new(FailureKind::Unreachable, why)
    }

    /// It may be done when it is tried again.
    pub fn failed(why: impl fmt::Display) -> Self {
        Self::new(FailureKind::Failed, why)
    }

    /// To try again is of no use.
    pub fn refused(why: impl fmt::Display) -> Self {
        Self::new(FailureKind::Refused, why)
    }

    fn new(kind: FailureKind, why: impl fmt::Display) -> Self {
        let why = reason(&why.to_string());
        Self { kind, why }
    }
}

/// A reason of unknown origin in one line of bounded length.
pub(crate) fn reason(text: &str) -> String {
    let line = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MAX_REASON).map(line).collect()
}
