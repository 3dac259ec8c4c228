//! The programs that make an image: of the host as few as can be, the others from the lock.
//!
//! `mke2fs`, GRUB and `qemu-img` decide about the bytes of a disk, so they are packages of the lock like those of the
//! image: unpacked into a folder of the cache and run from there by their own dynamic loader, without root, a mount
//! or a chroot. The host's versions do not matter and need not be there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::{APT, Apt, DPKG_DEB, Mirrors};
use super::cache::{Cache, key};
use super::fetch;
use super::lock::Locked;
use super::process;
use crate::Error;

/// The packages with the programs; apt adds what they need.
pub(crate) const PACKAGES: [&str; 6] = [
    "e2fsprogs",
    "grub-efi-amd64-bin",
    "grub-pc-bin",
    // mke2fs reads tar archives by it, where it is there.
    "libarchive13t64",
    // Names of files are UTF-8, and the locale that says so is here.
    "libc-bin",
    "qemu-utils",
];

/// What a machine is emulated with, for those who try an image.
const EMULATOR: [&str; 3] = ["ovmf", "qemu-system-x86", "seabios"];

/// The programs of the host, each with its package.
const OF_HOST: [(&str, &str); 4] = [
    APT,
    DPKG_DEB,
    ("mmdebstrap", "mmdebstrap"),
    ("debian-archive-keyring.gpg", "debian-archive-keyring"),
];

/// Unpacked programs.
#[derive(Debug, Clone)]
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Unpacks the packages, which are in the cache, unless that has been done.
    pub(crate) fn unpack(cache: &Cache, packages: &[Locked]) -> Result<Self, Error> {
        let name = key(packages.iter().map(|package| package.sha256.as_bytes()));
        let root = cache.path(&format!("tools-{name}"));
        if !root.is_dir() {
            let work = cache.work()?;
            let part = work.path().join("root");
            for package in packages {
                let mut command = Command::new(DPKG_DEB.0);
                command
                    .arg("--extract")
                    .arg(cache.deb(&package.sha256))
                    .arg(&part);
                process::output(&mut command, DPKG_DEB.0, DPKG_DEB.1)?;
            }
            fs::rename(&part, &root).map_err(Error::file("write", &root))?;
        }
        Cache::used(&root)?;
        Ok(Self { root })
    }

    /// A command that runs an unpacked program.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let found = ["usr/sbin", "usr/bin"]
            .map(|dir| self.root.join(dir).join(program))
            .into_iter()
            .find(|path| path.exists())
            .unwrap_or_else(|| self.root.join("usr/bin").join(program));
        let mut command = Command::new(self.root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(&libraries)
            .arg(found)
            .env("LC_ALL", "C.UTF-8")
            .env("LOCPATH", self.root.join("usr/lib/locale"))
            .env("MKE2FS_CONFIG", self.root.join("etc/mke2fs.conf"))
            .env("QEMU_MODULE_DIR", libraries.join("qemu"));
        command
    }

    /// A file of the unpacked packages.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

/// The emulator by which an image can be tried: QEMU with its firmware, of the given suite. That of the first time is
/// kept with the cache; its packages are fetched again where they were not used for a while.
///
/// # Errors
/// When the packages cannot be fetched.
pub fn emulator(cache: &Cache, mirrors: &Mirrors, suite: &str) -> Result<Tools, Error> {
    of_host_present()?;
    let _lock = cache.lock(|| {})?;
    let known = cache.path(&format!(
        "emulator-{}.json",
        key(EMULATOR
            .map(str::as_bytes)
            .iter()
            .copied()
            .chain([suite.as_bytes()]))
    ));
    let get = |packages: &[Locked]| {
        fetch::fetch(cache, mirrors, &packages.iter().collect::<Vec<_>>(), |_, _| {})?;
        Tools::unpack(cache, packages)
    };
    let kept = fs::read(&known).ok();
    if let Some(packages) = kept.and_then(|text| serde_json::from_slice::<Vec<Locked>>(&text).ok())
        // What the cache has lost, and the archive has no longer, is chosen anew.
        && let Ok(tools) = get(&packages)
    {
        return Ok(tools);
    }
    let packages = Apt::update(cache, mirrors, suite)?.resolve(&EMULATOR.map(str::to_owned))?;
    let tools = get(&packages)?;
    let text = serde_json::to_vec(&packages).unwrap_or_default();
    fs::write(&known, text).map_err(Error::file("write", &known))?;
    Ok(tools)
}

/// Whether the host has what it has to have.
///
/// # Errors
/// [`Error::Tools`] with all that is absent.
pub(crate) fn of_host_present() -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.push(PathBuf::from("/usr/share/keyrings"));
    let absent = absent(&folders);
    if absent.is_empty() {
        return Ok(());
    }
    let join = |names: Vec<&str>, by| names.join(by);
    Err(Error::Tools {
        programs: join(absent.iter().map(|(program, _)| *program).collect(), ", "),
        packages: join(absent.iter().map(|(_, package)| *package).collect(), " "),
    })
}

fn absent(folders: &[PathBuf]) -> Vec<(&'static str, &'static str)> {
    let there = |program: &str| {
        folders
            .iter()
            .any(|dir: &PathBuf| Path::new(dir).join(program).is_file())
    };
    OF_HOST
        .into_iter()
        .filter(|(program, _)| !there(program))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_absent_program_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("apt-get"), "").unwrap();
        let absent: Vec<_> = absent(&[dir.path().to_owned()])
            .into_iter()
            .map(|(_, package)| package)
            .collect();
        assert_eq!(absent, ["dpkg", "mmdebstrap", "debian-archive-keyring"]);
    }
}
