//! The root file system: installed by mmdebstrap from the lock's own archive, and kept as a tar archive.
//!
//! mmdebstrap sorts the archive, gives its files no time later than the epoch, and runs as root or, without it, in a
//! user namespace. Packages are installed as on any machine, their scripts with them; files of the manifest come
//! after, and `finish.sh` last.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::{Cache, key};
use super::fetch;
use super::lock::Lock;
use super::manifest::{Content, File, Manifest};
use super::process;
use crate::Error;

const FINISH: &str = include_str!("../../image/finish.sh");
const GRUB_MENU: &str = include_str!("../../image/grub.cfg");

/// A change of how the root file system is made that none of its inputs shows.
const RECIPE: &str = "1";

/// Where the loader looks for its menu.
pub(crate) const GRUB_DIR: &str = "/boot/grub";

/// The root file system of a lock and a manifest: the archive in the cache, made unless it is there or `anew`.
pub(crate) fn make(
    cache: &Cache,
    manifest: &Manifest,
    lock: &Lock,
    fs_id: &str,
    anew: Option<&Path>,
    mut step: impl FnMut(&str),
) -> Result<PathBuf, Error> {
    let files = files(manifest, fs_id);
    let overlay = overlay(&files, lock.epoch);
    let mut inputs: Vec<Vec<u8>> = vec![
        RECIPE.into(),
        FINISH.into(),
        overlay.clone(),
        lock.suite.clone().into(),
    ];
    inputs.push(lock.epoch.to_be_bytes().into());
    inputs.extend(manifest.exclude.iter().map(|pattern| pattern.clone().into()));
    inputs.extend(lock.packages.iter().map(|package| package.sha256.clone().into()));
    let name = format!("root-{}.tar", key(inputs.iter().map(Vec::as_slice)));
    let place = cache.path(&name);
    if anew.is_none() && place.is_file() {
        return Ok(place);
    }
    let work = cache.work()?;
    let archive = work.path().join("archive");
    fs::create_dir(&archive).map_err(Error::file("make the folder", &archive))?;
    fetch::archive(cache, &archive, &lock.suite, &lock.packages)?;
    let finish = work.path().join("finish.sh");
    let added = work.path().join("files.tar");
    let part = work.path().join("root.tar");
    for (path, bytes) in [(&finish, FINISH.as_bytes()), (&added, overlay.as_slice())] {
        fs::write(path, bytes).map_err(Error::file("write", path))?;
    }
    let log = cache.path("root.log");
    let mut command = Command::new("mmdebstrap");
    command
        .env("SOURCE_DATE_EPOCH", lock.epoch.to_string())
        .env("LC_ALL", "C.UTF-8")
        .args([
            "--mode=auto",
            "--variant=essential",
            "--format=tar",
            "--architectures=amd64",
            "--aptopt=APT::Install-Recommends \"false\"",
            // The whole of it is thrown away if the power fails.
            "--dpkgopt=force-unsafe-io",
        ])
        .args(
            manifest
                .exclude
                .iter()
                .map(|pattern| format!("--dpkgopt=path-exclude={pattern}")),
        )
        .arg(format!("--include={}", names(lock)))
        // Words of a special hook are parted as a shell does.
        .arg(format!("--customize-hook=tar-in {} /", quoted(&added)))
        .arg(format!(
            "--customize-hook=sh {} \"$1\" {}",
            quoted(&finish),
            lock.suite
        ))
        .arg(&lock.suite)
        .arg(&part)
        .arg(format!("deb [trusted=yes] copy://{} ./", archive.display()));
    process::logged(&mut command, "mmdebstrap", "mmdebstrap", &log, |line| {
        if let Some(text) = line.strip_prefix("I: ").filter(|text| !text.contains("tempdir")) {
            step(text);
        }
    })?;
    let place = anew.map_or(place, |dir| dir.join(name));
    fs::rename(&part, &place).map_err(Error::file("write", &place))?;
    Ok(place)
}

fn names(lock: &Lock) -> String {
    let names: Vec<_> = lock
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    names.join(",")
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// The manifest's files and the loader's menu.
fn files(manifest: &Manifest, fs_id: &str) -> BTreeMap<String, File> {
    let mut files = manifest.files.clone();
    files
        .entry(format!("{GRUB_DIR}/grub.cfg"))
        .or_insert_with(|| File {
            mode: 0o644,
            content: Content::Bytes(GRUB_MENU.replace("@ROOT@", fs_id).into_bytes()),
        });
    files
}

/// The files as a tar archive, root's and of one time.
fn overlay(files: &BTreeMap<String, File>, epoch: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, file) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(epoch);
        header.set_uid(0);
        header.set_gid(0);
        let path = path.trim_start_matches('/');
        // Writing to memory does not fail, and no path of a manifest is one that tar cannot hold.
        let _ = match &file.content {
            Content::Bytes(bytes) => {
                header.set_mode(file.mode);
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, bytes.as_slice())
            }
            Content::Link(target) => {
                header.set_mode(0o777);
                header.set_size(0);
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target)
            }
        };
    }
    let mut bytes = builder.into_inner().unwrap_or_default();
    let _ = bytes.flush();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_manifest_arrive_with_mode_link_and_time() {
        let manifest = Manifest::load("appliance").unwrap();
        let bytes = overlay(&files(&manifest, "12-34"), 77);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut seen = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 77);
            let path = entry.path().unwrap().display().to_string();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            seen.insert(path, (entry.header().mode().unwrap(), link, text));
        }
        assert_eq!(seen.len(), manifest.files.len() + 1);
        assert_eq!(seen["usr/lib/aerie-image/console"].0, 0o755);
        assert!(seen["boot/grub/grub.cfg"].2.contains("root=UUID=12-34 ro"));
        let link = &seen["etc/systemd/system/multi-user.target.wants/aerie-console.service"].1;
        assert_eq!(link.as_deref(), Some("/etc/systemd/system/aerie-console.service"));
    }

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        assert_eq!(quoted(Path::new("/a b/it's")), "'/a b/it'\\''s'");
    }
}
