//! The running node: the handles of its parts, and what one part has to tell another.
//!
//! [`super::carry`] passes their messages on; [`super::join`] brings them up in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aerie_condor::{Manager, Program};
use aerie_dht::LeaseState;
use aerie_identity::Credential;
use aerie_overlay::Protocol;
use aerie_types::{NodeName, PeerId, Role, UnderlayAddr, VirtualAddr, VirtualNet};
use aerie_vpn::{NoIpv6, PathKind, RelayInfo, RemotePeer};
use tokio::sync::{Notify, watch};

use super::names::{self, Names};
use super::ports::OverlayPorts;
use super::trust::Trust;
use super::wire::{self, Ask, Facts, Tell};
use crate::paths::GridPaths;
use crate::status::ManagerReport;

/// A member of the group counts for so long after its address was learned, which is done every minute.
const MATE: Duration = Duration::from_secs(150);

/// How long a member may take to tell its facts.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Relays that the tunnel is told of. Two are held; a few more are known in case both go.
const MAX_RELAYS: usize = 8;

/// The set in which managers announce themselves.
pub(crate) const MANAGERS: &str = "managers";

/// The address that this node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldLease {
    pub(crate) addr: VirtualAddr,
    pub(crate) until: Instant,
    pub(crate) receipts: usize,
}

pub(crate) struct Node {
    pub(crate) spec: aerie_config::Spec,
    pub(crate) paths: GridPaths,
    pub(crate) interface: String,
    /// Whether routers are asked for port mappings.
    pub(crate) port_mapping: bool,
    /// Those of the overlay, where routers are asked.
    pub(crate) ports: Mutex<Option<OverlayPorts>>,
    pub(crate) overlay: aerie_overlay::Handle,
    pub(crate) dht: aerie_dht::Handle,
    pub(crate) trust: Trust,
    pub(crate) credential: watch::Receiver<Arc<Credential>>,
    pub(crate) names: Names,
    /// What `aerie status` says of the managers; kept by the task that owns HTCondor.
    pub(crate) managers: Mutex<Vec<ManagerReport>>,
    /// Woken when a member came up: its name is to be learned.
    pub(crate) member_came: Notify,
    /// Woken when a member went away: it may have been the primary.
    pub(crate) member_gone: Notify,
    pub(crate) version: Program,
    pub(crate) programs: Vec<Program>,
    pub(crate) user_credential: watch::Receiver<bool>,
    /// The tunnel, while there is one.
    pub(crate) tunnel: Mutex<Option<aerie_vpn::Handle>>,
    /// Woken when a tunnel has ended.
    pub(crate) tunnel_ended: Notify,
    /// UDP port of the tunnel's socket; 0 while there is none.
    pub(crate) data_port: AtomicU16,
    /// TCP port at which it takes members that UDP does not reach; 0 while it does not.
    pub(crate) tls_port: AtomicU16,
    pub(crate) relays: Mutex<BTreeMap<PeerId, RelayInfo>>,
}

impl Node {
    fn tunnel(&self) -> MutexGuard<'_, Option<aerie_vpn::Handle>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn vpn(&self) -> Option<aerie_vpn::Handle> {
        self.tunnel().clone()
    }

    pub(crate) fn set_vpn(&self, vpn: aerie_vpn::Handle) {
        self.tunnel().replace(vpn);
    }

    /// Takes the tunnel away from who would use it.
    pub(crate) fn take_vpn(&self) -> Option<aerie_vpn::Handle> {
        self.tunnel().take()
    }

    /// The grid's addresses of both families.
    pub(crate) fn net(&self) -> VirtualNet {
        VirtualNet::new(self.spec.grid.id(), self.spec.grid.pool.range())
    }

    /// The IPv6 address of this node's interface; `None` without a tunnel, an error where there is IPv4 alone.
    pub(crate) async fn addr6(&self) -> Option<Result<Ipv6Addr, NoIpv6>> {
        Some(self.vpn()?.status().await.ok()?.addr6)
    }

    /// The lease as it stands.
    pub(crate) fn held(&self) -> Option<HeldLease> {
        match &*self.dht.lease().borrow() {
            LeaseState::Held {
                leased: addr,
                receipts,
                until,
                ..
            } => Some(HeldLease {
                addr: *addr,
                until: *until,
                receipts: *receipts,
            }),
            _ => None,
        }
    }

    /// This node's own facts, for members that ask.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            data_port: self.data_port.load(Ordering::Relaxed),
            tls_port: self.tls_port.load(Ordering::Relaxed),
            revocations: self.trust.serial(),
            relays: self.credential.borrow().roles.contains(Role::Relay),
        }
    }

    /// Asks a member over the control protocol.
    pub(crate) async fn ask(&self, peer: PeerId, ask: &Ask) -> Option<Tell> {
        let request = self.overlay.request(peer, Protocol::Control, wire::encode(ask));
        let answer = tokio::time::timeout(ASK_TIMEOUT, request).await.ok()?.ok()?;
        wire::decode(&answer)
    }

    /// The member that holds an address, with the key of its tunnel.
    pub(crate) async fn resolve(&self, addr: VirtualAddr) -> Option<RemotePeer> {
        let found = self.dht.look_up_addr(addr).await?;
        self.names.learn(found.name, addr);
        let credential = match self.overlay.credential(found.holder) {
            Some(credential) => credential,
            None => {
                // Not connected: the dial that this request makes admits the member, and with it its credential.
                self.ask(found.holder, &Ask::Facts).await;
                self.overlay.credential(found.holder)?
            }
        };
        Some(RemotePeer {
            peer: found.holder,
            noise_public: credential.noise_public,
        })
    }

    /// The address of a node: as learned just now, or as the register has it, or as it was known before.
    pub(crate) async fn addr_of(&self, name: &NodeName) -> Option<VirtualAddr> {
        if let Some(addr) = self.names.fresh_addr_of(name) {
            return Some(addr);
        }
        let Some(found) = self.dht.look_up_name(name.clone()).await else {
            return self.names.addr_of(name);
        };
        let addr = found.leased.addr()?;
        self.names.learn(found.name, addr);
        Some(addr)
    }

    /// The node that holds an address: as the register has it, or as it was known before.
    pub(crate) async fn name_of(&self, addr: VirtualAddr) -> Option<NodeName> {
        let known = self.names.name_of(addr);
        if let Some(name) = &known
            && self.names.fresh_addr_of(name) == Some(addr)
        {
            return known;
        }
        let Some(found) = self.dht.look_up_addr(addr).await else {
            return known;
        };
        self.names.learn(found.name.clone(), addr);
        Some(found.name)
    }

    fn relays(&self) -> MutexGuard<'_, BTreeMap<PeerId, RelayInfo>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a member for a datagram relay, at the underlay address of its connection. Whether that is settled: a
    /// member that is connected through another relay only has no address yet.
    pub(crate) async fn learn_relay(&self, peer: PeerId, facts: &Facts) -> bool {
        let members = self.overlay.members().await.unwrap_or_default();
        let Some(member) = members.iter().find(|member| member.peer == peer) else {
            return false;
        };
        let direct = member.connections.iter().find(|connection| !connection.relayed);
        let Some(ip) = direct.and_then(|connection| ip_of(&connection.remote)) else {
            return false;
        };
        {
            let mut relays = self.relays();
            if relays.len() >= MAX_RELAYS && !relays.contains_key(&peer) {
                return true;
            }
            let at = |port: u16| UnderlayAddr((ip, port).into());
            let info = RelayInfo {
                peer,
                addr: at(facts.data_port),
                tls: Some(facts.tls_port).filter(|port| *port != 0).map(at),
            };
            relays.insert(peer, info);
        }
        self.tell_relays().await;
        true
    }

    /// How many members with an open port are known to relay.
    pub(crate) fn relay_count(&self) -> usize {
        self.relays().len()
    }

    pub(crate) fn relay_ips(&self) -> BTreeSet<IpAddr> {
        self.relays().values().map(|relay| relay.addr.0.ip()).collect()
    }

    pub(crate) fn is_relay(&self, peer: PeerId) -> bool {
        self.relays().contains_key(&peer)
    }

    /// The relay whose data socket is at this address.
    pub(crate) fn relay_at(&self, addr: UnderlayAddr) -> Option<PeerId> {
        let relays = self.relays();
        relays
            .values()
            .find(|relay| relay.addr == addr)
            .map(|relay| relay.peer)
    }

    /// A member's node name, or what is short of its id while it is not connected.
    pub(crate) fn member_name(&self, peer: PeerId) -> String {
        let credential = self.overlay.credential(peer);
        credential.map_or_else(|| peer.short(), |credential| credential.node.to_string())
    }

    /// A path for a person: relays by their names.
    pub(crate) fn path_text(&self, path: &PathKind) -> String {
        match path {
            PathKind::Relayed { via, addr, stream } => {
                let over = if *stream { " over TLS" } else { "" };
                format!("relayed via {} {addr}{over}", self.member_name(*via))
            }
            path => path.to_string(),
        }
    }

    pub(crate) async fn forget_relay(&self, peer: PeerId) {
        if self.relays().remove(&peer).is_some() {
            self.tell_relays().await;
        }
    }

    pub(crate) async fn tell_relays(&self) {
        let relays: Vec<_> = self.relays().values().copied().collect();
        if let Some(vpn) = self.vpn() {
            vpn.set_relays(relays).await;
        }
    }

    /// Tells the tunnel who is in this node's group, where packets to all are wanted.
    pub(crate) async fn tell_group(&self) {
        let Some(vpn) = self.vpn().filter(|_| self.spec.vpn.multicast) else {
            return;
        };
        let group = self.credential.borrow().group.clone();
        let Ok(members) = self.overlay.members().await else {
            return;
        };
        let mates = members.iter().filter(|member| member.credential.group == group);
        let addrs = mates.filter_map(|member| self.names.addr_of_within(&member.credential.node, MATE));
        vpn.set_group(Some(addrs.collect())).await;
    }

    pub(crate) fn has_user_credential(&self) -> bool {
        *self.user_credential.borrow()
    }

    /// The managers as announced, of which each is taken once the lease of the address that it claims is its own. Those
    /// that cannot be judged yet are counted.
    pub(crate) async fn announced_managers(
        &self,
        entries: &[aerie_dht::SetView],
        before: &[Manager],
    ) -> (Vec<Manager>, usize) {
        let mut managers = Vec::with_capacity(entries.len());
        let mut unproved = 0;
        for entry in entries {
            let addr = std::str::from_utf8(&entry.value)
                .ok()
                .and_then(|text| text.parse().ok());
            let Some(addr) = addr
                .map(VirtualAddr)
                .filter(|addr| self.spec.grid.pool.range().contains(*addr))
            else {
                tracing::warn!(node = %entry.node, "a manager announced no address of this grid");
                continue;
            };
            let manager = Manager {
                node: entry.node.clone(),
                addr,
                group: Some(entry.group.clone()),
            };
            match self.dht.look_up_addr(addr).await {
                Some(found) if found.holder == entry.publisher => {
                    self.names.learn(entry.node.clone(), addr);
                    managers.push(manager);
                }
                Some(found) => tracing::warn!(
                    node = %entry.node, %addr, holder = %found.name,
                    "a manager announced an address that another node holds"
                ),
                None if before.contains(&manager) => managers.push(manager),
                None => unproved += 1,
            }
        }
        managers.sort();
        (managers, unproved)
    }

    /// The members with which there is a tunnel, or was one lately.
    pub(crate) async fn tunnel_peers(&self) -> Vec<aerie_vpn::PeerStatus> {
        match self.vpn() {
            Some(vpn) => vpn.peers().await,
            None => Vec::new(),
        }
    }

    /// One round trip through the tunnel.
    pub(crate) async fn ping(&self, addr: VirtualAddr) -> Result<(Duration, String), String> {
        if self.held().is_some_and(|held| held.addr == addr) {
            return Ok((Duration::ZERO, "this node itself".to_owned()));
        }
        let vpn = self
            .vpn()
            .ok_or("this node's tunnel is not up yet; 'aerie status' says why")?;
        let pong = vpn.ping(addr).await.map_err(|error| error.to_string())?;
        Ok((pong.rtt, self.path_text(&pong.path)))
    }

    /// Gives back what this node holds.
    pub(crate) async fn leave(&self) {
        if let Err(error) = names::hosts_file(self.spec.grid.id()).remove() {
            tracing::warn!(%error, "the grid's names could not be removed from the hosts file");
        }
        if self.credential.borrow().roles.contains(Role::Manager) {
            self.dht.withdraw_set(MANAGERS).await;
        }
        self.dht.release_all().await;
    }

    /// Ends the parts in the reverse of their order.
    pub(crate) async fn shutdown(&self) {
        if let Some(vpn) = self.take_vpn() {
            vpn.shutdown().await;
        }
        self.dht.shutdown().await;
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ports) = ports {
            ports.release().await;
        }
        self.overlay.shutdown().await;
    }
}

/// The address that a multiaddress begins with.
pub(super) fn ip_of(addr: &aerie_overlay::Multiaddr) -> Option<IpAddr> {
    addr.to_string().split('/').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_underlay_address_is_read_off_a_multiaddress() {
        let ip = |text: &str| ip_of(&text.parse().unwrap());
        assert_eq!(
            ip("/ip4/192.0.2.7/udp/4001/quic-v1"),
            Some("192.0.2.7".parse().unwrap())
        );
        assert_eq!(
            ip("/ip6/2001:db8::1/tcp/4001"),
            Some("2001:db8::1".parse().unwrap())
        );
        assert_eq!(ip("/dns4/relay.example.org/tcp/4001"), None);
    }
}
