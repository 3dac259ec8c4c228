//! Disks of guests.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aerie_cluster_manager_proto::{Failure, GuestId, Spec};
use aerie_cluster_node::{Device, Disk, Format};
use async_trait::async_trait;

use super::images::{Staged, blocking, copy, file};

/// Most guests of which a host has disks.
const MAX_GUESTS: usize = 65_536;

/// What makes disks.
#[async_trait]
pub trait Disks: std::fmt::Debug + Send + Sync {
    /// Makes a guest's disks. Those that are whole are left as they are: a guest may have written them.
    ///
    /// # Errors
    /// [`Failure`]
    async fn make(&self, spec: &Spec, image: &Staged) -> Result<(), Failure>;

    /// A guest's disks as its machine has them, what it is told at its start among them.
    ///
    /// # Errors
    /// [`Failure`]
    async fn disks(&self, spec: &Spec) -> Result<Vec<Disk>, Failure>;

    /// The disk that was made from the image, to be kept as another.
    ///
    /// # Errors
    /// [`Failure`]
    async fn disk(&self, guest: GuestId) -> Result<Staged, Failure>;

    /// Keeps what a guest is told at its start where it finds it. It holds secrets.
    ///
    /// # Errors
    /// [`Failure`]
    async fn deliver(&self, guest: GuestId, user_data: Vec<u8>) -> Result<(), Failure>;

    /// Guests of which there are disks or parts of them.
    ///
    /// # Errors
    /// [`Failure`]
    async fn list(&self) -> Result<BTreeSet<GuestId>, Failure>;

    /// Removes all disks of a guest, and what it was told.
    ///
    /// # Errors
    /// [`Failure`]
    async fn remove(&self, guest: GuestId) -> Result<(), Failure>;
}

/// Disks as files, a folder for each guest: `DIR/ID/disk.qcow2` or `.raw`, a copy of the image; `DIR/ID/part-NAME.raw`,
/// blank and not formatted, for each partition; `DIR/ID/user-data`, padded to whole sectors with zeros, as the last
/// disk, which the guest reads.
#[derive(Debug)]
pub struct FolderDisks {
    dir: PathBuf,
}

impl FolderDisks {
    /// Disks in this folder, by an absolute path.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn folder(&self, guest: GuestId) -> PathBuf {
        self.dir.join(guest.to_string())
    }
}

const USER_DATA: &str = "user-data";

/// A disk has whole sectors.
const SECTOR: usize = 512;

#[async_trait]
impl Disks for FolderDisks {
    async fn make(&self, spec: &Spec, image: &Staged) -> Result<(), Failure> {
        let (folder, image, size) = (self.folder(spec.guest), image.clone(), spec.disk.0);
        let blank: Vec<_> = spec
            .partitions
            .iter()
            .map(|partition| {
                (
                    folder.join(format!("part-{}.raw", partition.name)),
                    partition.size.0,
                )
            })
            .collect();
        blocking(move || {
            fs::create_dir_all(&folder).map_err(|error| file("make", &folder, &error))?;
            if disk(&folder).is_none() {
                let path = folder.join(disk_name(image.format));
                check_size(&image, size)?;
                let making = folder.join("making");
                copy(&image.path, &making)?;
                if image.format == Format::Raw {
                    // What an image of QEMU's own form has is written in it, and grows in the guest.
                    resize(&making, size)?;
                }
                fs::rename(&making, &path).map_err(|error| file("make", &path, &error))?;
            }
            blank.iter().try_for_each(|(path, size)| resize(path, *size))
        })
        .await
    }

    async fn disks(&self, spec: &Spec) -> Result<Vec<Disk>, Failure> {
        let folder = self.folder(spec.guest);
        let names: Vec<_> = spec
            .partitions
            .iter()
            .map(|partition| format!("part-{}.raw", partition.name))
            .collect();
        blocking(move || {
            let root = disk(&folder).ok_or_else(|| none(&folder))?;
            let writable = |path, format| Disk {
                path,
                format,
                device: Device::Disk,
                read_only: false,
            };
            let mut disks = vec![writable(root.path, root.format)];
            disks.extend(names.iter().map(|name| writable(folder.join(name), Format::Raw)));
            let told = folder.join(USER_DATA);
            if told.is_file() {
                disks.push(Disk {
                    read_only: true,
                    ..writable(told, Format::Raw)
                });
            }
            Ok(disks)
        })
        .await
    }

    async fn disk(&self, guest: GuestId) -> Result<Staged, Failure> {
        let folder = self.folder(guest);
        blocking(move || disk(&folder).ok_or_else(|| none(&folder))).await
    }

    async fn deliver(&self, guest: GuestId, mut user_data: Vec<u8>) -> Result<(), Failure> {
        let folder = self.folder(guest);
        blocking(move || {
            user_data.resize(user_data.len().next_multiple_of(SECTOR), 0);
            let (path, beside) = (folder.join(USER_DATA), folder.join(".user-data.new"));
            let write = || -> std::io::Result<()> {
                let mut options = fs::OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&beside)?;
                file.write_all(&user_data)?;
                file.sync_all()?;
                fs::rename(&beside, &path)
            };
            write().map_err(|error| file("write", &path, &error))
        })
        .await
    }

    async fn list(&self) -> Result<BTreeSet<GuestId>, Failure> {
        let dir = self.dir.clone();
        blocking(move || {
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
                entries => entries.map_err(|error| file("read", &dir, &error))?,
            };
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            guests_of(names).map_err(|error| file("read", &dir, &error))
        })
        .await
    }

    async fn remove(&self, guest: GuestId) -> Result<(), Failure> {
        let folder = self.folder(guest);
        blocking(move || match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(file("remove", &folder, &error)),
            _ => Ok(()),
        })
        .await
    }
}

/// The guests that folders are named after: all, or an error, for one that is not listed counts as gone.
fn guests_of(names: impl Iterator<Item = std::io::Result<OsString>>) -> std::io::Result<BTreeSet<GuestId>> {
    let mut guests = BTreeSet::new();
    for name in names {
        guests.extend(name?.to_str().and_then(|name| name.parse::<GuestId>().ok()));
        if guests.len() > MAX_GUESTS {
            let why = format!("it has folders of more than {MAX_GUESTS} guests");
            return Err(std::io::Error::other(why));
        }
    }
    Ok(guests)
}

fn disk_name(format: Format) -> &'static str {
    match format {
        Format::Raw => "disk.raw",
        Format::Qcow2 => "disk.qcow2",
    }
}

fn disk(folder: &Path) -> Option<Staged> {
    let staged = |format| Staged {
        path: folder.join(disk_name(format)),
        format,
    };
    let found = [Format::Qcow2, Format::Raw].map(staged);
    found.into_iter().find(|disk| disk.path.is_file())
}

fn none(folder: &Path) -> Failure {
    Failure::refused(format!(
        "there is no disk in {}; deploy the member anew",
        folder.display()
    ))
}

fn check_size(image: &Staged, size: u64) -> Result<(), Failure> {
    let length = fs::metadata(&image.path)
        .map_err(|error| file("read", &image.path, &error))?
        .len();
    if length > size {
        return Err(Failure::refused(format!(
            "the image has {length} bytes and the member a disk of {size}; ask for a larger disk"
        )));
    }
    Ok(())
}

/// Makes a file so long, with holes; one that is longer stays.
fn resize(path: &Path, size: u64) -> Result<(), Failure> {
    let mut options = fs::OpenOptions::new();
    let opened = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let resized = opened.and_then(|file| {
        if file.metadata()?.len() < size {
            file.set_len(size)?;
        }
        file.sync_all()
    });
    resized.map_err(|error| file("make", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_disks_is_listed_whole_or_not_at_all() {
        let guest = |number: usize| {
            let number = u128::try_from(number).unwrap();
            Ok(OsString::from(GuestId(number.to_be_bytes()).to_string()))
        };
        let some = [guest(1), Ok("lost+found".into()), guest(2)];
        assert_eq!(guests_of(some.into_iter()).unwrap().len(), 2);
        let broken = [guest(1), Err(ErrorKind::PermissionDenied.into()), guest(2)];
        assert!(guests_of(broken.into_iter()).is_err());
        assert_eq!(guests_of((0..MAX_GUESTS).map(guest)).unwrap().len(), MAX_GUESTS);
        let error = guests_of((0..=MAX_GUESTS).map(guest)).unwrap_err().to_string();
        assert_eq!(error, "it has folders of more than 65536 guests");
    }
}
