//! Files laid over a root file system, both as tar archives: nothing is unpacked, and no root is needed.
//!
//! Entries of the base are copied as they are, with the headers that carry their capabilities and long names; those
//! that a file replaces are left out. Files come last, after the folders that the base does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use tar::{EntryType, Header};

use super::manifest::{Content, File};
use crate::Error;

/// Writes the archive `base` with these files over it to `out`. Their time is `epoch`, their owner root.
pub(crate) fn merge(
    base: &Path,
    files: &BTreeMap<String, File>,
    epoch: u64,
    out: &Path,
) -> Result<(), Error> {
    let reader = || -> Result<_, Error> {
        let file = fs::File::open(base).map_err(Error::file("read", base))?;
        Ok(tar::Archive::new(BufReader::with_capacity(1 << 20, file)))
    };
    let mut kinds = BTreeMap::new();
    let mut survey = || -> io::Result<()> {
        for entry in reader().map_err(io::Error::other)?.entries()? {
            let entry = entry?;
            kinds.insert(plain(&entry.path()?), entry.header().entry_type());
        }
        Ok(())
    };
    survey().map_err(Error::file("read", base))?;
    let folders = folders(files, &kinds)?;
    let to = fs::File::create(out).map_err(Error::file("write", out))?;
    let mut to = tar::Builder::new(BufWriter::with_capacity(1 << 20, to));
    let mut write = || -> io::Result<()> {
        let mut archive = reader().map_err(io::Error::other)?;
        // Headers that belong to the next entry.
        let mut before: Vec<(Header, Vec<u8>)> = Vec::new();
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            let header = entry.header().clone();
            let kind = header.entry_type();
            if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
                let mut data = Vec::new();
                entry.read_to_end(&mut data)?;
                before.push((header, data));
                continue;
            }
            let replaced = files.contains_key(&plain(&header.path()?));
            for (header, data) in before.drain(..) {
                if !replaced {
                    to.append(&header, data.as_slice())?;
                }
            }
            if !replaced {
                to.append(&header, &mut entry)?;
            }
        }
        for folder in &folders {
            let mut header = header(epoch, EntryType::Directory, 0o755);
            to.append_data(&mut header, folder.trim_start_matches('/'), io::empty())?;
        }
        for (path, file) in files {
            let path = path.trim_start_matches('/');
            match &file.content {
                Content::Bytes(bytes) => {
                    let mut header = header(epoch, EntryType::Regular, file.mode);
                    header.set_size(bytes.len() as u64);
                    to.append_data(&mut header, path, bytes.as_slice())?;
                }
                Content::Link(target) => {
                    to.append_link(&mut header(epoch, EntryType::Symlink, 0o777), path, target)?;
                }
            }
        }
        to.finish()?;
        to.get_mut().flush()
    };
    write().map_err(Error::file("write", out))
}

/// An entry's path as one from the root: `./etc/motd` and `etc/motd/` as `/etc/motd`.
fn plain(path: &Path) -> String {
    let path = path.to_string_lossy();
    format!("/{}", path.trim_start_matches("./").trim_matches('/'))
}

/// The folders of the files that the base does not have, outer ones first.
fn folders(
    files: &BTreeMap<String, File>,
    kinds: &BTreeMap<String, EntryType>,
) -> Result<BTreeSet<String>, Error> {
    let misplaced = |path: &str, reason: String| Error::Manifest {
        path: path.into(),
        reason,
    };
    let mut missing = BTreeSet::new();
    for path in files.keys() {
        if kinds.get(path).is_some_and(|kind| kind.is_dir()) {
            return Err(misplaced(
                path,
                "a file of the manifest stands where packages have a folder".to_owned(),
            ));
        }
        for (end, _) in path.char_indices().filter(|(at, c)| *c == '/' && *at > 0) {
            let parent = &path[..end];
            match kinds.get(parent) {
                Some(kind) if kind.is_dir() => {}
                Some(kind) if kind.is_symlink() => {
                    return Err(misplaced(
                        path,
                        format!(
                            "{parent} is a link; write the path of the file with the folder that it leads to"
                        ),
                    ));
                }
                Some(_) => return Err(misplaced(path, format!("{parent} is no folder"))),
                None if files.contains_key(parent) => {
                    return Err(misplaced(
                        path,
                        format!("{parent} is a file of the manifest, and no folder"),
                    ));
                }
                None => {
                    missing.insert(parent.to_owned());
                }
            }
        }
    }
    Ok(missing)
}

fn header(epoch: u64, kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mtime(epoch);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(mode);
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> File {
        File {
            mode: 0o640,
            content: Content::Bytes(text.as_bytes().to_vec()),
        }
    }

    /// A base with a folder, a file, a link, and a file with a capability and a long name.
    fn base() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut to = tar::Builder::new(file.reopen().unwrap());
        to.append_data(&mut header(1, EntryType::Directory, 0o755), "./etc/", io::empty())
            .unwrap();
        let mut add = |path: &str, text: &str| {
            let mut header = header(1, EntryType::Regular, 0o644);
            header.set_size(text.len() as u64);
            to.append_data(&mut header, path, text.as_bytes()).unwrap();
        };
        add("./etc/motd", "old");
        add("./etc/hosts", "kept");
        to.append_link(&mut header(1, EntryType::Symlink, 0o777), "./lib", "usr/lib")
            .unwrap();
        to.append_pax_extensions([("SCHILY.xattr.security.capability", b"cap".as_slice())])
            .unwrap();
        let long = format!("./etc/{}", "x".repeat(150));
        to.append_data(&mut header(1, EntryType::Regular, 0o755), long, io::empty())
            .unwrap();
        to.finish().unwrap();
        file
    }

    fn merged(files: &[(&str, File)]) -> Result<Vec<(String, u32, String, usize)>, Error> {
        let base = base();
        let out = tempfile::NamedTempFile::new().unwrap();
        let files = files
            .iter()
            .map(|(path, file)| ((*path).to_owned(), file.clone()))
            .collect();
        merge(base.path(), &files, 77, out.path())?;
        let mut archive = tar::Archive::new(out.reopen().unwrap());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let extensions = entry.pax_extensions().unwrap().map_or(0, Iterator::count);
            let path = plain(&entry.path().unwrap());
            seen.push((path, entry.header().mode().unwrap(), content, extensions));
        }
        Ok(seen)
    }

    #[test]
    fn a_file_replaces_that_of_a_package_and_the_rest_stays_with_its_capabilities() {
        let seen = merged(&[("/etc/motd", text("new")), ("/opt/lab/run/go", text("go"))]).unwrap();
        let long = format!("/etc/{}", "x".repeat(150));
        let row =
            |path: &str, mode, text: &str, extensions| (path.to_owned(), mode, text.to_owned(), extensions);
        assert_eq!(
            seen,
            [
                row("/etc", 0o755, "", 0),
                row("/etc/hosts", 0o644, "kept", 0),
                row("/lib", 0o777, "", 0),
                row(&long, 0o755, "", 1),
                row("/opt", 0o755, "", 0),
                row("/opt/lab", 0o755, "", 0),
                row("/opt/lab/run", 0o755, "", 0),
                row("/etc/motd", 0o640, "new", 0),
                row("/opt/lab/run/go", 0o640, "go", 0),
            ]
        );
    }

    #[test]
    fn a_file_that_cannot_stand_where_it_is_put_is_named() {
        for (path, part) in [
            ("/lib/x", "/lib is a link"),
            ("/etc", "packages have a folder"),
            ("/etc/hosts/x", "/etc/hosts is no folder"),
        ] {
            let error = merged(&[(path, text(""))]).unwrap_err().to_string();
            assert!(error.starts_with(path) && error.contains(part), "{error}");
        }
    }
}
