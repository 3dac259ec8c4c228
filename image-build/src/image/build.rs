//! From a manifest to the files of an image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use super::archive::{Apt, Mirrors, given};
use super::cache::{Cache, sha256};
use super::disk::{self, Ids};
use super::fetch;
use super::format::{self, Described};
use super::lock::{Lock, Locked, Origin};
use super::manifest::{Format, Manifest};
use super::merge::merge;
use super::root;
use super::sbom;
use super::tools::{self, Tools, of_host_present};
use super::verify::difference;
use crate::Error;

/// What is to be made of what.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image.
    pub manifest: Manifest,
    /// Packages given as files, besides those of the manifest.
    pub debs: Vec<PathBuf>,
    /// The packages that have to be used. Without one, those that the archives have now.
    pub lock: Option<Lock>,
    /// In which forms; those of the manifest if empty.
    pub formats: Vec<Format>,
    /// Where packages are fetched from.
    pub mirrors: Mirrors,
    /// What is kept between builds.
    pub cache: Cache,
    /// The latest time of a file, in seconds since 1970, where it is not to be the lock's.
    pub epoch: Option<u64>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// It begins with this.
    Step(&'a str),
    /// What the step is at.
    Detail(&'a str),
    /// So many bytes of all are fetched.
    Bytes {
        /// What is there.
        done: u64,
        /// What is needed.
        total: u64,
    },
}

/// A file that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// What it is: a format, `lock` or `sbom`.
    pub kind: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// Writes the lock of a manifest with the packages that the archives have now.
///
/// # Errors
/// When a program is absent, an archive cannot be reached, or a package cannot be installed beside the others.
pub fn make_lock(request: &Request, progress: &mut dyn FnMut(Event)) -> Result<Lock, Error> {
    of_host_present()?;
    let _held = hold(request, progress)?;
    let (lock, _) = locked(request, progress)?;
    Ok(lock)
}

/// Makes an image: a file in each form, the lock and the bill of materials, all in the folder `out`.
///
/// # Errors
/// When a program is absent, a package is not as it is locked, or something cannot be written.
pub fn build(request: &Request, out: &Path, progress: &mut dyn FnMut(Event)) -> Result<Vec<Built>, Error> {
    of_host_present()?;
    fs::create_dir_all(out).map_err(Error::file("make the folder", out))?;
    let _held = hold(request, progress)?;
    let ready = Ready::make(request, progress)?;
    let work = tempfile::Builder::new()
        .prefix(".aerie-image-")
        .tempdir_in(out)
        .map_err(Error::file("make a folder in", out))?;
    let root = ready.root(request, None, work.path(), progress)?;
    let name = &request.manifest.name;
    let mut built = Vec::new();
    let raw = work.path().join("disk.raw");
    ready.disk(request, &root, &raw, work.path(), progress)?;
    let formats = if request.formats.is_empty() {
        &request.manifest.formats
    } else {
        &request.formats
    };
    for format in formats.iter().filter(|format| **format != Format::Raw) {
        let part = work.path().join("part");
        ready.convert(request, &raw, *format, &part, work.path(), progress)?;
        built.push(place(&part, out, name, format.extension())?);
    }
    if formats.contains(&Format::Raw) {
        built.push(place(&raw, out, name, Format::Raw.extension())?);
    }
    let texts = [
        ("lock", ready.lock.to_text()?),
        ("cdx.json", sbom::text(&request.cache, &ready.lock)?),
    ];
    for (extension, text) in texts {
        let part = work.path().join("part");
        fs::write(&part, text).map_err(Error::file("write", &part))?;
        built.push(place(&part, out, name, extension)?);
    }
    Ok(built)
}

/// Makes the disk a second time, from the packages, and compares it with the first, as raw bytes and as qcow2.
/// Returns the SHA-256 of the raw disk.
///
/// # Errors
/// [`Error::Differs`] with what differs; whatever hinders a build.
pub fn verify(request: &Request, progress: &mut dyn FnMut(Event)) -> Result<String, Error> {
    of_host_present()?;
    let _held = hold(request, progress)?;
    let ready = Ready::make(request, progress)?;
    let mut hashes = Vec::new();
    let works = [request.cache.work()?, request.cache.work()?];
    let mut roots = Vec::new();
    for (nth, work) in works.iter().enumerate() {
        let anew = (nth > 0).then_some(work.path());
        let root = ready.root(request, anew, work.path(), progress)?;
        let raw = work.path().join("disk.raw");
        let qcow2 = work.path().join("disk.qcow2");
        ready.disk(request, &root, &raw, work.path(), progress)?;
        ready.convert(request, &raw, Format::Qcow2, &qcow2, work.path(), progress)?;
        hashes.push([sha256(&raw)?, sha256(&qcow2)?]);
        roots.push(root);
    }
    match &hashes[..] {
        [first, second] if first == second => Ok(first[0].clone()),
        _ => Err(Error::Differs {
            difference: difference(&roots[0], &roots[1])?,
        }),
    }
}

/// Takes the cache.
fn hold(request: &Request, progress: &mut dyn FnMut(Event)) -> Result<Flock<File>, Error> {
    request
        .cache
        .lock(|| progress(Event::Step("waiting for another build to end")))
}

/// What a disk is made of, all in the cache.
struct Ready {
    lock: Lock,
    tools: Tools,
    ids: Ids,
}

impl Ready {
    fn make(request: &Request, progress: &mut dyn FnMut(Event)) -> Result<Self, Error> {
        let (mut lock, files) = match &request.lock {
            Some(lock) => {
                let files = given_files(request)?;
                let locked: Vec<_> = files.iter().map(|(_, package)| package.clone()).collect();
                lock.fits(&request.manifest, &locked)?;
                (lock.clone(), files)
            }
            None => locked(request, progress)?,
        };
        lock.epoch = request.epoch.unwrap_or(lock.epoch);
        for (path, package) in &files {
            fetch::keep(&request.cache, path, package)?;
        }
        progress(Event::Step("fetching packages"));
        let packages: Vec<&Locked> = lock.packages.iter().chain(&lock.tools).collect();
        fetch::fetch(&request.cache, &request.mirrors, &packages, |done, total| {
            progress(Event::Bytes { done, total });
        })?;
        progress(Event::Step("unpacking mke2fs, GRUB and qemu-img"));
        let tools = Tools::unpack(&request.cache, &lock.tools)?;
        let of_image = Lock {
            tools: Vec::new(),
            ..lock.clone()
        };
        let ids = Ids::of(of_image.to_text()?.as_bytes());
        Ok(Self { lock, tools, ids })
    }

    /// The root file system: packages, kept in the cache or installed `anew`, and the manifest's files over them.
    fn root(
        &self,
        request: &Request,
        anew: Option<&Path>,
        work: &Path,
        progress: &mut dyn FnMut(Event),
    ) -> Result<PathBuf, Error> {
        progress(Event::Step("installing the root file system"));
        let Request { manifest, cache, .. } = request;
        let base = root::make(cache, manifest, &self.lock, anew, |text| {
            progress(Event::Detail(text));
        })?;
        let files = root::files(manifest, &self.lock, &self.ids.root());
        let merged = work.join("root-with-files.tar");
        merge(&base, &files, self.lock.epoch, &merged)?;
        Ok(merged)
    }

    fn disk(
        &self,
        request: &Request,
        root: &Path,
        to: &Path,
        work: &Path,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        progress(Event::Step("writing the disk"));
        let size = request.manifest.size;
        disk::write(&self.tools, root, self.ids, self.lock.epoch, size, to, work)
    }

    fn convert(
        &self,
        request: &Request,
        raw: &Path,
        format: Format,
        to: &Path,
        work: &Path,
        progress: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        progress(Event::Step(&format!("writing the {}", format.extension())));
        let described = Described {
            name: &request.manifest.name,
            size: request.manifest.size,
            epoch: self.lock.epoch,
        };
        format::convert(&self.tools, described, raw, format, to, work)
    }
}

/// The packages given as files, with what they are.
type Given = Vec<(PathBuf, Locked)>;

fn given_files(request: &Request) -> Result<Given, Error> {
    let mut files: Given = Vec::new();
    for path in request.manifest.debs.iter().chain(&request.debs) {
        let path = fs::canonicalize(path).map_err(Error::file("read", path))?;
        let package = given(&path)?;
        if let Some((other, _)) = files.iter().find(|(_, known)| known.name == package.name) {
            return Err(Error::Lock {
                reason: format!(
                    "{} and {} are both the package {}; give one of them",
                    other.display(),
                    path.display(),
                    package.name
                ),
            });
        }
        files.push((path, package));
    }
    Ok(files)
}

fn locked(request: &Request, progress: &mut dyn FnMut(Event)) -> Result<(Lock, Given), Error> {
    let Request {
        manifest,
        cache,
        mirrors,
        ..
    } = request;
    let files = given_files(request)?;
    progress(Event::Step("asking the archives for packages"));
    let apt = Apt::update(cache, mirrors, &manifest.suite)?;
    let mut wanted = vec!["?essential".to_owned()];
    wanted.extend(manifest.all_packages().map(str::to_owned));
    wanted.extend(files.iter().map(|(path, _)| path.display().to_string()));
    let mut packages = apt.resolve(&wanted)?;
    packages.retain(|package| !files.iter().any(|(_, file)| file.name == package.name));
    packages.extend(files.iter().map(|(_, file)| file.clone()));
    debug_assert!(
        packages
            .iter()
            .filter(|package| package.origin == Origin::File)
            .count()
            == files.len()
    );
    let programs = apt.resolve(&tools::PACKAGES.map(str::to_owned))?;
    let epoch = match request.epoch {
        Some(epoch) => epoch,
        None => apt.epoch()?,
    };
    Ok((Lock::new(manifest, epoch, packages, programs), files))
}

/// Moves a finished file to its place.
fn place(part: &Path, out: &Path, name: &str, extension: &'static str) -> Result<Built, Error> {
    let path = out.join(format!("{name}.{extension}"));
    let size = fs::metadata(part).map_err(Error::file("read", part))?.len();
    let sha256 = sha256(part)?;
    fs::rename(part, &path).map_err(Error::file("write", &path))?;
    Ok(Built {
        kind: extension,
        path,
        size,
        sha256,
    })
}
