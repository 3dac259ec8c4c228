//! The nearest to a refused request that does fit, found by asking.

use std::fmt;

use aerie_context_proto::MemberName;

use super::pack::{Packed, pack};
use super::{Host, Member, Rules, grow};
use crate::amount::{Bytes, Kind};
use crate::limits::NEAREST_STEPS;

/// Something close to the request that fits as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nearest {
    /// All members, some with a smaller minimum.
    Lower {
        /// Whose minimum is lowered.
        members: Vec<MemberName>,
        /// Of what.
        kind: Kind,
        /// To how much, in its smallest unit: CPUs or bytes.
        to: u64,
    },
    /// The request without these members.
    Fewer {
        /// Who is left out.
        without: Vec<MemberName>,
        /// How many are left.
        members: usize,
    },
}

impl Nearest {
    /// The request changed so that it fits.
    #[must_use]
    pub fn apply(&self, members: &[Member]) -> Vec<Member> {
        match self {
            Self::Lower {
                members: who,
                kind,
                to,
            } => {
                let lower = |member: &Member| {
                    let mut member = member.clone();
                    if who.contains(&member.name) {
                        lower(&mut member, *kind, *to);
                    }
                    member
                };
                members.iter().map(lower).collect()
            }
            Self::Fewer { without, .. } => {
                let stays = |member: &&Member| !without.contains(&member.name);
                members.iter().filter(stays).cloned().collect()
            }
        }
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lower { members, kind, to } => {
                let amount = kind.quantity(*to);
                write!(f, "with {amount} for {} all would fit", several(members))
            }
            Self::Fewer { without, members } => {
                write!(f, "without {} the other {members} would fit", several(without))
            }
        }
    }
}

/// Names for people: a few, or the first and how many more.
fn several(names: &[MemberName]) -> String {
    match names {
        [] => "nobody".to_owned(),
        [one] => format!("'{one}'"),
        [one, other] => format!("'{one}' and '{other}'"),
        [one, rest @ ..] => format!("'{one}' and {} others", rest.len()),
    }
}

fn lower(member: &mut Member, kind: Kind, to: u64) {
    match kind {
        Kind::Cpus => member.cpus.min = member.cpus.min.min(u32::try_from(to).unwrap_or(u32::MAX)),
        Kind::Memory => member.memory.min = member.memory.min.min(Bytes(to)),
        Kind::Disk => member.disk.min = member.disk.min.min(Bytes(to)),
    }
}

/// The largest amount with which all members fit, if those that need as much as this one and have more are given no
/// more than it; or, where that does not help, if nobody is.
pub(super) fn lowered(
    members: &[Member],
    hosts: &[&Host],
    rules: &Rules,
    short: &Member,
    kind: Kind,
) -> Option<Nearest> {
    let equals = |member: &Member| member.equals_in_need(short);
    largest_that_fits(members, hosts, rules, short, kind, &equals)
        .or_else(|| largest_that_fits(members, hosts, rules, short, kind, &|_| true))
}

fn largest_that_fits(
    members: &[Member],
    hosts: &[&Host],
    rules: &Rules,
    short: &Member,
    kind: Kind,
    who: &dyn Fn(&Member) -> bool,
) -> Option<Nearest> {
    let (step, min) = (grow::step(kind), short.minimum().of(kind));
    let at = |to: u64| Nearest::Lower {
        members: members
            .iter()
            .filter(|member| who(member) && member.minimum().of(kind) > to)
            .map(|member| member.name.clone())
            .collect(),
        kind,
        to,
    };
    let fits = |steps: u64| {
        let lowered: Vec<_> = members
            .iter()
            .map(|member| {
                let mut member = member.clone();
                if who(&member) {
                    lower(&mut member, kind, steps * step);
                }
                member
            })
            .collect();
        matches!(pack(&lowered, hosts, rules, NEAREST_STEPS), Packed::Found(_))
    };
    // Invariant: what `low` steps give fits, and what `high` give does not or is no less than the request.
    let (mut low, mut high) = (1, min.div_ceil(step));
    if low >= high || !fits(low) {
        return None;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Some(at(low * step))
}

/// The request without those for whom a heuristic finds no room.
pub(super) fn fewer(
    members: &[Member],
    hosts: &[&Host],
    rules: &Rules,
    fitting: &[Option<usize>],
) -> Option<Nearest> {
    let left = members.iter().zip(fitting).filter(|(_, host)| host.is_none());
    let without: Vec<_> = left.map(|(member, _)| member.name.clone()).collect();
    let kept: Vec<_> = members
        .iter()
        .zip(fitting)
        .filter(|(_, host)| host.is_some())
        .map(|(member, _)| member.clone())
        .collect();
    let fits = !kept.is_empty() && matches!(pack(&kept, hosts, rules, NEAREST_STEPS), Packed::Found(_));
    fits.then_some(Nearest::Fewer {
        without,
        members: kept.len(),
    })
}
