//! `cargo xtask tidy`: what the compiler does not check about the shape of the project.
//!
//! Each check takes plain values and returns findings, so that each is tested to fail where it should.

mod deps;
mod files;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{root, test};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// To be looked at; the check passes.
    Warning(String),
    /// The check fails.
    Error(String),
}

pub(crate) fn run() -> Result<()> {
    let root = root();
    let mut findings = Vec::new();
    let graph = deps::Graph::read(&test::metadata(&[])?)?;
    findings.extend(deps::directions(&graph));
    for package in graph.pure() {
        findings.extend(deps::purity(package, &tree(package)?)?);
    }
    let root_clippy = std::fs::read_to_string(root.join("clippy.toml")).context("cannot read clippy.toml")?;
    for (package, folder) in graph.protocol_crates() {
        let own = std::fs::read_to_string(folder.join("clippy.toml")).ok();
        findings.extend(files::clippy_bans(package, &root_clippy, own.as_deref())?);
    }
    for path in sources(&root)? {
        let text =
            std::fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        findings.extend(files::length(&path, &text));
    }
    findings.extend(files::map(
        std::fs::read_to_string(root.join("ARCHITECTURE.md"))
            .ok()
            .as_deref(),
    ));

    let mut errors = 0;
    for finding in &findings {
        match finding {
            Finding::Warning(text) => eprintln!("warning: {text}"),
            Finding::Error(text) => {
                errors += 1;
                eprintln!("error: {text}");
            }
        }
    }
    if errors > 0 {
        bail!("tidy found {errors} error{}", if errors == 1 { "" } else { "s" });
    }
    Ok(())
}

/// The Rust files that are or will be under version control.
fn sources(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            "*.rs",
        ])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let listed = text.split('\0').filter(|path| !path.is_empty());
    // A file that was deleted and not yet committed is listed too.
    Ok(listed
        .filter(|path| root.join(path).is_file())
        .map(str::to_owned)
        .collect())
}

/// What a package reaches on this platform; what another one needs is not in the program that is built here.
fn tree(package: &str) -> Result<String> {
    let output = Command::new("cargo")
        .args([
            "tree",
            "--package",
            package,
            "--edges",
            "normal",
            "--prefix",
            "depth",
            "--locked",
        ])
        .current_dir(root())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "cargo tree failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
