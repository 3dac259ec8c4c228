//! Which member runs on which host, and with how much of it.
//!
//! A pure function of the members, the hosts and the rules: the same question has the same answer, in whatever order
//! the hosts are named. A placement is a whole or a refusal; there is no half of one unless [`place_some`] is asked.
//!
//! ```text
//!  members, hosts ──► by policy ──found──────────────────────────► grow ──► Plan
//!                        │ not                                      ▲
//!                        ├──► tightest first, images aside ──found──┤
//!                        │ not                                      │
//!                        ├──► every way, if members are few ──found─┘
//!                        │ none, or given up
//!                        └──► Refusal: what was short, and the nearest that fits
//! ```
//!
//! **Finding.** Members are taken with the hardest first: the fewest hosts that could ever take them, then the largest
//! share of the largest host. Each goes to the host that the [`Policy`] prefers among those with room for its
//! minimum; a host that has the image already comes before any that has not, for copying images is what deployments
//! spend their time on (seed 003, section V). Where that fails, images no longer count and each member goes where it
//! leaves the least; where that fails too, and there are at most [`EXACT_MEMBERS`](crate::limits::EXACT_MEMBERS)
//! members, every way is tried within a bounded number of steps. To pack several dimensions is NP-hard: a refusal
//! says by [`Refusal::proved`] whether there is no way, or none was found.
//!
//! **Growing.** First everybody has the minimum. What is left of a host is then shared among its members of this
//! request alone, each dimension by itself and in equal steps above their minima, until each has its maximum or there
//! is no more. Nobody's growth takes from anybody's minimum.

mod grow;
mod nearest;
mod pack;
mod refusal;

use std::collections::{BTreeMap, BTreeSet};

use aerie_context_proto::{HostName, Interface, MemberName};
use serde::{Deserialize, Serialize};

pub use nearest::Nearest;
pub use refusal::{Refusal, Shortage};

use crate::amount::{Bytes, Kind, Range, Resources};
use crate::description::Image;
use crate::limits::{EXACT_STEPS, MAX_HOSTS, MAX_MEMBERS};

/// A machine that carries others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name, by which it is told from the others.
    pub name: HostName,
    /// What it has for members altogether.
    pub total: Resources,
    /// What of that is free.
    pub free: Resources,
    /// Images that are on it already.
    pub images: BTreeSet<Image>,
    /// What a member's interfaces can be connected to.
    pub connections: Connections,
    /// Whether it takes new members.
    pub state: HostState,
    /// How fast its guests run.
    pub accelerator: Accelerator,
}

/// Whether a host takes new members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// It does.
    Up,
    /// It keeps those that it has until they end.
    Draining,
}

/// What runs a host's guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// KVM.
    Kvm,
    /// Xen.
    Xen,
    /// Emulation alone: some twenty times slower.
    Emulation,
}

/// What interfaces are connected to: what a host has, or a member needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connections {
    /// Addresses of the grid's virtual network, of a prefix that the host leases.
    pub overlay: bool,
    /// Networks of one cluster across hosts.
    pub private: bool,
    /// Bridges, by their names on the host.
    pub bridges: BTreeSet<Interface>,
}

/// A workspace that needs a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: MemberName,
    /// What it starts from.
    pub image: Image,
    /// Virtual CPUs.
    pub cpus: Range<u32>,
    /// Memory.
    pub memory: Range<Bytes>,
    /// Disk, its blank partitions included.
    pub disk: Range<Bytes>,
    /// What its interfaces need.
    pub connections: Connections,
}

/// Which of several hosts a member goes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The fullest that has room: others stay empty, for large members or to be switched off.
    #[default]
    Greedy,
    /// The emptiest: members disturb each other the least.
    Balanced,
}

/// How to place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Which host of several.
    pub policy: Policy,
    /// Whether hosts that can only emulate are used; after all others, where they are.
    pub emulation: bool,
    /// Whether members get more than their minimum where there is more. Without it a quota that has room for the
    /// minima alone is kept.
    pub grow: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            emulation: false,
            grow: true,
        }
    }
}

/// Where every member runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Each member's host and what it has there.
    pub members: BTreeMap<MemberName, Placed>,
}

/// A member's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placed {
    /// The host.
    pub host: HostName,
    /// What it has of it.
    pub amounts: Resources,
}

impl Plan {
    /// What the plan takes of each host.
    #[must_use]
    pub fn by_host(&self) -> BTreeMap<&HostName, Resources> {
        let mut hosts: BTreeMap<&HostName, Resources> = BTreeMap::new();
        for placed in self.members.values() {
            let sum = hosts.entry(&placed.host).or_default();
            // No plan takes more of a host than there is, so that no sum overflows.
            *sum = sum.plus(&placed.amounts).unwrap_or(*sum);
        }
        hosts
    }

    /// What the plan takes of all hosts, as wide numbers: CPUs, bytes of memory, bytes of disk.
    #[must_use]
    pub fn total(&self) -> [u128; 3] {
        Kind::ALL.map(|kind| {
            let each = self
                .members
                .values()
                .map(|placed| u128::from(placed.amounts.of(kind)));
            each.sum()
        })
    }
}

impl Member {
    /// The least that it runs with.
    #[must_use]
    pub fn minimum(&self) -> Resources {
        Resources {
            cpus: self.cpus.min,
            memory: self.memory.min,
            disk: self.disk.min,
        }
    }

    /// The most that is of use to it.
    #[must_use]
    pub fn maximum(&self) -> Resources {
        Resources {
            cpus: self.cpus.max,
            memory: self.memory.max,
            disk: self.disk.max,
        }
    }

    /// By what it is sorted: its name, in which a number at the end counts as one.
    pub(crate) fn turn(&self) -> (&str, Option<u64>, &str) {
        let name = self.name.as_str();
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name.get(stem.len()..).and_then(|digits| digits.parse().ok());
        (stem, number, name)
    }

    /// Whether two members need the same of a host, so that each can stand for the other.
    pub(crate) fn equals_in_need(&self, other: &Self) -> bool {
        self.minimum() == other.minimum()
            && self.connections == other.connections
            && self.image == other.image
    }
}

impl Connections {
    /// Whether all that is needed is here.
    #[must_use]
    pub fn serve(&self, needed: &Self) -> bool {
        (self.overlay || !needed.overlay)
            && (self.private || !needed.private)
            && needed.bridges.is_subset(&self.bridges)
    }
}

impl Host {
    /// Whether the host would take the member if it had room.
    #[must_use]
    pub fn suits(&self, member: &Member, rules: &Rules) -> bool {
        self.state == HostState::Up
            && (rules.emulation || self.accelerator != Accelerator::Emulation)
            && self.connections.serve(&member.connections)
    }
}

/// Places all members or none.
///
/// # Errors
/// [`Refusal`] with what is short and the nearest that would fit.
pub fn place(members: &[Member], hosts: &[Host], rules: &Rules) -> Result<Plan, Refusal> {
    let hosts = ordered(members, hosts)?;
    match pack::pack(members, &hosts, rules, EXACT_STEPS) {
        pack::Packed::Found(assignment) => Ok(grow::plan(members, &hosts, &assignment, rules)),
        pack::Packed::None { proved } => Err(refusal::refuse(members, &hosts, rules, proved)),
    }
}

/// Places as many members as find room, the hardest first, and names those that do not, in the order of the request.
/// It takes no second thought: another choice might leave out fewer.
///
/// # Errors
/// [`Refusal`] where the question itself cannot be answered: [`Shortage::Question`].
pub fn place_some(
    members: &[Member],
    hosts: &[Host],
    rules: &Rules,
) -> Result<(Plan, Vec<MemberName>), Refusal> {
    if let Ok(plan) = place(members, hosts, rules) {
        return Ok((plan, Vec::new()));
    }
    let hosts = ordered(members, hosts)?;
    let fitting = pack::fitting(members, &hosts, rules);
    let (mut kept, mut assignment, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for (member, host) in members.iter().zip(fitting) {
        match host {
            Some(host) => {
                kept.push(member.clone());
                assignment.push(host);
            }
            None => left.push(member.name.clone()),
        }
    }
    Ok((grow::plan(&kept, &hosts, &assignment, rules), left))
}

/// The hosts by name, if the question is one.
fn ordered<'h>(members: &[Member], hosts: &'h [Host]) -> Result<Vec<&'h Host>, Refusal> {
    let wrong = |why: String| Err(Refusal::question(members.len(), why));
    if members.len() > MAX_MEMBERS {
        return wrong(format!(
            "{} members are too many; {MAX_MEMBERS} are allowed",
            members.len()
        ));
    }
    if hosts.len() > MAX_HOSTS {
        return wrong(format!(
            "{} hosts are too many; {MAX_HOSTS} are allowed",
            hosts.len()
        ));
    }
    let mut names = BTreeSet::new();
    for member in members {
        if !names.insert(&member.name) {
            return wrong(format!(
                "two members are named '{}'; name one otherwise",
                member.name
            ));
        }
        let (min, max) = (member.minimum(), member.maximum());
        if !max.holds(&min) {
            let name = &member.name;
            return wrong(format!(
                "'{name}' needs at least {min} and at most less than that, {max}"
            ));
        }
    }
    let mut ordered: Vec<&Host> = hosts.iter().collect();
    ordered.sort_by_key(|host| &host.name);
    for pair in ordered.windows(2) {
        if let [one, other] = pair
            && one.name == other.name
        {
            return wrong(format!("two hosts are named '{}'; name one otherwise", one.name));
        }
    }
    Ok(ordered)
}
