//! Why a request is not placed, in terms that somebody can act on.

use std::cmp::Reverse;
use std::fmt;

use aerie_context_proto::{HostName, Interface, MemberName};

use super::pack::{fitting, free, hardest_first};
use super::{Connections, Host, HostState, Member, Nearest, Rules, nearest};
use crate::amount::{Kind, Resources};
use crate::limits::MAX_NEAREST;

/// Why a request is not placed. Nothing of it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// How many members were asked for.
    pub asked: usize,
    /// For how many of them there was room.
    pub fit: usize,
    /// What the next one lacked.
    pub shortage: Box<Shortage>,
    /// Close to the request, and does fit: with less of what is short, and with fewer members. Neither where nothing
    /// like it fits; less is not looked for beyond [`MAX_NEAREST`].
    pub nearest: Vec<Nearest>,
    /// Whether there is no way to place all. Otherwise none was found, and another request like it may be placed.
    pub proved: bool,
}

/// What a member lacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortage {
    /// The question cannot be answered.
    Question(String),
    /// No host takes members: all are draining, or there is none.
    NoHost,
    /// No host that takes members has what the member's interfaces need.
    NoConnection {
        /// The member.
        member: MemberName,
        /// What no host has, or not together with the rest.
        connection: Connection,
    },
    /// All hosts that would do can only emulate, which the rules leave out.
    OnlyEmulation {
        /// The member.
        member: MemberName,
    },
    /// No host that would do has so much left.
    Room {
        /// The member.
        member: MemberName,
        /// What its interfaces need of a host.
        connections: Connections,
        /// Of what there is too little.
        kind: Kind,
        /// How much the member needs at least, in the smallest unit.
        needs: u64,
        /// The most that a host has left of it, and which host: any that lacks nothing else, where there is one.
        freest: (HostName, u64),
        /// Whether other hosts have that much, and lack something else.
        elsewhere: bool,
    },
}

/// Something that an interface needs of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// The grid's virtual network.
    Overlay,
    /// Private networks.
    Private,
    /// A bridge.
    Bridge(Interface),
    /// Each is there on some host, and all of them on none.
    Together,
}

impl Refusal {
    pub(super) fn question(asked: usize, why: String) -> Self {
        Self {
            asked,
            fit: 0,
            shortage: Box::new(Shortage::Question(why)),
            nearest: Vec::new(),
            proved: true,
        }
    }
}

pub(super) fn refuse(members: &[Member], hosts: &[&Host], rules: &Rules, proved: bool) -> Refusal {
    let fitting = fitting(members, hosts, rules);
    let fit = fitting.iter().flatten().count();
    let mut left: Vec<Resources> = hosts.iter().map(|host| free(host)).collect();
    for (member, host) in members.iter().zip(&fitting) {
        if let Some(slot) = host.and_then(|host| left.get_mut(host)) {
            *slot = slot.minus(&member.minimum()).unwrap_or_default();
        }
    }
    let (order, kinds_of_members) = hardest_first(members, hosts, rules);
    let first = order.into_iter().find(|index| fitting.get(*index) == Some(&None));
    let Some(short) = first.and_then(|index| members.get(index)) else {
        // Not reached: a heuristic that placed all would have been a plan.
        return Refusal::question(members.len(), "the placement contradicts itself".to_owned());
    };
    let shortage = shortage(short, hosts, &left, rules);
    let mut found = Vec::new();
    let searchable = kinds_of_members.saturating_mul(hosts.len()) <= MAX_NEAREST;
    if let Shortage::Room { kind, .. } = &shortage
        && searchable
    {
        let others = Kind::ALL.into_iter().filter(|other| other != kind);
        let mut kinds = std::iter::once(*kind).chain(others);
        found.extend(kinds.find_map(|kind| nearest::lowered(members, hosts, rules, short, kind)));
    }
    found.extend(nearest::fewer(members, hosts, rules, &fitting));
    Refusal {
        asked: members.len(),
        fit,
        shortage: Box::new(shortage),
        nearest: found,
        proved,
    }
}

fn shortage(short: &Member, hosts: &[&Host], left: &[Resources], rules: &Rules) -> Shortage {
    let member = short.name.clone();
    let up: Vec<&Host> = hosts
        .iter()
        .copied()
        .filter(|host| host.state == HostState::Up)
        .collect();
    if up.is_empty() {
        return Shortage::NoHost;
    }
    let connected: Vec<_> = up
        .iter()
        .filter(|host| host.connections.serve(&short.connections))
        .collect();
    if connected.is_empty() {
        let connection = missing(&short.connections, &up);
        return Shortage::NoConnection { member, connection };
    }
    let suitable = || {
        let hosts = hosts.iter().zip(left);
        hosts.filter(|(host, _)| host.suits(short, rules))
    };
    let needs = short.minimum();
    let lacking = |left: &Resources| {
        Kind::ALL
            .into_iter()
            .filter(|kind| left.of(*kind) < needs.of(*kind))
            .collect::<Vec<_>>()
    };
    // The dimension that no host has enough of; otherwise that which alone keeps the host that lacks the fewest.
    let everywhere = Kind::ALL
        .into_iter()
        .find(|kind| suitable().all(|(_, left)| left.of(*kind) < needs.of(*kind)));
    let nearest = suitable().min_by_key(|(_, left)| lacking(left).len());
    let Some((_, nearest_left)) = nearest else {
        return Shortage::OnlyEmulation { member };
    };
    let kind = everywhere
        .or_else(|| lacking(nearest_left).first().copied())
        .unwrap_or(Kind::Memory);
    let fewest = lacking(nearest_left).len();
    let candidates = suitable().filter(|(_, left)| match everywhere {
        Some(_) => true,
        None => lacking(left).len() == fewest && left.of(kind) < needs.of(kind),
    });
    let freest = candidates
        .min_by_key(|(_, left)| Reverse(left.of(kind)))
        .map(|(host, left)| (host.name.clone(), left.of(kind)));
    let Some(freest) = freest else {
        return Shortage::OnlyEmulation { member };
    };
    Shortage::Room {
        member,
        connections: short.connections.clone(),
        kind,
        needs: needs.of(kind),
        freest,
        elsewhere: everywhere.is_none(),
    }
}

fn missing(needed: &Connections, up: &[&Host]) -> Connection {
    let nowhere = |has: &dyn Fn(&Connections) -> bool| !up.iter().any(|host| has(&host.connections));
    if needed.overlay && nowhere(&|connections| connections.overlay) {
        return Connection::Overlay;
    }
    if needed.private && nowhere(&|connections| connections.private) {
        return Connection::Private;
    }
    let bridge = needed
        .bridges
        .iter()
        .find(|bridge| nowhere(&|connections| connections.bridges.contains(*bridge)));
    bridge.map_or(Connection::Together, |bridge| Connection::Bridge(bridge.clone()))
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Shortage::Question(why) = self.shortage.as_ref() {
            return write!(f, "the request cannot be placed: {why}");
        }
        let members = if self.asked == 1 {
            "member fits"
        } else {
            "members fit"
        };
        write!(f, "{} of {} {members}; {}", self.fit, self.asked, self.shortage)?;
        for nearest in &self.nearest {
            write!(f, "; {nearest}")?;
        }
        if !self.proved {
            f.write_str("; not every way was tried, so that another choice of hosts may exist")?;
        }
        Ok(())
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Question(why) => f.write_str(why),
            Self::NoHost => f.write_str("no host takes new members; add one, or let one up that is draining"),
            Self::NoConnection { member, connection } => {
                write!(
                    f,
                    "'{member}' needs {connection}; connect a host that way, or change its interface"
                )
            }
            Self::OnlyEmulation { member } => write!(
                f,
                "'{member}' would run on hosts alone that can only emulate; allow emulation, or add a host with KVM \
                 or Xen"
            ),
            Self::Room {
                member,
                connections,
                kind,
                needs,
                freest: (host, has),
                elsewhere,
            } => {
                let needs = kind.quantity(*needs);
                write!(f, "the next, '{member}', needs {needs} on a host{connections}, ")?;
                let has = kind.amount(*has);
                if *elsewhere {
                    write!(f, "where '{host}' lacks the least and has {has}")
                } else {
                    write!(f, "and the freest, '{host}', has {has}")
                }
            }
        }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlay => f.write_str("a host with addresses of the overlay, and none has any"),
            Self::Private => f.write_str("a host with private networks, and none has them"),
            Self::Bridge(bridge) => write!(f, "a host with the bridge '{bridge}', and none has it"),
            Self::Together => f.write_str("several networks, which no one host has together"),
        }
    }
}

/// As what follows "a host"; nothing where any will do.
impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let overlay = self.overlay.then(|| "addresses of the overlay".to_owned());
        let private = self.private.then(|| "private networks".to_owned());
        let bridges = self.bridges.iter().map(|bridge| format!("the bridge '{bridge}'"));
        let all: Vec<_> = overlay.into_iter().chain(private).chain(bridges).collect();
        match all.as_slice() {
            [] => Ok(()),
            all => write!(f, " with {}", all.join(", ")),
        }
    }
}
