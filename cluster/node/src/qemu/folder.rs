//! What is kept of a guest on the disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::images::{FileId, Image, Stamp};
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
    /// The images that the process writes, in the order of the disks: what has their names may be replaced. An earlier
    /// release did not note them.
    #[serde(default)]
    pub(super) written: Option<Vec<FileId>>,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            version: VERSION,
            phase: Phase::Defined,
            process: None,
            hardware: None,
            written: None,
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

    fn definition(&self) -> PathBuf {
        self.path.join("definition.json")
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
        // One that was tried before, and took too long, may have come so far.
        if self.path.exists() {
            files::rename(&self.path, &gone)?;
        }
        crate::crash::point("destroy: renamed");
        files::remove_folder(&gone)
    }

    fn passing(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{PASSING}{name}"))
    }

    /// What is kept of a guest, or what of that can be read.
    fn read(&self, id: GuestId) -> Result<(Definition, Run), Box<Damage>> {
        match (self.read_definition(id), self.read_run()) {
            (Ok(definition), Ok(run)) => Ok((definition, run)),
            (definition, run) => {
                let why = [definition.as_ref().err(), run.as_ref().err()];
                let why: Vec<_> = why.into_iter().flatten().map(Error::to_string).collect();
                let mut images = images_in(&self.definition());
                if let Ok(manifest) = self.manifest() {
                    images.extend(manifest.disks.iter().map(Stamp::image));
                }
                Err(Box::new(Damage {
                    why: why.join("; "),
                    definition: definition.ok(),
                    run: run.unwrap_or_default(),
                    images,
                }))
            }
        }
    }

    fn read_definition(&self, id: GuestId) -> Result<Definition, Error> {
        let file = self.definition();
        let damaged = |why: String| Error::Damaged {
            path: file.clone(),
            why,
        };
        let definition: Option<Definition> = files::read_json(&file)?;
        let definition = definition.ok_or_else(|| damaged("it is missing".to_owned()))?;
        if definition.id != id {
            return Err(damaged(format!("it is of guest {}", definition.id)));
        }
        definition.check().map_err(|error| damaged(error.to_string()))?;
        Ok(definition)
    }

    fn read_run(&self) -> Result<Run, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // Another version may have any form.
        if let Ok(Some(Versioned { version })) = files::read_json(&self.run()) {
            check_version(version, &self.run())?;
        }
        Ok(files::read_json(&self.run())?.unwrap_or_default())
    }

    pub(super) fn write_run(&self, run: &Run) -> Result<(), Error> {
        files::write_json(&self.run(), run)
    }

    /// Begins to write a memory. A guest that was destroyed meanwhile has no folder any more, and gets none.
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

/// A guest that a folder has.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: GuestId,
    pub(super) folder: Folder,
    /// What it is made of, and what was being done to it; or what of that can be read.
    pub(super) kept: Result<(Definition, Run), Box<Damage>>,
}

/// What can be read of a guest whose files are damaged.
#[derive(Debug)]
pub(super) struct Damage {
    /// What is wrong, and where.
    pub(super) why: String,
    pub(super) definition: Option<Definition>,
    pub(super) run: Run,
    /// The images that it may have.
    pub(super) images: Vec<Image>,
}

/// All guests of a folder. What was being made or removed when a driver was killed is removed.
pub(super) fn find(dir: &Path) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let path = entry.map_err(Error::file("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PASSING) {
            if let Err(error) = files::remove_folder(&path) {
                tracing::warn!(%error, "what was being made or removed is left");
            }
            continue;
        }
        // Whatever else somebody put here is not ours.
        let Ok(id) = name.parse::<GuestId>() else {
            continue;
        };
        if id.to_string() != name || !path.is_dir() {
            continue;
        }
        let folder = Folder { path };
        let kept = folder.read(id);
        found.push(Found { id, folder, kept });
    }
    found.sort_by_key(|found| found.id);
    Ok(found)
}

/// The images in what may have been a definition.
fn images_in(path: &Path) -> Vec<Image> {
    let Ok(Some(value)) = files::read_json::<Value>(path) else {
        return Vec::new();
    };
    let disks = value["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let image = |disk: &Value| {
        let read_only = disk["read_only"] == true || disk["device"] == "cdrom";
        Some(Image {
            path: disk["path"].as_str()?.into(),
            file: None,
            writable: !read_only,
        })
    };
    disks.iter().filter_map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_memory_of_a_guest_that_was_destroyed_makes_no_folder_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path(), GuestId(uuid::Uuid::from_u128(1)));
        fs::create_dir(folder.path()).unwrap();
        folder.begin_suspending().unwrap();
        folder.remove().unwrap();
        let error = folder.begin_suspending().unwrap_err().to_string();
        assert!(
            error.contains("cannot make") && error.contains("suspending"),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // What is gone is removed.
        folder.remove().unwrap();
    }

    #[test]
    fn no_definition_makes_it_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("definition.json");
        for (text, images) in [
            ("[]", 0),
            ("7", 0),
            ("{\"disks\": {\"path\": 1}}", 0),
            (
                "{\"disks\": [[], 7, {\"path\": 7}, {\"path\": \"/a\", \"device\": []}]}",
                1,
            ),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(images_in(&path).len(), images, "{text}");
        }
    }

    #[test]
    fn what_can_be_read_of_a_damaged_guest_is() {
        let dir = tempfile::tempdir().unwrap();
        let id = GuestId(uuid::Uuid::from_u128(1));
        let folder = Folder::new(dir.path(), id);
        fs::create_dir(folder.path()).unwrap();
        fs::write(dir.path().join("00000000000000000000000000000002"), "").unwrap();
        fs::write(dir.path().join(id.to_string().replace('1', "2")), "").unwrap();
        fs::write(dir.path().join(format!("{PASSING}{id}")), "").unwrap();
        let found = || {
            let mut found = find(dir.path()).unwrap();
            assert_eq!((found.len(), found[0].id), (1, id));
            found.remove(0).kept
        };
        let damaged = |expected: &str, images: usize| {
            let damage = found().unwrap_err();
            assert!(damage.why.contains(expected), "{}", damage.why);
            assert_eq!(damage.images.len(), images, "{expected}");
            damage
        };
        damaged("definition.json is damaged: it is missing", 0);
        let definition = folder.path().join("definition.json");
        let whole = json!({
            "id": id, "name": "a", "memory": 16, "cpus": 1,
            "disks": [{"path": "/d", "format": "raw"}, {"path": "/c", "format": "raw", "device": "cdrom"}],
        });
        let changed = |key: &str, value: Value| {
            let mut changed = whole.clone();
            changed[key] = value;
            fs::write(&definition, changed.to_string()).unwrap();
        };
        changed("colour", json!(1));
        let damage = damaged("unknown field `colour`", 2);
        assert!(damage.images[0].writable && !damage.images[1].writable);
        changed("memory", json!(0));
        damaged("without memory cannot run", 2);
        changed("id", json!(uuid::Uuid::from_u128(2)));
        damaged("it is of guest 00000000-0000-0000-0000-000000000002", 2);
        fs::write(&definition, "{\"disks\"").unwrap();
        damaged("EOF", 0);
        changed("cpus", json!(1));
        assert!(found().is_ok());
        fs::write(folder.run(), "").unwrap();
        let damage = damaged("run.json is damaged: EOF", 2);
        assert_eq!(damage.definition.unwrap().name.as_str(), "a");
        let later = json!({"version": VERSION + 1, "phase": "sleeping"});
        fs::write(folder.run(), later.to_string()).unwrap();
        damaged("it is of version 2, and this release knows 1", 2);
    }
}
