//! The register's store: one SQLite file, synced at every commit.

use std::path::Path;

use aerie_dht_proto::{OwnState, Store, StoreError, StoredLease};
use aerie_types::{Key, PeerId, WallMillis};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS leases (key BLOB PRIMARY KEY, lease BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS members (peer BLOB PRIMARY KEY, seen INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
";

/// The row of `meta` that exists once members were saved.
const MEMBERS_SAVED: &str = "members saved";
const OWN: &str = "own";

/// A store in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    db: Connection,
}

impl SqliteStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`Error::Open`] if that fails.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = || {
            let db = Connection::open(path)?;
            db.busy_timeout(std::time::Duration::from_secs(5))?;
            db.pragma_update(None, "journal_mode", "WAL")?;
            db.pragma_update(None, "synchronous", "FULL")?;
            db.execute_batch(SCHEMA)?;
            Ok(Self { db })
        };
        open().map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })
    }

    fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.db
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(refused)
    }
}

impl Store for SqliteStore {
    fn save(&mut self, key: &Key, lease: &StoredLease) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO leases (key, lease) VALUES (?1, ?2)";
        self.db
            .execute(sql, params![key.0.as_slice(), to_bytes(lease)?])
            .map_err(refused)?;
        Ok(())
    }

    fn remove(&mut self, key: &Key) -> Result<(), StoreError> {
        self.db
            .execute("DELETE FROM leases WHERE key = ?1", [key.0.as_slice()])
            .map_err(refused)?;
        Ok(())
    }

    fn load(&mut self) -> Result<Vec<(Key, StoredLease)>, StoreError> {
        let mut statement = self
            .db
            .prepare("SELECT key, lease FROM leases")
            .map_err(refused)?;
        let rows = statement
            .query_map([], |row| {
                Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, Vec<u8>>(1)?))
            })
            .map_err(refused)?;
        rows.map(|row| {
            let (key, lease) = row.map_err(refused)?;
            Ok((Key(key), from_bytes(&lease)?))
        })
        .collect()
    }

    fn save_members(&mut self, members: &[(PeerId, WallMillis)]) -> Result<(), StoreError> {
        let transaction = self.db.transaction().map_err(refused)?;
        transaction.execute("DELETE FROM members", []).map_err(refused)?;
        {
            let mut insert = transaction
                .prepare("INSERT INTO members (peer, seen) VALUES (?1, ?2)")
                .map_err(refused)?;
            for (peer, seen) in members {
                let seen = i64::try_from(seen.0).unwrap_or(i64::MAX);
                insert
                    .execute(params![peer.0.as_slice(), seen])
                    .map_err(refused)?;
            }
        }
        let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, x'')";
        transaction.execute(sql, [MEMBERS_SAVED]).map_err(refused)?;
        transaction.commit().map_err(refused)
    }

    fn load_members(&mut self) -> Result<Option<Vec<(PeerId, WallMillis)>>, StoreError> {
        if self.meta(MEMBERS_SAVED)?.is_none() {
            return Ok(None);
        }
        let mut statement = self
            .db
            .prepare("SELECT peer, seen FROM members")
            .map_err(refused)?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, i64>(1)?)))
            .map_err(refused)?;
        let members = rows.map(|row| {
            let (peer, seen) = row.map_err(refused)?;
            Ok((PeerId(peer), WallMillis(u64::try_from(seen).unwrap_or(0))))
        });
        members.collect::<Result<_, _>>().map(Some)
    }

    fn save_own(&mut self, own: &OwnState) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)";
        self.db
            .execute(sql, params![OWN, to_bytes(own)?])
            .map_err(refused)?;
        Ok(())
    }

    fn load_own(&mut self) -> Result<Option<OwnState>, StoreError> {
        self.meta(OWN)?.map(|bytes| from_bytes(&bytes)).transpose()
    }
}

fn refused(error: rusqlite::Error) -> StoreError {
    StoreError(error.to_string())
}

fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(value).map_err(|error| StoreError(error.to_string()))
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(bytes)
        .map_err(|error| StoreError(format!("a row of the register is damaged ({error})")))
}
