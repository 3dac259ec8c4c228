//! What was learned, shown to the programs of this machine.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aerie_types::{GridId, NodeName, PeerId, VirtualAddr};
use aerie_vpn::names::{HostsFile, HostsLine, NameSource, Resolver};
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::hook;
use crate::daemon::node::Node;
use crate::daemon::shared::Shared;
use crate::status::Stage;

/// Where a name server listens.
const DNS: u16 = 53;

/// The system's hosts file.
const HOSTS: &str = "/etc/hosts";

/// How often a hosts file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// This grid's block in the hosts file. It outlives the daemon, because HTCondor does; leaving the grid removes it.
pub(crate) fn hosts_file(grid: GridId) -> ManuallyDrop<HostsFile> {
    ManuallyDrop::new(HostsFile::new(HOSTS, &grid.short()))
}

/// Answers for the grid's names, and keeps this grid's block of the hosts file as they are learned. With a hook into
/// the system's resolver the block holds this machine alone.
pub(crate) async fn keep_names(
    node: Arc<Node>,
    shared: Arc<Shared>,
    mut addr: watch::Receiver<Option<VirtualAddr>>,
) {
    let mut file = hosts_file(node.spec.grid.id());
    // The resolver ends when it is dropped.
    let mut answering: Option<Answering> = None;
    let net = node.net();
    let mut ipv6 = false;
    loop {
        tokio::select! {
            () = node.names.changed() => {}
            changed = addr.changed() => {
                if changed.is_err() {
                    return;
                }
                let addr = *addr.borrow_and_update();
                // Names that lead to what this machine cannot reach would only cost time.
                ipv6 = node.addr6().await.is_some_and(|addr6| addr6.is_ok());
                answering = match addr {
                    Some(addr) => answer(&node, addr).await,
                    None => None,
                };
            }
        }
        let own = node.held().map(|held| held.addr);
        let hooked = answering.as_ref().is_some_and(|answering| answering.hooked);
        let mut lines = with_host_name(node.names.lines(ipv6), own, &host_name());
        if hooked {
            lines.retain(|line| net.leased(line.addr.0) == own);
        }
        match (file.write(&lines), &answering) {
            (Ok(()), Some(answering)) if answering.hooked => shared.done(
                Stage::Names,
                format!(
                    "systemd-resolved asks {} for the grid's names",
                    answering.resolver.local_addr()
                ),
            ),
            (Ok(()), Some(answering)) => shared.done(
                Stage::Names,
                format!(
                    "the grid's names are in {HOSTS}, and {} answers for them",
                    answering.resolver.local_addr()
                ),
            ),
            (Ok(()), None) => shared.done(Stage::Names, format!("the grid's names are in {HOSTS}")),
            (Err(error), _) => {
                shared.failed(
                    Stage::Names,
                    error.to_string(),
                    "HTCondor needs the managers' names; tried again",
                );
                tokio::time::sleep(RETRY).await;
                node.names.show_again();
            }
        }
    }
}

struct Answering {
    resolver: Resolver,
    /// Whether the system's resolver asks this one.
    hooked: bool,
}

/// Starts the resolver on this node's address and hooks it in where that is possible.
async fn answer(node: &Arc<Node>, addr: VirtualAddr) -> Option<Answering> {
    let source = Arc::new(Register(Arc::clone(node)));
    let grid = &node.spec.grid;
    let net = node.net();
    let resolver = match Resolver::bind((addr.0, DNS).into(), grid.name.clone(), net, source).await {
        Ok(resolver) => resolver,
        Err(error) => {
            tracing::warn!(%error, "no resolver for the grid's names; the hosts file has them");
            return None;
        }
    };
    let hooked = match hook::tell(&node.interface, addr, &grid.name, net).await {
        Ok(hooked) => hooked,
        Err(reason) => {
            tracing::warn!(
                reason,
                "systemd-resolved does not take the grid's resolver; the hosts file has its names"
            );
            false
        }
    };
    Some(Answering { resolver, hooked })
}

/// The resolver's source: what is known, or what the register says.
struct Register(Arc<Node>);

impl NameSource for Register {
    fn by_name(&self, name: NodeName) -> BoxFuture<'_, Option<VirtualAddr>> {
        Box::pin(async move { self.0.addr_of(&name).await })
    }

    fn by_addr(&self, addr: VirtualAddr) -> BoxFuture<'_, Option<NodeName>> {
        Box::pin(async move { self.0.name_of(addr).await })
    }
}

/// How long a member that holds no address is left alone, at first and at most: it may have just come up, or never
/// hold one.
const LEARN_SOON: Duration = Duration::from_millis(500);
const LEARN_SELDOM: Duration = Duration::from_secs(60);

/// How often the addresses of connected members are looked up again.
const LEARN_AGAIN: Duration = Duration::from_secs(60);

/// Learns the names of connected members, and keeps up with their addresses.
pub(crate) async fn learn_members(node: Arc<Node>) {
    // When each member is looked up next, and how long it is left alone after that if it holds no address.
    let mut due: BTreeMap<PeerId, (Instant, Duration)> = BTreeMap::new();
    loop {
        let members = node.overlay.members().await.unwrap_or_default();
        due.retain(|peer, _| members.iter().any(|member| member.peer == *peer));
        for member in members {
            let now = Instant::now();
            let (at, pause) = *due.entry(member.peer).or_insert((now, LEARN_SOON));
            if at > now {
                continue;
            }
            let name = &member.credential.node;
            let known = node.addr_of(name).await.is_some() && node.names.fresh_addr_of(name).is_some();
            let next = if known {
                (Instant::now() + LEARN_AGAIN, LEARN_SOON)
            } else {
                (Instant::now() + pause, (pause * 2).min(LEARN_SELDOM))
            };
            due.insert(member.peer, next);
        }
        node.tell_group().await;
        let next = due.values().map(|(at, _)| *at).min();
        let next = next.unwrap_or_else(|| Instant::now() + LEARN_AGAIN);
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            () = node.member_came.notified() => {}
        }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

/// Adds this machine's own name to its line: a machine whose own name has no quick answer stalls HTCondor's start
/// for minutes. HTCondor stays with IPv4, and so does that name.
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

    use aerie_types::VirtualNet;

    use super::*;
    use crate::daemon::names::Names;

    #[test]
    fn the_machines_own_name_stands_with_its_own_address_alone() {
        let net = VirtualNet::new(GridId([9; 16]), "100.96.0.0/11".parse().unwrap());
        let names = Names::new("lab".parse().unwrap(), net);
        names.learn("w1".parse().unwrap(), Ipv4Addr::new(100, 96, 3, 45).into());
        names.learn("w2".parse().unwrap(), Ipv4Addr::new(100, 96, 3, 46).into());
        let own = Ipv4Addr::new(100, 96, 3, 46).into();
        let lines = with_host_name(names.lines(true), Some(own), "rack7");
        let named: Vec<_> = lines
            .iter()
            .map(|line| line.names.iter().any(|name| name == "rack7"))
            .collect();
        assert_eq!(named, [false, false, true, false]);
        assert_eq!(lines[2].names, ["w2.lab.grid", "C096003046", "rack7"]);
    }
}
