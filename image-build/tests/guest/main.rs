//! The built image, booted: in machines under QEMU's emulation, with the package that people install.
//!
//! ```text
//! AERIE_DEB=aerie.deb cargo nextest run -p aerie-image-build --profile lab --run-ignored only
//! ```
//!
//! Packages, root file systems and QEMU itself come from the cache of `aerie image`, and are made there first.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of it belongs to tests"
)]

mod machine;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use aerie_image_build::image::{self, Cache, Event, Format, Lock, Manifest, Mirrors, Request, Tools};

use machine::{Firmware, Machine};

/// How long a boot may take under emulation, where other programs have the machine too.
const BOOT: Duration = Duration::from_secs(300);

/// Where the root file system begins on the disk.
const ROOT_AT: u64 = 34 << 20;

const GIB: u64 = 1 << 30;

/// What the console says where nothing was configured.
const WAITING: &str = "waiting for configuration";

fn package() -> PathBuf {
    let path = std::env::var_os("AERIE_DEB").expect(
        "AERIE_DEB names no package: cargo xtask package makes one, and this variable says where it is",
    );
    fs::canonicalize(path).unwrap()
}

fn mirrors() -> Mirrors {
    let mut mirrors = Mirrors::default();
    if let Ok(debian) = std::env::var("AERIE_DEBIAN_MIRROR") {
        mirrors.debian = debian;
    }
    mirrors
}

fn request(manifest: &str) -> Request {
    Request {
        manifest: Manifest::load(manifest).unwrap(),
        debs: vec![package()],
        lock: None,
        formats: vec![Format::Raw],
        mirrors: mirrors(),
        cache: Cache::of_user().unwrap(),
        epoch: None,
    }
}

/// The disk of a manifest, in a folder of this test binary. A lock that was written here before and still fits is
/// used again, so that the root file system comes from the cache.
fn disk(manifest: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
    let mut request = request(manifest);
    request.lock = Lock::read(&out.join(format!("{manifest}.lock"))).ok();
    let build = |request: &Request| image::build(request, &out, &mut say);
    let built = build(&request).or_else(|_| {
        request.lock = None;
        build(&request)
    });
    let built = built.unwrap();
    built.iter().find(|file| file.kind == "raw").unwrap().path.clone()
}

fn say(event: Event) {
    if let Event::Step(step) = event {
        eprintln!("{step}");
    }
}

fn emulator() -> Tools {
    image::emulator(&Cache::of_user().unwrap(), &mirrors(), "trixie").unwrap()
}

/// A copy of a disk on a larger one, as a hypervisor makes it.
fn clone(disk: &Path, dir: &Path, name: &str, size: u64) -> PathBuf {
    let to = dir.join(name);
    let status = Command::new("cp")
        .arg("--sparse=always")
        .args([disk, &to])
        .status()
        .unwrap();
    assert!(status.success());
    File::options()
        .write(true)
        .open(&to)
        .unwrap()
        .set_len(size)
        .unwrap();
    to
}

/// The size of the root file system in bytes, from its superblock: the count of its blocks of 4 KiB.
fn root_size(disk: &Path) -> u64 {
    let mut count = [0; 4];
    File::open(disk)
        .unwrap()
        .read_exact_at(&mut count, ROOT_AT + 1024 + 4)
        .unwrap();
    u64::from(u32::from_le_bytes(count)) * 4096
}

/// What a machine says of itself: its name, its id, the fingerprints of its SSH keys.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    host: String,
    id: String,
    keys: Vec<String>,
}

/// The last time that the console showed all of it.
fn own(screen: &str) -> Option<Own> {
    let start = screen.rfind("Aerie appliance: ")?;
    let shown = &screen[start..];
    let end = shown.find(WAITING)?;
    let line = shown.lines().next()?.trim().strip_prefix("Aerie appliance: ")?;
    let (host, id) = line.split_once(", machine ")?;
    let keys = shown[..end]
        .lines()
        .filter_map(|line| line.trim().strip_prefix("SSH "))
        .map(|key| key.trim().to_owned())
        .collect();
    Some(Own {
        host: host.to_owned(),
        id: id.to_owned(),
        keys,
    })
}

#[test]
#[ignore = "boots machines for minutes"]
fn clones_booted_by_bios_and_uefi_are_different_machines_that_wait_for_configuration() {
    let disk = disk("appliance");
    let before = root_size(&disk);
    let emulator = emulator();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let machine = |name: &str, firmware, size| {
        let disk = clone(&disk, dir.path(), name, size);
        let machine = Machine::start(&emulator, dir.path(), name, firmware, &disk, None);
        (machine, disk, size)
    };
    let machines = [
        machine("bios", Firmware::Bios, 5 * GIB),
        machine("uefi", Firmware::Uefi, 6 * GIB),
    ];
    let (told, seen) = mpsc::channel();
    std::thread::scope(|scope| {
        for (mut machine, disk, size) in machines {
            let told = told.clone();
            scope.spawn(move || {
                let (own, took) = machine.wait_for(WAITING, BOOT, own);
                eprintln!("{own:?} after {:.1} s", took.as_secs_f64());
                // An address by DHCP, on the console.
                machine.wait_for("an address", BOOT, |text| {
                    text.contains("10.0.2.15/24").then_some(())
                });
                machine.wait_for("the root file system to grow", BOOT, |_| {
                    (root_size(&disk) > size - GIB / 8).then_some(())
                });
                told.send(own).unwrap();
            });
        }
    });
    drop(told);
    let seen: Vec<Own> = seen.iter().collect();
    let [one, other] = seen.as_slice() else {
        panic!("one of the machines did not come up: {seen:?}")
    };
    assert!(before < 4 * GIB + GIB / 8, "{before}");
    assert!(one.id.len() == 32 && one.id != other.id, "{seen:?}");
    assert!(
        one.host.starts_with("aerie-") && one.host != other.host,
        "{seen:?}"
    );
    assert!(
        !one.keys.is_empty() && one.keys.len() == other.keys.len(),
        "{seen:?}"
    );
    assert!(one.keys.iter().all(|key| !other.keys.contains(key)), "{seen:?}");
}

#[test]
#[ignore = "boots machines for minutes"]
fn a_blob_on_a_floppy_ends_the_waiting() {
    let disk = disk("appliance");
    let emulator = emulator();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {args:?}: {said}");
    };
    let at = |name: &str| dir.path().join(name).display().to_string();
    run("dpkg-deb", &["-x", package().to_str().unwrap(), &at("package")]);
    let aerie = at("package/usr/bin/aerie");
    run(&aerie, &["grid", "create", "floppygrid", "--dir", &at("grid")]);
    run(&aerie, &["grid", "group", "add", "physics", "--dir", &at("grid")]);
    let mut blob = vec![
        "grid", "blob", "--group", "physics", "--role", "worker", "--as", "floppy",
    ];
    let (grid, floppy) = (at("grid"), at("floppy.img"));
    blob.extend([
        "--url",
        "https://192.0.2.10:8443",
        "--dir",
        &grid,
        "--out",
        &floppy,
    ]);
    run(&aerie, &blob);

    let disk = clone(&disk, dir.path(), "disk", 5 * GIB);
    let mut machine = Machine::start(
        &emulator,
        dir.path(),
        "floppy",
        Firmware::Bios,
        &disk,
        Some(Path::new(&floppy)),
    );
    let ((), took) = machine.wait_for("the blob to be found", BOOT, |text| {
        text.contains("floppy /dev/fd0").then_some(())
    });
    eprintln!("the floppy's blob after {:.1} s", took.as_secs_f64());
    let shown = machine.text();
    let last = &shown[shown.rfind("Aerie appliance: ").unwrap()..];
    assert!(!last.contains(WAITING), "{last}");
}

#[test]
#[ignore = "installs a root file system twice"]
fn two_builds_of_the_same_inputs_are_identical() {
    let hash = image::verify(&request("small"), &mut say).unwrap();
    assert_eq!(hash.len(), 64);
}
