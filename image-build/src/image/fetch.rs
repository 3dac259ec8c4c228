//! Fetching exactly the packages of a lock, and making an archive of their own of them.
//!
//! Each package is fetched by apt's own helper, which knows the host's proxies and checks the hash, into the cache
//! under its SHA-256. What is in the cache is hashed again before it is used: a damaged file is fetched anew.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError, mpsc};

use sha2::{Digest, Sha256};

use super::archive::{Mirrors, control};
use super::cache::{Cache, sha256};
use super::lock::{Locked, Origin};
use super::process;
use crate::Error;

/// apt's helper.
const HELPER: &str = "/usr/lib/apt/apt-helper";

/// How many packages are fetched at once: enough to hide the way to the mirror, few enough to be a good guest.
const AT_ONCE: usize = 4;

/// Fetches what the cache does not have. `progress` is told how many bytes of all are there.
pub(crate) fn fetch(
    cache: &Cache,
    mirrors: &Mirrors,
    packages: &[&Locked],
    mut progress: impl FnMut(u64, u64),
) -> Result<(), Error> {
    // An image and the programs that make it share some; two must not write one file.
    let unique: BTreeMap<&str, &Locked> = packages
        .iter()
        .map(|package| (package.sha256.as_str(), *package))
        .collect();
    let total = unique.values().map(|package| package.size).sum();
    let queue: Mutex<VecDeque<&Locked>> = Mutex::new(unique.into_values().collect());
    let (done, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let (done, queue) = (done.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(package) = next else { return };
                    if done
                        .send(one(cache, mirrors, package).map(|()| package.size))
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut bytes = 0;
        let mut failed = None;
        for result in results {
            match result {
                Ok(size) => {
                    bytes += size;
                    progress(bytes, total);
                }
                Err(error) => {
                    // The others end with what they are at.
                    queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    })
}

fn one(cache: &Cache, mirrors: &Mirrors, package: &Locked) -> Result<(), Error> {
    let path = cache.deb(&package.sha256);
    if path.is_file() && sha256(&path)? == package.sha256 {
        return Cache::used(&path);
    }
    let uri = mirrors.uri(package.origin, &package.path);
    let refused = |said: String| Error::Fetch {
        package: package.to_string(),
        uri: uri.clone(),
        said,
    };
    if package.origin == Origin::File {
        return Err(refused(
            "it was given as a file, and that file is not given now".to_owned(),
        ));
    }
    let part = path.with_extension("part");
    // The helper takes what is there for the beginning of the file.
    let _ = fs::remove_file(&part);
    let mut command = Command::new(HELPER);
    command
        .args([
            "-o",
            "APT::Sandbox::User=",
            "-o",
            "Acquire::Retries=3",
            "download-file",
            &uri,
        ])
        .arg(&part)
        .arg(format!("SHA256:{}", package.sha256))
        .env("LC_ALL", "C");
    process::output(&mut command, "apt-helper", "apt").map_err(|error| match error {
        Error::Refused { said, .. } => refused(said),
        other => other,
    })?;
    if sha256(&part)? != package.sha256 {
        return Err(refused("what was fetched has another hash".to_owned()));
    }
    // It bears the time of the archive's file.
    Cache::used(&part)?;
    fs::rename(&part, &path).map_err(Error::file("write", &path))
}

/// Puts a package that is given as a file beside the fetched ones.
pub(crate) fn keep(cache: &Cache, deb: &Path, package: &Locked) -> Result<(), Error> {
    let path = cache.deb(&package.sha256);
    let part = path.with_extension("part");
    fs::copy(deb, &part).map_err(Error::file("copy", deb))?;
    if sha256(&part)? != package.sha256 {
        return Err(Error::Lock {
            reason: format!("{} has changed while it was read", deb.display()),
        });
    }
    fs::rename(&part, &path).map_err(Error::file("write", &path))
}

/// Makes an archive of these packages in a folder, as mmdebstrap reads it by `deb copy:/folder ./`.
pub(crate) fn archive(cache: &Cache, dir: &Path, suite: &str, packages: &[Locked]) -> Result<(), Error> {
    let mut index = Vec::new();
    for package in packages {
        let deb = cache.deb(&package.sha256);
        let name = format!("{}.deb", package.sha256);
        let link = dir.join(&name);
        std::os::unix::fs::symlink(&deb, &link).map_err(Error::file("write", &link))?;
        // Writing to memory does not fail.
        let _ = write!(
            index,
            "{}Filename: ./{name}\nSize: {}\nSHA256: {}\n\n",
            kept_control(cache, package)?,
            package.size,
            package.sha256
        );
    }
    let release = format!(
        "Suite: {suite}\nCodename: {suite}\nDate: Thu, 01 Jan 1970 00:00:00 UTC\nArchitectures: amd64\n\
         Components: main\nSHA256:\n {} {} Packages\n",
        hex::encode(Sha256::digest(&index)),
        index.len()
    );
    for (name, bytes) in [("Packages", index.as_slice()), ("Release", release.as_bytes())] {
        let path = dir.join(name);
        fs::write(&path, bytes).map_err(Error::file("write", &path))?;
    }
    Ok(())
}

/// The fields of a package, kept beside it: two hundred runs of dpkg-deb take some seconds.
pub(crate) fn kept_control(cache: &Cache, package: &Locked) -> Result<String, Error> {
    let deb = cache.deb(&package.sha256);
    let path = deb.with_extension("control");
    if let Ok(text) = fs::read_to_string(&path) {
        return Ok(text);
    }
    let text = control(&deb)?;
    let part = path.with_extension("control-part");
    fs::write(&part, &text).map_err(Error::file("write", &part))?;
    fs::rename(&part, &path).map_err(Error::file("write", &path))?;
    Ok(text)
}
