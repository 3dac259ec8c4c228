//! A machine that is only a root file system: for what is installed, configured and removed, without anything running.
//!
//! Each command has a mount namespace of its own, in which the machine's disk lies over the shared root file system, and
//! a network namespace with nothing in it. Nothing stays mounted, whatever becomes of the test.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{cache, rootfs};

/// Goes inside: `$1` is the shared root file system, `$2` the disk, `$3` a folder of the host that is seen at `/mnt`.
const ENTER: &str = r#"
set -eu
# Nobody needs what is on this disk after a loss of power, which saves most of an installation's time. The kernel wants
# to be told at each mount that the one before was ended well.
rm -rf "$2/work"
mkdir "$2/work"
mount -t overlay overlay -o "volatile,lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/merged"
mount --bind "$3" "$2/merged/mnt"
hostname bare
ip link set lo up
mount -t proc proc "$2/merged/proc"
mount --rbind /dev "$2/merged/dev"
shift
disk=$1
shift 2
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    chroot "$disk/merged" "$@"
"#;

/// The machine. Its disk goes when it is dropped.
pub struct Chroot {
    lower: std::path::PathBuf,
    disk: TempDir,
    shared: TempDir,
}

impl Chroot {
    /// A Debian 13 on which nothing is installed.
    ///
    /// # Errors
    /// When the root file system cannot be built.
    pub fn bare() -> Result<Self> {
        let lower = rootfs::prepare_bare(&mut |step| eprintln!("{step}"))?;
        let cache = cache::cache_dir()?;
        let disk = tempfile::Builder::new().prefix("chroot-").tempdir_in(cache)?;
        for folder in ["upper", "merged"] {
            std::fs::create_dir(disk.path().join(folder))?;
        }
        let shared = tempfile::tempdir()?;
        Ok(Self { lower, disk, shared })
    }

    /// A folder of this host that the machine sees at `/mnt`.
    #[must_use]
    pub fn shared(&self) -> &Path {
        self.shared.path()
    }

    /// Runs a script of the shell inside, which must succeed. Returns what it printed.
    ///
    /// # Errors
    /// When it fails; the message holds all that it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                ENTER,
                "sh",
            ])
            .arg(&self.lower)
            .arg(self.disk.path())
            .arg(self.shared.path())
            .args(["sh", "-euc", script])
            .stdin(Stdio::null())
            .output()
            .context("cannot run unshare")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "'{script}' ended with {}:\n{said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }
}
