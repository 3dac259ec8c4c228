//! Guests: machines with a kernel and a service manager of their own, emulated by QEMU, on the LAN of a site.
//!
//! ```text
//!                      router's namespace
//!  internet ── wan ──[ NAT ]── lan (bridge) ── p0 ── eth0 of a node
//!                                │
//!                                └────────── p1 (TAP) ── QEMU ── the guest: DHCP, systemd, HTCondor
//! ```
//!
//! A guest boots from a copy of the image that people build ([`image::disk`]). What it shows on its first serial line
//! is its *screen*; commands reach it over a serial port of their own, which the image that people build does not have.
//! A guest ends when its [`Guest`] is dropped, and with the process that made it.

mod dhcp;
pub mod image;
mod machine;
mod shell;
mod task;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::grid::Status;
use crate::netns::NetNs;
use crate::network::{Lease, Port};
use crate::process::Process;
use crate::wait::wait_until;

pub(crate) use dhcp::Dhcp;
pub use machine::Firmware;
use machine::Hardware;
use shell::{Said, Shell};
use task::Task;

/// How long a boot may take under emulation, where other programs have the machine too.
pub const BOOT: Duration = Duration::from_secs(300);

/// How long a command in a guest may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// How many of a screen's last lines a failure shows.
const SHOWN_LINES: usize = 60;

/// The size of a guest's disk, larger than the image's.
const DISK: u64 = 6 << 30;

/// What a guest is made of.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The image. The guest has a copy.
    pub disk: PathBuf,
    /// How it begins.
    pub firmware: Firmware,
    /// Files that it has as further disks, which it cannot write: `/dev/vdb` and so on, padded to whole sectors.
    pub drives: Vec<PathBuf>,
    /// What its firmware calls it, a UUID; nothing unless it is given.
    pub uuid: Option<String>,
}

impl Setup {
    /// A machine with this image.
    #[must_use]
    pub fn new(disk: &Path) -> Self {
        Self {
            disk: disk.to_owned(),
            ..Self::default()
        }
    }

    /// With other firmware.
    #[must_use]
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = firmware;
        self
    }

    /// With a name for its firmware to tell, a UUID.
    #[must_use]
    pub fn uuid(mut self, uuid: &str) -> Self {
        self.uuid = Some(uuid.to_owned());
        self
    }

    /// With a file as a further disk.
    #[must_use]
    pub fn drive(mut self, file: &Path) -> Self {
        self.drives.push(file.to_owned());
        self
    }
}

/// A guest that runs.
#[derive(Debug)]
pub struct Guest {
    name: String,
    lease: Lease,
    port: Port,
    task: Task,
    disk: PathBuf,
    screen: PathBuf,
    monitor: PathBuf,
    shell_socket: PathBuf,
    shell: Mutex<Option<Shell>>,
    began: Instant,
}

impl Guest {
    pub(crate) fn start(
        name: &str,
        router: NetNs,
        lease: Lease,
        port: Port,
        setup: &Setup,
        dir: &Path,
    ) -> Result<Self> {
        let disk = dir.join("disk");
        copy(&setup.disk, &disk)?;
        let emulator = image::emulator()?;
        let hardware = Hardware {
            emulator: &emulator,
            firmware: setup.firmware,
            disk: &disk,
            drives: &setup.drives,
            uuid: setup.uuid.as_deref(),
            tap: port.name(),
            mac: &lease.mac_text(),
            dir,
        };
        let command = hardware.command()?;
        let began = Instant::now();
        let task = Task::start(router, &command, dir.join("qemu.log"))
            .with_context(|| format!("the guest '{name}' does not start"))?;
        Ok(Self {
            name: name.to_owned(),
            lease,
            task,
            screen: hardware.screen(),
            monitor: hardware.monitor(),
            shell_socket: hardware.shell(),
            shell: Mutex::default(),
            disk,
            port,
            began,
        })
    }

    pub(crate) fn process(&self) -> Process {
        self.task.process()
    }

    /// Its name in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the LAN, which its router gives it when it asks.
    #[must_use]
    pub fn addr(&self) -> Ipv4Addr {
        self.lease.addr
    }

    /// Its disk's file.
    #[must_use]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// For how long it is switched on.
    #[must_use]
    pub fn running_for(&self) -> Duration {
        self.began.elapsed()
    }

    /// The host's processor time that it took so far.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.task.cpu()
    }

    /// All that was on its screen.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.screen).unwrap_or_default()).into_owned()
    }

    /// Waits until `find` finds something in what is on the screen; returns it with the time since the machine was
    /// switched on.
    ///
    /// # Errors
    /// When the time ran out, or the machine ended; the message has the end of the screen.
    pub fn wait_screen<T>(
        &self,
        limit: Duration,
        what: &str,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<(T, Duration)> {
        self.watched(wait_until(
            limit,
            &format!("{what} on the screen of {}", self.name),
            || {
                // An end is the end of waiting too.
                if !self.task.running() {
                    return Ok(Some(None));
                }
                Ok(find(&self.screen()).map(|found| Some((found, self.began.elapsed()))))
            },
        ))?
        .with_context(|| format!("the guest '{}' ended: {}", self.name, self.task.said()))
    }

    /// Puts a floppy into its drive.
    ///
    /// # Errors
    /// When QEMU refuses it.
    pub fn insert_floppy(&self, image: &Path) -> Result<()> {
        machine::insert_floppy(&self.monitor, image)
    }

    /// Pulls its network cable.
    ///
    /// # Errors
    /// When the router is gone.
    pub fn cut(&self) -> Result<()> {
        self.port.cut()
    }

    /// Plugs the cable in again.
    ///
    /// # Errors
    /// When the router is gone.
    pub fn restore(&self) -> Result<()> {
        self.port.restore()
    }

    /// Waits until it takes commands.
    ///
    /// # Errors
    /// When the time ran out; the message has the end of the screen.
    pub fn wait_shell(&self, limit: Duration) -> Result<()> {
        let result = self.with_shell(|shell| shell.wait(limit));
        self.watched(result)
    }

    /// Runs lines of shell as root and returns what they printed; ends at the first that fails.
    ///
    /// # Errors
    /// When one fails, or they do not end in time.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.sh_for(COMMAND_LIMIT, script)
    }

    /// As [`Guest::sh`], with a limit of time.
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn sh_for(&self, limit: Duration, script: &str) -> Result<String> {
        let Said { code, text } = self.try_sh(limit, script)?;
        ensure!(
            code == 0,
            "on {}, '{script}' ended with {code}:\n{text}",
            self.name
        );
        Ok(text)
    }

    fn try_sh(&self, limit: Duration, script: &str) -> Result<Said> {
        let result = self.with_shell(|shell| shell.run(script, limit));
        self.watched(result)
    }

    /// What its daemon says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Status> {
        let said = self.sh("aerie status --json")?;
        serde_json::from_str(&said).with_context(|| format!("{} said: {said}", self.name))
    }

    /// Waits until its daemon is ready; the guest is asked once.
    ///
    /// # Errors
    /// When it does not become ready; the message has the stages and the daemon's journal.
    pub fn wait_ready(&self, limit: Duration) -> Result<Status> {
        let seconds = limit.as_secs();
        let script = format!(
            "aerie status --wait {seconds} >/run/lab-shell/status || {{
                cat /run/lab-shell/status
                journalctl --no-pager --lines 60 --unit aerie --output cat; exit 1; }}"
        );
        self.sh_for(limit + COMMAND_LIMIT, &script)?;
        self.status()
    }

    /// Starts it anew from within, as its owner does, and waits until it takes commands again.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reboot(&self) -> Result<()> {
        let boot = "cat /proc/sys/kernel/random/boot_id";
        let before = self.sh(boot)?;
        // The answer may be lost: what answers is ended too.
        let _ = self.try_sh(Duration::from_secs(5), "systemctl --no-block reboot");
        let again = wait_until(BOOT, &format!("{} to start anew", self.name), || {
            self.with_shell(|shell| shell.wait(BOOT))?;
            let now = self.sh(boot)?;
            Ok((now != before).then_some(()))
        });
        self.watched(again)
    }

    fn with_shell<T>(&self, work: impl FnOnce(&mut Shell) -> Result<T>) -> Result<T> {
        let mut shell = lock(&self.shell);
        if shell.is_none() {
            // QEMU makes the socket a moment after its start.
            let connected = wait_until(COMMAND_LIMIT, "QEMU to listen", || {
                Shell::connect(&self.shell_socket).map(Some)
            })?;
            *shell = Some(connected);
        }
        let shell = shell.as_mut().context("no way to the guest")?;
        work(shell).with_context(|| format!("on the guest '{}'", self.name))
    }

    /// A failure with what is on the screen.
    fn watched<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let screen = self.screen();
            let lines: Vec<_> = screen.lines().collect();
            let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            error.context(format!(
                "---- the screen of {}:\n{end}\n---- QEMU ({}):\n{}",
                self.name,
                self.task.log().display(),
                self.task.said()
            ))
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.end();
        self.port.remove();
    }
}

/// A copy of a disk on a larger one, as a hypervisor makes it.
fn copy(disk: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp")
        .arg("--sparse=always")
        .args([disk, to])
        .output()
        .context("cannot run cp")?;
    ensure!(
        output.status.success(),
        "cannot copy {}: {}",
        disk.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let file = std::fs::File::options().write(true).open(to)?;
    file.set_len(DISK)
        .with_context(|| format!("cannot make {} larger", to.display()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
