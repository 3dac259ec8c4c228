//! The index of a store: what its files are, under which names, and who holds them.
//!
//! It is in SQLite and not in files of its own, since its parts change together: a name, the image that it is of, and
//! the upload that this came by, or nothing. Several processes use one store at a time; the index's one writer at a
//! time is also the one that gives files their names and takes them away.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aerie_cluster_proto::description::Image;
use aerie_types::WallMillis;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};

use super::{Boot, ImageInfo, Meta};
use crate::limits::{INDEX_WAIT, MAX_IMAGES};
use crate::manifest::{Manifest, ManifestId};
use crate::{Digest, Error, Format};

const VERSION: i64 = 2;

const SCHEMA: &str = "
CREATE TABLE images (
    digest BLOB PRIMARY KEY,
    manifest_id BLOB NOT NULL UNIQUE,
    manifest BLOB NOT NULL,
    format TEXT NOT NULL,
    virtual_size INTEGER NOT NULL,
    stored_size INTEGER NOT NULL,
    description TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    boot TEXT NOT NULL,
    damaged INTEGER NOT NULL,
    put_at INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE names (
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    digest BLOB NOT NULL REFERENCES images (digest),
    number INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (name, version)
) STRICT;
CREATE INDEX names_of ON names (digest);
CREATE TABLE uploads (
    sent BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    durable INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    touched_at INTEGER NOT NULL,
    name TEXT,
    format TEXT,
    meta TEXT NOT NULL
) STRICT;
CREATE TABLE packed (
    sent BLOB PRIMARY KEY,
    digest BLOB NOT NULL REFERENCES images (digest) ON DELETE CASCADE
) STRICT;
CREATE INDEX packed_of ON packed (digest);
CREATE TABLE leases (
    digest BLOB NOT NULL REFERENCES images (digest),
    holder TEXT NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (digest, holder)
) STRICT;
CREATE TABLE clones (
    name TEXT PRIMARY KEY,
    digest BLOB NOT NULL REFERENCES images (digest),
    created_at INTEGER NOT NULL
) STRICT;
";

/// What the first version lacks: when an image was put last.
const FROM_1: &str = "
ALTER TABLE images ADD COLUMN put_at INTEGER NOT NULL DEFAULT 0;
UPDATE images SET put_at = created_at;
";

pub(super) struct Index(Mutex<Connection>);

impl Index {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        // SQLite gives its own mode to what it makes; the journal's files take that of the database.
        std::os::unix::fs::OpenOptionsExt::mode(std::fs::OpenOptions::new().create(true).append(true), 0o600)
            .open(path)
            .map_err(Error::file("open", path))?;
        let mut conn = Connection::open(path).map_err(Error::database("be opened"))?;
        conn.busy_timeout(INDEX_WAIT)
            .and_then(|()| conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())))
            .and_then(|()| conn.pragma_update(None, "synchronous", "FULL"))
            .and_then(|()| conn.pragma_update(None, "foreign_keys", "ON"))
            .map_err(Error::database("be set up"))?;
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Error::database("be locked"))?;
        let found: i64 = tx
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(Error::database("be read"))?;
        match found {
            0 => tx
                .execute_batch(SCHEMA)
                .and_then(|()| tx.pragma_update(None, "user_version", VERSION))
                .map_err(Error::database("be laid out"))?,
            1 => tx
                .execute_batch(FROM_1)
                .and_then(|()| tx.pragma_update(None, "user_version", VERSION))
                .map_err(Error::database("be brought to this release"))?,
            VERSION => {}
            found => {
                return Err(Error::LaterVersion {
                    path: path.to_owned(),
                    found,
                });
            }
        }
        tx.commit().map_err(Error::database("be laid out"))?;
        Ok(Self(Mutex::new(conn)))
    }

    /// Looks something up, all of it as it was at one instant.
    pub(super) fn read<T>(
        &self,
        what: &'static str,
        f: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let mut conn = self.lock();
        let tx = conn.transaction().map_err(Error::database("be read"))?;
        f(&tx).map_err(Error::database(what))
    }

    /// Runs one change: all of it happens and is on the disk, or on any error none. No other process changes the index
    /// or the names of the store's files meanwhile.
    pub(super) fn write<T>(&self, f: impl FnOnce(&Transaction<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let mut conn = self.lock();
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Error::database("be locked for writing"))?;
        let value = f(&tx)?;
        crate::crash::point("index: before commit");
        tx.commit().map_err(Error::database("commit"))?;
        crate::crash::point("index: committed");
        Ok(value)
    }

    /// A panic within a transaction rolled it back, so that the connection behind a poisoned lock is sound.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number as the database keeps it.
pub(super) fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get(column)
        .map(|number: i64| u64::try_from(number).unwrap_or(0))
}

pub(super) fn digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get(column).map(Digest)
}

/// A column that holds what this program wrote there. What cannot be read back is said with its column.
pub(super) fn column<T>(column: usize, value: Option<T>) -> rusqlite::Result<T> {
    value.ok_or_else(|| {
        let why = "it is not what this release writes".into();
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, why)
    })
}

const IMAGE: &str = "SELECT digest, manifest_id, format, virtual_size, stored_size, description, created_by, \
                     created_at, boot, damaged FROM images";

fn image(row: &Row<'_>) -> rusqlite::Result<ImageInfo> {
    let boot: String = row.get(8)?;
    Ok(ImageInfo {
        digest: digest(row, 0)?,
        manifest: ManifestId(digest(row, 1)?),
        format: column(2, Format::of_name(&row.get::<_, String>(2)?))?,
        virtual_size: number(row, 3)?,
        stored_size: number(row, 4)?,
        meta: Meta {
            description: row.get(5)?,
            created_by: row.get(6)?,
            boot: column(8, serde_json::from_str::<Boot>(&boot).ok())?,
        },
        created_at: WallMillis(number(row, 7)?),
        names: Vec::new(),
        damaged: row.get(9)?,
    })
}

/// Every image, by digest, with its names.
pub(super) fn images(tx: &Transaction<'_>) -> rusqlite::Result<Vec<ImageInfo>> {
    let mut images = tx
        .prepare_cached(&format!("{IMAGE} ORDER BY digest"))?
        .query_map([], image)?
        .collect::<Result<Vec<_>, _>>()?;
    for image in &mut images {
        image.names = names_of(tx, image.digest)?;
    }
    Ok(images)
}

pub(super) fn image_of(tx: &Transaction<'_>, digest: Digest) -> rusqlite::Result<Option<ImageInfo>> {
    let found = tx
        .prepare_cached(&format!("{IMAGE} WHERE digest = ?1"))?
        .query_row([digest.0], image)
        .optional()?;
    let Some(mut found) = found else {
        return Ok(None);
    };
    found.names = names_of(tx, digest)?;
    Ok(Some(found))
}

/// The image that was made of what was sent; what was sent itself, unless it was packed and has become an image before.
pub(super) fn made_of(tx: &Transaction<'_>, sent: Digest) -> Result<Digest, Error> {
    let found = tx
        .prepare_cached("SELECT digest FROM packed WHERE sent = ?1")
        .and_then(|mut rows| rows.query_row([sent.0], |row| digest(row, 0)).optional())
        .map_err(Error::database("look an image up"))?;
    Ok(found.unwrap_or(sent))
}

fn names_of(tx: &Transaction<'_>, digest: Digest) -> rusqlite::Result<Vec<Image>> {
    tx.prepare_cached("SELECT name, version FROM names WHERE digest = ?1 ORDER BY number")?
        .query_map([digest.0], |row| {
            Ok(Image::Named {
                name: row.get(0)?,
                version: Some(row.get(1)?),
            })
        })?
        .collect()
}

/// The image that is meant: of a name without a version the one that was named last.
pub(super) fn find(tx: &Transaction<'_>, image: &Image) -> rusqlite::Result<Option<ImageInfo>> {
    let digest = match image {
        Image::Digest(digest) => Some(Digest(*digest)),
        Image::Named { name, version } => tx
            .prepare_cached(
                "SELECT digest FROM names WHERE name = ?1 AND (?2 IS NULL OR version = ?2)
                 ORDER BY number DESC LIMIT 1",
            )?
            .query_row(params![name, version], |row| digest(row, 0))
            .optional()?,
    };
    match digest {
        Some(digest) => image_of(tx, digest),
        None => Ok(None),
    }
}

/// The bytes of a manifest, and whether its image is damaged.
pub(super) fn manifest(
    tx: &Transaction<'_>,
    by: &str,
    key: Digest,
) -> rusqlite::Result<Option<(Vec<u8>, bool)>> {
    tx.prepare_cached(&format!("SELECT manifest, damaged FROM images WHERE {by} = ?1"))?
        .query_row([key.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// Keeps an image, or mends the one that is there.
pub(super) fn keep(
    tx: &Transaction<'_>,
    manifest: &Manifest,
    meta: &Meta,
    now: WallMillis,
) -> Result<(), Error> {
    room(tx, "images")?;
    let boot = serde_json::to_string(&meta.boot).unwrap_or_default();
    tx.execute(
        "INSERT INTO images (digest, manifest_id, manifest, format, virtual_size, stored_size, description,
             created_by, created_at, boot, damaged, put_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0, ?9)
         ON CONFLICT (digest) DO UPDATE SET damaged = 0, manifest_id = excluded.manifest_id,
             manifest = excluded.manifest, format = excluded.format, virtual_size = excluded.virtual_size,
             put_at = max(put_at, excluded.put_at)",
        params![
            manifest.digest().0,
            manifest.id().0.0,
            manifest.encode(),
            manifest.format().name(),
            sql(manifest.virtual_size()),
            sql(manifest.size()),
            meta.description,
            meta.created_by,
            sql(now.0),
            boot
        ],
    )
    .map_err(Error::database("keep an image"))?;
    Ok(())
}

/// Notes that an image was put again, so that whoever did it has time to use it.
pub(super) fn put_again(tx: &Transaction<'_>, digest: Digest, now: WallMillis) -> Result<(), Error> {
    tx.execute(
        "UPDATE images SET put_at = max(put_at, ?2) WHERE digest = ?1",
        params![digest.0, sql(now.0)],
    )
    .map(drop)
    .map_err(Error::database("note that an image was put again"))
}

/// Refuses one row too many.
pub(super) fn room(tx: &Transaction<'_>, table: &str) -> Result<(), Error> {
    let rows = tx
        .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| number(row, 0))
        .map_err(Error::database("count its rows"))?;
    if rows >= MAX_IMAGES {
        return Err(Error::too_many_images());
    }
    Ok(())
}

/// Gives an image a name. Without a version it takes the next number, unless the newest version is this image.
pub(super) fn name(tx: &Transaction<'_>, image: &Image, of: Digest) -> Result<Image, Error> {
    let Image::Named { name, version } = image else {
        return Err(Error::NoName(image.clone()));
    };
    let database = Error::database;
    let found = find(tx, image).map_err(database("look a name up"))?;
    let version = match (version, found) {
        (Some(version), Some(found)) if found.digest != of => {
            return Err(Error::NameTaken {
                image: Image::Named {
                    name: name.clone(),
                    version: Some(version.clone()),
                },
                of: found.digest,
            });
        }
        (Some(_), Some(_)) => return Ok(image.clone()),
        (Some(version), None) => version.clone(),
        (None, _) => {
            let versions = tx
                .prepare_cached("SELECT version, digest FROM names WHERE name = ?1 ORDER BY number")
                .and_then(|mut all| {
                    all.query_map([name], |row| Ok((row.get::<_, String>(0)?, digest(row, 1)?)))?
                        .collect::<Result<Vec<_>, _>>()
                })
                .map_err(database("list versions"))?;
            if let Some((newest, _)) = versions.last().filter(|(_, digest)| *digest == of) {
                return Ok(Image::Named {
                    name: name.clone(),
                    version: Some(newest.clone()),
                });
            }
            let numbers = versions
                .iter()
                .filter_map(|(version, _)| version.parse::<u64>().ok());
            numbers.max().unwrap_or(0).saturating_add(1).to_string()
        }
    };
    room(tx, "names")?;
    tx.execute(
        "INSERT INTO names (name, version, digest, number)
         SELECT ?1, ?2, ?3, coalesce(max(number), 0) + 1 FROM names",
        params![name, version, of.0],
    )
    .map_err(database("keep a name"))?;
    Ok(Image::Named {
        name: name.clone(),
        version: Some(version),
    })
}
