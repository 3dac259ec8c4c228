//! The lock file: every package of an image, and of the programs that make it, with version and hash.
//!
//! TOML, written by `aerie image lock` and beside every image. It names packages by their place in the archive, not
//! by a mirror, and carries the time that the image's files bear.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use crate::Error;

/// The version of the form that this program writes and reads.
const FORM: u32 = 1;

/// What a build uses, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    pub(crate) form: u32,
    /// The manifest's name.
    pub manifest: String,
    /// The Debian suite.
    pub suite: String,
    /// The latest time that a file of the image bears, in seconds since 1970: when the archive was last changed.
    pub epoch: u64,
    /// Packages of the image.
    #[serde(rename = "package")]
    pub packages: Vec<Locked>,
    /// Packages of the programs that make it.
    #[serde(rename = "tool")]
    pub tools: Vec<Locked>,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture, or `all`.
    pub arch: String,
    /// Which archive has it.
    pub origin: Origin,
    /// Its place in the archive; the file's name for a package given as a file.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// Where a package comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Debian's archive.
    Debian,
    /// Debian's archive of security updates.
    Security,
    /// A file that was given.
    File,
}

impl fmt::Display for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

impl Lock {
    pub(crate) fn new(
        manifest: &Manifest,
        epoch: u64,
        mut packages: Vec<Locked>,
        mut tools: Vec<Locked>,
    ) -> Self {
        packages.sort();
        tools.sort();
        Self {
            form: FORM,
            manifest: manifest.name.clone(),
            suite: manifest.suite.clone(),
            epoch,
            packages,
            tools,
        }
    }

    /// Reads a lock file.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        let bad = |reason: String| Error::Manifest {
            path: path.to_owned(),
            reason,
        };
        let lock: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        if lock.form != FORM {
            return Err(bad(format!(
                "this lock has form {}, and this program reads form {FORM}; write another one with 'aerie image lock'",
                lock.form
            )));
        }
        for package in lock.packages.iter().chain(&lock.tools) {
            if package.sha256.len() != 64 || !package.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad(format!(
                    "the sha256 of {package} is none: '{}'",
                    package.sha256
                )));
            }
        }
        Ok(lock)
    }

    /// The text of the lock file.
    ///
    /// # Errors
    /// None that a lock could cause.
    pub fn to_text(&self) -> Result<String, Error> {
        let text = toml::to_string(self).map_err(|error| Error::Manifest {
            path: PathBuf::from("lock"),
            reason: error.to_string(),
        })?;
        Ok(format!(
            "# Written by 'aerie image lock'. A build with this file uses exactly these packages.\n\n{text}"
        ))
    }

    /// Whether an image of this manifest with these files can be made of it.
    ///
    /// # Errors
    /// [`Error::Lock`] with the first thing that differs.
    pub(crate) fn fits(&self, manifest: &Manifest, files: &[Locked]) -> Result<(), Error> {
        let misfit = |reason: String| Err(Error::Lock { reason });
        if self.manifest != manifest.name {
            return misfit(format!(
                "it is of '{}', not of '{}'",
                self.manifest, manifest.name
            ));
        }
        if self.suite != manifest.suite {
            return misfit(format!(
                "it has packages of {}, and the manifest asks for {}",
                self.suite, manifest.suite
            ));
        }
        let names: BTreeSet<&str> = self
            .packages
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        if let Some(absent) = manifest.all_packages().find(|name| !names.contains(name)) {
            return misfit(format!(
                "the manifest asks for the package {absent}, which it does not have"
            ));
        }
        let locked: Vec<_> = self
            .packages
            .iter()
            .filter(|package| package.origin == Origin::File)
            .collect();
        for file in files {
            match locked.iter().find(|package| package.name == file.name) {
                None => return misfit(format!("it has no package {} given as a file", file.name)),
                Some(package) if package.sha256 != file.sha256 => {
                    return misfit(format!(
                        "{} ({}) has the sha256 {}, and the lock has {package} with {}",
                        file.path, file, file.sha256, package.sha256
                    ));
                }
                Some(_) => {}
            }
        }
        match locked
            .iter()
            .find(|package| !files.iter().any(|file| file.name == package.name))
        {
            Some(package) => misfit(format!(
                "it has {package} given as a file, which is not given now"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked(name: &str, origin: Origin, digit: char) -> Locked {
        Locked {
            name: name.to_owned(),
            version: "1:2.0-1".to_owned(),
            arch: "amd64".to_owned(),
            origin,
            path: format!("pool/main/{name}.deb"),
            size: 10,
            sha256: digit.to_string().repeat(64),
        }
    }

    fn lock(extra: Vec<Locked>) -> (Manifest, Lock) {
        let manifest = Manifest::load("small").unwrap();
        let mut packages: Vec<_> = manifest
            .all_packages()
            .map(|name| locked(name, Origin::Debian, '1'))
            .collect();
        packages.extend(extra);
        let lock = Lock::new(&manifest, 7, packages, Vec::new());
        (manifest, lock)
    }

    #[test]
    fn a_lock_survives_its_file() {
        let (_, lock) = lock(vec![locked("aerie", Origin::File, '2')]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lock.to_text().unwrap()).unwrap();
        assert_eq!(Lock::read(file.path()).unwrap(), lock);
    }

    #[test]
    fn a_file_other_than_the_locked_one_is_refused_with_both_hashes() {
        let (manifest, lock) = lock(vec![locked("aerie", Origin::File, '2')]);
        lock.fits(&manifest, &[locked("aerie", Origin::File, '2')])
            .unwrap();
        let error = lock
            .fits(&manifest, &[locked("aerie", Origin::File, '3')])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&"2".repeat(64)) && error.contains(&"3".repeat(64)),
            "{error}"
        );
        assert!(error.contains("aerie image lock"), "{error}");
    }

    #[test]
    fn a_package_that_the_lock_lacks_is_named() {
        let (mut manifest, lock) = lock(Vec::new());
        manifest.packages.insert("emacs-nox".to_owned());
        let error = lock.fits(&manifest, &[]).unwrap_err().to_string();
        assert!(error.contains("the package emacs-nox"), "{error}");
    }

    #[test]
    fn a_lock_with_a_file_that_is_not_given_is_refused() {
        let (manifest, lock) = lock(vec![locked("aerie", Origin::File, '2')]);
        assert!(
            lock.fits(&manifest, &[])
                .unwrap_err()
                .to_string()
                .contains("not given now")
        );
    }

    #[test]
    fn a_lock_of_a_later_form_is_refused() {
        let (_, lock) = lock(Vec::new());
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = lock.to_text().unwrap().replace("form = 1", "form = 2");
        std::fs::write(file.path(), text).unwrap();
        assert!(
            Lock::read(file.path())
                .unwrap_err()
                .to_string()
                .contains("form 2")
        );
    }
}
