//! A process that may be somebody else's child: told apart for certain, watched, and ended.
//!
//! The number of a process is given to another one after its end. A [`Process`] is therefore held by a descriptor of
//! the kernel's (`pidfd_open(2)`), that stays with the one process, and judged by what cannot be another's: when it
//! began, and which file it has open.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which process, for as long as the machine is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// When it began, in clock ticks since the machine came up.
    pub(crate) began: u64,
    /// Which time that the machine is up.
    pub(crate) boot: String,
}

/// A process that was there.
#[derive(Debug)]
pub(crate) struct Process {
    id: ProcessId,
    descriptor: AsyncFd<OwnedFd>,
}

impl Process {
    /// Takes hold of a process; `None` if there is none, or it has ended already.
    pub(crate) fn open(pid: i32) -> io::Result<Option<Self>> {
        // SAFETY: the call takes two numbers and gives a descriptor or -1.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = match i32::try_from(descriptor) {
            // SAFETY: the kernel has just made it, for nobody else.
            Ok(descriptor) if descriptor >= 0 => unsafe { OwnedFd::from_raw_fd(descriptor) },
            _ => {
                let error = io::Error::last_os_error();
                return match error.raw_os_error() {
                    Some(libc::ESRCH) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        // Looked at after the descriptor was had: it is the same process, or has ended.
        let Some(began) = began(pid)? else {
            return Ok(None);
        };
        let id = ProcessId {
            pid,
            began,
            boot: boot()?,
        };
        // SAFETY: an owned descriptor is the same and open until it is dropped, which happens after it is deregistered.
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
        Ok(Some(Self { id, descriptor }))
    }

    pub(crate) fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Whether it has this file open.
    pub(crate) fn has_open(&self, file: &Path) -> bool {
        has_open(self.id.pid, file)
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        let descriptor = self.descriptor.get_ref().as_raw_fd();
        // SAFETY: the descriptor is open; no siginfo is given.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                descriptor,
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            );
        }
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) {
        // The kernel says it as often as it is asked.
        let _ = self.descriptor.readable().await;
    }
}

/// The processes that have a file open, as far as one may know.
pub(crate) fn that_have_open(file: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id().cast_signed() && has_open(*pid, file))
        .collect()
}

fn has_open(pid: i32, file: &Path) -> bool {
    let Ok(wanted) = fs::metadata(file) else {
        return false;
    };
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .any(|meta| (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino()))
}

/// When a process began; `None` if it has ended.
fn began(pid: i32) -> io::Result<Option<u64>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_stat(&stat)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The begin in a line of `/proc/PID/stat` (proc(5)); `None` of one that has ended and is not reaped.
fn parse_stat(stat: &str) -> Option<u64> {
    // The program's name is in parentheses and may have any character in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[tokio::test]
    async fn a_process_is_known_until_it_has_ended_and_not_after() {
        let mut child = tokio::process::Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let process = Process::open(pid).unwrap().unwrap();
        let again = Process::open(pid).unwrap().unwrap();
        assert_eq!(process.id(), again.id());
        assert!(!process.has_open(Path::new("/proc/version")));
        process.kill();
        process.ended().await;
        // It is not reaped yet, and has ended all the same.
        assert!(Process::open(pid).unwrap().is_none());
        child.wait().await.unwrap();
        assert!(Process::open(pid).unwrap().is_none());
    }

    #[tokio::test]
    async fn who_has_a_file_open_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alive");
        let file = fs::File::create(&path).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdout(file)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(that_have_open(&path), [pid]);
        let process = Process::open(pid).unwrap().unwrap();
        assert!(process.has_open(&path));
        process.kill();
        process.ended().await;
        child.wait().unwrap();
        assert!(that_have_open(&path).is_empty());
    }

    #[test]
    fn a_program_may_have_any_name() {
        let stat = "7 (a) R 1) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(stat), Some(4711));
        assert_eq!(parse_stat(&stat.replace(") S", ") Z")), None);
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(parse_stat(""), None);
    }
}
