//! Taking away what nobody needs.

use std::fs;
use std::path::{Path, PathBuf};

use aerie_types::WallMillis;
use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{Store, index};
use crate::limits::{UNNAMED_KEPT, UPLOAD_KEPT};
use crate::{Digest, Error, files};

/// What was taken away, or would have been.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Images without names, leases and clones.
    pub images: Vec<Digest>,
    /// Uploads that nobody has continued for [`UPLOAD_KEPT`].
    pub uploads: Vec<Digest>,
    /// Files that the index does not speak of: what killed processes left.
    pub left_over: Vec<PathBuf>,
    /// How many bytes all of it has.
    pub bytes: u64,
}

impl Store {
    /// Removes images that have neither name nor lease nor clone and were put longer ago than [`UNNAMED_KEPT`], uploads that
    /// nobody continues, and what killed processes left; or says what it would remove. An upload that is being worked
    /// on, and what it needs, stays.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Database`]. What is not removed then is removed at the next call.
    pub fn collect(&self, dry_run: bool, now: WallMillis) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        self.index.write(|tx| {
            self.images_to_collect(tx, now, &mut collected)?;
            self.uploads_to_collect(tx, now, &mut collected)?;
            if dry_run {
                return Ok(());
            }
            for (table, key, digests) in [
                ("images", "digest", &collected.images),
                ("uploads", "sent", &collected.uploads),
            ] {
                for digest in digests {
                    tx.execute(&format!("DELETE FROM {table} WHERE {key} = ?1"), [digest.0])
                        .map_err(Error::database("remove what is not needed"))?;
                }
            }
            Ok(())
        })?;
        // The files go when the index has ceased to speak of them for good, while nobody else changes it.
        self.index.write(|tx| {
            for folder in ["images", "quarantine", "staging", "uploads", "clones"] {
                self.left_over(tx, folder, dry_run, &mut collected)?;
            }
            Ok(())
        })?;
        Ok(collected)
    }

    fn images_to_collect(
        &self,
        tx: &Transaction<'_>,
        now: WallMillis,
        to: &mut Collected,
    ) -> Result<(), Error> {
        let before = index::sql(now.0).saturating_sub(index::sql(millis(UNNAMED_KEPT)));
        let found = tx
            .prepare_cached(
                "SELECT digest, stored_size FROM images AS i WHERE put_at <= ?1
                 AND NOT EXISTS (SELECT 1 FROM names WHERE digest = i.digest)
                 AND NOT EXISTS (SELECT 1 FROM leases WHERE digest = i.digest)
                 AND NOT EXISTS (SELECT 1 FROM clones WHERE digest = i.digest)
                 ORDER BY digest",
            )
            .and_then(|mut rows| {
                rows.query_map([before], |row| {
                    Ok((index::digest(row, 0)?, index::number(row, 1)?))
                })?
                .collect::<Result<Vec<_>, _>>()
            })
            .map_err(Error::database("look for what is not needed"))?;
        for (digest, bytes) in found {
            to.images.push(digest);
            to.bytes += bytes;
        }
        Ok(())
    }

    fn uploads_to_collect(
        &self,
        tx: &Transaction<'_>,
        now: WallMillis,
        to: &mut Collected,
    ) -> Result<(), Error> {
        let before = index::sql(now.0).saturating_sub(index::sql(millis(UPLOAD_KEPT)));
        let found = tx
            .prepare_cached("SELECT sent FROM uploads WHERE touched_at <= ?1 ORDER BY sent")
            .and_then(|mut rows| {
                rows.query_map([before], |row| index::digest(row, 0))?
                    .collect::<Result<Vec<_>, _>>()
            })
            .map_err(Error::database("look for what is not needed"))?;
        for sent in found {
            let path = self.part("uploads", sent);
            if !path.exists() {
                to.uploads.push(sent);
            } else if self.idle(sent)?.is_some() {
                to.bytes += length(&path);
                to.uploads.push(sent);
            }
        }
        Ok(())
    }

    fn left_over(
        &self,
        tx: &Transaction<'_>,
        folder: &'static str,
        dry_run: bool,
        to: &mut Collected,
    ) -> Result<(), Error> {
        let dir = self.config.dir.join(folder);
        let entries = fs::read_dir(&dir).map_err(Error::file("list", &dir))?;
        for entry in entries {
            let entry = entry.map_err(Error::file("list", &dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if self.is_needed(tx, folder, &name)? {
                continue;
            }
            let path = entry.path();
            let listed = name.parse::<Digest>().is_ok_and(|digest| {
                let digests = match folder {
                    "images" | "quarantine" => &to.images,
                    _ => &to.uploads,
                };
                digests.contains(&digest)
            });
            if !listed {
                to.bytes += length(&path);
                to.left_over.push(path.clone());
            }
            if !dry_run {
                crate::crash::point("collect: removing");
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Whether a file must stay.
    fn is_needed(&self, tx: &Transaction<'_>, folder: &'static str, name: &str) -> Result<bool, Error> {
        let has = |sql: &str, key: &dyn rusqlite::ToSql| {
            tx.query_row(sql, params![key], |_| Ok(()))
                .optional()
                .map(|found| found.is_some())
                .map_err(Error::database("look for what is not needed"))
        };
        if folder == "clones" {
            return has("SELECT 1 FROM clones WHERE name = ?1", &name);
        }
        let Ok(digest) = name.parse::<Digest>() else {
            return Ok(false);
        };
        let uploading = || has("SELECT 1 FROM uploads WHERE sent = ?1", &digest.0);
        // Somebody may work on it, and not only whom the index speaks of.
        let busy = || match self.part("uploads", digest).exists() {
            true => self.idle(digest).map(|idle| idle.is_none()),
            false => Ok(false),
        };
        match folder {
            "images" => has("SELECT 1 FROM images WHERE digest = ?1", &digest.0),
            "quarantine" => has(
                "SELECT 1 FROM images WHERE digest = ?1 AND damaged = 1",
                &digest.0,
            ),
            "uploads" => Ok(uploading()? || busy()?),
            _ => busy(),
        }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}
