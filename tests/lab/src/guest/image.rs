//! The disk from which guests boot: the image that people build, with one thing more, by which the lab gives commands.
//!
//! The package in it is made of the same program that the nodes of the lab run. A disk is kept by the hash of that
//! package and its manifest, so that two checkouts have a disk each (it is not made again when Debian's packages
//! change; what makes the disk is part of the program); the pieces below it are those of `aerie image`, in the same
//! cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aerie_image_build::image::{
    self, Cache, Content, Event, File, Format, Lock, Manifest, Mirrors, Request, Tools,
};
use aerie_image_build::package::{self, Compression, Stamp};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::cache::cache_dir;
use crate::grid::aerie_binary;
use crate::mirror::debian_mirror;

/// The version of the package in a guest, at first.
pub const VERSION: &str = "1.0";

/// The time that packages bear. It is always the same, so that one program gives one package.
const STAMP: u64 = 1_795_000_000;

/// The Debian suite whose QEMU runs guests.
const SUITE: &str = "trixie";

/// How many disks of a manifest are kept: those of two checkouts, and of what was before in one of them.
const KEPT: usize = 3;

const SHELL: &str = "/usr/lib/aerie-lab/shell";
const SERVICE: &str = "/etc/systemd/system/aerie-lab-shell.service";
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/aerie-lab-shell.service";

/// Makes the Debian package `aerie` of the program under test, in a folder.
///
/// # Errors
/// When there is no program, or one of Debian's tools is absent.
pub fn package(version: &str, out: &Path) -> Result<PathBuf> {
    let work = tempfile::tempdir()?;
    let inputs = package::inputs(
        &aerie_binary()?,
        work.path(),
        version,
        "The lab <lab@example.org>",
        Stamp::from_secs(STAMP),
    )?;
    let packages = inputs.packages()?;
    let aerie = packages
        .iter()
        .find(|package| package.name == "aerie")
        .context("the program makes no package aerie")?;
    Ok(package::write(aerie, out, inputs.stamp, Compression::Fast)?)
}

/// The disk of a built-in manifest with the package [`VERSION`], made first unless it is there.
///
/// # Errors
/// When it cannot be made.
pub fn disk(name: &str) -> Result<PathBuf> {
    let dir = cache_dir()?.join("guests");
    fs::create_dir_all(&dir)?;
    // A second test that needs it waits.
    let _held = crate::cache::lock(&dir.join("lock"), || {
        eprintln!("waiting for another test's image")
    })?;
    let work = tempfile::tempdir_in(&dir)?;
    let deb = package(VERSION, work.path())?;
    let mut request = request(manifest(name)?, &deb)?;
    let name = request.manifest.name.clone();
    let inputs = inputs(&request.manifest, &deb)?;
    let disk = dir.join(format!("{name}-{}.raw", &inputs[..16]));
    if let Ok(found) = fs::File::open(&disk) {
        found.set_modified(SystemTime::now())?;
        return Ok(disk);
    }
    // Where only files of the manifest have changed, the packages stay as they are.
    let lock = dir.join(format!("{name}.lock"));
    request.lock = Lock::read(&lock).ok();
    let build = |request: &Request| image::build(request, work.path(), &mut say);
    build(&request).or_else(|error| {
        if request.lock.take().is_none() {
            return Err(error);
        }
        build(&request)
    })?;
    fs::rename(work.path().join(format!("{name}.lock")), &lock)?;
    fs::rename(work.path().join(format!("{name}.raw")), &disk)?;
    forget_old(&dir, &name)?;
    Ok(disk)
}

/// Keeps the disks of a manifest that were used last.
fn forget_old(dir: &Path, name: &str) -> Result<()> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name();
        let is_disk = file
            .to_str()
            .and_then(|file| file.strip_prefix(name)?.strip_suffix(".raw"))
            .is_some_and(|hash| hash.is_empty() || hash.starts_with('-'));
        if is_disk {
            disks.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    disks.sort();
    for (_, old) in disks.iter().rev().skip(KEPT) {
        fs::remove_file(old)?;
    }
    Ok(())
}

/// Makes a built-in manifest's disk twice and compares. Returns its SHA-256.
///
/// # Errors
/// When the two differ, or cannot be made.
pub fn verify(name: &str) -> Result<String> {
    let work = tempfile::tempdir()?;
    let deb = package(VERSION, work.path())?;
    Ok(image::verify(&request(Manifest::load(name)?, &deb)?, &mut say)?)
}

/// QEMU with its firmware.
///
/// # Errors
/// When it cannot be fetched.
pub fn emulator() -> Result<Tools> {
    Ok(image::emulator(&Cache::of_user()?, &mirrors()?, SUITE)?)
}

fn request(manifest: Manifest, deb: &Path) -> Result<Request> {
    Ok(Request {
        manifest,
        debs: vec![deb.to_owned()],
        lock: None,
        formats: vec![Format::Raw],
        mirrors: mirrors()?,
        cache: Cache::of_user()?,
        epoch: None,
    })
}

fn manifest(name: &str) -> Result<Manifest> {
    let mut manifest = Manifest::load(name)?;
    manifest.name = format!("lab-{name}");
    let mut add = |path: &str, mode, content| manifest.files.insert(path.to_owned(), File { mode, content });
    add(SHELL, 0o755, Content::Bytes(include_bytes!("shell.sh").to_vec()));
    add(
        SERVICE,
        0o644,
        Content::Bytes(include_bytes!("shell.service").to_vec()),
    );
    add(WANTED, 0o777, Content::Link(SERVICE.to_owned()));
    Ok(manifest)
}

/// What a disk is made of, hashed. How it is made is part of the program that is in the package.
fn inputs(manifest: &Manifest, deb: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{manifest:?}\n"));
    hash.update(fs::read(deb)?);
    Ok(hex::encode(hash.finalize()))
}

fn mirrors() -> Result<Mirrors> {
    Ok(Mirrors {
        debian: debian_mirror()?,
        ..Mirrors::default()
    })
}

fn say(event: Event) {
    if let Event::Step(step) = event {
        eprintln!("image: {step}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disks_that_were_used_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let others = ["lab-cloud.lock", "lab-cloudy-1.raw"];
        for (age, name) in [
            "lab-cloud-c.raw",
            "lab-cloud-a.raw",
            "lab-cloud-d.raw",
            "lab-cloud.raw",
        ]
        .into_iter()
        .chain(others)
        .enumerate()
        {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            let age = std::time::Duration::from_secs(60 * age as u64);
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        forget_old(dir.path(), "lab-cloud").unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        let expected = [
            "lab-cloud-a.raw",
            "lab-cloud-c.raw",
            "lab-cloud-d.raw",
            "lab-cloud.lock",
            "lab-cloudy-1.raw",
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn a_disk_of_another_package_or_manifest_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let deb = dir.path().join("aerie.deb");
        fs::write(&deb, "one").unwrap();
        let one = inputs(&manifest("appliance").unwrap(), &deb).unwrap();
        assert_eq!(one, inputs(&manifest("appliance").unwrap(), &deb).unwrap());
        assert_ne!(one, inputs(&manifest("cloud").unwrap(), &deb).unwrap());
        fs::write(&deb, "two").unwrap();
        assert_ne!(one, inputs(&manifest("appliance").unwrap(), &deb).unwrap());
    }
}
