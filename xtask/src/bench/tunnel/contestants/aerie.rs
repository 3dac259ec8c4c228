//! Aerie itself: real daemons of one grid, on nodes of the lab.
//!
//! The grid's hub and its one member have a wire between them, as the other contestants' hosts have. Through a relay
//! it is another grid, in a lab of its own: two members behind symmetric NATs, where no hole can be punched, with the
//! hub as their relay. Their packets pass the lab's routers instead of the one wire.

use std::net::Ipv4Addr;

use aerie_lab::grid::{AERIE, Grid, Join, Member, READY_LIMIT};
use aerie_lab::wait::wait_until;
use aerie_lab::{Lab, Nat, Node, Place};
use anyhow::{Context, Result, bail};

use super::{Contestant, LINK_LIMIT, Running, Tunnel, stop};
use crate::bench::tunnel::wire::{self, End};

const GROUP: &str = "bench";

/// A grid whose daemons are stopped until its contestant starts them. Every one of its members takes part: the
/// register of addresses needs a majority of them.
pub(in crate::bench::tunnel) struct Network<'a> {
    grid: Grid<'a>,
    /// Those beside the hub.
    members: Vec<Member>,
    version: String,
}

impl<'a> Network<'a> {
    /// The hub and a member, with a wire between them, and what that member's configuration has below `[vpn]`.
    pub(in crate::bench::tunnel) fn direct(lab: &'a Lab, loss: Option<f64>, vpn: &str) -> Result<Self> {
        let grid = Grid::found(lab, "bench", None, &[GROUP])?;
        let node = lab.node("near", Place::Internet)?;
        let end = |node: &Node| -> Result<End> {
            Ok(End {
                net: node.net()?,
                addr: node.addr(),
            })
        };
        // The wire is there before the daemon looks at the machine's interfaces.
        wire::join(end(&node)?, end(&grid.hub.node)?, loss)?;
        let near = grid.join_node(node, &client("near", Place::Internet))?;
        let network = Self::stopped(grid, vec![near])?;
        for member in network.members.iter().filter(|_| !vpn.is_empty()) {
            // The blob goes before what the daemon has kept of its last start.
            let script =
                format!("sed -i '/^\\[vpn\\]/a {vpn}' /etc/aerie/blob && grep -qF '{vpn}' /etc/aerie/blob");
            member.node.run("root", &["sh", "-c", &script])?;
        }
        Ok(network)
    }

    /// The hub and two members, each behind a NAT.
    pub(in crate::bench::tunnel) fn relayed(lab: &'a Lab) -> Result<Self> {
        let grid = Grid::found(lab, "bench", None, &[GROUP])?;
        let behind = |name: &str| {
            let site = lab.site(name, Nat::Symmetric)?;
            grid.join(&client(name, (&site).into()))
        };
        let members = vec![behind("left")?, behind("right")?];
        Self::stopped(grid, members)
    }

    /// Waits until the grid is complete, then stops its daemons.
    fn stopped(grid: Grid<'a>, members: Vec<Member>) -> Result<Self> {
        grid.wait_ready(&members)?;
        let version = grid.hub.node.run("root", &[AERIE, "--version"])?;
        let version = version.trim().trim_start_matches("aerie ").to_owned();
        stop(std::iter::once(&grid.hub).chain(&members))?;
        Ok(Self {
            grid,
            members,
            version,
        })
    }

    pub(super) fn contestant(&'a self) -> Result<Aerie<'a>> {
        let hub = &self.grid.hub;
        match self.members.as_slice() {
            [client] => Ok(Aerie {
                network: self,
                client,
                server: hub,
                relay: None,
            }),
            [client, server] => Ok(Aerie {
                network: self,
                client,
                server,
                relay: Some(hub),
            }),
            others => bail!("a grid of {} members is none of those measured", others.len()),
        }
    }
}

fn client(name: &str, place: Place) -> Join {
    Join::new(name, place, GROUP, "client").option("--no-condor")
}

/// Two members between which is measured.
pub(super) struct Aerie<'a> {
    network: &'a Network<'a>,
    client: &'a Member,
    server: &'a Member,
    relay: Option<&'a Member>,
}

impl Aerie<'_> {
    fn members(&self) -> impl Iterator<Item = &Member> {
        // Who others meet at comes first.
        self.relay.into_iter().chain([self.server, self.client])
    }

    fn tunnel(&self) -> Result<Tunnel<'_>> {
        let grid = &self.network.grid;
        for member in self.members() {
            member.start()?;
        }
        // The hub runs no pool: it has all that it needs once it holds its address.
        for member in self.members() {
            grid.wait_for(member, READY_LIMIT, "its tunnel", |status| {
                let done = |name| status.stage(name).is_some_and(|stage| stage.state == "done");
                status.addr.is_some() && done("tunnel")
            })?;
        }
        let addr: Ipv4Addr = self.server.addr()?.parse()?;
        let cipher = self.settle(&addr.to_string())?;
        Ok(Tunnel {
            client: self.client.node.net()?,
            server: self.server.node.net()?,
            addr,
            cipher,
            running: Running::Members(self.members().collect()),
        })
    }

    /// Waits until packets take the path that shall be measured; returns the session's cipher.
    fn settle(&self, addr: &str) -> Result<String> {
        let wanted: &[&str] = match self.relay {
            Some(_) => &["relayed"],
            None => &["direct", "lan"],
        };
        let what = format!("a path that is {}", wanted.join(" or "));
        wait_until(LINK_LIMIT, &what, || {
            self.client.ping(addr)?;
            let name = self.server.node.name();
            let peers = self.client.peers()?;
            let peer = peers.into_iter().find(|peer| peer.node == name);
            let peer = peer.with_context(|| format!("{name} is not known yet"))?;
            if !wanted.contains(&peer.path.as_str()) {
                bail!("the path is {}: {}", peer.path, peer.why);
            }
            Ok(Some(peer.cipher))
        })
    }
}

impl Contestant for Aerie<'_> {
    fn version(&self) -> &str {
        &self.network.version
    }

    fn start(&self) -> Result<Tunnel<'_>> {
        self.tunnel().inspect_err(|_| {
            // Its own error says more than one of the stopping.
            let _ = stop(self.members());
        })
    }
}
