//! A repository that apt installs from: a folder that any web server, or `file://`, can serve.
//!
//! ```text
//!  pool/aerie_0.1.0_amd64.deb          every package, of every version that was added
//!  dists/stable/InRelease              what is there, with hashes, signed
//!  dists/stable/main/binary-amd64/     the packages' own descriptions
//!  aerie.asc                           the key that apt is to trust
//! ```

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::deb::{gzip, run};
use crate::Error;

const SUITE: &str = "stable";
const COMPONENT: &str = "main";

/// The file with the public key.
const KEY: &str = "aerie.asc";

/// Who signs a repository.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The key, by any name that gpg knows it by.
    pub key: String,
    /// Where gpg's keys are, if not at their usual place.
    pub home: Option<PathBuf>,
}

impl Signer {
    fn gpg(&self) -> Command {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--yes", "--quiet", "--armor"]);
        if let Some(home) = &self.home {
            gpg.arg("--homedir").arg(home);
        }
        gpg
    }
}

/// Adds packages to the repository in a folder, which is made if absent, and returns the line of `sources.list` by
/// which a machine installs from that folder. Without a signer the line says that the repository is to be trusted as it is.
///
/// # Errors
/// When a file cannot be read or written, or `apt-ftparchive` or `gpg` is absent or fails.
pub fn publish(folder: &Path, packages: &[PathBuf], signer: Option<&Signer>) -> Result<String, Error> {
    let pool = folder.join("pool");
    fs::create_dir_all(&pool).map_err(Error::file("make the folder", &pool))?;
    let folder = folder
        .canonicalize()
        .map_err(Error::file("find the folder", folder))?;
    for package in packages {
        let name = package.file_name().unwrap_or(OsStr::new("package.deb"));
        fs::copy(package, pool.join(name)).map_err(Error::file("copy", package))?;
    }
    let architectures = architectures(&pool)?;
    let suite = folder.join("dists").join(SUITE);
    for architecture in &architectures {
        let place = suite.join(COMPONENT).join(format!("binary-{architecture}"));
        fs::create_dir_all(&place).map_err(Error::file("make the folder", &place))?;
        let mut list = ftparchive(&folder);
        list.args(["--arch", architecture, "packages", "pool"]);
        let list = run(list, "apt-ftparchive", "apt-utils")?;
        write(&place.join("Packages.gz"), &gzip(&list)?)?;
        write(&place.join("Packages"), &list)?;
    }
    let joined = architectures.into_iter().collect::<Vec<_>>().join(" ");
    let mut release = ftparchive(&folder);
    for (field, value) in [
        ("Origin", "Aerie"),
        ("Label", "Aerie"),
        ("Suite", SUITE),
        ("Codename", SUITE),
        ("Components", COMPONENT),
        ("Architectures", joined.as_str()),
    ] {
        release
            .arg("-o")
            .arg(format!("APT::FTPArchive::Release::{field}={value}"));
    }
    release.arg("release").arg(&suite);
    // Earlier signatures are of an earlier list, and would be listed themselves.
    for name in ["InRelease", "Release.gpg", "Release"] {
        remove(&suite.join(name))?;
    }
    let release = run(release, "apt-ftparchive", "apt-utils")?;
    write(&suite.join("Release"), &release)?;
    let trust = match signer {
        Some(signer) => {
            signed(&folder, &suite, signer)?;
            format!("signed-by={}", folder.join(KEY).display())
        }
        None => "trusted=yes".to_owned(),
    };
    Ok(format!(
        "deb [{trust}] file://{} {SUITE} {COMPONENT}",
        folder.display()
    ))
}

fn signed(folder: &Path, suite: &Path, signer: &Signer) -> Result<(), Error> {
    for (how, name) in [("--clearsign", "InRelease"), ("--detach-sign", "Release.gpg")] {
        let mut gpg = signer.gpg();
        gpg.args(["--local-user", &signer.key, how, "--output"])
            .args([suite.join(name), suite.join("Release")]);
        run(gpg, "gpg", "gpg")?;
    }
    let mut export = signer.gpg();
    export.args(["--export", &signer.key]);
    write(&folder.join(KEY), &run(export, "gpg", "gpg")?)
}

fn ftparchive(folder: &Path) -> Command {
    let mut command = Command::new("apt-ftparchive");
    command.current_dir(folder).arg("--quiet");
    command
}

/// The architectures of the packages in a folder, by their files' names.
fn architectures(pool: &Path) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(pool).map_err(Error::file("read", pool))? {
        let name = entry.map_err(Error::file("read", pool))?.file_name();
        let name = name.to_string_lossy();
        let stem = name.strip_suffix(".deb");
        if let Some((_, architecture)) = stem.and_then(|stem| stem.rsplit_once('_'))
            && architecture != "all"
        {
            found.insert(architecture.to_owned());
        }
    }
    Ok(found)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(Error::file("write", path))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}
