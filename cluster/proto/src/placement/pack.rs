//! Finding a host for every member's minimum.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{Accelerator, Host, Member, Policy, Rules};
use crate::amount::{Bytes, Kind, Resources};
use crate::limits::EXACT_MEMBERS;

/// What came of a search: the host of each member, by its index, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packed {
    Found(Vec<usize>),
    None { proved: bool },
}

/// Finds a host for every member. `steps` bounds the search of every way.
pub(super) fn pack(members: &[Member], hosts: &[&Host], rules: &Rules, steps: u32) -> Packed {
    let problem = Problem::new(members, hosts, rules);
    if problem.is_impossible() {
        return Packed::None { proved: true };
    }
    let whole = |fitting: Vec<Option<usize>>| fitting.into_iter().collect::<Option<Vec<_>>>();
    let found = whole(problem.fit(Choice::ByPolicy)).or_else(|| whole(problem.fit(Choice::Tightest)));
    match found {
        Some(assignment) => Packed::Found(assignment),
        None if members.len() <= EXACT_MEMBERS => problem.every_way(steps),
        None => Packed::None { proved: false },
    }
}

/// The host of each member that finds room, with as many of them as either heuristic places.
pub(super) fn fitting(members: &[Member], hosts: &[&Host], rules: &Rules) -> Vec<Option<usize>> {
    let problem = Problem::new(members, hosts, rules);
    let by_policy = problem.fit(Choice::ByPolicy);
    let tightest = problem.fit(Choice::Tightest);
    let placed = |fitting: &[Option<usize>]| fitting.iter().flatten().count();
    if placed(&tightest) > placed(&by_policy) {
        tightest
    } else {
        by_policy
    }
}

/// What is free of a host.
pub(super) fn free(host: &Host) -> Resources {
    Resources {
        cpus: host.free.cpus.min(host.total.cpus),
        memory: host.free.memory.min(host.total.memory),
        disk: host.free.disk.min(host.total.disk),
    }
}

/// The members in the order in which they are taken, as indices, the hardest first; and how many kinds they are of.
pub(super) fn hardest_first(members: &[Member], hosts: &[&Host], rules: &Rules) -> (Vec<usize>, usize) {
    let problem = Problem::new(members, hosts, rules);
    (problem.order(), problem.classes.len())
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    ByPolicy,
    Tightest,
}

/// Whether a host only emulates, whether it lacks the image, and how far it is from what the policy prefers.
type Rank = (bool, bool, u64);

/// Members that need the same, in the order of their names.
struct Class<'a> {
    minimum: Resources,
    member: &'a Member,
    indices: Vec<usize>,
    /// By host: whether it would take them if it had room.
    suits: Vec<bool>,
    /// The largest share that one takes of the largest host in any dimension, in millionths.
    share: u64,
}

struct Problem<'a> {
    hosts: &'a [&'a Host],
    rules: &'a Rules,
    members: usize,
    /// The hardest first.
    classes: Vec<Class<'a>>,
}

impl<'a> Problem<'a> {
    fn new(members: &'a [Member], hosts: &'a [&'a Host], rules: &'a Rules) -> Self {
        let mut by_name: Vec<usize> = (0..members.len()).collect();
        by_name.sort_by_key(|index| members.get(*index).map(Member::turn));
        let largest = largest(hosts);
        let mut classes: Vec<Class<'a>> = Vec::new();
        for index in by_name {
            let Some(member) = members.get(index) else {
                continue;
            };
            // Equal members are mostly neighbours, so that the last class is asked first.
            match classes
                .iter_mut()
                .rev()
                .find(|class| class.member.equals_in_need(member))
            {
                Some(class) => class.indices.push(index),
                None => classes.push(Class {
                    minimum: member.minimum(),
                    member,
                    indices: vec![index],
                    suits: hosts.iter().map(|host| host.suits(member, rules)).collect(),
                    share: share(&member.minimum(), &largest),
                }),
            }
        }
        classes.sort_by_key(|class| {
            let suitable = class.suits.iter().filter(|suits| **suits).count();
            (suitable, Reverse(class.share), class.member.turn())
        });
        Self {
            hosts,
            rules,
            members: members.len(),
            classes,
        }
    }

    fn order(&self) -> Vec<usize> {
        self.classes
            .iter()
            .flat_map(|class| class.indices.iter().copied())
            .collect()
    }

    fn all_free(&self) -> Vec<Resources> {
        self.hosts.iter().map(|host| free(host)).collect()
    }

    /// Whether counting alone shows that there is no way: a class for which the hosts that suit it have too few
    /// places even when nobody else is there, or more of something asked for than all hosts have.
    fn is_impossible(&self) -> bool {
        let free = self.all_free();
        let crowded = |class: &Class<'_>| self.places(class, &free, 0) < class.indices.len() as u64;
        let short = |kind: &Kind| {
            let asked: u128 = self
                .classes
                .iter()
                .map(|class| u128::from(class.minimum.of(*kind)) * class.indices.len() as u128)
                .sum();
            let useful = |index: &usize| {
                self.classes
                    .iter()
                    .any(|class| class.suits.get(*index) == Some(&true))
            };
            let there = free.iter().enumerate().filter(|(index, _)| useful(index));
            asked > there.map(|(_, free)| u128::from(free.of(*kind))).sum()
        };
        self.classes.iter().any(crowded) || Kind::ALL.iter().any(short)
    }

    /// How many members of a class alone have room in what is free, on the hosts from this one on.
    fn places(&self, class: &Class<'_>, free: &[Resources], from: usize) -> u64 {
        let hosts = free
            .iter()
            .zip(&class.suits)
            .skip(from)
            .filter(|(_, suits)| **suits);
        hosts.fold(0, |sum, (free, _)| {
            let in_kind = |kind: Kind| free.of(kind).checked_div(class.minimum.of(kind));
            // Who needs nothing has room everywhere; a request has fewer members than this.
            let places = Kind::ALL.into_iter().filter_map(in_kind).min();
            sum.saturating_add(places.unwrap_or(u64::from(u32::MAX)))
        })
    }

    /// The hardest first, each to the host that is best at its turn; who finds no room is left out.
    fn fit(&self, choice: Choice) -> Vec<Option<usize>> {
        let mut free = self.all_free();
        let mut fitting = vec![None; self.members];
        for class in &self.classes {
            // Of equal members one after the other, each changes the rank of its own host alone.
            let mut best: BTreeSet<_> = (0..free.len())
                .filter_map(|host| self.rank(class, host, &free, choice))
                .collect();
            for index in &class.indices {
                let Some((_, host)) = best.pop_first() else { break };
                if let Some(slot) = free.get_mut(host) {
                    // It has a rank, and therefore room.
                    *slot = slot.minus(&class.minimum).unwrap_or(*slot);
                }
                if let Some(member) = fitting.get_mut(*index) {
                    *member = Some(host);
                }
                best.extend(self.rank(class, host, &free, choice));
            }
        }
        fitting
    }

    /// Where a host with room stands among all for a member of a class: the lowest is the best.
    fn rank(
        &self,
        class: &Class<'_>,
        index: usize,
        free: &[Resources],
        choice: Choice,
    ) -> Option<(Rank, usize)> {
        let host = self
            .hosts
            .get(index)
            .filter(|_| class.suits.get(index) == Some(&true))?;
        let left = free.get(index)?.minus(&class.minimum)?;
        let load = load(&left, &host.total);
        let emulates = host.accelerator == Accelerator::Emulation;
        let lacks = !host.images.contains(&class.member.image);
        let rank = match (choice, self.rules.policy) {
            (Choice::Tightest, _) => (emulates, false, u64::MAX - load),
            (Choice::ByPolicy, Policy::Greedy) => (emulates, lacks, u64::MAX - load),
            (Choice::ByPolicy, Policy::Balanced) => (emulates, lacks, load),
        };
        Some((rank, index))
    }

    /// Tries every way that differs from those tried: equal members are not exchanged, nor hosts that are alike.
    fn every_way(&self, steps: u32) -> Packed {
        let mut search = Search {
            problem: self,
            alike: self.alike(),
            free: self.all_free(),
            chosen: vec![0; self.members],
            steps,
        };
        match search.go(0, 0, 0) {
            Outcome::Found => Packed::Found(search.chosen),
            Outcome::Nowhere => Packed::None { proved: true },
            Outcome::GaveUp => Packed::None { proved: false },
        }
    }

    /// For each host the first that suits the same classes.
    fn alike(&self) -> Vec<usize> {
        let suits = |host: usize| -> Vec<bool> {
            let of = |class: &Class<'_>| class.suits.get(host).copied().unwrap_or_default();
            self.classes.iter().map(of).collect()
        };
        let all: Vec<_> = (0..self.hosts.len()).map(suits).collect();
        all.iter()
            .map(|one| all.iter().position(|other| other == one).unwrap_or_default())
            .collect()
    }
}

enum Outcome {
    Found,
    Nowhere,
    GaveUp,
}

struct Search<'p> {
    problem: &'p Problem<'p>,
    alike: Vec<usize>,
    free: Vec<Resources>,
    chosen: Vec<usize>,
    steps: u32,
}

impl Search<'_> {
    /// Places the members of the classes from this one on, of which the first `placed` are; the next one goes to no
    /// host before `from`. The depth is the number of members, which is at most [`EXACT_MEMBERS`].
    fn go(&mut self, class_index: usize, placed: usize, from: usize) -> Outcome {
        let problem = self.problem;
        let Some(class) = problem.classes.get(class_index) else {
            return Outcome::Found;
        };
        let Some(member) = class.indices.get(placed) else {
            return self.go(class_index + 1, 0, 0);
        };
        let hosts = self.free.len() - from.min(self.free.len());
        let Some(steps) = self.steps.checked_sub(u32::try_from(hosts).unwrap_or(u32::MAX)) else {
            return Outcome::GaveUp;
        };
        self.steps = steps;
        if problem.places(class, &self.free, from) < (class.indices.len() - placed) as u64 {
            return Outcome::Nowhere;
        }
        let mut tried: Vec<(usize, Resources)> = Vec::new();
        for host in from..self.free.len() {
            if class.suits.get(host) != Some(&true) {
                continue;
            }
            let (Some(&free), Some(&alike)) = (self.free.get(host), self.alike.get(host)) else {
                continue;
            };
            let Some(left) = free.minus(&class.minimum) else {
                continue;
            };
            if tried.contains(&(alike, free)) {
                continue;
            }
            tried.push((alike, free));
            self.set(host, left);
            match self.go(class_index, placed + 1, host) {
                Outcome::Found => {
                    if let Some(chosen) = self.chosen.get_mut(*member) {
                        *chosen = host;
                    }
                    return Outcome::Found;
                }
                Outcome::GaveUp => return Outcome::GaveUp,
                Outcome::Nowhere => self.set(host, free),
            }
        }
        Outcome::Nowhere
    }

    fn set(&mut self, host: usize, free: Resources) {
        if let Some(slot) = self.free.get_mut(host) {
            *slot = free;
        }
    }
}

fn largest(hosts: &[&Host]) -> Resources {
    let most = |kind| {
        hosts
            .iter()
            .map(|host| host.total.of(kind))
            .max()
            .unwrap_or_default()
    };
    Resources {
        cpus: hosts.iter().map(|host| host.total.cpus).max().unwrap_or_default(),
        memory: Bytes(most(Kind::Memory)),
        disk: Bytes(most(Kind::Disk)),
    }
}

/// The largest part of a whole in any dimension, in millionths.
fn share(part: &Resources, whole: &Resources) -> u64 {
    let of = |kind: Kind| {
        let millionths = u128::from(part.of(kind)) * 1_000_000 / u128::from(whole.of(kind).max(1));
        u64::try_from(millionths).unwrap_or(u64::MAX)
    };
    Kind::ALL.into_iter().map(of).max().unwrap_or_default()
}

/// How full a host is of which this is left: the fullest of its dimensions counts, in millionths.
fn load(left: &Resources, total: &Resources) -> u64 {
    share(&total.minus(left).unwrap_or_default(), total)
}
