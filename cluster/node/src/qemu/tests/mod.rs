//! Guests under a real QEMU: `cargo nextest run -p aerie-cluster-node --run-ignored all`.
//!
//! They are emulated: hardware virtualization of a test machine may be there and not work.

mod crashes;
mod ending;
mod faults;
mod found;
mod guard;
mod images;
mod loops;
mod program;
mod times;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use self::guard::Guard;
use super::folder::Folder;
use super::{Acceleration, Config, QemuDriver};
use crate::conformance::{Bench, Program, conformance, id};
use crate::process::that_hold;
use crate::{Definition, Device, Disk, Error, Format, GuestId, Mib, NodeDriver};

/// A folder with a driver and its guests. What they left behind is ended with it, and with the test.
struct Host {
    dir: tempfile::TempDir,
    config: Config,
    driver: Option<QemuDriver>,
    _guard: Guard,
}

async fn host() -> Host {
    Host::with(|_| {}).await
}

/// Has guests run by a QEMU that is started by this script, whose last command runs it.
fn by_script(config: &mut Config, before: &str, after: &str) {
    let program = config.dir.with_file_name("qemu");
    let qemu = config.program.display();
    fs::write(
        &program,
        format!("#!/bin/sh\n{before}\nexec {qemu} \"$@\" {after}\n"),
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    config.program = program;
}

fn config(dir: &Path) -> Config {
    Config {
        acceleration: Acceleration::Tcg,
        ..Config::new(dir.join("guests"))
    }
}

impl Host {
    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let mut host = Self {
            _guard: Guard::over(&config.dir),
            dir,
            config,
            driver: None,
        };
        host.open().await;
        host
    }

    async fn open(&mut self) {
        self.driver = Some(QemuDriver::open(self.config.clone()).await.unwrap());
    }

    async fn close(&mut self) {
        self.driver.take().unwrap().close().await;
    }

    fn folder(&self, id: GuestId) -> Folder {
        Folder::new(&self.config.dir, id)
    }

    /// The processes of a guest.
    fn processes(&self, id: GuestId) -> Vec<i32> {
        that_hold(&self.folder(id).alive())
    }

    fn signal(&self, id: GuestId, signal: Signal) {
        let processes = self.processes(id);
        assert_eq!(processes.len(), 1, "{processes:?}");
        kill(Pid::from_raw(processes[0]), signal).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.config.dir).into_iter().flatten().flatten() {
            for process in that_hold(&entry.path().join("alive")) {
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
        }
    }
}

/// An image with a program, made if it is not there.
fn image(dir: &Path, number: u128, program: Program) -> PathBuf {
    let path = dir.join(format!("disk-{number}.img"));
    if !path.exists() {
        let mut disk = program::boot_sector(program);
        disk.resize(1 << 20, 0);
        fs::write(&path, disk).unwrap();
    }
    path
}

fn definition(dir: &Path, number: u128, program: Program) -> Definition {
    Definition {
        id: id(number),
        name: "tiny".parse().unwrap(),
        memory: Mib(192),
        cpus: 1,
        disks: vec![Disk {
            path: image(dir, number, program),
            format: Format::Raw,
            device: Device::Disk,
            read_only: false,
        }],
        nics: Vec::new(),
    }
}

#[async_trait]
impl Bench for Host {
    fn driver(&self) -> &dyn NodeDriver {
        self.driver.as_ref().unwrap()
    }

    fn guest(&self, number: u128, program: Program) -> Definition {
        definition(self.dir.path(), number, program)
    }

    fn started(&self, _id: GuestId, _program: Program) {}

    async fn reopen(&mut self) {
        let second = QemuDriver::open(self.config.clone()).await;
        assert!(matches!(second, Err(Error::InUse { .. })), "{second:?}");
        self.close().await;
        self.open().await;
    }

    async fn damage(&mut self, id: GuestId) {
        self.close().await;
        fs::write(self.folder(id).path().join("definition.json"), "{").unwrap();
        self.open().await;
    }

    fn kill(&self, id: GuestId) {
        self.signal(id, Signal::SIGKILL);
    }

    fn hang(&self, id: GuestId) {
        self.signal(id, Signal::SIGSTOP);
    }

    fn recover(&self, id: GuestId) {
        self.signal(id, Signal::SIGCONT);
    }
}

conformance!(
    Host::with(|config| config.answer = Duration::from_secs(3)),
    #[ignore = "needs QEMU"]
);
