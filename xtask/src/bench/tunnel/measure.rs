//! The measurements of one contestant in one round.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use aerie_lab::process::{Process, Usage};
use aerie_lab::wait::wait_until;
use anyhow::{Context, Result, ensure};

use super::contestants::Tunnel;
use super::figures::{Measure, median};
use super::parse::{self, Received};
use super::program::Program;

/// What iperf3 may take beside the time of its test: connecting, and telling its results through a full link.
const GRACE: Duration = Duration::from_secs(20);

/// How long iperf3's server may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(5);

/// The pauses between two pings, in seconds: idle, and under load, where they shall not add to it.
const IDLE_PAUSE: &str = "0.005";
const LOADED_PAUSE: &str = "0.02";

/// How much longer the load lasts than the pings in it.
const LOAD_MARGIN: u64 = 2;

const LARGE: u32 = 1200;
const SMALL: u32 = 64;

/// Measures a contestant that runs. Each value is told as soon as it is known; what fails is told too and left out.
pub(super) fn all(tunnel: &Tunnel<'_>, seconds: u64, dir: &Path, mut tell: impl FnMut(Measure, Result<f64>)) {
    let bench = Bench { tunnel, dir };
    tell(Measure::PingIdle, bench.ping(IDLE_PAUSE, seconds));
    match bench.one_stream(seconds) {
        Ok((speed, cpu)) => {
            tell(Measure::TcpOne, Ok(speed));
            if let Some(cpu) = cpu {
                tell(Measure::Cpu, Ok(cpu));
            }
        }
        Err(error) => tell(Measure::TcpOne, Err(error)),
    }
    let speed = |options: &[&str]| bench.iperf3(seconds, options).map(Received::gbit_per_second);
    tell(Measure::TcpFour, speed(&["--parallel", "4"]));
    tell(Measure::TcpReverse, speed(&["--reverse"]));
    tell(Measure::PingLoaded, bench.ping_loaded(seconds));
    tell(Measure::UdpLarge, bench.udp(LARGE, seconds));
    tell(Measure::UdpSmall, bench.udp(SMALL, seconds));
    if !tunnel.daemons().is_empty() {
        tell(Measure::Memory, bench.peak_mib());
    }
}

struct Bench<'a> {
    tunnel: &'a Tunnel<'a>,
    dir: &'a Path,
}

impl Bench<'_> {
    /// The speed of one stream in Gbit/s, and the seconds of processor time of all daemons for each GiB of it.
    fn one_stream(&self, seconds: u64) -> Result<(f64, Option<f64>)> {
        let before = self.usage()?;
        let received = self.iperf3(seconds, &[])?;
        let after = self.usage()?;
        let spent: f64 = before
            .iter()
            .zip(&after)
            .map(|(before, after)| (after.cpu.saturating_sub(before.cpu)).as_secs_f64())
            .sum();
        let cpu = (!after.is_empty()).then(|| spent / received.gib());
        Ok((received.gbit_per_second(), cpu))
    }

    /// Thousands of datagrams a second that arrive when the sender sends as many as it can.
    fn udp(&self, payload: u32, seconds: u64) -> Result<f64> {
        let length = payload.to_string();
        let received = self.iperf3(seconds, &["--udp", "--bitrate", "0", "--length", &length])?;
        Ok(received.kpps(payload))
    }

    fn ping_loaded(&self, seconds: u64) -> Result<f64> {
        let (_server, load) = self.iperf3_start(seconds + LOAD_MARGIN, &[])?;
        let ping = self.ping(LOADED_PAUSE, seconds);
        parse::iperf3(&load.output(Duration::from_secs(seconds) + GRACE)?)?;
        ping
    }

    /// The median round trip in microseconds.
    fn ping(&self, pause: &str, seconds: u64) -> Result<f64> {
        let addr = self.tunnel.addr.to_string();
        let deadline = seconds.to_string();
        let argv = ["ping", "-n", "-i", pause, "-w", &deadline, &addr];
        let ping = Program::start(self.tunnel.client, self.dir, "ping", &argv)?;
        let text = ping.output(Duration::from_secs(seconds) + GRACE)?;
        median(&parse::ping(&text)).context("no ping was answered")
    }

    fn iperf3(&self, seconds: u64, options: &[&str]) -> Result<Received> {
        let (_server, client) = self.iperf3_start(seconds, options)?;
        parse::iperf3(&client.output(Duration::from_secs(seconds) + GRACE)?)
    }

    /// A server for one test, and its client.
    fn iperf3_start(&self, seconds: u64, options: &[&str]) -> Result<(Program, Program)> {
        let addr = self.tunnel.addr.to_string();
        let argv = ["iperf3", "--server", "--one-off", "--bind", &addr];
        let mut server = Program::start(self.tunnel.server, self.dir, "iperf3-server", &argv)?;
        let process = server.process();
        wait_until(LISTEN_LIMIT, "iperf3 to listen", || {
            server.ensure_running()?;
            Ok(listens(process, self.tunnel.addr)?.then_some(()))
        })?;
        let time = seconds.to_string();
        let mut argv = vec!["iperf3", "--client", &addr, "--time", &time, "--json"];
        argv.extend(options);
        let client = Program::start(self.tunnel.client, self.dir, "iperf3", &argv)?;
        Ok((server, client))
    }

    fn usage(&self) -> Result<Vec<Usage>> {
        let daemons = self.tunnel.daemons();
        let usages = daemons.iter().map(|process| process.usage());
        usages.collect::<Option<_>>().context("a daemon has ended")
    }

    /// The larger of the daemons' most resident memory.
    fn peak_mib(&self) -> Result<f64> {
        let peak = self.usage()?.iter().map(|usage| usage.peak).max();
        let peak = peak.unwrap_or_default();
        ensure!(
            peak > 0,
            "the kernel does not say how much memory the daemons had"
        );
        Ok(peak as f64 / f64::from(1 << 20))
    }
}

/// Whether something listens at an address and iperf3's port in the network namespace of a process.
fn listens(process: Process, addr: Ipv4Addr) -> Result<bool> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", process.pid))?;
    Ok(is_listed(&table, addr))
}

/// iperf3's own port.
const PORT: u16 = 5201;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

fn is_listed(table: &str, addr: Ipv4Addr) -> bool {
    // The address is printed as a number of the machine's own byte order.
    let local = format!("{:08X}:{PORT:04X}", u32::from_ne_bytes(addr.octets()));
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(&local) && words.nth(1) == Some(LISTENING)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_listening_socket_is_told_apart_from_connections() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
                     0: 0200000A:1451 00000000:0000 0A 00000000:00000000\n   \
                     1: 0300000A:1451 0200000A:9999 01 00000000:00000000\n";
        assert!(is_listed(table, Ipv4Addr::new(10, 0, 0, 2)));
        assert!(!is_listed(table, Ipv4Addr::new(10, 0, 0, 3)));
        assert!(!is_listed(table, Ipv4Addr::new(10, 0, 0, 4)));
    }
}
