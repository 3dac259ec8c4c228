//! `cargo xtask sim leases --scenario NAME --seeds N [--nodes M] [--routing R] [--first SEED] [--jobs J] [--twice]
//! [--json]`

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use aerie_sim::scenario::{Report, SCENARIOS, Scenario};

use aerie_sim::{REACHED, Routing, Tally};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use comfy_table::{Cell as TableCell, CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

/// Between two lines of progress where no bar can be drawn.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Violations of one seed that are printed.
const SHOWN: usize = 5;

/// Plays courses of faults on simulated grids of the lease register and checks what is promised.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim leases")]
struct Options {
    /// What to play; `list` names all.
    #[arg(long, default_value = "mixed")]
    scenario: String,
    /// How many seeds to play.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Nodes of the grid; the scenario's own number, if not given.
    #[arg(long)]
    nodes: Option<usize>,
    /// How nodes find each other, oracle or kademlia; the scenario's own way, if not given.
    #[arg(long)]
    routing: Option<Routing>,
    /// Runs at the same time; one a core, if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Play each seed twice, and fail where the two runs differ.
    #[arg(long)]
    twice: bool,
    /// Print one JSON object in the end instead of a table.
    #[arg(long)]
    json: bool,
}

/// What is played: a scenario with its nodes, and how these find each other.
#[derive(Debug, Clone, Copy)]
struct Game {
    scenario: &'static Scenario,
    nodes: usize,
    routing: Routing,
}

/// What came of all runs.
#[derive(Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    simulated: Duration,
    tally: Tally,
    failed: Vec<Report>,
    /// Hash over the traces, in the order of the seeds.
    traces: std::collections::BTreeMap<u64, u64>,
}

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Nearly all that a simulation does is to make, keep and drop small things of thousands of nodes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if options.scenario == "list" {
        for scenario in SCENARIOS {
            println!("{:8} {}", scenario.name, scenario.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    let scenario = Scenario::named(&options.scenario).with_context(|| {
        format!(
            "no scenario is called {}; there are {}",
            options.scenario,
            names.join(", ")
        )
    })?;
    let nodes = options.nodes.unwrap_or(scenario.nodes);
    ensure!(
        nodes >= scenario.fewest,
        "{} needs at least {} nodes",
        scenario.name,
        scenario.fewest
    );
    let routing = options.routing.unwrap_or(scenario.routing);
    ensure!(
        routing == Routing::Oracle || !scenario.oracle_only,
        "{} needs the oracle: its nodes have views that no overlay has",
        scenario.name
    );
    let game = Game {
        scenario,
        nodes,
        routing,
    };
    name_the_seed_of_a_panic(game);
    let start = Instant::now();
    let sum = play(game, &options)?;
    let took = start.elapsed();
    if options.json {
        println!("{}", as_json(game, &sum, took));
    } else {
        println!("{}", as_table(game, &sum, took));
    }
    Ok(ExitCode::from(u8::from(!sum.failed.is_empty())))
}

/// Plays all seeds on all cores.
fn play(game: Game, options: &Options) -> Result<Sum> {
    let jobs = match options.jobs {
        Some(jobs) => jobs.max(1),
        None => thread::available_parallelism()?.get(),
    };
    let (next, end) = (AtomicU64::new(options.first), options.first + options.seeds);
    let (sender, reports) = mpsc::channel();
    let mut sum = Sum::default();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let sender = sender.clone();
            scope.spawn(|| {
                let sender = sender;
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || sender.send(one(game, seed, options.twice)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        collect(&mut sum, &reports, game, options.seeds);
    });
    Ok(sum)
}

fn one(game: Game, seed: u64, twice: bool) -> Report {
    SEED.set(Some(seed));
    let mut report = game.run(seed);
    if twice {
        let again = game.run(seed);
        if again.trace != report.trace {
            report.violations.push(format!(
                "two runs of one seed differ: traces {:016x} and {:016x}",
                report.trace, again.trace
            ));
        }
    }
    SEED.set(None);
    report
}

/// Adds the reports up, shows the progress, and tells of each seed that fails at once.
fn collect(sum: &mut Sum, reports: &mpsc::Receiver<Report>, game: Game, seeds: u64) {
    let bar = ProgressBar::new(seeds);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {msg}{elapsed}, {eta} left")
    {
        bar.set_style(style);
    }
    let drawn = std::io::stderr().is_terminal();
    let mut told = Instant::now();
    loop {
        let report = match reports.recv_timeout(PROGRESS_EVERY) {
            Ok(report) => Some(report),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        // How far a long run is, which may be the only one.
        let reached = REACHED.load(Ordering::Relaxed);
        bar.set_message(format!("at {reached} s simulated, {} failed, ", sum.failed.len()));
        if !drawn && told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            // Progress is only a courtesy.
            let _ = writeln!(
                std::io::stderr(),
                "{}/{seeds} seeds, {} failed, at {reached} s simulated",
                sum.seeds,
                sum.failed.len()
            );
        }
        let Some(report) = report else { continue };
        sum.seeds += 1;
        sum.steps += report.steps;
        sum.simulated += report.simulated;
        sum.tally.add(&report.tally);
        sum.traces.insert(report.seed, report.trace);
        if !report.violations.is_empty() {
            bar.suspend(|| eprint!("{}", failure(&report, game)));
            sum.failed.push(report);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    sum.failed.sort_by_key(|report| report.seed);
}

fn failure(report: &Report, game: Game) -> String {
    let mut text = format!("seed {} fails (trace {:016x}):\n", report.seed, report.trace);
    for violation in report.violations.iter().take(SHOWN) {
        text += &format!("  {violation}\n");
    }
    if let Some(more) = report
        .violations
        .len()
        .checked_sub(SHOWN)
        .filter(|more| *more > 0)
    {
        text += &format!("  and {more} more\n");
    }
    text + &format!("  repeat it with: {}\n", game.replay(report.seed))
}

impl Game {
    fn run(self, seed: u64) -> Report {
        self.scenario.run(seed, self.nodes, self.routing)
    }

    /// The command that repeats a run.
    fn replay(self, seed: u64) -> String {
        let Self {
            scenario,
            nodes,
            routing,
        } = self;
        let name = scenario.name;
        let mut command =
            format!("cargo xtask sim leases --scenario {name} --nodes {nodes} --first {seed} --seeds 1");
        if routing != scenario.routing {
            command += &format!(" --routing {routing}");
        }
        command
    }
}

/// A core that panics ends the program; what to repeat has to be said before.
fn name_the_seed_of_a_panic(game: Game) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        if let Some(seed) = SEED.get() {
            eprintln!("seed {seed} panics: repeat it with: {}", game.replay(seed));
        }
    }));
}

fn as_table(game: Game, sum: &Sum, took: Duration) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        format!("{}, {} nodes, {}", game.scenario.name, game.nodes, game.routing),
        String::new(),
    ]);
    let mut row = |name: &str, value: String| {
        let value = TableCell::new(value).set_alignment(CellAlignment::Right);
        table.add_row([TableCell::new(name), value]);
    };
    let violations: usize = sum.failed.iter().map(|report| report.violations.len()).sum();
    row("seeds", sum.seeds.to_string());
    row("seeds that fail", sum.failed.len().to_string());
    row("violations", violations.to_string());
    for (_, name, count) in sum.tally.named() {
        row(name, count.to_string());
    }
    for (name, part) in [("p50", 0.5), ("p95", 0.95), ("longest", 1.0)] {
        let text = |time: Option<Duration>| {
            time.map_or_else(|| "-".to_owned(), |time| format!("{} ms", time.as_millis()))
        };
        row(&format!("claim, {name}"), text(sum.tally.claim_time(part)));
        row(
            &format!("from a healing to one holder, {name}"),
            text(sum.tally.agreement_time(part)),
        );
    }
    row("steps", sum.steps.to_string());
    row("simulated", format!("{} h", sum.simulated.as_secs() / 3600));
    row("took", format!("{:.1} s", took.as_secs_f64()));
    row("all traces", format!("{:016x}", traces(sum)));
    table
}

fn as_json(game: Game, sum: &Sum, took: Duration) -> serde_json::Value {
    let counts: serde_json::Map<_, _> = sum
        .tally
        .named()
        .into_iter()
        .map(|(name, _, count)| (name.to_owned(), json!(count)))
        .collect();
    let times = |time: fn(&Tally, f64) -> Option<Duration>| {
        let millis = |part| time(&sum.tally, part).map(|time| time.as_millis());
        json!({ "p50": millis(0.5), "p95": millis(0.95), "longest": millis(1.0) })
    };
    let failed = sum.failed.iter().map(|report| {
        json!({
            "seed": report.seed,
            "trace": format!("{:016x}", report.trace),
            "violations": report.violations,
            "repeat": game.replay(report.seed),
        })
    });
    json!({
        "scenario": game.scenario.name,
        "nodes": game.nodes,
        "routing": game.routing.to_string(),
        "seeds": sum.seeds,
        "failed": failed.collect::<Vec<_>>(),
        "counts": counts,
        "claim_ms": times(Tally::claim_time),
        "agreement_ms": times(Tally::agreement_time),
        "steps": sum.steps,
        "simulated_seconds": sum.simulated.as_secs(),
        "seconds": took.as_secs_f64(),
        "traces": format!("{:016x}", traces(sum)),
    })
}

/// One number for all runs: the same seeds of the same code give the same.
fn traces(sum: &Sum) -> u64 {
    let mix = |all: u64, trace: &u64| (all ^ trace).rotate_left(17).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    sum.traces.values().fold(0, mix)
}
