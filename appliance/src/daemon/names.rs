//! Names of members and their addresses, as this node has learned them.
//!
//! Every name comes from a lease: a look-up by name or by address gives a certificate that binds node, name and
//! address. What was learned is written into a block of the machine's hosts file, so that programs which know no
//! resolver of ours find it, and is answered by the resolver, which asks the register for what is not yet known.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aerie_types::{GridId, GridName, NodeName, VirtualAddr};
use aerie_vpn::names::{HostsFile, HostsLine};
use tokio::sync::Notify;

use super::node::Node;
use super::shared::Shared;
use crate::status::Stage;

/// Names kept. A grid's members beyond these still resolve, by a look-up each time.
const MAX_NAMES: usize = 1024;

pub(crate) struct Names {
    grid: GridName,
    known: Mutex<BTreeMap<NodeName, VirtualAddr>>,
    /// Woken when the hosts file has something new to show.
    changed: Notify,
}

impl Names {
    pub(crate) fn new(grid: GridName) -> Self {
        Self {
            grid,
            known: Mutex::new(BTreeMap::new()),
            changed: Notify::new(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<NodeName, VirtualAddr>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name proved by a lease. An address that belonged to another name belongs to it no longer.
    pub(crate) fn learn(&self, name: NodeName, addr: VirtualAddr) {
        let mut known = self.known();
        if known.get(&name) == Some(&addr) || (known.len() >= MAX_NAMES && !known.contains_key(&name)) {
            return;
        }
        known.retain(|_, other| *other != addr);
        known.insert(name, addr);
        drop(known);
        self.changed.notify_one();
    }

    /// Completes when something was learned since the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(crate) fn addr_of(&self, name: &NodeName) -> Option<VirtualAddr> {
        self.known().get(name).copied()
    }

    pub(crate) fn name_of(&self, addr: VirtualAddr) -> Option<NodeName> {
        self.known()
            .iter()
            .find_map(|(name, known)| (*known == addr).then(|| name.clone()))
    }

    /// What is known, as lines of a hosts file.
    pub(crate) fn lines(&self) -> Vec<HostsLine> {
        self.known()
            .iter()
            .map(|(name, addr)| {
                let mut names = vec![name.fqdn(&self.grid), name.to_string()];
                names.extend(addr.appliance_name());
                HostsLine { addr: *addr, names }
            })
            .collect()
    }

    /// What a person or a program wrote: a node's name, its full name, its `C` name or its address.
    pub(crate) fn parse(&self, target: &str) -> Option<Target> {
        if let Ok(addr) = target.parse() {
            return Some(Target::Addr(VirtualAddr(addr)));
        }
        let label = target
            .trim_end_matches('.')
            .strip_suffix(&format!(".{}.grid", self.grid))
            .unwrap_or(target);
        if let Some(addr) = self
            .known()
            .values()
            .find(|addr| addr.appliance_name().as_deref() == Some(label))
            .copied()
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

/// The system's hosts file.
const HOSTS: &str = "/etc/hosts";

/// How often a hosts file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// This grid's block in the hosts file. It outlives the daemon, because HTCondor does; leaving the grid removes it.
pub(crate) fn hosts_file(grid: GridId) -> ManuallyDrop<HostsFile> {
    ManuallyDrop::new(HostsFile::new(HOSTS, &grid.short()))
}

/// Keeps this grid's block of the hosts file as names are learned.
pub(crate) async fn keep_hosts(node: Arc<Node>, shared: Arc<Shared>) {
    let mut file = hosts_file(node.spec.grid.id());
    loop {
        node.names.changed().await;
        let lines = with_host_name(
            node.names.lines(),
            node.held().map(|held| held.addr),
            &host_name(),
        );
        match file.write(&lines) {
            Ok(()) => shared.done(Stage::Names, format!("the grid's names are in {HOSTS}")),
            Err(error) => {
                shared.failed(
                    Stage::Names,
                    error.to_string(),
                    "HTCondor needs the managers' names; tried again",
                );
                tokio::time::sleep(RETRY).await;
                node.names.changed.notify_one();
            }
        }
    }
}

/// How often members without a known address are looked up, while there are any; and how often otherwise.
const LEARN_SOON: Duration = Duration::from_secs(1);
const LEARN_LATER: Duration = Duration::from_secs(10);

/// Learns the names of connected members: one that has just come up may not hold its address yet.
pub(crate) async fn learn_members(node: Arc<Node>) {
    loop {
        let members = node.overlay.members().await.unwrap_or_default();
        let mut unknown = false;
        for member in members {
            let name = &member.credential.node;
            unknown |= node.names.addr_of(name).is_none() && node.addr_of(name).await.is_none();
        }
        tokio::time::sleep(if unknown { LEARN_SOON } else { LEARN_LATER }).await;
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

/// Adds this machine's own name to its line: a machine whose own name has no quick answer stalls HTCondor's start
/// for minutes.
fn with_host_name(mut lines: Vec<HostsLine>, own: Option<VirtualAddr>, host: &str) -> Vec<HostsLine> {
    for line in lines.iter_mut().filter(|line| Some(line.addr) == own) {
        if !host.is_empty() && !line.names.iter().any(|name| name == host) {
            line.names.push(host.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn names() -> Names {
        let names = Names::new("lab".parse().unwrap());
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
        assert_eq!(names.parse("100.96.3.45"), Some(addr));
        assert_eq!(names.parse("w1.other.grid"), None);
    }

    #[test]
    fn the_machines_own_name_stands_with_its_own_address_alone() {
        let names = names();
        names.learn("w2".parse().unwrap(), Ipv4Addr::new(100, 96, 3, 46).into());
        let own = Ipv4Addr::new(100, 96, 3, 46).into();
        let lines = with_host_name(names.lines(), Some(own), "rack7");
        assert!(!lines[0].names.contains(&"rack7".to_owned()));
        assert_eq!(lines[1].names, ["w2.lab.grid", "w2", "C096003046", "rack7"]);
    }

    #[test]
    fn an_address_that_moved_to_another_name_leaves_the_first() {
        let names = names();
        names.learn("w2".parse().unwrap(), Ipv4Addr::new(100, 96, 3, 45).into());
        assert_eq!(names.addr_of(&"w1".parse().unwrap()), None);
        let lines = names.lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].names, ["w2.lab.grid", "w2", "C096003045"]);
    }
}
