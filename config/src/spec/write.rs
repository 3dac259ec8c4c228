//! From the typed spec to the text of `aerie.toml`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{BootstrapAddr, Spec, VERSION};

/// The file as it is written: apart from the typed spec, so that neither binds the other.
#[derive(Serialize)]
struct RawSpec<'s> {
    version: i64,
    grid: RawGrid<'s>,
    enrol: RawEnrol<'s>,
    node: RawNode<'s>,
    overlay: RawOverlay<'s>,
    vpn: RawVpn,
    condor: RawCondor,
}

#[derive(Serialize)]
struct RawGrid<'s> {
    name: &'s str,
    id: String,
    ca_hash: String,
    range: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reserved: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    excluded: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    witnesses: Vec<&'s str>,
    /// Written only where there is one: a daemon that does not know the key would refuse it.
    #[serde(skip_serializing_if = "Option::is_none")]
    routed: Option<RawRouted>,
}

#[derive(Serialize)]
struct RawRouted {
    range: String,
    block: u8,
}

#[derive(Serialize)]
struct RawEnrol<'s> {
    urls: Vec<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'s str>,
}

#[derive(Serialize)]
struct RawNode<'s> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'s str>,
    roles: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

#[derive(Serialize)]
struct RawOverlay<'s> {
    bootstrap: Vec<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rendezvous_secret: Option<&'s str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    public_bootstrap: Vec<&'s str>,
    listen_port: u16,
}

#[derive(Serialize)]
struct RawVpn {
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    /// Written only where it is off, as what follows: a daemon that does not know the key would refuse it.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    multicast: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offload: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cipher: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    relay_limit: Option<u16>,
}

#[derive(Serialize)]
struct RawCondor {
    prefer_group: bool,
    allow_election: bool,
}

pub(super) fn to_toml(spec: &Spec) -> Zeroizing<String> {
    let secret = spec
        .overlay
        .rendezvous_secret
        .as_ref()
        .map(|secret| Zeroizing::new(STANDARD.encode(secret.expose())));
    let raw = RawSpec {
        version: VERSION,
        grid: RawGrid {
            name: spec.grid.name.as_str(),
            id: spec.grid.id().to_string(),
            ca_hash: spec.grid.ca_hash.to_string(),
            range: spec.grid.pool.range().to_string(),
            reserved: spec
                .grid
                .pool
                .reserved()
                .iter()
                .map(ToString::to_string)
                .collect(),
            excluded: spec
                .grid
                .pool
                .excluded()
                .iter()
                .map(ToString::to_string)
                .collect(),
            witnesses: spec.grid.witnesses.iter().map(|name| name.as_str()).collect(),
            routed: spec.grid.pool.routed().map(|routed| RawRouted {
                range: routed.part().to_string(),
                block: routed.block_len(),
            }),
        },
        enrol: RawEnrol {
            urls: spec.enrol.urls.iter().map(|url| url.as_str()).collect(),
            token: spec.enrol.token.as_ref().map(|token| token.expose()),
        },
        node: RawNode {
            name: spec.node.name.as_ref().map(|name| name.as_str()),
            roles: spec.node.roles.iter().map(|role| role.as_str()).collect(),
            group: spec.node.group.as_ref().map(|group| group.as_str()),
            address: spec.node.address.map(|addr| addr.to_string()),
        },
        overlay: RawOverlay {
            bootstrap: texts(&spec.overlay.bootstrap),
            rendezvous_secret: secret.as_ref().map(|text| text.as_str()),
            public_bootstrap: texts(&spec.overlay.public_bootstrap),
            listen_port: spec.overlay.listen_port,
        },
        vpn: RawVpn {
            port: spec.vpn.port,
            mtu: spec.vpn.mtu,
            ipv6: (!spec.vpn.ipv6).then_some(false),
            multicast: spec.vpn.multicast.then_some(true),
            offload: (!spec.vpn.offload).then_some(false),
            cipher: spec.vpn.cipher.map(|cipher| cipher.to_string()),
            tls_port: Some(spec.vpn.tls_port).filter(|port| *port != super::DEFAULT_TLS_PORT),
            relay_limit: spec.vpn.relay_limit,
        },
        condor: RawCondor {
            prefer_group: spec.condor.prefer_group,
            allow_election: spec.condor.allow_election,
        },
    };
    #[expect(
        clippy::expect_used,
        reason = "plain tables of texts and numbers always have a TOML form"
    )]
    let body = Zeroizing::new(toml::to_string(&raw).expect("the raw spec is plain tables"));
    let head = format!(
        "# Aerie: {} of the grid '{}'.{}\n\n",
        spec.node.roles,
        spec.grid.name,
        if spec.enrol.token.is_some() || secret.is_some() {
            " This file holds secrets: keep it from others."
        } else {
            ""
        }
    );
    Zeroizing::new(head + &body)
}

fn texts(addresses: &[BootstrapAddr]) -> Vec<&str> {
    addresses.iter().map(|addr| addr.as_str()).collect()
}
