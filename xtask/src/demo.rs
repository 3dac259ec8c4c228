//! `cargo xtask demo`: a whole grid before one's eyes. Real daemons and a real HTCondor, on nodes behind real NATs.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use aerie_lab::campus::{Campus, Progress, SUBMITTER};
use aerie_lab::grid::AERIE;
use aerie_lab::pool::Done;
use aerie_lab::state::{self, State};
use aerie_lab::{Lab, enter_command};
use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::steps::seconds;
use crate::{test, tools};

/// By which name a demo's lab is found again.
const LAB: &str = "demo";

/// How long a round of jobs may take; the promise for a match after a lost manager is 30 s.
const JOBS_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Sub>,
    /// Leave the grid up at the end.
    #[arg(long)]
    keep: bool,
    /// Use the debug build of aerie, which is sooner built.
    #[arg(long)]
    debug: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Sub {
    /// Remove a grid that was left up.
    Down,
    /// Open a shell on a node of a grid that was left up, or run a command there.
    Enter {
        /// The node, such as s1.
        node: String,
        /// The user.
        #[arg(long, default_value = "alice")]
        user: String,
        /// The command; a shell, if none.
        #[arg(last = true)]
        argv: Vec<String>,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces: run it as root (sudo -E cargo xtask demo)"
    );
    match &args.command {
        None => show(args.keep, !args.debug),
        Some(Sub::Down) => down(),
        Some(Sub::Enter { node, user, argv }) => enter(node, user, argv),
    }
}

fn kept() -> Result<Vec<State>> {
    Ok(state::labs()?.into_iter().filter(|lab| lab.name == LAB).collect())
}

fn down() -> Result<()> {
    let labs = kept()?;
    if labs.is_empty() {
        println!("No demo is up.");
    }
    for lab in labs {
        state::remove(&lab)?;
        println!("Removed: {} nodes of {}.", lab.nodes.len(), lab.id);
    }
    Ok(())
}

fn enter(node: &str, user: &str, argv: &[String]) -> Result<()> {
    let labs = kept()?;
    let lab = labs
        .first()
        .context("no demo is up; start one with 'cargo xtask demo --keep'")?;
    // Returns only if it fails.
    Err(enter_command(lab, node, user, argv)?.exec()).context("cannot enter the node")
}

/// How long each stage took, in order.
struct Times(Vec<(&'static str, Duration)>);

impl Times {
    fn take<T>(&mut self, stage: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("── {stage}");
        let start = Instant::now();
        let result = work().with_context(|| format!("the demo ended at: {stage}"));
        self.0.push((stage, start.elapsed()));
        result
    }
}

fn show(keep: bool, release: bool) -> Result<()> {
    if let Some(lab) = kept()?.into_iter().find(State::in_use) {
        bail!(
            "a demo is up already ({}); remove it with 'cargo xtask demo down'",
            lab.id
        );
    }
    let mut times = Times(Vec::new());
    let aerie = times.take("build aerie", || test::build_aerie(release))?;
    times.take("root file system (Debian 13 with HTCondor)", || {
        tools::root_file_system(&mut |step| println!("   {step}"))
    })?;
    let lab = Lab::builder(LAB).keep(keep).bind(aerie, AERIE).start()?;
    let result = play(&lab, &mut times);
    if keep {
        let id = lab.id();
        drop(lab);
        println!("\nThe grid stays up (lab {id}). Look around:");
        println!(
            "  cargo xtask demo enter {SUBMITTER}                      a shell as alice on the submit node"
        );
        println!("  cargo xtask demo enter {SUBMITTER} -- condor_status     the pool");
        println!("  cargo xtask demo enter w5 --user root -- aerie status   how a node joined");
        println!("  cargo xtask demo enter w5 --user root -- aerie peers    who reaches whom, and how");
        println!(
            "  ls {}/{id}/logs                        the daemons' logs",
            state::run_dir().display()
        );
        println!("  cargo xtask demo down                           remove it");
        return result;
    }
    result.and(lab.destroy())
}

fn play(lab: &Lab, times: &mut Times) -> Result<()> {
    let mut campus = times.take("hub: create the grid, serve enrolment, found", || {
        Campus::found(lab)
    })?;
    println!(
        "   grid '{}', hub at {}",
        campus.grid.name,
        campus.grid.hub.node.addr()
    );
    for (name, site) in &campus.sites {
        println!("   site {name}: {:?} NAT at {}", site.nat(), site.wan());
    }
    times.take("eight nodes join", || watch(&mut campus))?;
    show_nodes(&campus)?;
    let first = times.take("alice's jobs, one pinned to each worker", || {
        campus.run_pinned_jobs("first", JOBS_LIMIT)
    })?;
    show_jobs(&first);
    let primary = campus.member(SUBMITTER)?.primary()?;
    let second = times.take("the primary manager is killed; the same jobs again", || {
        campus.member(&primary)?.node.kill9();
        println!("   {primary}'s power is cut");
        campus.run_pinned_jobs("second", JOBS_LIMIT)
    })?;
    show_jobs(&second);
    println!(
        "   new primary of {SUBMITTER}: {}",
        campus.member(SUBMITTER)?.primary()?
    );

    let mut table = table(["stage", "time"]);
    for (stage, time) in &times.0 {
        table.add_row([Cell::new(stage), right(&seconds(*time))]);
    }
    println!("\n{table}");
    Ok(())
}

/// Lets the nodes join, with a line for each.
fn watch(campus: &mut Campus<'_>) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let target = if terminal {
        ProgressDrawTarget::stdout()
    } else {
        ProgressDrawTarget::hidden()
    };
    let lines = MultiProgress::with_draw_target(target);
    let style = ProgressStyle::with_template("   {spinner} {prefix:14} {msg}")?.tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏✓");
    let bars: BTreeMap<String, _> = campus
        .nodes()
        .map(|(name, site)| {
            let bar = lines.add(ProgressBar::new_spinner().with_style(style.clone()));
            bar.set_prefix(format!("{name} ({site})"));
            bar.enable_steady_tick(Duration::from_millis(100));
            (name.to_owned(), bar)
        })
        .collect();
    campus.assemble(&|name, progress| {
        let Some(bar) = bars.get(name) else { return };
        match progress {
            Progress::Booting => bar.set_message("boots"),
            Progress::Joining(stage) => bar.set_message(stage),
            Progress::Ready(took) => {
                let message = format!("ready after {}", seconds(took));
                if !terminal {
                    println!("   {name}: {message}");
                }
                bar.finish_with_message(message);
            }
        }
    })
}

/// Each node with its address, and the times of its stages.
fn show_nodes(campus: &Campus<'_>) -> Result<()> {
    let mut rows = Vec::new();
    let mut stages = Vec::new();
    for (name, member) in &campus.members {
        let status = member.status()?;
        stages = status.stages.iter().map(|stage| stage.stage.clone()).collect();
        let times = status
            .stages
            .iter()
            .map(|stage| stage.ms.map(|ms| seconds(Duration::from_millis(ms))));
        let ready = status
            .ready_ms
            .map(|ms| seconds(Duration::from_millis(ms)))
            .unwrap_or_default();
        let cells = [
            Cell::new(name),
            Cell::new(status.addr.clone().unwrap_or_default()),
        ]
        .into_iter();
        let times = times.map(Option::unwrap_or_default).chain([ready]);
        rows.push(cells.chain(times.map(|time| right(&time))).collect::<Vec<_>>());
    }
    let header = ["node", "address"]
        .into_iter()
        .map(str::to_owned)
        .chain(stages)
        .chain(["ready".to_owned()]);
    let mut table = table(header.collect::<Vec<_>>());
    for row in rows {
        table.add_row(row);
    }
    println!("{table}");
    Ok(())
}

fn show_jobs(jobs: &[(String, Done)]) {
    let mut table = table(["pinned to", "ran on", "starts", "took", "output"]);
    for (worker, done) in jobs {
        let result = done.result.split_whitespace().next().unwrap_or("nothing");
        table.add_row([
            Cell::new(worker),
            Cell::new(done.out.trim()),
            right(&done.starts.to_string()),
            right(&seconds(done.took)),
            Cell::new(format!(
                "sha256 of its input: {}…",
                result.get(..12).unwrap_or(result)
            )),
        ]);
    }
    println!("{table}");
}

fn table(header: impl Into<comfy_table::Row>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn right(text: &str) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}
