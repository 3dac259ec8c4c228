//! `aerie`: the daemon that makes a machine a member of a grid, and the command that speaks to it.

mod cli;
mod client;
mod control;
mod daemon;
mod error;
mod paths;
mod status;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    // Both aws-lc-rs and ring are in the tree; without a choice made here, the first TLS session would panic.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("aerie: another TLS provider is installed already; this is a bug, please report it");
        return ExitCode::FAILURE;
    }
    match cli::run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("aerie: {error:#}");
            ExitCode::FAILURE
        }
    }
}
