//! What the daemon answers on its control socket.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Instant;

use aerie_types::VirtualAddr;
use aerie_vpn::PathKind;

use super::diagnose;
use super::enrol::now;
use super::names::Target;
use super::node::Node;
use super::shared::Shared;
use super::trust;
use crate::control::{Reply, Request};
use crate::status::{PeerReport, Report, Stage};

pub(crate) async fn answer(shared: &Shared, request: Request) -> Reply {
    if request == Request::Status {
        return Reply::Status(Box::new(report(shared).await));
    }
    let Some(node) = shared.node() else {
        if request == Request::Leave {
            shared.ask_to_leave();
            return Reply::Ok {
                message: "The daemon ends; the node had not joined yet.".to_owned(),
            };
        }
        return Reply::Error {
            message: "this node has not joined its grid yet; 'aerie status' says why".to_owned(),
        };
    };
    match request {
        Request::Status => Reply::Status(Box::new(report(shared).await)),
        Request::Peers => Reply::Peers {
            peers: peers(node).await,
        },
        Request::Ping { target } => ping(node, &target).await,
        Request::Path { target } => match find(node, &target).await {
            Ok((name, addr)) => match diagnose::path(node, name, addr).await {
                Ok(path) => Reply::Path(Box::new(path)),
                Err(message) => Reply::Error { message },
            },
            Err(reply) => reply,
        },
        Request::Netcheck => match diagnose::netcheck(node).await {
            Ok(network) => Reply::Netcheck(Box::new(network)),
            Err(message) => Reply::Error { message },
        },
        Request::Revocations { list } => match hex::decode(&list) {
            Ok(bytes) => match trust::apply(node, &bytes).await {
                Ok(true) => Reply::Ok {
                    message: "The list was taken and passed on to the members.".to_owned(),
                },
                Ok(false) => Reply::Ok {
                    message: "The list was known already.".to_owned(),
                },
                Err(message) => Reply::Error { message },
            },
            Err(_) => Reply::Error {
                message: "the list is not hexadecimal".to_owned(),
            },
        },
        Request::Leave => {
            shared.ask_to_leave();
            Reply::Ok {
                message: "Leaving: the address is given back and HTCondor is stopped.".to_owned(),
            }
        }
    }
}

async fn report(shared: &Shared) -> Report {
    let mut report = shared.with_tracker(|tracker| Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        ready: tracker.is_ready(),
        ready_ms: tracker.ready_ms(),
        stages: tracker.reports(),
        grid_id: shared.grid().map(|grid| grid.to_string()).unwrap_or_default(),
        ..Report::default()
    });
    let Some(node) = shared.node() else { return report };
    let credential = node.credential.borrow().clone();
    report.grid = credential.grid_name.to_string();
    report.grid_id = credential.grid.to_string();
    report.node = credential.node.to_string();
    report.peer = credential.peer.to_string();
    report.group = credential.group.to_string();
    report.roles = credential.roles.to_string();
    report.range = node.spec.grid.pool.range().to_string();
    report.credential_secs = Some(credential.not_after.since(now()).as_secs());
    let lease = node.held();
    if let Some(failure) = node.dht.store_failure()
        && let Some(address) = report
            .stages
            .iter_mut()
            .find(|report| report.stage == Stage::Address)
        && address.hint.is_empty()
    {
        address.hint = abstains(&failure, &node.paths.register());
    }
    report.addr = lease.as_ref().map(|held| held.addr.to_string());
    let addr6 = node.addr6().await.and_then(Result::ok);
    report.addr6 = addr6.map(|addr6| addr6.to_string());
    report.lease_secs = lease
        .as_ref()
        .map(|held| held.until.saturating_duration_since(Instant::now()).as_secs());
    report.lease_receipts = lease.as_ref().map(|held| held.receipts);
    report.managers = node
        .managers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    report.members = node.overlay.members().await.map_or(0, |members| members.len());
    for peer in node.tunnel_peers().await {
        if peer.path != PathKind::None {
            *report.paths.entry(kind(&peer.path).to_owned()).or_default() += 1;
        }
    }
    report
}

/// What a person can do about a register that cannot write.
fn abstains(failure: &str, register: &Path) -> String {
    format!(
        "as a witness of others' addresses this node abstains, since it cannot write {} ({failure}); make room on its \
         file system. It votes again by itself",
        register.display()
    )
}

pub(super) fn kind(path: &PathKind) -> &'static str {
    match path {
        PathKind::None => "idle",
        PathKind::Lan(_) => "lan",
        PathKind::Direct(_) => "direct",
        PathKind::Relayed { .. } => "relayed",
        PathKind::Stream { .. } => "tls",
    }
}

async fn peers(node: &Node) -> Vec<PeerReport> {
    let tunnels = node.tunnel_peers().await;
    let ula = node.net().ula;
    let mut reports: Vec<_> = node
        .overlay
        .members()
        .await
        .unwrap_or_default()
        .into_iter()
        .map(|member| {
            let tunnel = tunnels.iter().find(|tunnel| tunnel.peer == member.peer);
            let rtt = tunnel.and_then(|tunnel| tunnel.rtt).or(member.rtt);
            let addr = node.names.addr_of(&member.credential.node);
            PeerReport {
                node: member.credential.node.to_string(),
                group: member.credential.group.to_string(),
                roles: member.credential.roles.to_string(),
                peer: member.peer.to_string(),
                addr: addr.map(|addr| addr.to_string()),
                addr6: addr
                    .and_then(|addr| ula.addr(addr))
                    .map(|addr6| addr6.to_string()),
                overlay: if member.is_relayed() { "relayed" } else { "direct" }.to_owned(),
                path: tunnel.map_or("idle", |tunnel| kind(&tunnel.path)).to_owned(),
                through: tunnel
                    .map(|tunnel| node.path_text(&tunnel.path))
                    .unwrap_or_default(),
                cipher: tunnel
                    .and_then(|tunnel| tunnel.suite)
                    .map(|suite| suite.to_string())
                    .unwrap_or_default(),
                rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                mtu: tunnel.and_then(|tunnel| tunnel.mtu),
                why: tunnel.and_then(|tunnel| tunnel.why.clone()).unwrap_or_default(),
                active: tunnel.is_some_and(|tunnel| tunnel.active),
                tx_bytes: tunnel.map_or(0, |tunnel| tunnel.tx_bytes),
                rx_bytes: tunnel.map_or(0, |tunnel| tunnel.rx_bytes),
            }
        })
        .collect();
    reports.sort_by(|a, b| a.node.cmp(&b.node));
    reports
}

/// The node that a person means, and its address.
async fn find(node: &Node, target: &str) -> Result<(String, VirtualAddr), Reply> {
    let found: Option<(String, VirtualAddr)> = match node.names.parse(target) {
        Some(Target::Addr(addr)) => {
            let name = node
                .names
                .name_of(addr)
                .map_or_else(|| addr.to_string(), |name| name.to_string());
            Some((name, addr))
        }
        Some(Target::Name(name)) => node.addr_of(&name).await.map(|addr| (name.to_string(), addr)),
        None => None,
    };
    found.ok_or_else(|| Reply::Error {
        message: format!("no member '{target}' is known; 'aerie peers' lists those that are connected"),
    })
}

/// How the address became known to which a direct path leads. The tunnel has just used it: nobody else is asked.
async fn candidate(node: &Node, addr: VirtualAddr) -> Option<String> {
    let peers = node.tunnel_peers().await;
    let holder = peers.iter().find(|peer| peer.addrs.contains(&addr))?;
    let status = node.vpn()?.path(holder.peer).await?;
    let used = status.pairs.iter().find(|pair| pair.selected)?;
    let direct = matches!(status.peer.path, PathKind::Direct(_) | PathKind::Lan(_));
    direct.then(|| used.kind.to_string())
}

async fn ping(node: &Node, target: &str) -> Reply {
    let (name, addr) = match find(node, target).await {
        Ok(found) => found,
        Err(reply) => return reply,
    };
    match node.ping(addr).await {
        Ok((rtt, path)) => Reply::Pong {
            node: name,
            addr: addr.to_string(),
            rtt_ms: rtt.as_secs_f64() * 1000.0,
            path,
            candidate: candidate(node, addr).await,
        },
        Err(reason) => Reply::Error {
            message: format!("{name} ({addr}) did not answer: {reason}"),
        },
    }
}
