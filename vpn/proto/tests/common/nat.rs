//! NATs as RFC 4787 names them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Node, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NatKind {
    FullCone,
    AddressRestricted,
    PortRestricted,
    Symmetric,
}

pub(super) struct Nat {
    kind: NatKind,
    pub(super) public: Ipv4Addr,
    /// The one that it is behind.
    pub(super) outer: Option<usize>,
    /// Whether it sends back in what is for its own outside.
    pub(super) hairpin: bool,
    mappings: BTreeMap<(SocketAddr, Option<SocketAddr>), u16>,
    allowed: BTreeSet<(u16, SocketAddr)>,
    /// Ports that lead inside, and who came in by one.
    ports: BTreeMap<u16, SocketAddr>,
    entered: BTreeMap<(SocketAddr, SocketAddr), u16>,
    next_port: u16,
}

impl Nat {
    pub(super) fn new(kind: NatKind, public: Ipv4Addr, outer: Option<usize>) -> Self {
        Self {
            kind,
            public,
            outer,
            hairpin: true,
            mappings: BTreeMap::new(),
            allowed: BTreeSet::new(),
            ports: BTreeMap::new(),
            entered: BTreeMap::new(),
            next_port: 20_000,
        }
    }

    /// Forgets everything, and has another address from now on.
    pub(super) fn renumber(&mut self) {
        let [a, b, c, d] = self.public.octets();
        self.public = Ipv4Addr::new(a, b, c, d + 100);
        self.mappings.clear();
        self.allowed.clear();
    }

    /// Leads a port inside.
    pub(super) fn lead(&mut self, port: u16, to: SocketAddr) -> SocketAddr {
        self.ports.insert(port, to);
        SocketAddr::new(self.public.into(), port)
    }

    pub(super) fn outbound(&mut self, from: SocketAddr, to: SocketAddr) -> SocketAddr {
        if let Some(port) = self.entered.get(&(from, to)) {
            return SocketAddr::new(self.public.into(), *port);
        }
        let key = (from, (self.kind == NatKind::Symmetric).then_some(to));
        let next = &mut self.next_port;
        let port = *self.mappings.entry(key).or_insert_with(|| {
            *next += 1;
            *next
        });
        self.allowed.insert((port, to));
        SocketAddr::new(self.public.into(), port)
    }

    pub(super) fn inbound(&mut self, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        if let Some(inner) = self.ports.get(&port) {
            self.entered.insert((*inner, from), port);
            return Some(*inner);
        }
        let ((inner, _), _) = self.mappings.iter().find(|(_, mapped)| **mapped == port)?;
        let open = match self.kind {
            NatKind::FullCone => true,
            NatKind::AddressRestricted => self
                .allowed
                .iter()
                .any(|(own, to)| *own == port && to.ip() == from.ip()),
            NatKind::PortRestricted | NatKind::Symmetric => self.allowed.contains(&(port, from)),
        };
        open.then_some(*inner)
    }
}

impl World {
    /// Which NAT of a network has this address.
    fn nat_at(&self, network: Option<usize>, ip: IpAddr) -> Option<usize> {
        let there = |nat: &Nat| nat.outer == network && IpAddr::V4(nat.public) == ip;
        self.nats.iter().position(there)
    }

    /// Takes a datagram out of its network as far as it has to go: what it comes from there, and which network that is.
    /// `None` if a NAT on the way sends nothing back in.
    pub(super) fn leave(
        &mut self,
        mut from: SocketAddr,
        mut network: Option<usize>,
        to: SocketAddr,
    ) -> Option<(SocketAddr, Option<usize>)> {
        while let Some(nat) = network {
            let here = |node: &Node| node.host == to && node.nat == network;
            if self.nodes.iter().any(here) || self.nat_at(network, to.ip()).is_some() {
                break;
            }
            if IpAddr::V4(self.nats[nat].public) == to.ip() && !self.nats[nat].hairpin {
                return None;
            }
            from = self.nats[nat].outbound(from, to);
            network = self.nats[nat].outer;
        }
        Some((from, network))
    }

    /// To whom a datagram comes that has arrived in a network, through as many NATs as are in the way.
    pub(super) fn arrive(
        &mut self,
        from: SocketAddr,
        mut to: SocketAddr,
        mut network: Option<usize>,
    ) -> Option<usize> {
        while let Some(nat) = self.nat_at(network, to.ip()) {
            to = self.nats[nat].inbound(from, to.port())?;
            network = Some(nat);
        }
        let there = |node: &Node| node.host == to && node.nat == network && node.online;
        self.nodes.iter().position(there)
    }
}
