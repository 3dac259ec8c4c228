//! Root file systems, built once and shared read-only: of the nodes (Debian 13 with the real HTCondor), and of a bare
//! machine on which packages are installed.
//!
//! The recipe is the list of packages here and a script. Its hash names the folder in the cache, so
//! a changed recipe makes another root file system and an unchanged one is never built again. It is built beside
//! its place under a lock and moved there by one rename: who sees the folder sees all of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{cache, mirror};

const SUITE: &str = "trixie";

/// How a root file system is made.
struct Recipe {
    /// What its folder in the cache begins with.
    name: &'static str,
    /// Packages beside those that no Debian is without.
    packages: &'static [&'static str],
    /// Files of the packages that nobody reads.
    left_out: &'static [&'static str],
    /// A script that finishes it, called with its folder.
    finish: &'static str,
    /// What mmdebstrap is told besides.
    options: &'static [&'static str],
}

/// The nodes': HTCondor (the suite has 23.9), what Aerie calls at run time, and what the tests call.
const NODES: Recipe = Recipe {
    name: "rootfs",
    packages: &[
        "ca-certificates",
        "condor",
        "faketime",
        "iproute2",
        "iputils-ping",
        "miniupnpd-nftables",
        "nftables",
        "openssl",
        "procps",
        "systemd-resolved",
        "util-linux",
    ],
    left_out: &[
        "/usr/share/doc/*",
        "/usr/share/info/*",
        "/usr/share/locale/*",
        "/usr/share/man/*",
    ],
    finish: include_str!("rootfs.sh"),
    options: &[],
};

/// A machine on which nothing is installed yet, with apt's lists and the packages that Aerie's depend on, as they are
/// downloaded: what is installed there needs no network.
const BARE: Recipe = Recipe {
    name: "bare",
    packages: &["systemd", "init-system-helpers"],
    left_out: &[],
    finish: include_str!("bare.sh"),
    options: &["--skip=cleanup/apt"],
};

/// Returns the root file system, building it first if the cache has none of this recipe. Needs root.
/// `progress` is told each step of a build.
///
/// # Errors
/// When a tool is missing or a package cannot be fetched; the message holds the end of the build's log.
pub fn prepare(progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    NODES.prepare(progress)
}

/// As [`prepare`], of a machine on which packages are to be installed.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_bare(progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    BARE.prepare(progress)
}

impl Recipe {
    fn prepare(&self, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let cache = cache::cache_dir()?;
        let root = cache.join(format!("{}-{}", self.name, self.hash()));
        if root.is_dir() {
            return Ok(root);
        }
        ensure!(
            nix::unistd::geteuid().is_root(),
            "building a root file system needs root"
        );
        let _lock = cache::lock(&cache.join("rootfs.lock"), || {
            progress("waiting for another build of the root file system");
        })?;
        if root.is_dir() {
            return Ok(root);
        }
        remove_parts(&cache)?;
        let part = cache.join(format!("{PART}{}", std::process::id()));
        let log = cache.join("rootfs.log");
        self.build(&part, &log, progress)
            .with_context(|| format!("cannot build a root file system; its log is {}", log.display()))?;
        fs::rename(&part, &root)
            .with_context(|| format!("cannot move the root file system to {}", root.display()))?;
        Ok(root)
    }

    fn hash(&self) -> String {
        let mut hash = Sha256::new();
        let lists = [self.packages, self.left_out, self.options];
        for part in [SUITE, self.finish]
            .into_iter()
            .chain(lists.into_iter().flatten().copied())
        {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hex::encode(&hash.finalize()[..6])
    }

    fn build(&self, part: &Path, log: &Path, progress: &mut dyn FnMut(&str)) -> Result<()> {
        let mirror = mirror::debian_mirror()?;
        let mut script = tempfile::NamedTempFile::new()?;
        script.write_all(self.finish.as_bytes())?;
        progress(&format!(
            "building Debian {SUITE} with HTCondor (once, about a minute)"
        ));
        let mut command = Command::new("mmdebstrap");
        command
            .args([
                "--variant=minbase",
                "--mode=root",
                "--aptopt=APT::Install-Recommends \"false\"",
            ])
            .args(
                self.left_out
                    .iter()
                    .map(|glob| format!("--dpkgopt=path-exclude={glob}")),
            )
            .args(self.options)
            .arg(format!("--include={}", self.packages.join(",")))
            .arg(format!("--customize-hook=sh {} \"$1\"", script.path().display()))
            .arg(SUITE)
            .arg(part)
            .arg(mirror)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .context("cannot run mmdebstrap: apt-get install mmdebstrap debian-archive-keyring")?;
        let mut out = File::create(log)?;
        let mut tail = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            for line in BufReader::new(stderr).lines() {
                let line = line?;
                writeln!(out, "{line}")?;
                match line.strip_prefix("I: ") {
                    Some(step) => progress(step),
                    None => tail.push(line),
                }
            }
        }
        let status = child.wait()?;
        if !status.success() {
            let from = tail.len().saturating_sub(15);
            bail!("mmdebstrap failed ({status}):\n{}", tail[from..].join("\n"));
        }
        Ok(())
    }
}

/// What an unfinished build is called. The lock is held whenever one is made or removed.
const PART: &str = "rootfs-part-";

fn remove_parts(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PART) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove the unfinished {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_has_a_stable_name_fit_for_a_folder() {
        let hash = NODES.hash();
        assert_eq!(hash, NODES.hash());
        assert_ne!(hash, BARE.hash());
        assert!(
            hash.len() == 12 && hash.chars().all(|c| c.is_ascii_hexdigit()),
            "{hash}"
        );
    }
}
