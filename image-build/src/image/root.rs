//! The root file system: installed by mmdebstrap from the lock's own archive, and kept as a tar archive.
//!
//! mmdebstrap sorts the archive, gives its files no time later than the epoch, and runs as root or, without it, in a
//! user namespace. Packages are installed as on any machine, their scripts with them; files of the manifest come
//! after, and `finish.sh` last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache::{Cache, key};
use super::fetch;
use super::lock::{Lock, Origin};
use super::manifest::{Content, File, Manifest};
use super::process;
use crate::Error;

const FINISH: &str = include_str!("../../image/finish.sh");
const GRUB_MENU: &str = include_str!("../../image/grub.cfg");

/// A change of how the root file system is made that none of its inputs shows.
const RECIPE: &str = "1";

/// Where the loader looks for its menu.
pub(crate) const GRUB_DIR: &str = "/boot/grub";

/// Where apt keeps which packages nobody asked for by name, so that it can take earlier kernels away.
const AUTOMATIC: &str = "/var/lib/apt/extended_states";

/// The root file system of a lock and a manifest: the archive in the cache, made unless it is there or `anew`.
pub(crate) fn make(
    cache: &Cache,
    manifest: &Manifest,
    lock: &Lock,
    fs_id: &str,
    anew: Option<&Path>,
    mut step: impl FnMut(&str),
) -> Result<PathBuf, Error> {
    let files = files(manifest, lock, fs_id);
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
        Cache::used(&place)?;
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
    let mut command = mmdebstrap(work.path());
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

/// mmdebstrap, whose mounts and files do not outlive it, in whatever way it ends.
fn mmdebstrap(work: &Path) -> Command {
    if !nix::unistd::geteuid().is_root() {
        // It makes a user namespace, whose root has to reach the folder for temporary files.
        return Command::new("mmdebstrap");
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation=private", "mmdebstrap"])
        .env("TMPDIR", work);
    command
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

/// The manifest's files, the loader's menu, and apt's list of packages that are there for the sake of others.
fn files(manifest: &Manifest, lock: &Lock, fs_id: &str) -> BTreeMap<String, File> {
    let mut files = manifest.files.clone();
    let mut add = |path: String, text: String| {
        files.entry(path).or_insert_with(|| File {
            mode: 0o644,
            content: Content::Bytes(text.into_bytes()),
        });
    };
    add(format!("{GRUB_DIR}/grub.cfg"), GRUB_MENU.replace("@ROOT@", fs_id));
    let wanted: BTreeSet<&str> = manifest.all_packages().collect();
    let for_others = lock
        .packages
        .iter()
        .filter(|package| package.origin != Origin::File && !wanted.contains(package.name.as_str()))
        .map(|package| {
            format!(
                "Package: {}\nArchitecture: amd64\nAuto-Installed: 1\n\n",
                package.name
            )
        });
    add(AUTOMATIC.to_owned(), for_others.collect());
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
    use crate::image::Locked;

    #[test]
    fn the_files_of_a_manifest_arrive_with_mode_link_and_time() {
        let manifest = Manifest::load("appliance").unwrap();
        let package = |name: &str, origin| Locked {
            name: name.to_owned(),
            version: "1".to_owned(),
            arch: "all".to_owned(),
            origin,
            path: String::new(),
            size: 1,
            sha256: String::new(),
        };
        let packages = vec![
            package("aerie", Origin::File),
            package("chrony", Origin::Debian),
            package("libc6", Origin::Debian),
        ];
        let lock = Lock::new(&manifest, 77, packages, Vec::new());
        let bytes = overlay(&files(&manifest, &lock, "12-34"), lock.epoch);
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
        assert_eq!(seen.len(), manifest.files.len() + 2);
        assert_eq!(seen["usr/lib/aerie-image/console"].0, 0o755);
        assert_eq!(
            seen["var/lib/apt/extended_states"].2,
            "Package: libc6\nArchitecture: amd64\nAuto-Installed: 1\n\n"
        );
        assert!(seen["boot/grub/grub.cfg"].2.contains("root=UUID=12-34 ro"));
        let link = &seen["etc/systemd/system/multi-user.target.wants/aerie-console.service"].1;
        assert_eq!(link.as_deref(), Some("/etc/systemd/system/aerie-console.service"));
    }

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        assert_eq!(quoted(Path::new("/a b/it's")), "'/a b/it'\\''s'");
    }
}
