//! The contestants' programs, installed where they are absent.
//!
//! Programs in Go need next to nothing of the system, so they are taken from Debian's newest suite and unpacked into
//! the cache: an old stable release has a wireguard-go without offloads, which is easy to beat. Programs in Rust
//! are built from their crates; the rest comes from the system's own packages.

use std::path::{Path, PathBuf};

use aerie_lab::{cache, mirror};
use anyhow::{Context, Result};

use super::program::{run_here, run_in};
use crate::tools;

/// Debian's suite that has the newest versions.
const SUITE: &str = "sid";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package unpacked into the cache.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) dir: PathBuf,
    pub(super) version: String,
}

/// Installs a package of the system's own release; returns its version.
pub(super) fn debian_package(name: &str) -> Result<String> {
    tools::install_debian(&[name])?;
    let version = run_here(&["dpkg-query", "-W", "-f=${Version}", name])?;
    Ok(upstream(&version).to_owned())
}

/// Builds a program of a crate into the cache.
pub(super) fn crate_program(name: &str, program: &str) -> Result<PathBuf> {
    tools::install_crate(name, program)
}

/// Unpacks the newest version of a package into the cache, once.
pub(super) fn newest_debian(name: &str) -> Result<Unpacked> {
    let cache = cache::cache_dir()?.join("tools").join("debian");
    std::fs::create_dir_all(&cache)?;
    let _lock = cache::lock(&cache.join("lock"), || {
        eprintln!("   waiting for another installation");
    })?;
    if let Some(found) = unpacked(&cache, name)? {
        return Ok(found);
    }
    tools::install_debian(&["debian-archive-keyring"])?;
    let apt = cache.join("apt");
    let archive = fetch(name, &apt).with_context(|| format!("cannot fetch {name} of Debian {SUITE}"))?;
    let archive = archive.to_string_lossy();
    let version = run_here(&["dpkg-deb", "-f", &archive, "Version"])?;
    let (part, dir) = (
        cache.join("part"),
        cache.join(format!("{name}_{}", version.trim())),
    );
    run_here(&["rm", "-rf", &part.to_string_lossy()])?;
    run_here(&["dpkg-deb", "-x", &archive, &part.to_string_lossy()])?;
    std::fs::rename(&part, &dir)?;
    // The lists are large, and old the next time.
    std::fs::remove_dir_all(&apt)?;
    unpacked(&cache, name)?.with_context(|| format!("{name} is not at {}", dir.display()))
}

fn unpacked(cache: &Path, name: &str) -> Result<Option<Unpacked>> {
    for entry in std::fs::read_dir(cache)? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if let Some((package, version)) = file.split_once('_')
            && package == name
        {
            return Ok(Some(Unpacked {
                dir: entry.path(),
                version: upstream(version).to_owned(),
            }));
        }
    }
    Ok(None)
}

/// Downloads a package of the suite with an apt that has lists of its own: the system's are left alone.
fn fetch(name: &str, dir: &Path) -> Result<PathBuf> {
    for folder in ["lists/partial", "archives/partial"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    let source = format!(
        "deb [signed-by={KEYRING}] {} {SUITE} main\n",
        mirror::debian_mirror()?
    );
    let list = dir.join("suite.list");
    std::fs::write(&list, source)?;
    let options = [
        format!("Dir::State::Lists={}", dir.join("lists").display()),
        format!("Dir::Etc::SourceList={}", list.display()),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        format!("Dir::Cache={}", dir.display()),
        // The cache may lie where apt's own user cannot go.
        "APT::Sandbox::User=root".to_owned(),
        // An archive that does not answer is told as such, and not as a package that does not exist.
        "APT::Update::Error-Mode=any".to_owned(),
    ];
    let apt = |args: &[&str]| {
        let mut argv = vec!["apt-get"];
        argv.extend(args);
        argv.push("-qq");
        argv.extend(options.iter().flat_map(|option| ["-o", option.as_str()]));
        run_in(dir, &argv).map(|_| ())
    };
    apt(&["update"])?;
    apt(&["download", name])?;
    let mut entries = std::fs::read_dir(dir)?
        .filter_map(Result::ok)
        .map(|entry| entry.path());
    entries
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")
}

/// A version without Debian's own additions.
fn upstream(version: &str) -> &str {
    let version = version.split_once("%3a").map_or(version, |(_, rest)| rest);
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let version = version.rsplit_once('-').map_or(version, |(upstream, _)| upstream);
    version.split('+').next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_shown_as_its_authors_name_it() {
        assert_eq!(upstream("1.11.0+dfsg-1"), "1.11.0");
        assert_eq!(upstream("2:2.6.14-0+deb12u2"), "2.6.14");
        assert_eq!(upstream("0.0.20260522-1"), "0.0.20260522");
    }

    #[test]
    fn a_package_in_the_cache_is_found_by_its_whole_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("nebula-extra_9.0-1")).unwrap();
        assert!(unpacked(dir.path(), "nebula").unwrap().is_none());
        std::fs::create_dir(dir.path().join("nebula_1.11.0+dfsg-1")).unwrap();
        assert_eq!(unpacked(dir.path(), "nebula").unwrap().unwrap().version, "1.11.0");
    }
}
