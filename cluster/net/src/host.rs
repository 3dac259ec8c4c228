//! The driver: makes a host's interfaces and filters what a plan says, and serves the guests.
//!
//! ```text
//!  plan, checked                    what is there, by our names and aliases
//!       └──────────────┬──────────────────────┘
//!                      ▼
//!  1  ports and bridges that are not wanted any more are removed
//!  2  missing TAPs are made: down, on no bridge
//!  3  the filters for the whole plan are loaded, in one transaction
//!  4  bridges are made, with their addresses and settings
//!  5  TAPs are put on their bridges, and only now brought up
//!  6  DHCP and metadata are served where they are not yet
//! ```
//!
//! Every change of the plan walks this line, and so does the first look after a start: there is no other way to change
//! anything, and each step does nothing where there is nothing to do. Whoever is killed between two steps leaves what
//! the next walk goes on from; what is up has its filters, and what has no filters is cut off (`rules`). Where a walk
//! fails and the filters are not there, ports are brought down. The interfaces stay when the driver ends, since guests
//! run on without it: [`HostNetworks::clear`] removes them.
//!
//! A plan takes effect when the line was walked to its end. Where a step fails, the plan stays the old one, and the
//! line is walked once more for it, so that a NIC that could not be attached leaves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use aerie_cluster_node::{Link, Nic};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::dhcp::{self, Scope};
use crate::error::METADATA;
use crate::links::{Change, Found, Kind, Links, Netlink};
use crate::metadata::{self, Guests};
use crate::plan::{Facts, Network, Plan, Port};
use crate::rules::{FAMILIES, ruleset};
use crate::tap::Tap;
use crate::watch::Watch;
use crate::{BadPlan, Error, InstanceId, InterfaceName, NetworkId, PortId, nft};

/// The networks of guests on this host. One instance is driven by one process at a time: whoever drives guests holds
/// a lock already.
///
/// It works in the network namespace of the thread that opens it; all of its runtime's threads have to be there.
pub struct HostNetworks {
    instance: InstanceId,
    netlink: Netlink,
    watch: Watch,
    plan: Plan,
    services: BTreeMap<NetworkId, Services>,
}

impl fmt::Debug for HostNetworks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostNetworks")
            .field("instance", &self.instance)
            .field("networks", &self.plan.networks.len())
            .field("ports", &self.plan.ports.len())
            .finish_non_exhaustive()
    }
}

/// What serves the guests of one bridge.
struct Services {
    /// The bridge that the sockets are bound to: another one of the same name has another number.
    index: u32,
    scope: watch::Sender<Arc<Scope>>,
    guests: watch::Sender<Arc<Guests>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Services {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl HostNetworks {
    /// Opens an instance: makes the host what the plan says, and removes what else there is of the instance. Guests
    /// that run on TAPs of the plan do not notice.
    ///
    /// # Errors
    /// Any [`Error`]: nothing that is up is left without its filters.
    pub async fn open(instance: InstanceId, plan: Plan) -> Result<Self, Error> {
        plan.check(&instance)?;
        let mut host = Self {
            netlink: Netlink::open()?,
            // Before the rules are loaded, so that nothing that happens to them is missed.
            watch: Watch::open().map_err(Error::Netlink)?,
            instance,
            plan,
            services: BTreeMap::new(),
        };
        host.reconcile().await?;
        Ok(host)
    }

    /// What is in effect.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Adds a network. It takes nothing of the host before a NIC is on it.
    ///
    /// # Errors
    /// [`Error::Plan`].
    pub fn add_network(&mut self, id: NetworkId, network: Network) -> Result<(), Error> {
        match self.plan.networks.get(&id) {
            Some(there) if *there == network => return Ok(()),
            Some(_) => return Err(BadPlan::Exists(id).into()),
            None => (),
        }
        let mut plan = self.plan.clone();
        plan.networks.insert(id, network);
        plan.check(&self.instance)?;
        self.plan = plan;
        Ok(())
    }

    /// Removes a network that no NIC is on.
    ///
    /// # Errors
    /// [`Error::UnknownNetwork`], [`BadPlan::Busy`].
    pub fn remove_network(&mut self, id: &NetworkId) -> Result<(), Error> {
        if self.plan.ports_on(id).next().is_some() {
            return Err(BadPlan::Busy(id.clone()).into());
        }
        match self.plan.networks.remove(id) {
            Some(_) => Ok(()),
            None => Err(Error::UnknownNetwork(id.clone())),
        }
    }

    /// Attaches a NIC, or changes one that is attached, and says how a guest is defined with it. The TAP is up and
    /// filtered on return.
    ///
    /// # Errors
    /// Any [`Error`]: the NIC is then as it was before.
    pub async fn attach(&mut self, id: PortId, port: Port) -> Result<Nic, Error> {
        let nic = Nic {
            mac: port.mac(&id),
            link: Link::Tap(id.tap(&self.instance).to_string()),
        };
        let mut plan = self.plan.clone();
        plan.ports.insert(id, port);
        self.change(plan).await?;
        Ok(nic)
    }

    /// Detaches a NIC: its TAP, and with the last one of a network its bridge and services.
    ///
    /// # Errors
    /// Any [`Error`]. [`Error::UnknownPort`] where it is not there.
    pub async fn detach(&mut self, id: &PortId) -> Result<(), Error> {
        let mut plan = self.plan.clone();
        if plan.ports.remove(id).is_none() {
            return Err(Error::UnknownPort(*id));
        }
        self.change(plan).await
    }

    /// Tells a guest something else about itself, from its next question on.
    ///
    /// # Errors
    /// [`Error::UnknownPort`], [`Error::Plan`].
    pub fn tell(&mut self, id: &PortId, facts: Facts) -> Result<(), Error> {
        let mut plan = self.plan.clone();
        let port = plan.ports.get_mut(id).ok_or(Error::UnknownPort(*id))?;
        port.facts = Arc::new(facts);
        plan.check(&self.instance)?;
        self.plan = plan;
        self.publish();
        Ok(())
    }

    /// Completes when somebody else has removed the filters: guests are not held back until
    /// [`HostNetworks::reconcile`] has been called. Whoever owns this waits for it whenever nothing else is to be done.
    /// It may be cancelled at any time.
    ///
    /// # Errors
    /// Any [`Error`] of asking for the filters.
    pub async fn disturbed(&self) -> Result<(), Error> {
        loop {
            self.watch.changed().await.map_err(Error::Netlink)?;
            if self.plan.ports.is_empty() {
                continue;
            }
            if !self.filtered().await? {
                return Ok(());
            }
        }
    }

    async fn filtered(&self) -> Result<bool, Error> {
        let there = nft::tables().await?;
        let table = self.instance.table();
        let is_there = |family: &str| there.contains(&(family.to_owned(), table.clone()));
        Ok(FAMILIES.into_iter().all(is_there))
    }

    /// Removes everything that the instance has on this host.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn clear(&mut self) -> Result<(), Error> {
        self.plan = Plan::default();
        self.reconcile().await
    }

    async fn change(&mut self, plan: Plan) -> Result<(), Error> {
        plan.check(&self.instance)?;
        let before = std::mem::replace(&mut self.plan, plan);
        let Err(error) = self.reconcile().await else {
            return Ok(());
        };
        self.plan = before;
        if let Err(again) = self.reconcile().await {
            tracing::warn!(error = %again, "the networks are not what they were before a change that failed");
        }
        Err(error)
    }

    /// Makes the host what the plan says, whatever happened to it meanwhile.
    ///
    /// # Errors
    /// Any [`Error`]. It may be called again. Guests whose filters are not there are cut off until it succeeds.
    pub async fn reconcile(&mut self) -> Result<(), Error> {
        let result = self.walk().await;
        if result.is_err() {
            self.cut_off().await;
        }
        result
    }

    async fn walk(&mut self) -> Result<(), Error> {
        let links = self.netlink.links().await?;
        self.refuse_foreign(&links)?;
        self.refuse_routed(&links).await?;
        self.remove_unwanted(&links).await?;
        let mut taps = Vec::new();
        for (id, port) in &self.plan.ports {
            taps.push((id, port, self.tap(id, port, &links).await?));
        }
        nft::load(&ruleset(&self.plan, &self.instance)).await?;
        let mut bridges = BTreeMap::new();
        for (id, network) in self.plan.used() {
            bridges.insert(id, self.bridge(id, network, &links).await?);
        }
        for (id, port, found) in taps {
            let bridge = bridges.get(&port.network).copied().unwrap_or_default();
            let mtu = self
                .plan
                .networks
                .get(&port.network)
                .map_or(0, |network| network.mtu);
            self.plug(&id.tap(&self.instance), &found, bridge, mtu).await?;
        }
        let bridges = bridges
            .into_iter()
            .map(|(id, index)| (id.clone(), index))
            .collect();
        self.serve(&bridges)?;
        self.publish();
        Ok(())
    }

    /// Nobody else's interface is touched, even where it has our name.
    fn refuse_foreign(&self, links: &Links) -> Result<(), Error> {
        let taps = self
            .plan
            .ports
            .keys()
            .map(|id| (id.tap(&self.instance), Kind::Tap));
        let bridges = self
            .plan
            .used()
            .map(|(id, _)| (id.bridge(&self.instance), Kind::Bridge));
        for (interface, kind) in taps.chain(bridges) {
            let Some(found) = links.get(interface.as_str()) else {
                continue;
            };
            if found.kind != kind || !self.is_ours(interface.as_str(), found) {
                let found = format!("{:?}, alias {:?}", found.kind, found.alias);
                return Err(Error::Foreign { interface, found });
            }
        }
        Ok(())
    }

    /// Whether an interface is the instance's: by its name, and by its alias, which one that was being made when its
    /// maker was killed has not yet.
    fn is_ours(&self, name: &str, found: &Found) -> bool {
        let prefix = match found.kind {
            Kind::Tap => self.instance.tap_prefix(),
            Kind::Bridge => self.instance.bridge_prefix(),
            Kind::Other => return false,
        };
        let mark = self.instance.mark();
        let marked = found
            .alias
            .as_ref()
            .is_none_or(|alias| alias.is_empty() || alias.starts_with(&mark));
        name.starts_with(&prefix) && marked
    }

    /// A subnet that the host reaches elsewhere would be lost to it.
    async fn refuse_routed(&self, links: &Links) -> Result<(), Error> {
        let ours = |index: u32| {
            links
                .iter()
                .find(|(_, found)| found.index == index)
                .is_some_and(|(name, found)| self.is_ours(name, found))
        };
        let routes = self.netlink.routes().await?;
        for (id, network) in self.plan.used() {
            // What came later is the host's own affair, and no reason to leave guests as they are.
            let bridge = links.get(id.bridge(&self.instance).as_str());
            if bridge.is_some_and(|bridge| routes.contains(&(network.subnet, bridge.index))) {
                continue;
            }
            let mut others = routes
                .iter()
                .filter(|(route, index)| route.prefix_len() > 0 && !ours(*index));
            // What contains the subnet is less specific, and stays as it is for the rest.
            let taken = others.find(|(route, _)| network.subnet.contains(route) || *route == network.subnet);
            if let Some((route, index)) = taken {
                let interface = links.iter().find(|(_, found)| found.index == *index);
                return Err(Error::Routed {
                    network: id.clone(),
                    subnet: network.subnet,
                    route: *route,
                    interface: interface.map_or("nowhere", |(name, _)| name).to_owned(),
                });
            }
        }
        Ok(())
    }

    async fn remove_unwanted(&mut self, links: &Links) -> Result<(), Error> {
        let wanted: BTreeSet<_> = self
            .plan
            .ports
            .keys()
            .map(|id| id.tap(&self.instance))
            .chain(self.plan.used().map(|(id, _)| id.bridge(&self.instance)))
            .collect();
        let used: BTreeSet<_> = self.plan.used().map(|(id, _)| id.clone()).collect();
        // Before their bridges go.
        self.services.retain(|id, _| used.contains(id));
        // Ports before bridges, so that no port is ever up without one.
        for kind in [Kind::Tap, Kind::Bridge] {
            for (name, found) in links {
                let Ok(interface) = InterfaceName::new(name) else {
                    continue;
                };
                if found.kind == kind && self.is_ours(name, found) && !wanted.contains(&interface) {
                    self.netlink.remove(&interface, found.index).await?;
                }
            }
        }
        Ok(())
    }

    /// Brings all ports down where there are no filters, or nobody knows: better no network than one without.
    async fn cut_off(&self) {
        if self.filtered().await.unwrap_or(false) {
            return;
        }
        let links = match self.netlink.links().await {
            Ok(links) => links,
            Err(error) => return tracing::error!(%error, "guests without filters are not cut off"),
        };
        for (name, found) in &links {
            let ours = found.kind == Kind::Tap && found.up && self.is_ours(name, found);
            let Some(name) = InterfaceName::new(name).ok().filter(|_| ours) else {
                continue;
            };
            tracing::error!(interface = %name, "a guest is cut off, since its filters cannot be loaded");
            if let Err(error) = self
                .netlink
                .change("bring down", &name, found.index, Change::Down)
                .await
            {
                tracing::error!(%error, "a guest is not cut off");
            }
        }
    }

    /// Makes the NIC's TAP where there is none.
    async fn tap(&self, id: &PortId, port: &Port, links: &Links) -> Result<Found, Error> {
        let name = id.tap(&self.instance);
        let alias = id.alias(&self.instance);
        let marked = |found: &&Found| found.alias.as_deref() == Some(&alias);
        if let Some(found) = links.get(name.as_str()).filter(marked) {
            // On another network it is not heard any more while its filters are those of this one.
            let bridge = links.get(port.network.bridge(&self.instance).as_str());
            if found.up && found.controller != bridge.map(|bridge| bridge.index) {
                self.netlink
                    .change("bring down", &name, found.index, Change::Down)
                    .await?;
            }
            return Ok(found.clone());
        }
        let tap = Tap::open(&name)?;
        let made = self.netlink.links().await?;
        let Some(found) = made.get(name.as_str()) else {
            return Err(Error::Link {
                what: "find",
                interface: name,
                source: std::io::Error::from_raw_os_error(libc::ENODEV),
            });
        };
        // The host itself has no part in what its ports carry.
        quiet(&name);
        let mark = Change::Alias(&alias);
        self.netlink.change("mark", &name, found.index, mark).await?;
        tap.keep(port.owner)?;
        Ok(found.clone())
    }

    /// Makes the network's bridge where there is none, and makes it what it should be. Its number.
    async fn bridge(&self, id: &NetworkId, network: &Network, links: &Links) -> Result<u32, Error> {
        let name = id.bridge(&self.instance);
        let mac = id.bridge_mac(&self.instance);
        let alias = id.alias(&self.instance);
        let found = match links.get(name.as_str()) {
            Some(found) => found.clone(),
            None => {
                self.netlink.add_bridge(&name, mac, network.mtu).await?;
                let made = self.netlink.links().await?;
                made.get(name.as_str()).cloned().ok_or_else(|| Error::Link {
                    what: "find",
                    interface: name.clone(),
                    source: std::io::Error::from_raw_os_error(libc::ENODEV),
                })?
            }
        };
        let index = found.index;
        let change = |what, change| self.netlink.change(what, &name, index, change);
        if found.alias.as_deref() != Some(&alias) {
            change("mark", Change::Alias(&alias)).await?;
        }
        if found.mac != Some(mac) {
            change("give its address to", Change::Mac(mac)).await?;
        }
        if found.mtu != u32::from(network.mtu) {
            change("set the MTU of", Change::Mtu(network.mtu)).await?;
        }
        quiet(&name);
        forward(&name, !network.through.is_empty())?;
        if !found.up {
            change("bring up", Change::Up).await?;
        }
        let wanted: BTreeSet<(Ipv4Addr, u8)> = network
            .host
            .map(|host| (host, network.subnet.prefix_len()))
            .into_iter()
            .chain([(METADATA, 32)])
            .collect();
        let there = self.netlink.addresses(&name, index).await?;
        for (address, _) in there.iter().filter(|there| !wanted.contains(there)) {
            self.netlink.remove_address(&name, index, *address).await?;
        }
        for address in wanted.iter().filter(|wanted| !there.contains(wanted)) {
            self.netlink.add_address(&name, index, *address).await?;
        }
        // Those of a subnet that it had before a restart.
        for (route, to) in self.netlink.routes().await? {
            if to == index && route != network.subnet {
                self.netlink.remove_route(&name, index, route).await?;
            }
        }
        if network.host.is_none() {
            self.netlink.route(&name, index, network.subnet, METADATA).await?;
        }
        Ok(index)
    }

    async fn plug(&self, name: &InterfaceName, found: &Found, bridge: u32, mtu: u16) -> Result<(), Error> {
        let change = |what, change| self.netlink.change(what, name, found.index, change);
        if found.mtu != u32::from(mtu) {
            change("set the MTU of", Change::Mtu(mtu)).await?;
        }
        if found.controller != Some(bridge) {
            if found.up {
                change("bring down", Change::Down).await?;
            }
            change("put on its bridge", Change::Controller(bridge)).await?;
        } else if found.up {
            return Ok(());
        }
        change("bring up", Change::Up).await
    }

    /// Serves what is not served yet.
    fn serve(&mut self, bridges: &BTreeMap<NetworkId, u32>) -> Result<(), Error> {
        for (id, index) in bridges {
            let alive = |services: &Services| {
                services.index == *index && !services.tasks.iter().any(JoinHandle::is_finished)
            };
            if self.services.get(id).is_some_and(alive) {
                continue;
            }
            self.services.remove(id);
            let Some(scope) = Scope::new(&self.plan, id, &self.instance) else {
                continue;
            };
            let name = id.bridge(&self.instance);
            let (scope, scopes) = watch::channel(Arc::new(scope));
            let (guests, everybody) = watch::channel(Arc::new(metadata::guests(&self.plan, id)));
            let dhcp = dhcp::serve(&name, *index, scopes)?;
            let metadata = metadata::serve(&name, everybody).inspect_err(|_| dhcp.abort())?;
            let services = Services {
                index: *index,
                scope,
                guests,
                tasks: [dhcp, metadata],
            };
            self.services.insert(id.clone(), services);
        }
        Ok(())
    }

    /// Hands the plan to those who serve.
    fn publish(&self) {
        for (id, services) in &self.services {
            if let Some(scope) = Scope::new(&self.plan, id, &self.instance) {
                services.scope.send_replace(Arc::new(scope));
            }
            let guests = metadata::guests(&self.plan, id);
            services.guests.send_replace(Arc::new(guests));
        }
    }
}

/// Keeps the host's own protocols off an interface: no IPv6, and ARP for the addresses on it alone. The filters drop
/// whatever comes of what cannot be set.
fn quiet(name: &InterfaceName) {
    for (setting, value) in [
        ("ipv6/conf/{}/disable_ipv6", "1"),
        ("ipv4/conf/{}/arp_ignore", "1"),
        ("ipv4/conf/{}/accept_redirects", "0"),
        ("ipv4/conf/{}/send_redirects", "0"),
        ("ipv4/conf/{}/proxy_arp", "0"),
    ] {
        if let Err(Error::Setting { path, source, .. }) = set(name, setting, value) {
            tracing::debug!(error = %source, path, "not set");
        }
    }
}

/// Whether the host passes on what comes from an interface.
fn forward(name: &InterfaceName, on: bool) -> Result<(), Error> {
    let value = if on { "1" } else { "0" };
    match set(name, "ipv4/conf/{}/forwarding", value) {
        // The filters pass nothing on.
        Err(error) if !on => {
            tracing::debug!(%error, "not set");
            Ok(())
        }
        result => result,
    }
}

fn set(name: &InterfaceName, setting: &str, value: &'static str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{}", setting.replace("{}", name.as_str()));
    if std::fs::read_to_string(Path::new(&path)).is_ok_and(|there| there.trim() == value) {
        return Ok(());
    }
    std::fs::write(Path::new(&path), value).map_err(|source| Error::Setting { path, value, source })
}
