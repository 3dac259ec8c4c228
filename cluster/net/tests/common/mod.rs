//! A host in a network namespace of its own, with guests that are this test's: whatever they send is written to their
//! TAP, and whatever they hear is read from it.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod frames;
pub(crate) mod guest;
pub(crate) mod lies;
pub(crate) mod namespace;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use aerie_cluster_net::{Facts, HostNetworks, InstanceId, Network, NetworkId, Plan, Port, PortId, UserData};
use aerie_cluster_node::{GuestId, Mac};
use uuid::Uuid;

/// Each test's host has a namespace of its own, so that one name does for all.
pub(crate) fn instance() -> InstanceId {
    InstanceId::new("lab").unwrap()
}

pub(crate) fn net(name: &str) -> NetworkId {
    NetworkId::new(name).unwrap()
}

pub(crate) fn port_id(n: u128) -> PortId {
    PortId {
        guest: GuestId(Uuid::from_u128(n)),
        index: 0,
    }
}

pub(crate) fn mac(n: u128) -> Mac {
    port_id(n).mac()
}

pub(crate) fn tap(n: u128) -> String {
    port_id(n).tap(&instance()).to_string()
}

pub(crate) fn bridge(network: &str) -> String {
    net(network).bridge(&instance()).to_string()
}

pub(crate) fn port(network: &str, address: Ipv4Addr) -> Port {
    Port {
        network: net(network),
        mac: None,
        address,
        ipv6: BTreeSet::new(),
        owner: None,
        facts: Arc::new(Facts {
            hostname: format!("node-{}", address.octets()[3]).parse().unwrap(),
            public_keys: vec!["ssh-ed25519 AAAA me".to_owned()],
            user_data: Some(UserData::new(format!("for {address}").into_bytes())),
            allow_v1: false,
        }),
    }
}

/// Guests 1 and 2 on a network that is cut off; guest 3 on one that leads through `out0`.
pub(crate) fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.networks
        .insert(net("one"), Network::isolated("10.1.0.0/24".parse().unwrap()));
    let mut two = Network::isolated("10.2.0.0/24".parse().unwrap());
    two.host = Some(Ipv4Addr::new(10, 2, 0, 1));
    two.through
        .insert(aerie_cluster_net::InterfaceName::new("out0").unwrap());
    plan.networks.insert(net("two"), two);
    for (n, network, address) in [
        (1, "one", [10, 1, 0, 2]),
        (2, "one", [10, 1, 0, 3]),
        (3, "two", [10, 2, 0, 2]),
    ] {
        plan.ports.insert(port_id(n), port(network, address.into()));
    }
    plan
}

/// Runs a driver on a thread in the namespace, as long as the work takes.
pub(crate) fn drive<T: Send>(
    host: &namespace::Namespace,
    plan: Plan,
    work: impl AsyncFnOnce(&mut HostNetworks) -> T + Send,
) -> T {
    host.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut networks = HostNetworks::open(instance(), plan).await.unwrap();
            work(&mut networks).await
        })
    })
}
