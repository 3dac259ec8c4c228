//! `cargo xtask package`: Debian packages out of this tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aerie_image_build::package::{self, Compression, Signer, Stamp};
use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::steps::call;
use crate::{root, test, tools};

/// What makes packages, and what judges them.
const MAKERS: [&str; 3] = ["binutils", "dpkg-dev", "lintian"];

/// What makes repositories.
const PUBLISHERS: [&str; 2] = ["apt-utils", "gpg"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder to write into; it is made if absent.
    #[arg(long, value_name = "DIR", default_value = "target/packages")]
    out: PathBuf,
    /// Which build of the program goes into them.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Another version than the workspace's, such as 0.1.0+lab2.
    #[arg(long)]
    version: Option<String>,
    /// Also add them to the repository in this folder, from which apt installs; it is made if absent.
    #[arg(long, value_name = "DIR")]
    repository: Option<PathBuf>,
    /// The key of gpg's that signs the repository, by its name, address or fingerprint.
    #[arg(long, value_name = "KEY", requires = "repository")]
    sign: Option<String>,
    /// Leave out the check by lintian.
    #[arg(long)]
    no_lint: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// What people install.
    Release,
    /// What is sooner built and larger, for trying packages out.
    Dev,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    tools::install_debian(&MAKERS)?;
    let release = args.profile == Profile::Release;
    let aerie = test::build_aerie(release)?;
    let compression = if release {
        Compression::Small
    } else {
        Compression::Fast
    };
    let files = make(&aerie, args.version.as_deref(), &args.out, compression)?;
    if !args.no_lint {
        lint(&files)?;
    }
    for file in &files {
        let size = fs::metadata(file)?.len();
        println!("{} ({:.1} MB)", file.display(), size as f64 / 1e6);
    }
    if let Some(folder) = &args.repository {
        tools::install_debian(&PUBLISHERS)?;
        let signer = args.sign.clone().map(|key| Signer { key, home: None });
        let line = package::publish(folder, &files, signer.as_ref())?;
        println!(
            "Serve {} by any web server. For this machine, in a file of /etc/apt/sources.list.d:",
            folder.display()
        );
        println!("{line}");
    }
    Ok(())
}

/// Makes every package of a program.
fn make(aerie: &Path, version: Option<&str>, out: &Path, compression: Compression) -> Result<Vec<PathBuf>> {
    let work = tempfile::tempdir()?;
    let version = version.unwrap_or(env!("CARGO_PKG_VERSION"));
    let inputs = package::inputs(aerie, work.path(), version, &maintainer(), stamp()?)?;
    let packages = inputs.packages()?;
    packages
        .iter()
        .map(|package| Ok(package::write(package, out, inputs.stamp, compression)?))
        .collect()
}

/// As Debian's own tools have it from the environment.
fn maintainer() -> String {
    let name = std::env::var("DEBFULLNAME").unwrap_or_else(|_| "Aerie maintainers".to_owned());
    let mail = std::env::var("DEBEMAIL").unwrap_or_else(|_| "aerie@example.org".to_owned());
    format!("{name} <{mail}>")
}

/// `SOURCE_DATE_EPOCH`, or the time of the commit.
fn stamp() -> Result<Stamp> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let output = Command::new("git")
                .args(["log", "-1", "--format=%ct"])
                .current_dir(root())
                .output()
                .context("cannot run git; set SOURCE_DATE_EPOCH to the time that the packages are to bear")?;
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
    };
    let secs = text.trim().parse().with_context(|| {
        format!(
            "'{}' is no time: set SOURCE_DATE_EPOCH to a number of seconds since 1970",
            text.trim()
        )
    })?;
    Ok(Stamp::from_secs(secs))
}

/// Whatever lintian has to say is to be mended, or overridden with its reason.
fn lint(files: &[PathBuf]) -> Result<()> {
    let mut lintian = Command::new("lintian");
    lintian
        .args([
            "--fail-on",
            "error,warning",
            "--allow-root",
            "--tag-display-limit",
            "0",
        ])
        .args(files)
        .stdout(std::io::stderr());
    call(lintian)
}
