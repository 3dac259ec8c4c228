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
        let stat = Stat::of(pid)?;
        // A zombie has ended; only its parent has not asked yet.
        (stat.state != 'Z' && stat.state != 'X').then_some(())?;
        Some(Self::from_stat(pid, &stat))
    }

    /// Our child with this number, which nobody has waited for yet: it may have ended already.
    pub(super) fn child(pid: u32) -> Option<Self> {
        Some(Self::from_stat(pid, &Stat::of(pid)?))
    }

    fn from_stat(pid: u32, stat: &Stat) -> Self {
        Self {
            pid,
            started: stat.started,
            boot: boot_id(),
        }
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
        of_our_view()
            .filter(|pid| comm(pid).is_some_and(|comm| comm == program))
            .find_map(|pid| Self::running(pid.parse().ok()?))
    }

    /// Processes of these programs that share our view of the file system and whose parent is none of `parent`'s:
    /// what remains when their parent was killed.
    pub(super) fn orphans(programs: &[&str], parent: &str) -> Vec<Self> {
        let is_orphan = |pid: &String| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            let stat = stat.as_deref().and_then(Stat::parse);
            stat.is_some_and(|stat| comm(&stat.parent).is_none_or(|comm| comm != parent))
        };
        of_our_view()
            .filter(|pid| comm(pid).is_some_and(|comm| programs.contains(&comm.as_str())))
            .filter(is_orphan)
            .filter_map(|pid| Self::running(pid.parse().ok()?))
            .collect()
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

/// What is needed of proc(5)'s `stat`.
struct Stat {
    state: char,
    parent: String,
    started: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The program's name stands in brackets and may hold anything, brackets too.
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        Some(Self {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.to_owned(),
            started: fields.nth(17)?.parse().ok()?,
        })
    }
}

/// The numbers of the processes that see the same file system as we do.
fn of_our_view() -> impl Iterator<Item = String> {
    let view = |pid: &str| {
        Some((
            fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?,
            fs::read_link(format!("/proc/{pid}/root")).ok()?,
        ))
    };
    let ours = view("self");
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(move |pid| ours.is_some() && view(pid) == ours)
}

/// The program's name as the kernel keeps it: its first 15 bytes.
fn comm(pid: &str) -> Option<String> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_end().to_owned())
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
    fn a_child_that_has_ended_before_anybody_looked_is_still_known() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(pid),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .unwrap();
        assert_eq!(Process::running(child.id()), None);
        assert!(Process::child(child.id()).is_some_and(|ended| !ended.is_alive()));
        child.wait().unwrap();
        assert_eq!(Process::child(child.id()), None);
    }

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
        let stat = format!("7 (a) Z (b) S 33 {} 4242 0", "1 ".repeat(17).trim_end());
        let stat = Stat::parse(&stat).unwrap();
        assert_eq!(
            (stat.state, stat.parent.as_str(), stat.started),
            ('S', "33", 4242)
        );
    }

    #[test]
    fn a_child_of_a_living_parent_is_no_orphan() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let is_listed = |parent: &str| {
            let orphans = Process::orphans(&["sleep"], parent);
            orphans.iter().any(|orphan| orphan.pid == child.id())
        };
        let us = comm("self").unwrap();
        let as_child = is_listed(&us);
        let as_orphan = is_listed("some-other-parent");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!as_child && as_orphan);
    }
}
