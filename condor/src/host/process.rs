//! One process, told from any other that has had or will have its number.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process id with the moment of its start, which together never repeat between two boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Clock ticks since boot (proc(5), field 22 of `stat`).
    started: u64,
    boot: String,
}

impl Process {
    /// The running process with this number.
    pub(super) fn running(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse_stat(&stat)?;
        // A zombie has ended; only its parent has not asked yet.
        (state != 'Z' && state != 'X').then_some(())?;
        Some(Self {
            pid,
            started,
            boot: boot_id(),
        })
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        Self::running(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal, unless the process has ended.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), Errno> {
        if !self.is_alive() {
            return Err(Errno::ESRCH);
        }
        let pid = i32::try_from(self.pid).map_err(|_| Errno::ESRCH)?;
        kill(Pid::from_raw(pid), signal)
    }

    /// The process of this program that shares our view of the file system, if there is one: another node's in a
    /// container of the same machine is none of ours.
    pub(super) fn find(program: &str) -> Option<Self> {
        let view = |pid: &str| {
            Some((
                fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?,
                fs::read_link(format!("/proc/{pid}/root")).ok()?,
            ))
        };
        let ours = view("self")?;
        fs::read_dir("/proc")
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == program)
            })
            .filter(|pid| view(pid).as_ref() == Some(&ours))
            .find_map(|pid| Self::running(pid.parse().ok()?))
    }

    /// Reads what [`Self::encode`] wrote; `None` if it is not that, or names a process that has ended.
    pub(super) fn load(path: &Path) -> Option<Self> {
        let process: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        process.is_alive().then_some(process)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn parse_stat(stat: &str) -> Option<(char, u64)> {
    // The program's name stands in brackets and may hold anything, brackets too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let me = Process::running(std::process::id()).unwrap();
        assert!(me.is_alive());
        let earlier = Process {
            started: me.started - 1,
            ..me.clone()
        };
        assert!(!earlier.is_alive());
        assert_eq!(earlier.signal(Signal::SIGCONT), Err(Errno::ESRCH));
    }

    #[test]
    fn a_process_reads_back_from_its_file_while_it_runs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let me = Process::running(std::process::id()).unwrap();
        fs::write(file.path(), me.encode()).unwrap();
        assert_eq!(Process::load(file.path()), Some(me));
        fs::write(file.path(), "nonsense").unwrap();
        assert_eq!(Process::load(file.path()), None);
    }

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = format!("7 (a) Z (b) S {} 4242 0", "1 ".repeat(18).trim_end());
        assert_eq!(parse_stat(&stat), Some(('S', 4242)));
    }
}
