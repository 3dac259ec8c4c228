//! Interfaces, addresses and routes, by netlink.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use aerie_cluster_node::Mac;
use futures::TryStreamExt as _;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};
use tokio::task::AbortHandle;

use crate::{Error, InterfaceName};

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tap,
    Bridge,
    Other,
}

/// An interface that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) kind: Kind,
    pub(crate) alias: Option<String>,
    /// The bridge or the like that it is a port of, by index.
    pub(crate) controller: Option<u32>,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<Mac>,
}

/// All interfaces of the namespace by name.
pub(crate) type Links = BTreeMap<String, Found>;

/// A conversation with the kernel.
pub(crate) struct Netlink {
    handle: Handle,
    connection: AbortHandle,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Opens it, in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Netlink)?;
        let connection = tokio::spawn(connection).abort_handle();
        Ok(Self { handle, connection })
    }

    pub(crate) async fn links(&self) -> Result<Links, Error> {
        let found = self.handle.link().get().execute();
        let list: Vec<LinkMessage> = found
            .try_collect()
            .await
            .map_err(|error| Error::Netlink(reason(error)))?;
        Ok(list.iter().filter_map(found_link).collect())
    }

    /// Makes a bridge, down: without spanning tree, and without multicast snooping, by whose queries a guest could draw
    /// its neighbours' traffic to itself. It learns nothing from frames that it does not pass on, which no filter sees
    /// before: a guest could take a neighbour's address there, or fill the host's memory with new ones.
    pub(crate) async fn add_bridge(&self, name: &InterfaceName, mac: Mac, mtu: u16) -> Result<(), Error> {
        let message = LinkBridge::new(name.as_str())
            .down()
            .address(mac.0.to_vec())
            .mtu(u32::from(mtu))
            .stp_state(BridgeStpState::Disabled)
            .forward_delay(0)
            .mcast_snooping(false)
            .no_linklocal_learn(true)
            .build();
        let request = self.handle.link().add(message);
        request.execute().await.map_err(link("make the bridge", name))
    }

    /// Changes an interface.
    pub(crate) async fn change(
        &self,
        what: &'static str,
        name: &InterfaceName,
        index: u32,
        change: Change<'_>,
    ) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index);
        let message = match change {
            Change::Alias(alias) => message.append_extra_attribute(LinkAttribute::IfAlias(alias.to_owned())),
            Change::Mac(mac) => message.address(mac.0.to_vec()),
            Change::Mtu(mtu) => message.mtu(u32::from(mtu)),
            Change::Controller(controller) => message.controller(controller),
            Change::Up => message.up(),
            Change::Down => message.down(),
        };
        let request = self.handle.link().change(message.build());
        request.execute().await.map_err(link(what, name))
    }

    /// Removes an interface. One that is gone is as good.
    pub(crate) async fn remove(&self, name: &InterfaceName, index: u32) -> Result<(), Error> {
        match self.handle.link().del(index).execute().await.map_err(reason) {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(Error::Link {
                what: "remove",
                interface: name.clone(),
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// The IPv4 addresses of an interface.
    pub(crate) async fn addresses(
        &self,
        name: &InterfaceName,
        index: u32,
    ) -> Result<Vec<(Ipv4Addr, u8)>, Error> {
        let found = self.handle.address().get().execute();
        let all: Vec<_> = found
            .try_collect()
            .await
            .map_err(link("read the addresses of", name))?;
        let own = all.iter().filter(|message| message.header.index == index);
        let addresses = own.filter_map(|message| {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(addr)) => Some(*addr),
                _ => None,
            });
            Some((local?, message.header.prefix_len))
        });
        Ok(addresses.collect())
    }

    pub(crate) async fn add_address(
        &self,
        name: &InterfaceName,
        index: u32,
        (address, prefix): (Ipv4Addr, u8),
    ) -> Result<(), Error> {
        let request = self.handle.address().add(index, address.into(), prefix).replace();
        request.execute().await.map_err(link("give an address to", name))
    }

    pub(crate) async fn remove_address(
        &self,
        name: &InterfaceName,
        index: u32,
        address: Ipv4Addr,
    ) -> Result<(), Error> {
        let found = self.handle.address().get().execute();
        let failed = || link("take an address from", name);
        let all: Vec<_> = found.try_collect().await.map_err(failed())?;
        let wanted = AddressAttribute::Local(address.into());
        let own = all
            .into_iter()
            .filter(|message| message.header.index == index && message.attributes.contains(&wanted));
        for message in own {
            self.handle
                .address()
                .del(message)
                .execute()
                .await
                .map_err(failed())?;
        }
        Ok(())
    }

    /// Routes a subnet to an interface on which the host has no address in it.
    pub(crate) async fn route(
        &self,
        name: &InterfaceName,
        index: u32,
        subnet: Ipv4Net,
        source: Ipv4Addr,
    ) -> Result<(), Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(subnet.network(), subnet.prefix_len())
            .output_interface(index)
            .scope(RouteScope::Link)
            .pref_source(source)
            .build();
        let request = self.handle.route().add(message).replace();
        request.execute().await.map_err(link("route to", name))
    }

    /// Removes a route to an interface.
    pub(crate) async fn remove_route(
        &self,
        name: &InterfaceName,
        index: u32,
        route: Ipv4Net,
    ) -> Result<(), Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(route.network(), route.prefix_len())
            .output_interface(index)
            // Whatever its scope and whoever made it.
            .scope(RouteScope::NoWhere)
            .protocol(RouteProtocol::Unspec)
            .build();
        let request = self.handle.route().del(message);
        request.execute().await.map_err(link("remove a route to", name))
    }

    /// The IPv4 routes of the main table: destinations, and the interfaces that they lead to by index.
    pub(crate) async fn routes(&self) -> Result<Vec<(Ipv4Net, u32)>, Error> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let found = self.handle.route().get(message).execute();
        let all: Vec<_> = found
            .try_collect()
            .await
            .map_err(|error| Error::Netlink(reason(error)))?;
        let main = all
            .iter()
            .filter(|message| message.header.address_family == AddressFamily::Inet)
            .filter(|message| message.header.table == RouteHeader::RT_TABLE_MAIN);
        let routes = main.filter_map(|message| {
            let mut to = None;
            let mut index = None;
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(addr)) => to = Some(*addr),
                    RouteAttribute::Oif(oif) => index = Some(*oif),
                    _ => (),
                }
            }
            let net = Ipv4Net::new(to?, message.header.destination_prefix_length).ok()?;
            Some((net, index.unwrap_or(0)))
        });
        Ok(routes.collect())
    }
}

/// One change of an interface.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    Alias(&'a str),
    Mac(Mac),
    Mtu(u16),
    Controller(u32),
    Up,
    Down,
}

fn found_link(message: &LinkMessage) -> Option<(String, Found)> {
    let mut name = None;
    let mut found = Found {
        index: message.header.index,
        kind: Kind::Other,
        alias: None,
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::IfAlias(text) => found.alias = Some(text.clone()),
            LinkAttribute::Controller(index) => found.controller = Some(*index),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(bytes) => found.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => found.kind = Kind::Bridge,
                        LinkInfo::Kind(InfoKind::Tun) => found.kind = Kind::Tap,
                        _ => (),
                    }
                }
            }
            _ => (),
        }
    }
    Some((name?, found))
}

fn link(what: &'static str, name: &InterfaceName) -> impl FnOnce(rtnetlink::Error) -> Error {
    let interface = name.clone();
    move |error| Error::Link {
        what,
        interface,
        source: reason(error),
    }
}

/// The system's own reason, where it gave one.
fn reason(error: rtnetlink::Error) -> std::io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => std::io::Error::other(other),
    }
}
