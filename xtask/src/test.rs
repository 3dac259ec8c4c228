//! `cargo xtask test`: every check, in the order that fails soonest.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::steps::{self, Steps, call};
use crate::{guests, root, sim, tidy, tools};

/// Tests that make network namespaces need root and, some of them, the whole machine.
const LAB: &str = "binary(/^netns_/) or package(aerie-scenarios)";

/// What of the simulator runs each time: ten minutes on two cores.
const SIMULATED: [&str; 6] = ["--scenario", "mixed", "--nodes", "60", "--seeds", "500"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave the lab out: the tests that need root.
    #[arg(long)]
    no_lab: bool,
    /// Of the lab's tests only those that match this nextest filter, such as 'test(nat)'.
    #[arg(long, value_name = "FILTER", conflicts_with = "no_lab")]
    lab_only: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let of_lab = match (args.no_lab, &args.lab_only) {
        (true, _) => 0,
        (false, Some(_)) => 2,
        (false, None) => 3,
    };
    let mut steps = Steps::new(9 + of_lab);
    steps.step("Debian packages", |_| tools::debian_packages())?;
    steps.step("cargo tools", |_| tools::cargo_tools())?;
    quick(&mut steps)?;
    steps.step("licences and sources", |_| {
        let mut deny = tools::cargo("deny")?;
        deny.args([
            "--log-level=error",
            "--workspace",
            "check",
            "bans",
            "licenses",
            "sources",
        ]);
        call(deny)
    })?;
    steps.step("simulator: 500 seeds", |_| {
        sim::leases(&SIMULATED.map(OsString::from))
    })?;
    if !args.no_lab {
        lab(&mut steps, args.lab_only.as_deref())?;
    }
    steps.report();
    Ok(())
}

pub(crate) fn prepush() -> Result<()> {
    let mut steps = Steps::new(6);
    steps.step("cargo tools", |_| tools::cargo_tools())?;
    quick(&mut steps)?;
    steps.report();
    Ok(())
}

/// What needs no root and no network: five steps.
fn quick(steps: &mut Steps) -> Result<()> {
    steps.step("format", |_| call(cargo(&["fmt", "--all", "--check"])))?;
    steps.step("tidy", |_| tidy::run())?;
    steps.step("lints", |_| {
        call(cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    steps.step("unit tests", |steps| {
        let mut nextest = tools::cargo("nextest")?;
        nextest.args([
            "run",
            "--workspace",
            "--locked",
            steps::color(),
            "-E",
            &format!("not ({LAB})"),
        ]);
        steps.runner("unit tests", nextest)
    })?;
    steps.step("documentation tests", |_| {
        call(cargo(&["test", "--doc", "--workspace", "--locked", "--quiet"]))
    })
}

fn lab(steps: &mut Steps, only: Option<&str>) -> Result<()> {
    let mut aerie = PathBuf::new();
    steps.step("build aerie", |_| {
        aerie = build_aerie(false)?;
        Ok(())
    })?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces: run as root, or leave it out with --no-lab"
    );
    if only.is_none() {
        // A step of its own, so that its time is seen and is not the test's.
        steps.step("image", |_| guests::prepare())?;
    }
    steps.step("lab", |steps| {
        let filter = only.map_or_else(|| LAB.to_owned(), |only| format!("({LAB}) and ({only})"));
        let mut nextest = lab_runner(&filter)?;
        nextest.env("AERIE_BIN", &aerie);
        steps.runner("lab", nextest)
    })
}

/// What runs the lab's tests, one after the other.
pub(crate) fn lab_runner(filter: &str) -> Result<Command> {
    let mut nextest = tools::cargo("nextest")?;
    nextest
        .args([
            "run",
            "--workspace",
            "--locked",
            "--profile",
            "lab",
            "--test-threads",
            "1",
        ])
        .args([steps::color(), "-E", filter]);
    Ok(nextest)
}

/// Builds the `aerie` program and returns its path.
pub(crate) fn build_aerie(release: bool) -> Result<PathBuf> {
    build_program("aerie", release)
}

/// Builds the program of the package of the same name and returns its path.
pub(crate) fn build_program(name: &str, release: bool) -> Result<PathBuf> {
    let mut command = cargo(&["build", "--package", name, "--bin", name, "--locked", "--quiet"]);
    if release {
        command.arg("--release");
    }
    call(command)?;
    let path = target_dir()?
        .join(if release { "release" } else { "debug" })
        .join(name);
    ensure!(path.is_file(), "cargo built no program at {}", path.display());
    Ok(path)
}

fn target_dir() -> Result<PathBuf> {
    let metadata = metadata(&["--no-deps"])?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target folder")?;
    Ok(dir.into())
}

/// What `cargo metadata` says of the workspace.
pub(crate) fn metadata(args: &[&str]) -> Result<Value> {
    let output = cargo(&["metadata", "--format-version=1", "--locked"])
        .args(args)
        .output()?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Cargo with these arguments, in the repository's root.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(root());
    command
}
