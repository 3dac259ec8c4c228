//! What is to be known of the program before it is packaged, most of which it tells itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::contents::{Completions, Inputs};
use super::deb::run;
use super::manifest::Stamp;
use crate::Error;

/// Gathers what the packages are made of. `program` is `aerie` as it was built; `work` is an empty folder, which has
/// to stay until the packages are written.
///
/// # Errors
/// When one of Debian's tools is absent, or the program does not run here.
pub fn inputs(
    program: &Path,
    work: &Path,
    version: &str,
    maintainer: &str,
    stamp: Stamp,
) -> Result<Inputs, Error> {
    let stripped = work.join("aerie");
    strip(program, &stripped)?;
    let says = |args: &[&str]| {
        let mut command = Command::new(&stripped);
        command.args(args);
        run(command, "aerie", "aerie")
    };
    let manuals = work.join("man");
    says(&["man", &manuals.to_string_lossy()])?;
    Ok(Inputs {
        version: version.to_owned(),
        architecture: architecture()?,
        maintainer: maintainer.to_owned(),
        stamp,
        libraries: libraries(&stripped)?,
        manuals: read_all(&manuals)?,
        completions: Completions {
            bash: says(&["completion", "bash"])?,
            fish: says(&["completion", "fish"])?,
            zsh: says(&["completion", "zsh"])?,
        },
        program: stripped,
    })
}

fn read_all(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let entry = entry.map_err(Error::file("read", folder))?;
        let path = entry.path();
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), bytes);
    }
    Ok(files)
}

/// Debian's name of this machine's architecture.
fn architecture() -> Result<String, Error> {
    let mut command = Command::new("dpkg");
    command.arg("--print-architecture");
    let output = run(command, "dpkg", "dpkg")?;
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

/// Copies a program without what only a debugger reads.
fn strip(from: &Path, to: &Path) -> Result<(), Error> {
    let mut command = Command::new("strip");
    command
        .args([
            "--strip-all",
            "--remove-section=.comment",
            "--remove-section=.note",
            "-o",
        ])
        .args([to, from]);
    run(command, "strip", "binutils").map(drop)
}

/// The packages of the libraries that a program is linked with, each with the oldest version that has the symbols
/// which the program uses.
fn libraries(program: &Path) -> Result<Vec<String>, Error> {
    // It wants to run in a source package.
    let folder = tempfile::tempdir().map_err(Error::file("make a folder in", &std::env::temp_dir()))?;
    let control = folder.path().join("debian/control");
    fs::create_dir(folder.path().join("debian")).map_err(Error::file("make the folder", &control))?;
    fs::write(&control, "Source: aerie\n\nPackage: aerie\nArchitecture: any\n")
        .map_err(Error::file("write", &control))?;
    let mut command = Command::new("dpkg-shlibdeps");
    command
        .arg("-O")
        .arg("-e")
        .arg(program)
        .current_dir(folder.path());
    let output = run(command, "dpkg-shlibdeps", "dpkg-dev")?;
    let said = String::from_utf8_lossy(&output);
    let depends = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    match depends {
        Some(depends) => Ok(depends.split(',').map(|one| one.trim().to_owned()).collect()),
        None => Err(Error::Answer {
            program: "dpkg-shlibdeps",
            said: said.trim().to_owned(),
        }),
    }
}
