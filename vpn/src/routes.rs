//! Whether a grid's range is free on this host.
//!
//! Two networks with one range confuse the kernel and the user alike, so an overlap with any route but the default
//! is refused, and a range that is free is named instead.

use std::net::Ipv4Addr;

use aerie_types::VirtualRange;
use ipnet::Ipv4Net;

use crate::Error;

/// A route that overlaps a grid's range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The route.
    pub route: Ipv4Net,
    /// Its interface.
    pub interface: String,
    /// A range that is free here.
    pub alternative: Option<VirtualRange>,
}

/// Looks for a route that overlaps `range`; those of `own_interface` do not count.
///
/// # Errors
/// [`Error::Routes`] if the kernel's table cannot be read.
pub async fn overlap(range: VirtualRange, own_interface: &str) -> Result<Option<Overlap>, Error> {
    let table = tokio::fs::read_to_string("/proc/net/route").await.map_err(Error::Routes)?;
    Ok(overlap_in(&table, range, own_interface))
}

fn overlap_in(table: &str, range: VirtualRange, own_interface: &str) -> Option<Overlap> {
    let routes: Vec<_> =
        parse(table).into_iter().filter(|(interface, _)| interface != own_interface).collect();
    let (interface, route) = routes.iter().find(|(_, route)| overlaps(*route, range.net()))?;
    Some(Overlap {
        route: *route,
        interface: interface.clone(),
        alternative: candidates().find(|free| !routes.iter().any(|(_, route)| overlaps(*route, free.net()))),
    })
}

fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Interfaces and destinations of `/proc/net/route`, without default routes: columns `Iface Destination Gateway
/// Flags RefCnt Use Metric Mask ...`, addresses as hexadecimal numbers in the host's byte order.
fn parse(table: &str) -> Vec<(String, Ipv4Net)> {
    let addr = |text: &str| u32::from_str_radix(text, 16).ok().map(|bits| Ipv4Addr::from(bits.to_ne_bytes()));
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let net = Ipv4Net::with_netmask(addr(fields.get(1)?)?, addr(fields.get(7)?)?).ok()?;
            (net.prefix_len() > 0).then(|| ((*fields[0]).to_owned(), net.trunc()))
        })
        .collect()
}

/// Ranges to choose from, the least used first.
fn candidates() -> impl Iterator<Item = VirtualRange> {
    let shared = ["100.96.0.0/11".to_owned(), "100.64.0.0/11".to_owned()];
    let tens = (0..8).map(|i| format!("10.{}.0.0/12", 128 + 16 * i));
    let seventeens = (16..32).rev().map(|i| format!("172.{i}.0.0/16"));
    let homes = (100..255).map(|i| format!("192.168.{i}.0/24"));
    shared.into_iter().chain(tens).chain(seventeens).chain(homes).filter_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    fn line(interface: &str, net: &str) -> String {
        let net: Ipv4Net = net.parse().unwrap();
        let hex = |addr: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(addr.octets()));
        let (to, mask) = (hex(net.network()), hex(net.netmask()));
        format!("{interface}\t{to}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n")
    }

    fn range(text: &str) -> VirtualRange {
        text.parse().unwrap()
    }

    #[test]
    fn an_overlapping_route_is_named_with_a_free_alternative() {
        let table = format!("{HEAD}{}{}", line("eth0", "0.0.0.0/0"), line("tun3", "100.100.0.0/16"));
        let overlap = overlap_in(&table, range("100.96.0.0/11"), "aerie-1").unwrap();
        assert_eq!((overlap.route.to_string().as_str(), overlap.interface.as_str()), ("100.100.0.0/16", "tun3"));
        assert_eq!(overlap.alternative, Some(range("100.64.0.0/11")));
    }

    #[test]
    fn a_range_that_lies_within_a_route_overlaps_too() {
        let table = format!("{HEAD}{}", line("eth0", "10.0.0.0/8"));
        let overlap = overlap_in(&table, range("10.1.0.0/16"), "aerie-1").unwrap();
        assert_eq!(overlap.alternative, Some(range("100.96.0.0/11")));
    }

    #[test]
    fn the_default_route_and_our_own_interface_do_not_count() {
        let table = format!("{HEAD}{}{}", line("eth0", "0.0.0.0/0"), line("aerie-1", "100.96.0.0/11"));
        assert_eq!(overlap_in(&table, range("100.96.0.0/11"), "aerie-1"), None);
    }

    #[test]
    fn a_table_that_is_no_table_has_no_routes() {
        assert!(parse("").is_empty());
        assert!(parse("x\ny z\n\u{0}\n").is_empty());
    }
}
