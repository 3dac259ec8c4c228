//! What was learned.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aerie_types::{GridName, NodeName, VirtualAddr, VirtualNet};
use aerie_vpn::names::HostsLine;
use tokio::sync::Notify;

/// How long a name is believed before it is looked up again: a lease may change hands.
const FRESH: Duration = Duration::from_secs(55);

/// Names kept, those learned last. A grid's other members still resolve, by a look-up each time.
const MAX_NAMES: usize = 1024;

pub(crate) struct Names {
    grid: GridName,
    net: VirtualNet,
    known: Mutex<BTreeMap<NodeName, Known>>,
    /// Woken when the hosts file has something new to show.
    changed: Notify,
}

#[derive(Clone, Copy)]
struct Known {
    addr: VirtualAddr,
    learned: Instant,
}

impl Names {
    pub(crate) fn new(grid: GridName, net: VirtualNet) -> Self {
        Self {
            grid,
            net,
            known: Mutex::new(BTreeMap::new()),
            changed: Notify::new(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<NodeName, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name proved by a lease. An address that belonged to another name belongs to it no longer.
    pub(crate) fn learn(&self, name: NodeName, addr: VirtualAddr) {
        let mut known = self.known();
        if known.len() >= MAX_NAMES && !known.contains_key(&name) {
            let oldest = known.iter().min_by_key(|(_, entry)| entry.learned);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                known.remove(&oldest);
            }
        }
        let learned = Instant::now();
        known.retain(|other, entry| *other == name || entry.addr != addr);
        let before = known.insert(name, Known { addr, learned });
        drop(known);
        if before.is_none_or(|before| before.addr != addr) {
            self.changed.notify_one();
        }
    }

    /// Wakes who shows the names, to show them again.
    pub(super) fn show_again(&self) {
        self.changed.notify_one();
    }

    /// Completes when something was learned since the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The address of a node, if it was ever learned.
    pub(crate) fn addr_of(&self, name: &NodeName) -> Option<VirtualAddr> {
        self.known().get(name).map(|known| known.addr)
    }

    /// The same, if it was learned a short while ago.
    pub(crate) fn fresh_addr_of(&self, name: &NodeName) -> Option<VirtualAddr> {
        self.addr_of_within(name, FRESH)
    }

    /// The same, if it was learned less than so long ago.
    pub(crate) fn addr_of_within(&self, name: &NodeName, age: Duration) -> Option<VirtualAddr> {
        let known = self.known().get(name).copied()?;
        (known.learned.elapsed() < age).then_some(known.addr)
    }

    /// The name of the node that holds an address, if it was ever learned.
    pub(crate) fn name_of(&self, addr: VirtualAddr) -> Option<NodeName> {
        self.known()
            .iter()
            .find_map(|(name, known)| (known.addr == addr).then(|| name.clone()))
    }

    /// What is known, as lines of a hosts file: a line for each node and, with `ipv6`, a second one.
    pub(crate) fn lines(&self, ipv6: bool) -> Vec<HostsLine> {
        let mut lines = Vec::new();
        for (name, Known { addr, .. }) in self.known().iter() {
            // Never the bare name: whoever names a node could name it after a machine of the local network.
            let full = name.fqdn(&self.grid);
            let names = std::iter::once(full.clone()).chain(addr.appliance_name());
            lines.push(HostsLine {
                addr: *addr,
                names: names.collect(),
            });
            let v6 = self.net.ula.addr(*addr).filter(|_| ipv6);
            lines.extend(v6.map(|v6| HostsLine {
                addr: VirtualAddr(v6.into()),
                names: vec![full],
            }));
        }
        lines
    }

    /// What a person or a program wrote: a node's name, its full name, its `C` name or its address of either family.
    pub(crate) fn parse(&self, target: &str) -> Option<Target> {
        if let Ok(ip) = target.parse() {
            return Some(Target::Addr(self.net.leased(ip).unwrap_or(VirtualAddr(ip))));
        }
        let label = target
            .trim_end_matches('.')
            .strip_suffix(&format!(".{}.grid", self.grid))
            .unwrap_or(target);
        if let Some(addr) = self
            .known()
            .values()
            .map(|known| known.addr)
            .find(|addr| addr.appliance_name().as_deref() == Some(label))
        {
            return Some(Target::Addr(addr));
        }
        label.parse().ok().map(Target::Name)
    }
}

/// A node as somebody named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Addr(VirtualAddr),
    Name(NodeName),
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use aerie_types::GridId;

    use super::*;

    fn no_names() -> Names {
        let net = VirtualNet::new(GridId([9; 16]), "100.96.0.0/11".parse().unwrap());
        Names::new("lab".parse().unwrap(), net)
    }

    fn names() -> Names {
        let names = no_names();
        names.learn("w1".parse().unwrap(), Ipv4Addr::new(100, 96, 3, 45).into());
        names
    }

    #[test]
    fn a_member_is_found_by_each_of_its_names() {
        let names = names();
        let w1 = Target::Name("w1".parse().unwrap());
        assert_eq!(names.parse("w1"), Some(w1.clone()));
        assert_eq!(names.parse("w1.lab.grid"), Some(w1.clone()));
        assert_eq!(names.parse("w1.lab.grid."), Some(w1));
        let addr = Target::Addr(Ipv4Addr::new(100, 96, 3, 45).into());
        assert_eq!(names.parse("C096003045"), Some(addr.clone()));
        assert_eq!(names.parse("100.96.3.45"), Some(addr.clone()));
        assert_eq!(names.parse("fd5d:9256:40dc::6460:32d"), Some(addr));
        let elsewhere = "fd5d:9256:40dd::6460:32d";
        assert_eq!(
            names.parse(elsewhere),
            Some(Target::Addr(VirtualAddr(elsewhere.parse().unwrap())))
        );
        assert_eq!(names.parse("w1.other.grid"), None);
    }

    #[test]
    fn an_address_that_moved_to_another_name_leaves_the_first() {
        let names = names();
        names.learn("w2".parse().unwrap(), Ipv4Addr::new(100, 96, 3, 45).into());
        assert_eq!(names.addr_of(&"w1".parse().unwrap()), None);
        let lines = names.lines(false);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].names, ["w2.lab.grid", "C096003045"]);
    }

    #[test]
    fn a_node_has_a_line_of_each_family() {
        let lines = names().lines(true);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].addr.to_string(), "fd5d:9256:40dc::6460:32d");
        assert_eq!(lines[1].names, ["w1.lab.grid"]);
    }

    #[test]
    fn no_line_has_a_bare_name_that_a_member_has_chosen() {
        let names = names();
        names.learn("ldap".parse().unwrap(), Ipv4Addr::new(100, 96, 3, 46).into());
        let lines = names.lines(true);
        assert!(
            lines
                .iter()
                .all(|line| line.names.iter().all(|name| name != "ldap")),
            "{lines:?}"
        );
    }

    #[test]
    fn the_name_learned_first_makes_room_for_a_new_one() {
        let names = no_names();
        let addr = |i: usize| Ipv4Addr::from(0x6460_0000 + u32::try_from(i).unwrap()).into();
        for i in 0..=MAX_NAMES {
            names.learn(format!("w{i}").parse().unwrap(), addr(i));
        }
        assert_eq!(names.lines(false).len(), MAX_NAMES);
        assert_eq!(
            names.addr_of(&format!("w{MAX_NAMES}").parse().unwrap()),
            Some(addr(MAX_NAMES))
        );
    }
}
