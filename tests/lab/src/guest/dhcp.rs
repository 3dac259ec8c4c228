//! Addresses for the machines of a LAN: `dnsmasq` on the site's router, which answers those that it is told of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::task::Task;
use crate::netns::NetNs;
use crate::network::Lease;
use crate::process::Process;
use crate::wait::wait_until;

/// How long the server may take to start.
const START: Duration = Duration::from_secs(10);

/// What it says once it has.
const LISTENS: &str = "sockets bound exclusively";

/// A server of one LAN.
#[derive(Debug)]
pub(crate) struct Dhcp {
    task: Task,
    hosts: PathBuf,
}

impl Dhcp {
    /// Starts it in the router's namespace; `dir` is for its files and exists.
    pub(crate) fn start(router: NetNs, lan: Lease, dir: &Path, log: PathBuf) -> Result<Self> {
        let hosts = dir.join("hosts");
        fs::create_dir_all(&hosts)?;
        let (network, mask) = lan.network();
        let mut command = Command::new("dnsmasq");
        command
            .args([
                "--keep-in-foreground",
                "--log-facility=-",
                "--user=root",
                "--group=root",
            ])
            .args([
                "--conf-file=/dev/null",
                "--pid-file=",
                "--leasefile-ro",
                "--no-ping",
            ])
            // No names: those of the grid are Aerie's.
            .args(["--port=0", "--bind-interfaces", "--interface=lan"])
            .arg(format!("--dhcp-range={network},static,{mask},1h"))
            .args(["--dhcp-authoritative", "--log-dhcp"])
            .arg(format!("--dhcp-hostsdir={}", hosts.display()));
        let task = Task::start(router, &command, log).context("cannot start dnsmasq")?;
        wait_until(START, "dnsmasq to listen (package dnsmasq-base)", || {
            let said = task.said();
            ensure!(said.contains(LISTENS), "it said: {said}");
            Ok(Some(()))
        })?;
        Ok(Self { task, hosts })
    }

    /// Gives the machine of this lease its address. The server sees the file by itself.
    pub(crate) fn add(&self, name: &str, lease: Lease) -> Result<()> {
        let path = self.hosts.join(name);
        fs::write(&path, format!("{},{}\n", lease.mac_text(), lease.addr))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn process(&self) -> Process {
        self.task.process()
    }
}
