//! `aerie-kad-compare`: the simulator's Kademlia beside libp2p's, and alone in large grids.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use aerie_kad_compare::compare::Comparison;
use aerie_kad_compare::growth;
use aerie_sim::kad::{Plan, Settings};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::Value;

#[derive(Debug, Parser)]
#[command(about = "The simulator's Kademlia beside libp2p's, and alone in large grids.")]
struct Args {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// The same grids with libp2p and with the stand-in; fails if messages or accuracy differ by more than a tenth.
    Compare(Compare),
    /// What a look-up costs as the grid grows; fails if messages grow faster than log N from 200 members on.
    Growth(Growth),
}

#[derive(Debug, clap::Args)]
struct Compare {
    /// How many members; may be given several times.
    #[arg(long, default_values_t = [200, 1000])]
    members: Vec<usize>,
    /// Look-ups before, and as many after members died.
    #[arg(long, default_value_t = 200)]
    lookups: usize,
    /// Milliseconds from one member's joining to the next one's: with fewer, the machine may not keep up with libp2p.
    #[arg(long, default_value_t = 100)]
    join_every: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Growth {
    /// How many members; may be given several times.
    #[arg(long, default_values_t = growth::SIZES)]
    members: Vec<usize>,
    /// Look-ups in each grid.
    #[arg(long, default_value_t = 200)]
    lookups: usize,
    /// The delay of a message, one way, in milliseconds.
    #[arg(long, default_value_t = 20)]
    delay: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// To how many members connections are kept.
    #[arg(long, default_value_t = Settings::default().limit)]
    limit: usize,
    /// Keep members in the table whose connections have closed, as Kademlia by itself does.
    #[arg(long)]
    keep_closed: bool,
    /// From this everything that is left to chance follows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the figures to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Common {
    fn settings(&self) -> Settings {
        Settings {
            limit: self.limit,
            forget_closed: !self.keep_closed,
            ..Settings::default()
        }
    }

    fn write(&self, figures: &Value) -> Result<()> {
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(figures)?;
            std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn main() -> Result<ExitCode> {
    let bad = match Args::parse().command {
        Sub::Compare(args) => compare(&args)?,
        Sub::Growth(args) => grow(&args)?,
    };
    for line in &bad {
        eprintln!("error: {line}");
    }
    Ok(if bad.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn compare(args: &Compare) -> Result<Vec<String>> {
    let settings = args.common.settings();
    let mut bad = Vec::new();
    let mut all = Vec::new();
    for members in args.members.iter().copied() {
        let mut plan = Plan::new(aerie_kad_compare::members(members)?, args.common.seed);
        plan.lookups = args.lookups;
        plan.join_every = Duration::from_millis(args.join_every);
        eprintln!("── {members} members, with the stand-in");
        let stand_in = plan.simulate(settings.clone());
        eprintln!("── {members} members, with libp2p, in real time");
        let runtime = tokio::runtime::Runtime::new()?;
        let real = runtime.block_on(aerie_kad_compare::run(&plan, &settings))?;
        // What is left of the swarms is not waited for.
        runtime.shutdown_background();
        let comparison = Comparison {
            members,
            real,
            stand_in,
        };
        println!("{}", comparison.table());
        let differences = comparison.differences();
        if differences.is_empty() {
            println!("the stand-in is within 10% of libp2p in messages and accuracy");
        }
        bad.extend(differences);
        all.push(comparison.json());
    }
    args.common.write(&Value::Array(all))?;
    Ok(bad)
}

fn grow(args: &Growth) -> Result<Vec<String>> {
    let settings = Settings {
        delay: Duration::from_millis(args.delay),
        ..args.common.settings()
    };
    let mut points = Vec::new();
    for members in args.members.iter().copied() {
        eprintln!("── {members} members");
        points.push(growth::measure(
            members,
            args.lookups,
            args.common.seed,
            &settings,
        ));
    }
    println!("{}", growth::table(&points));
    args.common.write(&growth::json(&points, &settings))?;
    let excesses = growth::excesses(&points);
    if excesses.is_empty() {
        println!(
            "messages grow no faster than log N from {} members on",
            growth::FROM
        );
    }
    Ok(excesses)
}
