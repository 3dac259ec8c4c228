//! Which packages an image takes: apt's choice, from lists of its own, for a machine on which nothing is installed.
//!
//! The host's own lists and packages have no part in it: apt is given a folder in the cache with everything that it
//! reads, and an empty list of what is installed. What it would install are the packages of the image.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::cache::{Cache, key, sha256};
use super::lock::{Locked, Origin};
use super::process;
use crate::Error;

/// The programs of the host that images are made with, each with its package.
pub(crate) const APT: (&str, &str) = ("apt-get", "apt");
pub(crate) const DPKG_DEB: (&str, &str) = ("dpkg-deb", "dpkg");

/// What signs Debian's archives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where Debian's archives are fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// The archive.
    pub debian: String,
    /// The archive of security updates.
    pub security: String,
}

impl Default for Mirrors {
    fn default() -> Self {
        Self {
            debian: "http://deb.debian.org/debian".to_owned(),
            security: "http://deb.debian.org/debian-security".to_owned(),
        }
    }
}

impl Mirrors {
    /// Where a file of an archive is.
    pub(crate) fn uri(&self, origin: Origin, path: &str) -> String {
        let base = match origin {
            Origin::Security => &self.security,
            Origin::Debian | Origin::File => &self.debian,
        };
        // Versions have signs in them that mean something else in a URI.
        let path: String = path
            .chars()
            .map(|c| match c {
                '+' => "%2b".to_owned(),
                '~' => "%7e".to_owned(),
                ':' => "%3a".to_owned(),
                c => c.to_string(),
            })
            .collect();
        format!("{}/{path}", base.trim_end_matches('/'))
    }

    /// The archive and the place in it that a URI of apt's means.
    fn place(&self, uri: &str) -> Option<(Origin, String)> {
        // One may begin as the other does: the longer one is asked first.
        let mut bases = [(Origin::Debian, &self.debian), (Origin::Security, &self.security)];
        bases.sort_by_key(|(_, base)| std::cmp::Reverse(base.len()));
        bases.into_iter().find_map(|(origin, base)| {
            let path = uri.strip_prefix(base.trim_end_matches('/'))?.strip_prefix('/')?;
            Some((origin, decoded(path)))
        })
    }
}

/// A path without its percent signs. What is no such sign stays as it is.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// apt with lists of its own.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    mirrors: Mirrors,
}

impl Apt {
    /// Fetches the lists of a suite.
    pub(crate) fn update(cache: &Cache, mirrors: &Mirrors, suite: &str) -> Result<Self, Error> {
        let inputs = [
            suite.as_bytes(),
            mirrors.debian.as_bytes(),
            mirrors.security.as_bytes(),
        ];
        let dir = cache.path(&format!("apt-{}", key(inputs)));
        for folder in ["lists/partial", "cache/archives/partial", "parts"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).map_err(Error::file("make the folder", &folder))?;
        }
        Cache::used(&dir)?;
        let apt = Self {
            dir,
            mirrors: mirrors.clone(),
        };
        apt.configure(suite)?;
        process::output(
            apt.command(APT.0).args(["-qq", "update", "--error-on=any"]),
            APT.0,
            APT.1,
        )?;
        Ok(apt)
    }

    fn configure(&self, suite: &str) -> Result<(), Error> {
        let Mirrors { debian, security } = &self.mirrors;
        let mut sources = String::new();
        for (uri, suite) in [
            (debian, suite.to_owned()),
            (debian, format!("{suite}-updates")),
            (security, format!("{suite}-security")),
        ] {
            sources.push_str(&format!("deb [signed-by={KEYRING}] {uri} {suite} main\n"));
        }
        let dir = self.dir.display();
        let conf = format!(
            "Dir::State \"{dir}\";\nDir::State::Lists \"{dir}/lists\";\nDir::State::status \"{dir}/status\";\n\
             Dir::Cache \"{dir}/cache\";\nDir::Etc::SourceList \"{dir}/sources.list\";\n\
             Dir::Etc::SourceParts \"{dir}/parts\";\nDir::Etc::Preferences \"{dir}/parts/none\";\n\
             Dir::Etc::PreferencesParts \"{dir}/parts\";\nAPT::Architecture \"amd64\";\n\
             APT::Architectures {{ \"amd64\"; }};\nAPT::Install-Recommends \"false\";\n\
             APT::Sandbox::User \"\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
        );
        for (name, text) in [
            ("sources.list", &sources),
            ("apt.conf", &conf),
            ("status", &String::new()),
        ] {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(Error::file("write", &path))?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }

    /// The packages that would be installed for these, `?essential` or names of packages or paths of files, on a
    /// machine that has none.
    pub(crate) fn resolve(&self, wanted: &[String]) -> Result<Vec<Locked>, Error> {
        let mut command = self.command(APT.0);
        command
            .args(["install", "--yes", "--print-uris", "-qq"])
            .args(wanted);
        let printed = process::output(&mut command, APT.0, APT.1)?;
        let mut places = BTreeMap::new();
        let mut versions = Vec::new();
        for line in printed.lines().filter(|line| line.starts_with("'")) {
            let answer = || Error::Answer {
                program: APT.0,
                said: line.to_owned(),
            };
            let (uri, rest) = line[1..].split_once('\'').ok_or_else(answer)?;
            if uri.starts_with('/') || uri.starts_with("file:") {
                continue;
            }
            let (origin, path) = self.mirrors.place(uri).ok_or_else(answer)?;
            let file = rest.split_whitespace().next().ok_or_else(answer)?;
            let mut parts = file.splitn(3, '_');
            let (name, version) = parts.next().zip(parts.next()).ok_or_else(answer)?;
            versions.push(format!("{name}={}", decoded(version)));
            places.insert(path, origin);
        }
        let shown = process::output(
            self.command("apt-cache").arg("show").args(&versions),
            "apt-cache",
            APT.1,
        )?;
        let mut packages = BTreeMap::new();
        for stanza in shown.split("\n\n") {
            let path = field(stanza, "Filename").unwrap_or_default();
            if let Some(origin) = places.get(path) {
                packages.insert(path.to_owned(), locked(stanza, *origin, path)?);
            }
        }
        match places.keys().find(|path| !packages.contains_key(*path)) {
            Some(path) => Err(Error::Answer {
                program: "apt-cache",
                said: format!("nothing of {path}"),
            }),
            None => Ok(packages.into_values().collect()),
        }
    }

    /// When the archives were last changed, in seconds since 1970.
    pub(crate) fn epoch(&self) -> Result<u64, Error> {
        let lists = self.dir.join("lists");
        let entries = fs::read_dir(&lists).map_err(Error::file("read", &lists))?;
        let mut latest = None;
        for entry in entries {
            let path = entry.map_err(Error::file("read", &lists))?.path();
            if path.to_string_lossy().ends_with("_InRelease") {
                let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
                latest = latest.max(field(&text, "Date").and_then(seconds));
            }
        }
        latest.ok_or_else(|| Error::Answer {
            program: APT.0,
            said: format!("lists without a date in {}", lists.display()),
        })
    }
}

/// A date as it stands in a Release file, in seconds since 1970.
fn seconds(date: &str) -> Option<u64> {
    let time: SystemTime = httpdate::parse_http_date(&date.replace("UTC", "GMT")).ok()?;
    time.duration_since(UNIX_EPOCH)
        .ok()
        .map(|since: Duration| since.as_secs())
}

/// A field of a control stanza, of which the first line is enough.
pub(crate) fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

fn locked(stanza: &str, origin: Origin, path: &str) -> Result<Locked, Error> {
    let get = |name| {
        field(stanza, name)
            .map(str::to_owned)
            .ok_or_else(|| Error::Answer {
                program: "apt-cache",
                said: format!("no {name} of {path}"),
            })
    };
    Ok(Locked {
        name: get("Package")?,
        version: get("Version")?,
        arch: get("Architecture")?,
        origin,
        path: path.to_owned(),
        size: get("Size")?.parse().unwrap_or_default(),
        sha256: get("SHA256")?,
    })
}

/// The fields of a package's file.
pub(crate) fn control(deb: &Path) -> Result<String, Error> {
    let mut command = Command::new(DPKG_DEB.0);
    command.arg("--field").arg(deb);
    process::output(&mut command, DPKG_DEB.0, DPKG_DEB.1)
}

/// A package that is given as a file.
pub(crate) fn given(deb: &Path) -> Result<Locked, Error> {
    let size = fs::metadata(deb).map_err(Error::file("read", deb))?.len();
    let hash = sha256(deb)?;
    let name = deb.file_name().unwrap_or_default().to_string_lossy();
    let stanza = format!("{}Size: {size}\nSHA256: {hash}\n", control(deb)?);
    locked(&stanza, Origin::File, &name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_archive_survives_its_uri() {
        let mirrors = Mirrors::default();
        for (origin, path) in [
            (
                Origin::Debian,
                "pool/main/c/condor/condor_23.9.6+dfsg-2.1+b10_amd64.deb",
            ),
            (
                Origin::Security,
                "pool/updates/main/s/systemd/systemd_257.13-1~deb13u1_amd64.deb",
            ),
        ] {
            let uri = mirrors.uri(origin, path);
            assert!(!uri.contains(['+', '~']), "{uri}");
            assert_eq!(mirrors.place(&uri), Some((origin, path.to_owned())));
        }
        assert_eq!(mirrors.place("http://other.example/debian/pool/x.deb"), None);
    }

    #[test]
    fn a_percent_sign_without_digits_stays() {
        assert_eq!(decoded("a%3ab%zz%4"), "a:b%zz%4");
    }

    #[test]
    fn the_date_of_an_archive_is_read() {
        let text = "Origin: Debian\nDate: Sat, 15 Nov 2025 10:11:12 UTC\nMD5Sum:\n";
        assert_eq!(field(text, "Date").and_then(seconds), Some(1_763_201_472));
    }
}
