//! What is written down of each lab, so that a later process can look into it or remove what it left.
//!
//! Each lab has a folder below the run folder with a state file, the nodes' disks and the logs. Interfaces and
//! rules exist only inside the lab's own namespaces and vanish with their processes, so a lab is gone when its
//! processes are ended and its folder is removed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::process::Process;
use crate::{cache, cgroup, wait};

/// One lab as its state file tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The lab's id, unique among the labs of this machine.
    pub id: String,
    /// The name that its maker gave it.
    pub name: String,
    /// Whether it was made to outlive its maker.
    pub keep: bool,
    /// The process that made it.
    pub owner: Process,
    /// The processes that hold the namespaces of routers and plain hosts.
    pub holders: Vec<Process>,
    /// The first process of each node that runs.
    pub nodes: BTreeMap<String, Process>,
}

impl State {
    fn file(dir: &Path) -> PathBuf {
        dir.join("state.json")
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.persist(Self::file(dir))?;
        Ok(())
    }

    fn load(dir: &Path) -> Result<Self> {
        let path = Self::file(dir);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is not a lab's state", path.display()))
    }

    fn processes(&self) -> impl Iterator<Item = Process> {
        self.nodes.values().chain(&self.holders).copied()
    }

    /// Whether somebody still uses the lab: its maker, or, where it was made to be kept, whoever looks into it.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.owner.alive() || (self.keep && self.processes().any(Process::alive))
    }
}

/// The folder of all labs of this machine: `$AERIE_LAB_DIR`, else `/var/tmp/aerie-lab`.
#[must_use]
pub fn run_dir() -> PathBuf {
    std::env::var_os("AERIE_LAB_DIR").map_or_else(|| PathBuf::from("/var/tmp/aerie-lab"), PathBuf::from)
}

/// The labs of this machine.
///
/// # Errors
/// When the run folder cannot be read.
pub fn labs() -> Result<Vec<State>> {
    let run = run_dir();
    if !run.exists() {
        return Ok(Vec::new());
    }
    let mut labs = Vec::new();
    for entry in fs::read_dir(&run).with_context(|| format!("cannot read {}", run.display()))? {
        labs.extend(State::load(&entry?.path()).ok());
    }
    Ok(labs)
}

/// Removes a lab: ends its processes by their ids and deletes its folder.
///
/// # Errors
/// When the folder cannot be deleted.
pub fn remove(lab: &State) -> Result<()> {
    for process in lab.processes() {
        process.signal(Signal::SIGKILL);
    }
    wait::wait_until(Duration::from_secs(10), "the lab's processes to end", || {
        Ok((!lab.processes().any(Process::alive)).then_some(()))
    })?;
    cgroup::remove(&lab.id)?;
    remove_dir(&run_dir().join(&lab.id))
}

/// Removes every lab whose maker is gone and that was not made to be kept. Returns their ids.
///
/// # Errors
/// When something cannot be removed.
pub fn reap() -> Result<Vec<String>> {
    let run = make_run_dir()?;
    let _lock = lock(&run)?;
    let mut reaped = Vec::new();
    for entry in fs::read_dir(&run)? {
        let dir = entry?.path();
        if !dir.is_dir() {
            continue;
        }
        // Folders and their state files are made together under the lock: one without the other is an
        // unfinished removal.
        match State::load(&dir) {
            Ok(lab) if lab.in_use() => continue,
            Ok(lab) => remove(&lab)?,
            Err(_) => remove_dir(&dir)?,
        }
        reaped.extend(dir.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    Ok(reaped)
}

/// Makes the folder of a new lab and writes its state down.
pub(crate) fn register(name: &str, keep: bool) -> Result<(PathBuf, State)> {
    let run = make_run_dir()?;
    let _lock = lock(&run)?;
    let pid = std::process::id();
    let id = (0..)
        .map(|number| format!("{pid}-{number}"))
        .find(|id| !run.join(id).exists())
        .context("no free name for a lab")?;
    let dir = run.join(&id);
    for folder in ["nodes", "logs"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    let state = State {
        id,
        name: name.to_owned(),
        keep,
        owner: Process::own(),
        holders: Vec::new(),
        nodes: BTreeMap::new(),
    };
    state.save(&dir)?;
    Ok((dir, state))
}

fn make_run_dir() -> Result<PathBuf> {
    let run = run_dir();
    fs::create_dir_all(&run).with_context(|| format!("cannot make {}", run.display()))?;
    Ok(run)
}

fn lock(run: &Path) -> Result<impl Sized> {
    cache::lock(&run.join("lock"), || ())
}

/// Deletes a lab's folder. Its overlays are unmounted by then, but the kernel may still be at it.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    wait::wait_until(
        Duration::from_secs(10),
        &format!("{} to be deleted", dir.display()),
        || match fs::remove_dir_all(dir) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(())),
            Err(error) => Err(error.into()),
        },
    )
}
