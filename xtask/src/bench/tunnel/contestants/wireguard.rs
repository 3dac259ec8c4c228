//! WireGuard in user space: wireguard-go, and gotatun. Both are told their keys through `wg`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aerie_lab::wait::wait_until;
use anyhow::{Context, Result};

use super::{Contestant, INSIDE, Stage, Tunnel};
use crate::bench::tunnel::program::{Program, run, run_here};
use crate::bench::tunnel::{install, private};

const PORT: u16 = 51820;

/// What is left of 1,500 bytes below WireGuard's headers; `wg-quick` sets it so.
const MTU: &str = "1420";

/// Where daemons of WireGuard listen for `wg`. gotatun leaves its socket there when it ends.
const SOCKETS: &str = "/var/run/wireguard";

/// How long a daemon may take to listen for its keys.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

pub(super) struct WireGuard<'a> {
    stage: &'a Stage,
    name: &'static str,
    program: PathBuf,
    options: &'static [&'static str],
    version: String,
    /// For each end the file of its private key, and its public key.
    keys: [(String, String); 2],
}

impl<'a> WireGuard<'a> {
    pub(super) fn go(stage: &'a Stage) -> Result<Self> {
        let package = install::newest_debian("wireguard-go")?;
        let program = package.dir.join("usr/bin/wireguard-go");
        Self::prepare(stage, "wireguard-go", program, &["--foreground"], package.version)
    }

    pub(super) fn gotatun(stage: &'a Stage) -> Result<Self> {
        let program = install::crate_program("gotatun-cli", "gotatun")?;
        let said = run_here(&[&program.to_string_lossy(), "--version"])?;
        let version = said.split_whitespace().last().unwrap_or_default().to_owned();
        let options = &["--foreground", "--disable-drop-privileges"];
        Self::prepare(stage, "gotatun", program, options, version)
    }

    fn prepare(
        stage: &'a Stage,
        name: &'static str,
        program: PathBuf,
        options: &'static [&'static str],
        version: String,
    ) -> Result<Self> {
        install::debian_package("wireguard-tools")?;
        let key = |end: &str| -> Result<(String, String)> {
            let file = stage.dir.join(format!("{name}-{end}.key"));
            private(&file, run_here(&["wg", "genkey"])?.as_bytes())?;
            let file = file.to_string_lossy().into_owned();
            let public = run_here(&["sh", "-c", "wg pubkey <\"$0\"", &file])?;
            Ok((file, public.trim().to_owned()))
        };
        Ok(Self {
            stage,
            name,
            program,
            options,
            version,
            keys: [key("a")?, key("b")?],
        })
    }

    fn start_end(&self, own: usize) -> Result<Program> {
        let other = 1 - own;
        let (end, peer) = (self.stage.ends[own], self.stage.ends[other]);
        // The name is that of the daemon's control socket too, which is the host's.
        let interface = format!("wg{}{}", std::process::id(), ["a", "b"][own]);
        let program = self.program.to_string_lossy();
        let mut argv = vec![&*program];
        argv.extend(self.options);
        argv.push(&interface);
        let mut daemon = Program::start(end.net, &self.stage.dir, &format!("{}-{own}", self.name), &argv)?;
        daemon.leaves(Path::new(SOCKETS).join(format!("{interface}.sock")));
        let (port, endpoint) = (PORT.to_string(), format!("{}:{PORT}", peer.addr));
        let allowed = format!("{}/32", INSIDE[other]);
        let set = [
            "wg",
            "set",
            &interface,
            "private-key",
            &self.keys[own].0,
            "listen-port",
            &port,
            "peer",
            &self.keys[other].1,
            "allowed-ips",
            &allowed,
            "endpoint",
            &endpoint,
        ];
        wait_until(LISTEN_LIMIT, &format!("{} to take its keys", self.name), || {
            daemon.ensure_running()?;
            run(end.net, &set).map(Some)
        })
        .with_context(|| daemon.said())?;
        let addr = format!("{}/24", INSIDE[own]);
        run(end.net, &["ip", "addr", "add", &addr, "dev", &interface])?;
        run(end.net, &["ip", "link", "set", &interface, "mtu", MTU, "up"])?;
        Ok(daemon)
    }
}

impl Contestant for WireGuard<'_> {
    fn version(&self) -> &str {
        &self.version
    }

    fn start(&self) -> Result<Tunnel<'_>> {
        let daemons = vec![self.start_end(0)?, self.start_end(1)?];
        Ok(Tunnel::staged(self.stage, daemons, super::WIREGUARD_CIPHER))
    }
}
