//! Clusters, their members and the hosts, as the journal makes them.
//!
//! A member has a *goal*, which people set, and what it has *reached*, which hosts tell. What is done next follows from
//! the two:
//!
//! ```text
//!             stage, prepare      attach        deliver          define          start
//!    Nothing ───────────────► Disks ───► Attached ───► Delivered ───► Defined ─────────► Running ◄───────┐
//!                               ▲           all members' disks are there         ▲   ▲    │ │  │         │
//!                               └── and their context, before anybody goes on    │   │    │ │  │ suspend │ restore
//!                                                                   start ┌──────┘   │    │ │  ▼         │
//!                                                                         │   resume │    │ │ Suspended ─┘
//!                                                     Stopped, Crashed ◄──┼─── stop ─┼────┘ │ pause
//!                                                                         │          └─ Paused ◄┘
//!    and from everything: destroy ─► Gone
//!
//!    goal        is reached by                    fault       means
//!    Propagated  Disks, or anything up to Defined Failed      it was not deployed; what was made of it is removed
//!    Started     Running                          Corrupted   it was, and ended otherwise, or its host has lost it;
//!    Paused      Paused                                       what there is of it stays for somebody to look at
//!    Suspended   Suspended
//!    Stopped     Stopped, Crashed, Defined
//!    Absent      Gone
//! ```
//!
//! A member with a fault is left alone until somebody decides: to deploy it anew, to start it (where it crashed), or to
//! undeploy it. A guest that switches itself off is stopped, and is not started again. What fails after the deployment
//! (a suspend on a full disk) changes nothing: the goal becomes what the member is, with the reason beside it.
//!
//! ```text
//!             all members deployed, or failed     undeployed, or its time is over
//!    Deploying ───────────────────────► Deployed ─────────────────────────────► Ending ──► (ended)
//!        └── a member failed where all or none are wanted; all failed; it took too long ─►┘   once nothing is left
//!                                                                                             of it on any host
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use aerie_cluster_proto::amount::Resources;
use aerie_cluster_proto::description::{Description, Image, Target};
use aerie_cluster_proto::ledger::Owner;
use aerie_cluster_proto::placement::HostState;
use aerie_context_proto::{HostName, MemberName, SetName};
use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

use crate::host::Facts;
use crate::ids::GuestId;

/// A host that was heard of once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// What it has.
    pub facts: Facts,
    /// Whether it takes new members.
    pub state: HostState,
}

/// A cluster that lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Whose it is.
    pub owner: Owner,
    /// What was asked for.
    #[serde(with = "kept")]
    pub description: Description,
    /// When.
    pub at: WallMillis,
    /// Since when its life-time counts. What the ledger has beside it moves with each period that is accounted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<WallMillis>,
    /// How far it is.
    pub phase: Phase,
    /// Its members, those that were undeployed by themselves left out.
    pub members: BTreeMap<MemberName, Member>,
    /// Members that found no place.
    pub left_out: BTreeSet<MemberName>,
    /// The guest number that its context goes by.
    pub context: GuestId,
    /// Whether there is a context.
    pub has_context: bool,
    /// The end of its life-time of which its owner was warned.
    pub warned: Option<WallMillis>,
}

/// How far a cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Members are brought to the target.
    Deploying,
    /// It is there, and its life-time counts.
    Deployed,
    /// Everything of it is taken away.
    Ending(Why),
}

/// Why a cluster ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Somebody asked.
    Undeployed,
    /// Its life-time is over.
    Expired,
    /// It was not deployed.
    Failed(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undeployed => f.write_str("it was undeployed"),
            Self::Expired => f.write_str("its life-time was over"),
            Self::Failed(why) => write!(f, "it was not deployed: {why}"),
        }
    }
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its set.
    pub set: SetName,
    /// The guest that it is.
    pub guest: GuestId,
    /// Where it is.
    pub host: HostName,
    /// What it has there.
    pub amounts: Resources,
    /// What it is to be.
    pub goal: Goal,
    /// What it is.
    pub reached: Reached,
    /// What was begun with its machine, where the answer is not known.
    pub doing: Option<Step>,
    /// Whether it has ever reached its goal.
    pub deployed: bool,
    /// What is wrong with it, so that it is left alone.
    pub fault: Option<Fault>,
    /// The last thing that did not go as it should, for people.
    pub problem: Option<String>,
    /// Whether it is made anew once it is gone.
    pub renew: bool,
    /// The image as which its disk is kept before it is taken away.
    pub save: Option<Image>,
    /// What its context says of it.
    pub report: Option<ContextReport>,
}

/// What a member is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Its disks are on its host.
    Propagated,
    /// It runs.
    Started,
    /// It is in memory and stands still.
    Paused,
    /// Its memory is in a file.
    Suspended,
    /// It is switched off.
    Stopped,
    /// There is nothing of it.
    Absent {
        /// Whether it is asked to switch itself off first.
        graceful: bool,
    },
}

impl Goal {
    /// What a description aims at.
    #[must_use]
    pub fn of(target: Target) -> Self {
        match target {
            Target::Propagated => Self::Propagated,
            Target::Started => Self::Started,
            Target::Paused => Self::Paused,
        }
    }

    /// Whether a member that is there is to be taken away.
    #[must_use]
    pub fn is_absent(self) -> bool {
        matches!(self, Self::Absent { .. })
    }

    /// Whether it is reached.
    #[must_use]
    pub fn is_met(self, reached: Reached) -> bool {
        use Reached as R;
        match self {
            Self::Propagated => matches!(reached, R::Disks | R::Attached | R::Delivered | R::Defined),
            Self::Started => reached == R::Running,
            Self::Paused => reached == R::Paused,
            Self::Suspended => reached == R::Suspended,
            Self::Stopped => matches!(reached, R::Stopped | R::Crashed | R::Defined),
            Self::Absent { .. } => reached == R::Gone,
        }
    }
}

/// What is known of a guest, from its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached {
    /// Nothing, or something half made.
    Nothing,
    /// Its disks are whole.
    Disks,
    /// Its networks are there.
    Attached,
    /// It has what it is told at its start.
    Delivered,
    /// There is a machine that never ran.
    Defined,
    /// It runs.
    Running,
    /// It stands still.
    Paused,
    /// Its memory is in a file.
    Suspended,
    /// It is switched off.
    Stopped,
    /// It ended otherwise.
    Crashed,
    /// There is nothing of it any more, and never will be.
    Gone,
}

impl Reached {
    /// The goal that it meets.
    #[must_use]
    pub fn as_goal(self) -> Goal {
        match self {
            Self::Nothing | Self::Disks | Self::Attached | Self::Delivered | Self::Defined => {
                Goal::Propagated
            }
            Self::Running => Goal::Started,
            Self::Paused => Goal::Paused,
            Self::Suspended => Goal::Suspended,
            Self::Stopped | Self::Crashed => Goal::Stopped,
            Self::Gone => Goal::Absent { graceful: false },
        }
    }
}

/// What is wrong with a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It was not deployed.
    Failed(String),
    /// It was, and is not what it was.
    Corrupted(String),
}

impl Fault {
    /// Why.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Failed(why) | Self::Corrupted(why) => why,
        }
    }
}

/// What the context broker says of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContextReport {
    /// It has reported.
    Reported,
    /// It is configured.
    Configured,
    /// It has not reported in time, or is not configured and tries no more.
    Failed(String),
}

/// A step of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Have the image on the host.
    Stage,
    /// Make the disks.
    Prepare,
    /// Make the ends of its networks.
    Attach,
    /// Give it what it is told at its start.
    Deliver,
    /// Make the machine known.
    Define,
    /// Switch it on.
    Start,
    /// Let it stand still.
    Pause,
    /// Let it run on.
    Resume,
    /// Write its memory to a file.
    Suspend,
    /// Take its memory back.
    Restore,
    /// Switch it off.
    Stop,
    /// Keep its disk as an image.
    Save,
    /// Remove all of it.
    Destroy,
}

impl Step {
    /// How long it may take before it counts as failed, beside the time that a guest is given to stop.
    #[must_use]
    pub fn limit(self) -> Duration {
        const MINUTE: u64 = 60;
        Duration::from_secs(match self {
            // Images of tens of gigabytes over a network of a gigabit, several at a time.
            Self::Stage | Self::Save => 45 * MINUTE,
            Self::Prepare | Self::Suspend | Self::Restore => 15 * MINUTE,
            Self::Start | Self::Stop | Self::Destroy => 3 * MINUTE,
            Self::Attach | Self::Deliver | Self::Define | Self::Pause | Self::Resume => MINUTE,
        })
    }

    /// Whether it changes how a machine runs, so that it must be known whether it was begun.
    #[must_use]
    pub(crate) fn is_power(self) -> bool {
        use Step as S;
        matches!(
            self,
            S::Start | S::Pause | S::Resume | S::Suspend | S::Restore | S::Stop
        )
    }

    /// Whether this is what it leads to.
    #[must_use]
    pub(crate) fn leads_to(self, reached: Reached) -> bool {
        match self {
            Self::Start | Self::Resume => reached == Reached::Running,
            Self::Restore => matches!(reached, Reached::Running | Reached::Paused),
            Self::Pause => reached == Reached::Paused,
            Self::Suspend => reached == Reached::Suspended,
            Self::Stop => matches!(reached, Reached::Stopped | Reached::Crashed),
            _ => false,
        }
    }
}

/// As what is tried: "could not be started".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stage => "get its image",
            Self::Prepare => "get its disks",
            Self::Attach => "be connected to its networks",
            Self::Deliver => "be given its context",
            Self::Define => "be defined",
            Self::Start => "be started",
            Self::Pause => "be paused",
            Self::Resume => "be unpaused",
            Self::Suspend => "be suspended",
            Self::Restore => "be restored",
            Self::Stop => "be stopped",
            Self::Save => "be kept as an image",
            Self::Destroy => "be removed",
        })
    }
}

impl Member {
    /// Whether it is there and to be there.
    #[must_use]
    pub(crate) fn is_wanted(&self) -> bool {
        self.fault.is_none() && !self.goal.is_absent()
    }
}

impl Cluster {
    /// Whether it ends.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending(_))
    }
}

/// A description within the journal: as the document that it is read from. Whatever is accepted is read back first: a
/// description that was made otherwise than by reading may be larger than any document may be.
pub(crate) mod kept {
    use aerie_cluster_proto::description::{Description, Document};
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::error::Refusal;

    /// Whether the journal that has this description can be replayed.
    pub(crate) fn admit(description: &Description) -> Result<(), Refusal> {
        let text = serde_json::to_string(description).map_err(|error| Refusal::Unkept(error.to_string()))?;
        if Document::from_json(&text)?.description == *description {
            return Ok(());
        }
        Err(Refusal::Unkept("it is read back as another".to_owned()))
    }

    pub(super) fn serialize<S: Serializer>(description: &Description, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&serde_json::to_string(description).map_err(serde::ser::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Description, D::Error> {
        let text = String::deserialize(from)?;
        let document = Document::from_json(&text).map_err(serde::de::Error::custom)?;
        Ok(document.description)
    }
}
