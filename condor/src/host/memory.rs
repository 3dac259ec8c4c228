//! A machine that exists in memory only: for tests of whoever drives HTCondor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{CondorVersion, Host, MasterState, Shutdown};
use crate::Error;
use crate::audit::{Wildcard, wildcards};
use crate::intent::Manager;
use crate::plan::{FileContent, Owner};
use crate::pool::Slot;

/// Files, a `condor_master` and a pool in memory. What was done to it stands in [`MemoryHost::deeds`].
#[derive(Debug, Default)]
pub struct MemoryHost {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<PathBuf, FileContent>,
    folders: BTreeMap<PathBuf, Owner>,
    running: Option<u32>,
    starts: u32,
    deeds: Vec<&'static str>,
    slots: Vec<Slot>,
    dead_managers: BTreeSet<String>,
    failing: Option<&'static str>,
    missing: bool,
}

impl MemoryHost {
    /// A machine with HTCondor installed and nothing running.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was done to `condor_master`, in order: `start`, `reconfig`, `stop`. Empties the list.
    #[must_use]
    pub fn deeds(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.lock().deeds)
    }

    /// The text of a file.
    #[must_use]
    pub fn text(&self, path: &Path) -> Option<String> {
        let inner = self.lock();
        let file = inner.files.get(path)?;
        Some(String::from_utf8_lossy(&file.bytes).into_owned())
    }

    /// Ends `condor_master` as if by itself, for good.
    pub fn crash(&self) {
        self.lock().running = None;
    }

    /// What the pool answers.
    pub fn set_slots(&self, slots: Vec<Slot>) {
        self.lock().slots = slots;
    }

    /// Makes a manager (node name or full name) dead or alive.
    pub fn set_manager(&self, manager: &str, alive: bool) {
        let mut inner = self.lock();
        if alive {
            inner.dead_managers.remove(manager);
        } else {
            inner.dead_managers.insert(manager.to_owned());
        }
    }

    /// Lets the next deed of this name (`start`, `reconfig`, `stop`) fail.
    pub fn fail_next(&self, deed: &'static str) {
        self.lock().failing = Some(deed);
    }

    /// Takes HTCondor off the machine.
    pub fn uninstall(&self) {
        self.lock().missing = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deed(&self, deed: &'static str) -> Result<MutexGuard<'_, Inner>, Error> {
        let mut inner = self.lock();
        inner.deeds.push(deed);
        if inner.failing == Some(deed) {
            inner.failing = None;
            return Err(Error::Master {
                what: format!("failed to {deed}, as it was told to"),
                log: "/var/log/condor/MasterLog".into(),
            });
        }
        Ok(inner)
    }
}

impl Host for MemoryHost {
    async fn probe(&self) -> Result<CondorVersion, Error> {
        if self.lock().missing {
            return Err(Error::NotInstalled {
                program: "condor_version",
            });
        }
        Ok(CondorVersion::MINIMUM)
    }

    fn prepare(&self, folders: &BTreeMap<PathBuf, Owner>) -> Result<(), Error> {
        self.lock().folders.extend(folders.clone());
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.lock().files.get(path).map(|file| file.bytes.clone()))
    }

    fn write(&self, path: &Path, content: &FileContent) -> Result<(), Error> {
        self.lock().files.insert(path.to_owned(), content.clone());
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        self.lock().files.remove(path);
        Ok(())
    }

    async fn state(&self) -> Result<MasterState, Error> {
        Ok(match self.lock().running {
            Some(pid) => MasterState::Running { pid },
            None => MasterState::Stopped,
        })
    }

    async fn start(&self) -> Result<(), Error> {
        let mut inner = self.deed("start")?;
        inner.starts += 1;
        inner.running = Some(inner.starts);
        Ok(())
    }

    async fn reconfig(&self) -> Result<(), Error> {
        self.deed("reconfig").map(drop)
    }

    async fn stop(&self, _how: Shutdown) -> Result<(), Error> {
        self.deed("stop")?.running = None;
        Ok(())
    }

    async fn pool(&self, _manager: Option<&str>) -> Result<Vec<Slot>, Error> {
        Ok(self.lock().slots.clone())
    }

    async fn is_slot_listed(&self, machine: &str, _manager: Option<&str>) -> Result<bool, Error> {
        Ok(self.lock().slots.iter().any(|slot| slot.machine == machine))
    }

    async fn port_open(&self, manager: &Manager) -> bool {
        !self.lock().dead_managers.contains(manager.node.as_str())
    }

    async fn collector_alive(&self, manager: &str) -> bool {
        !self.lock().dead_managers.contains(manager)
    }

    async fn wildcards(&self) -> Result<Vec<Wildcard>, Error> {
        let inner = self.lock();
        Ok(inner
            .files
            .values()
            .flat_map(|file| wildcards(&String::from_utf8_lossy(&file.bytes)))
            .collect())
    }
}
