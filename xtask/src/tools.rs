//! The programs that the checks need, installed where they are absent.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aerie_lab::{cache, rootfs};
use anyhow::{Result, ensure};

use crate::steps::call;

/// Debian packages of the lab and of tests that compare with other people's tools.
const PACKAGES: [&str; 15] = [
    "apt-utils",
    "binutils",
    "debian-archive-keyring",
    "dnsmasq-base",
    "dosfstools",
    "dpkg-dev",
    "gpg",
    "iproute2",
    "iputils-ping",
    "jq",
    "mmdebstrap",
    "mtools",
    "nftables",
    "openssl",
    "zip",
];

/// Cargo's sub-commands that are not part of Rust.
const CARGO_TOOLS: [&str; 2] = ["cargo-nextest", "cargo-deny"];

/// Installs the Debian packages that are absent. Without root it only says which.
pub(crate) fn debian_packages() -> Result<()> {
    install_debian(&PACKAGES)
}

/// The nodes' root file system, and before it the programs by which it and a lab are made.
pub(crate) fn root_file_system(progress: &mut dyn FnMut(&str)) -> Result<()> {
    debian_packages()?;
    rootfs::prepare(progress).map(drop)
}

/// As [`debian_packages`], for packages that only one command needs.
pub(crate) fn install_debian(packages: &[&str]) -> Result<()> {
    let absent: Vec<_> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "some packages are absent; as root: apt-get install {}",
        absent.join(" ")
    );
    if !has_lists(Path::new("/var/lib/apt/lists")) {
        call(apt(&["update"]))?;
    }
    let install: Vec<_> = ["install", "--no-install-recommends"]
        .into_iter()
        .chain(absent)
        .collect();
    // Lists that are too old name packages that the archive has no longer.
    call(apt(&install)).or_else(|_| call(apt(&["update"])).and_then(|()| call(apt(&install))))
}

fn apt(args: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-y"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Standard output is for results, which a script may read.
        .stdout(std::io::stderr());
    command
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Abbrev}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"ii"))
}

fn has_lists(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// Installs Rust's own components and cargo's sub-commands that are absent, the latter into the cache.
pub(crate) fn cargo_tools() -> Result<()> {
    for (component, command) in [("clippy", "clippy"), ("rustfmt", "fmt")] {
        // Rustup has a program of each name even where the component is absent; it fails then.
        let mut version = Command::new("cargo");
        version
            .args([command, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if !version.status().is_ok_and(|status| status.success()) {
            let mut add = Command::new("rustup");
            add.args(["component", "add", component]);
            call(add)?;
        }
    }
    for tool in CARGO_TOOLS {
        if !runs(tool) {
            install_crate(tool, tool)?;
        }
    }
    Ok(())
}

/// Builds a program of a crate into the cache if it is not there; returns its path.
pub(crate) fn install_crate(name: &str, program: &str) -> Result<PathBuf> {
    let path = tool_path(program)?;
    if !path.is_file() {
        let mut command = Command::new("cargo");
        command
            .args(["install", "--locked", "--quiet", name, "--root"])
            .arg(tools_dir()?);
        call(command)?;
    }
    ensure!(path.is_file(), "the crate {name} has no program {program}");
    Ok(path)
}

/// `cargo <tool>`, found on the path or in the cache.
pub(crate) fn cargo(tool: &str) -> Result<Command> {
    let name = format!("cargo-{tool}");
    let mut command = if runs(&name) {
        Command::new("cargo")
    } else {
        Command::new(tool_path(&name)?)
    };
    command.arg(tool).current_dir(crate::root());
    Ok(command)
}

fn runs(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn tools_dir() -> Result<PathBuf> {
    Ok(cache::cache_dir()?.join("tools"))
}

fn tool_path(tool: &str) -> Result<PathBuf> {
    Ok(tools_dir()?.join("bin").join(tool))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_package_lists_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_lists(dir.path()));
        std::fs::write(dir.path().join("lock"), "").unwrap();
        assert!(!has_lists(dir.path()));
        std::fs::write(dir.path().join("m_dists_x_main_binary-amd64_Packages"), "").unwrap();
        assert!(has_lists(dir.path()));
    }

    #[test]
    fn programs_are_looked_up_on_the_path() {
        assert!(runs("sh"));
        assert!(!runs("no-such-program-anywhere"));
    }
}
