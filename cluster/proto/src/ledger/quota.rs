//! What people and groups may have, and what they have.
//!
//! A request is held against the quotas of its owner's user and group when it is reserved, by its plan ([`Ask::of`]):
//! the ledger that judges is the one that the record is applied to, so that no two requests are let through by the
//! same room. [`Ledger::admit`](super::Ledger::admit) before that, by the minima that are asked for
//! ([`Ask::minimum`]), spares the placing of what is refused in any case, and decides nothing. Members grow: where only
//! the growth goes too far, the request is placed anew without it.
//!
//! Time is booked whole when a plan is reserved, and what is not used is given back at the end: what is reserved stays
//! within a quota of hours as long as each reservation is ended when it is due. What runs on after that is counted.

use std::fmt;
use std::time::Duration;

use aerie_types::{GroupName, UserName};
use serde::{Deserialize, Serialize};

use super::{Owner, Spent};
use crate::amount::{Bytes, Kind, Lifetime};
use crate::placement::{Member, Plan};

/// Whose quota it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A person's.
    User(UserName),
    /// That of all of a group together.
    Group(GroupName),
}

impl Subject {
    /// Whether what this owner has counts here.
    #[must_use]
    pub fn has(&self, owner: &Owner) -> bool {
        match self {
            Self::User(user) => owner.user == *user,
            Self::Group(group) => owner.group.as_ref() == Some(group),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "the user '{user}'"),
            Self::Group(group) => write!(f, "the group '{group}'"),
        }
    }
}

/// What a subject may have. What is absent is not bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Members at one time, reserved or running.
    pub members: Option<u32>,
    /// Virtual CPUs at one time.
    pub cpus: Option<u32>,
    /// Memory at one time.
    pub memory: Option<Bytes>,
    /// Disk at one time.
    pub disk: Option<Bytes>,
    /// Hours of virtual CPUs in the period.
    pub cpu_hours: Option<u64>,
    /// Hours of members in the period.
    pub wall_hours: Option<u64>,
    /// What one request may be.
    pub per_request: PerRequest,
}

/// What one request may be. What is absent is not bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerRequest {
    /// Members.
    pub members: Option<u32>,
    /// Virtual CPUs of all members.
    pub cpus: Option<u32>,
    /// Memory of all members.
    pub memory: Option<Bytes>,
    /// Disk of all members.
    pub disk: Option<Bytes>,
    /// Life-time.
    pub lifetime: Option<Lifetime>,
}

/// What a request asks for, in the smallest units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Members.
    pub members: u64,
    /// CPUs, bytes of memory and bytes of disk of all members.
    pub amounts: [u64; 3],
    /// How long it lives.
    pub lifetime: Duration,
}

impl Ask {
    /// The least that a request comes to.
    #[must_use]
    pub fn minimum(members: &[Member], lifetime: Duration) -> Self {
        Self {
            members: members.len() as u64,
            amounts: Kind::ALL.map(|kind| {
                let each = members.iter().map(|member| member.minimum().of(kind));
                each.fold(0, u64::saturating_add)
            }),
            lifetime,
        }
    }

    /// What a plan comes to.
    #[must_use]
    pub fn of(plan: &Plan, lifetime: Duration) -> Self {
        Self {
            members: plan.members.len() as u64,
            amounts: plan.total().map(|total| u64::try_from(total).unwrap_or(u64::MAX)),
            lifetime,
        }
    }
}

/// What a subject has and has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Members, reserved or running.
    pub members: u64,
    /// CPUs, bytes of memory and bytes of disk.
    pub amounts: [u64; 3],
    /// CPU seconds that went by in this period.
    pub cpu_secs: u64,
    /// CPU seconds that what there is will take yet, if it lives to its end.
    pub cpu_secs_booked: u64,
    /// Seconds of members that went by in this period.
    pub wall_secs: u64,
    /// Seconds of members that what there is will take yet.
    pub wall_secs_booked: u64,
}

impl Usage {
    pub(super) fn add_time(&mut self, elapsed: Spent, booked: Spent) {
        for (sum, more) in [
            (&mut self.cpu_secs, elapsed.cpu_secs),
            (&mut self.cpu_secs_booked, booked.cpu_secs),
            (&mut self.wall_secs, elapsed.wall_secs),
            (&mut self.wall_secs_booked, booked.wall_secs),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    pub(super) fn add_plan(&mut self, plan: &Plan) {
        let ask = Ask::of(plan, Duration::ZERO);
        self.members = self.members.saturating_add(ask.members);
        for (sum, more) in self.amounts.iter_mut().zip(ask.amounts) {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Which limit of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// Members at one time.
    Members,
    /// An amount at one time.
    Amount(Kind),
    /// CPU time in the period.
    CpuTime,
    /// Time of members in the period.
    WallTime,
    /// Members of one request.
    RequestMembers,
    /// An amount of one request.
    RequestAmount(Kind),
    /// The life-time of one request.
    RequestLifetime,
}

/// A limit that a request would exceed. Numbers are in the smallest units: members, CPUs, bytes or seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeded {
    /// Whose quota.
    pub subject: Subject,
    /// Which limit of it.
    pub limit: Limit,
    /// How much is allowed.
    pub allowed: u64,
    /// How much of it is used; nothing of what counts for each request by itself.
    pub used: u64,
    /// How much is asked.
    pub asked: u64,
}

/// A request that exceeds quotas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overdrawn(pub Vec<Exceeded>);

impl std::error::Error for Overdrawn {}

impl fmt::Display for Overdrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request exceeds ")?;
        for (index, exceeded) in self.0.iter().enumerate() {
            let between = if index == 0 { "" } else { "; and " };
            write!(f, "{between}{exceeded}")?;
        }
        f.write_str("; ask for less, or end what is not needed")
    }
}

impl Quota {
    /// Every limit that a request would exceed.
    #[must_use]
    pub fn check(&self, subject: &Subject, usage: &Usage, ask: &Ask) -> Vec<Exceeded> {
        let [cpus, memory, disk] = ask.amounts;
        let [cpus_used, memory_used, disk_used] = usage.amounts;
        let secs = ask.lifetime.as_secs();
        let hours = |hours: u64| hours.saturating_mul(3600);
        let each = &self.per_request;
        let bytes = |bytes: Bytes| bytes.0;
        let cpu_used = usage.cpu_secs.saturating_add(usage.cpu_secs_booked);
        let wall_used = usage.wall_secs.saturating_add(usage.wall_secs_booked);
        let rows = [
            (Limit::RequestMembers, each.members.map(u64::from), 0, ask.members),
            (
                Limit::RequestAmount(Kind::Cpus),
                each.cpus.map(u64::from),
                0,
                cpus,
            ),
            (
                Limit::RequestAmount(Kind::Memory),
                each.memory.map(bytes),
                0,
                memory,
            ),
            (Limit::RequestAmount(Kind::Disk), each.disk.map(bytes), 0, disk),
            (
                Limit::RequestLifetime,
                each.lifetime.map(|most| most.duration().as_secs()),
                0,
                secs,
            ),
            (
                Limit::Members,
                self.members.map(u64::from),
                usage.members,
                ask.members,
            ),
            (
                Limit::Amount(Kind::Cpus),
                self.cpus.map(u64::from),
                cpus_used,
                cpus,
            ),
            (
                Limit::Amount(Kind::Memory),
                self.memory.map(bytes),
                memory_used,
                memory,
            ),
            (Limit::Amount(Kind::Disk), self.disk.map(bytes), disk_used, disk),
            (
                Limit::CpuTime,
                self.cpu_hours.map(hours),
                cpu_used,
                cpus.saturating_mul(secs),
            ),
            (
                Limit::WallTime,
                self.wall_hours.map(hours),
                wall_used,
                ask.members.saturating_mul(secs),
            ),
        ];
        let exceeded = rows.into_iter().filter_map(|(limit, allowed, used, asked)| {
            let allowed = allowed.filter(|allowed| used.saturating_add(asked) > *allowed)?;
            Some(Exceeded {
                subject: subject.clone(),
                limit,
                allowed,
                used,
                asked,
            })
        });
        exceeded.collect()
    }
}

impl Limit {
    fn amount(self, number: u64) -> String {
        match self {
            Self::Members | Self::RequestMembers if number == 1 => "1 member".to_owned(),
            Self::Members | Self::RequestMembers => format!("{number} members"),
            Self::Amount(kind) | Self::RequestAmount(kind) => kind.amount(number),
            Self::CpuTime => format!("{} CPU hours", tenths(number)),
            Self::WallTime => format!("{} hours of members", tenths(number)),
            Self::RequestLifetime => Lifetime::secs(number).to_string(),
        }
    }
}

/// Seconds in hours, with a tenth, upward: what is over a limit is never shown as the limit.
fn tenths(secs: u64) -> String {
    let tenths = secs.div_ceil(360);
    match tenths % 10 {
        0 => (tenths / 10).to_string(),
        rest => format!("{}.{rest}", tenths / 10),
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Members => f.write_str("members"),
            Self::Amount(kind) => kind.fmt(f),
            Self::CpuTime => f.write_str("CPU time"),
            Self::WallTime => f.write_str("time of members"),
            Self::RequestMembers => f.write_str("members of one request"),
            Self::RequestAmount(kind) => write!(f, "{kind} of one request"),
            Self::RequestLifetime => f.write_str("the life-time of one request"),
        }
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            subject,
            limit,
            allowed,
            used,
            asked,
        } = self;
        let amount = |number| limit.amount(number);
        write!(
            f,
            "the quota of {subject} for {limit}: {} are allowed",
            amount(*allowed)
        )?;
        if !matches!(
            limit,
            Limit::RequestMembers | Limit::RequestAmount(_) | Limit::RequestLifetime
        ) {
            write!(f, ", {} are used or booked", amount(*used))?;
        }
        write!(f, ", {} are asked", amount(*asked))
    }
}
