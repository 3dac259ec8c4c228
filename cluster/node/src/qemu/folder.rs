//! What is kept of a guest on the disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::images::Stamp;
use crate::process::ProcessId;
use crate::{Definition, End, Error, GuestId, files};

/// The form of the files. A later release that changes it reads this one too.
const VERSION: u32 = 1;

/// What the name of a folder begins with whose guest is being made, or has been destroyed.
const PASSING: &str = ".passing-";

/// What is being done to a guest, or was done last. Written before it is done; [`super::recover`] says what follows
/// from it when the driver was killed meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// Nothing yet.
    Defined,
    /// It is being started, and is to run.
    Starting,
    /// It is up. Whether it runs, QEMU knows.
    Live,
    /// Its memory is being written.
    Suspending { ran: bool },
    /// Its memory is being read.
    Restoring { ran: bool },
    /// It has ended, or is to.
    Ended(End),
    /// It has ended otherwise, or is to.
    Crashed { why: String },
}

/// What a guest's QEMU makes of the host. A memory fits no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hardware {
    /// The kind of machine, with its version.
    pub(super) machine: String,
    /// The kind of processor, and what runs it.
    pub(super) processor: String,
}

/// What is being done to a guest, and its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Run {
    version: u32,
    pub(super) phase: Phase,
    /// The process, once it was told apart.
    pub(super) process: Option<ProcessId>,
    /// What the process was started as: by a QEMU of then, which may have been replaced since.
    pub(super) hardware: Option<Hardware>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            version: VERSION,
            phase: Phase::Defined,
            process: None,
            hardware: None,
        }
    }
}

/// What a memory belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    version: u32,
    /// What it runs on.
    pub(super) hardware: Hardware,
    /// How long the memory's file is in bytes.
    pub(super) bytes: u64,
    /// Whether the guest ran.
    pub(super) ran: bool,
    /// The disks that it writes, as they were.
    pub(super) disks: Vec<Stamp>,
}

impl Manifest {
    pub(super) fn new(hardware: Hardware, bytes: u64, ran: bool, disks: Vec<Stamp>) -> Self {
        Self {
            version: VERSION,
            hardware,
            bytes,
            ran,
            disks,
        }
    }
}

/// A guest's folder.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(super) fn new(dir: &Path, id: GuestId) -> Self {
        Self {
            path: dir.join(id.to_string()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn alive(&self) -> PathBuf {
        self.path.join("alive")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path.join("qmp.sock")
    }

    pub(super) fn pid(&self) -> PathBuf {
        self.path.join("qemu.pid")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("qemu.log")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    pub(super) fn suspending(&self) -> PathBuf {
        self.path.join("suspending")
    }

    pub(super) fn suspended(&self) -> PathBuf {
        self.path.join("suspended")
    }

    /// The file with a memory, in one of the above.
    pub(super) fn memory(within: &Path) -> PathBuf {
        within.join("memory")
    }

    fn used(&self) -> PathBuf {
        self.path.join("used")
    }

    fn run(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// Makes the folder with its definition, all at once.
    pub(super) fn create(&self, definition: &Definition) -> Result<(), Error> {
        let new = self.passing();
        files::remove_folder(&new)?;
        files::private_folder(&new)?;
        files::write_json(&new.join("definition.json"), definition)?;
        crate::crash::point("define: written");
        // A folder that has something in it is not replaced.
        files::rename(&new, &self.path)
    }

    /// Forgets the guest.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let gone = self.passing();
        files::remove_folder(&gone)?;
        files::rename(&self.path, &gone)?;
        crate::crash::point("destroy: renamed");
        files::remove_folder(&gone)
    }

    fn passing(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{PASSING}{name}"))
    }

    pub(super) fn read_run(&self) -> Result<Run, Error> {
        let run: Run = files::read_json(&self.run())?.unwrap_or_default();
        check_version(run.version, &self.run())?;
        Ok(run)
    }

    pub(super) fn write_run(&self, run: &Run) -> Result<(), Error> {
        files::write_json(&self.run(), run)
    }

    /// Begins to write a memory.
    pub(super) fn begin_suspending(&self) -> Result<PathBuf, Error> {
        let path = self.suspending();
        files::remove_folder(&path)?;
        files::private_folder(&path)?;
        Ok(path)
    }

    /// A memory has reached the disk: from now on the guest is suspended.
    pub(super) fn commit_suspended(&self, manifest: &Manifest) -> Result<(), Error> {
        files::write_json(&self.suspending().join("manifest.json"), manifest)?;
        crate::crash::point("suspend: written");
        files::rename(&self.suspending(), &self.suspended())
    }

    /// What the memory is of that the guest is suspended with.
    pub(super) fn manifest(&self) -> Result<Manifest, Error> {
        let path = self.suspended().join("manifest.json");
        let manifest: Manifest = files::read_json(&path)?.ok_or_else(|| Error::Damaged {
            path: path.clone(),
            why: "it is missing".to_owned(),
        })?;
        check_version(manifest.version, &path)?;
        Ok(manifest)
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.suspended().exists()
    }

    /// Uses up the memory: from now on the guest is not suspended any more.
    pub(super) fn use_up_suspended(&self) -> Result<(), Error> {
        files::remove_folder(&self.used())?;
        files::rename(&self.suspended(), &self.used()).inspect_err(|_| {
            // What is not used up for good is still there.
            let _ = fs::rename(self.used(), self.suspended());
        })
    }

    /// Makes a memory the guest's again that was used up, and that nothing was run from.
    pub(super) fn give_back_used(&self) -> Result<(), Error> {
        files::rename(&self.used(), &self.suspended())
    }

    /// Removes a memory that was used up.
    pub(super) fn remove_used(&self) -> Result<(), Error> {
        files::remove_folder(&self.used())
    }

    /// Removes what no memory is restored from.
    pub(super) fn clean(&self) -> Result<(), Error> {
        files::remove_folder(&self.suspending())?;
        self.remove_used()
    }
}

fn check_version(version: u32, path: &Path) -> Result<(), Error> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::Damaged {
        path: path.to_owned(),
        why: format!("it is of version {version}, and this release knows {VERSION}"),
    })
}

/// All guests of a folder. What was being made or removed when a driver was killed is removed.
pub(super) fn find(dir: &Path) -> Result<Vec<(Folder, Definition)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let path = entry.map_err(Error::file("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PASSING) {
            files::remove_folder(&path)?;
            continue;
        }
        // Whatever else somebody put here is not ours.
        let Ok(id) = name.parse::<GuestId>() else {
            continue;
        };
        let file = path.join("definition.json");
        let definition: Definition = files::read_json(&file)?.ok_or_else(|| Error::Damaged {
            path: file.clone(),
            why: "it is missing".to_owned(),
        })?;
        if definition.id != id {
            return Err(Error::Damaged {
                path: file,
                why: format!("it is of guest {}", definition.id),
            });
        }
        definition.check()?;
        found.push((Folder { path }, definition));
    }
    found.sort_by_key(|(_, definition)| definition.id);
    Ok(found)
}
