//! A process that may be somebody else's child: told apart for certain, watched, and ended.
//!
//! The number of a process is given to another one after its end. A [`Process`] is therefore held by a descriptor of
//! the kernel's (`pidfd_open(2)`), that stays with the one process, and judged by what cannot be another's: when it
//! began, and which lock it holds. Many may have a file open, a program that copies the folder among them; who holds its
//! lock is asked of the kernel (`lock:` in `/proc/PID/fdinfo`, proc(5)), which counts whoever inherited the lock, also
//! after the process that took it has ended.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How much is read of what the kernel says of an open file, in bytes. What it is and its locks come first; of what an
/// epoll instance watches there may be any number of lines.
const MAX_INFO: u64 = 4096;

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

    /// Whether it holds the lock on this file.
    pub(crate) fn holds(&self, file: &Path) -> bool {
        Lock::on(file).is_some_and(|lock| lock.is_held_by(self.id.pid))
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

/// The processes that hold the lock on a file, as far as one may know; this one is left out.
pub(crate) fn that_hold(file: &Path) -> Vec<i32> {
    let (Some(lock), Ok(entries)) = (Lock::on(file), fs::read_dir("/proc")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id().cast_signed() && lock.is_held_by(*pid))
        .collect()
}

/// A lock that somebody may hold.
struct Lock {
    file: (u64, u64),
    /// The number of the file as the kernel says it of locks. Of a file in layers it is another than a program sees.
    inode: u64,
}

impl Lock {
    fn on(file: &Path) -> Option<Self> {
        let opened = fs::File::open(file).ok()?;
        let meta = opened.metadata().ok()?;
        let said = info(&format!("/proc/self/fdinfo/{}", opened.as_raw_fd()));
        Some(Self {
            file: (meta.dev(), meta.ino()),
            inode: said.as_deref().and_then(inode_in).unwrap_or_else(|| meta.ino()),
        })
    }

    /// Files that have nothing to do with it are not looked at themselves: they may be on a server that is silent.
    fn is_held_by(&self, pid: i32) -> bool {
        let Ok(infos) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
            return false;
        };
        infos.flatten().any(|entry| {
            let number = entry.file_name();
            info(&format!("/proc/{pid}/fdinfo/{}", number.display()))
                .is_some_and(|info| locks_whole(&info, self.inode))
                && fs::metadata(format!("/proc/{pid}/fd/{}", number.display()))
                    .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file)
        })
    }
}

/// What the kernel says of an open file.
fn info(path: &str) -> Option<String> {
    let mut text = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(MAX_INFO)
        .read_to_end(&mut text)
        .ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn inode_in(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix("ino:"))?;
    line.trim().parse().ok()
}

/// Whether an open file holds the lock of flock(2) on this inode, so that nobody else can:
/// `lock: 1: FLOCK  ADVISORY  WRITE 29718 fe:00:10011352 0 EOF`.
fn locks_whole(info: &str, inode: u64) -> bool {
    let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
    locks.any(|lock| {
        let words: Vec<_> = lock.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", _, file, ..] = words[..] else {
            return false;
        };
        file.rsplit(':').next().and_then(|number| number.parse().ok()) == Some(inode)
    })
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
        assert!(!process.holds(Path::new("/proc/version")));
        process.kill();
        process.ended().await;
        // It is not reaped yet, and has ended all the same.
        assert!(Process::open(pid).unwrap().is_none());
        child.wait().await.unwrap();
        assert!(Process::open(pid).unwrap().is_none());
    }

    #[tokio::test]
    async fn who_holds_a_lock_is_told_from_who_has_its_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alive");
        let sleep = |file: fs::File| {
            let mut command = std::process::Command::new("sleep");
            command.arg("60").stdout(file).spawn().unwrap()
        };
        let mut reader = sleep(fs::File::create(&path).unwrap());
        assert!(that_hold(&path).is_empty());
        // Inherited, and let go by who took it.
        let mut holder = sleep(crate::files::lock(&path).unwrap().unwrap());
        let pid = i32::try_from(holder.id()).unwrap();
        assert_eq!(that_hold(&path), [pid]);
        let process = Process::open(pid).unwrap().unwrap();
        assert!(process.holds(&path));
        let other = Process::open(i32::try_from(reader.id()).unwrap())
            .unwrap()
            .unwrap();
        assert!(!other.holds(&path));
        process.kill();
        process.ended().await;
        assert!(that_hold(&path).is_empty());
        other.kill();
        holder.wait().unwrap();
        reader.wait().unwrap();
    }

    #[test]
    fn a_lock_is_one_of_the_whole_file_that_nobody_else_can_have() {
        let info = |kind: &str, way: &str| {
            format!("pos:\t0\nino:\t77\nlock:\t1: {kind}  ADVISORY  {way} 0 fe:00:77 0 EOF\n")
        };
        assert!(locks_whole(&info("FLOCK", "WRITE"), 77));
        assert!(!locks_whole(&info("FLOCK", "WRITE"), 7));
        assert!(!locks_whole(&info("FLOCK", "READ"), 77));
        assert!(!locks_whole(&info("POSIX", "WRITE"), 77));
        assert!(!locks_whole("pos:\t0\nino:\t77\nlock:\t\n", 77));
        assert_eq!(inode_in(&info("FLOCK", "READ")), Some(77));
        assert_eq!(inode_in("pos:\t0\n"), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_the_kernel_may_say_makes_it_panic(text: String, inode: u64) {
            let _ = (parse_stat(&text), inode_in(&text), locks_whole(&text, inode));
            for text in [format!("lock:{text}"), format!("ino:{text}"), format!("7 (a) {text}")] {
                let _ = (parse_stat(&text), inode_in(&text), locks_whole(&text, inode));
            }
        }
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
