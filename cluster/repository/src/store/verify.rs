//! Whether images are what they were.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use aerie_cluster_proto::description::Image;
use serde::{Deserialize, Serialize};

use super::{Store, index};
use crate::limits::MAX_LISTED;
use crate::manifest::ManifestId;
use crate::{Digest, Error, files};

/// What was found of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The image.
    pub digest: Digest,
    /// Its file; where it is now, if it was damaged.
    pub path: PathBuf,
    /// How many chunks it has.
    pub chunks: u32,
    /// How many bytes each chunk has.
    pub chunk_size: u32,
    /// How many chunks are damaged or cannot be read.
    pub damaged: u32,
    /// The first of these: chunk `n` begins at byte `n * chunk_size`.
    pub listed: Vec<u32>,
}

impl Verified {
    /// Whether all is as it was.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.damaged == 0
    }
}

impl Store {
    /// Reads an image and compares each chunk with its digest. A damaged image is taken out of use: it keeps its names,
    /// and whoever wants it is told, until the same content is put again.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Manifest`] if the index is damaged, [`Error::File`] if the file cannot be moved, or
    /// [`Error::Database`]. What cannot be read of the image is no error but damage.
    pub fn verify(&self, image: &Image) -> Result<Verified, Error> {
        let info = self.find(image)?;
        let manifest = self.manifest(&info.digest.into())?;
        let (path, aside) = (self.image_path(info.digest), self.part("quarantine", info.digest));
        let (path, file) = match File::open(&path) {
            Ok(file) => (path, Some(file)),
            Err(_) => (aside.clone(), File::open(&aside).ok()),
        };
        let mut buffer = vec![0; manifest.chunk_size() as usize];
        let mut found = Verified {
            digest: info.digest,
            path,
            chunks: manifest.chunks(),
            chunk_size: manifest.chunk_size(),
            damaged: 0,
            listed: Vec::new(),
        };
        for chunk in 0..manifest.chunks() {
            let sound = manifest.place(chunk).is_some_and(|(at, length)| {
                let bytes = buffer.get_mut(..length).zip(file.as_ref());
                bytes.is_some_and(|(bytes, file)| {
                    file.read_exact_at(bytes, at).is_ok() && manifest.is_chunk(chunk, bytes)
                })
            });
            if !sound {
                found.damaged += 1;
                if found.listed.len() < MAX_LISTED {
                    found.listed.push(chunk);
                }
            }
        }
        if !found.is_sound() && !info.damaged {
            self.quarantine(&mut found, info.manifest, file.as_ref(), aside)?;
        }
        Ok(found)
    }

    fn quarantine(
        &self,
        found: &mut Verified,
        manifest: ManifestId,
        read: Option<&File>,
        aside: PathBuf,
    ) -> Result<(), Error> {
        let path = self.image_path(found.digest);
        self.manifests.forget(manifest);
        let inode = |file: std::io::Result<std::fs::Metadata>| file.ok().map(|meta| meta.ino());
        self.index.write(|tx| {
            // It may have been mended since it was read.
            if inode(std::fs::metadata(&path)) != read.and_then(|file| inode(file.metadata())) {
                return Ok(());
            }
            tx.execute(
                "UPDATE images SET damaged = 1 WHERE digest = ?1",
                [found.digest.0],
            )
            .map_err(Error::database("note damage"))?;
            Ok(())
        })?;
        self.index.write(|tx| {
            let info = index::image_of(tx, found.digest).map_err(Error::database("look an image up"))?;
            if info.is_some_and(|info| info.damaged) && path.exists() {
                files::rename(&path, &aside)?;
                found.path = aside;
            }
            Ok(())
        })
    }
}
