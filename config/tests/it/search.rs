//! The search through disks and paths.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use aerie_config::{Outcome, Scan, Search, SourceConfig, SourceKind, find, load};

use crate::common::{bundle, message, minimal, noise};

fn outcomes(search: &Search) -> Vec<&Outcome> {
    search
        .report
        .attempts
        .iter()
        .map(|attempt| &attempt.outcome)
        .collect()
}

fn private(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn nothing_anywhere_is_no_error_and_is_reported() {
    let config = SourceConfig {
        floppies: vec!["/nowhere/fd0".into()],
        paths: vec!["/nowhere/blob".into()],
        ..SourceConfig::nowhere()
    };
    let search = find(&config).await;
    assert!(matches!(search.outcome, Ok(None)));
    assert_eq!(
        search.report.to_string(),
        "floppy /nowhere/fd0: nothing (it does not exist)\n/nowhere/blob: nothing (it does not exist)"
    );
}

#[tokio::test]
async fn a_floppy_comes_before_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let (floppy, path) = (dir.path().join("fd0"), dir.path().join("blob"));
    private(&floppy, bundle().to_floppy().unwrap());
    private(&path, minimal());
    let config = SourceConfig {
        floppies: vec![floppy.clone()],
        paths: vec![path],
        ..SourceConfig::nowhere()
    };
    let search = find(&config).await;
    assert_eq!(outcomes(&search), [&Outcome::Found]);
    let found = search.outcome.unwrap().unwrap();
    assert_eq!(found.source, SourceKind::Floppy(floppy));
    assert_eq!(found.bundle, bundle());
    assert_eq!(found.spec.node.name.unwrap().as_str(), "w1");
}

#[tokio::test]
async fn what_is_not_ours_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let places = ["blank", "ext4", "empty.d", "blob.d"].map(|name| dir.path().join(name));
    fs::write(&places[0], vec![0; 1_474_560]).unwrap();
    fs::write(&places[1], noise(8000)).unwrap();
    fs::create_dir(&places[2]).unwrap();
    bundle().to_dir(&places[3]).unwrap();
    let config = SourceConfig {
        floppies: places[..2].to_vec(),
        paths: places[2..].to_vec(),
        ..SourceConfig::nowhere()
    };
    let search = find(&config).await;
    let outcomes = outcomes(&search);
    assert!(
        matches!(outcomes[0], Outcome::NotOurs(reason) if reason.contains("it is blank")),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes[1], Outcome::NotOurs(reason) if reason.contains("no Aerie blob")),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes[2], Outcome::NotOurs(reason) if reason.contains("holds no files")),
        "{outcomes:?}"
    );
    assert_eq!(outcomes[3], &Outcome::Found);
}

#[tokio::test]
async fn a_broken_blob_ends_the_search_and_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let (torn, good) = (dir.path().join("floppy.img"), dir.path().join("blob"));
    fs::write(&torn, &bundle().to_floppy().unwrap()[..50_000]).unwrap();
    private(&good, minimal());
    let config = SourceConfig {
        paths: vec![torn.clone(), good],
        ..SourceConfig::nowhere()
    };
    let search = find(&config).await;
    assert_eq!(search.report.attempts.len(), 1);
    let said = message(search.outcome);
    assert!(said.starts_with(&torn.display().to_string()), "{said}");
    assert!(
        said.contains("the floppy is cut off: it has 50000 bytes"),
        "{said}"
    );
}

#[tokio::test]
async fn a_mistake_in_a_spec_ends_the_search_and_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aerie.toml");
    private(&path, minimal().replace("roles", "rolls"));
    let config = SourceConfig {
        paths: vec![path.clone()],
        ..SourceConfig::nowhere()
    };
    let said = message(find(&config).await.outcome);
    assert!(said.contains("aerie.toml: aerie.toml has 2 mistakes:"), "{said}");
    assert!(
        said.contains("line 10: node.rolls is not a known key: did you mean 'roles'?"),
        "{said}"
    );
}

#[tokio::test]
async fn a_disk_labelled_aerie_is_found_among_all() {
    let dir = tempfile::tempdir().unwrap();
    let (sys, dev) = (dir.path().join("sys"), dir.path().join("dev"));
    fs::create_dir(&dev).unwrap();
    for (name, sectors, contents) in [
        ("sda", 2880, noise(1_474_560)),
        ("sdb", 0, Vec::new()),
        ("vdc", 2880, bundle().to_floppy().unwrap()),
        ("vdd", 2880, bundle().to_floppy().unwrap()),
    ] {
        fs::create_dir_all(sys.join(name)).unwrap();
        fs::write(sys.join(name).join("size"), format!("{sectors}\n")).unwrap();
        fs::write(dev.join(name), contents).unwrap();
    }
    let config = SourceConfig {
        scan: Some(Scan {
            sys,
            dev: dev.clone(),
        }),
        ..SourceConfig::nowhere()
    };
    let search = find(&config).await;
    assert_eq!(search.report.attempts.len(), 1);
    assert_eq!(
        search.outcome.unwrap().unwrap().source,
        SourceKind::Floppy(dev.join("vdc"))
    );
}

#[tokio::test]
async fn a_secret_that_everybody_can_read_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aerie.toml");
    private(&path, minimal());
    assert!(load(&path).unwrap().warnings.is_empty());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(load(&path).unwrap().warnings[0].contains("run 'chmod 600"));
}

#[test]
fn a_path_is_loaded_whatever_its_form() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle();
    for (name, bytes) in [
        ("floppy.img", bundle.to_floppy().unwrap()),
        ("blob.zip", bundle.to_zip().unwrap()),
        ("user-data", bundle.to_user_data().unwrap()),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(load(&path).unwrap().bundle, bundle);
    }
    bundle.to_dir(&dir.path().join("blob.d")).unwrap();
    assert_eq!(load(&dir.path().join("blob.d")).unwrap().bundle, bundle);
}

#[test]
fn a_path_that_cannot_be_loaded_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let said = message(load(&dir.path().join("missing")));
    assert!(
        said.contains("missing: cannot read ") && said.contains("check the path"),
        "{said}"
    );
    let empty = dir.path().join("floppy.img");
    fs::write(&empty, "").unwrap();
    assert!(message(load(&empty)).contains("the floppy is empty (0 bytes)"));
    let giant = dir.path().join("giant");
    fs::File::create(&giant).unwrap().set_len(1 << 40).unwrap();
    assert!(message(load(&giant)).contains("no FAT file system: it is blank"));
    let text = dir.path().join("text");
    fs::write(&text, "hello").unwrap();
    assert!(message(load(&text)).contains("are no Aerie blob"));
    assert!(message(load(Path::new("/dev/null"))).contains("neither a file, a folder nor a disk"));
}

#[test]
fn the_default_places_are_the_grid_appliances_and_our_own() {
    let config = SourceConfig::default();
    assert_eq!(config.floppies[0], Path::new("/dev/fd0"));
    assert_eq!(config.paths[0], Path::new("/opt/grid_appliance/var/floppy.img"));
    assert_eq!(
        config.nimbus.unwrap(),
        Path::new("/var/nimbus-metadata-server-url")
    );
    assert_eq!(config.ec2.as_ref().unwrap().base, "http://169.254.169.254");
    assert!(!config.ec2.unwrap().allow_v1);
}
