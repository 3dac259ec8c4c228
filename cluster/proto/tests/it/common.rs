//! What the tests share: the example documents, and hosts and members in short.

use std::collections::BTreeSet;

use aerie_cluster_proto::amount::{Bytes, Lifetime, Range, Resources};
use aerie_cluster_proto::description::{Bounds, Description, Document};
use aerie_cluster_proto::placement::{Accelerator, Connections, Host, HostState, Member, Plan};
use aerie_types::WallMillis;

pub(crate) const NFS: &str = include_str!("../../examples/nfs.toml");
pub(crate) const BATCH: &str = include_str!("../../examples/batch.toml");
pub(crate) const DESK: &str = include_str!("../../examples/one.json");

pub(crate) const BOUNDS: Bounds = Bounds {
    default_lifetime: Some(Lifetime::secs(3600)),
    max_lifetime: Lifetime::secs(7 * 24 * 3600),
};

pub(crate) fn nfs() -> Description {
    Document::from_toml(NFS).unwrap().description
}

pub(crate) fn batch() -> Description {
    Document::from_toml(BATCH).unwrap().description
}

/// A description with something replaced that stands in it once.
pub(crate) fn with(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "'{old}' stands once");
    text.replace(old, new)
}

/// What is wrong with a document, reading and checking alike.
pub(crate) fn faults(text: &str) -> Vec<String> {
    let faults = match Document::from_toml(text) {
        Ok(document) => document.check(&BOUNDS).err(),
        Err(faults) => Some(faults),
    };
    let listed = faults.map(|faults| faults.listed).unwrap_or_default();
    listed.iter().map(ToString::to_string).collect()
}

pub(crate) fn amounts(cpus: u32, memory_gib: u64, disk_gib: u64) -> Resources {
    Resources {
        cpus,
        memory: Bytes::gib(memory_gib),
        disk: Bytes::gib(disk_gib),
    }
}

/// A host of which all is free.
pub(crate) fn host(name: &str, has: Resources) -> Host {
    Host {
        name: name.parse().unwrap(),
        total: has,
        free: has,
        images: BTreeSet::new(),
        connections: Connections {
            overlay: true,
            private: true,
            bridges: BTreeSet::new(),
        },
        state: HostState::Up,
        accelerator: Accelerator::Kvm,
    }
}

pub(crate) fn host_with_bridge(name: &str, has: Resources, bridge: &str) -> Host {
    let mut host = host(name, has);
    host.connections.bridges.insert(bridge.parse().unwrap());
    host
}

/// A member that needs exactly so much.
pub(crate) fn member(name: &str, needs: Resources) -> Member {
    Member {
        name: name.parse().unwrap(),
        image: "debian".parse().unwrap(),
        cpus: Range::exactly(needs.cpus),
        memory: Range::exactly(needs.memory),
        disk: Range::exactly(needs.disk),
        connections: Connections::default(),
    }
}

/// So many members that need the same.
pub(crate) fn members(name: &str, count: u32, needs: Resources) -> Vec<Member> {
    (1..=count)
        .map(|index| member(&format!("{name}-{index}"), needs))
        .collect()
}

pub(crate) fn host_of(plan: &Plan, name: &str) -> String {
    plan.members.get(&name.parse().unwrap()).unwrap().host.to_string()
}

pub(crate) fn amounts_of(plan: &Plan, name: &str) -> Resources {
    plan.members.get(&name.parse().unwrap()).unwrap().amounts
}

pub(crate) fn at(secs: u64) -> WallMillis {
    WallMillis((1_900_000_000 + secs) * 1000)
}
