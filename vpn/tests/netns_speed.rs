//! How fast the tunnel is: a measurement, to be asked for by name with `--release --run-ignored all`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use common::netns::{Namespace, block_on};
use common::{Switchboard, addr};

/// Seconds of each run.
const SECONDS: u32 = 5;

#[test]
#[ignore = "a measurement"]
fn iperf3_between_two_hosts() {
    let (a, b) = (Namespace::new(), Namespace::new());
    a.link("eth0", "10.1.0.1/24", &b, "eth0", "10.1.0.2/24");
    let board = Switchboard::default();
    let (node_a, node_b) = (a.node(1, &board, None), b.node(2, &board, None));
    a.ping(2);
    let mut server = b.command("iperf3 -s").stdout(Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_millis(500));
    let to = addr(2).v4().unwrap();
    for (name, options) in [
        ("one stream", ""),
        ("four streams", "-P 4"),
        ("reverse", "-R"),
        ("one stream", ""),
        ("UDP of 1,200 bytes", "-u -b 0 -l 1200"),
    ] {
        let output = a
            .command(&format!("iperf3 -c {to} -t {SECONDS} -O 1 -f m {options}"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = if options.contains("-P") { "[SUM]" } else { "[ " };
        let line = text
            .lines()
            .rfind(|line| line.contains("receiver") && line.starts_with(sum));
        eprintln!("{name}: {}", line.unwrap_or(&text));
    }
    let ping = a
        .command(&format!("ping -c 200 -i 0.005 -q {to}"))
        .output()
        .unwrap();
    eprintln!("{}", String::from_utf8_lossy(&ping.stdout));
    server.kill().unwrap();
    server.wait().unwrap();
    block_on(node_a.shutdown());
    block_on(node_b.shutdown());
}
