//! The root file system: installed by mmdebstrap from the lock's own archive, and kept as a tar archive.
//!
//! mmdebstrap sorts the archive, gives its files no time later than the epoch, and runs as root or, without it, in a
//! user namespace. Packages are installed as on any machine, their scripts with them, and `finish.sh` comes after. That
//! takes minutes and is kept; the files of a manifest are laid over it for each image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
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

/// The installed packages of a lock: the archive in the cache, made unless it is there or a folder for another one is
/// given with `anew`.
pub(crate) fn make(
    cache: &Cache,
    manifest: &Manifest,
    lock: &Lock,
    anew: Option<&Path>,
    mut step: impl FnMut(&str),
) -> Result<PathBuf, Error> {
    let mut inputs: Vec<Vec<u8>> = vec![RECIPE.into(), FINISH.into(), lock.suite.clone().into()];
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
    let part = work.path().join("root.tar");
    fs::write(&finish, FINISH).map_err(Error::file("write", &finish))?;
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
pub(crate) fn files(manifest: &Manifest, lock: &Lock, fs_id: &str) -> BTreeMap<String, File> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Locked;

    #[test]
    fn an_image_has_a_menu_and_knows_which_packages_nobody_asked_for() {
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
        let files = files(&manifest, &lock, "12-34");
        let text = |path: &str| match &files[path].content {
            Content::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            Content::Link(_) => panic!("{path} is a link"),
        };
        assert_eq!(files.len(), manifest.files.len() + 2);
        assert_eq!(
            text(AUTOMATIC),
            "Package: libc6\nArchitecture: amd64\nAuto-Installed: 1\n\n"
        );
        assert!(text("/boot/grub/grub.cfg").contains("root=UUID=12-34 ro"));
    }

    #[test]
    fn a_path_is_one_word_whatever_is_in_it() {
        assert_eq!(quoted(Path::new("/a b/it's")), "'/a b/it'\\''s'");
    }
}
