//! The store on disk: SQLite with a write-ahead log that is synced at every commit.
//!
//! A transaction that [`Store::persist`] has returned from survives a power failure. The file is locked for as long
//! as it is open: two daemons on one state directory would be two witnesses with one key.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use aerie_dht_proto::{Change, Rows, Store, StoreError, Table};
use rusqlite::{Connection, ErrorCode, params};
use tokio::sync::watch;

use crate::Error;

/// The version of the schema.
const VERSION: i64 = 1;

/// How long to wait for another process to let go of the file; a daemon that is being restarted takes a moment.
const LOCK_WAIT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS state (
    part INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (part, key)
) WITHOUT ROWID";

/// The register's database.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    failure: watch::Sender<Option<String>>,
}

impl SqliteStore {
    /// Opens the database, which is created with mode 0600 where it is missing.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Open`], [`Error::Damaged`] or [`Error::Version`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| Error::Create {
                path: path.to_owned(),
                source,
            })?;
        let (connection, found) = open(path).map_err(|source| failed_to_open(path, source))?;
        if found > VERSION {
            return Err(Error::Version {
                path: path.to_owned(),
                found,
                known: VERSION,
            });
        }
        Ok(Self {
            connection,
            failure: watch::Sender::new(None),
        })
    }

    /// Why the last transaction could not be written; `None` when it was.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.subscribe()
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction()?;
        for Change { table, key, value } in changes {
            let part = part(*table);
            match value {
                Some(value) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO state (part, key, value) VALUES (?1, ?2, ?3)")?
                    .execute(params![part, key, value])?,
                None => transaction
                    .prepare_cached("DELETE FROM state WHERE part = ?1 AND key = ?2")?
                    .execute(params![part, key])?,
            };
        }
        transaction.commit()
    }
}

fn failed_to_open(path: &Path, source: rusqlite::Error) -> Error {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Error::Damaged { path, source },
        _ => Error::Open { path, source },
    }
}

fn open(path: &Path) -> Result<(Connection, i64), rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(LOCK_WAIT)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found <= VERSION {
        // Written even where nothing changes, so that the lock is taken now and not at the first grant.
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {SCHEMA}; PRAGMA user_version = {VERSION}; COMMIT"
        ))?;
    }
    Ok((connection, found))
}

impl Store for SqliteStore {
    fn load(&mut self, table: Table) -> Result<Rows, StoreError> {
        let read = || {
            let mut statement = self
                .connection
                .prepare("SELECT key, value FROM state WHERE part = ?1 ORDER BY key")?;
            let rows = statement.query_map([part(table)], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<Rows, rusqlite::Error>>()
        };
        read().map_err(store_error)
    }

    fn persist(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let result = self.write(changes).map_err(store_error);
        let failure = result.as_ref().err().map(|error| error.0.clone());
        self.failure.send_if_modified(|before| {
            let changed = *before != failure;
            *before = failure;
            changed
        });
        result
    }
}

/// The number of a table in the file; never reused for another.
fn part(table: Table) -> i64 {
    match table {
        Table::Grants => 1,
        Table::Certificates => 2,
        Table::Members => 3,
        Table::Meta => 4,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err gives")]
fn store_error(error: rusqlite::Error) -> StoreError {
    StoreError(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn change(key: &[u8], value: Option<&[u8]>) -> Change {
        Change {
            table: Table::Grants,
            key: key.to_vec(),
            value: value.map(<[u8]>::to_vec),
        }
    }

    #[test]
    fn what_was_persisted_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.sqlite");
        let mut store = SqliteStore::open(&path).unwrap();
        store
            .persist(&[change(b"a", Some(b"1")), change(b"b", Some(b"2"))])
            .unwrap();
        store
            .persist(&[change(b"a", None), change(b"b", Some(b"3"))])
            .unwrap();
        drop(store);
        let mut store = SqliteStore::open(&path).unwrap();
        assert_eq!(
            store.load(Table::Grants).unwrap(),
            [(b"b".to_vec(), b"3".to_vec())]
        );
        assert_eq!(store.load(Table::Meta).unwrap(), []);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_commit_is_synced_to_the_disk_by_the_write_ahead_log() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("register.sqlite")).unwrap();
        let pragma = |name| {
            store
                .connection
                .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
        };
        assert_eq!(pragma("journal_mode").unwrap(), "wal".to_owned().into());
        assert_eq!(pragma("synchronous").unwrap(), 2_i64.into());
    }

    #[test]
    fn a_write_that_fails_is_told_until_one_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(&dir.path().join("register.sqlite")).unwrap();
        let failure = store.failure();
        let limit = |store: &SqliteStore, pages: i64| {
            store
                .connection
                .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
        };
        // As a full disk: the file can grow no more.
        limit(&store, 1).unwrap();
        let large = vec![7; 64 * 1024];
        let error = store.persist(&[change(b"a", Some(&large))]).unwrap_err();
        assert_eq!(*failure.borrow(), Some(error.0));
        limit(&store, 1000).unwrap();
        store.persist(&[change(b"a", Some(&large))]).unwrap();
        assert_eq!(*failure.borrow(), None);
        assert_eq!(store.load(Table::Grants).unwrap(), [(b"a".to_vec(), large)]);
    }

    #[test]
    fn a_newer_schema_is_left_alone_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("register.sqlite");
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 7)
            .unwrap();
        let message = SqliteStore::open(&path).unwrap_err().to_string();
        assert!(
            message.contains("version 7") && message.contains("newer release"),
            "{message}"
        );
    }
}
