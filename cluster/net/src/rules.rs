//! The packet filter's rules, made from a plan as text for `nft`.
//!
//! ```text
//!  frame of a guest
//!      │ bridge/prerouting: by the name of the TAP, whether known or not
//!      ▼
//!  its own chain ──► sender not its own ──► dropped (so is what is neither ARP, IPv4 nor IPv6, and what has a tag)
//!      │
//!      ├─ bridge/forward ──► another guest of the network: DHCP is not for them
//!      │
//!      └─ bridge/input ──► the host: ARP and packets for its addresses on this bridge; DHCP
//!             │                      (and packets for elsewhere, where the network leads anywhere)
//!             ├─ inet/input ──► port 80 of the metadata address, ping, and answers
//!             └─ inet/forward ──► the same network, or an interface that the network leads through
//! ```
//!
//! A whole table is replaced in one transaction: a packet is judged by the old rules or by the new ones. Rules go by
//! how the names of interfaces begin, and a port that has no chain is cut off: nothing depends on the order in which
//! rules and ports come and go. What is forwarded within a bridge meets `inet/forward` too where the kernel's
//! `br_netfilter` is loaded.
//!
//! Neighbour discovery is checked in its short forms alone: one option, which names the sender's own address. IPv6
//! extension headers, behind which an advertisement could hide (RFC 7113), are dropped but for two: fragments of TCP
//! and UDP, and the hop-by-hop header of MLD.
//!
//! `01:80:c2:00:00:0e` and its like never pass a bridge: the kernel hands such frames to the port itself, past most of
//! the bridge's hooks. Hence the chain `inet/prerouting`, which drops whatever comes from a port and not by its bridge.
//!
//! What the host itself begins with a guest is answered: of TCP all but what would begin a connection. No rule asks for
//! the state of a connection, since a guest could fill the host's table of those.
//!
//! Everything that is put into the text is a number, an address, or a checked name.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use aerie_cluster_node::Mac;

use crate::error::METADATA;
use crate::plan::{Network, Plan, Port, link_local};
use crate::{InstanceId, PortId};

/// DHCP requests of one guest that the host looks at in a second, and that it may send at once: a boot needs four.
const DHCP_RATE: u32 = 20;
const DHCP_BURST: u32 = 40;

/// The families in which an instance has its table.
pub(crate) const FAMILIES: [&str; 2] = ["bridge", "inet"];

/// The rules for a plan, in place of whatever rules the instance had; none at all for a plan without NICs.
pub(crate) fn ruleset(plan: &Plan, instance: &InstanceId) -> String {
    let mut text = String::new();
    let table = instance.table();
    for family in FAMILIES {
        // To delete what is not there is an error, to add what is there is none.
        let _ = write!(
            text,
            "add table {family} {table}\ndelete table {family} {table}\n"
        );
    }
    if plan.ports.is_empty() {
        return text;
    }
    let rules = Rules { plan, instance };
    let _ = write!(
        text,
        "table bridge {table} {{\n{}}}\ntable inet {table} {{\n{}}}\n",
        rules.bridge(),
        rules.inet()
    );
    text
}

struct Rules<'a> {
    plan: &'a Plan,
    instance: &'a InstanceId,
}

impl Rules<'_> {
    fn bridge(&self) -> String {
        let taps = self.instance.tap_prefix();
        let mut text = String::new();
        // No guest's frame is tracked or judged by others before it is judged here.
        for (hook, chain) in [
            ("prerouting", "guests"),
            ("forward", "between"),
            ("input", "host"),
        ] {
            let _ = write!(
                text,
                "chain {hook} {{\n type filter hook {hook} priority -300; policy accept;\n \
                 iifname \"{taps}*\" goto {chain}\n}}\n"
            );
        }
        let chains = |prefix: &str, number: &dyn Fn(usize, &Port) -> usize| {
            let ports = self.plan.ports.iter().enumerate();
            let jumps: Vec<_> = ports
                .map(|(n, (id, port))| {
                    format!("\"{}\" : goto {prefix}{}", id.tap(self.instance), number(n, port))
                })
                .collect();
            jumps.join(", ")
        };
        let jumps = chains("port_", &|n, _| n);
        let _ = write!(
            text,
            "chain guests {{\n iifname vmap {{ {jumps} }}\n counter drop\n}}\n"
        );
        // The servers of both are the host's, and no client looks at the port that an answer comes from.
        text += "chain between {\n udp dport { 67, 68, 546, 547 } counter drop\n}\n";
        text += SHARED;
        let networks: Vec<_> = self.plan.networks.keys().collect();
        let jumps = chains("host_", &|_, port| {
            networks
                .iter()
                .position(|id| **id == port.network)
                .unwrap_or_default()
        });
        let _ = write!(
            text,
            "chain host {{\n iifname vmap {{ {jumps} }}\n counter drop\n}}\n"
        );
        for (n, (id, port)) in self.plan.ports.iter().enumerate() {
            text += &port_chains(n, id, port);
        }
        for (n, network) in self.plan.networks.values().enumerate() {
            text += &host_chain(n, network);
        }
        text
    }

    fn inet(&self) -> String {
        let (taps, bridges) = (self.instance.tap_prefix(), self.instance.bridge_prefix());
        let mut ways = Vec::new();
        let mut own = Vec::new();
        let mut lied = Vec::new();
        for (id, network) in self.plan.used() {
            let bridge = id.bridge(self.instance);
            ways.push(format!("\"{bridge}\" . \"{bridge}\""));
            for other in &network.through {
                ways.push(format!("\"{bridge}\" . \"{other}\", \"{other}\" . \"{bridge}\""));
            }
            // Nobody from elsewhere speaks as a guest of the network.
            let subnet = network.subnet;
            lied.push(format!(
                " oifname \"{bridge}\" iifname != \"{bridge}\" ip saddr {subnet} counter drop\n"
            ));
            own.extend(network.host_addresses().map(|to| format!("\"{bridge}\" . {to}")));
        }
        let foreign: String = lied.concat();
        let (ways, own) = (ways.join(", "), own.join(", "));
        format!(
            "chain prerouting {{\n type filter hook prerouting priority -450; policy accept;\n \
             iifname \"{taps}*\" counter drop\n}}\n\
             chain input {{\n type filter hook input priority -10; policy accept;\n \
             iifname \"{bridges}*\" goto guests\n}}\n\
             chain guests {{\n ip daddr {METADATA} tcp dport 80 accept\n \
             iifname . ip daddr != {{ {own} }} counter drop\n \
             icmp type {{ echo-request, echo-reply }} accept\n \
             tcp flags & (syn | ack) != syn tcp flags & (ack | rst) != 0 accept\n \
             counter drop\n}}\n\
             chain forward {{\n type filter hook forward priority -10; policy accept;\n{foreign} \
             iifname . oifname {{ {ways} }} accept\n \
             iifname \"{bridges}*\" counter drop\n \
             oifname \"{bridges}*\" counter drop\n}}\n"
        )
    }
}

/// What is the same for every guest, once it is sure whose a packet is. Where a list is needed it is here: the kernel
/// takes long to make thousands of them.
const SHARED: &str = "\
chain own_ip {
 ip hdrlength != 5 ip protocol != igmp counter drop
 ip frag-off & 0x1fff != 0 accept
 udp sport != 67 accept
 icmp type { redirect, router-advertisement } counter drop
 meta l4proto != udp accept
 counter drop
}
chain own_ip6 {
 ip6 nexthdr tcp accept
 ip6 nexthdr udp udp sport != 547 accept
 ip6 nexthdr ipv6-frag frag nexthdr tcp accept
 ip6 nexthdr ipv6-frag frag nexthdr udp frag frag-off != 0 accept
 ip6 nexthdr ipv6-frag frag nexthdr udp udp sport != 547 accept
 ip6 nexthdr != icmpv6 counter drop
 icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply, nd-router-solicit } accept
 icmpv6 type nd-neighbor-solicit ip6 length 24 accept
 counter drop
}
chain mld {
 icmpv6 type { mld-listener-report, mld-listener-reduction, mld2-listener-report } accept
 counter drop
}
";

/// What one guest may send.
fn port_chains(n: usize, id: &PortId, port: &Port) -> String {
    let mac = port.mac(id);
    let own = port.address;
    let own6: Vec<_> = port.ipv6.iter().copied().chain([link_local(mac)]).collect();
    format!(
        "chain port_{n} {{\n ether saddr != {mac} counter drop\n \
         ether type arp goto port_{n}_arp\n ether type ip goto port_{n}_ip\n ether type ip6 goto port_{n}_ip6\n \
         counter drop\n}}\n{}{}{}",
        arp_chain(n, mac, own),
        ip_chain(n, own),
        ip6_chain(n, mac, &own6),
    )
}

/// Claims of its own address, and the question whether anybody else has it (RFC 5227).
fn arp_chain(n: usize, mac: Mac, own: Ipv4Addr) -> String {
    format!(
        "chain port_{n}_arp {{\n \
         arp htype != 1 counter drop\n arp ptype != ip counter drop\n \
         arp hlen != 6 counter drop\n arp plen != 4 counter drop\n \
         arp saddr ether != {mac} counter drop\n \
         arp operation request arp saddr ip {own} accept\n \
         arp operation reply arp saddr ip {own} accept\n \
         arp operation request arp saddr ip 0.0.0.0 arp daddr ip {own} accept\n \
         counter drop\n}}\n"
    )
}

fn ip_chain(n: usize, own: Ipv4Addr) -> String {
    format!(
        "chain port_{n}_ip {{\n \
         udp dport 67 limit rate over {DHCP_RATE}/second burst {DHCP_BURST} packets counter drop\n \
         ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept\n \
         ip saddr != {own} counter drop\n \
         goto own_ip\n}}\n"
    )
}

/// Neighbour discovery by the sender's own addresses, and what is the same for all.
fn ip6_chain(n: usize, mac: Mac, own: &[Ipv6Addr]) -> String {
    let mut text = format!("chain port_{n}_ip6 {{\n");
    let target = |addr: &Ipv6Addr| format!("@th,64,128 {:#034x}", u128::from(*addr));
    for addr in own {
        let _ = writeln!(
            text,
            " ip6 saddr :: ip6 nexthdr icmpv6 icmpv6 type nd-neighbor-solicit {} accept",
            target(addr)
        );
    }
    text += " ip6 saddr :: ip6 nexthdr 0 goto mld\n";
    let sources: Vec<_> = own.iter().map(Ipv6Addr::to_string).collect();
    let _ = match &sources[..] {
        [one] => writeln!(text, " ip6 saddr != {one} counter drop"),
        all => writeln!(text, " ip6 saddr != {{ {} }} counter drop", all.join(", ")),
    };
    text += " ip6 nexthdr 0 goto mld\n ip6 nexthdr != icmpv6 goto own_ip6\n";
    let tail = mac.to_string().replace(':', "");
    let _ = writeln!(
        text,
        " icmpv6 type nd-neighbor-solicit ip6 length 32 @th,192,64 0x0101{tail} accept"
    );
    for addr in own {
        let advert = format!("icmpv6 type nd-neighbor-advert {}", target(addr));
        let _ = write!(
            text,
            " {advert} ip6 length 24 accept\n {advert} ip6 length 32 @th,192,64 0x0201{tail} accept\n"
        );
    }
    text += " goto own_ip6\n}\n";
    text
}

/// What of a network's frames goes up to the host. Nothing in pieces is for the host itself: one guest could fill what
/// the host has for pieces of all.
fn host_chain(n: usize, network: &Network) -> String {
    let host: Vec<_> = network.host_addresses().map(|addr| addr.to_string()).collect();
    let host = host.join(", ");
    let elsewhere = if network.through.is_empty() {
        String::new()
    } else {
        // Where to is the forwarding's matter; what is for the host itself is the input's. For a neighbour it is not: the
        // host would look for every address that a guest thinks of.
        format!(" ether type ip ip daddr != {} accept\n", network.subnet)
    };
    format!(
        "chain host_{n} {{\n \
         ether type arp arp daddr ip {{ {host} }} accept\n \
         ip frag-off & 0x3fff != 0 ip daddr {{ {host} }} counter drop\n \
         ip daddr 255.255.255.255 udp dport 67 accept\n \
         ip daddr {{ {host} }} accept\n{elsewhere} \
         counter drop\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{instance, net, plan, port, port_id};
    use std::collections::BTreeMap;

    /// The chains of one table, each with its lines.
    fn chains(text: &str, family: &str) -> BTreeMap<String, Vec<String>> {
        let start = format!("table {family} aerie_net_test {{\n");
        let body = text.split(&start).nth(1).unwrap();
        let mut chains = BTreeMap::new();
        for block in body.split("chain ").skip(1) {
            let (name, lines) = block.split_once(" {\n").unwrap();
            let lines = lines.lines().take_while(|line| *line != "}");
            chains.insert(
                name.to_owned(),
                lines.map(|line| line.trim().to_owned()).collect(),
            );
            if block.contains("\n}\n}\n") {
                break;
            }
        }
        chains
    }

    #[test]
    fn tables_are_replaced_in_one_transaction_and_go_with_the_last_nic() {
        let text = ruleset(&plan(), &instance());
        assert!(text.starts_with(
            "add table bridge aerie_net_test\ndelete table bridge aerie_net_test\nadd table inet aerie_net_test\ndelete"
        ));
        assert_eq!(text.matches("\ntable ").count(), 2);
        let empty = ruleset(&Plan::default(), &instance());
        assert!(!empty.contains("chain") && empty.contains("delete table inet aerie_net_test"));
    }

    #[test]
    fn whatever_is_not_allowed_to_a_guest_is_dropped() {
        let text = ruleset(&plan(), &instance());
        let mut terminal = 0;
        for (name, lines) in chains(&text, "bridge") {
            let last = lines.last().map(String::as_str).unwrap();
            match name.as_str() {
                "prerouting" | "forward" | "input" => assert!(last.starts_with("iifname"), "{name}"),
                // Whoever comes here was judged before.
                "between" => assert_eq!(lines.len(), 1),
                _ => {
                    let dropped = last == "counter drop" || last == "goto own_ip" || last == "goto own_ip6";
                    assert!(dropped, "{name}: {last}");
                    terminal += 1;
                }
            }
        }
        // Four of each port, one of each network, two that lead to them, and three that are shared.
        assert_eq!(terminal, 3 * 4 + 2 + 2 + 3);
        assert_eq!(chains(&text, "inet")["guests"].last().unwrap(), "counter drop");
    }

    #[test]
    fn every_port_is_judged_by_a_chain_of_its_own_and_an_unknown_one_is_cut_off() {
        let text = ruleset(&plan(), &instance());
        let chains = chains(&text, "bridge");
        let prefix = instance().tap_prefix();
        assert!(chains["prerouting"].contains(&format!("iifname \"{prefix}*\" goto guests")));
        for (n, (id, port)) in plan().ports.iter().enumerate() {
            let tap = id.tap(&instance());
            assert!(
                chains["guests"][0].contains(&format!("\"{tap}\" : goto port_{n}")),
                "{text}"
            );
            let host = plan().networks.keys().position(|id| *id == port.network).unwrap();
            assert!(
                chains["host"][0].contains(&format!("\"{tap}\" : goto host_{host}")),
                "{text}"
            );
            assert_eq!(
                chains[&format!("port_{n}")][0],
                format!("ether saddr != {} counter drop", port.mac(id))
            );
            let ip = &chains[&format!("port_{n}_ip")];
            assert!(ip.contains(&format!("ip saddr != {} counter drop", port.address)));
        }
    }

    #[test]
    fn nothing_leaves_a_network_but_through_what_it_names() {
        let text = ruleset(&plan(), &instance());
        let chains = chains(&text, "inet");
        let (one, two) = (net("one").bridge(&instance()), net("two").bridge(&instance()));
        assert_eq!(
            chains["forward"][3],
            format!(
                "iifname . oifname {{ \"{one}\" . \"{one}\", \"{two}\" . \"{two}\", \"{two}\" . \"aerie0\", \"aerie0\" . \"{two}\" }} accept"
            )
        );
        assert_eq!(chains["forward"].len(), 6);
        assert!(chains["guests"][1].contains("10.2.0.1") && !chains["guests"][1].contains("10.1.0.1"));
    }

    #[test]
    fn a_port_needs_no_list_of_its_own() {
        // The kernel looks at all lists of a table for the name of a new one.
        let lists = |plan: &Plan| ruleset(plan, &instance()).matches('{').count();
        let (three, mut four) = (plan(), plan());
        four.ports.insert(port_id(9), port("one", "10.1.0.9"));
        assert_eq!(lists(&four) - lists(&three), 4, "its chains");
    }

    #[test]
    fn given_ipv6_addresses_are_allowed_beside_the_link_local_one() {
        let mut plan = plan();
        let port = plan.ports.get_mut(&port_id(1)).unwrap();
        port.mac = Some(Mac([0x52, 0x54, 0, 0, 0, 1]));
        port.ipv6.insert("fd00::5".parse().unwrap());
        let text = ruleset(&plan, &instance());
        let lines = &chains(&text, "bridge")["port_0_ip6"];
        assert!(lines.contains(&"ip6 saddr != { fd00::5, fe80::5054:ff:fe00:1 } counter drop".to_owned()));
        for (line, target) in [
            (0, "0xfd000000000000000000000000000005"),
            (1, "0xfe80000000000000505400fffe000001"),
        ] {
            assert!(
                lines[line].ends_with(&format!("@th,64,128 {target} accept")),
                "{lines:?}"
            );
        }
        assert!(lines.iter().any(|line| line.contains("0x0201525400000001")));
    }
}
