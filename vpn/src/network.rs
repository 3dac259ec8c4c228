//! What the driver knows of this host's network, and when it looks again.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aerie_types::VirtualNet;
use aerie_vpn_proto::{Now, Tunnels};

use crate::Error;
use crate::io::Udp;
use crate::io::changes::Changes;

/// How often the addresses are looked at, whether a change was noticed or not.
const EVERY: Duration = Duration::from_secs(5);
/// How soon after a change: an interface that comes up gets its addresses and routes one after the other.
const SETTLE: Duration = Duration::from_millis(50);

/// This host's addresses and where they lead, as they were when it was looked at last.
pub(crate) struct HostNetwork {
    /// Where the kernel says that something may have changed; `None` where it cannot be asked to.
    changes: Option<Changes>,
    outward: Vec<IpAddr>,
    next: Instant,
}

impl HostNetwork {
    /// Looks for the first time, and tells the core.
    ///
    /// # Errors
    /// [`Error::Interfaces`].
    pub(crate) fn look_first(
        udp: &impl Udp,
        (net, interface): (VirtualNet, &str),
        core: &mut Tunnels,
        now: Now,
    ) -> Result<Self, Error> {
        let changes = Changes::watch().inspect_err(warn).ok();
        core.set_hosts(udp.hosts(net, interface)?, now);
        Ok(Self {
            changes,
            outward: udp.outward(),
            next: now.instant + EVERY,
        })
    }

    /// When it is to be looked at again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Completes when something may have changed.
    ///
    /// # Errors
    /// The kernel says no more.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        match &self.changes {
            Some(changes) => changes.next().await,
            None => std::future::pending().await,
        }
    }

    /// Something may have changed, as [`HostNetwork::changed`] said.
    pub(crate) fn hurry(&mut self, changed: &io::Result<()>, now: Instant) {
        if let Err(error) = changed {
            warn(error);
            self.changes = None;
        }
        self.next = self.next.min(now + SETTLE);
    }

    /// Looks, if it is time to, and tells the core what has changed. Whether anything has.
    pub(crate) fn look(
        &mut self,
        udp: &impl Udp,
        (net, interface): (VirtualNet, &str),
        core: &mut Tunnels,
        now: Now,
    ) -> bool {
        if now.instant < self.next {
            return false;
        }
        self.next = now.instant + EVERY;
        let outward = udp.outward();
        let moved = outward != self.outward;
        if moved {
            // Another default route, though all addresses may be as they were.
            self.outward = outward;
            core.network_changed(now);
        }
        match udp.hosts(net, interface) {
            Ok(hosts) => core.set_hosts(hosts, now),
            Err(error) => {
                tracing::debug!(%error, "the interfaces could not be read; looking again later");
            }
        }
        moved
    }
}

fn warn(error: &io::Error) {
    tracing::warn!(%error, "changes of the network are noticed some seconds late");
}
