//! The wires of a lab: an internet, sites behind routers, and the ports by which hosts hang on them.
//!
//! The internet is one router to which each host and each site has a wire of its own, so that nothing on it shares
//! a segment (multicast does not pass from one to the other). A site is a router, which translates addresses as its
//! [`Nat`] says, and a bridged LAN behind it. Everything is in network namespaces of its own: no interface, address
//! or rule is ever made in the host's, and no route leads there.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::line::{End, Line, Quality};
use crate::nat::Nat;
use crate::netns::NetNs;
use crate::process::{Holder, Process};

/// The internet's own address: every host's and router's gateway.
pub const CORE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The most hosts and sites on the internet, and the most hosts of a site: their last octet counts from 2.
const MAX_HOSTS: u16 = 253;

/// The most sites: the third octet of their LANs counts from 10.
const MAX_SITES: u16 = 200;

/// The most sites with public addresses: each has 16 of the 256 of 203.0.113.0/24.
const MAX_OPEN_SITES: u16 = 16;

/// A namespace with nothing but a network.
#[derive(Debug)]
pub(crate) struct Bare {
    holder: Holder,
}

impl Bare {
    pub(crate) fn start(log: &Path, keep: bool) -> Result<Self> {
        let mut command = Command::new("unshare");
        // Anonymous to the host: a namespace lives only in its holder.
        command.args([
            "--net",
            "sh",
            "-c",
            &format!(
                "echo pid $$; ip link set lo up; echo ready; exec ${}",
                Holder::BECOME
            ),
        ]);
        let holder = Holder::start(command, log, keep)?;
        Ok(Self { holder })
    }

    pub(crate) fn net(&self) -> NetNs {
        NetNs::of(self.holder.process.pid)
    }

    pub(crate) fn process(&self) -> Process {
        self.holder.process
    }

    pub(crate) fn kill(&self) {
        self.holder.kill();
    }
}

/// The switch's end of a wire.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    net: NetNs,
    name: String,
    /// The lines of `ip` that make the port work once it is up.
    on: Vec<String>,
}

impl Port {
    /// The interface in the router's namespace.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Pulls the plug: both ends lose their carrier.
    pub(crate) fn cut(&self) -> Result<()> {
        self.net.ip([format!("link set {} down", self.name)])
    }

    /// Plugs it in again.
    pub(crate) fn restore(&self) -> Result<()> {
        let up = format!("link set {} up", self.name);
        self.net.ip(std::iter::once(&up).chain(&self.on))
    }

    /// Removes the wire, if its other end has not taken it along already.
    pub(crate) fn remove(&self) {
        let _ = self.net.ip([format!("link del {}", self.name)]);
    }
}

impl Lease {
    /// Gives an interface its address and brings it up.
    fn configure(self, host: NetNs, interface: &str) -> Result<()> {
        let Self { addr, prefix, .. } = self;
        host.ip([format!("addr add {addr}/{prefix} dev {interface}")])?;
        host.ip(self.up(interface))
    }

    /// What brings an interface up that has its address.
    pub(crate) fn up(self, interface: &str) -> Vec<String> {
        let Self { prefix, gateway, .. } = self;
        let mut lines = vec![format!("link set {interface} up")];
        if prefix == 32 {
            lines.push(format!("route add {gateway}/32 dev {interface}"));
        }
        lines.push(format!("route add default via {gateway} dev {interface}"));
        lines
    }
}

/// How a host is numbered on its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The host's address.
    pub addr: Ipv4Addr,
    prefix: u8,
    gateway: Ipv4Addr,
}

impl Lease {
    /// The address of its interface.
    pub(crate) fn mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.addr.octets();
        [2, 0, a, b, c, d]
    }

    /// The same, as programs take it.
    pub(crate) fn mac_text(self) -> String {
        self.mac().map(|byte| format!("{byte:02x}")).join(":")
    }

    /// The network that it is of, and its mask.
    pub(crate) fn network(self) -> (Ipv4Addr, Ipv4Addr) {
        let mask = u32::MAX << (32 - u32::from(self.prefix));
        (Ipv4Addr::from(u32::from(self.addr) & mask), Ipv4Addr::from(mask))
    }
}

/// A router's side that hosts can be wired to.
#[derive(Debug)]
pub(crate) struct Segment {
    net: NetNs,
    /// The bridge of a LAN; none on the internet, where each wire is a segment.
    bridge: Option<&'static str>,
    /// The router's own address.
    gateway: Ipv4Addr,
    prefix: u8,
    hosts: AtomicU16,
    ports: AtomicU16,
    max_hosts: u16,
}

impl Segment {
    /// The next free address.
    pub(crate) fn lease(&self) -> Result<Lease> {
        let index = self.hosts.fetch_add(1, Ordering::Relaxed);
        ensure!(
            index < self.max_hosts,
            "the segment of {} is full ({} hosts)",
            self.gateway,
            self.max_hosts
        );
        let addr = Ipv4Addr::from(u32::from(self.gateway) + 1 + u32::from(index));
        Ok(Lease {
            addr,
            prefix: self.prefix,
            gateway: self.gateway,
        })
    }

    /// A port whose other end is a machine's that brings its own network: a TAP interface in the router's namespace.
    pub(crate) fn tap(&self) -> Result<Port> {
        let bridge = self
            .bridge
            .context("only a site's LAN has room for a machine that asks for its address")?;
        let name = self.free_port();
        self.net.ip([
            format!("tuntap add dev {name} mode tap vnet_hdr"),
            format!("link set {name} master {bridge}"),
        ])?;
        let port = Port {
            net: self.net,
            name,
            on: Vec::new(),
        };
        port.restore()?;
        Ok(port)
    }

    fn free_port(&self) -> String {
        format!("p{}", self.ports.fetch_add(1, Ordering::Relaxed))
    }

    /// Wires a host's interface to this segment and configures it.
    pub(crate) fn attach(&self, host: NetNs, interface: &str, lease: Lease) -> Result<Port> {
        let name = self.free_port();
        let on = match self.bridge {
            Some(_) => Vec::new(),
            None => vec![format!(
                "route replace {}/32 dev {name} src {}",
                lease.addr, self.gateway
            )],
        };
        let port = Port {
            net: self.net,
            name,
            on,
        };
        let name = &port.name;
        let mut lines = vec![format!(
            "link add {name} type veth peer name {interface} address {} netns {}",
            lease.mac_text(),
            host.pid()
        )];
        lines.extend(
            self.bridge
                .map(|bridge| format!("link set {name} master {bridge}")),
        );
        self.net.ip(&lines)?;
        port.restore()?;
        lease.configure(host, interface)?;
        Ok(port)
    }

    /// Puts a line in the place of a wire, with the same addresses and names at its ends.
    pub(crate) fn lengthen(
        &self,
        port: &Port,
        (host, interface): (NetNs, &str),
        lease: Lease,
        quality: Quality,
    ) -> Result<Line> {
        ensure!(
            port.net.pid() == self.net.pid(),
            "only what hangs on the internet itself can be far away"
        );
        port.remove();
        let near = End {
            net: host,
            name: interface,
            mac: Some(lease.mac()),
        };
        let far = End {
            net: self.net,
            name: &port.name,
            mac: None,
        };
        let seed = u64::from(u32::from(lease.addr)) << 1;
        let line = Line::start([near, far], quality, seed)?;
        port.restore()?;
        lease.configure(host, interface)?;
        Ok(line)
    }
}

/// The internet.
#[derive(Debug)]
pub(crate) struct Internet {
    pub(crate) bare: Bare,
    pub(crate) segment: Segment,
    open_sites: AtomicU16,
    sites: AtomicU16,
}

impl Internet {
    pub(crate) fn start(log: &Path, keep: bool) -> Result<Self> {
        let bare = Bare::start(log, keep)?;
        let net = bare.net();
        forward(net)?;
        net.ip([format!("addr add {CORE}/32 dev lo")])?;
        let segment = Segment {
            net,
            bridge: None,
            gateway: CORE,
            prefix: 32,
            hosts: AtomicU16::new(0),
            ports: AtomicU16::new(0),
            max_hosts: MAX_HOSTS,
        };
        Ok(Self {
            bare,
            segment,
            open_sites: AtomicU16::new(0),
            sites: AtomicU16::new(0),
        })
    }

    /// The next free LAN: its router's address, its prefix and how many hosts it can have.
    fn lan(&self, nat: Nat) -> Result<(Ipv4Addr, u8, u16)> {
        if nat.translates() {
            let index = self.sites.fetch_add(1, Ordering::Relaxed);
            ensure!(index < MAX_SITES, "a lab has at most {MAX_SITES} sites");
            let third = u8::try_from(10 + index)?;
            Ok((Ipv4Addr::new(192, 168, third, 1), 24, MAX_HOSTS))
        } else {
            let index = self.open_sites.fetch_add(1, Ordering::Relaxed);
            ensure!(
                index < MAX_OPEN_SITES,
                "a lab has at most {MAX_OPEN_SITES} sites with public addresses"
            );
            let last = u8::try_from(index * 16 + 1)?;
            Ok((Ipv4Addr::new(203, 0, 113, last), 28, 13))
        }
    }
}

/// A site: a router with a LAN behind it.
#[derive(Debug)]
pub(crate) struct Router {
    /// What is in the uplink's place where it is a long one. It ends before the namespace of one of its ends.
    line: Mutex<Option<Line>>,
    pub(crate) bare: Bare,
    pub(crate) nat: Nat,
    /// Its address on the outside, and the way there.
    pub(crate) wan: Lease,
    pub(crate) uplink: Port,
    pub(crate) lan: Segment,
}

impl Router {
    /// Starts a router on the internet, or behind another site's router.
    pub(crate) fn start(
        internet: &Internet,
        behind: Option<&Segment>,
        nat: Nat,
        log: &Path,
        keep: bool,
    ) -> Result<Self> {
        ensure!(
            nat.translates() || behind.is_none(),
            "a site with public addresses hangs on the internet itself"
        );
        let (gateway, prefix, max_hosts) = internet.lan(nat)?;
        let bare = Bare::start(log, keep)?;
        let net = bare.net();
        forward(net)?;
        net.ip([
            "link add lan type bridge".to_owned(),
            format!("addr add {gateway}/{prefix} dev lan"),
            "link set lan up".to_owned(),
        ])?;
        net.nft(&nat.rules())
            .and_then(|()| net.sysctl(nat.parameters()))
            .with_context(|| format!("cannot make a router of kind {nat:?}"))?;
        let outside = behind.unwrap_or(&internet.segment);
        let lease = outside.lease()?;
        let mut uplink = outside.attach(net, "wan", lease)?;
        if !nat.translates() {
            let network = Ipv4Addr::from(u32::from(gateway) - 1);
            uplink.on.push(format!(
                "route replace {network}/{prefix} via {} dev {} onlink",
                lease.addr, uplink.name
            ));
            uplink.restore()?;
        }
        let lan = Segment {
            net,
            bridge: Some("lan"),
            gateway,
            prefix,
            hosts: AtomicU16::new(0),
            ports: AtomicU16::new(0),
            max_hosts,
        };
        Ok(Self {
            bare,
            nat,
            wan: lease,
            uplink,
            line: Mutex::default(),
            lan,
        })
    }

    /// Makes the uplink a long line.
    pub(crate) fn lengthen(&self, internet: &Internet, quality: Quality) -> Result<()> {
        let place = (self.bare.net(), "wan");
        let line = internet
            .segment
            .lengthen(&self.uplink, place, self.wan, quality)?;
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
        Ok(())
    }
}

fn forward(net: NetNs) -> Result<()> {
    net.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
    ])
}
