//! `aerie`: the daemon that makes a machine a member of a grid, and the command that speaks to it.

mod cli;
mod client;
mod control;
mod daemon;
mod diagnosis;
mod doctor;
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
            eprintln!("aerie: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, of which those are left out that it has told already.
fn told(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |told, cause| {
            if told.contains(&cause) {
                told
            } else if told.is_empty() {
                cause
            } else {
                format!("{told}: {cause}")
            }
        })
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow!("disk full")
            .context("cannot write x: disk full")
            .context("cannot start");
        assert_eq!(super::told(&error), "cannot start: cannot write x: disk full");
    }
}
