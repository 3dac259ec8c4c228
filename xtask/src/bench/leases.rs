//! `cargo xtask bench leases`: builds the program that measures, and runs it.
//!
//! The program is a package of its own, so that the other commands do not wait for libp2p to be built.

use std::process::Command;

use anyhow::Result;

use super::Common;
use crate::steps::call;
use crate::test;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: Common,
    /// Fail when a promise is not kept.
    #[arg(long)]
    check: bool,
    /// Options of the program, such as '--nodes 30'; '--help' lists them.
    #[arg(last = true, value_name = "OPTIONS")]
    options: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut program = Command::new(test::build_program("aerie-leases", !args.common.debug)?);
    program.args(&args.options);
    program.args(args.common.json.then_some("--json"));
    program.args(args.check.then_some("--check"));
    call(program)
}
