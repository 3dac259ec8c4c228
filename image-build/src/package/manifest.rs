//! What a Debian package consists of, as data.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A package, ready to be written. Everything in it belongs to root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Its version, such as `0.1.0`.
    pub version: String,
    /// Debian's name of the architecture, or `all`.
    pub architecture: String,
    /// Who answers for it: a name and an address in angle brackets.
    pub maintainer: String,
    /// The archive's section.
    pub section: &'static str,
    /// Packages of which it needs all; an entry may name alternatives.
    pub depends: Vec<String>,
    /// Packages that go well with it.
    pub suggests: Vec<&'static str>,
    /// One line.
    pub synopsis: &'static str,
    /// What a person should know before installing it: lines, and an empty one between paragraphs.
    pub description: &'static str,
    /// What it puts where, by absolute path.
    pub entries: BTreeMap<PathBuf, Entry>,
    /// Its maintainer scripts and, by the same way, what debconf asks.
    pub control: BTreeMap<ControlFile, String>,
}

/// A file or folder of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub content: Content,
    /// Its permissions.
    pub mode: u32,
    /// Whether an administrator may change it: an upgrade keeps the change.
    pub conffile: bool,
}

/// What a path of a package is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file with these bytes.
    Bytes(Vec<u8>),
    /// A copy of a file of the machine that builds.
    CopyOf(PathBuf),
    /// A folder, for its own sake.
    Folder,
}

/// A file beside `control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ControlFile {
    /// Asks debconf's questions.
    Config,
    /// Runs once the files are in place.
    Postinst,
    /// Runs when the files are gone, and at a purge.
    Postrm,
    /// Runs before the files go.
    Prerm,
    /// Debconf's questions.
    Templates,
}

impl ControlFile {
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Postinst => "postinst",
            Self::Postrm => "postrm",
            Self::Prerm => "prerm",
            Self::Templates => "templates",
        }
    }

    pub(super) fn mode(self) -> u32 {
        match self {
            Self::Templates => 0o644,
            _ => 0o755,
        }
    }
}

/// The moment that stands for the time of a build, so that a later one of the same inputs has the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64);

impl Stamp {
    /// `SOURCE_DATE_EPOCH`: seconds since 1970. Beyond the year 9999 it is the end of that year.
    #[must_use]
    pub fn from_secs(secs: u64) -> Self {
        const END: u64 = 253_402_300_799;
        Self(secs.min(END))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn secs(self) -> u64 {
        self.0
    }

    pub(super) fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0)
    }
}

/// As a changelog has it: `Sun, 22 Nov 2026 10:00:00 +0000`.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let http = httpdate::fmt_http_date(self.time());
        write!(f, "{} +0000", http.trim_end_matches(" GMT"))
    }
}

impl Package {
    /// The name of the file, by Debian's rule.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version, self.architecture)
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.put(path, Content::Bytes(bytes.into()), 0o644, false);
    }

    /// Adds a file that an administrator may change.
    pub(super) fn conffile(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.put(path, Content::Bytes(bytes.into()), 0o644, true);
    }

    /// Adds anything.
    pub(super) fn put(&mut self, path: &str, content: Content, mode: u32, conffile: bool) {
        let entry = Entry {
            content,
            mode,
            conffile,
        };
        self.entries.insert(path.into(), entry);
    }

    /// The text of `control`. `size` is what it takes on a disk, in KiB.
    pub(super) fn control_text(&self, size: u64) -> String {
        let mut text = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: {}\nInstalled-Size: {size}\n",
            self.name, self.version, self.architecture, self.maintainer
        );
        let suggests = self.suggests.iter().map(ToString::to_string).collect();
        for (field, packages) in [("Depends", &self.depends), ("Suggests", &suggests)] {
            if !packages.is_empty() {
                text.push_str(&format!("{field}: {}\n", packages.join(", ")));
            }
        }
        text.push_str(&format!(
            "Section: {}\nPriority: optional\nDescription: {}\n",
            self.section, self.synopsis
        ));
        for line in self.description.lines() {
            text.push_str(&format!(" {}\n", if line.is_empty() { "." } else { line }));
        }
        text
    }

    pub(super) fn conffiles_text(&self) -> String {
        let conffiles = self.entries.iter().filter(|(_, entry)| entry.conffile);
        conffiles
            .map(|(path, _)| format!("{}\n", path.display()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_written_as_a_changelog_has_it() {
        assert_eq!(
            Stamp::from_secs(784_111_777).to_string(),
            "Sun, 06 Nov 1994 08:49:37 +0000"
        );
        assert_eq!(
            Stamp::from_secs(u64::MAX).to_string(),
            "Fri, 31 Dec 9999 23:59:59 +0000"
        );
    }
}
