//! A site's router that gives its hosts ports on request, as those of homes do: a real miniupnpd.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::NetNs;
use crate::process::Holder;
use crate::wait::{tail, wait_until};

/// How hosts ask for a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortProtocol {
    /// PCP and NAT-PMP.
    Pcp,
    /// UPnP.
    Upnp,
}

/// What miniupnpd adds its rules to. A packet that it has translated is let in by the router's own rules.
const RULES: &str = "
table inet portmap {
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain forward { type filter hook forward priority 10; jump miniupnpd; }
    chain prerouting { type nat hook prerouting priority -110; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 90; jump postrouting_miniupnpd; }
}
";

/// The service. It ends when dropped, and the ports with it.
#[derive(Debug)]
pub struct PortMapper {
    router: NetNs,
    _holder: Holder,
}

impl PortMapper {
    pub(crate) fn start(
        router: NetNs,
        wan: Ipv4Addr,
        by: PortProtocol,
        (rootfs, dir): (&Path, &Path),
    ) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let on = |yes| if yes { "yes" } else { "no" };
        let (pcp, upnp) = (on(by == PortProtocol::Pcp), on(by == PortProtocol::Upnp));
        // The lab's outside is one of the documentation's networks, which it takes for no outside at all unless told.
        let conf = format!(
            "ext_ifname=wan\next_ip={wan}\next_allow_private_ipv4=yes\nlistening_ip=lan\n\
             enable_pcp_pmp={pcp}\nenable_upnp={upnp}\nsecure_mode=yes\n\
             upnp_table_name=portmap\nupnp_nat_table_name=portmap\n\
             uuid=6f9d3a52-5a0b-4c61-9d1b-2f0e8c7a4b11\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n"
        );
        fs::write(dir.join("miniupnpd.conf"), conf)?;
        router.nft(RULES)?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", router.pid()))
            .args(["unshare", "--mount", "--pid", "--fork", "sh", "-c"])
            .arg(include_str!("portmap.sh"))
            .env("LAB_ROOT", rootfs)
            .env("LAB_DIR", dir);
        let log = dir.join("log");
        let holder = Holder::start(command, &log, false)?;
        wait_until(Duration::from_secs(10), "the router to give ports", || {
            let said = fs::read_to_string(&log)?;
            let listens = said.contains("istening");
            Ok((listens && dir.join("pid").exists()).then_some(()))
        })
        .with_context(|| tail(&log, 10))?;
        Ok(Self {
            router,
            _holder: holder,
        })
    }
}

impl PortMapper {
    /// The ports that it gives now, as the router's rules.
    ///
    /// # Errors
    /// When the router is gone.
    pub fn given(&self) -> Result<Vec<String>> {
        let argv = ["list", "chain", "inet", "portmap", "prerouting_miniupnpd"];
        let output = self
            .router
            .enter(|| Command::new("nft").args(argv).output().context("cannot run nft"))?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let rules = String::from_utf8_lossy(&output.stdout);
        let rules = rules.lines().map(str::trim).filter(|line| line.contains("dnat"));
        Ok(rules.map(str::to_owned).collect())
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        // The router may be gone already.
        let _ = self.router.nft("delete table inet portmap\n");
    }
}
