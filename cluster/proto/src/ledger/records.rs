//! What the ledger is told, what it writes down, and why it refuses.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aerie_context_proto::{HostName, MemberName};
use aerie_types::{GroupName, UserName, WallMillis};
use serde::{Deserialize, Serialize};

use super::quota::{Overdrawn, Quota, Subject};
use crate::amount::{Kind, Lifetime, Resources};
use crate::error::BadValue;
use crate::limits::MAX_REQUEST_ID;
use crate::placement::Plan;

/// What names a request, chosen by its asker: the same for each time that it is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(String);

impl RequestId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RequestId {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if text.is_empty() || text.len() > MAX_REQUEST_ID || !text.chars().all(good) {
            let rule = "up to 64 letters, digits, '-', '_' and '.' are allowed";
            return Err(BadValue::new(text, "the id of a request", rule));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for RequestId {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        text.parse()
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.0
    }
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The person.
    pub user: UserName,
    /// The group on whose account it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// A plan to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The request.
    pub id: RequestId,
    /// Who asks.
    pub owner: Owner,
    /// What is to be held.
    pub plan: Plan,
    /// How long the place is held before it has to be committed, up to [`MAX_LEASE`](crate::limits::MAX_LEASE).
    pub lease: Duration,
    /// How long the machines live from then on.
    pub lifetime: Lifetime,
    /// The quotas that it is held against, as they are now: those that apply to its owner are looked at. What is held
    /// already stays held when they become less.
    pub quotas: Vec<(Subject, Quota)>,
}

/// What the ledger is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A host has so much for members, which may be less than is held of it.
    SetHost {
        /// The host.
        host: HostName,
        /// What it has.
        capacity: Resources,
    },
    /// A host is no more.
    RemoveHost {
        /// The host.
        host: HostName,
    },
    /// Hold all of a plan or nothing. Where the answer is [`Decision::Already`], the plan that is held is the one of
    /// [`Ledger::hold`](super::Ledger::hold), and not necessarily this one.
    Reserve(Reservation),
    /// Machines are there: the life-time begins.
    Commit {
        /// The request.
        id: RequestId,
    },
    /// Machines that are there live longer: until this time, in place of the one that was promised. The quotas are
    /// those of now, against which the whole life-time is held.
    Extend {
        /// The request.
        id: RequestId,
        /// Until when.
        until: WallMillis,
        /// See [`Reservation::quotas`].
        quotas: Vec<(Subject, Quota)>,
    },
    /// Give back the places of some members. The last one is given back by [`Command::Release`].
    GiveBack {
        /// The request.
        id: RequestId,
        /// Whose places; those that are not held are passed over.
        members: BTreeSet<MemberName>,
    },
    /// Give back all of it.
    Release {
        /// The request.
        id: RequestId,
    },
    /// Take back all of it, once it is due.
    Expire {
        /// The request.
        id: RequestId,
    },
    /// Time used is counted from now.
    BeginPeriod,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// To be made durable and applied.
    Record(Record),
    /// It is so already.
    Already,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Record {
    /// A host and what it has.
    HostSet {
        /// The host.
        host: HostName,
        /// What it has.
        capacity: Resources,
    },
    /// A host that is no more.
    HostRemoved {
        /// The host.
        host: HostName,
    },
    /// A plan is held.
    Reserved {
        /// The request.
        id: RequestId,
        /// Who asked.
        owner: Owner,
        /// What is held.
        plan: Plan,
        /// How long it lives once it is committed, in seconds.
        lifetime_secs: u64,
        /// Until when it is held.
        until: WallMillis,
    },
    /// Machines are there.
    Committed {
        /// The request.
        id: RequestId,
        /// Since when.
        at: WallMillis,
        /// Until when they live.
        until: WallMillis,
    },
    /// Machines live longer.
    Extended {
        /// The request.
        id: RequestId,
        /// Until when.
        until: WallMillis,
    },
    /// Some members' places are not held any more.
    GaveBack {
        /// The request.
        id: RequestId,
        /// Whose.
        members: BTreeSet<MemberName>,
        /// When.
        at: WallMillis,
    },
    /// Nothing is held any more.
    Ended {
        /// The request.
        id: RequestId,
        /// When.
        at: WallMillis,
        /// By what.
        why: End,
    },
    /// Time used is counted from here.
    PeriodBegun {
        /// When.
        at: WallMillis,
    },
}

/// How a reservation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It was given back.
    Released,
    /// Its lease or life-time was over.
    Expired,
}

/// Why the ledger does not do what it was told. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A host has too little left.
    #[error(
        "'{host}' has {} left, and {} are asked; place the request anew", kind.quantity(*free),
        kind.amount(*asked)
    )]
    NoRoom {
        /// The host.
        host: HostName,
        /// Of what.
        kind: Kind,
        /// How much is asked, in the smallest unit.
        asked: u64,
        /// How much is left.
        free: u64,
    },
    /// The owner would have more than quotas allow.
    #[error(transparent)]
    Overdrawn(#[from] Overdrawn),
    /// The ledger has no such host.
    #[error("there is no host '{0}' (any more); place the request anew")]
    UnknownHost(HostName),
    /// Something is held of the host.
    #[error("{} are held of '{host}'; drain it and wait until its members have ended", kind.quantity(*held))]
    InUse {
        /// The host.
        host: HostName,
        /// Of what.
        kind: Kind,
        /// How much.
        held: u64,
    },
    /// The id is of a request with another owner, life-time or members.
    #[error("the request '{0}' was another one before; choose a new id for a new request")]
    Differs(RequestId),
    /// The request is over.
    #[error("the request '{0}' has ended; choose a new id to ask again")]
    Ended(RequestId),
    /// There is no such request.
    #[error("there is no request '{0}'; reserve it first")]
    Unknown(RequestId),
    /// The lease ran out before the commit.
    #[error("the lease of the request '{0}' ran out before it was committed; release it and place it anew")]
    Lapsed(RequestId),
    /// There are no machines yet.
    #[error("the request '{0}' is not committed, and its life-time begins when it is; extend it then")]
    NotCommitted(RequestId),
    /// It has time left.
    #[error("the request '{id}' has {} left; release it to end it before that", humantime::format_duration(*left))]
    NotDue {
        /// The request.
        id: RequestId,
        /// How long.
        left: Duration,
    },
    /// A plan of nobody.
    #[error("the request '{0}' has no members; there is nothing to hold")]
    Empty(RequestId),
    /// A lease out of bounds.
    #[error(
        "the request '{id}' asks to hold its place for {} before it is committed; from one second to {} are allowed",
        humantime::format_duration(*given), Lifetime::secs(crate::limits::MAX_LEASE.as_secs())
    )]
    Lease {
        /// The request.
        id: RequestId,
        /// How long.
        given: Duration,
    },
    /// A life-time out of bounds.
    #[error(
        "the request '{id}' is for {}; from one second to {} are allowed", humantime::format_duration(*given),
        Lifetime::secs(crate::limits::MAX_LIFETIME.as_secs())
    )]
    Time {
        /// The request.
        id: RequestId,
        /// How long.
        given: Duration,
    },
    /// A limit of the ledger.
    #[error("the ledger would have more {what} than {limit}; wait until some have ended")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}
