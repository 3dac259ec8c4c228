//! What an image is: a TOML file, parsed once into a [`Manifest`].
//!
//! ```toml
//! name = "genome-lab"
//! extends = "appliance"
//! packages = ["samtools"]
//! size = "8 GiB"
//!
//! [[file]]
//! path = "/etc/motd"
//! content = "Ask Maria.\n"
//! ```
//!
//! `extends` names a built-in manifest or another file: its packages and files are kept and added to, and what is
//! said again is said anew. Built-in manifests and their files are data of the repository, in `image-build/image`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;

/// How long a chain of `extends` may be: more is a ring, or nobody could follow it.
const CHAIN: usize = 8;

/// The most that a file given in a manifest may have, in bytes; larger ones belong into a package.
const FILE_LIMIT: u64 = 64 << 20;

/// The least size of a disk in bytes: a kernel and its modules alone take half of it.
const LEAST: u64 = 512 << 20;

macro_rules! data {
    ($path:literal) => {
        include_str!(concat!("../../image/", $path))
    };
}

/// The manifests that need no file, by name.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("appliance", data!("appliance.toml")),
    ("cloud", data!("cloud.toml")),
    ("small", data!("small.toml")),
];

/// The files that built-in manifests name as sources.
const BUILT_IN_FILES: [(&str, &str); 9] = [
    ("files/console", data!("files/console")),
    ("files/console.service", data!("files/console.service")),
    ("files/first-boot", data!("files/first-boot")),
    ("files/first-boot.service", data!("files/first-boot.service")),
    ("files/ethernet.network", data!("files/ethernet.network")),
    ("files/fstab", data!("files/fstab")),
    ("files/modules.conf", data!("files/modules.conf")),
    ("files/root.conf", data!("files/root.conf")),
    ("files/sshd.conf", data!("files/sshd.conf")),
];

/// An image, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The name of the image and of its files.
    pub name: String,
    /// What it is for, in a line.
    pub description: String,
    /// The Debian suite.
    pub suite: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Debian packages, without the kernel's and without what every image has.
    pub packages: BTreeSet<String>,
    /// Packages given as files.
    pub debs: Vec<PathBuf>,
    /// Patterns of paths that are left out of packages.
    pub exclude: BTreeSet<String>,
    /// Files by their path on the machine.
    pub files: BTreeMap<String, File>,
    /// The size of the disk in bytes.
    pub size: u64,
    /// In which forms it is written.
    pub formats: Vec<Format>,
}

/// A file that an image has besides its packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its access rights.
    pub mode: u32,
    /// What is in it.
    pub content: Content,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A regular file with these bytes.
    Bytes(Vec<u8>),
    /// A symbolic link to this path.
    Link(String),
}

/// Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// Every driver, the floppy's among them.
    Generic,
    /// The drivers of virtual machines in clouds; no floppy.
    Cloud,
}

impl Kernel {
    /// The Debian package.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Generic => "linux-image-amd64",
            Self::Cloud => "linux-image-cloud-amd64",
        }
    }
}

/// The form of an image's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's, compressed.
    Qcow2,
    /// VMware's, compressed (streamOptimized).
    Vmdk,
    /// A machine for VirtualBox and VMware: the VMDK with its description.
    Ova,
}

impl Format {
    /// The end of the file's name.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Ova => "ova",
        }
    }
}

/// The manifest as it stands in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    name: String,
    description: Option<String>,
    extends: Option<String>,
    suite: Option<String>,
    kernel: Option<Kernel>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    without: Vec<String>,
    #[serde(default)]
    debs: Vec<PathBuf>,
    #[serde(default)]
    exclude: Vec<String>,
    size: Option<String>,
    formats: Option<Vec<Format>>,
    #[serde(default, rename = "file")]
    files: Vec<WireFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFile {
    path: String,
    mode: Option<String>,
    content: Option<String>,
    source: Option<PathBuf>,
    link: Option<String>,
}

/// Where a manifest and the files beside it are read from.
enum Place {
    BuiltIn,
    File(PathBuf),
}

impl Manifest {
    /// The built-in manifest of this name, or the one in this file.
    ///
    /// # Errors
    /// When there is none, or something in it cannot be; the message says what and where.
    pub fn load(name: &str) -> Result<Self, Error> {
        Self::load_chain(name, Path::new(""), 0)
    }

    fn load_chain(name: &str, beside: &Path, depth: usize) -> Result<Self, Error> {
        let built_in = BUILT_IN.iter().find(|(known, _)| *known == name);
        let path = beside.join(name);
        let (place, shown, text) = match built_in {
            Some((name, text)) => (Place::BuiltIn, PathBuf::from(name), (*text).to_owned()),
            None if path.is_file() => {
                let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
                (Place::File(path.clone()), path, text)
            }
            None => {
                return Err(Error::NoManifest {
                    name: name.to_owned(),
                    known: BUILT_IN.map(|(name, _)| name).join(", "),
                });
            }
        };
        Self::parse(&text, &place, depth).map_err(|trouble| match trouble {
            Trouble::Here(reason) => Error::Manifest { path: shown, reason },
            Trouble::Elsewhere(error) => error,
        })
    }

    fn parse(text: &str, place: &Place, depth: usize) -> Result<Self, Trouble> {
        let wire: Wire = toml::from_str(text).map_err(|error| Trouble::Here(error.to_string()))?;
        check_word("name", &wire.name, "-")?;
        let folder = match place {
            Place::BuiltIn => Path::new(""),
            Place::File(path) => path.parent().unwrap_or(Path::new("")),
        };
        let mut manifest = match &wire.extends {
            Some(_) if depth == CHAIN => {
                return here(format!(
                    "'extends' goes over more than {CHAIN} manifests, or in a ring"
                ));
            }
            Some(base) => Self::load_chain(base, folder, depth + 1).map_err(Trouble::Elsewhere)?,
            None => Self::empty(),
        };
        manifest.name = wire.name;
        if let Some(description) = wire.description {
            manifest.description = description;
        }
        if let Some(suite) = wire.suite {
            check_word("suite", &suite, "-")?;
            manifest.suite = suite;
        }
        if let Some(kernel) = wire.kernel {
            manifest.kernel = kernel;
        }
        for package in &wire.without {
            if !manifest.packages.remove(package) {
                return here(format!(
                    "'without' names {package}, which the manifest that this extends does not have"
                ));
            }
        }
        for package in wire.packages {
            check_word("packages", &package, "+-.")?;
            manifest.packages.insert(package);
        }
        manifest.debs.extend(wire.debs.iter().map(|deb| folder.join(deb)));
        for pattern in wire.exclude {
            if !pattern.starts_with('/') || pattern.contains(['\n', '\'', '"']) {
                return here(format!(
                    "'exclude' has '{pattern}', which is no pattern of absolute paths such as /usr/share/doc/*"
                ));
            }
            manifest.exclude.insert(pattern);
        }
        if let Some(size) = wire.size {
            manifest.size = parse_size(&size)?;
        }
        if let Some(mut formats) = wire.formats {
            formats.sort();
            formats.dedup();
            manifest.formats = formats;
        }
        for file in wire.files {
            let (path, file) = parse_file(file, place)?;
            manifest.files.insert(path, file);
        }
        Ok(manifest)
    }

    fn empty() -> Self {
        Self {
            name: String::new(),
            description: String::new(),
            suite: "trixie".to_owned(),
            kernel: Kernel::Generic,
            packages: BTreeSet::new(),
            debs: Vec::new(),
            exclude: BTreeSet::new(),
            files: BTreeMap::new(),
            size: 4 << 30,
            formats: vec![Format::Raw],
        }
    }

    /// Every Debian package that the manifest asks for by name, with the kernel's.
    pub fn all_packages(&self) -> impl Iterator<Item = &str> {
        self.packages
            .iter()
            .map(String::as_str)
            .chain([self.kernel.package()])
    }
}

/// What hinders reading a manifest: something in its own text, or in one that it extends.
#[derive(Debug)]
enum Trouble {
    Here(String),
    Elsewhere(Error),
}

fn here<T>(reason: String) -> Result<T, Trouble> {
    Err(Trouble::Here(reason))
}

fn check_word(key: &str, word: &str, signs: &str) -> Result<(), Trouble> {
    let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || signs.contains(c);
    let begins = word.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if begins && word.len() <= 100 && word.chars().all(fit) {
        return Ok(());
    }
    here(format!(
        "'{key}' has '{word}': small letters, digits and '{signs}' are taken, a letter or digit first"
    ))
}

fn parse_size(text: &str) -> Result<u64, Trouble> {
    let (number, unit) = text
        .trim()
        .split_at(text.trim().find(|c: char| !c.is_ascii_digit()).unwrap_or(0));
    let factor = match unit.trim() {
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    match factor.and_then(|factor: u64| number.parse::<u64>().ok()?.checked_mul(factor)) {
        Some(size) if (LEAST..=1 << 44).contains(&size) => Ok(size),
        _ => here(format!(
            "'size' is '{text}': write a number of MiB or GiB, such as \"4 GiB\", from 512 MiB to 16384 GiB"
        )),
    }
}

fn parse_file(file: WireFile, place: &Place) -> Result<(String, File), Trouble> {
    let path = file.path;
    let parts: Vec<_> = path.split('/').skip(1).collect();
    if !path.starts_with('/')
        || path.contains('\0')
        || parts.iter().any(|part| ["", ".", ".."].contains(part))
    {
        return here(format!(
            "the file '{path}' has no plain absolute path such as /etc/motd"
        ));
    }
    let mode = match file.mode.as_deref() {
        None => 0o644,
        Some(text) => match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o7777 && text.len() >= 3 => mode,
            _ => {
                return here(format!(
                    "the mode of {path} is '{text}', which is none such as \"0644\""
                ));
            }
        },
    };
    let content = match (file.content, file.source, file.link) {
        (Some(text), None, None) => Content::Bytes(text.into_bytes()),
        (None, Some(source), None) => Content::Bytes(read_source(&source, place)?),
        (None, None, Some(link)) if !link.is_empty() && !link.contains('\0') => Content::Link(link),
        _ => {
            return here(format!(
                "the file {path} needs one of 'content', 'source' and 'link', and no second"
            ));
        }
    };
    Ok((path, File { mode, content }))
}

fn read_source(source: &Path, place: &Place) -> Result<Vec<u8>, Trouble> {
    match place {
        Place::BuiltIn => match BUILT_IN_FILES.iter().find(|(name, _)| Path::new(name) == source) {
            Some((_, text)) => Ok(text.as_bytes().to_owned()),
            None => here(format!("there is no built-in file {}", source.display())),
        },
        Place::File(manifest) => {
            let path = manifest.parent().unwrap_or(Path::new("")).join(source);
            let length = std::fs::metadata(&path)
                .map_err(|error| Trouble::Elsewhere(Error::file("read", &path)(error)))?
                .len();
            if length > FILE_LIMIT {
                return here(format!(
                    "the file {} has {} MiB; put what is larger than {} MiB into a package",
                    path.display(),
                    length >> 20,
                    FILE_LIMIT >> 20
                ));
            }
            std::fs::read(&path).map_err(|error| Trouble::Elsewhere(Error::file("read", &path)(error)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Manifest, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(dir.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        Manifest::load(path.to_str().unwrap())
    }

    fn refused(text: &str) -> String {
        load(text).unwrap_err().to_string()
    }

    #[test]
    fn every_built_in_manifest_is_sound() {
        for (name, _) in BUILT_IN {
            let manifest = Manifest::load(name).unwrap();
            assert_eq!(manifest.name, name);
            assert!(
                !manifest.description.is_empty() && !manifest.files.is_empty(),
                "{name}"
            );
        }
    }

    #[test]
    fn an_extended_manifest_keeps_what_it_does_not_change() {
        let base = Manifest::load("appliance").unwrap();
        let own = load(
            "name = 'own'\nextends = 'appliance'\npackages = ['samtools']\nsize = '8 GiB'\n\
             [[file]]\npath = '/etc/motd'\ncontent = 'hello'\nmode = '0600'\n\
             [[file]]\npath = '/etc/hosts'\nsource = 'hosts'\n",
        )
        .unwrap();
        assert!(own.packages.is_superset(&base.packages) && own.packages.contains("samtools"));
        assert_eq!(
            (own.size, own.kernel, &own.suite),
            (8 << 30, base.kernel, &base.suite)
        );
        assert_eq!(own.files.len(), base.files.len() + 2);
        assert_eq!(own.files["/etc/motd"].mode, 0o600);
        assert_eq!(
            own.files["/etc/hosts"].content,
            Content::Bytes(b"127.0.0.1 localhost\n".to_vec())
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = refused("name = 'own'\npakages = []\n");
        assert!(
            error.contains("`pakages`") && error.contains("line 2") && error.contains("packages"),
            "{error}"
        );
        let error = refused("name = 'own'\n[[file]]\npath = '/x'\nowner = 'me'\n");
        assert!(error.contains("`owner`"), "{error}");
    }

    #[test]
    fn a_path_that_leaves_the_image_is_refused() {
        for path in ["etc/motd", "/etc/../motd", "/etc//motd", "/", ""] {
            let error = refused(&format!(
                "name = 'own'\n[[file]]\npath = '{path}'\ncontent = ''\n"
            ));
            assert!(error.contains("no plain absolute path"), "{path}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_is_said_where_it_stands() {
        for (text, part) in [
            ("name = 'Own'", "'name' has 'Own'"),
            ("name = 'own'\nsize = '4'", "'size' is '4'"),
            ("name = 'own'\nsize = '4 GB'", "'size' is '4 GB'"),
            ("name = 'own'\nsize = '1 MiB'", "from 512 MiB"),
            ("name = 'own'\npackages = ['--yes']", "'packages' has '--yes'"),
            ("name = 'own'\nwithout = ['x']", "'without' names x"),
            ("name = 'own'\nkernel = 'small'", "unknown variant `small`"),
            ("name = 'own'\nexclude = ['doc']", "'exclude' has 'doc'"),
            (
                "name = 'own'\nextends = 'nothing'",
                "built in are appliance, cloud, small",
            ),
            ("name = 'own'\nextends = 'own.toml'", "in a ring"),
            ("name = 'own'\n[[file]]\npath = '/x'\n", "needs one of 'content'"),
            (
                "name = 'own'\n[[file]]\npath = '/x'\ncontent = ''\nmode = '9'\n",
                "the mode of /x is '9'",
            ),
            (
                "name = 'own'\n[[file]]\npath = '/x'\nsource = 'absent'\n",
                "absent",
            ),
        ] {
            let error = refused(text);
            assert!(error.contains(part), "{text}\n{error}");
        }
    }
}
