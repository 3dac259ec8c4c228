//! The address and the tunnel on it, for as long as the node runs.
//!
//! ```text
//!            held                                  tunnel ended by itself
//!  claiming ──────► tunnel up on the address ◄──┐ ──┐
//!     ▲                 │         │             └───┘ started again
//!     │ lost, given up  │         └─► managers announce themselves, names and HTCondor go on
//!     └─────────────────┘ tunnel down
//! ```
//!
//! The interface has an address only while the register says that this node holds it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aerie_config::Cipher;
use aerie_dht::LeaseState;
use aerie_types::{Role, VirtualAddr, WallMillis};
use aerie_vpn::{CredentialCheck, Identity, NoIpv6, RelayLimits, RemoteIdentity, Suite, Vpn, VpnConfig};
use tokio::sync::watch;

use super::carry;
use super::enrol::Member;
use super::node::{MANAGERS, Node};
use super::shared::Shared;
use super::trust::Trust;
use crate::error::Error;
use crate::status::{Stage, State};

/// How long a tunnel that could not be started is left alone.
const TUNNEL_AGAIN: Duration = Duration::from_secs(5);

/// Claims an address and follows the lease. The tunnel comes up with it, moves with it, and goes down with it.
pub(crate) async fn hold(
    node: &Arc<Node>,
    member: &Arc<Member>,
    held: &watch::Sender<Option<VirtualAddr>>,
    shared: &Shared,
) -> Result<(), Error> {
    let mut lease = node.dht.lease();
    node.dht.acquire().await;
    let is_manager = member.credential.borrow().roles.contains(Role::Manager);
    loop {
        let state = lease.borrow_and_update().clone();
        let mut again = None;
        if let LeaseState::Held {
            leased: addr,
            receipts,
            ..
        } = state
        {
            shared.done(
                Stage::Address,
                format!("{addr}, signed by {receipts} witness(es)"),
            );
            node.names.learn(member.credential.borrow().node.clone(), addr);
            match tunnel(node, member, addr).await {
                Ok(()) => {
                    let (reason, hint) = describe(node).await;
                    shared.stage(Stage::Tunnel, State::Done, reason, hint);
                    if is_manager {
                        let announced = node
                            .dht
                            .publish_set(MANAGERS, addr.to_string().into_bytes())
                            .await;
                        announced.map_err(Error::Register)?;
                    }
                    tell(held, Some(addr));
                }
                Err(reason) => {
                    shared.failed(
                        Stage::Tunnel,
                        reason,
                        format!("tried again in {} s", TUNNEL_AGAIN.as_secs()),
                    );
                    again = Some(TUNNEL_AGAIN);
                }
            }
        } else {
            if let Some(vpn) = node.take_vpn() {
                vpn.shutdown().await;
                shared.failed(Stage::Tunnel, "down: this node holds no address", "");
            }
            tell(held, None);
            not_held(node, state, shared);
        }
        let wait = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => node.tunnel_ended.notified().await,
            }
        };
        tokio::select! {
            changed = lease.changed() => if changed.is_err() {
                return Err(Error::Ended("lease register"));
            },
            () = wait => {}
        }
    }
}

fn tell(held: &watch::Sender<Option<VirtualAddr>>, addr: Option<VirtualAddr>) {
    held.send_if_modified(|before| {
        let changed = *before != addr;
        *before = addr;
        changed
    });
}

fn not_held(node: &Node, state: LeaseState, shared: &Shared) {
    match state {
        LeaseState::Idle | LeaseState::Held { .. } => {}
        LeaseState::Waiting { reason } => shared.waiting(Stage::Address, reason, ""),
        LeaseState::Failed { reason } => shared.failed(Stage::Address, reason, ""),
        LeaseState::Lost { reason, is_copy: false } => shared.waiting(Stage::Address, reason, ""),
        LeaseState::Lost { reason, is_copy: true } => shared.failed(
            Stage::Address,
            reason,
            format!(
                "if this machine's disk was copied from another node, stop this daemon, remove {} and start it with a \
                 fresh blob; the other node goes on undisturbed",
                node.paths.root().display()
            ),
        ),
    }
}

/// The interface, and what the kernel does for it; and what a person can do to have IPv6, where there is none.
async fn describe(node: &Node) -> (String, String) {
    let up = format!("{} is up", node.interface);
    let Some(vpn) = node.vpn() else {
        return (up, String::new());
    };
    let Ok(status) = vpn.status().await else {
        return (up, String::new());
    };
    let offloads = status.offloads;
    match status.addr6 {
        Ok(addr6) => (format!("{up} with {addr6}, offloads {offloads}"), String::new()),
        Err(NoIpv6::Configured) => (
            format!("{up} with IPv4 alone as configured, offloads {offloads}"),
            String::new(),
        ),
        Err(reason) => (
            format!("{up} with IPv4 alone, offloads {offloads}"),
            reason.to_string(),
        ),
    }
}

/// Brings the tunnel to an address: starts it, or moves it.
async fn tunnel(node: &Arc<Node>, member: &Member, addr: VirtualAddr) -> Result<(), String> {
    let credential = member.credential.borrow().clone();
    if node.trust.read(|verifier| verifier.is_revoked(&credential)) {
        return Err("this node is revoked".to_owned());
    }
    if let Some(vpn) = node.vpn() {
        match vpn.readdress(addr).await {
            // It ended meanwhile: another is started.
            Err(aerie_vpn::Error::Down) => node.take_vpn(),
            moved => return moved.map_err(|error| error.to_string()),
        };
    }
    let mut config = VpnConfig::new(node.interface.clone(), addr, node.spec.grid.pool.range());
    config.port = node.spec.vpn.port;
    config.mtu = node.spec.vpn.mtu.unwrap_or(config.mtu);
    config.port_mapping = node.port_mapping;
    config.ipv6 = node.spec.vpn.ipv6;
    config.offload = node.spec.vpn.offload;
    config.suites = match node.spec.vpn.cipher {
        None => Vec::new(),
        Some(cipher) => Suite::preferred(cipher == Cipher::Aes),
    };
    let limits = RelayLimits {
        bytes_per_second: node.spec.vpn.relay_limit.map(|mbit| u64::from(mbit) * 125_000),
        ..RelayLimits::default()
    };
    config.relay = credential.roles.contains(Role::Relay).then_some(limits);
    config.tls_port = Some(node.spec.vpn.tls_port).filter(|port| *port != 0 && config.relay.is_some());
    let identity = Identity {
        grid: node.spec.grid.id(),
        peer: credential.peer,
        noise_secret: member.keys.noise_secret(),
        credential: credential.der.clone(),
    };
    let check = Box::new(TrustCheck(member.trust.clone()));
    let (vpn, events) =
        Vpn::start(config, identity, check, &mut rand::rng()).map_err(|error| error.to_string())?;
    let status = vpn.status().await.map_err(|error| error.to_string())?;
    node.data_port.store(status.port, Ordering::Relaxed);
    let tls_port = status.tls.and_then(Result::ok);
    node.tls_port.store(tls_port.unwrap_or(0), Ordering::Relaxed);
    node.set_vpn(vpn.clone());
    tokio::spawn(carry::vpn_events(Arc::clone(node), events));
    node.tell_relays().await;
    node.tell_group().await;
    let mut renewed = member.credential.subscribe();
    renewed.mark_unchanged();
    tokio::spawn(async move {
        while renewed.changed().await.is_ok() {
            let der = renewed.borrow_and_update().der.clone();
            vpn.set_credential(der).await;
        }
    });
    Ok(())
}

/// Lets the tunnel judge credentials by what this node trusts at the moment.
struct TrustCheck(Trust);

impl CredentialCheck for TrustCheck {
    fn check(&self, der: &[u8], wall: WallMillis) -> Result<RemoteIdentity, String> {
        let credential = self
            .0
            .read(|verifier| verifier.verify(der, wall))
            .map_err(|rejection| rejection.to_string())?;
        Ok(RemoteIdentity {
            peer: credential.peer,
            noise_public: credential.noise_public,
            node: credential.node,
        })
    }
}
