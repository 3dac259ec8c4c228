//! What happened, in an order that a late listener can take up again.

use std::fmt;

use aerie_cluster_proto::ledger::{Owner, RequestId};
use aerie_cluster_proto::placement::HostState;
use aerie_context_proto::{HostName, MemberName};
use aerie_types::WallMillis;
use serde::{Deserialize, Serialize};

use crate::ids::GuestId;
use crate::state::{ContextReport, Why};
use crate::view::MemberState;

/// Something that happened. It has happened for good: it is in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Its number; the next event has the next one, whoever may see it.
    pub number: u64,
    /// When.
    pub at: WallMillis,
    /// To which cluster, and whose that is. What has none is for administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<(RequestId, Owner)>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A cluster has its place.
    Requested {
        /// How many members have one.
        members: usize,
        /// Those that have none.
        left_out: usize,
    },
    /// A cluster is deployed.
    Deployed {
        /// When its life-time ends.
        until: WallMillis,
    },
    /// A member is in another state.
    Member {
        /// Which.
        member: MemberName,
        /// In which.
        state: MemberState,
        /// Why, where something is wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Something did not go as it should, and changed nothing.
    Problem {
        /// With whom.
        member: MemberName,
        /// What.
        why: String,
    },
    /// The context broker says something of a member.
    Context {
        /// Which.
        member: MemberName,
        /// What.
        report: ContextReport,
    },
    /// A cluster's life-time ends soon.
    Warned {
        /// When.
        until: WallMillis,
    },
    /// A cluster lives longer.
    Extended {
        /// Until when.
        until: WallMillis,
    },
    /// A cluster ends.
    Ending(Why),
    /// Nothing is left of it.
    Ended(Why),
    /// A host was heard of for the first time, or has changed.
    HostChanged {
        /// Which.
        host: HostName,
    },
    /// A host is to take members or not.
    HostSet {
        /// Which.
        host: HostName,
        /// Whether.
        state: HostState,
    },
    /// A host was silent for some time.
    HostSuspected {
        /// Which.
        host: HostName,
    },
    /// A host was silent for too long; nothing is known of what is on it.
    HostLost {
        /// Which.
        host: HostName,
    },
    /// A host is heard of again.
    HostBack {
        /// Which.
        host: HostName,
    },
    /// A host is no more.
    HostForgotten {
        /// Which.
        host: HostName,
    },
    /// A guest of this manager of which its journal knows nothing, as one that was put back from a copy does not. It is
    /// left alone.
    GuestAhead {
        /// Where.
        host: HostName,
        /// Which.
        guest: GuestId,
    },
    /// A guest of this manager that belongs to nobody was removed.
    OrphanRemoved {
        /// Where.
        host: HostName,
        /// Which.
        guest: GuestId,
    },
}

/// Some events, and where to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsPage {
    /// In their order; those alone that the listener may see.
    pub events: Vec<Event>,
    /// The number to ask from the next time.
    pub next: u64,
    /// Whether events in between are not kept any more: ask for the states.
    pub missed: bool,
    /// Whether there are more already.
    pub more: bool,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested { members, left_out: 0 } => write!(f, "{members} members have their places"),
            Self::Requested { members, left_out } => {
                write!(f, "{members} members have their places, {left_out} found none")
            }
            Self::Deployed { until } => write!(f, "deployed; its life-time ends at {until}"),
            Self::Member { member, state, why } => {
                write!(f, "{member} is {state}")?;
                why.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
            }
            Self::Problem { member, why } => write!(f, "{member}: {why}"),
            Self::Context { member, report } => match report {
                ContextReport::Reported => write!(f, "{member} has reported to its context"),
                ContextReport::Configured => write!(f, "{member} is configured"),
                ContextReport::Failed(why) => write!(f, "{member} in its context: {why}"),
            },
            Self::Warned { until } => write!(
                f,
                "its life-time ends soon, at {until}; extend it, or save its work"
            ),
            Self::Extended { until } => write!(f, "it lives until {until}"),
            Self::Ending(why) => write!(f, "it ends: {why}"),
            Self::Ended(why) => write!(f, "it has ended: {why}"),
            Self::HostChanged { host } => write!(f, "host {host} has told what it has"),
            Self::HostSet { host, state } => match state {
                HostState::Up => write!(f, "host {host} takes members"),
                HostState::Draining => write!(f, "host {host} takes no more members"),
            },
            Self::HostSuspected { host } => write!(f, "host {host} is silent"),
            Self::HostLost { host } => write!(f, "host {host} is lost"),
            Self::HostBack { host } => write!(f, "host {host} is back"),
            Self::HostForgotten { host } => write!(f, "host {host} is no more"),
            Self::GuestAhead { host, guest } => write!(
                f,
                "guest {guest} on host {host} was made after the copy from which this manager's folder was restored; \
                 it is left alone: save what it has, and remove it on its host"
            ),
            Self::OrphanRemoved { host, guest } => {
                write!(
                    f,
                    "guest {guest} on host {host} belonged to nobody and was removed"
                )
            }
        }
    }
}
