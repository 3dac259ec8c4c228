//! A program in a router's network namespace that ends with the lab, in whatever way the lab ends.
//!
//! It is the child of a holder in a process namespace of its own: when the holder goes, the kernel ends both.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::netns::NetNs;
use crate::process::{Holder, Process};
use crate::wait;

/// Starts `$@` beside what becomes the holder; its output goes to `$LAB_SAID`.
const START: &str = r#"
set -eu
# /proc is still the host's: the number is that by which the host knows this process.
read -r pid rest </proc/self/stat
echo "pid $pid"
"$@" </dev/null >"$LAB_SAID" 2>&1 &
echo ready
exec $LAB_BECOME
"#;

/// How many of its last lines a failure shows.
const SHOWN_LINES: usize = 12;

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Task {
    holder: Holder,
    said: PathBuf,
}

impl Task {
    /// Starts it. What it prints goes to the file `said`.
    pub(crate) fn start(net: NetNs, program: &Command, said: PathBuf) -> Result<Self> {
        let mut command = net.command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "sh", "-c", START, "sh"])
            .arg(program.get_program())
            .args(program.get_args())
            .env("LAB_SAID", &said);
        for (key, value) in program.get_envs() {
            command.env(key, value.map_or_else(OsString::new, OsString::from));
        }
        let holder = Holder::start(command, &said.with_extension("holder"), false)?;
        Ok(Self { holder, said })
    }

    /// The process by which it ends.
    pub(crate) fn process(&self) -> Process {
        self.holder.process
    }

    /// Ends it.
    pub(crate) fn end(&self) {
        self.holder.kill();
    }

    /// Whether the program runs.
    pub(crate) fn running(&self) -> bool {
        self.holder.process.child().is_some_and(Process::alive)
    }

    /// The processor time that it took so far; none once it has ended.
    pub(crate) fn cpu(&self) -> Duration {
        let usage = self.holder.process.child().and_then(Process::usage);
        usage.map_or(Duration::ZERO, |usage| usage.cpu)
    }

    /// The end of what it has printed.
    pub(crate) fn said(&self) -> String {
        wait::tail(&self.said, SHOWN_LINES)
    }

    /// Where it writes to.
    pub(crate) fn log(&self) -> &Path {
        &self.said
    }
}
