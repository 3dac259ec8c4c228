//! `cargo xtask sim`: the seeded simulators, built for speed.

use std::ffi::OsString;

use anyhow::Result;

use crate::steps::call;
use crate::test::cargo;

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// The register of leases, under every kind of fault.
    #[command(disable_help_flag = true)]
    Leases {
        /// Options of the simulator; `--help` shows them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let What::Leases { options } = &args.what;
    leases(options)
}

/// Runs the simulator of leases with its own options.
pub(crate) fn leases(options: &[OsString]) -> Result<()> {
    let mut command = cargo(&[
        "run",
        "--release",
        "--package",
        "aerie-sim",
        "--locked",
        "--quiet",
        "--",
    ]);
    command.args(options);
    call(command)
}
