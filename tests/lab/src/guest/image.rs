//! The disk from which guests boot: the image that people build, with one thing more, by which the lab gives commands.
//!
//! The package in it is made of the same program that the nodes of the lab run. A disk is kept with the hash of
//! that package and its manifest, and made again when one of them changes (but not when Debian's packages do, nor what
//! makes the disk, unless that is part of the program too); the pieces below it are those of
//! `aerie image`, in the same cache.

use std::fs;
use std::path::{Path, PathBuf};

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
    let of = |ending: &str| dir.join(format!("{}.{ending}", request.manifest.name));
    let (disk, lock, key) = (of("raw"), of("lock"), of("key"));
    let inputs = inputs(&request.manifest, &deb)?;
    if disk.is_file() && fs::read_to_string(&key).is_ok_and(|of_disk| of_disk == inputs) {
        return Ok(disk);
    }
    // Where only files of the manifest have changed, the packages stay as they are.
    request.lock = Lock::read(&lock).ok();
    let _ = fs::remove_file(&key);
    let build = |request: &Request| image::build(request, &dir, &mut say);
    build(&request).or_else(|error| {
        if request.lock.take().is_none() {
            return Err(error);
        }
        build(&request)
    })?;
    fs::write(&key, inputs)?;
    Ok(disk)
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
