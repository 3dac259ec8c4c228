//! Why the manager does not do what it is told, and a journal that does not replay.

use aerie_cluster_proto::amount::Lifetime;
use aerie_cluster_proto::{Faults, ledger, placement};
use aerie_context_proto::{HostName, MemberName, SetName};
use aerie_types::{GroupName, WallMillis};

use crate::request::Operation;
use crate::view::MemberState;
use ledger::RequestId;

/// Why the manager does not do what it is told. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such cluster.
    #[error("there is no cluster '{0}' (any more); list the clusters to see which there are")]
    UnknownCluster(RequestId),
    /// It has no such member.
    #[error("the cluster '{cluster}' has no member '{member}'; ask for its status to see which it has")]
    UnknownMember {
        /// The cluster.
        cluster: RequestId,
        /// The member.
        member: MemberName,
    },
    /// It has no such set.
    #[error(
        "the cluster '{cluster}' has no set '{set}' with members; ask for its status to see which it has"
    )]
    UnknownSet {
        /// The cluster.
        cluster: RequestId,
        /// The set.
        set: SetName,
    },
    /// There is no such host.
    #[error("there is no host '{0}'; list the hosts to see which there are")]
    UnknownHost(HostName),
    /// It is somebody else's.
    #[error("the cluster '{0}' is not yours nor your group's; ask its owner or an administrator")]
    NotYours(RequestId),
    /// It is for administrators.
    #[error("hosts are changed by administrators alone; ask one")]
    NotAdmin,
    /// The caller is not in the group on whose account it is.
    #[error("you are not in the group '{0}'; name one of yours, or none")]
    NotInGroup(GroupName),
    /// The id is of another request.
    #[error("'{0}' is a cluster with another description or owner; choose a new id for a new request")]
    Differs(RequestId),
    /// The id is of a request that has ended.
    #[error("'{0}' was a cluster that has ended; choose a new id to ask again")]
    Ended(RequestId),
    /// The cluster ends.
    #[error("the cluster '{0}' is ending and cannot be changed any more; ask for a new one")]
    Ending(RequestId),
    /// The description is not usable.
    #[error(transparent)]
    Description(#[from] Faults),
    /// The description could not be read back from the journal.
    #[error(
        "the description cannot be kept: {0}; write it as a document, and ask for what is read from that"
    )]
    Unkept(String),
    /// There is no place.
    #[error("the cluster '{cluster}' finds no place: {source}")]
    Placement {
        /// The cluster.
        cluster: RequestId,
        /// Why.
        #[source]
        source: placement::Refusal,
    },
    /// The ledger refuses.
    #[error(transparent)]
    Ledger(#[from] ledger::Refusal),
    /// A member's state does not allow it.
    #[error(
        "cannot {operation} '{member}', which is {state}: {advice}; nothing was done to the others either"
    )]
    State {
        /// What was asked.
        operation: Operation,
        /// The member that cannot.
        member: MemberName,
        /// How it is.
        state: MemberState,
        /// What would be right.
        advice: &'static str,
    },
    /// An image's name that is none.
    #[error(
        "'{0}' cannot be the name of a new image; write a name such as \"ada/result\", without a version"
    )]
    SaveName(String),
    /// An image's name that is of another account.
    #[error(
        "a disk of this cluster cannot be kept as '{name}'; begin the name with \"{account}/\", or ask an administrator"
    )]
    SaveAccount {
        /// The name.
        name: String,
        /// The first part that it may have.
        account: String,
    },
    /// It would live longer than any cluster may.
    #[error(
        "the cluster '{cluster}' may live for {most} altogether, until {latest}; ask an administrator for more"
    )]
    TooLong {
        /// The cluster.
        cluster: RequestId,
        /// Until when it may live.
        latest: WallMillis,
        /// How long a cluster may live.
        most: Lifetime,
    },
    /// The host is not known to be gone.
    #[error(
        "the host '{0}' is heard of, so that what is on it runs; let it drain, or end its members, before you forget it"
    )]
    HostAlive(HostName),
    /// A limit of the manager.
    #[error("the manager would have more {what} than {limit}; wait until some have ended")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

/// A journal that does not replay: it was damaged, or is of a later release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Corrupt {
    /// Why.
    pub why: String,
}

impl Corrupt {
    pub(crate) fn new(why: impl ToString) -> Self {
        Self { why: why.to_string() }
    }
}
