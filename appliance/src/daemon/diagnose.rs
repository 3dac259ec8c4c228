//! Answers to `aerie path` and `aerie netcheck`: what the tunnel knows, in words and with what to do about it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aerie_types::{PeerId, UnderlayAddr, VirtualAddr};
use aerie_vpn::{Finding, Mapping, NetworkStatus, PairState, PathKind, PathStatus, PortMapping, Reason};

use super::answer::kind;
use super::node::{Node, ip_of};
use crate::diagnosis::{
    CandidateReport, ChangeReport, MappingReport, NetcheckReport, PairReport, PathReport, RelayReport,
    TlsReport,
};

/// A check of the network takes four seconds at most.
const CHECK_LIMIT: Duration = Duration::from_secs(6);
const POLL: Duration = Duration::from_millis(50);

/// Members of whom some are asked to send something here, to see whether strangers are let in.
const STRANGERS: usize = 16;

/// Wakes the way to a member and tells everything about it.
pub(super) async fn path(node: &Node, name: String, addr: VirtualAddr) -> Result<PathReport, String> {
    if node.held().is_some_and(|held| held.addr == addr) {
        return Err(format!("{name} ({addr}) is this node itself"));
    }
    let vpn = node
        .vpn()
        .ok_or("this node's tunnel is not up yet; 'aerie status' says why")?;
    let failure = node.ping(addr).await.err().unwrap_or_default();
    let Some(holder) = node.resolve(addr).await else {
        let why = "no member holds this address, or its holder cannot be reached over the overlay";
        return Err(format!("{name} ({addr}): {why}; see 'aerie peers'"));
    };
    let Some(status) = vpn.path(holder.peer).await else {
        return Err(format!(
            "{name} ({addr}): nothing is known of a way to it; {failure}"
        ));
    };
    let port = vpn.status().await.map_or(0, |status| status.port);
    let relays = node.relay_count();
    Ok(report(node, name, addr, failure, &status, (port, relays)))
}

fn report(
    node: &Node,
    name: String,
    addr: VirtualAddr,
    failure: String,
    status: &PathStatus,
    (port, relays): (u16, usize),
) -> PathReport {
    let path = status.peer.path;
    let mut reason = status.reason.to_string();
    if let Some(refusal) = status.peer.why.as_ref().filter(|_| status.peer.suite.is_none())
        && !failure.is_empty()
    {
        reason = format!("{reason} ({refusal})");
    }
    PathReport {
        node: name,
        addr: addr.to_string(),
        path: if path == PathKind::None {
            "none"
        } else {
            kind(&path)
        }
        .to_owned(),
        through: node.path_text(&path),
        rtt_ms: status.peer.rtt.map(millis),
        since_secs: status.since.map(|since| since.as_secs_f64()),
        cipher: status
            .peer
            .suite
            .map(|suite| suite.to_string())
            .unwrap_or_default(),
        mtu: status.peer.mtu,
        reason,
        hint: hint(status.reason, path, port, relays),
        failure,
        pairs: status
            .pairs
            .iter()
            .map(|pair| {
                let (state, unanswered) = match pair.state {
                    PairState::Probing { probes } => ("probing", probes),
                    PairState::Alive => ("answers", 0),
                    PairState::NoAnswer { probes } => ("no-answer", probes),
                    PairState::Lost => ("lost", 0),
                };
                PairReport {
                    kind: pair.kind.to_string(),
                    addr: pair.addr.to_string(),
                    via: pair.via.map(|relay| node.member_name(relay)),
                    state: state.to_owned(),
                    unanswered,
                    selected: pair.selected,
                    rtt_ms: pair.rtt.map(millis),
                    answered_secs: pair.answered.map(|ago| ago.as_secs_f64()),
                }
            })
            .collect(),
        announced: status
            .candidates
            .iter()
            .map(|candidate| CandidateReport {
                kind: candidate.kind.to_string(),
                addr: candidate.addr.to_string(),
            })
            .collect(),
        own_nat: status.mapping.to_string(),
        peer_nat: match status.peer_symmetric {
            None => "",
            Some(true) => "another port for each destination (symmetric)",
            Some(false) => "not seen to be symmetric",
        }
        .to_owned(),
        next_exchange_secs: status.next_offer.map(|next| next.as_secs_f64()),
        changes: status
            .changes
            .iter()
            .map(|change| ChangeReport {
                secs: change.ago.as_secs_f64(),
                path: node.path_text(&change.path),
            })
            .collect(),
    }
}

/// What a person can do about a way.
fn hint(reason: Reason, path: PathKind, port: u16, relays: usize) -> String {
    let direct = match reason {
        Reason::SameNetwork | Reason::Public | Reason::Punched | Reason::Mapped | Reason::Unannounced => "",
        Reason::Asleep | Reason::Trying => "ask again in a few seconds",
        Reason::NoExchange { .. } => {
            "see by 'aerie peers' whether it is connected, and by 'aerie status' on it whether its tunnel is up"
        }
        Reason::NoCandidates => "see by 'aerie netcheck' on it whether it has a usable interface",
        Reason::BothSymmetric => {
            return format!(
                "for a direct path let one of the two routers forward UDP port {port} to its node, or give one of the \
                 nodes a public address{}",
                no_relay(path, relays)
            );
        }
        Reason::OwnSymmetric | Reason::PeerSymmetric => {
            return format!(
                "for a direct path let the router of either side forward UDP port {port} to its node{}",
                no_relay(path, relays)
            );
        }
        Reason::UdpSilent => {
            return format!("let UDP of port {port} out of this network and its answers in");
        }
        Reason::PeerUdpSilent => {
            return format!("let UDP of port {port} out of its network and its answers in");
        }
        Reason::NoAnswer => {
            return format!(
                "let UDP of port {port} through the firewalls of both sites; 'aerie netcheck' on each node shows \
                 which of them is shut{}",
                no_relay(path, relays)
            );
        }
    };
    direct.to_owned()
}

fn no_relay(path: PathKind, relays: usize) -> &'static str {
    match (path, relays) {
        (PathKind::None, 0) => "; and give a member with an open port the role 'relay', as no relay is known",
        (PathKind::None, _) => "; none of the relays that are known has given a way yet",
        _ => "",
    }
}

/// Looks at the network in front of this node, which takes up to four seconds.
pub(super) async fn netcheck(node: &Node) -> Result<NetcheckReport, String> {
    let vpn = node
        .vpn()
        .ok_or("this node's tunnel is not up yet; 'aerie status' says why")?;
    let ended = |_| "the tunnel has ended; 'aerie status' says why".to_owned();
    vpn.check_network(strangers(node).await).await;
    let began = Instant::now();
    let network = loop {
        tokio::time::sleep(POLL).await;
        let network = vpn.network().await.map_err(ended)?;
        if network.complete || began.elapsed() >= CHECK_LIMIT {
            break network;
        }
    };
    let status = vpn.status().await.map_err(ended)?;
    let found: Vec<usize> = vpn.peers().await.iter().filter_map(|peer| peer.mtu).collect();
    let path_mtu = found.iter().min().zip(found.iter().max());
    let mut relays: Vec<_> = network
        .observers
        .iter()
        .map(|observer| RelayReport {
            node: node
                .relay_at(observer.addr)
                .map_or_else(|| "?".to_owned(), |peer| node.member_name(peer)),
            addr: observer.addr.to_string(),
            seen_as: observer.observed.map(|addr| addr.to_string()),
            rtt_ms: observer.rtt.map(millis),
        })
        .collect();
    relays.sort_by(|a, b| {
        let order = |relay: &RelayReport| relay.rtt_ms.unwrap_or(f64::INFINITY);
        order(a).total_cmp(&order(b))
    });
    let answered = network
        .observers
        .iter()
        .any(|observer| observer.observed.is_some());
    let udp = (!network.observers.is_empty()).then_some(answered);
    let (verdict, hint, good) = verdict(&network, udp, status.port);
    let seen: BTreeSet<_> = network.observers.iter().filter_map(|o| o.observed).collect();
    Ok(NetcheckReport {
        port: status.port,
        addresses: network.hosts.iter().map(|addr| addr.0.ip().to_string()).collect(),
        udp,
        ipv6: network.hosts.iter().chain(&seen).any(is_global_ipv6),
        mapping: match network.mapping {
            Mapping::Unknown => "unknown",
            Mapping::Open => "open",
            Mapping::Independent => "endpoint-independent",
            Mapping::Dependent => "address-and-port-dependent",
        }
        .to_owned(),
        admits_strangers: known(network.admits_strangers),
        hairpin: known(network.hairpin),
        port_mapping: port_mapping(status.port_mapping),
        seen_as: seen.iter().map(ToString::to_string).collect(),
        relays,
        tls: network
            .tls
            .iter()
            .map(|(relay, addr)| TlsReport {
                node: node.member_name(*relay),
                addr: addr.to_string(),
            })
            .collect(),
        tls_port: status.tls.as_ref().and_then(|tls| tls.as_ref().ok().copied()),
        tls_problem: status.tls.and_then(Result::err).unwrap_or_default(),
        mtu: status.mtu,
        path_mtu: path_mtu.map(|(least, most)| (*least, *most)),
        offloads_off: status
            .offloads
            .list()
            .iter()
            .filter(|(_, on)| !on)
            .map(|(name, _)| (*name).to_owned())
            .collect(),
        verdict,
        hint,
        good,
    })
}

fn port_mapping(mapping: Option<PortMapping>) -> MappingReport {
    let said = |state: &str| MappingReport {
        state: state.to_owned(),
        ..MappingReport::default()
    };
    match mapping {
        None => said("off"),
        Some(PortMapping::Asking) => said("asking"),
        Some(PortMapping::Held { by, addr }) => MappingReport {
            addr: Some(addr.to_string()),
            by: Some(by.to_string()),
            ..said("held")
        },
        Some(PortMapping::Without { why }) => MappingReport { why, ..said("none") },
    }
}

/// Connected members with which there is no tunnel, and that are no relays.
async fn strangers(node: &Node) -> Vec<PeerId> {
    let tunnels: BTreeSet<PeerId> = node.tunnel_peers().await.iter().map(|peer| peer.peer).collect();
    // Who shares an address with somebody spoken to would be let in for that, and so would a neighbour.
    let mut known: BTreeSet<IpAddr> = node.relay_ips();
    if let Some(vpn) = node.vpn()
        && let Ok(status) = vpn.status().await
    {
        known.extend(status.reflexive.iter().map(|addr| addr.0.ip()));
    }
    let apart = |member: &aerie_overlay::Member| {
        let direct = member.connections.iter().filter(|connection| !connection.relayed);
        let mut ips = direct.filter_map(|connection| ip_of(&connection.remote));
        ips.all(|ip| !known.contains(&ip) && !UnderlayAddr((ip, 0).into()).is_private())
    };
    let members = node.overlay.members().await.unwrap_or_default();
    members
        .iter()
        .filter(|member| !tunnels.contains(&member.peer) && !node.is_relay(member.peer) && apart(member))
        .map(|member| member.peer)
        .take(STRANGERS)
        .collect()
}

/// What the network comes to, what to do about it, and whether it is good enough.
fn verdict(network: &NetworkStatus, udp: Option<bool>, port: u16) -> (String, String, bool) {
    let said = |verdict: &str, hint: String, good| (verdict.to_owned(), hint, good);
    // Behind another NAT it is known to nobody outside of that.
    let is_mapped = network.mapped.is_some_and(|addr| !addr.is_private());
    match (udp, network.mapping, network.admits_strangers) {
        (None, ..) => said(
            "no other member with an open port is known, so that nothing could be measured",
            "give a member that others can reach the role 'relay'; it also shows nodes how they look from outside"
                .to_owned(),
            false,
        ),
        (Some(false), ..) if network.tls.is_empty() => said(
            "UDP does not pass: no member answers; and no relay is reached over TLS either",
            format!(
                "let UDP of port {port} out of this network and its answers in, or TCP to the TLS port of a relay; \
                 without either the tunnel carries nothing"
            ),
            false,
        ),
        (Some(false), ..) => said(
            "UDP does not pass: no member answers; all paths are relayed over TLS",
            format!("for direct and faster paths let UDP of port {port} out of this network and its answers in"),
            false,
        ),
        (_, Mapping::Open, _) if network.observers.iter().filter_map(|o| o.observed).all(UnderlayAddr::is_private) => said(
            "the relays are on this node's own network, so that what is in front of it was not measured",
            "give a member elsewhere that others can reach the role 'relay'".to_owned(),
            true,
        ),
        (_, Mapping::Open, Finding::No) => said(
            "no NAT, but a firewall that drops what was not asked for: direct paths to all but members behind \
             symmetric NATs",
            format!("let UDP port {port} in, and every member reaches this node directly"),
            true,
        ),
        (_, Mapping::Open, Finding::Yes) => said(
            "no NAT, and members come in unasked: direct paths to everybody who has UDP; this node can relay for \
             others",
            String::new(),
            true,
        ),
        (_, Mapping::Open, _) => said("no NAT: direct paths, unless a firewall drops UDP", String::new(), true),
        (_, Mapping::Independent | Mapping::Dependent, _) if is_mapped => said(
            "a NAT whose router says that it leads a port to this node: with that, direct paths to everybody who has UDP",
            String::new(),
            true,
        ),
        (_, Mapping::Independent, Finding::Yes) => said(
            "an easy NAT (it lets in whoever knows its port): direct paths to everybody who has UDP",
            String::new(),
            true,
        ),
        (_, Mapping::Independent, _) => said(
            "a usual NAT: direct paths to all but members behind symmetric NATs, which are relayed",
            String::new(),
            true,
        ),
        (_, Mapping::Dependent, _) => said(
            "a symmetric NAT: direct paths only to members without NAT or behind an easy one; all others are relayed",
            format!(
                "for direct paths to everybody switch PCP, NAT-PMP or UPnP on in the router, or let it forward UDP \
                 port {port} to this machine"
            ),
            false,
        ),
        (_, Mapping::Unknown, _) => said(
            "a NAT; one member alone answers, which does not show of what kind it is",
            "give a second member that others can reach the role 'relay'".to_owned(),
            true,
        ),
    }
}

fn known(finding: Finding) -> Option<bool> {
    match finding {
        Finding::Yes => Some(true),
        Finding::No => Some(false),
        Finding::Untried | Finding::Open => None,
    }
}

fn is_global_ipv6(addr: &UnderlayAddr) -> bool {
    addr.0.is_ipv6() && !addr.is_private()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
