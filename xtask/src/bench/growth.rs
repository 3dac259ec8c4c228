//! `cargo xtask bench growth`: builds the program that measures, and runs it.

use std::path::PathBuf;

use anyhow::Result;

use crate::steps::call;
use crate::test::cargo;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Draw the messages over the size into this file.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Options of the program, such as '--nodes 300'; '--help' lists them.
    #[arg(last = true, value_name = "OPTIONS")]
    options: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut command = cargo(&[
        "run",
        "--release",
        "--package",
        "aerie-sim",
        "--bin",
        "aerie-growth",
        "--locked",
        "--quiet",
        "--",
    ]);
    command.args(&args.options);
    command.args(args.json.then_some("--json"));
    if let Some(svg) = &args.svg {
        command.arg("--svg").arg(svg);
    }
    call(command)
}
