//! What QEMU is told: how a machine is made, what is on its screen, and its drives changed while it runs.
//!
//! A machine is emulated, never virtualized: hardware virtualization of a test machine may be there and not work.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aerie_image_build::image::Tools;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
}

/// The floppy drive, as QEMU is asked about it.
const FLOPPY: &str = "floppy0";

/// How long QEMU may take for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct Hardware<'a> {
    pub(crate) emulator: &'a Tools,
    pub(crate) firmware: Firmware,
    pub(crate) disk: &'a Path,
    /// Further disks, which cannot be written.
    pub(crate) drives: &'a [PathBuf],
    /// What its firmware calls it.
    pub(crate) uuid: Option<&'a str>,
    /// The interface in the router's namespace, and the address of the machine's own.
    pub(crate) tap: &'a str,
    pub(crate) mac: &'a str,
    /// A folder for what QEMU writes.
    pub(crate) dir: &'a Path,
}

impl Hardware<'_> {
    /// What is on the first serial line.
    pub(crate) fn screen(&self) -> PathBuf {
        self.dir.join("screen")
    }

    /// Where commands for the machine go.
    pub(crate) fn shell(&self) -> PathBuf {
        self.dir.join("shell.sock")
    }

    /// Where QEMU takes commands.
    pub(crate) fn monitor(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// QEMU with all of it.
    pub(crate) fn command(&self) -> Result<Command> {
        let Self {
            emulator, tap, mac, ..
        } = self;
        let mut command = emulator.command("qemu-system-x86_64");
        let socket = |id: &str, path: &Path| {
            let path = path.display();
            format!("socket,id={id},path={path},server=on,wait=off")
        };
        command
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "qemu64,-cx16",
                "-M",
                "pc",
                "-m",
                "1024",
                "-smp",
                "2",
            ])
            .args([
                "-display",
                "none",
                "-no-user-config",
                "-nodefaults",
                "-vga",
                "std",
            ])
            .args(["-device", "virtio-rng-pci"])
            .args(["-device", &format!("floppy,id={FLOPPY},drive-type=144")])
            .args([
                "-netdev",
                &format!("tap,id=n0,ifname={tap},script=no,downscript=no"),
            ])
            .args(["-device", &format!("virtio-net-pci,netdev=n0,mac={mac}")])
            .args(["-serial", &format!("file:{}", self.screen().display())])
            .args(["-chardev", &socket("shell", &self.shell())])
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=shell,name=lab.shell"])
            .args(["-chardev", &socket("qmp", &self.monitor())])
            .args(["-mon", "chardev=qmp,mode=control"]);
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(emulator.path(firmware));
        }
        if let Some(uuid) = self.uuid {
            command.args(["-uuid", uuid]);
        }
        // What is on these disks goes with the lab: no need to wait until it is really there.
        let disk = self.disk.display();
        command.args([
            "-drive",
            &format!("if=virtio,format=raw,cache=unsafe,file={disk}"),
        ]);
        for drive in self.drives {
            let drive = drive.display();
            command.args([
                "-drive",
                &format!("if=virtio,format=raw,readonly=on,file={drive}"),
            ]);
        }
        if self.firmware == Firmware::Uefi {
            let vars = self.dir.join("vars");
            fs::copy(emulator.path("usr/share/OVMF/OVMF_VARS_4M.fd"), &vars)?;
            let code = emulator.path("usr/share/OVMF/OVMF_CODE_4M.fd");
            let flash =
                |options: &str, file: &Path| format!("if=pflash,format=raw{options},file={}", file.display());
            command
                .args(["-drive", &flash(",readonly=on", &code)])
                .args(["-drive", &flash("", &vars)]);
        }
        Ok(command)
    }
}

/// Puts a floppy into the drive of a machine that runs.
pub(crate) fn insert_floppy(monitor: &Path, image: &Path) -> Result<()> {
    ask(
        monitor,
        "blockdev-change-medium",
        &json!({"id": FLOPPY, "filename": image, "format": "raw", "read-only-mode": "read-only"}),
    )
    .map(drop)
}

/// Asks QEMU one thing.
fn ask(monitor: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let stream = UnixStream::connect(monitor).context("QEMU does not listen")?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    // It begins with a greeting, which nobody asked for.
    lines.next().context("QEMU says nothing")??;
    let mut last = Value::Null;
    let commands = [
        json!({"execute": "qmp_capabilities"}),
        json!({"execute": command, "arguments": arguments}),
    ];
    for command in commands {
        writeln!(&stream, "{command}")?;
        loop {
            let line = lines.next().context("QEMU has ended")??;
            let said: Value = serde_json::from_str(&line)?;
            if let Some(error) = said.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            // Between answers there are events.
            if let Some(answer) = said.get("return") {
                last = answer.clone();
                break;
            }
        }
    }
    Ok(last)
}
