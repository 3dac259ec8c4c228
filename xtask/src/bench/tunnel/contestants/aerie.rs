//! Aerie itself: real daemons of one grid, on nodes of the lab.
//!
//! The grid's hub and one member have a wire between them, as the other contestants' hosts have. Through a relay it
//! is two more members behind symmetric NATs, where no hole can be punched, with the hub as their relay; their
//! packets pass the lab's routers instead of the one wire.

use std::net::Ipv4Addr;

use aerie_lab::grid::{AERIE, Grid, Join, Member, READY_LIMIT};
use aerie_lab::wait::wait_until;
use aerie_lab::{Lab, Nat, Place};
use anyhow::{Context, Result, bail};

use super::{Contestant, LINK_LIMIT, Running, Tunnel, stop};
use crate::bench::tunnel::wire::{self, End};

const GROUP: &str = "bench";

/// The grid, with its daemons stopped until a contestant starts them.
pub(in crate::bench::tunnel) struct Network<'a> {
    grid: Grid<'a>,
    near: Member,
    far: Option<[Member; 2]>,
    version: String,
}

impl<'a> Network<'a> {
    /// Founds the grid, with members behind NATs if wished.
    pub(in crate::bench::tunnel) fn found(lab: &'a Lab, relayed: bool, loss: Option<f64>) -> Result<Self> {
        let grid = Grid::found(lab, "bench", None, &[GROUP])?;
        let client = |name: &str, place: Place| Join::new(name, place, GROUP, "client").option("--no-condor");
        let node = lab.node("near", Place::Internet)?;
        let end = |node: &aerie_lab::Node| -> Result<End> {
            Ok(End {
                net: node.net()?,
                addr: node.addr(),
            })
        };
        // The wire is there before the daemon looks at the machine's interfaces.
        wire::join(end(&node)?, end(&grid.hub.node)?, loss)?;
        let near = grid.join_node(node, &client("near", Place::Internet))?;
        let far = if relayed {
            let behind = |name: &str| {
                let site = lab.site(name, Nat::Symmetric)?;
                grid.join(&client(name, (&site).into()))
            };
            Some([behind("left")?, behind("right")?])
        } else {
            None
        };
        grid.wait_ready(std::iter::once(&near).chain(far.iter().flatten()))?;
        let version = grid.hub.node.run("root", &[AERIE, "--version"])?;
        let version = version.trim().trim_start_matches("aerie ").to_owned();
        stop([&grid.hub, &near].into_iter().chain(far.iter().flatten()))?;
        Ok(Self {
            grid,
            near,
            far,
            version,
        })
    }

    /// From a member to the hub.
    pub(super) fn direct(&'a self) -> Result<Aerie<'a>> {
        Ok(Aerie {
            network: self,
            client: &self.near,
            server: &self.grid.hub,
            relay: None,
        })
    }

    /// From a member behind a NAT to one behind another.
    pub(super) fn relayed(&'a self) -> Result<Aerie<'a>> {
        let [client, server] = self.far.as_ref().context("no members were put behind NATs")?;
        Ok(Aerie {
            network: self,
            client,
            server,
            relay: Some(&self.grid.hub),
        })
    }
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
