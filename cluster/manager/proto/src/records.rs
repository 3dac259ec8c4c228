//! The lines of the journal.

use std::collections::{BTreeMap, BTreeSet};

use aerie_cluster_proto::ledger::{self, RequestId};
use aerie_cluster_proto::placement::HostState;
use aerie_context_proto::{HostName, MemberName};
use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

use crate::events::{Event, What};
use crate::host::Facts;
use crate::ids::{GuestId, ManagerId};
use crate::state::{Cluster, ContextReport, Fault, Goal, Host, Reached, Step, Why};
use aerie_cluster_proto::description::Image;

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// When it was decided.
    pub at: WallMillis,
    /// What.
    pub record: Record,
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// The journal begins.
    Begun {
        /// Whose it is.
        manager: ManagerId,
    },
    /// The journal so far, in one piece.
    Snapshot(Box<Snapshot>),
    /// Something of the ledger's.
    Ledger(ledger::Record),
    /// A host has told what it has.
    HostTold {
        /// Which.
        host: HostName,
        /// What.
        facts: Facts,
    },
    /// A host has an image more.
    HostStaged {
        /// Which.
        host: HostName,
        /// Which image.
        image: Image,
    },
    /// A host is to take members or not.
    HostSet {
        /// Which.
        host: HostName,
        /// Whether.
        state: HostState,
    },
    /// A host is no more.
    HostForgotten {
        /// Which.
        host: HostName,
    },
    /// A cluster has its place, and its members their guests.
    Requested {
        /// Its name.
        id: RequestId,
        /// It.
        cluster: Box<Cluster>,
        /// The number that the next guest has.
        next: u64,
    },
    /// Members are to be something else.
    Aimed {
        /// Of which cluster.
        id: RequestId,
        /// Which.
        members: BTreeSet<MemberName>,
        /// What.
        goal: Goal,
        /// Whether they are made anew once they are gone.
        renew: bool,
        /// The image as which each one's disk is kept before.
        save: BTreeMap<MemberName, Image>,
    },
    /// Something is begun with a machine.
    Begins {
        /// Of which cluster.
        id: RequestId,
        /// With which member.
        member: MemberName,
        /// What.
        step: Step,
    },
    /// A member is further.
    Reached {
        /// Of which cluster.
        id: RequestId,
        /// Which.
        member: MemberName,
        /// Where.
        reached: Reached,
    },
    /// A member's disk is kept.
    Saved {
        /// Of which cluster.
        id: RequestId,
        /// Whose.
        member: MemberName,
    },
    /// Something is wrong with a member.
    Faulted {
        /// Of which cluster.
        id: RequestId,
        /// With which.
        member: MemberName,
        /// What.
        fault: Fault,
    },
    /// Something was not done; the member's goal is what it is.
    Reverted {
        /// Of which cluster.
        id: RequestId,
        /// With which member.
        member: MemberName,
        /// What it is.
        goal: Goal,
        /// Why.
        why: String,
    },
    /// Something does not go as it should, and is tried on.
    Troubled {
        /// Of which cluster.
        id: RequestId,
        /// With which member.
        member: MemberName,
        /// What.
        why: String,
    },
    /// A member is made anew, as another guest.
    Renewed {
        /// Of which cluster.
        id: RequestId,
        /// Which.
        member: MemberName,
        /// The guest.
        guest: GuestId,
    },
    /// A member that was undeployed by itself is no more.
    Removed {
        /// Of which cluster.
        id: RequestId,
        /// Which.
        member: MemberName,
    },
    /// A cluster has a context, or has none any more.
    Context {
        /// Which.
        id: RequestId,
        /// Whether.
        there: bool,
    },
    /// The context broker says something of a member.
    Reported {
        /// Of which cluster.
        id: RequestId,
        /// Of which.
        member: MemberName,
        /// What.
        report: ContextReport,
    },
    /// A cluster is deployed.
    Deployed {
        /// Which.
        id: RequestId,
        /// Until when.
        until: WallMillis,
    },
    /// Its owner was warned of the end of its life-time.
    Warned {
        /// Whose.
        id: RequestId,
        /// When that is.
        until: WallMillis,
    },
    /// A cluster ends.
    Ending {
        /// Which.
        id: RequestId,
        /// Why.
        why: Why,
    },
    /// Nothing is left of a cluster.
    Ended {
        /// Which.
        id: RequestId,
    },
    /// A host has a guest of this manager's with a number that its journal did not give: the journal is an older copy.
    Ahead {
        /// Which host.
        host: HostName,
        /// The guest, which is left alone.
        guest: GuestId,
    },
    /// Something to tell that changes nothing.
    Told(What),
}

/// All that a journal comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub(crate) manager: Option<ManagerId>,
    pub(crate) next: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) passed: Vec<(u64, u64)>,
    pub(crate) ledger: ledger::Snapshot,
    pub(crate) hosts: BTreeMap<HostName, Host>,
    pub(crate) clusters: BTreeMap<RequestId, Cluster>,
    pub(crate) ended: Vec<(RequestId, Cluster)>,
    pub(crate) events: Vec<Event>,
    pub(crate) next_event: u64,
}
