//! How fast the tunnel is: a measurement, to be asked for by name with `--release --run-ignored all`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use common::netns::{Namespace, block_on, cpu_time};
use common::{Switchboard, addr};

/// Seconds of each run.
const SECONDS: u32 = 5;
/// Seconds before that which do not count.
const WARM_UP: u32 = 1;

/// Ends with the test, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "a measurement"]
fn iperf3_between_two_hosts() {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    let board = Switchboard::default();
    let (node_a, node_b) = (a.node(1, &board, None), b.node(2, &board, None));
    a.ping(2);
    let _server = Server(b.command("iperf3 -s").stdout(Stdio::null()).spawn().unwrap());
    thread::sleep(Duration::from_millis(500));
    let to = addr(2).v4().unwrap();
    for (name, options) in [
        ("one stream", ""),
        ("four streams", "-P 4"),
        ("reverse", "-R"),
        ("one stream", ""),
        ("UDP of 1,200 bytes", "-u -b 0 -l 1200"),
        ("UDP of 64 bytes", "-u -b 0 -l 64"),
    ] {
        let before = cpu_time();
        let output = a
            .command(&format!(
                "iperf3 -c {to} -t {SECONDS} -O {WARM_UP} -f m {options}"
            ))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = if options.contains("-P") { "[SUM]" } else { "[ " };
        let line = text
            .lines()
            .rfind(|line| line.contains("receiver") && line.starts_with(sum));
        let Some((rate, rest)) = line.and_then(|line| line.split_once(" Mbits/sec")) else {
            panic!("{name}: {text}");
        };
        let rate: f64 = rate.split_whitespace().last().unwrap().parse().unwrap();
        let gibibytes = rate * 1e6 / 8.0 * f64::from(SECONDS + WARM_UP) / f64::from(1 << 30);
        let cost = (cpu_time() - before) / gibibytes;
        eprintln!(
            "{name}: {rate:.0} Mb/s {}, {cost:.2} s/GiB in both nodes",
            rest.trim_end_matches("receiver").trim()
        );
    }
    let ping = a
        .command(&format!("ping -c 200 -i 0.005 -q {to}"))
        .output()
        .unwrap();
    eprintln!("{}", String::from_utf8_lossy(&ping.stdout));
    block_on(node_a.shutdown());
    block_on(node_b.shutdown());
}
