//! `cargo xtask bench`: figures that are promised, measured on real nodes in the lab, or on real sockets.

mod growth;
mod idle;
mod leases;
mod pool;
mod tunnel;

use aerie_lab::Lab;
use aerie_lab::campus::{Campus, Progress};
use aerie_lab::grid::AERIE;
use anyhow::{Result, ensure};

use crate::{test, tools};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, clap::Subcommand)]
enum Sub {
    /// Messages, rounds and times of claims and look-ups in simulated grids of 50 to 10,000 nodes. Needs no root.
    Growth(growth::Args),
    /// Memory and processor time of the daemons of a grid in which nothing happens.
    Idle(idle::Args),
    /// Claims and look-ups of addresses at fifty members, beside a stock libp2p Kademlia. Needs no root.
    Leases(leases::Args),
    /// Times from the blob to a listed slot, and jobs pinned to each worker, run after run.
    Pool(pool::Args),
    /// Aerie's tunnel beside other tunnels and the bare wire: speed, processor time, round trips, memory.
    Tunnel(tunnel::Args),
}

/// What every measurement can be asked for.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Common {
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Measure the debug build of aerie; its figures are no promise.
    #[arg(long)]
    debug: bool,
    /// Machines of the grid: workers are added to the nine of the demo, at its three sites in turn.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(9..=250))]
    nodes: u16,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let in_lab = !matches!(args.command, Sub::Growth(_) | Sub::Leases(_));
    ensure!(
        !in_lab || nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces: run it as root (sudo -E cargo xtask bench ...)"
    );
    match &args.command {
        Sub::Growth(args) => growth::run(args),
        Sub::Idle(args) => idle::run(args),
        Sub::Leases(args) => leases::run(args),
        Sub::Pool(args) => pool::run(args),
        Sub::Tunnel(args) => tunnel::run(args),
    }
}

/// A campus with all of its nodes ready, given to `measure` and removed afterwards.
fn on_campus<T>(common: Common, measure: impl FnOnce(&Campus<'_>) -> Result<T>) -> Result<T> {
    let aerie = test::build_aerie(!common.debug)?;
    tools::root_file_system(&mut |step| eprintln!("   {step}"))?;
    let lab = Lab::builder("bench").bind(aerie, AERIE).start()?;
    let measured = assembled(&lab, common.nodes).and_then(|campus| measure(&campus));
    lab.destroy()?;
    measured
}

fn assembled(lab: &Lab, nodes: u16) -> Result<Campus<'_>> {
    eprintln!("── {nodes} nodes become a grid");
    let mut campus = Campus::found(lab)?;
    campus.enlarge(nodes.into());
    campus.assemble(&|name, progress| {
        if let Progress::Ready(took) = progress {
            eprintln!("   {name}: ready after {:.1} s", took.as_secs_f64());
        }
    })?;
    Ok(campus)
}
