//! Processes by id and start time, and the holders that keep namespaces alive.
//!
//! A namespace lives as long as a process is in it. Each host, router and node of a lab therefore has a *holder*:
//! a process that only waits. It reads from a pipe whose other end the lab holds, so that it ends by itself when
//! the lab's process ends in whatever way; and with it the namespace, the interfaces and, where the holder is the
//! first process of a pid namespace, every process inside. A lab that shall outlive its process gives its holders
//! no pipe.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::wait;

/// A process that cannot be mistaken for a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process id as the host counts.
    pub pid: i32,
    /// When it started, in clock ticks since the host's boot.
    pub start: u64,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since its start, its own and the kernel's for it.
    pub cpu: std::time::Duration,
    /// Resident memory in bytes, with what it shares: its program and libraries.
    pub rss: u64,
    /// The most resident memory that there ever was, in bytes.
    pub peak: u64,
    /// Resident memory in bytes that is no file's.
    pub private: u64,
}

impl Usage {
    /// From the texts of `/proc/PID/stat` and `/proc/PID/status`, and the clock's ticks per second.
    fn parse(stat: &str, status: &str, ticks: u64) -> Option<Self> {
        // The name in brackets may hold anything; user and system time are the twelfth and thirteenth after it.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut times = rest.split_whitespace().skip(11).map(str::parse::<u64>);
        let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
        let kilobytes = |key: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().strip_suffix("kB")?.trim().parse().ok()
        };
        Some(Self {
            cpu: std::time::Duration::from_millis((user + system) * 1000 / ticks),
            rss: kilobytes("VmRSS:")? * 1024,
            peak: kilobytes("VmHWM:")? * 1024,
            private: kilobytes("RssAnon:")? * 1024,
        })
    }
}

impl Process {
    /// The process with this id. `None` if there is none.
    #[must_use]
    pub fn find(pid: i32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        Some(Self {
            pid,
            start: stat.start,
        })
    }

    /// This process.
    #[must_use]
    pub fn own() -> Self {
        let pid = nix::unistd::getpid().as_raw();
        Self::find(pid).unwrap_or(Self { pid, start: 0 })
    }

    /// Whether it runs. A zombie does not.
    #[must_use]
    pub fn alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.start == self.start && stat.state != "Z")
    }

    /// What it uses. `None` if it has ended.
    #[must_use]
    pub fn usage(self) -> Option<Usage> {
        if !self.alive() {
            return None;
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let ticks = u64::try_from(nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??).ok()?;
        Usage::parse(&stat, &status, ticks)
    }

    /// Sends a signal; nothing happens if the process is gone.
    pub fn signal(self, signal: Signal) {
        if self.alive() {
            // It may end between the look and the signal; then there is nothing left to do.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// The child of this process, if it has one.
    #[must_use]
    pub fn child(self) -> Option<Self> {
        let pids = fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.into_iter()
            .filter_map(|pid| Stat::read(pid).map(|stat| (pid, stat)))
            .find(|(_, stat)| stat.parent == self.pid)
            .map(|(pid, stat)| Self {
                pid,
                start: stat.start,
            })
    }
}

/// What is read of `/proc/<pid>/stat`.
struct Stat {
    state: String,
    parent: i32,
    start: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name stands in parentheses and may hold anything, so count from the last one.
        let mut words = text.rsplit_once(')')?.1.split_whitespace();
        let state = words.next()?.to_owned();
        let parent = words.next()?.parse().ok()?;
        let start = words.nth(17)?.parse().ok()?;
        Some(Self { state, parent, start })
    }
}

/// Keeps namespaces alive. Dropping it ends them, unless it was started to be kept.
#[derive(Debug)]
pub(crate) struct Holder {
    child: Mutex<Child>,
    keep: bool,
    pub(crate) process: Process,
}

impl Holder {
    /// The environment variable that tells the command what to become once the namespaces are set up.
    pub(crate) const BECOME: &str = "LAB_BECOME";

    /// Starts a command that makes namespaces, says `pid <number>` and `ready` on standard output, and becomes
    /// `$LAB_BECOME`.
    pub(crate) fn start(mut command: Command, log: &Path, keep: bool) -> Result<Self> {
        let (hold, stdin) = if keep {
            ("sleep infinity", Stdio::null())
        } else {
            ("cat", Stdio::piped())
        };
        let log_file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .env(Self::BECOME, hold)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(log_file)
            // A key pressed at the terminal is for the lab's own process, which then ends the holders in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let stdout = child.stdout.take();
        let mut process = None;
        let mut ready = false;
        for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines()) {
            match line?.split_once(' ') {
                Some(("pid", number)) => process = number.trim().parse().ok().and_then(Process::find),
                _ => {
                    ready = true;
                    break;
                }
            }
        }
        match process {
            Some(process) if ready => Ok(Self {
                child: Mutex::new(child),
                keep,
                process,
            }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("cannot set up namespaces: {}", wait::tail(log, 5));
            }
        }
    }

    /// Ends the namespaces as a power cut would.
    pub(crate) fn kill(&self) {
        self.process.signal(Signal::SIGKILL);
        // Waits for the outer process too, so that no zombie is left. It ends with the inner one.
        let _ = self.child.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if !self.keep {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_off_a_process_with_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 2513 0 0 0 150 50 0 0 20 0 3 0 99";
        let status = "VmPeak:\t 9 kB\nVmHWM:\t 3072 kB\nVmRSS:\t  2048 kB\nRssAnon:\t  1024 kB\n";
        let usage = Usage::parse(stat, status, 100).unwrap();
        assert_eq!(usage.cpu, std::time::Duration::from_secs(2));
        assert_eq!(
            (usage.rss, usage.peak, usage.private),
            (2 << 20, 3 << 20, 1 << 20)
        );
        assert!(Process::own().usage().is_some());
    }

    #[test]
    fn a_process_is_told_apart_from_a_later_one_with_its_id() {
        let own = Process::own();
        assert!(own.alive());
        assert!(
            !Process {
                start: own.start + 1,
                ..own
            }
            .alive()
        );
    }
}
