//! The machine that HTCondor runs on, as far as this crate needs it: files, `condor_master`, questions to the pool.

mod command;
mod files;
mod memory;
mod process;
mod supervisor;
mod system;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

pub use memory::MemoryHost;
pub use system::{SystemConfig, SystemHost};

use crate::Error;
use crate::audit::Wildcard;
use crate::intent::Manager;
use crate::plan::{FileContent, Owner};
use crate::pool::Slot;

/// The edge to the operating system. [`SystemHost`] is the real one, [`MemoryHost`] its twin for tests.
pub trait Host: Send + Sync {
    /// Finds HTCondor and checks that it is recent enough.
    fn probe(&self) -> impl Future<Output = Result<CondorVersion, Error>> + Send;

    /// Creates the folders that are missing, with their owners.
    fn prepare(&self, folders: &BTreeMap<PathBuf, Owner>) -> Result<(), Error>;

    /// Reads a file; `None` if there is none.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error>;

    /// Replaces a file atomically. Power may fail at any moment: afterwards it is the old or the new one.
    fn write(&self, path: &Path, content: &FileContent) -> Result<(), Error>;

    /// Removes a file; one that is not there is no error.
    fn remove(&self, path: &Path) -> Result<(), Error>;

    /// Whether `condor_master` runs. The first call adopts one that an earlier start of the daemon left running.
    fn state(&self) -> impl Future<Output = Result<MasterState, Error>> + Send;

    /// Starts `condor_master`, and again whenever it ends by itself. No effect if it runs.
    fn start(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Tells `condor_master` to read its configuration again, by a signal: it works without network.
    fn reconfig(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Ends `condor_master` with all its daemons. No effect if it does not run.
    fn stop(&self, how: Shutdown) -> impl Future<Output = Result<(), Error>> + Send;

    /// The slots that the collector at `manager` (full name) lists; by default the primary's.
    fn pool(&self, manager: Option<&str>) -> impl Future<Output = Result<Vec<Slot>, Error>> + Send;

    /// Whether the collector at `manager` (full name) lists a slot of `machine` (full name).
    fn is_slot_listed(
        &self,
        machine: &str,
        manager: Option<&str>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Whether the manager's port accepts connections: cheap, and enough to notice that its node is gone.
    fn port_open(&self, manager: &Manager) -> impl Future<Output = bool> + Send;

    /// Whether the collector at `manager` (full name) proves itself and answers a query: it runs a tool.
    fn collector_alive(&self, manager: &str) -> impl Future<Output = bool> + Send;

    /// Permissions of the configuration in force that let everybody in, whichever file they come from.
    fn wildcards(&self) -> impl Future<Output = Result<Vec<Wildcard>, Error>> + Send;
}

/// How `condor_master` is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Jobs on this node may save themselves, for at most so long.
    Graceful(Duration),
    /// At once. Jobs of this node's queue go on elsewhere and are found again at the next start.
    Fast,
}

/// Whether `condor_master` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum MasterState {
    /// It does not run and is not meant to.
    Stopped,
    /// It runs.
    Running {
        /// Its process id.
        pid: u32,
    },
    /// It ended by itself and will be started again.
    Restarting {
        /// How often it ended by itself in a row.
        failures: u32,
    },
}

impl MasterState {
    /// Whether it runs or will soon.
    #[must_use]
    pub fn is_up(self) -> bool {
        self != Self::Stopped
    }
}

/// Who keeps `condor_master` running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Supervision {
    /// systemd, by HTCondor's own unit.
    Systemd,
    /// This daemon, as a child process that outlives it and is adopted again.
    Child,
}

/// HTCondor's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct CondorVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub patch: u32,
}

impl CondorVersion {
    /// The oldest version that understands the configuration.
    pub const MINIMUM: Self = Self {
        major: 23,
        minor: 9,
        patch: 0,
    };
}

impl fmt::Display for CondorVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Reads the output of `condor_version`: `$CondorVersion: 23.9.6 2026-07-12 ... $`.
impl FromStr for CondorVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let numbers = text
            .split_whitespace()
            .skip_while(|word| *word != "$CondorVersion:")
            .nth(1)
            .and_then(|version| {
                let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
                Some((numbers.next()??, numbers.next()??, numbers.next()??))
            });
        match numbers {
            Some((major, minor, patch)) => Ok(Self { major, minor, patch }),
            None => Err(Error::Answer {
                command: "condor_version".into(),
                reason: format!("no version in '{}'", text.chars().take(80).collect::<String>()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_reads_from_what_condor_version_prints() {
        let text = "$CondorVersion: 23.9.6 2026-07-12 PackageID: 23.9.6+dfsg-2.1+b10 $\n$CondorPlatform: X86_64-Debian_13 $";
        let version: CondorVersion = text.parse().unwrap();
        assert_eq!(version.to_string(), "23.9.6");
        assert!(version >= CondorVersion::MINIMUM);
        let old: CondorVersion = "$CondorVersion: 10.0.9 x $".parse().unwrap();
        assert!(old < CondorVersion::MINIMUM);
        assert!("command not found".parse::<CondorVersion>().is_err());
    }
}
