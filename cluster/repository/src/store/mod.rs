//! The store: images in a folder, by the digest of their content.
//!
//! ```text
//! index.sqlite        what there is, its names, who holds it, uploads that have not ended
//! uploads/<digest>    what came so far of an upload, by the digest of all that is sent
//! staging/<digest>    the image that this becomes, before it has been checked
//! images/<digest>     images, by their digests
//! quarantine/<digest> images that were found to be damaged
//! clones/<name>       disks that are built on images
//! ```
//!
//! ```text
//!            begin, append                finish: sent whole and as announced?
//!  client ────────────────► uploads/ ───────────────┐  yes: unpack, look at the format, sync
//!            resumes at the byte           no: forget│
//!                                                    ▼
//!                                                staging/ ──── one change of the index: ────► images/
//!                                                              file and names, or neither
//! ```
//!
//! An upload is known by the digest of what is sent. Whoever was interrupted, the sender, this program or the machine,
//! begins again with the same digest and is told from which byte to go on. After a kill nothing is lost; after a power
//! cut, whatever was not durable is sent again.
//!
//! A file in `images` is there before the index speaks of it, and goes after the index has ceased to. What the index
//! does not speak of is nobody's and goes at the next [`Store::collect`]. Any number of processes may use one store:
//! the names of files change only within a change of the index, of which there is one at a time, and an upload is
//! written by whoever has locked its file.
//!
//! Images never change. A clone is a disk of its own that begins as one; a lease keeps an image from being collected
//! while somebody works with it, and is kept across crashes of its holder until it is released or broken.

mod begun;
mod clones;
mod collect;
mod index;
mod library;
mod upload;
mod verify;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use aerie_cluster_proto::description::Image;
use aerie_types::WallMillis;
use rusqlite::params;
use serde::{Deserialize, Serialize};

pub use clones::ClonedDisk;
pub use collect::Collected;
pub use upload::{Begun, Put, Upload};
pub use verify::Verified;

use crate::limits::{BLOCK, MAX_TEXT};
use crate::manifest::{Manifest, ManifestId, Recent};
use crate::{Digest, Error, Format, files};
use index::Index;

/// How a store is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its folder.
    pub dir: PathBuf,
    /// Most bytes that images and uploads may have together; no bound but the disk's where `None`.
    pub max_bytes: Option<u64>,
    /// How many bytes of the disk are left to others.
    pub keep_free: u64,
}

impl Config {
    /// The usual values: no bound but the disk's, of which 256 MiB are left free.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            max_bytes: None,
            keep_free: 256 << 20,
        }
    }
}

/// What a machine's firmware is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// PC BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

/// What an image needs to boot. All of it is advice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Boot {
    /// The firmware; either where `None`.
    pub firmware: Option<Firmware>,
    /// The least memory in bytes.
    pub memory: Option<u64>,
    /// Whether its agent joins a context.
    pub contextualized: Option<bool>,
}

/// What people say of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Meta {
    /// What it is.
    pub description: String,
    /// Who made it.
    pub created_by: String,
    /// What it needs to boot.
    pub boot: Boot,
}

impl Meta {
    fn check(&self) -> Result<(), Error> {
        check_text("description", &self.description)?;
        check_text("creator", &self.created_by)
    }
}

fn check_text(what: &'static str, text: &str) -> Result<(), Error> {
    if text.len() <= MAX_TEXT && !text.chars().any(|c| c.is_control() && c != '\n') {
        return Ok(());
    }
    Err(Error::BadText { what })
}

/// An image in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// SHA-256 of its content.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: ManifestId,
    /// Its format.
    pub format: Format,
    /// The size of its disk in bytes.
    pub virtual_size: u64,
    /// Its own size in bytes.
    pub stored_size: u64,
    /// What people say of it.
    pub meta: Meta,
    /// When it came.
    pub created_at: WallMillis,
    /// Its names, each with its version, the oldest first.
    pub names: Vec<Image>,
    /// Whether it was found to be damaged, and cannot be had.
    pub damaged: bool,
}

impl ImageInfo {
    /// Whether it has the name, in any version if it is one without.
    fn has_name(&self, wanted: &Image) -> bool {
        self.names.iter().any(|name| match (name, wanted) {
            (
                Image::Named { name, .. },
                Image::Named {
                    name: wanted,
                    version: None,
                },
            ) => name == wanted,
            _ => name == wanted,
        })
    }
}

/// Somebody's hold of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The image.
    pub digest: Digest,
    /// Who.
    pub holder: String,
    /// Since when.
    pub since: WallMillis,
}

/// An image that can be read, though it be removed meanwhile.
#[derive(Debug)]
pub struct Opened {
    /// The image.
    pub info: ImageInfo,
    /// Its file, which is not to be written.
    pub path: PathBuf,
    file: File,
}

impl Opened {
    /// Reads on from a byte; how many bytes it was, zero at the end.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize, Error> {
        self.file
            .read_at(buffer, at)
            .map_err(Error::file("read", &self.path))
    }

    /// Copies all from a byte on; how many bytes it was.
    ///
    /// # Errors
    /// [`Error::File`] of either side.
    pub fn copy_from(&self, mut at: u64, to: &mut impl Write) -> Result<u64, Error> {
        let (mut buffer, start) = (vec![0; BLOCK], at);
        loop {
            let read = self.read_at(&mut buffer, at)?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                return Ok(at - start);
            };
            to.write_all(bytes).map_err(Error::file("copy", &self.path))?;
            at += read as u64;
        }
    }
}

/// Images in a folder. All calls block, some for as long as an image is read.
pub struct Store {
    config: Config,
    index: Index,
    /// The manifests that were asked for last.
    manifests: Recent,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store of a folder, making it if it is not there.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Database`], or [`Error::LaterVersion`].
    pub fn open(config: Config) -> Result<Self, Error> {
        for part in ["", "uploads", "staging", "images", "quarantine", "clones"] {
            files::private_folder(&config.dir.join(part))?;
        }
        let index = Index::open(&config.dir.join("index.sqlite"))?;
        Ok(Self {
            config,
            index,
            manifests: Recent::default(),
        })
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// Every image, by digest.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn list(&self) -> Result<Vec<ImageInfo>, Error> {
        self.index.read("list images", index::images)
    }

    /// The image that is meant: of a name without a version the one that was named last.
    ///
    /// # Errors
    /// [`Error::NoImage`] or [`Error::Database`].
    pub fn find(&self, image: &Image) -> Result<ImageInfo, Error> {
        let found = self.index.read("look an image up", |tx| index::find(tx, image))?;
        found.ok_or_else(|| self.no_image(image))
    }

    /// What an image consists of.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Database`], or [`Error::Manifest`] if the index is damaged.
    pub fn manifest(&self, image: &Image) -> Result<Manifest, Error> {
        let key = self.find(image)?.digest;
        let found = self
            .index
            .read("read a manifest", |tx| index::manifest(tx, "digest", key))?;
        let (bytes, _) = found.ok_or_else(|| self.no_image(image))?;
        Manifest::decode(&bytes).map_err(|why| Error::Manifest {
            from: "the index".to_owned(),
            why,
        })
    }

    /// Opens an image for reading.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Quarantined`], [`Error::File`], or [`Error::Database`].
    pub fn get(&self, image: &Image) -> Result<Opened, Error> {
        let info = self.find(image)?;
        if info.damaged {
            return Err(Error::Quarantined { digest: info.digest });
        }
        let path = self.image_path(info.digest);
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        Ok(Opened { info, path, file })
    }

    /// Gives an image one more name. Without a version it is the next number. It is no error if it has the name.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::NameTaken`], [`Error::NoName`] if the name is a digest, [`Error::TooMany`], or
    /// [`Error::Database`].
    pub fn tag(&self, image: &Image, name: &Image) -> Result<Image, Error> {
        self.index.write(|tx| {
            let found = index::find(tx, image).map_err(Error::database("look an image up"))?;
            let found = found.ok_or_else(|| self.no_image(image))?;
            index::name(tx, name, found.digest)
        })
    }

    /// Takes a name away, which must have a version. The image stays until it is collected.
    ///
    /// # Errors
    /// [`Error::NoImage`] if nothing has the name, [`Error::NoName`] if it is no name with a version, or
    /// [`Error::Database`].
    pub fn untag(&self, name: &Image) -> Result<(), Error> {
        let Image::Named {
            name: text,
            version: Some(version),
        } = name
        else {
            return Err(Error::NoName(name.clone()));
        };
        let removed = self.index.write(|tx| {
            tx.execute(
                "DELETE FROM names WHERE name = ?1 AND version = ?2",
                params![text, version],
            )
            .map_err(Error::database("remove a name"))
        })?;
        match removed {
            0 => Err(self.no_image(name)),
            _ => Ok(()),
        }
    }

    /// Keeps an image from being collected until its holder releases it. It is no error if the holder has it.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Quarantined`], [`Error::BadText`], [`Error::TooMany`], or [`Error::Database`].
    pub fn lease(&self, image: &Image, holder: &str, now: WallMillis) -> Result<Lease, Error> {
        check_text("holder", holder)?;
        self.index.write(|tx| {
            let found = index::find(tx, image).map_err(Error::database("look an image up"))?;
            let found = found.ok_or_else(|| self.no_image(image))?;
            if found.damaged {
                return Err(Error::Quarantined { digest: found.digest });
            }
            index::room(tx, "leases")?;
            tx.execute(
                "INSERT OR IGNORE INTO leases (digest, holder, since) VALUES (?1, ?2, ?3)",
                params![found.digest.0, holder, index::sql(now.0)],
            )
            .and_then(|_| {
                tx.query_row(
                    "SELECT digest, holder, since FROM leases WHERE digest = ?1 AND holder = ?2",
                    params![found.digest.0, holder],
                    lease,
                )
            })
            .map_err(Error::database("keep a lease"))
        })
    }

    /// Ends a lease, by its holder or by whoever breaks it.
    ///
    /// # Errors
    /// [`Error::NoLease`] or [`Error::Database`].
    pub fn release(&self, digest: Digest, holder: &str) -> Result<(), Error> {
        let removed = self.index.write(|tx| {
            tx.execute(
                "DELETE FROM leases WHERE digest = ?1 AND holder = ?2",
                params![digest.0, holder],
            )
            .map_err(Error::database("end a lease"))
        })?;
        match removed {
            0 => Err(Error::NoLease {
                digest,
                holder: holder.chars().flat_map(char::escape_debug).collect(),
            }),
            _ => Ok(()),
        }
    }

    /// Every lease, by image and holder.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.index.read("list leases", |tx| {
            tx.prepare_cached("SELECT digest, holder, since FROM leases ORDER BY digest, holder")?
                .query_map([], lease)?
                .collect()
        })
    }

    fn no_image(&self, image: &Image) -> Error {
        Error::NoImage {
            image: image.clone(),
            place: self.config.dir.display().to_string(),
        }
    }

    fn part(&self, part: &str, digest: Digest) -> PathBuf {
        self.config.dir.join(part).join(digest.to_string())
    }

    fn image_path(&self, digest: Digest) -> PathBuf {
        self.part("images", digest)
    }
}

fn lease(row: &rusqlite::Row<'_>) -> rusqlite::Result<Lease> {
    Ok(Lease {
        digest: index::digest(row, 0)?,
        holder: row.get(1)?,
        since: WallMillis(index::number(row, 2)?),
    })
}
