//! Writes a package as a file. `dpkg-deb` makes the archive; the order, the owners and the times that it puts into it
//! follow from the manifest alone, so that the same manifest gives the same bytes.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use md5::{Digest as _, Md5};

use super::manifest::{Content, Package, Stamp};
use crate::Error;

/// How much work goes into making the file small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As Debian's own packages.
    Small,
    /// For tests, which write more often than they send.
    Fast,
}

/// Writes the package into a folder, which is made if absent, and returns the file's path. A file of this name is
/// replaced.
///
/// # Errors
/// When a file cannot be read or written, or `dpkg-deb` is absent or refuses.
pub fn write(
    package: &Package,
    out: &Path,
    stamp: Stamp,
    compression: Compression,
) -> Result<PathBuf, Error> {
    fs::create_dir_all(out).map_err(Error::file("make the folder", out))?;
    let folder = tempfile::tempdir_in(out).map_err(Error::file("make a folder in", out))?;
    let tree = folder.path().join("tree");
    lay_out(package, &tree)?;
    stamp_all(&tree, stamp)?;
    let file = folder.path().join("package.deb");
    let (kind, level) = match compression {
        Compression::Small => ("-Zxz", "-z6"),
        Compression::Fast => ("-Zgzip", "-z1"),
    };
    let mut command = Command::new("dpkg-deb");
    command
        // Several threads would cut the data where they please.
        .args(["--root-owner-group", kind, level, "--threads-max=1", "--build"])
        .args([&tree, &file])
        .env("SOURCE_DATE_EPOCH", stamp.secs().to_string());
    run(command, "dpkg-deb", "dpkg")?;
    let place = out.join(package.file_name());
    fs::rename(&file, &place).map_err(Error::file("write", &place))?;
    Ok(place)
}

/// Puts everything where `dpkg-deb` looks for it.
fn lay_out(package: &Package, tree: &Path) -> Result<(), Error> {
    let control = tree.join("DEBIAN");
    folder(&control)?;
    let mut sums = String::new();
    let mut size = 0;
    for (path, entry) in &package.entries {
        let inside = path.strip_prefix("/").map_err(|_| Error::Relative {
            path: path.clone(),
            package: package.name,
        })?;
        let place = tree.join(inside);
        folder(place.parent().unwrap_or(tree))?;
        match &entry.content {
            Content::Folder => folder(&place)?,
            Content::Bytes(bytes) => fs::write(&place, bytes).map_err(Error::file("write", &place))?,
            Content::CopyOf(from) => {
                fs::copy(from, &place).map_err(Error::file("copy", from))?;
            }
        }
        mode(&place, entry.mode)?;
        if entry.content != Content::Folder {
            let (sum, length) = md5_of(&place)?;
            size += length.div_ceil(1024);
            if !entry.conffile {
                sums.push_str(&format!("{sum}  {}\n", inside.display()));
            }
        }
    }
    // Each folder takes a block, or so the rule of Installed-Size has it.
    size += folders(package).len() as u64;
    put(&control.join("control"), &package.control_text(size), 0o644)?;
    put(&control.join("md5sums"), &sums, 0o644)?;
    let conffiles = package.conffiles_text();
    if !conffiles.is_empty() {
        put(&control.join("conffiles"), &conffiles, 0o644)?;
    }
    for (file, text) in &package.control {
        put(&control.join(file.file_name()), text, file.mode())?;
    }
    Ok(())
}

fn folders(package: &Package) -> BTreeSet<&Path> {
    let parents = package.entries.keys().flat_map(|path| path.ancestors().skip(1));
    parents.collect()
}

fn put(path: &Path, text: &str, bits: u32) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::file("write", path))?;
    mode(path, bits)
}

/// Makes a folder with those above it, open to all whatever this process's mask is.
fn folder(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        folder(above)?;
    }
    fs::create_dir(path).map_err(Error::file("make the folder", path))?;
    mode(path, 0o755)
}

fn mode(path: &Path, bits: u32) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(bits)).map_err(Error::file("set the mode of", path))
}

/// Sets the time of everything below a path: of the files first, since they touch their folders.
fn stamp_all(path: &Path, stamp: Stamp) -> Result<(), Error> {
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(Error::file("read", path))? {
            let entry = entry.map_err(Error::file("read", path))?;
            stamp_all(&entry.path(), stamp)?;
        }
    }
    File::open(path)
        .and_then(|file| file.set_modified(stamp.time()))
        .map_err(Error::file("set the time of", path))
}

fn md5_of(path: &Path) -> Result<(String, u64), Error> {
    let mut hash = Md5::new();
    let mut file = File::open(path).map_err(Error::file("read", path))?;
    let mut sink = Hashing(&mut hash);
    let length = std::io::copy(&mut file, &mut sink).map_err(Error::file("read", path))?;
    Ok((hex::encode(hash.finalize()), length))
}

struct Hashing<'a>(&'a mut Md5);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs a program that packages are made with, and returns what it printed.
pub(super) fn run(
    mut command: Command,
    program: &'static str,
    package: &'static str,
) -> Result<Vec<u8>, Error> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Program {
            program,
            package,
            source,
        })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Refused {
        program,
        status: output.status,
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Gzips as Debian wants documentation: as small as can be, without name and time.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::best());
    out.write_all(bytes)
        .and_then(|()| out.finish())
        .map_err(Error::file("compress", Path::new("documentation")))
}
