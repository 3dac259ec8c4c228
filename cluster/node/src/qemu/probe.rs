//! What the QEMU on this host can do. Looked at once, when a driver is opened.
//!
//! A device node for KVM does not mean that KVM works: within some virtual machines it is there, and QEMU ends as soon
//! as it uses it. So a tiny guest is started by it, firmware and all, and has to say something.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::arguments::SANDBOX;
use super::{Acceleration, Config};
use crate::{Error, Host, Mib};

/// The Debian package that has QEMU.
const PACKAGE: &str = "qemu-system-x86";

/// How long QEMU may take to say what it can do, and the tiny guest to say something. It takes a tenth of a second.
const LIMIT: Duration = Duration::from_secs(15);

/// A boot sector that writes `K` to the first serial line and switches the machine off by ACPI:
/// `cli; mov dx, 3f8h; mov al, 'K'; out dx, al; mov dx, 604h; mov ax, 2000h; out dx, ax; hlt; jmp $-1`.
const TINY: [u8; 17] = [
    0xfa, 0xba, 0xf8, 0x03, 0xb0, b'K', 0xee, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd,
];

/// What guests run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    version: String,
    /// The kind of machine for new guests, with its version.
    pub(super) kind: String,
    /// All that there are.
    kinds: Vec<String>,
    pub(super) accelerator: &'static str,
    pub(super) cpu: &'static str,
    /// Whether it can keep itself from what a guest has no use for; it can be built without.
    pub(super) sandbox: bool,
    /// The host's processor, where guests see it as it is.
    host_cpu: Option<String>,
}

impl Machine {
    pub(super) fn host(&self) -> Host {
        Host {
            hypervisor: format!("QEMU {}", self.version),
            acceleration: match self.accelerator {
                "kvm" => "KVM".to_owned(),
                _ => "none (emulated by TCG)".to_owned(),
            },
        }
    }

    /// Whether a memory of such a machine can be restored.
    pub(super) fn has(&self, kind: &str) -> bool {
        self.kinds.iter().any(|have| have == kind)
    }

    /// The processor and what runs it: a memory fits no other.
    pub(super) fn processor(&self) -> String {
        match &self.host_cpu {
            Some(host) => format!("{} {} ({host})", self.accelerator, self.cpu),
            None => format!("{} {}", self.accelerator, self.cpu),
        }
    }

    /// Whether a memory of such a processor can be restored. An earlier release did not note which the host's was, and is
    /// believed.
    pub(super) fn fits(&self, processor: &str) -> bool {
        processor == self.processor() || processor == format!("{} {}", self.accelerator, self.cpu)
    }
}

/// Which processor a host has, from `/proc/cpuinfo`: who made it, its family, model and stepping, and a digest of its
/// features in any order. Those that the kernel keeps from guests, or makes up, are among them: a memory is refused
/// too often rather than run with instructions that are not there.
fn identify(cpuinfo: &str) -> Option<String> {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let mut flags: Vec<_> = field("flags")?.split_ascii_whitespace().collect();
    flags.sort_unstable();
    flags.dedup();
    Some(format!(
        "{} family {} model {} stepping {}, features {:016x}",
        field("vendor_id")?,
        field("cpu family")?,
        field("model")?,
        // Not known of every processor.
        field("stepping").unwrap_or("unknown"),
        digest(&flags.join(" "))
    ))
}

/// FNV-1a: the same in each release and on each host. Nobody gains by a collision.
fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

pub(super) async fn probe(config: &Config) -> Result<Machine, Error> {
    let unusable = |why: String| Error::Hypervisor {
        program: config.program.display().to_string(),
        why,
    };
    let version = text(&run(config, &["--version"]).await?);
    let version = parse_version(&version)
        .ok_or_else(|| unusable(format!("it says of its version: {}", version.trim())))?
        .to_owned();
    let sandboxed = run(config, &["-sandbox", SANDBOX, "--version"]).await?;
    let sandbox = has_sandbox(&sandboxed).map_err(unusable)?;
    if !sandbox {
        tracing::warn!("this QEMU has no sandbox: a guest that breaks out of its machine may start programs");
    }
    let listed = text(&run(config, &["-machine", "help"]).await?);
    let (kind, kinds) =
        parse_kinds(&listed).ok_or_else(|| unusable("it has no machine of the kind 'pc'".to_owned()))?;
    let mut machine = Machine {
        version,
        kind,
        kinds,
        accelerator: "tcg",
        // Without cmpxchg16b: QEMU 7.2 emulates it so that Linux 6.12 destroys its memory.
        cpu: "qemu64,-cx16",
        sandbox,
        host_cpu: None,
    };
    if config.acceleration != Acceleration::Tcg {
        match try_kvm(config, &machine.kind).await {
            Ok(()) => {
                machine.accelerator = "kvm";
                machine.cpu = "host";
                let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                machine.host_cpu = Some(identify(&cpuinfo).unwrap_or_else(|| "unknown".to_owned()));
            }
            Err(why) if config.acceleration == Acceleration::Kvm => {
                return Err(unusable(format!(
                    "KVM does not work here: {why}; allow emulation, or use a machine with hardware virtualization"
                )));
            }
            Err(why) => tracing::warn!(%why, "KVM does not work here, guests are emulated"),
        }
    }
    Ok(machine)
}

/// Whether a QEMU that was told to keep itself from what it has no use for can; it is not taken for one that cannot
/// unless it says so itself.
fn has_sandbox(told: &Output) -> Result<bool, String> {
    if told.status.success() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(&told.stderr);
    if told.status.code() == Some(1) && said.contains("-sandbox") {
        return Ok(false);
    }
    Err(format!(
        "whether it has a sandbox is not known, it ended with {}: {}",
        told.status,
        said.lines().next().unwrap_or("it said nothing")
    ))
}

/// How much memory programs can have without others having to give theirs up (proc(5)).
pub(super) fn available_memory() -> Option<Mib> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(Mib::from_bytes(kilobytes << 10))
}

async fn try_kvm(config: &Config, kind: &str) -> Result<(), String> {
    let device = Path::new("/dev/kvm");
    fs::File::options()
        .read(true)
        .write(true)
        .open(device)
        .map_err(|error| format!("{}: {error}", device.display()))?;
    let image = config.dir.join("kvm-probe.img");
    fs::write(&image, boot_sector(&TINY)).map_err(|error| format!("{}: {error}", image.display()))?;
    let drive = serde_json::json!({
        "driver": "raw", "node-name": "tiny", "read-only": true,
        "file": {"driver": "file", "filename": image},
    });
    let args = [
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-machine",
        kind,
        "-m",
        "16",
        "-display",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-chardev",
        "stdio,id=said,signal=off",
        "-serial",
        "chardev:said",
        "-blockdev",
        &drive.to_string(),
        "-device",
        "virtio-blk-pci,drive=tiny",
    ];
    let output = run(config, &args).await;
    let _ = fs::remove_file(&image);
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() && output.stdout.contains(&b'K') {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "a tiny guest ended with {}: {}",
        output.status,
        said.lines().next().unwrap_or("it said nothing")
    ))
}

/// A disk with a program that the firmware starts.
fn boot_sector(program: &[u8]) -> Vec<u8> {
    let mut sector = program.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

async fn run(config: &Config, args: &[&str]) -> Result<Output, Error> {
    let program = || config.program.display().to_string();
    let output = Command::new(&config.program)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(LIMIT, output).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Err(Error::NoHypervisor {
            program: program(),
            package: PACKAGE,
        }),
        Ok(Err(error)) => Err(Error::Hypervisor {
            program: program(),
            why: error.to_string(),
        }),
        Err(_) => Err(Error::Hypervisor {
            program: program(),
            why: format!("it did not end within {} s", LIMIT.as_secs()),
        }),
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The number in "QEMU emulator version 7.2.22 (Debian ...)".
fn parse_version(said: &str) -> Option<&str> {
    let rest = said.strip_prefix("QEMU emulator version ")?;
    let version = rest.split_whitespace().next()?;
    version
        .starts_with(|c: char| c.is_ascii_digit())
        .then_some(version)
}

/// What the name `pc` stands for, and all kinds of machine: the first word of each line.
fn parse_kinds(listed: &str) -> Option<(String, Vec<String>)> {
    let lines = || listed.lines().skip(1);
    let kinds = lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    let pc = lines().find(|line| line.split_whitespace().next() == Some("pc"))?;
    let (_, alias) = pc.split_once("(alias of ")?;
    let (kind, _) = alias.split_once(')')?;
    Some((kind.to_owned(), kinds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_and_the_newest_machine_are_found_in_what_qemu_says() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright"),
            Some("7.2.22")
        );
        assert_eq!(parse_version("QEMU emulator version x"), None);
        let listed = "Supported machines are:\n\
                      microvm              microvm (i386)\n\
                      pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)\n\
                      pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)\n";
        let (kind, kinds) = parse_kinds(listed).unwrap();
        assert_eq!(kind, "pc-i440fx-7.2");
        assert_eq!(kinds, ["microvm", "pc", "pc-i440fx-7.2"]);
        assert_eq!(parse_kinds("none\n"), None);
    }

    #[test]
    fn a_memory_of_another_host_processor_does_not_fit() {
        let cpuinfo = |stepping: &str, flags: &str| {
            format!(
                "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n\
                 model name\t: AMD EPYC\nstepping\t: {stepping}\nflags\t\t: {flags}\n\n\
                 processor\t: 1\nvendor_id\t: x\nflags\t\t: x\n"
            )
        };
        let machine = |accelerator, cpu, host_cpu| Machine {
            version: "7.2".to_owned(),
            kind: "pc".to_owned(),
            kinds: Vec::new(),
            accelerator,
            cpu,
            sandbox: true,
            host_cpu,
        };
        let kvm = |stepping, flags| machine("kvm", "host", identify(&cpuinfo(stepping, flags)));
        let here = kvm("1", "fpu sse avx2");
        assert_eq!(
            here.processor(),
            format!(
                "kvm host (AuthenticAMD family 26 model 2 stepping 1, features {:016x})",
                digest("avx2 fpu sse")
            )
        );
        assert!(
            here.fits(&kvm("1", "avx2 sse fpu").processor()),
            "the order is nothing"
        );
        for other in [
            kvm("2", "fpu sse avx2"),
            kvm("1", "fpu sse"),
            machine("tcg", "qemu64,-cx16", None),
        ] {
            assert!(!here.fits(&other.processor()), "{}", other.processor());
            assert!(!other.fits(&here.processor()), "{}", other.processor());
        }
        assert!(here.fits("kvm host"), "an earlier release said no more");
        // Emulated, all are the same.
        let emulated = machine("tcg", "qemu64,-cx16", None);
        assert_eq!(emulated.processor(), "tcg qemu64,-cx16");
        assert!(emulated.fits("tcg qemu64,-cx16"));
        assert_eq!(identify("processor: 0\n"), None);
        assert_eq!(digest(""), 0xcbf2_9ce4_8422_2325);
    }

    #[test]
    fn a_qemu_that_fails_is_not_taken_for_one_without_a_sandbox() {
        use std::os::unix::process::ExitStatusExt as _;
        let told = |status: i32, said: &str| {
            has_sandbox(&Output {
                status: std::process::ExitStatus::from_raw(status),
                stdout: Vec::new(),
                stderr: said.into(),
            })
        };
        let without = "qemu-system-x86_64: -sandbox support is not enabled in this QEMU binary";
        assert_eq!(told(0, ""), Ok(true));
        assert_eq!(told(1 << 8, without), Ok(false));
        for (status, said) in [
            (1 << 8, ""),
            (1 << 8, "cannot allocate memory"),
            (127 << 8, without),
            (9, ""),
        ] {
            let why = told(status, said).unwrap_err();
            assert!(why.contains("whether it has a sandbox is not known"), "{why}");
        }
    }

    #[tokio::test]
    async fn a_missing_qemu_is_named_with_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path());
        config.program = "/nonexistent/qemu-system-x86_64".into();
        let error = probe(&config).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no /nonexistent/qemu-system-x86_64 on this machine; install it, on Debian with `apt install qemu-system-x86`"
        );
        config.program = "/bin/echo".into();
        let error = probe(&config).await.unwrap_err().to_string();
        assert!(
            error.starts_with("/bin/echo is not usable: it says of its version"),
            "{error}"
        );
    }
}
