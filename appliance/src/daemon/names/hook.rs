//! The hook into systemd-resolved: its per-link settings, by its own `resolvectl`.
//!
//! They belong to the tunnel's interface and vanish with it, so that nothing is left behind by a daemon that was
//! killed.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use aerie_types::{GridName, Ula, VirtualAddr, VirtualNet, VirtualRange};
use tokio::process::Command;

/// Is there while systemd-resolved runs.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// How long one setting may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most domains of addresses told; those of a range of /9 or longer.
const MAX_ZONES: usize = 128;

/// Lets the system's resolver ask `server` for the grid's names and addresses, and for nothing else. Says whether
/// there is such a resolver.
pub(super) async fn tell(
    interface: &str,
    server: VirtualAddr,
    grid: &GridName,
    net: VirtualNet,
) -> Result<bool, String> {
    if !Path::new(RESOLVED).exists() {
        return Ok(false);
    }
    let domains: Vec<String> = [format!("~{grid}.grid")]
        .into_iter()
        .chain(
            reverse_zones(net.range)
                .into_iter()
                .map(|zone| format!("~{zone}")),
        )
        .chain([format!("~{}", reverse_zone_v6(net.ula))])
        .collect();
    let server = server.to_string();
    let mut set_domains = vec!["domain", interface];
    set_domains.extend(domains.iter().map(String::as_str));
    for arguments in [
        &["dns", interface, &server][..],
        &set_domains,
        &["default-route", interface, "false"],
        // The tunnel authenticates and encrypts; the grid's domain is signed by nobody else.
        &["dnssec", interface, "no"],
        &["dnsovertls", interface, "no"],
        &["llmnr", interface, "no"],
        &["mdns", interface, "no"],
    ] {
        resolvectl(arguments).await?;
    }
    Ok(true)
}

async fn resolvectl(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("resolvectl");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let said = |reason: String| format!("resolvectl {}: {reason}", arguments.join(" "));
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .map_err(|_| said(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| said(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(said(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The zones below `in-addr.arpa` that make up a range: as many of whole octets as it takes. None for one that would
/// take too many; its addresses then have no names by this way.
fn reverse_zones(range: VirtualRange) -> Vec<String> {
    let net = range.net();
    let octets = usize::from(net.prefix_len()).div_ceil(8).clamp(1, 3);
    let Ok(subnets) = net.subnets(u8::try_from(octets * 8).unwrap_or(24).max(net.prefix_len())) else {
        return Vec::new();
    };
    let mut zones: Vec<String> = subnets
        .take(MAX_ZONES + 1)
        .map(|subnet| {
            let reversed: Vec<String> = subnet.network().octets()[..octets]
                .iter()
                .rev()
                .map(u8::to_string)
                .collect();
            format!("{}.in-addr.arpa", reversed.join("."))
        })
        .collect();
    if zones.len() > MAX_ZONES {
        zones.clear();
    }
    zones
}

/// The zone below `ip6.arpa` of a grid's whole prefix, whose names are nobody else's to ask for.
fn reverse_zone_v6(ula: Ula) -> String {
    let prefix = ula.prefix();
    let digits = format!("{:032x}", u128::from(prefix.addr()));
    let digits = &digits[..usize::from(prefix.prefix_len()) / 4];
    let reversed: Vec<String> = digits.chars().rev().map(String::from).collect();
    format!("{}.ip6.arpa", reversed.join("."))
}

#[cfg(test)]
mod tests {
    use aerie_types::GridId;

    use super::*;

    #[test]
    fn the_prefix_is_one_zone() {
        let ula = Ula::of(GridId([9; 16]));
        assert_eq!(ula.to_string(), "fd5d:9256:40dc::/48");
        assert_eq!(reverse_zone_v6(ula), "c.d.0.4.6.5.2.9.d.5.d.f.ip6.arpa");
    }

    #[test]
    fn a_range_is_made_up_of_zones_of_whole_octets() {
        let zones = |range: &str| reverse_zones(range.parse().unwrap());
        assert_eq!(zones("10.0.0.0/8"), ["10.in-addr.arpa"]);
        assert_eq!(zones("10.128.5.0/24"), ["5.128.10.in-addr.arpa"]);
        assert_eq!(
            zones("10.128.4.0/23"),
            ["4.128.10.in-addr.arpa", "5.128.10.in-addr.arpa"]
        );
        let large = zones("100.96.0.0/11");
        assert_eq!(large.len(), 32);
        assert_eq!(large[31], "127.100.in-addr.arpa");
    }
}
