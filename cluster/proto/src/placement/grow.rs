//! From minima to amounts.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::pack::free;
use super::{Host, Member, Placed, Plan, Rules};
use crate::amount::{Bytes, Kind, Resources};

/// In what steps an amount grows, in its smallest unit.
pub(super) fn step(kind: Kind) -> u64 {
    match kind {
        Kind::Cpus => 1,
        Kind::Memory | Kind::Disk => Bytes::mib(1).0,
    }
}

/// The plan of members that have their hosts, by index.
pub(super) fn plan(members: &[Member], hosts: &[&Host], assignment: &[usize], rules: &Rules) -> Plan {
    let mut on: BTreeMap<usize, Vec<&Member>> = BTreeMap::new();
    for (member, host) in members.iter().zip(assignment) {
        on.entry(*host).or_default().push(member);
    }
    let mut plan = Plan::default();
    for (index, mut members) in on {
        let Some(host) = hosts.get(index) else { continue };
        members.sort_by_key(|member| member.turn());
        let amounts = if rules.grow {
            grown(&members, &free(host))
        } else {
            members.iter().map(|member| member.minimum()).collect()
        };
        for (member, amounts) in members.into_iter().zip(amounts) {
            let host = host.name.clone();
            plan.members.insert(member.name.clone(), Placed { host, amounts });
        }
    }
    plan
}

/// What each has when all of them share a host.
fn grown(members: &[&Member], free: &Resources) -> Vec<Resources> {
    let in_kind = |kind: Kind| {
        let ranges: Vec<_> = members
            .iter()
            .map(|member| (member.minimum().of(kind), member.maximum().of(kind)))
            .collect();
        shared(&ranges, free.of(kind), step(kind))
    };
    let (cpus, memory, disk) = (in_kind(Kind::Cpus), in_kind(Kind::Memory), in_kind(Kind::Disk));
    let amounts = cpus.into_iter().zip(memory).zip(disk);
    amounts
        .map(|((cpus, memory), disk)| Resources {
            // No more than the maximum, which is a number of 32 bits.
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory: Bytes(memory),
            disk: Bytes(disk),
        })
        .collect()
}

/// Shares what is there among ranges: each has its minimum, and what is left goes out in equal parts of whole steps,
/// of which nobody takes more than it has use for. A step that cannot be divided goes to the first.
fn shared(ranges: &[(u64, u64)], there: u64, step: u64) -> Vec<u64> {
    let needed = ranges
        .iter()
        .fold(0_u64, |sum, (min, _)| sum.saturating_add(*min));
    let mut left = there.saturating_sub(needed);
    let mut amounts: Vec<u64> = ranges.iter().map(|(min, _)| *min).collect();
    let gap = |index: usize| ranges.get(index).map_or(0, |(min, max)| max.saturating_sub(*min));
    // Who has use for the least first: what it does not take is for those behind it.
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|index| (gap(*index) / step, Reverse(*index)));
    let mut steps = left / step;
    for (turn, index) in order.iter().enumerate() {
        let part = (steps / (order.len() - turn) as u64).min(gap(*index) / step);
        steps -= part;
        left -= part * step;
        if let Some(amount) = amounts.get_mut(*index) {
            *amount += part * step;
        }
    }
    // Maxima that are no whole number of steps away.
    for (index, amount) in amounts.iter_mut().enumerate() {
        let max = ranges.get(index).map_or(0, |(_, max)| *max);
        let rest = max.saturating_sub(*amount);
        if rest < step && rest <= left {
            *amount += rest;
            left -= rest;
        }
    }
    amounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_out_in_equal_parts_and_nobody_takes_more_than_is_of_use() {
        assert_eq!(shared(&[(1, 4), (1, 4)], 6, 1), [3, 3]);
        assert_eq!(shared(&[(1, 2), (1, 9), (2, 9)], 12, 1), [2, 5, 5]);
        assert_eq!(
            shared(&[(1, 9), (1, 9)], 5, 1),
            [3, 2],
            "the odd one is the first's"
        );
        assert_eq!(shared(&[(1, 3), (1, 3)], 100, 1), [3, 3]);
        assert_eq!(shared(&[(10, 25), (10, 10)], 100, 10), [25, 10]);
        assert_eq!(
            shared(&[(10, 25), (10, 30)], 44, 10),
            [20, 20],
            "no part of a step is given early"
        );
    }
}
