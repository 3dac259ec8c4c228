//! Images: which guest has which, whether they may be used, and whether one has changed.
//!
//! QEMU locks the images that it has open. That does not do for a guest that is suspended, whose disks nobody may
//! write either, and its words name no guest; so the driver keeps its own list.
//!
//! An image may be on a server that does not answer, and whoever asks for it then waits without end. So each guest's
//! images are looked at by a thread beside ([`Looks`]), one after the other and for so long only, and never while
//! somebody has the list.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::{Definition, Disk, Error, Format, GuestId};

/// How long an image's file system may take to say something. A server that was restarted answers again by then.
pub(super) const LOOK: Duration = Duration::from_secs(10);

/// How long an image may take to reach the disk: QEMU has flushed it before.
const SETTLE: Duration = Duration::from_secs(60);

/// A file, by whatever name.
pub(super) type FileId = (u64, u64);

/// An image that a guest has, or wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    /// Which file it is. `None` if that could not be seen.
    pub(super) file: Option<FileId>,
    pub(super) writable: bool,
}

impl Image {
    fn unseen(disk: &Disk) -> Self {
        Self {
            path: disk.path.clone(),
            file: None,
            writable: disk.writable(),
        }
    }

    fn excludes(&self, other: &Self) -> bool {
        let same = self.path == other.path || (self.file.is_some() && self.file == other.file);
        same && (self.writable || other.writable)
    }
}

/// A guest's images, opened, in the order of its disks.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) images: Vec<Image>,
    pub(super) files: Vec<Arc<File>>,
    /// Those that it writes, as they are: of the files themselves, whatever has their names by now.
    pub(super) stamps: Vec<Stamp>,
}

impl Opened {
    /// Which files the guest writes, in the order of the disks.
    pub(super) fn written(&self) -> Vec<FileId> {
        let written = self.images.iter().filter(|image| image.writable);
        written.filter_map(|image| image.file).collect()
    }
}

/// The images of a definition, by their paths alone.
pub(super) fn of(definition: &Definition) -> Vec<Image> {
    definition.disks.iter().map(Image::unseen).collect()
}

/// Who has which image. Some may read the same one; who writes has it alone.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<BTreeMap<GuestId, Vec<Image>>>);

impl Claims {
    /// Lets a guest have its images, all or none.
    pub(super) fn claim(&self, id: GuestId, images: Vec<Image>) -> Result<(), Error> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refuse_second(&claims, id, &images)?;
        claims.insert(id, images);
        Ok(())
    }

    /// Notes that a guest has its images, as it has whether or not another one has them too; which is the error.
    pub(super) fn note(&self, id: GuestId, images: Vec<Image>) -> Result<(), Error> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = refuse_second(&claims, id, &images);
        claims.insert(id, images);
        alone
    }

    /// A guest does not need its images any more.
    pub(super) fn release(&self, id: GuestId) {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        claims.remove(&id);
    }
}

fn refuse_second(claims: &BTreeMap<GuestId, Vec<Image>>, id: GuestId, wanted: &[Image]) -> Result<(), Error> {
    for image in wanted {
        let other = claims
            .iter()
            .find(|(other, had)| **other != id && had.iter().any(|had| had.excludes(image)));
        if let Some((by, _)) = other {
            return Err(Error::ImageInUse {
                id,
                path: image.path.clone(),
                by: *by,
            });
        }
    }
    Ok(())
}

/// Looks at one guest's images, each within a time. A look that does not come back keeps its thread until it does;
/// there is no second one of the guest meanwhile, so that a file system that hangs costs a thread for each guest at most.
#[derive(Debug, Clone)]
pub(super) struct Looks {
    id: GuestId,
    one: Arc<Semaphore>,
}

impl Looks {
    pub(super) fn new(id: GuestId) -> Self {
        Self {
            id,
            one: Arc::new(Semaphore::new(1)),
        }
    }

    /// Which files a guest's images are, as far as that can be seen; and whether all file systems have answered.
    pub(super) async fn identify(&self, mut images: Vec<Image>) -> (Vec<Image>, bool) {
        let mut answered = true;
        for image in &mut images {
            let seen = self
                .look(&image.path, LOOK, |path| Ok(file_id(&fs::metadata(path)?)))
                .await;
            match seen {
                Ok(file) => image.file = Some(file),
                Err(Error::ImageSilent { .. }) => answered = false,
                // Said by whoever opens it.
                Err(_) => {}
            }
        }
        (images, answered)
    }

    /// Opens the images and looks whether they may be used.
    pub(super) async fn open(&self, definition: &Definition) -> Result<Opened, Error> {
        let mut opened = Opened {
            images: of(definition),
            files: Vec::new(),
            stamps: Vec::new(),
        };
        for (image, disk) in opened.images.iter_mut().zip(&definition.disks) {
            let (writable, format) = (disk.writable(), disk.format);
            let open = move |path: &Path| open(path, writable, format);
            let (meta, file) = self.look(&image.path, LOOK, open).await?;
            image.file = Some(file_id(&meta));
            opened.files.push(Arc::new(file));
            if writable {
                opened.stamps.push(Stamp::of(&image.path, &meta));
            }
        }
        Ok(opened)
    }

    /// The images that a guest writes, as they are once they have reached the disk with the times at which they were
    /// changed: QEMU flushes what is in them, and a power cut could take those times back. `written` are the files that
    /// QEMU has open, if that was noted: what has the name of one by now may be another, and is not what the guest wrote.
    pub(super) async fn settle(
        &self,
        definition: &Definition,
        written: Option<&[FileId]>,
    ) -> Result<Vec<Stamp>, Error> {
        let mut stamps = Vec::new();
        for disk in definition.disks.iter().filter(|disk| disk.writable()) {
            let settle = |path: &Path| {
                let file = File::open(path)?;
                file.sync_all()?;
                file.metadata()
            };
            let meta = self.look(&disk.path, SETTLE, settle).await?;
            if written.is_some_and(|written| written.get(stamps.len()) != Some(&file_id(&meta))) {
                return Err(Error::Image {
                    id: self.id,
                    path: disk.path.clone(),
                    source: io::Error::other(
                        "it was replaced by another file while the guest had it; put the one of then back, or stop \
                         the guest instead",
                    ),
                });
            }
            stamps.push(Stamp::of(&disk.path, &meta));
        }
        Ok(stamps)
    }

    /// The images that a guest writes, as they are by now: of the files that were opened.
    pub(super) async fn again(&self, opened: &Opened) -> Result<Vec<Stamp>, Error> {
        let mut stamps = Vec::new();
        for (image, file) in opened.images.iter().zip(&opened.files) {
            if image.writable {
                let file = Arc::clone(file);
                let meta = self.look(&image.path, LOOK, move |_| file.metadata()).await?;
                stamps.push(Stamp::of(&image.path, &meta));
            }
        }
        Ok(stamps)
    }

    async fn look<T: Send + 'static>(
        &self,
        path: &Path,
        limit: Duration,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (id, path) = (self.id, path.to_owned());
        let silent = |path| Error::ImageSilent {
            id,
            path,
            waited: limit,
        };
        let Ok(one) = Arc::clone(&self.one).try_acquire_owned() else {
            return Err(silent(path));
        };
        let (reply, answer) = oneshot::channel();
        let at = path.clone();
        // A thread of its own: those of the runtime are for what ends.
        let begun = std::thread::Builder::new()
            .name("image".to_owned())
            .spawn(move || {
                let seen = work(&at);
                drop(one);
                let _ = reply.send(seen);
            });
        let seen = match begun {
            Ok(_) => match timeout(limit, answer).await {
                Ok(seen) => seen.unwrap_or_else(|_| Err(io::Error::other("it was not looked at to the end"))),
                Err(_) => return Err(silent(path)),
            },
            Err(error) => Err(error),
        };
        seen.map_err(|source| Error::Image { id, path, source })
    }
}

fn file_id(meta: &fs::Metadata) -> FileId {
    (meta.dev(), meta.ino())
}

/// Opens an image for QEMU, that is given what was looked at: the path may name something else by then.
fn open(path: &Path, writable: bool, format: Format) -> io::Result<(fs::Metadata, File)> {
    // To open a pipe is to wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let file = File::options().read(true).write(writable).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if format == Format::Qcow2 {
        let mut header = Vec::new();
        (&file).take(QCOW2_HEADER).read_to_end(&mut header)?;
        check_qcow2(&header).map_err(io::Error::other)?;
    }
    Ok((meta, file))
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

impl Stamp {
    fn of(path: &Path, meta: &fs::Metadata) -> Self {
        Self {
            path: path.to_owned(),
            inode: meta.ino(),
            bytes: meta.len(),
            changed_secs: meta.mtime(),
            changed_nanos: meta.mtime_nsec(),
        }
    }

    /// The image, which its guest writes.
    pub(super) fn image(&self) -> Image {
        Image {
            path: self.path.clone(),
            file: None,
            writable: true,
        }
    }
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

    async fn seen(guest: &Definition) -> Vec<Image> {
        Looks::new(guest.id).identify(of(guest)).await.0
    }

    #[tokio::test]
    async fn an_image_has_one_writer_or_many_readers_under_all_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("disk"), dir.path().join("link"));
        fs::write(&path, "x").unwrap();
        fs::hard_link(&path, &link).unwrap();
        let claims = Claims::default();
        for (number, name) in [(1, &path), (2, &link)] {
            let reader = guest(number, &[(name, true)]);
            claims.claim(reader.id, seen(&reader).await).unwrap();
        }
        let writer = guest(3, &[(&link, false)]);
        let images = seen(&writer).await;
        let error = claims.claim(writer.id, images.clone()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("link: guest {} has it", guest(1, &[]).id)),
            "{error}"
        );
        claims.release(guest(1, &[]).id);
        claims.release(guest(2, &[]).id);
        for _ in 0..2 {
            claims.claim(writer.id, images.clone()).unwrap();
        }
        let reader = guest(1, &[(&path, true)]);
        assert!(claims.claim(reader.id, seen(&reader).await).is_err());
        // One that cannot be seen is had by its name, and what is had is noted even if it is had twice.
        claims.release(writer.id);
        claims.note(writer.id, of(&writer)).unwrap();
        assert!(claims.claim(guest(4, &[]).id, images.clone()).is_err());
        assert!(claims.note(guest(4, &[]).id, images.clone()).is_err());
        claims.release(writer.id);
        assert!(claims.claim(writer.id, images).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_whose_file_system_hangs_is_named_and_holds_one_thread() {
        let path = Path::new("/srv/disk.img");
        let looks = Looks::new(GuestId(uuid::Uuid::from_u128(1)));
        let (answer, server) = std::sync::mpsc::channel::<()>();
        let began = tokio::time::Instant::now();
        let hangs = looks.look(path, LOOK, move |_| Ok(server.recv()));
        let error = hangs.await.unwrap_err().to_string();
        assert!(
            error.contains("/srv/disk.img: its file system has not answered for 10 s"),
            "{error}"
        );
        assert_eq!(began.elapsed(), LOOK);
        let again = looks.look(path, LOOK, |_| Ok(()));
        assert!(matches!(again.await, Err(Error::ImageSilent { .. })));
        assert_eq!(began.elapsed(), LOOK, "there is nothing to wait for");
        // It answers again.
        answer.send(()).unwrap();
        drop(looks.one.acquire().await.unwrap());
    }

    #[tokio::test]
    async fn a_pipe_is_no_image_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let guest = guest(1, &[(&path, true)]);
        let error = Looks::new(guest.id).open(&guest).await.unwrap_err().to_string();
        assert!(error.contains("pipe: it is no regular file"), "{error}");
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

    #[tokio::test]
    async fn an_image_that_was_written_is_told_from_one_that_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "x").unwrap();
        let guest = guest(1, &[(&path, false)]);
        let looks = Looks::new(guest.id);
        let opened = looks.open(&guest).await.unwrap();
        let written = opened.written();
        let before = looks.settle(&guest, Some(&written)).await.unwrap();
        assert_eq!(changed(&before, &opened.stamps), None);
        fs::write(&path, "xy").unwrap();
        let now = looks.open(&guest).await.unwrap();
        assert_eq!(changed(&before, &now.stamps), Some(path));
    }

    #[tokio::test]
    async fn what_has_an_images_name_by_now_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("disk"), dir.path().join("other"));
        fs::write(&path, "x").unwrap();
        fs::write(&other, "y").unwrap();
        let guest = guest(1, &[(&path, false)]);
        let looks = Looks::new(guest.id);
        let written = looks.open(&guest).await.unwrap().written();
        fs::rename(&other, &path).unwrap();
        let error = looks
            .settle(&guest, Some(&written))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("disk: it was replaced"), "{error}");
        // An earlier release did not note which it was.
        looks.settle(&guest, None).await.unwrap();
    }
}
