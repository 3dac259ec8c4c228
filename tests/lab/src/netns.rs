//! A network namespace, named by a process inside it.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

/// A handle of a network namespace. It does not keep the namespace alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetNs {
    pid: i32,
}

impl NetNs {
    pub(crate) fn of(pid: i32) -> Self {
        Self { pid }
    }

    /// The process by which the namespace is named.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Runs a function on a thread inside the namespace. Sockets made there stay in it, whoever uses them later.
    ///
    /// # Errors
    /// When the namespace is gone, or with the function's own error.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/proc/{}/ns/net", self.pid);
        let file = File::open(&path).with_context(|| format!("the namespace {path} is gone"))?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(file, CloneFlags::CLONE_NEWNET)
                        .context("cannot enter a network namespace (root?)")?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("the work inside the network namespace panicked"))?
        })
    }

    /// A command that runs a program inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.pid))
            .arg(program);
        command
    }

    /// Runs lines of `ip`, all or up to the first that fails.
    pub(crate) fn ip<S: AsRef<str>>(&self, lines: impl IntoIterator<Item = S>) -> Result<()> {
        let batch: String = lines
            .into_iter()
            .map(|line| format!("{}\n", line.as_ref()))
            .collect();
        self.feed(&["ip", "-batch", "-"], &batch)
    }

    /// Loads nftables rules.
    pub(crate) fn nft(&self, rules: &str) -> Result<()> {
        self.feed(&["nft", "-f", "-"], rules)
    }

    /// Sets kernel parameters below `net/`.
    pub(crate) fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in values {
                std::fs::write(format!("/proc/sys/net/{key}"), value)
                    .with_context(|| format!("cannot set net/{key} to {value}"))?;
            }
            Ok(())
        })
    }

    fn feed(&self, argv: &[&str], input: &str) -> Result<()> {
        let [program, args @ ..] = argv else {
            return Ok(());
        };
        let mut child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run nsenter: apt-get install util-linux iproute2 nftables")?;
        if let Some(mut stdin) = child.stdin.take() {
            // Who stops reading says why on standard error.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{} failed: {}\n{input}",
            program,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}
