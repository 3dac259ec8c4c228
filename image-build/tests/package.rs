//! Packages as `dpkg-deb` reads them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use aerie_image_build::Error;
use aerie_image_build::package::{Completions, Compression, Inputs, Stamp, publish, write};

fn inputs(folder: &Path) -> Inputs {
    let program = folder.join("aerie");
    // Compresses badly and takes more than one block, as a program does.
    let noise = (0_u32..400_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    fs::write(&program, noise.collect::<Vec<_>>()).unwrap();
    Inputs {
        version: "1.2.3".to_owned(),
        architecture: "amd64".to_owned(),
        maintainer: "The lab <lab@example.org>".to_owned(),
        stamp: Stamp::from_secs(1_795_000_000),
        program,
        libraries: vec!["libc6 (>= 2.34)".to_owned()],
        manuals: BTreeMap::from([("aerie.1".to_owned(), b".TH aerie 1\n".to_vec())]),
        completions: Completions::default(),
    }
}

fn dpkg_deb(args: &[&str], file: &Path) -> String {
    let output = Command::new("dpkg-deb")
        .args(&args[..1])
        .arg(file)
        .args(&args[1..])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_same_inputs_give_the_same_bytes_whenever_and_wherever_they_are_packed() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let written = folders.each_ref().map(|folder| {
        let inputs = inputs(folder.path());
        let packages = inputs.packages().unwrap();
        let out = folder.path().join("out");
        let files = packages
            .iter()
            .map(|package| write(package, &out, inputs.stamp, Compression::Small).unwrap());
        files
            .map(|file| (file.file_name().unwrap().to_owned(), fs::read(file).unwrap()))
            .collect::<Vec<_>>()
    });
    let names: Vec<_> = written[0]
        .iter()
        .map(|(name, _)| name.to_str().unwrap())
        .collect();
    assert_eq!(names, ["aerie_1.2.3_amd64.deb", "aerie-portal_1.2.3_all.deb"]);
    assert!(written[0] == written[1], "two packings differ");
}

#[test]
fn everything_is_roots_and_bears_the_stamp_whatever_this_machine_has() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = inputs(folder.path());
    let package = &inputs.packages().unwrap()[0];
    let file = write(package, folder.path(), inputs.stamp, Compression::Fast).unwrap();
    let listed = dpkg_deb(&["--contents"], &file);
    for line in listed.lines() {
        assert!(
            line.contains(" root/root ") && line.contains(" 2026-11-18 "),
            "{line}"
        );
        let mode = line.split(' ').next().unwrap();
        let right = match (line.ends_with('/'), line.ends_with("/usr/bin/aerie")) {
            (true, _) => "drwxr-xr-x",
            (_, true) => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        assert_eq!(mode, right, "{line}");
    }
    assert_eq!(dpkg_deb(&["--info", "conffiles"], &file), "/etc/default/aerie\n");
    let depends = dpkg_deb(&["--field", "Depends"], &file);
    assert_eq!(
        depends.trim(),
        "libc6 (>= 2.34), condor (>= 23.9), debconf (>= 0.5) | debconf-2.0"
    );
    let sums = dpkg_deb(&["--info", "md5sums"], &file);
    assert!(
        sums.contains("  usr/bin/aerie\n") && !sums.contains("etc/default"),
        "{sums}"
    );
}

#[test]
fn scripts_are_taken_by_the_shell() {
    let folder = tempfile::tempdir().unwrap();
    for package in inputs(folder.path()).packages().unwrap() {
        for (file, text) in &package.control {
            if text.starts_with("#!/bin/sh\n") {
                let path = folder.path().join("script");
                fs::write(&path, text).unwrap();
                let read = Command::new("sh").arg("-n").arg(&path).status().unwrap();
                assert!(read.success(), "{file:?} of {}", package.name);
            }
        }
    }
}

#[test]
fn a_version_that_would_be_read_as_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for version in ["", "v1", "1.0-2", "1 0", "../1", "1:0"] {
        let mut inputs = inputs(folder.path());
        inputs.version = version.to_owned();
        let refused = inputs.packages().unwrap_err();
        assert!(
            matches!(&refused, Error::Version { version: said } if said == version),
            "{refused}"
        );
    }
}

#[test]
fn a_repository_keeps_the_versions_that_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    for version in ["1.0", "1.1"] {
        let mut inputs = inputs(folder.path());
        inputs.version = version.to_owned();
        let packages = inputs.packages().unwrap();
        let files: Vec<_> = packages
            .iter()
            .map(|package| {
                write(
                    package,
                    &folder.path().join("out"),
                    inputs.stamp,
                    Compression::Fast,
                )
                .unwrap()
            })
            .collect();
        let line = publish(&repository, &files, None).unwrap();
        assert!(
            line.starts_with("deb [trusted=yes] file:///") && line.ends_with(" stable main"),
            "{line}"
        );
    }
    let list = fs::read_to_string(repository.join("dists/stable/main/binary-amd64/Packages")).unwrap();
    let found: Vec<_> = list
        .lines()
        .filter_map(|line| line.strip_prefix("Filename: "))
        .collect();
    assert_eq!(found.len(), 4, "{found:?}");
    let release = fs::read_to_string(repository.join("dists/stable/Release")).unwrap();
    assert!(
        release.contains("Suite: stable") && release.contains("main/binary-amd64/Packages.gz"),
        "{release}"
    );
}
