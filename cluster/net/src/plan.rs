//! What is wanted on a host: networks, and the NICs on them.
//!
//! A plan is checked as a whole before anything is done for it, so that two guests never have one address, and no
//! network takes addresses away from another. Filters, leases and answers are all made from a checked plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use aerie_cluster_node::{GuestName, Mac};
use ipnet::Ipv4Net;
use zeroize::Zeroizing;

use crate::error::METADATA;
use crate::{BadPlan, InstanceId, InterfaceName, NetworkId, PortId};

/// Networks of one instance: each has a bridge and two sockets.
pub const MAX_NETWORKS: usize = 64;

/// NICs of one instance: a bridge of Linux takes 1,023 ports.
pub const MAX_PORTS: usize = 1000;

/// The least MTU in bytes: IPv6 asks for so much.
pub const MIN_MTU: u16 = 1280;

/// The largest MTU in bytes that TAPs have.
pub const MAX_MTU: u16 = 9000;

/// Name servers of a network: what fits beside the other options of a lease.
pub const MAX_DNS: usize = 4;

/// Interfaces of the host that a network leads through.
pub const MAX_THROUGH: usize = 8;

/// IPv6 addresses of a NIC besides its link-local one.
pub const MAX_IPV6: usize = 8;

/// Bytes of user-data: what EC2 takes is a quarter of it, and what OpenStack takes fits.
pub const MAX_USER_DATA: usize = 64 << 10;

/// Public keys of a guest, and the bytes of each.
pub const MAX_KEYS: usize = 32;
/// The longest public key in bytes: an RSA key of 16,384 bits has 2,800.
pub const MAX_KEY: usize = 8 << 10;

const LEASE_SECONDS: std::ops::RangeInclusive<u64> = 60..=31_536_000;

/// A network of guests on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The addresses on it, /8 to /30.
    pub subnet: Ipv4Net,
    /// The host's own address in it. Guests may ping it, and are told that it is their router where the network leads
    /// anywhere.
    pub host: Option<Ipv4Addr>,
    /// Interfaces of the host through which guests are forwarded, and from which they are reached: none for a network
    /// that is cut off. Whoever made these interfaces has the kernel forward what comes from them.
    pub through: BTreeSet<InterfaceName>,
    /// Name servers that guests are told of, up to [`MAX_DNS`].
    pub dns: Vec<Ipv4Addr>,
    /// In bytes, from [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u16,
    /// How long an address is leased, in whole seconds, from a minute to a year.
    pub lease: Duration,
}

impl Network {
    /// A network that is cut off, with an MTU of 1,500 bytes and leases of a day.
    #[must_use]
    pub fn isolated(subnet: Ipv4Net) -> Self {
        Self {
            subnet,
            host: None,
            through: BTreeSet::new(),
            dns: Vec::new(),
            mtu: 1500,
            lease: Duration::from_secs(86_400),
        }
    }

    /// The host's addresses that guests may reach.
    pub(crate) fn host_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.host.into_iter().chain([METADATA])
    }

    fn check(&self, id: &NetworkId) -> Result<(), BadPlan> {
        let refuse = |why| BadPlan::Subnet {
            network: id.clone(),
            subnet: self.subnet,
            why,
        };
        if !(8..=30).contains(&self.subnet.prefix_len()) {
            return Err(refuse("use a prefix of /8 to /30"));
        }
        if self.subnet.addr() != self.subnet.network() {
            return Err(refuse("write it without the host's part"));
        }
        let unusable = |net: &str| net.parse().is_ok_and(|net: Ipv4Net| overlap(net, self.subnet));
        if ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"]
            .into_iter()
            .any(unusable)
        {
            return Err(refuse(
                "use addresses that are not reserved, such as private ones",
            ));
        }
        if self.host.is_some_and(|host| !is_host(self.subnet, host)) {
            return Err(refuse("the host's address is none in it; take one, or none"));
        }
        if self.host.is_none() && !self.through.is_empty() {
            return Err(BadPlan::NoRouter(id.clone()));
        }
        limit(
            "interfaces for a network to lead through",
            self.through.len(),
            MAX_THROUGH,
        )?;
        limit("name servers for a network", self.dns.len(), MAX_DNS)?;
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(BadPlan::Mtu {
                network: id.clone(),
                mtu: self.mtu,
            });
        }
        if !LEASE_SECONDS.contains(&self.lease.as_secs()) {
            return Err(BadPlan::Lease {
                network: id.clone(),
                seconds: self.lease.as_secs(),
            });
        }
        Ok(())
    }
}

/// A NIC of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The network that it is on.
    pub network: NetworkId,
    /// Its address; [`PortId::mac`] if none is given.
    pub mac: Option<Mac>,
    /// Its IPv4 address, the only one that it may use.
    pub address: Ipv4Addr,
    /// Its IPv6 addresses, besides the link-local one that follows from its Ethernet address.
    pub ipv6: BTreeSet<Ipv6Addr>,
    /// The user whose QEMU opens the TAP, by number; root alone if none is given. It is set when the TAP is made.
    pub owner: Option<u32>,
    /// What the guest is told about itself.
    pub facts: Arc<Facts>,
}

impl Port {
    /// Its address, given or derived.
    #[must_use]
    pub fn mac(&self, id: &PortId) -> Mac {
        self.mac.unwrap_or_else(|| id.mac())
    }
}

/// What a guest is told about itself by DHCP and by the metadata service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its host name.
    pub hostname: GuestName,
    /// Public keys for those who log in, in OpenSSH's form of one line.
    pub public_keys: Vec<String>,
    /// What its creator gave it to read, if anything.
    pub user_data: Option<UserData>,
    /// Whether it may ask without a session token, as IMDSv1 and OpenStack's clients do.
    pub allow_v1: bool,
}

/// User-data, which may have secrets in it: wiped on drop, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct UserData(Zeroizing<Vec<u8>>);

impl UserData {
    /// User-data.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} bytes)", self.0.len())
    }
}

/// What is wanted on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The networks. One without NICs takes nothing of the host.
    pub networks: BTreeMap<NetworkId, Network>,
    /// The NICs.
    pub ports: BTreeMap<PortId, Port>,
}

impl Plan {
    /// Whether a host can have these networks, as far as can be told without looking at it.
    ///
    /// # Errors
    /// [`BadPlan`] says what is wrong.
    pub fn check(&self, instance: &InstanceId) -> Result<(), BadPlan> {
        limit("networks", self.networks.len(), MAX_NETWORKS)?;
        limit("NICs", self.ports.len(), MAX_PORTS)?;
        let own = [instance.tap_prefix(), instance.bridge_prefix()];
        for (id, network) in &self.networks {
            network.check(id)?;
            for interface in &network.through {
                if own.iter().any(|prefix| interface.as_str().starts_with(prefix)) {
                    return Err(BadPlan::Through {
                        network: id.clone(),
                        interface: interface.clone(),
                    });
                }
            }
            // There are few networks, so that each is compared with all.
            let mut others = self.networks.iter().filter(|(other, _)| *other < id);
            if let Some((other, _)) = others.find(|(_, other)| overlap(other.subnet, network.subnet)) {
                return Err(BadPlan::Overlap {
                    one: other.clone(),
                    other: id.clone(),
                });
            }
        }
        let mut seen = Seen::default();
        for id in self.networks.keys() {
            seen.name(id.bridge(instance))?;
            seen.macs.insert(id.bridge_mac(instance));
        }
        for (id, port) in &self.ports {
            seen.name(id.tap(instance))?;
            self.check_port(*id, port, &mut seen)?;
        }
        Ok(())
    }

    fn check_port(&self, id: PortId, port: &Port, seen: &mut Seen) -> Result<(), BadPlan> {
        id.check()?;
        let Some(network) = self.networks.get(&port.network) else {
            return Err(BadPlan::NoNetwork {
                port: id,
                network: port.network.clone(),
            });
        };
        let refuse = |address, why| BadPlan::Address {
            port: id,
            address,
            why,
        };
        let v4 = port.address;
        if !is_host(network.subnet, v4) {
            let why = "it is no guest's address in its network's subnet";
            return Err(refuse(v4.into(), why));
        }
        if network.host == Some(v4) || network.dns.contains(&v4) {
            let why = "the host or a name server has it; give the NIC another one";
            return Err(refuse(v4.into(), why));
        }
        if !seen.v4.insert(v4) {
            return Err(refuse(v4.into(), "another NIC has it; give each its own"));
        }
        limit("IPv6 addresses for a NIC", port.ipv6.len(), MAX_IPV6)?;
        let mac = port.mac(&id);
        for address in &port.ipv6 {
            if address.is_multicast() || address.is_unspecified() || address.is_loopback() {
                return Err(refuse((*address).into(), "it is no host's address"));
            }
            // As if it had been derived from its own, it could be the one derived from a neighbour's.
            if address.is_unicast_link_local() {
                let why = "a link-local address follows from the Ethernet address; leave it out";
                return Err(refuse((*address).into(), why));
            }
            if !seen.v6.insert(*address) {
                return Err(refuse((*address).into(), "another NIC has it; give each its own"));
            }
        }
        let refuse = |why| BadPlan::Mac { port: id, mac, why };
        if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
            return Err(refuse(
                "it is a group's or nobody's; use one whose first byte is even",
            ));
        }
        if !seen.macs.insert(mac) {
            return Err(refuse("another NIC or a bridge has it; give each its own"));
        }
        let facts = &port.facts;
        let too_large = if facts.public_keys.len() > MAX_KEYS {
            Some("it has more than 32 public keys; leave some out")
        } else if facts.public_keys.iter().any(|key| !is_key(key)) {
            Some("a public key has to be one line of at most 8,192 bytes; give it as in authorized_keys")
        } else if facts
            .user_data
            .as_ref()
            .is_some_and(|data| data.bytes().len() > MAX_USER_DATA)
        {
            Some("its user-data has more than 65,536 bytes; have the guest fetch the rest")
        } else {
            None
        };
        match too_large {
            Some(why) => Err(BadPlan::Facts { port: id, why }),
            None => Ok(()),
        }
    }

    /// The NICs on a network.
    pub(crate) fn ports_on(&self, network: &NetworkId) -> impl Iterator<Item = (&PortId, &Port)> {
        self.ports
            .iter()
            .filter(move |(_, port)| port.network == *network)
    }

    /// The networks that have NICs: the others take nothing of the host.
    pub(crate) fn used(&self) -> impl Iterator<Item = (&NetworkId, &Network)> {
        let used: BTreeSet<_> = self.ports.values().map(|port| &port.network).collect();
        self.networks.iter().filter(move |(id, _)| used.contains(id))
    }
}

/// What may be given once.
#[derive(Default)]
struct Seen {
    names: BTreeSet<InterfaceName>,
    macs: BTreeSet<Mac>,
    v4: BTreeSet<Ipv4Addr>,
    v6: BTreeSet<Ipv6Addr>,
}

impl Seen {
    fn name(&mut self, name: InterfaceName) -> Result<(), BadPlan> {
        if self.names.contains(&name) {
            return Err(BadPlan::SameName(name));
        }
        self.names.insert(name);
        Ok(())
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY && !key.contains(['\n', '\r', '\0'])
}

fn limit(what: &'static str, count: usize, limit: usize) -> Result<(), BadPlan> {
    if count > limit {
        return Err(BadPlan::TooMany { what, limit });
    }
    Ok(())
}

fn is_host(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}

pub(crate) fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The link-local address that follows from an Ethernet address (RFC 4291, appendix A).
#[must_use]
pub fn link_local(Mac(mac): Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use aerie_cluster_node::GuestId;
    use uuid::Uuid;

    pub(crate) fn instance() -> InstanceId {
        InstanceId::new("test").unwrap()
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

    pub(crate) fn facts() -> Facts {
        Facts {
            hostname: "node-1".parse().unwrap(),
            public_keys: vec!["ssh-ed25519 AAAA me".to_owned()],
            user_data: Some(UserData::new(b"hello".to_vec())),
            allow_v1: false,
        }
    }

    pub(crate) fn port(network: &str, address: &str) -> Port {
        Port {
            network: net(network),
            mac: None,
            address: address.parse().unwrap(),
            ipv6: BTreeSet::new(),
            owner: None,
            facts: Arc::new(facts()),
        }
    }

    /// Two clusters: guests 1 and 2 on the first, guest 3 on the second, which leads out.
    pub(crate) fn plan() -> Plan {
        let mut plan = Plan::default();
        plan.networks
            .insert(net("one"), Network::isolated("10.1.0.0/24".parse().unwrap()));
        let mut two = Network::isolated("10.2.0.0/24".parse().unwrap());
        two.host = Some("10.2.0.1".parse().unwrap());
        two.through.insert(InterfaceName::new("aerie0").unwrap());
        plan.networks.insert(net("two"), two);
        for (n, (network, address)) in [("one", "10.1.0.2"), ("one", "10.1.0.3"), ("two", "10.2.0.2")]
            .into_iter()
            .enumerate()
        {
            plan.ports.insert(port_id(n as u128 + 1), port(network, address));
        }
        plan
    }

    #[test]
    fn a_plan_that_makes_sense_is_taken() {
        plan().check(&instance()).unwrap();
        let used: Vec<_> = plan().used().map(|(id, _)| id.to_string()).collect();
        assert_eq!(used, ["one", "two"]);
    }

    #[test]
    fn what_no_host_could_do_is_refused_with_what_is_wrong() {
        type Change = fn(&mut Plan);
        fn one(plan: &mut Plan) -> &mut Network {
            plan.networks.get_mut(&net("one")).unwrap()
        }
        fn first(plan: &mut Plan) -> &mut Port {
            plan.ports.get_mut(&port_id(1)).unwrap()
        }
        fn facts_of(plan: &mut Plan) -> &mut Facts {
            Arc::make_mut(&mut first(plan).facts)
        }
        let cases: [(Change, &str); 22] = [
            (
                |p| one(p).subnet = "10.2.0.0/16".parse().unwrap(),
                "one and two overlap",
            ),
            (|p| one(p).subnet = "10.1.0.0/31".parse().unwrap(), "/8 to /30"),
            (
                |p| one(p).subnet = "10.1.0.1/24".parse().unwrap(),
                "without the host's part",
            ),
            (|p| one(p).subnet = "169.254.0.0/16".parse().unwrap(), "reserved"),
            (|p| one(p).subnet = "224.1.0.0/16".parse().unwrap(), "reserved"),
            (
                |p| one(p).host = "10.1.0.255".parse().ok(),
                "host's address is none in it",
            ),
            (
                |p| one(p).host = "10.1.0.2".parse().ok(),
                "the host or a name server has it",
            ),
            (
                |p| one(p).dns = vec![Ipv4Addr::LOCALHOST; 5],
                "at most 4 name servers",
            ),
            (|p| one(p).mtu = 500, "1280 to 9000"),
            (|p| one(p).lease = Duration::from_secs(1), "1 s"),
            (
                |p| one(p).through = [InterfaceName::new("eth0").unwrap()].into(),
                "no address in it",
            ),
            (
                |p| {
                    one(p).host = "10.1.0.1".parse().ok();
                    one(p).through.insert(net("two").bridge(&instance()));
                },
                "belongs to guests",
            ),
            (
                |p| first(p).address = "10.1.0.3".parse().unwrap(),
                "another NIC has it",
            ),
            (
                |p| first(p).address = "10.1.1.2".parse().unwrap(),
                "no guest's address",
            ),
            (
                |p| first(p).address = "10.1.0.255".parse().unwrap(),
                "no guest's address",
            ),
            (|p| first(p).mac = Some(port_id(2).mac()), "give each its own"),
            (
                |p| first(p).mac = Some(net("one").bridge_mac(&instance())),
                "a bridge has it",
            ),
            (
                |p| first(p).mac = Some(Mac([1, 0, 0, 0, 0, 1])),
                "first byte is even",
            ),
            (
                |p| first(p).ipv6 = ["fe80::1".parse().unwrap()].into(),
                "leave it out",
            ),
            (|p| first(p).network = net("three"), "add the network first"),
            (|p| facts_of(p).public_keys = vec!["a\nb".to_owned()], "one line"),
            (
                |p| facts_of(p).user_data = Some(UserData::new(vec![0; MAX_USER_DATA + 1])),
                "65,536 bytes",
            ),
        ];
        for (change, expected) in cases {
            let mut plan = plan();
            change(&mut plan);
            let error = plan.check(&instance()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} has no {expected}");
        }
    }

    #[test]
    fn a_link_local_address_follows_from_the_ethernet_address() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(link_local(mac).to_string(), "fe80::5054:ff:fe12:3456");
    }

    #[test]
    fn user_data_is_never_printed() {
        let text = format!("{:?}", plan());
        assert!(
            text.contains("UserData(5 bytes)") && !text.contains("hello"),
            "{text}"
        );
    }
}
