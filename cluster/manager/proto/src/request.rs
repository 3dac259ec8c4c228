//! What the manager is asked, and by whom.

use std::collections::BTreeSet;
use std::fmt;

use aerie_cluster_proto::description::{Description, Image};
use aerie_cluster_proto::ledger::{Owner, RequestId};
use aerie_cluster_proto::placement::HostState;
use aerie_context_proto::{HostName, MemberName, SetName};
use aerie_types::{GroupName, UserName, WallMillis};

/// Who asks, as whoever let them in knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The person.
    pub user: UserName,
    /// The groups that the person is in.
    pub groups: BTreeSet<GroupName>,
    /// Whether the person administers the grid: may do all that an owner may, and change hosts.
    pub admin: bool,
}

impl Caller {
    /// Whether this caller may see and change what an owner has: the owner, those in the group on whose account it
    /// is, and administrators.
    #[must_use]
    pub fn may(&self, owner: &Owner) -> bool {
        let in_group = |group: &GroupName| self.groups.contains(group);
        self.admin || owner.user == self.user || owner.group.as_ref().is_some_and(in_group)
    }
}

/// A cluster that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What names it, chosen by the asker: the same each time that it is asked, and from then on the cluster's name.
    pub id: RequestId,
    /// On whose account; a group that the caller is in.
    pub group: Option<GroupName>,
    /// What is asked for, checked or not.
    pub description: Description,
}

/// Which members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Cluster,
    /// Those of a set.
    Set(SetName),
    /// One.
    Member(MemberName),
}

/// What is done to members. See [`Goal`](crate::Goal) for what each leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Make members anew that have failed or are corrupted, with new disks.
    Deploy,
    /// Let them run: switched on, restored, or running on.
    Start,
    /// Let them stand still.
    Pause,
    /// Let those run on that stand still.
    Unpause,
    /// Write their memories to files.
    Suspend,
    /// Switch them off; their disks stay.
    Stop,
    /// Take them away.
    Undeploy {
        /// The image as which a member's disk is kept before; of several members each as `NAME/MEMBER`.
        /// The name is a new one, which the repository has not yet, and begins with that of the cluster's account, its
        /// group or else its user: `ACCOUNT/...`. Administrators may choose another beginning.
        save: Option<Image>,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deploy => "deploy",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Suspend => "suspend",
            Self::Stop => "stop",
            Self::Undeploy { .. } => "undeploy",
        })
    }
}

/// What the manager is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Deploy a cluster.
    Request(Box<Request>),
    /// Do something to members, all of them or, if it cannot be done to one, none.
    Operate {
        /// The cluster.
        cluster: RequestId,
        /// Which members.
        scope: Scope,
        /// What.
        operation: Operation,
    },
    /// Let a cluster live longer, if quotas allow it: no longer altogether than any may that is asked for, unless an
    /// administrator asks.
    Extend {
        /// The cluster.
        cluster: RequestId,
        /// Until when. A time that it has already is no error.
        until: WallMillis,
    },
    /// Let a host take new members, or not.
    SetHost {
        /// The host.
        host: HostName,
        /// What it is to be.
        state: HostState,
    },
    /// A host is gone for good, and all that was on it: for administrators who know.
    ForgetHost {
        /// The host.
        host: HostName,
    },
}
