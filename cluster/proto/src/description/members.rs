//! What a description means to those who act on it: the members to place, and the document of their context.

use std::collections::BTreeSet;

use aerie_context_proto as context;
use aerie_context_proto::{Cluster, member_name};

use super::{Description, Network, Workspace};
use crate::amount::{Bytes, Range};
use crate::placement::{Connections, Member};

impl Description {
    /// How many members there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.workspaces.iter().map(|set| u64::from(set.count)).sum()
    }

    /// The members to be placed, in the order of the document. Of a checked description these are no more than
    /// [`MAX_MEMBERS`](crate::limits::MAX_MEMBERS); of any other the caller asks [`Description::count`] first.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let of = |set: &Workspace| {
            let member = set.member();
            let (name, count) = (set.name.clone(), set.count);
            (1..=count).map(move |index| Member {
                name: member_name(&name, index, count),
                ..member.clone()
            })
        };
        self.workspaces.iter().flat_map(of).collect()
    }

    /// The document from which the context broker makes this cluster's context.
    #[must_use]
    pub fn context_cluster(&self) -> Cluster {
        let workspaces = self.workspaces.iter().map(|set| context::Workspace {
            active: false,
            name: set.name.clone(),
            image: set.image.to_string(),
            quantity: set.count,
            nics: set
                .nics
                .iter()
                .map(|nic| context::Nic {
                    network: match &nic.network {
                        Network::Overlay => "overlay".to_owned(),
                        Network::Private { network } => network.to_string(),
                        Network::Bridge { bridge } => bridge.to_string(),
                    },
                    interface: nic.interface.clone(),
                    wantlogin: nic.login,
                })
                .collect(),
            provides: set.provides.clone(),
            requires: set.requires.clone(),
            deploys: Vec::new(),
            line: context::Line(None),
        });
        Cluster {
            workspaces: workspaces.collect(),
        }
    }
}

impl Workspace {
    /// A member of the set, under the set's own name.
    fn member(&self) -> Member {
        let blank = self
            .partitions
            .iter()
            .fold(0_u64, |sum, partition| sum.saturating_add(partition.size.0));
        let with_blank = |disk: Bytes| Bytes(disk.0.saturating_add(blank));
        let mut connections = Connections::default();
        for nic in &self.nics {
            match &nic.network {
                Network::Overlay => connections.overlay = true,
                Network::Private { .. } => connections.private = true,
                Network::Bridge { bridge } => {
                    connections.bridges.insert(bridge.clone());
                }
            }
        }
        Member {
            name: member_name(&self.name, 1, 1),
            image: self.image.clone(),
            cpus: self.resources.cpus,
            memory: self.resources.memory,
            disk: Range {
                min: with_blank(self.resources.disk.min),
                max: with_blank(self.resources.disk.max),
            },
            connections,
        }
    }

    /// The private networks that a member is on.
    pub(super) fn private_networks(&self) -> BTreeSet<&context::SetName> {
        let names = self.nics.iter().filter_map(|nic| match &nic.network {
            Network::Private { network } => Some(network),
            Network::Overlay | Network::Bridge { .. } => None,
        });
        names.collect()
    }
}
