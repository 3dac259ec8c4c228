//! `cargo xtask bench idle`.

use std::time::Duration;

use aerie_lab::campus::Campus;
use aerie_lab::process::{Process, Usage};
use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};

use super::Common;

/// What is promised of a daemon at rest.
const MAX_RSS_MIB: f64 = 30.0;
const MAX_CORE_PERCENT: f64 = 0.3;

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
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&values)?);
    } else {
        show(&figures);
    }
    let over: Vec<_> = figures
        .iter()
        .filter(|figure| figure.rss_mib > MAX_RSS_MIB || figure.core_percent > MAX_CORE_PERCENT)
        .map(|figure| figure.node.as_str())
        .collect();
    ensure!(
        over.is_empty(),
        "over the promise of {MAX_RSS_MIB} MiB and {MAX_CORE_PERCENT}% of a core: {}",
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
    let daemons: Vec<(String, Process)> = campus
        .members
        .iter()
        .map(|(name, member)| Ok(((*name).to_owned(), member.daemon()?.process())))
        .chain([campus
            .grid
            .hub
            .daemon()
            .map(|daemon| ("hub".to_owned(), daemon.process()))])
        .collect::<Result<_>>()?;
    let usage = |process: &Process| process.usage().context("a daemon has ended");
    let before = daemons
        .iter()
        .map(|(_, process)| usage(process))
        .collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(args.seconds));
    daemons
        .iter()
        .zip(before)
        .map(|((node, process), before)| {
            let Usage {
                cpu, rss, private, ..
            } = usage(process)?;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            Ok(Figure {
                node: node.clone(),
                rss_mib: mib(rss),
                private_mib: mib(private),
                core_percent: (cpu - before.cpu).as_secs_f64() / args.seconds as f64 * 100.0,
            })
        })
        .collect()
}

fn show(figures: &[Figure]) {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["node", "RSS MiB", "private MiB", "% of a core"]);
    let right = |value: f64, digits: usize| {
        Cell::new(format!("{value:.digits$}")).set_alignment(CellAlignment::Right)
    };
    for figure in figures {
        table.add_row([
            Cell::new(&figure.node),
            right(figure.rss_mib, 1),
            right(figure.private_mib, 1),
            right(figure.core_percent, 2),
        ]);
    }
    println!("{table}");
    println!("promised: at most {MAX_RSS_MIB} MiB and {MAX_CORE_PERCENT}% of a core");
}
