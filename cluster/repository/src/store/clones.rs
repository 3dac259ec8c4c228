//! Disks that are built on images of the store.

use std::path::PathBuf;

use aerie_cluster_proto::description::Image;
use aerie_types::WallMillis;
use rusqlite::{OptionalExtension as _, params};
use serde::Serialize;

use super::{Store, index};
use crate::overlay::{self, Backing};
use crate::{Digest, Error, files};

/// A disk of its own that begins as an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClonedDisk {
    /// Its name.
    pub name: String,
    /// Its file, a qcow2 image whose backing file is the image's.
    pub path: PathBuf,
    /// The image, which is kept for as long as the clone is.
    pub image: Digest,
    /// When it was made.
    pub created_at: WallMillis,
}

impl Store {
    /// Makes a disk that begins as an image and takes up only what is changed on it.
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::Quarantined`], [`Error::BadName`], [`Error::CloneExists`], [`Error::TooMany`],
    /// [`Error::NoSpace`], [`Error::File`], or [`Error::Database`].
    pub fn clone_image(&self, image: &Image, name: &str, now: WallMillis) -> Result<ClonedDisk, Error> {
        files::plain_name(name, "the name of a clone")?;
        // The name in the clone has to be right wherever the clone is opened.
        let dir = self.config.dir.canonicalize();
        let dir = dir.map_err(Error::file("find", &self.config.dir))?;
        self.index.write(|tx| {
            let found = index::find(tx, image).map_err(Error::database("look an image up"))?;
            let found = found.ok_or_else(|| self.no_image(image))?;
            if found.damaged {
                return Err(Error::Quarantined { digest: found.digest });
            }
            index::room(tx, "clones")?;
            let known = tx
                .query_row("SELECT 1 FROM clones WHERE name = ?1", [name], |_| Ok(()))
                .optional()
                .map_err(Error::database("look a clone up"))?;
            if known.is_some() {
                return Err(Error::CloneExists {
                    name: name.to_owned(),
                });
            }
            let path = dir.join("clones").join(name);
            // Of a call that did not come to its end.
            files::remove(&path)?;
            let backing = Backing {
                path: dir.join("images").join(found.digest.to_string()),
                format: found.format,
            };
            overlay::create(&path, &backing, found.virtual_size)?;
            tx.execute(
                "INSERT INTO clones (name, digest, created_at) VALUES (?1, ?2, ?3)",
                params![name, found.digest.0, index::sql(now.0)],
            )
            .map_err(Error::database("keep a clone"))?;
            Ok(ClonedDisk {
                name: name.to_owned(),
                path,
                image: found.digest,
                created_at: now,
            })
        })
    }

    /// Removes a clone with all that was written to it.
    ///
    /// # Errors
    /// [`Error::NoClone`], [`Error::File`], or [`Error::Database`].
    pub fn remove_clone(&self, name: &str) -> Result<(), Error> {
        files::plain_name(name, "the name of a clone")?;
        self.index.write(|tx| {
            let removed = tx
                .execute("DELETE FROM clones WHERE name = ?1", [name])
                .map_err(Error::database("remove a clone"))?;
            if removed == 0 {
                return Err(Error::NoClone {
                    name: name.to_owned(),
                });
            }
            Ok(())
        })?;
        // Another that has made a clone of the name meanwhile must keep it.
        self.index.write(|tx| {
            let again = tx
                .query_row("SELECT 1 FROM clones WHERE name = ?1", [name], |_| Ok(()))
                .optional()
                .map_err(Error::database("look a clone up"))?;
            match again {
                Some(()) => Ok(()),
                None => files::remove(&self.config.dir.join("clones").join(name)),
            }
        })
    }

    /// Every clone, by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn clones(&self) -> Result<Vec<ClonedDisk>, Error> {
        self.index.read("list clones", |tx| {
            tx.prepare_cached("SELECT name, digest, created_at FROM clones ORDER BY name")?
                .query_map([], |row| {
                    let name: String = row.get(0)?;
                    Ok(ClonedDisk {
                        path: self.config.dir.join("clones").join(&name),
                        name,
                        image: index::digest(row, 1)?,
                        created_at: WallMillis(index::number(row, 2)?),
                    })
                })?
                .collect()
        })
    }
}
