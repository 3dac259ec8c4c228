//! Whether this machine can carry the grid: looked at before anything is asked of anybody else.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use aerie_types::VirtualRange;

/// What stands in the way, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) reason: String,
    pub(crate) hint: String,
}

const TUN: &str = "/dev/net/tun";

/// Bit of CAP_NET_ADMIN in the effective set of `/proc/self/status` (linux/capability.h).
const CAP_NET_ADMIN: u64 = 1 << 12;

/// Looks for a usable TUN device and for the right to use it.
pub(crate) fn check_tun() -> Result<(), Obstacle> {
    let capabilities = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    check_tun_at(Path::new(TUN), &capabilities)
}

fn check_tun_at(device: &Path, proc_status: &str) -> Result<(), Obstacle> {
    if !has_net_admin(proc_status) {
        return Err(Obstacle {
            reason: "the daemon may not administer the network (CAP_NET_ADMIN is missing)".to_owned(),
            hint: "run it as root, or give its unit AmbientCapabilities=CAP_NET_ADMIN; in a container add \
                   --cap-add=NET_ADMIN"
                .to_owned(),
        });
    }
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Obstacle {
            reason: format!("there is no TUN device at {}", device.display()),
            hint: "load it with 'modprobe tun'; in a container add --device=/dev/net/tun".to_owned(),
        }),
        Err(error) => Err(Obstacle {
            reason: format!("the TUN device {} cannot be opened: {error}", device.display()),
            hint: "load the tun module, and let the daemon open the device (in a container: \
                   --device=/dev/net/tun)"
                .to_owned(),
        }),
    }
}

fn has_net_admin(proc_status: &str) -> bool {
    proc_status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .is_some_and(|bits| bits & CAP_NET_ADMIN != 0)
}

/// Looks whether the grid's range is free among the host's routes, those of `own_interface` left aside.
pub(crate) async fn check_range(range: VirtualRange, own_interface: &str) -> Result<(), Obstacle> {
    match aerie_vpn::routes::overlap(range, own_interface).await {
        Ok(None) => Ok(()),
        Ok(Some(overlap)) => Err(Obstacle {
            reason: format!(
                "the grid's range {range} overlaps the route {} of interface {}",
                overlap.route, overlap.interface
            ),
            hint: match overlap.alternative {
                Some(free) => format!(
                    "{free} is free on this machine: create the grid with --range {free}, or remove the route"
                ),
                None => "remove the route, or create the grid with another --range".to_owned(),
            },
        }),
        // A table that cannot be read forbids nothing; the kernel will refuse what it cannot do.
        Err(error) => {
            tracing::warn!(%error, "cannot read the host's routes; an overlap would go unnoticed");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "Name:\taerie\nCapEff:\t000001ffffffffff\n";
    const USER: &str = "Name:\taerie\nCapEff:\t0000000000000000\n";

    #[test]
    fn a_daemon_without_rights_is_told_which_one_it_needs() {
        let obstacle = check_tun_at(Path::new("/dev/null"), USER).unwrap_err();
        assert!(obstacle.reason.contains("CAP_NET_ADMIN"), "{}", obstacle.reason);
        assert!(obstacle.hint.contains("root"), "{}", obstacle.hint);
    }

    #[test]
    fn a_machine_without_tun_is_told_to_load_it() {
        let obstacle = check_tun_at(Path::new("/nonexistent/tun"), ROOT).unwrap_err();
        assert!(obstacle.reason.contains("no TUN device"), "{}", obstacle.reason);
        assert!(obstacle.hint.contains("modprobe tun"), "{}", obstacle.hint);
    }
}
