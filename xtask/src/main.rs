//! The project's own commands: `cargo xtask test`, `tidy`, `prepush`, `demo`, `bench`, `nats`, `guests`, `sim`, `package`.

mod bench;
mod demo;
mod guests;
mod nats;
mod package;
mod sim;
mod steps;
mod test;
mod tidy;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything that has to be green: format, lints, structure, licences, unit tests, lab.
    Test(test::Args),
    /// Run what is quick, before a push: everything of `test` but the licences and the lab.
    Prepush,
    /// Show a whole grid: sites behind NATs, nodes that join by themselves, jobs, a manager that dies.
    Demo(demo::Args),
    /// Measure what is promised, on real nodes in the lab.
    Bench(bench::Args),
    /// Try every kind of NAT against every other, on real daemons.
    Nats(nats::Args),
    /// Boot the image in emulated machines: they join a grid in each way, are upgraded, and go without a trace.
    Guests(guests::Args),
    /// Play courses of faults on simulated grids, thousands of seeds, and check what is promised.
    Sim(sim::Args),
    /// Make the Debian packages, and check them by lintian.
    Package(package::Args),
    /// Check the structure: directions of dependencies, purity of the protocol crates, lengths of files.
    Tidy,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Test(args) => test::run(&args),
        Command::Prepush => test::prepush(),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Nats(args) => nats::run(&args),
        Command::Guests(args) => guests::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Package(args) => package::run(&args),
        Command::Tidy => tidy::run(),
    }
}

/// The repository's root folder.
fn root() -> PathBuf {
    // Set by `cargo run`; where the program is started by itself, where it was built.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}
