//! One script, with a time limit, and the end of what it wrote.

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use aerie_context_proto::limits::MAX_STEP_LOG;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::error::Error;

/// How long a script has to end itself after it was asked to.
const GRACE: Duration = Duration::from_secs(3);

/// The longest between two looks whether a script that holds its output open has ended.
const LOOK: u16 = 50;

/// How a script ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if it was ended.
    pub(crate) code: Option<i32>,
    pub(crate) timed_out: bool,
}

/// The end of a text, at most so long.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        // Twice the length is let pass, so that not every byte moves all others.
        if self.0.len() > 2 * MAX_STEP_LOG {
            self.0.drain(..self.0.len() - MAX_STEP_LOG);
        }
    }

    /// The text, without what is no text.
    pub(crate) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let text: String = text
            .chars()
            .filter(|c| matches!(c, '\n' | '\t') || !c.is_control())
            .collect();
        end_of(&text, MAX_STEP_LOG).to_owned()
    }
}

/// The last bytes of a text, beginning with a whole character.
pub(crate) fn end_of(text: &str, bytes: usize) -> &str {
    let mut from = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.get(from..).unwrap_or_default()
}

/// Runs a script until it ends or its time is over. Standard output and error go to `log`; there is no input.
///
/// A process that a script leaves behind and that still holds its output is not waited for.
pub(crate) fn run(
    script: &Path,
    args: &[String],
    env: &[(&str, String)],
    until: Instant,
    log: &mut Tail,
) -> Result<Ended, Error> {
    let failed = |source: std::io::Error| Error::io("run", script)(source);
    let (mut output, input) = std::io::pipe().map_err(failed)?;
    let error = input.try_clone().map_err(failed)?;
    let mut command = Command::new(script);
    command
        .args(args)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LANG", "C.UTF-8")
        .env("HOME", "/root")
        .envs(env.iter().map(|(name, value)| (*name, value.as_str())))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(input)
        .stderr(error)
        // A group of its own, so that what it started ends with it.
        .process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    // It holds the writing end open.
    drop(command);
    fcntl(output.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| failed(errno.into()))?;
    let mut asked_to_end = None;
    let mut open = true;
    loop {
        if open {
            let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is a shorter one.
            let _ = poll(&mut fds, PollTimeout::from(LOOK));
            open = drain(&mut output, log);
        } else {
            // It has closed its output and not ended.
            std::thread::sleep(Duration::from_millis(u64::from(LOOK) / 5));
        }
        if asked_to_end.is_some() && is_over(&child) {
            // Before it is reaped, so that its number is nobody else's: what it started and would not end.
            end(&child, Signal::SIGKILL);
        }
        if let Some(status) = child.try_wait().map_err(failed)? {
            drain(&mut output, log);
            return Ok(ended(status, asked_to_end.is_some()));
        }
        let now = Instant::now();
        match asked_to_end {
            None if now >= until => {
                end(&child, Signal::SIGTERM);
                asked_to_end = Some(now);
            }
            Some(since) if now.duration_since(since) > GRACE => end(&child, Signal::SIGKILL),
            _ => {}
        }
    }
}

fn ended(status: ExitStatus, timed_out: bool) -> Ended {
    Ended {
        code: status.code().filter(|_| !timed_out),
        timed_out,
    }
}

/// Whether it has ended; it is left to be reaped.
fn is_over(child: &Child) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let pid = i32::try_from(child.id()).map(Pid::from_raw);
    let state = pid.map(|pid| waitid(Id::Pid(pid), flags));
    matches!(state, Ok(Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))))
}

fn end(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may just have ended.
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// Reads what is there. False at the end.
fn drain(output: &mut impl Read, log: &mut Tail) -> bool {
    let mut buffer = [0; 4096];
    // A script that writes without end must not keep the agent from looking at the clock.
    for _ in 0..64 {
        match output.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => log.push(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    fn play(text: &str, limit: Duration) -> (Ended, String, Duration) {
        let (_dir, path) = script(text);
        let mut log = Tail::default();
        let started = Instant::now();
        let args = ["one".to_owned()];
        let env = [("AERIE_X", "y".to_owned())];
        let ended = run(&path, &args, &env, started + limit, &mut log).unwrap();
        (ended, log.text(), started.elapsed())
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_script_gets_its_arguments_and_its_end_is_told() {
        let (ended, log, _) = play("echo $1 $AERIE_X $SHELL_SECRET; echo oh >&2; exit 3", LONG);
        assert_eq!(
            (ended.code, ended.timed_out, log.as_str()),
            (Some(3), false, "one y\noh\n")
        );
    }

    #[test]
    fn a_script_over_its_time_is_ended_with_all_that_it_started() {
        let (ended, _, took) = play("sleep 600 & sleep 600", Duration::from_millis(200));
        assert!(ended.timed_out && ended.code.is_none());
        assert!(took < Duration::from_secs(3), "{took:?}");
        // One that does not heed the signal, and whose parent does.
        let (ended, log, _) = play(
            "(trap '' TERM; while :; do sleep 0.1; done) & echo $!; sleep 600",
            Duration::from_millis(300),
        );
        assert!(ended.timed_out);
        let child = Path::new("/proc").join(log.trim());
        let state = std::fs::read_to_string(child.join("stat")).unwrap_or_default();
        assert!(!child.exists() || state.contains(") Z "), "it goes on: {state}");
        let (ended, _, took) = play(
            "trap '' TERM; while :; do sleep 0.1; done",
            Duration::from_millis(100),
        );
        assert!(ended.timed_out && took >= GRACE, "{took:?}");
    }

    #[test]
    fn a_daemon_that_keeps_the_output_is_not_waited_for() {
        let (ended, log, took) = play("sleep 20 & echo started", LONG);
        assert_eq!((ended.code, log.as_str()), (Some(0), "started\n"));
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn of_endless_output_the_end_is_kept() {
        let (ended, log, _) = play("seq 1 200000; printf 'last\\033[2J'", LONG);
        assert_eq!(ended.code, Some(0));
        assert!(
            log.len() <= MAX_STEP_LOG && log.ends_with("200000\nlast[2J"),
            "{}",
            end_of(&log, 30)
        );
        let (ended, ..) = play("yes", Duration::from_millis(200));
        assert!(ended.timed_out);
    }
}
