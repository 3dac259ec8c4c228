//! The one wire between the two ends of every contestant.
//!
//! A lab's internet is a router; packets between two hosts there pass it. For this measurement each pair of hosts
//! gets a veth link of its own beside, with a route over it to the other's address, so that nothing else stands
//! between them.

use std::net::Ipv4Addr;

use aerie_lab::netns::NetNs;
use anyhow::{Context, Result};

use super::program::run;

const INTERFACE: &str = "wire0";

/// Losses are counted in so many parts of a whole.
const PARTS: u32 = 100_000;

/// A host on the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) net: NetNs,
    pub(super) addr: Ipv4Addr,
}

/// Joins two hosts by a wire that loses so many percent of the packets in each direction.
pub(super) fn join(a: End, b: End, loss: Option<f64>) -> Result<()> {
    let other = b.net.pid().to_string();
    run(
        a.net,
        &[
            "ip", "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", &other,
        ],
    )?;
    for end in [a, b] {
        run(
            end.net,
            &["ip", "link", "set", INTERFACE, "addrgenmode", "none", "up"],
        )?;
    }
    for (own, other) in [(a, b), (b, a)] {
        let (to, from) = (format!("{}/32", other.addr), own.addr.to_string());
        run(
            own.net,
            &["ip", "route", "replace", &to, "dev", INTERFACE, "src", &from],
        )?;
        if let Some(percent) = loss {
            lose(own.net, percent).context("cannot make the wire lose packets")?;
        }
    }
    Ok(())
}

/// Drops arriving packets by chance. Packets are cut to the wire's size before: a batch that the kernel carries
/// as one would otherwise be lost as a whole, which no real wire does.
fn lose(net: NetNs, percent: f64) -> Result<()> {
    run(
        net,
        &[
            "ethtool",
            "-K",
            INTERFACE,
            "tx-udp-segmentation",
            "off",
            "tso",
            "off",
        ],
    )?;
    run(net, &["nft", &loss_rules(percent)]).map(|_| ())
}

fn loss_rules(percent: f64) -> String {
    let parts = (percent.clamp(0.0, 100.0) / 100.0 * f64::from(PARTS)).round();
    format!(
        "add table netdev wire; \
         add chain netdev wire loss {{ type filter hook ingress device {INTERFACE} priority 0; }}; \
         add rule netdev wire loss numgen random mod {PARTS} < {parts:.0} drop"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_given_in_parts_of_a_whole() {
        assert!(loss_rules(0.1).contains("mod 100000 < 100 drop"));
        assert!(loss_rules(250.0).contains("< 100000 drop"));
    }
}
