//! What the index knows of uploads that have not ended.

use aerie_cluster_proto::description::Image;
use aerie_types::WallMillis;
use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::index;
use super::upload::Put;
use crate::{Digest, Error, Format};

/// How many bytes there are, or will be, but for one upload.
pub(super) fn used(tx: &Transaction<'_>, but: Digest) -> rusqlite::Result<u64> {
    tx.query_row(
        "SELECT (SELECT coalesce(sum(stored_size), 0) FROM images)
              + (SELECT coalesce(sum(size), 0) FROM uploads WHERE sent <> ?1)",
        [but.0],
        |row| index::number(row, 0),
    )
}

/// Refuses a name that this upload cannot have, before anything is sent.
pub(super) fn may_be_named(tx: &Transaction<'_>, name: &Image, made: Digest) -> Result<(), Error> {
    match name {
        Image::Digest(_) => Err(Error::NoName(name.clone())),
        Image::Named { version: None, .. } => Ok(()),
        Image::Named { .. } => match index::find(tx, name).map_err(Error::database("look a name up"))? {
            Some(other) if other.digest != made => Err(Error::NameTaken {
                image: name.clone(),
                of: other.digest,
            }),
            _ => Ok(()),
        },
    }
}

/// An upload as the index has it.
pub(super) struct Known {
    pub(super) put: Put,
    pub(super) durable: u64,
    pub(super) boot_id: String,
    pub(super) touched_at: WallMillis,
}

pub(super) const UPLOAD: &str =
    "SELECT sent, size, durable, boot_id, touched_at, name, format, meta FROM uploads";

pub(super) fn row(tx: &Transaction<'_>, sent: Digest) -> Result<Option<Known>, Error> {
    tx.prepare_cached(&format!("{UPLOAD} WHERE sent = ?1"))
        .and_then(|mut rows| rows.query_row([sent.0], known).optional())
        .map_err(Error::database("look an upload up"))
}

pub(super) fn known(row: &Row<'_>) -> rusqlite::Result<Known> {
    let name = row.get::<_, Option<String>>(5)?;
    let format = row.get::<_, Option<String>>(6)?;
    Ok(Known {
        put: Put {
            sent: index::digest(row, 0)?,
            size: index::number(row, 1)?,
            name: match name {
                Some(name) => Some(index::column(5, name.parse().ok())?),
                None => None,
            },
            format: match format {
                Some(format) => Some(index::column(6, Format::of_name(&format))?),
                None => None,
            },
            meta: index::column(7, serde_json::from_str(&row.get::<_, String>(7)?).ok())?,
        },
        durable: index::number(row, 2)?,
        boot_id: row.get(3)?,
        touched_at: WallMillis(index::number(row, 4)?),
    })
}

pub(super) fn forget(tx: &Transaction<'_>, sent: Digest) -> Result<(), Error> {
    tx.execute("DELETE FROM uploads WHERE sent = ?1", [sent.0])
        .map(drop)
        .map_err(Error::database("forget an upload"))
}
