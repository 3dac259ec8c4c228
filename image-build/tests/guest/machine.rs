//! A machine under QEMU's emulation: its screen is a file, and it ends with the value that stands for it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use aerie_image_build::image::Tools;

/// The pause between two looks at a screen.
const PAUSE: Duration = Duration::from_millis(100);

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Firmware {
    Bios,
    Uefi,
}

/// A machine that runs.
pub(crate) struct Machine {
    child: Child,
    screen: PathBuf,
    began: Instant,
}

impl Machine {
    /// Starts a machine with this disk and, where one is given, this floppy. `name` is for its files in `dir`.
    pub(crate) fn start(
        emulator: &Tools,
        dir: &Path,
        name: &str,
        firmware: Firmware,
        disk: &Path,
        floppy: Option<&Path>,
    ) -> Self {
        let screen = dir.join(format!("{name}.screen"));
        let mut command = emulator.command("qemu-system-x86_64");
        command
            // Hardware virtualization of a test machine may be there and not work.
            .args(["-accel", "tcg", "-cpu", "qemu64,-cx16", "-M", "pc", "-m", "1024"])
            .args([
                "-display",
                "none",
                "-no-user-config",
                "-nodefaults",
                "-vga",
                "std",
            ])
            .args(["-device", "virtio-rng-pci"])
            // Nothing of the guest leaves the host.
            .args(["-nic", "user,model=virtio-net-pci,restrict=on"])
            .arg("-L")
            .arg(emulator.path("usr/share/qemu"))
            .arg("-L")
            .arg(emulator.path("usr/share/seabios"))
            .arg("-drive")
            .arg(format!("if=virtio,format=raw,file={}", disk.display()))
            .arg("-serial")
            .arg(format!("file:{}", screen.display()));
        if firmware == Firmware::Uefi {
            let vars = dir.join(format!("{name}.vars"));
            fs::copy(emulator.path("usr/share/OVMF/OVMF_VARS_4M.fd"), &vars).unwrap();
            let code = emulator.path("usr/share/OVMF/OVMF_CODE_4M.fd");
            command
                .arg("-drive")
                .arg(format!(
                    "if=pflash,format=raw,readonly=on,file={}",
                    code.display()
                ))
                .arg("-drive")
                .arg(format!("if=pflash,format=raw,file={}", vars.display()));
        }
        if let Some(floppy) = floppy {
            command
                .arg("-drive")
                .arg(format!("if=floppy,format=raw,file={}", floppy.display()));
        }
        let said = File::create(dir.join(format!("{name}.qemu"))).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        Self {
            child,
            screen,
            began: Instant::now(),
        }
    }

    /// Waits until `find` finds something in what is on the screen; returns it with the time since the start.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> (T, Duration) {
        loop {
            let text = self.text();
            if let Some(found) = find(&text) {
                return (found, self.began.elapsed());
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && self.began.elapsed() < limit,
                "waited {:.0} s for {what} ({ended:?}); the end of the screen:\n{}",
                self.began.elapsed().as_secs_f64(),
                tail(&text)
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// All that was on the screen.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.screen).unwrap_or_default()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(4000);
    text.get(from..).unwrap_or(text)
}
