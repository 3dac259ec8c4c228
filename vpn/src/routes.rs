//! Whether the grid's range is free on this host.
//!
//! A host that already routes part of the range elsewhere, to a campus network or to a container bridge, would
//! lose one of the two. So the routes are read before the interface is made, and a free range is named.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use aerie_types::VirtualRange;
use ipnet::Ipv4Net;

use crate::Error;

/// The routing table of the calling thread's network namespace.
const TABLE: &str = "/proc/thread-self/net/route";
const FLAG_UP: u32 = 1;

/// A route that is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The route.
    pub route: Ipv4Net,
    /// Where it leads.
    pub interface: String,
    /// A range of this host that is free, as large as the grid's where there is one.
    pub alternative: Option<VirtualRange>,
}

/// A route of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub net: Ipv4Net,
    /// The router on the way, where there is one.
    pub gateway: Option<Ipv4Addr>,
    /// Interface.
    pub interface: String,
    /// The least of those to the same destinations is taken.
    pub metric: u32,
}

/// The router through which this host reaches everything of which it knows nothing better.
pub(crate) fn default_gateway() -> io::Result<Option<Ipv4Addr>> {
    Ok(gateway_of(&parse(&std::fs::read_to_string(TABLE)?)?))
}

fn gateway_of(routes: &[Route]) -> Option<Ipv4Addr> {
    let default = routes.iter().filter(|route| route.net.prefix_len() == 0);
    default
        .filter_map(|route| Some((route.metric, route.gateway?)))
        .min()
        .map(|(_, gateway)| gateway)
}

/// Looks for a route that overlaps the range. Routes of `own_interface` and the default route do not count.
///
/// # Errors
/// [`Error::Routes`] when the table cannot be read.
pub async fn overlap(range: VirtualRange, own_interface: &str) -> Result<Option<Overlap>, Error> {
    // A read of /proc does not block: the kernel makes the table while it is read.
    let table = std::fs::read_to_string(TABLE).map_err(|source| Error::Routes {
        path: Path::new(TABLE).to_owned(),
        source,
    })?;
    let routes = parse(&table).map_err(|source| Error::Routes {
        path: Path::new(TABLE).to_owned(),
        source,
    })?;
    Ok(find(&routes, range, own_interface))
}

/// Looks for an overlap among given routes.
#[must_use]
pub fn find(routes: &[Route], range: VirtualRange, own_interface: &str) -> Option<Overlap> {
    let foreign: Vec<_> = routes
        .iter()
        .filter(|route| route.interface != own_interface && route.net.prefix_len() > 0)
        .collect();
    let taken = foreign.iter().find(|route| overlaps(route.net, range.net()))?;
    let is_free = |candidate: &Ipv4Net| foreign.iter().all(|route| !overlaps(route.net, *candidate));
    let alternative = candidates(range.prefix_len())
        .filter(|candidate| !overlaps(*candidate, range.net()))
        .find(is_free)
        .and_then(|net| VirtualRange::new(net).ok());
    Some(Overlap {
        route: taken.net,
        interface: taken.interface.clone(),
        alternative,
    })
}

/// Ranges to offer: of the wished size first, smaller ones where the larger are all taken.
fn candidates(prefix: u8) -> impl Iterator<Item = Ipv4Net> {
    let pools = [
        (Ipv4Addr::new(100, 96, 0, 0), 11),
        (Ipv4Addr::new(10, 128, 0, 0), 9),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
    ];
    // Shorter than /11 no pool has room; beyond /24 a grid would be very small.
    let sizes = [prefix.clamp(11, 29), 16, 20, 24]
        .into_iter()
        .filter(move |size| *size >= prefix.max(11));
    sizes.flat_map(move |size| {
        pools
            .into_iter()
            .filter(move |(_, len)| *len <= size)
            .filter_map(|(addr, len)| Ipv4Net::new(addr, len).ok())
            .filter_map(move |pool| pool.subnets(size).ok())
            .flatten()
    })
}

fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Reads the kernel's table (`/proc/net/route`, IPv4).
///
/// # Errors
/// `InvalidData` for a line that is no route.
pub fn parse(table: &str) -> io::Result<Vec<Route>> {
    let lines = table.lines().skip(1).filter(|line| !line.trim().is_empty());
    let routes = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("no route: {line}"));
        let [interface, destination, gateway, flags, _, _, metric, mask, ..] = words[..] else {
            return Err(damaged());
        };
        // Addresses are numbers in the host's byte order whose memory is in the network's.
        let number = |word: &str| u32::from_str_radix(word, 16).map_err(|_| damaged());
        let addr = |word: &str| Ok::<_, io::Error>(Ipv4Addr::from(number(word)?.to_ne_bytes()));
        if number(flags)? & FLAG_UP == 0 {
            return Ok(None);
        }
        let net = Ipv4Net::with_netmask(addr(destination)?, addr(mask)?).map_err(|_| damaged())?;
        let gateway = addr(gateway)?;
        Ok(Some(Route {
            net,
            gateway: (!gateway.is_unspecified()).then_some(gateway),
            interface: interface.to_owned(),
            // The kernel prints it with its sign, though it has none.
            metric: metric.parse::<i64>().map_err(|_| damaged())? as u32,
        }))
    });
    routes.filter_map(Result::transpose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
campus\t00006064\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
aerie-1\t0000600A\t00000000\t0001\t0\t0\t0\t0000E0FF\t0\t0\t0
";

    fn range(text: &str) -> VirtualRange {
        text.parse().unwrap()
    }

    #[test]
    fn the_kernels_table_is_read() {
        let routes = parse(TABLE).unwrap();
        let texts: Vec<_> = routes
            .iter()
            .map(|route| format!("{} {}", route.net, route.interface))
            .collect();
        assert_eq!(texts[1], "192.168.2.0/24 eth0");
        assert_eq!(texts[2], "172.17.0.0/16 docker0");
        assert_eq!(texts[3], "100.96.0.0/16 campus");
        assert!(parse("head\neth0 xyz\n").is_err());
    }

    #[test]
    fn the_default_route_with_the_least_metric_names_the_router() {
        let gateway = |table: &str| gateway_of(&parse(table).unwrap());
        assert_eq!(gateway(TABLE), Some(Ipv4Addr::new(192, 168, 2, 1)));
        let better = "wlan0\t00000000\t0104A8C0\t0003\t0\t0\t{}\t00000000\t0\t0\t0\n";
        let worse = TABLE.to_owned() + &better.replace("{}", "600");
        assert_eq!(gateway(&worse), Some(Ipv4Addr::new(192, 168, 2, 1)));
        let last = TABLE.to_owned() + &better.replace("{}", "-16769024");
        assert_eq!(gateway(&last), Some(Ipv4Addr::new(192, 168, 2, 1)));
        let without = TABLE.replace("0102A8C0", "00000000");
        assert_eq!(
            gateway(&without),
            None,
            "a default route may lead to an interface"
        );
    }

    #[test]
    fn a_route_inside_or_around_the_range_is_an_overlap_with_a_free_alternative() {
        let routes = parse(TABLE).unwrap();
        let found = find(&routes, range("100.96.0.0/11"), "aerie-x").unwrap();
        assert_eq!(
            (found.route.to_string().as_str(), found.interface.as_str()),
            ("100.96.0.0/16", "campus")
        );
        assert_eq!(found.alternative, Some(range("10.128.0.0/11")));
        assert!(find(&routes, range("172.17.3.0/24"), "aerie-x").is_some());
        assert_eq!(find(&routes, range("100.97.0.0/16"), "aerie-x"), None);
    }

    #[test]
    fn the_default_route_and_the_grids_own_do_not_count() {
        let routes = parse(TABLE).unwrap();
        assert_eq!(find(&routes, range("10.96.0.0/11"), "aerie-1"), None);
        assert!(find(&routes, range("10.96.0.0/11"), "aerie-2").is_some());
    }

    #[test]
    fn a_smaller_range_is_offered_where_the_large_ones_are_taken() {
        let busy = |net: &str| Route {
            net: net.parse().unwrap(),
            gateway: None,
            interface: "x".to_owned(),
            metric: 0,
        };
        let routes = [busy("100.64.0.0/10"), busy("10.0.0.0/8"), busy("172.16.0.0/13")];
        let found = find(&routes, range("100.96.0.0/11"), "aerie-x").unwrap();
        assert_eq!(found.alternative, Some(range("172.24.0.0/16")));
        let routes = [
            busy("100.64.0.0/10"),
            busy("10.0.0.0/8"),
            busy("172.16.0.0/12"),
            busy("192.168.0.0/16"),
        ];
        assert_eq!(
            find(&routes, range("100.96.0.0/11"), "aerie-x")
                .unwrap()
                .alternative,
            None
        );
    }

    #[tokio::test]
    async fn this_hosts_own_table_can_be_read() {
        overlap(range("100.96.0.0/11"), "aerie-x").await.unwrap();
    }
}
