//! `cargo xtask nats`: every kind of NAT against every other, on real daemons.

use std::path::PathBuf;

use aerie_lab::Lab;
use aerie_lab::grid::{AERIE, Grid};
use aerie_lab::matrix::{self, Matrix};
use anyhow::{Context, Result, ensure};

use crate::{test, tools};

const GROUP: &str = "chem";

/// What is promised of the pairs that can be direct: so many are by the first round of probes.
const FIRST_SHARE: f64 = 0.97;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often, each time in a new grid.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write the matrix into this file, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Use a debug build.
    #[arg(long)]
    debug: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let aerie = test::build_aerie(!args.debug)?;
    tools::root_file_system(&mut |step| eprintln!("   {step}"))?;
    let mut runs: Vec<Matrix> = Vec::new();
    let mut faults = 0;
    for run in 1..=args.runs {
        let lab = Lab::builder("nats").bind(&aerie, AERIE).start()?;
        let grid = Grid::found(&lab, "lab", None, &[GROUP])?;
        let found = matrix::run(&lab, &grid, GROUP)?;
        drop(grid);
        lab.destroy()?;
        let missed = found.faults(1);
        let (first, possible) = found.first_round();
        println!(
            "run {run} of {}: {} pairs, {} not as promised; {first} of {possible} direct by the first probes",
            args.runs,
            found.cells.len(),
            missed.len()
        );
        for fault in &missed {
            println!("   {fault}");
        }
        faults += missed.len();
        runs.push(found);
        // Twenty runs take as many minutes: what is known is not to be lost with the rest.
        if let Some(path) = &args.markdown {
            std::fs::write(path, page(runs.len(), &matrix::markdown(&runs)))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    println!("\n{}", matrix::markdown(&runs));
    let rounds = runs.iter().map(Matrix::first_round);
    let (first, possible) = rounds.fold((0, 0), |all, run| (all.0 + run.0, all.1 + run.1));
    let share = first as f64 / possible.max(1) as f64;
    println!(
        "direct by the first probes: {first} of {possible} pairs that can be ({:.1}%)",
        share * 100.0
    );
    ensure!(
        share >= FIRST_SHARE,
        "{:.1}% are less than the promised {:.0}%",
        share * 100.0,
        FIRST_SHARE * 100.0
    );
    ensure!(faults == 0, "{faults} pairs were not as promised");
    Ok(())
}

fn page(runs: usize, table: &str) -> String {
    format!(
        "# Every kind of NAT against every other\n\nMade by `cargo xtask nats --runs {runs} --markdown \
         docs/nat-matrix.md`: real daemons behind real NATs in network namespaces. Each field is the path that a pair \
         has found, the worst of {runs} runs, and the median of the milliseconds from the pair's first packet to that \
         path; nothing is known of each other before but the address. **!** marks what was not as promised: direct, \
         within five seconds, wherever a hole can be punched, elsewhere relayed, and the first packet within two.\n\n\
         - `full-cone` lets everybody in, `address` whoever has the address of somebody spoken to, `port` only the very \
         port, `symmetric` shows each destination another port as well (RFC 4787)\n\
         - `double` is a home router behind a provider's, `forgetful` drops a mapping after 20 s, `shared` are two nodes \
         behind one router without hairpin, `no-udp` is a network that lets no UDP pass, which is left over TLS\n\n\
         The same is asked of the protocol alone at two thousand random places, with lines that are long or lose \
         datagrams: `cargo nextest run -p aerie-vpn-proto --test placements`.\n\n{table}"
    )
}
