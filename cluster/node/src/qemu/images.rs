//! Images: which guest has which, whether they may be used, and whether one has changed.
//!
//! QEMU locks the images that it has open. That does not do for a guest that is suspended, whose disks nobody may
//! write either, and its words name no guest; so the driver keeps its own list.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::{Definition, Error, Format, GuestId};

/// A file, by whatever name.
type FileId = (u64, u64);

/// Who has which image. Some may read the same one; who writes has it alone.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<BTreeMap<GuestId, Vec<(FileId, bool)>>>);

impl Claims {
    /// Lets a guest have its images, all or none.
    pub(super) fn claim(&self, definition: &Definition) -> Result<(), Error> {
        let id = definition.id;
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = Vec::new();
        for disk in &definition.disks {
            let Ok(meta) = fs::metadata(&disk.path) else {
                // Said by whoever opens it.
                continue;
            };
            let file = (meta.dev(), meta.ino());
            let writable = disk.writable();
            let other = claims.iter().find(|(other, files)| {
                **other != id
                    && files
                        .iter()
                        .any(|(had, written)| *had == file && (*written || writable))
            });
            if let Some((by, _)) = other {
                return Err(Error::ImageInUse {
                    id,
                    path: disk.path.clone(),
                    by: *by,
                });
            }
            wanted.push((file, writable));
        }
        claims.insert(id, wanted);
        Ok(())
    }

    /// A guest does not need its images any more.
    pub(super) fn release(&self, id: GuestId) {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        claims.remove(&id);
    }
}

/// Looks whether the images are there and may be used.
pub(super) fn check(definition: &Definition) -> Result<(), Error> {
    for disk in &definition.disks {
        let checked = File::options()
            .read(true)
            .write(disk.writable())
            .open(&disk.path)
            .and_then(|mut file| match disk.format {
                Format::Raw => Ok(()),
                Format::Qcow2 => {
                    let mut header = Vec::new();
                    (&mut file).take(QCOW2_HEADER).read_to_end(&mut header)?;
                    check_qcow2(&header).map_err(io::Error::other)
                }
            });
        checked.map_err(|source| Error::Image {
            id: definition.id,
            path: disk.path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// As much of a qcow2 image as says what it refers to (QEMU's docs/interop/qcow2.txt).
const QCOW2_HEADER: u64 = 104;

/// An image names other files that QEMU opens with it. Whoever made the image could so read any file of the host.
fn check_qcow2(header: &[u8]) -> Result<(), &'static str> {
    let number = |at: usize| {
        let bytes = header.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_be_bytes)
    };
    if header.get(..4) != Some(b"QFI\xfb") {
        return Err("it is no qcow2 image");
    }
    let version = header.get(4..8);
    if number(8) != Some(0) {
        return Err(
            "it is made on top of another image, which it names itself; flatten it with `qemu-img convert`",
        );
    }
    // The third of the features that have to be known: its data are in another file.
    if version != Some(&[0, 0, 0, 2]) && number(72).is_none_or(|features| features & 4 != 0) {
        return Err(
            "its data are in another file, which it names itself; flatten it with `qemu-img convert`",
        );
    }
    Ok(())
}

/// An image as it was: what changes whenever somebody writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stamp {
    path: PathBuf,
    inode: u64,
    bytes: u64,
    changed_secs: i64,
    changed_nanos: i64,
}

/// Has the images that a guest writes reach the disk, with the times at which they were changed: QEMU flushes what is
/// in them, and a power cut could take those times back.
pub(super) fn settle(definition: &Definition) -> io::Result<()> {
    let mut written = definition.disks.iter().filter(|disk| disk.writable());
    written.try_for_each(|disk| File::open(&disk.path)?.sync_all())
}

/// The images that a guest writes, as they are.
pub(super) fn stamps(definition: &Definition) -> io::Result<Vec<Stamp>> {
    let written = definition.disks.iter().filter(|disk| disk.writable());
    written
        .map(|disk| {
            let meta = fs::metadata(&disk.path)?;
            Ok(Stamp {
                path: disk.path.clone(),
                inode: meta.ino(),
                bytes: meta.len(),
                changed_secs: meta.mtime(),
                changed_nanos: meta.mtime_nsec(),
            })
        })
        .collect()
}

/// The first image that is not as it was.
pub(super) fn changed(before: &[Stamp], now: &[Stamp]) -> Option<PathBuf> {
    before
        .iter()
        .find(|stamp| !now.contains(stamp))
        .map(|stamp| stamp.path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Disk, Mib};

    fn guest(number: u128, disks: &[(&std::path::Path, bool)]) -> Definition {
        Definition {
            id: GuestId(uuid::Uuid::from_u128(number)),
            name: "a".parse().unwrap(),
            memory: Mib(16),
            cpus: 1,
            disks: disks
                .iter()
                .map(|(path, read_only)| Disk {
                    path: path.to_path_buf(),
                    format: Format::Raw,
                    device: Device::Disk,
                    read_only: *read_only,
                })
                .collect(),
            nics: Vec::new(),
        }
    }

    #[test]
    fn an_image_has_one_writer_or_many_readers_under_all_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("disk"), dir.path().join("link"));
        fs::write(&path, "x").unwrap();
        fs::hard_link(&path, &link).unwrap();
        let claims = Claims::default();
        claims.claim(&guest(1, &[(&path, true)])).unwrap();
        claims.claim(&guest(2, &[(&link, true)])).unwrap();
        let writer = guest(3, &[(&link, false)]);
        let error = claims.claim(&writer).unwrap_err().to_string();
        assert!(
            error.contains(&format!("link: guest {} has it", guest(1, &[]).id)),
            "{error}"
        );
        claims.release(guest(1, &[]).id);
        claims.release(guest(2, &[]).id);
        claims.claim(&writer).unwrap();
        claims.claim(&writer).unwrap();
        assert!(claims.claim(&guest(1, &[(&path, true)])).is_err());
    }

    #[test]
    fn an_image_that_names_other_files_is_refused() {
        let mut header = [0; 104];
        assert!(check_qcow2(&header).unwrap_err().contains("no qcow2"));
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        check_qcow2(&header).unwrap();
        assert!(check_qcow2(&header[..40]).is_err());
        header[79] = 4;
        assert!(check_qcow2(&header).unwrap_err().contains("data"));
        header[79] = 0;
        header[15] = 0x68;
        assert!(check_qcow2(&header).unwrap_err().contains("on top"));
        // The first version had no features.
        header[15] = 0;
        header[7] = 2;
        check_qcow2(&header[..72]).unwrap();
    }

    #[test]
    fn an_image_that_was_written_is_told_from_one_that_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "x").unwrap();
        let guest = guest(1, &[(&path, false)]);
        let before = stamps(&guest).unwrap();
        assert_eq!(changed(&before, &stamps(&guest).unwrap()), None);
        fs::write(&path, "xy").unwrap();
        assert_eq!(changed(&before, &stamps(&guest).unwrap()), Some(path));
    }
}
