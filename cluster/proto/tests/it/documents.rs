//! Documents that are as they should be, in every form.

use aerie_cluster_proto::amount::{Bytes, Lifetime, Range};
use aerie_cluster_proto::description::{
    Description, Document, FileSystem, Image, Mac, Needs, Network, Nic, Partition, Target, Version, Workspace,
};
use aerie_context_proto::{
    Line, ProvidedIdentity, ProvidedRole, Provides, RequiredData, RequiredRole, Requires,
};
use proptest::prelude::*;

use crate::common::{BATCH, BOUNDS, DESK, NFS, batch, nfs};

#[test]
fn the_papers_nfs_cluster_is_a_server_and_two_clients() {
    let document = Document::from_toml(NFS).unwrap();
    assert_eq!(document.check(&BOUNDS).unwrap(), []);
    let members = document.description.members();
    let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["server", "client-1", "client-2"]);
    let server = &members[0];
    assert_eq!(
        server.disk,
        Range::exactly(Bytes::gib(24)),
        "the blank partition comes on top"
    );
    assert!(server.connections.overlay && !server.connections.private);
    assert_eq!(members[1].cpus, Range { min: 1, max: 4 });
    document.description.context_cluster().check(false).unwrap();
}

#[test]
fn the_papers_batch_cluster_has_a_head_node_on_two_networks() {
    let document = Document::from_toml(BATCH).unwrap();
    assert_eq!(document.check(&BOUNDS).unwrap(), []);
    let description = &document.description;
    assert_eq!((description.count(), description.all_or_none), (9, true));
    let head = &description.workspaces[0];
    assert_eq!(
        head.nics[0].network,
        Network::Bridge {
            bridge: "lab0".parse().unwrap()
        }
    );
    assert_eq!(
        head.nics[1].network,
        Network::Private {
            network: "cluster".parse().unwrap()
        }
    );
    let members = description.members();
    assert!(members[0].connections.private && members[0].connections.bridges.len() == 1);
    let cluster = description.context_cluster();
    assert_eq!(
        cluster.workspaces[0].requires.roles[0].name.as_str(),
        "torqueclient"
    );
    assert!(cluster.workspaces[0].requires.roles[0].pubkey);
}

#[test]
fn one_workspace_is_a_set_of_one_in_json_too() {
    let document = Document::from_json(DESK).unwrap();
    assert_eq!(document.check(&BOUNDS).unwrap(), []);
    let description = document.description;
    assert_eq!(description.target, Target::Paused);
    assert!(matches!(description.workspaces[0].image, Image::Digest(_)));
    assert_eq!(description.members()[0].name.as_str(), "desk");
    assert_eq!(
        Document::from_toml(&description.to_toml()).unwrap().description,
        description
    );
}

#[test]
fn the_examples_are_the_same_when_written_out_in_either_form() {
    for description in [nfs(), batch()] {
        assert_eq!(
            Document::from_toml(&description.to_toml()).unwrap().description,
            description
        );
        assert_eq!(
            Document::from_json(&description.to_json()).unwrap().description,
            description
        );
    }
}

#[test]
fn what_is_not_said_is_the_default() {
    let text = "version = 1\nname = \"x\"\n[[workspace]]\nname = \"w\"\nimage = \"debian\"\n\
                resources = { cpus = 1, memory = \"1 GiB\", disk = \"1 GiB\" }\n";
    let description = Document::from_toml(text).unwrap().description;
    assert!(description.all_or_none && description.lifetime.is_none());
    assert_eq!(
        (description.target, description.workspaces[0].count),
        (Target::Started, 1)
    );
    assert_eq!(BOUNDS.lifetime(&description), Some(Lifetime::secs(3600)));
}

fn label() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,8}"
}

fn parsed<T: std::str::FromStr>(text: impl AsRef<str>) -> T
where
    T::Err: std::fmt::Debug,
{
    text.as_ref().parse().unwrap()
}

fn bytes_range() -> impl Strategy<Value = Range<Bytes>> {
    (1..1u64 << 40, 0..1u64 << 40).prop_map(|(min, more)| Range {
        min: Bytes(min),
        max: Bytes(min + more),
    })
}

fn nic() -> impl Strategy<Value = Nic> {
    let network = prop_oneof![
        Just(Network::Overlay),
        label().prop_map(|name| Network::Private {
            network: parsed(name)
        }),
        label().prop_map(|name| Network::Bridge { bridge: parsed(name) }),
    ];
    let mac = any::<[u8; 6]>()
        .prop_map(|[_, b, c, d, e, f]| parsed::<Mac>(format!("52:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")));
    let parts = (
        network,
        proptest::option::of(label()),
        proptest::option::of(any::<std::net::IpAddr>()),
        proptest::option::of(mac),
        any::<bool>(),
    );
    parts.prop_map(|(network, interface, address, mac, login)| Nic {
        network,
        interface: interface.map(parsed),
        address,
        mac,
        login,
    })
}

fn partition() -> impl Strategy<Value = Partition> {
    let filesystem = prop_oneof![
        Just(FileSystem::Ext4),
        Just(FileSystem::Xfs),
        Just(FileSystem::Vfat),
        Just(FileSystem::Swap),
        Just(FileSystem::Raw),
    ];
    (
        label(),
        0..u64::MAX,
        filesystem,
        proptest::option::of("(/[a-z.]{0,5}[a-z]){1,3}"),
    )
        .prop_map(|(name, size, filesystem, mount)| Partition {
            name: parsed(name),
            size: Bytes(size),
            filesystem,
            mount: mount.map(parsed),
        })
}

fn context() -> impl Strategy<Value = (Provides, Requires)> {
    let provided = (label(), proptest::option::of(label()));
    let required = (label(), any::<bool>(), any::<bool>());
    let data = (label(), proptest::option::of("[ -~\\n\\täß→\"'\\\\]{0,60}"));
    let many = |strategy| proptest::collection::vec(strategy, 0..3);
    (
        many(proptest::option::of(label()).boxed()),
        proptest::collection::vec(provided, 0..3),
        any::<bool>(),
        proptest::collection::vec(required, 0..3),
        proptest::collection::vec(data, 0..3),
    )
        .prop_map(|(identities, provided, identity, required, data)| {
            let provides = Provides {
                identities: identities
                    .into_iter()
                    .map(|interface| ProvidedIdentity {
                        interface: interface.map(parsed),
                    })
                    .collect(),
                roles: provided
                    .into_iter()
                    .map(|(name, interface)| ProvidedRole {
                        name: parsed(name),
                        interface: interface.map(parsed),
                    })
                    .collect(),
                data: vec![parsed("key")],
            };
            let roles = required.into_iter().map(|(name, hostname, pubkey)| RequiredRole {
                name: parsed(name),
                hostname,
                pubkey,
                line: Line(None),
            });
            let data = data.into_iter().map(|(name, content)| RequiredData {
                name: parsed(name),
                content,
                line: Line(None),
            });
            let requires = Requires {
                identity,
                roles: roles.collect(),
                data: data.collect(),
            };
            (provides, requires)
        })
}

fn workspace() -> impl Strategy<Value = Workspace> {
    let image = prop_oneof![
        "[a-z0-9]{1,6}(/[a-z0-9]{1,6})?(@[0-9][a-z0-9.+]{0,4})?".prop_map(parsed::<Image>),
        any::<[u8; 32]>().prop_map(Image::Digest),
    ];
    let needs =
        (1..9u32, 0..9u32, bytes_range(), bytes_range()).prop_map(|(min, more, memory, disk)| Needs {
            cpus: Range { min, max: min + more },
            memory,
            disk,
        });
    let parts = (
        label(),
        any::<u32>(),
        image,
        needs,
        proptest::collection::vec(nic(), 0..3),
        proptest::collection::vec(partition(), 0..3),
        context(),
    );
    parts.prop_map(
        |(name, count, image, resources, nics, partitions, (provides, requires))| Workspace {
            name: parsed(name),
            count,
            image,
            resources,
            nics,
            partitions,
            provides,
            requires,
        },
    )
}

/// Anything that can be written down, sensible or not.
pub(crate) fn description() -> impl Strategy<Value = Description> {
    let target = prop_oneof![
        Just(Target::Propagated),
        Just(Target::Started),
        Just(Target::Paused)
    ];
    let parts = (
        label(),
        target,
        any::<bool>(),
        proptest::option::of(0..u64::from(u32::MAX)),
        proptest::collection::vec(workspace(), 0..4),
    );
    parts.prop_map(|(name, target, all_or_none, lifetime, workspaces)| Description {
        version: Version,
        name: parsed(name),
        target,
        all_or_none,
        lifetime: lifetime.map(Lifetime::secs),
        workspaces,
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_the_same_in_either_form(description in description()) {
        let toml = description.to_toml();
        let read = Document::from_toml(&toml);
        prop_assert_eq!(&read.unwrap_or_else(|faults| panic!("{faults}\n{toml}")).description, &description);
        let json = description.to_json();
        let read = Document::from_json(&json);
        prop_assert_eq!(&read.unwrap_or_else(|faults| panic!("{faults}\n{json}")).description, &description);
    }

    #[test]
    fn a_checked_description_makes_a_context_that_the_broker_accepts(description in description()) {
        if description.check(&BOUNDS).is_ok() {
            prop_assert!(description.context_cluster().check(false).is_ok());
            prop_assert_eq!(description.members().len() as u64, description.count());
        }
    }
}
