//! The facts of a guest as trees of names, each a text or a list of further names.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::json;

use super::Guest;

const TEXT: &str = "text/plain";
const BYTES: &str = "application/octet-stream";
const JSON: &str = "application/json";

/// The name of the first public key, and the begin of all names.
const KEY: &str = "aerie";

/// A name's meaning.
pub(super) enum Node {
    Folder(BTreeMap<String, Node>),
    /// A folder whose list says more of each name (`0=name`).
    Named(BTreeMap<String, (String, Node)>),
    File(&'static str, Vec<u8>),
}

impl Node {
    fn text(text: impl Into<String>) -> Self {
        Self::File(TEXT, text.into().into_bytes())
    }

    fn folder<K: Into<String>>(nodes: impl IntoIterator<Item = (K, Node)>) -> Self {
        Self::Folder(
            nodes
                .into_iter()
                .map(|(name, node)| (name.into(), node))
                .collect(),
        )
    }

    /// What is at the end of a path.
    pub(super) fn find(self, path: &[&str]) -> Option<(&'static str, Vec<u8>)> {
        let Some((first, rest)) = path.split_first() else {
            return Some(match self {
                Self::File(kind, bytes) => (kind, bytes),
                Self::Folder(nodes) => (TEXT, list(nodes.iter().map(|(name, node)| entry(name, node)))),
                Self::Named(nodes) => (
                    TEXT,
                    list(nodes.iter().map(|(name, (title, _))| format!("{name}={title}"))),
                ),
            });
        };
        let node = match self {
            Self::Folder(mut nodes) => nodes.remove(*first)?,
            Self::Named(mut nodes) => nodes.remove(*first)?.1,
            Self::File(..) => return None,
        };
        node.find(rest)
    }
}

fn entry(name: &str, node: &Node) -> String {
    match node {
        Node::File(..) => name.to_owned(),
        Node::Folder(_) | Node::Named(_) => format!("{name}/"),
    }
}

fn list(names: impl Iterator<Item = String>) -> Vec<u8> {
    names.collect::<Vec<_>>().join("\n").into_bytes()
}

/// How EC2 would call the guest.
fn instance_id(guest: &Guest) -> String {
    // EC2's are shorter; nobody looks, and the whole id is nobody else's.
    format!("i-{}", guest.id.guest.0.simple())
}

/// What EC2 says of it, below a version.
pub(super) fn ec2(address: Ipv4Addr, guest: &Guest) -> Node {
    let facts = &guest.facts;
    let mac = guest.mac.to_string();
    let hostname = facts.hostname.as_str();
    let interface = Node::folder([
        ("device-number", Node::text(guest.id.index.to_string())),
        ("local-hostname", Node::text(hostname)),
        ("local-ipv4s", Node::text(address.to_string())),
        ("mac", Node::text(&mac)),
        ("subnet-ipv4-cidr-block", Node::text(guest.subnet.to_string())),
    ]);
    let mut meta = vec![
        ("ami-launch-index", Node::text("0")),
        ("hostname", Node::text(hostname)),
        ("instance-id", Node::text(instance_id(guest))),
        ("local-hostname", Node::text(hostname)),
        ("local-ipv4", Node::text(address.to_string())),
        ("mac", Node::text(&mac)),
        (
            "network",
            Node::folder([(
                "interfaces",
                Node::folder([("macs", Node::folder([(mac.clone(), interface)]))]),
            )]),
        ),
    ];
    if !facts.public_keys.is_empty() {
        let keys = facts.public_keys.iter().enumerate().map(|(n, key)| {
            let node = Node::folder([("openssh-key", Node::text(key))]);
            (n.to_string(), (key_name(n), node))
        });
        meta.push(("public-keys", Node::Named(keys.collect())));
    }
    let mut top = vec![("meta-data", Node::folder(meta))];
    if let Some(data) = &facts.user_data {
        top.push(("user-data", Node::File(BYTES, data.bytes().to_vec())));
    }
    Node::folder(top)
}

/// What OpenStack says of it.
pub(super) fn openstack(address: Ipv4Addr, guest: &Guest) -> Node {
    let versions = ["2012-08-10", "2013-10-17", "2015-10-15", "latest"];
    Node::folder(versions.map(|version| (version, openstack_version(address, guest))))
}

fn openstack_version(address: Ipv4Addr, guest: &Guest) -> Node {
    let facts = &guest.facts;
    let uuid = guest.id.guest.to_string();
    let keys: BTreeMap<_, _> = facts
        .public_keys
        .iter()
        .enumerate()
        .map(|(n, key)| (key_name(n), key))
        .collect();
    let list: Vec<_> = keys
        .iter()
        .map(|(name, key)| json!({ "name": name, "type": "ssh", "data": key }))
        .collect();
    let meta = json!({
        "uuid": uuid,
        "name": facts.hostname.as_str(),
        "hostname": facts.hostname.as_str(),
        "launch_index": 0,
        "public_keys": keys,
        "keys": list,
    });
    let network = json!({
        "links": [{
            "id": "link0",
            "type": "bridge",
            "ethernet_mac_address": guest.mac.to_string(),
            "mtu": guest.mtu,
        }],
        "networks": [{
            "id": "network0",
            "link": "link0",
            "type": "ipv4_dhcp",
            "network_id": guest.subnet.to_string(),
            "ip_address": address.to_string(),
        }],
        "services": [],
    });
    let json = |value: serde_json::Value| Node::File(JSON, value.to_string().into_bytes());
    let mut nodes = vec![
        ("meta_data.json", json(meta)),
        ("network_data.json", json(network)),
        ("vendor_data.json", json(json!({}))),
    ];
    if let Some(data) = &facts.user_data {
        nodes.push(("user_data", Node::File(BYTES, data.bytes().to_vec())));
    }
    Node::folder(nodes)
}

fn key_name(n: usize) -> String {
    match n {
        0 => KEY.to_owned(),
        n => format!("{KEY}-{n}"),
    }
}
