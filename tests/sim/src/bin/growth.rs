//! `cargo xtask bench growth [-- --nodes N ...] [--json] [--svg FILE]`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use aerie_sim::growth::{self, Cost, Point};
use aerie_sim::kad::Spread;
use anyhow::{Result, anyhow};
use clap::Parser;
use comfy_table::{Table, presets};
use plotters::prelude::*;
use serde_json::{Value, json};

/// What claims and look-ups cost as a simulated grid grows; fails if the messages of a look-up grow faster than log N
/// from 200 nodes on.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench growth")]
struct Options {
    /// How many nodes; may be given several times.
    #[arg(long, default_values_t = growth::SIZES)]
    nodes: Vec<usize>,
    /// Claims and look-ups in each grid.
    #[arg(long, default_value_t = 50)]
    operations: usize,
    /// From this everything that is left to chance follows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Draw the messages over the size into this file.
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// Nearly all that a simulation does is to make, keep and drop small things of thousands of nodes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut points = Vec::new();
    for nodes in options.nodes.iter().copied() {
        eprintln!("── {nodes} nodes");
        let begun = Instant::now();
        let mut progress = |step: &str| eprintln!("   {:>5} s: {step}", begun.elapsed().as_secs());
        let point = growth::measure(nodes, options.operations, options.seed, &mut progress);
        eprintln!(
            "   a look-up takes {:.0} messages, a claim {:.0}",
            point.look_up.messages.p50, point.claim.messages.p50
        );
        points.push(point);
        // Each size takes much longer than the one before: what is known by then is not to be lost.
        if let Some(path) = options.svg.as_ref().filter(|_| points.len() > 1) {
            draw(&points, path).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))?;
        }
    }
    let excesses = growth::excesses(&points);
    if options.json {
        println!("{}", as_json(&points, &excesses));
    } else {
        println!("{}", as_table(&points));
    }
    for excess in &excesses {
        eprintln!("error: {excess}");
    }
    Ok(ExitCode::from(u8::from(!excesses.is_empty())))
}

fn operations(point: &Point) -> [(&'static str, Cost); 3] {
    [
        ("look-up", point.look_up),
        ("claim", point.claim),
        ("16 claim one address", point.contest),
    ]
}

fn as_table(points: &[Point]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([
        "nodes",
        "p50 / p95 of",
        "messages of the register",
        "of Kademlia",
        "rounds",
        "time",
        "served",
    ]);
    let pair = |spread: Spread| format!("{:.0} / {:.0}", spread.p50, spread.p95);
    for point in points {
        for (name, cost) in operations(point) {
            table.add_row([
                point.nodes.to_string(),
                name.to_owned(),
                pair(cost.register),
                pair(cost.kademlia),
                pair(cost.rounds),
                format!("{} ms", pair(cost.took_ms)),
                format!("{} of {}", cost.ended, cost.count),
            ]);
        }
    }
    table
}

fn as_json(points: &[Point], excesses: &[String]) -> Value {
    let spread = |spread: Spread| json!({ "mean": spread.mean, "p50": spread.p50, "p95": spread.p95 });
    let cost = |cost: Cost| {
        json!({
            "count": cost.count,
            "served": cost.ended,
            "register_messages": spread(cost.register),
            "kademlia_messages": spread(cost.kademlia),
            "rounds": spread(cost.rounds),
            "took_ms": spread(cost.took_ms),
        })
    };
    let point = |point: &Point| {
        json!({
            "nodes": point.nodes,
            "look_up": cost(point.look_up),
            "claim": cost(point.claim),
            "contest": cost(point.contest),
        })
    };
    json!({ "points": points.iter().map(point).collect::<Vec<_>>(), "excesses": excesses })
}

/// Draws the mean messages of a claim and of a look-up over the logarithm of the size, and what log N allows.
fn draw(points: &[Point], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    #[expect(clippy::cast_precision_loss, reason = "thousands of nodes")]
    let size = |point: &Point| point.nodes as f64;
    let series = |figure: &dyn Fn(&Point) -> f64| -> Vec<(f64, f64)> {
        points.iter().map(|point| (size(point), figure(point))).collect()
    };
    let look_ups = series(&|point| point.look_up.messages.mean);
    let claims = series(&|point| point.claim.messages.mean);
    let from = points.iter().find(|point| point.nodes >= growth::FROM);
    let allowed: Vec<_> = from
        .map(|from| {
            let (least, messages) = (size(from), from.look_up.messages.mean);
            let line = points.iter().map(size).filter(move |nodes| *nodes >= least);
            line.map(move |nodes| (nodes, messages * nodes.ln() / least.ln()))
                .collect()
        })
        .unwrap_or_default();
    let all = || look_ups.iter().chain(&claims).chain(&allowed);
    let most = all().map(|(_, messages)| *messages).fold(1.0, f64::max);
    let (least, largest) = all().fold((f64::MAX, 2.0), |(low, high), (nodes, _)| {
        (nodes.min(low), nodes.max(high))
    });
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Messages of a look-up and of a claim, mean", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((least..largest).log_scale(), 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("nodes")
        .y_desc("messages")
        .x_label_formatter(&|nodes| format!("{nodes:.0}"))
        .draw()?;
    let lines = [
        ("look-up", look_ups, BLUE),
        ("claim", claims, RED),
        ("what log N allows a look-up", allowed, RGBColor(120, 120, 120)),
    ];
    for (name, line, color) in lines {
        chart
            .draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        let dots = line.into_iter().map(|at| Circle::new(at, 3, color.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}
