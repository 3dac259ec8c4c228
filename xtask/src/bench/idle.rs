//! `cargo xtask bench idle`.

use std::time::Duration;

use aerie_lab::campus::Campus;
use aerie_lab::grid::Member;
use aerie_lab::process::{Process, Usage};
use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};

use super::Common;

/// What is promised of a daemon at rest.
const MAX_RSS_MIB: f64 = 30.0;
const MAX_CORE_PERCENT: f64 = 0.3;
/// In a day, sent and received, beside what goes through the tunnel's interface: HTCondor's.
const MAX_TRAFFIC_MB: f64 = 60.0;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How long the grid is left alone before that: in their first two minutes nodes still look for better paths.
    #[arg(long, default_value_t = 150)]
    settle: u64,
}

struct Figure {
    node: String,
    rss_mib: f64,
    private_mib: f64,
    core_percent: f64,
    /// In a day, sent and received, without what went through the tunnel.
    traffic_mb: f64,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let figures = super::on_campus(args.common, |campus| measure(campus, args))?;
    if args.common.json {
        let values: Vec<_> = figures
            .iter()
            .map(|figure| {
                serde_json::json!({
                    "node": figure.node,
                    "rss_mib": figure.rss_mib,
                    "private_mib": figure.private_mib,
                    "core_percent": figure.core_percent,
                    "traffic_mb_a_day": figure.traffic_mb,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&values)?);
    } else {
        show(&figures);
    }
    let over: Vec<_> = figures
        .iter()
        .filter(|figure| {
            figure.rss_mib > MAX_RSS_MIB
                || figure.core_percent > MAX_CORE_PERCENT
                || figure.traffic_mb > MAX_TRAFFIC_MB
        })
        .map(|figure| figure.node.as_str())
        .collect();
    ensure!(
        over.is_empty(),
        "over the promise of {MAX_RSS_MIB} MiB, {MAX_CORE_PERCENT}% of a core and {MAX_TRAFFIC_MB} MB a day: {}",
        over.join(", ")
    );
    Ok(())
}

fn measure(campus: &Campus<'_>, args: &Args) -> Result<Vec<Figure>> {
    eprintln!(
        "── left alone for {} s, then measured for {} s",
        args.settle, args.seconds
    );
    // Time itself is what is measured here.
    std::thread::sleep(Duration::from_secs(args.settle));
    let daemons: Vec<(&Member, Process)> = campus
        .members
        .values()
        .chain([&campus.grid.hub])
        .map(|member| Ok((member, member.daemon()?.process())))
        .collect::<Result<_>>()?;
    let usage = |(member, process): &(&Member, Process)| {
        let usage = process.usage().context("a daemon has ended")?;
        Ok((usage, traffic(&member.node.get("/proc/net/dev")?)))
    };
    let before = daemons.iter().map(usage).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(args.seconds));
    daemons
        .iter()
        .zip(before)
        .map(|(daemon, (before, sent_before))| {
            let (usage, sent) = usage(daemon)?;
            let Usage {
                cpu, rss, private, ..
            } = usage;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            Ok(Figure {
                node: daemon.0.node.name().to_owned(),
                rss_mib: mib(rss),
                private_mib: mib(private),
                core_percent: (cpu - before.cpu).as_secs_f64() / args.seconds as f64 * 100.0,
                traffic_mb: sent.saturating_sub(sent_before) as f64 / args.seconds as f64 * 86_400.0 / 1e6,
            })
        })
        .collect()
}

/// What the wire has carried beside the tunnel's packets, in bytes of both directions.
fn traffic(dev: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(dev);
    let of = |prefix: &str| -> u64 {
        let interfaces = text.lines().filter_map(|line| line.trim().split_once(':'));
        let counted = interfaces.filter(|(name, _)| name.starts_with(prefix));
        let bytes = counted.map(|(_, counts)| {
            // Received and sent bytes are the first and the ninth column.
            let columns: Vec<u64> = counts
                .split_whitespace()
                .filter_map(|count| count.parse().ok())
                .collect();
            columns.first().unwrap_or(&0) + columns.get(8).unwrap_or(&0)
        });
        bytes.sum()
    };
    of("eth").saturating_sub(of("aerie-"))
}

fn show(figures: &[Figure]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "node",
        "RSS MiB",
        "private MiB",
        "% of a core",
        "MB a day",
    ]);
    let right = |value: f64, digits: usize| {
        Cell::new(format!("{value:.digits$}")).set_alignment(CellAlignment::Right)
    };
    for figure in figures {
        table.add_row([
            Cell::new(&figure.node),
            right(figure.rss_mib, 1),
            right(figure.private_mib, 1),
            right(figure.core_percent, 2),
            right(figure.traffic_mb, 1),
        ]);
    }
    println!("{table}");
    println!(
        "promised: at most {MAX_RSS_MIB} MiB and {MAX_CORE_PERCENT}% of a core, {MAX_TRAFFIC_MB} MB a day without HTCondor's"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_through_the_tunnel_is_taken_off() {
        let dev = b"Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop\n    \
            lo:  9000      1    0    0    0     0          0         0  9000      1    0    0    0 0 0 0\n  \
            eth0:  1000      1    0    0    0     0          0         0  500      1    0    0    0 0 0 0\n\
            aerie-1a2b: 300 1    0    0    0     0          0         0  200      1    0    0    0 0 0 0\n";
        assert_eq!(traffic(dev), 1000);
    }
}
