//! Images: where they come from, and which are on the host.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use aerie_cluster_manager_proto::Failure;
use aerie_cluster_node::Format;
use aerie_cluster_proto::description::Image;
use async_trait::async_trait;
use tokio::sync::Mutex;

/// Most files of a folder that are looked at as images.
const MAX_FILES: usize = 4096;

/// How many bytes of two files are compared at a time.
const PART: usize = 1 << 20;

/// An image on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// Its file, which nobody writes.
    pub path: PathBuf,
    /// Its form.
    pub format: Format,
}

/// Where images come from, and which are on the host.
#[async_trait]
pub trait Images: std::fmt::Debug + Send + Sync {
    /// Which are on the host.
    ///
    /// # Errors
    /// [`Failure`]
    async fn present(&self) -> Result<BTreeSet<Image>, Failure>;

    /// Has an image on the host, whole or not at all. One that is there is no error.
    ///
    /// # Errors
    /// [`Failure`], refused where no repository has the image.
    async fn stage(&self, image: &Image) -> Result<Staged, Failure>;

    /// Keeps a disk as an image in the repository, whole or not at all. One that is there is no error if it is this
    /// disk, for whoever asks may not have had the answer.
    ///
    /// # Errors
    /// [`Failure`], refused where the repository has another under this name.
    async fn keep(&self, disk: &Staged, image: &Image) -> Result<(), Failure>;
}

/// Images as files in a folder that is the repository, copied to another that is the host's: `lab/nfs@2` is
/// `lab+nfs@2.qcow2` or `.raw` in both.
#[derive(Debug)]
pub struct FolderImages {
    repository: PathBuf,
    cache: PathBuf,
    /// Held while an image is copied, so that nobody copies it beside.
    copying: Mutex<()>,
}

impl FolderImages {
    /// Images of a repository, on a host that keeps them in a folder of its own.
    #[must_use]
    pub fn new(repository: impl Into<PathBuf>, cache: impl Into<PathBuf>) -> Self {
        Self {
            repository: repository.into(),
            cache: cache.into(),
            copying: Mutex::new(()),
        }
    }
}

#[async_trait]
impl Images for FolderImages {
    async fn present(&self) -> Result<BTreeSet<Image>, Failure> {
        let cache = self.cache.clone();
        blocking(move || {
            let mut images = BTreeSet::new();
            let entries = match fs::read_dir(&cache) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(images),
                entries => entries.map_err(|error| file("read", &cache, &error))?,
            };
            for entry in entries.take(MAX_FILES).flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let stem = name.strip_suffix(".raw").or(name.strip_suffix(".qcow2"));
                images.extend(stem.and_then(|stem| stem.replace('+', "/").parse().ok()));
            }
            Ok(images)
        })
        .await
    }

    async fn stage(&self, image: &Image) -> Result<Staged, Failure> {
        let held = self.copying.lock().await;
        let (repository, cache) = (self.repository.clone(), self.cache.clone());
        let wanted = image.clone();
        let staged = blocking(move || {
            if let Some(staged) = find(&cache, &wanted) {
                return Ok(staged);
            }
            let Some(original) = find(&repository, &wanted) else {
                return Err(Failure::refused(format!(
                    "there is no image '{wanted}' in {}; put it there, or name another",
                    repository.display()
                )));
            };
            fs::create_dir_all(&cache).map_err(|error| file("make", &cache, &error))?;
            let path = cache.join(original.path.file_name().unwrap_or_default());
            copy(&original.path, &path)?;
            let format = original.format;
            Ok(Staged { path, format })
        })
        .await;
        drop(held);
        staged
    }

    async fn keep(&self, disk: &Staged, image: &Image) -> Result<(), Failure> {
        let held = self.copying.lock().await;
        let (repository, image, disk) = (self.repository.clone(), image.clone(), disk.clone());
        let kept = blocking(move || {
            let path = repository.join(file_name(&image, disk.format));
            match find(&repository, &image) {
                None => copy(&disk.path, &path),
                Some(there) if there.format == disk.format && is_same(&there.path, &disk.path)? => Ok(()),
                Some(_) => Err(Failure::refused(format!(
                    "there is an image '{image}' in {} already; choose another name",
                    repository.display()
                ))),
            }
        })
        .await;
        drop(held);
        kept
    }
}

fn file_name(image: &Image, format: Format) -> String {
    let ending = match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    };
    format!("{}.{ending}", image.to_string().replace('/', "+"))
}

fn find(folder: &Path, image: &Image) -> Option<Staged> {
    let staged = |format| Staged {
        path: folder.join(file_name(image, format)),
        format,
    };
    let found = [Format::Qcow2, Format::Raw].map(staged);
    found.into_iter().find(|staged| staged.path.is_file())
}

/// Whether two files have the same bytes.
fn is_same(one: &Path, other: &Path) -> Result<bool, Failure> {
    let same = || -> std::io::Result<bool> {
        let (one, other) = (fs::File::open(one)?, fs::File::open(other)?);
        let mut left = one.metadata()?.len();
        if other.metadata()?.len() != left {
            return Ok(false);
        }
        let mut parts = [vec![0; PART], vec![0; PART]];
        let [a, b] = &mut parts;
        let (mut one, mut other) = (one, other);
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(PART).min(PART);
            one.read_exact(&mut a[..part])?;
            other.read_exact(&mut b[..part])?;
            if a[..part] != b[..part] {
                return Ok(false);
            }
            left -= part as u64;
        }
        Ok(true)
    };
    same().map_err(|error| file("compare an image with", one, &error))
}

/// Copies a file whole or not at all: the bytes reach the disk before the name does.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let beside = to.with_file_name(format!(".{name}.new"));
    let copied = fs::copy(from, &beside)
        .and_then(|_| fs::File::open(&beside)?.sync_all())
        .and_then(|()| fs::rename(&beside, to));
    copied.map_err(|error| {
        let _ = fs::remove_file(&beside);
        file("copy an image to", to, &error)
    })
}

pub(super) fn file(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!(
        "cannot {what} {}: {error}; check the disk's space and its rights",
        path.display()
    ))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(Failure::failed)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_is_kept_under_a_new_name_alone_and_again_without_error() {
        let dir = tempfile::tempdir().unwrap();
        let images = FolderImages::new(dir.path(), dir.path().join("cache"));
        let disk = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            let format = Format::Raw;
            Staged { path, format }
        };
        let (mine, other) = (disk("mine", b"my disk"), disk("other", b"another"));
        fs::write(dir.path().join("debian.qcow2"), b"my disk").unwrap();
        let kept: Image = "ada/result".parse().unwrap();
        images.keep(&mine, &kept).await.unwrap();
        images.keep(&mine, &kept).await.unwrap();
        for (disk, image) in [(&other, kept), (&mine, "debian".parse().unwrap())] {
            let failure = images.keep(disk, &image).await.unwrap_err();
            assert!(
                failure.why.contains(&format!("there is an image '{image}'"))
                    && failure.why.ends_with("already; choose another name"),
                "{failure}"
            );
        }
        assert_eq!(fs::read(dir.path().join("ada+result.raw")).unwrap(), b"my disk");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    }
}
