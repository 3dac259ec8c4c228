//! A process that runs in a node's background.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::process::Process;
use crate::wait;

/// A handle of a process in the background. Dropping it leaves the process alone; it ends with its node.
#[derive(Debug, Clone)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    what: String,
    log: PathBuf,
    /// The process as the host knows it. It is a child of the one that entered the node.
    process: Process,
    child: Mutex<Child>,
}

impl Service {
    pub(crate) fn start(mut command: Command, what: String, log: PathBuf) -> Result<Self> {
        let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        let outer = i32::try_from(child.id())?;
        let process = wait::wait_until(Duration::from_secs(10), &format!("{what} to start"), || {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("it ended at once ({status}): {}", wait::tail(&log, 5));
            }
            Ok(Process::find(outer).and_then(Process::child))
        })?;
        Ok(Self(Arc::new(Inner {
            what,
            log,
            process,
            child: Mutex::new(child),
        })))
    }

    /// What runs, and where.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// The file that takes its output.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.0.log
    }

    /// Its whole output so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.0.log).unwrap_or_default()
    }

    /// The last lines of its output.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        wait::tail(&self.0.log, lines)
    }

    /// Its process as the host counts.
    #[must_use]
    pub fn process(&self) -> Process {
        self.0.process
    }

    /// Whether it runs.
    #[must_use]
    pub fn running(&self) -> bool {
        self.0.process.alive()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.0.process.signal(signal);
    }

    /// Kills it at once and waits for its end. Processes that it started go on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill9(&self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(10)).map(|_| ())
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.wait(limit)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        wait::wait_until(limit, &format!("the end of {}", self.0.what), || {
            let mut child = self.0.child.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(child.try_wait()?)
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Takes the ended process away; one that still runs is left alone.
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.try_wait();
    }
}
