//! What a spec means, in words: for `aerie config check`.

use std::fmt::Write as _;

use aerie_types::Role;
use serde::Serialize;

use crate::bundle::{Bundle, SPEC_FILE};
use crate::spec::{Spec, VERSION};

/// A spec without its secrets, for `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The schema's version.
    pub version: i64,
    /// The grid's name.
    pub grid: String,
    /// The grid's id.
    pub grid_id: String,
    /// The hash of its CA's certificate.
    pub ca_hash: String,
    /// Its virtual range.
    pub range: String,
    /// Parts of it that are leased only to who asks for them.
    pub reserved: Vec<String>,
    /// Parts of it that are leased to nobody.
    pub excluded: Vec<String>,
    /// The part of it that is leased in blocks, and the length of their prefixes in bits.
    pub routed: Option<(String, u8)>,
    /// The witnesses of strict mode.
    pub witnesses: Vec<String>,
    /// The portals.
    pub enrol_urls: Vec<String>,
    /// Whether there is a join token.
    pub has_token: bool,
    /// The name wished for.
    pub node: Option<String>,
    /// The roles.
    pub roles: Vec<Role>,
    /// The user group.
    pub group: Option<String>,
    /// The virtual address that it takes, and no other.
    pub address: Option<String>,
    /// Members with open ports.
    pub bootstrap: Vec<String>,
    /// Whether there is a rendezvous secret.
    pub has_rendezvous_secret: bool,
    /// Members of the shared public overlay.
    pub public_bootstrap: Vec<String>,
    /// The overlay's port; 0 for any.
    pub listen_port: u16,
    /// The tunnel's port; 0 for any.
    pub vpn_port: u16,
    /// The MTU in bytes, where it is given.
    pub mtu: Option<u16>,
    /// Whether the node takes its IPv6 address.
    pub ipv6: bool,
    /// Whether multicast and broadcast are exchanged with the other members of the group.
    pub multicast: bool,
    /// Whether the kernel's offloads are used.
    pub offload: bool,
    /// The preferred cipher, where it is given.
    pub cipher: Option<String>,
    /// The TCP port at which a relay takes members over TLS; 0 for none.
    pub tls_port: u16,
    /// What a relay carries in one session, in Mbit/s, where it is bounded.
    pub relay_limit: Option<u16>,
    /// See [`Condor`](crate::Condor).
    pub prefer_group: bool,
    /// See [`Condor`](crate::Condor).
    pub allow_election: bool,
    /// What is no mistake but will most likely surprise.
    pub warnings: Vec<String>,
}

impl Spec {
    /// The spec without its secrets.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let texts = |list: &[crate::BootstrapAddr]| list.iter().map(ToString::to_string).collect();
        Summary {
            version: VERSION,
            grid: self.grid.name.to_string(),
            grid_id: self.grid.id().to_string(),
            ca_hash: self.grid.ca_hash.to_string(),
            range: self.grid.pool.range().to_string(),
            reserved: self
                .grid
                .pool
                .reserved()
                .iter()
                .map(ToString::to_string)
                .collect(),
            excluded: self
                .grid
                .pool
                .excluded()
                .iter()
                .map(ToString::to_string)
                .collect(),
            routed: self
                .grid
                .pool
                .routed()
                .map(|routed| (routed.part().to_string(), routed.block_len())),
            witnesses: self.grid.witnesses.iter().map(ToString::to_string).collect(),
            enrol_urls: self.enrol.urls.iter().map(ToString::to_string).collect(),
            has_token: self.enrol.token.is_some(),
            node: self.node.name.as_ref().map(ToString::to_string),
            roles: self.node.roles.iter().collect(),
            group: self.node.group.as_ref().map(ToString::to_string),
            address: self.node.address.map(|addr| addr.to_string()),
            bootstrap: texts(&self.overlay.bootstrap),
            has_rendezvous_secret: self.overlay.rendezvous_secret.is_some(),
            public_bootstrap: texts(&self.overlay.public_bootstrap),
            listen_port: self.overlay.listen_port,
            vpn_port: self.vpn.port,
            mtu: self.vpn.mtu,
            ipv6: self.vpn.ipv6,
            multicast: self.vpn.multicast,
            offload: self.vpn.offload,
            cipher: self.vpn.cipher.map(|cipher| cipher.to_string()),
            tls_port: self.vpn.tls_port,
            relay_limit: self.vpn.relay_limit,
            prefer_group: self.condor.prefer_group,
            allow_election: self.condor.allow_election,
            warnings: self.warnings(),
        }
    }

    /// What is no mistake but will most likely surprise, each with what to do.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let roles = self.node.roles;
        if self.enrol.token.is_none() {
            warnings.push(
                "enrol.token is not set: a machine that has not enrolled yet cannot join; make a blob with a token by \
                 'aerie grid blob'"
                    .to_owned(),
            );
        }
        let alone = self.overlay.bootstrap.is_empty() && self.overlay.rendezvous_secret.is_none();
        if alone && !roles.contains(Role::Relay) {
            warnings.push(
                "overlay.bootstrap is empty and there is no rendezvous_secret: outside its own LAN this machine \
                 finds no other; name a member with an open port"
                    .to_owned(),
            );
        }
        if self.overlay.rendezvous_secret.is_some() && self.overlay.public_bootstrap.is_empty() {
            warnings.push(
                "overlay.rendezvous_secret is of no use without overlay.public_bootstrap: name a member of the \
                 shared public overlay"
                    .to_owned(),
            );
        }
        if roles.contains(Role::Relay) && (self.overlay.listen_port == 0 || self.vpn.port == 0) {
            warnings.push(
                "a relay needs ports that do not change: set overlay.listen_port and vpn.port".to_owned(),
            );
        }
        warnings
    }
}

/// A good spec in words, with its warnings and the bundle's other files. Shows no secret.
#[must_use]
pub fn explain(spec: &Spec, bundle: Option<&Bundle>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<10} {value}");
    };
    let list = |addresses: &[crate::BootstrapAddr]| match addresses {
        [] => "none".to_owned(),
        some => some
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n           "),
    };
    let port = |port: u16, protocols: &str| match port {
        0 => format!("any free port ({protocols})"),
        port => format!("port {port} ({protocols})"),
    };
    line("Version", &VERSION.to_string());
    line("Grid", &format!("{} (id {})", spec.grid.name, spec.grid.id()));
    line("CA", &format!("pinned by SHA-256 {}", spec.grid.ca_hash));
    line(
        "Range",
        &format!(
            "{}, {} addresses",
            spec.grid.pool.range(),
            spec.grid.pool.capacity()
        ),
    );
    let nets = |nets: &[ipnet::Ipv4Net]| {
        nets.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !spec.grid.pool.reserved().is_empty() {
        let nets = nets(spec.grid.pool.reserved());
        line(
            "Reserved",
            &format!("{nets}, for nodes that ask for one by number"),
        );
    }
    if !spec.grid.pool.excluded().is_empty() {
        line(
            "Excluded",
            &format!("{}, for no node", nets(spec.grid.pool.excluded())),
        );
    }
    if let Some(routed) = spec.grid.pool.routed() {
        let text = format!(
            "{}, {} prefixes of /{} for nodes that route for others",
            routed.part(),
            spec.grid.pool.blocks(),
            routed.block_len()
        );
        line("Routed", &text);
    }
    if !spec.grid.witnesses.is_empty() {
        let names: Vec<_> = spec.grid.witnesses.iter().map(|name| name.as_str()).collect();
        let text = format!("{}: a majority of them grants every address", names.join(", "));
        line("Witnesses", &text);
    }
    let urls: Vec<&str> = spec.enrol.urls.iter().map(|url| url.as_str()).collect();
    line("Enrols at", &urls.join(", "));
    line(
        "Token",
        if spec.enrol.token.is_some() {
            "given (not shown)"
        } else {
            "none"
        },
    );
    let name = spec
        .node
        .name
        .as_ref()
        .map_or("named as its host is", |name| name.as_str());
    line("Node", name);
    for role in spec.node.roles.iter() {
        line("Role", &format!("{role}: {}", meaning(role)));
    }
    line(
        "Group",
        spec.node
            .group
            .as_ref()
            .map_or("that of the token", |group| group.as_str()),
    );
    if let Some(addr) = spec.node.address {
        line("Address", &format!("{addr} and no other"));
    }
    line("Bootstrap", &list(&spec.overlay.bootstrap));
    if spec.overlay.rendezvous_secret.is_some() {
        line(
            "Rendezvous",
            "in the shared public overlay (secret given, not shown)",
        );
        line("Public", &list(&spec.overlay.public_bootstrap));
    }
    line("Overlay", &port(spec.overlay.listen_port, "TCP and UDP"));
    let mtu = spec
        .vpn
        .mtu
        .map_or("usual MTU".to_owned(), |mtu| format!("MTU {mtu} bytes"));
    let family = if spec.vpn.ipv6 { "" } else { ", IPv4 alone" };
    let multicast = if spec.vpn.multicast {
        ", multicast and broadcast in its group"
    } else {
        ""
    };
    let offload = if spec.vpn.offload {
        ""
    } else {
        ", without offloads"
    };
    let cipher = spec
        .vpn
        .cipher
        .map_or(String::new(), |cipher| format!(", {cipher} preferred"));
    let limit = spec.vpn.relay_limit.map_or(String::new(), |limit| {
        format!(", relays at most {limit} Mbit/s a session")
    });
    let relays = match spec.vpn.tls_port {
        _ if !spec.node.roles.contains(Role::Relay) => limit,
        0 => format!("{limit}, takes nobody over TLS"),
        tls => format!("{limit}, {} for members without UDP", port(tls, "TCP")),
    };
    line(
        "Tunnel",
        &format!(
            "{}, {mtu}{family}{multicast}{offload}{cipher}{relays}",
            port(spec.vpn.port, "UDP")
        ),
    );
    let prefer = if spec.condor.prefer_group {
        "a manager of its own group first"
    } else {
        "any manager"
    };
    let election = if spec.condor.allow_election {
        "may be elected manager"
    } else {
        "no election of managers"
    };
    line("HTCondor", &format!("{prefer}; {election}"));
    for (name, bytes) in bundle
        .into_iter()
        .flat_map(Bundle::files)
        .filter(|(name, _)| *name != SPEC_FILE)
    {
        line("Extra file", &format!("{name}, {} bytes", bytes.len()));
    }
    for warning in spec.warnings() {
        line("Warning", &warning);
    }
    text
}

fn meaning(role: Role) -> &'static str {
    match role {
        Role::Manager => "runs the pool's collector and negotiator",
        Role::Submit => "queues jobs (schedd) and runs some",
        Role::Worker => "runs jobs (startd)",
        Role::Client => "has the tools only",
        Role::Relay => "has open ports and helps others to connect",
    }
}
