//! `cargo xtask guests`: the image that people build, booted in emulated machines.
//!
//! What boots is a package of the program just built, in the image that `aerie image build` makes. All of it is kept in
//! the cache: the disk by what it is made of, and below it packages, root file systems and QEMU.

use aerie_lab::guest::image;
use anyhow::Result;

use crate::steps::Steps;
use crate::{test, tools};

/// The tests that boot machines.
const TESTS: &str = "package(aerie-scenarios) and binary(guests)";

/// The image of the guests that are part of every test run.
const IMAGE: &str = "appliance";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Put a release build into the image, as people install it.
    #[arg(long)]
    release: bool,
    /// Only the tests that match this nextest filter, such as 'test(cloud)'.
    #[arg(long, value_name = "FILTER")]
    only: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::new(3);
    steps.step("tools", |_| {
        tools::cargo_tools().and_then(|()| tools::debian_packages())
    })?;
    let mut aerie = None;
    steps.step("build aerie", |_| {
        aerie = Some(test::build_aerie(args.release)?);
        Ok(())
    })?;
    steps.step("guests", |steps| {
        let filter = match &args.only {
            Some(only) => format!("({TESTS}) and ({only})"),
            None => TESTS.to_owned(),
        };
        let mut nextest = test::lab_runner(&filter)?;
        // Their times are what one wants to see.
        nextest.args(["--run-ignored", "all", "--success-output", "immediate"]);
        nextest.envs(aerie.map(|path| ("AERIE_BIN", path)));
        steps.runner("guests", nextest)
    })?;
    steps.report();
    Ok(())
}

/// Makes the disk of the guests of `cargo xtask test`, unless the cache has it. The program is the one that stands
/// beside this one.
pub(crate) fn prepare() -> Result<()> {
    image::disk(IMAGE).map(drop)
}
