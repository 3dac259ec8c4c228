//! Intents for the tests.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its part of this module"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use aerie_condor::{Credentials, Intent, Layout, Manager, Pair};
use aerie_types::GridId;

/// A node `n1` at 10.77.0.9 with these roles, in a grid with the managers m1 (chem) and m2 (bio).
pub fn intent(roles: &str) -> Intent {
    Intent {
        grid: "lab".parse().unwrap(),
        grid_id: GridId([0xab; 16]),
        node: "n1".parse().unwrap(),
        addr: Ipv4Addr::new(10, 77, 0, 9).into(),
        range: "10.77.0.0/24".parse().unwrap(),
        roles: roles.parse().unwrap(),
        group: Some("chem".parse().unwrap()),
        user: Some("alice".parse().unwrap()),
        managers: vec![manager("m2", 2, "bio"), manager("m1", 1, "chem")],
        primary: Some("m1".parse().unwrap()),
        account_groups: BTreeMap::from([("bob".parse().unwrap(), "bio".parse().unwrap())]),
        version: "0.1.0".parse().unwrap(),
        programs: vec![
            "python3.13".parse().unwrap(),
            "gcc".parse().unwrap(),
            "gcc".parse().unwrap(),
        ],
        credentials: Credentials {
            ca: "/var/lib/aerie/abababab/ca.pem".into(),
            node: Pair {
                certificate: "/var/lib/aerie/abababab/condor.pem".into(),
                key: "/var/lib/aerie/abababab/condor.key".into(),
            },
            user: Some(Pair {
                certificate: "/var/lib/aerie/abababab/user.pem".into(),
                key: "/var/lib/aerie/abababab/user.key".into(),
            }),
        },
        layout: Layout::default(),
    }
}

pub fn manager(node: &str, last: u8, group: &str) -> Manager {
    Manager {
        node: node.parse().unwrap(),
        addr: Ipv4Addr::new(10, 77, 0, last).into(),
        group: Some(group.parse().unwrap()),
    }
}
