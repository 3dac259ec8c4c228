//! The database: its schema, its transactions, and how values are kept in it.
//!
//! WAL with full synchronisation: a transaction that was answered survives a power cut. Every writer takes the
//! write lock when it begins, so that what a transaction read is still so when it commits; the command and the
//! server are two processes that take turns.

use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aerie_types::{Roles, WallMillis};
use rusqlite::types::Type;
use rusqlite::{Connection, Row, Transaction, TransactionBehavior};

use crate::Error;

const VERSION: i64 = 3;

/// From the first schema to the second.
const SETTINGS: &str = "
ALTER TABLE grid ADD COLUMN reserved TEXT NOT NULL DEFAULT '';
ALTER TABLE grid ADD COLUMN excluded TEXT NOT NULL DEFAULT '';
ALTER TABLE grid ADD COLUMN witnesses TEXT NOT NULL DEFAULT '';
";

/// From the second schema to the third.
const ROUTED: &str = "
ALTER TABLE grid ADD COLUMN routed TEXT NOT NULL DEFAULT '';
ALTER TABLE grid ADD COLUMN block INTEGER NOT NULL DEFAULT 0;
";

/// How long a writer waits for another process's transaction, each of which takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE grid (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_serial INTEGER NOT NULL,
    last_list INTEGER NOT NULL,
    list BLOB NOT NULL
) STRICT;
CREATE TABLE groups (
    name TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
    hash BLOB PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    grp TEXT NOT NULL REFERENCES groups (name),
    roles INTEGER NOT NULL,
    user TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    uses INTEGER NOT NULL,
    uses_left INTEGER NOT NULL CHECK (uses_left BETWEEN 0 AND uses),
    withdrawn_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE nodes (
    name TEXT PRIMARY KEY,
    peer BLOB NOT NULL UNIQUE,
    user TEXT NOT NULL,
    grp TEXT NOT NULL,
    roles INTEGER NOT NULL,
    token BLOB NOT NULL,
    serial INTEGER NOT NULL,
    enrolled_at INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,
    not_after INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE issued (
    serial INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    node TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    not_after INTEGER NOT NULL
) STRICT;
CREATE INDEX issued_by_end ON issued (not_after);
CREATE TABLE revocations (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    upto INTEGER NOT NULL,
    at INTEGER NOT NULL,
    active INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
";

pub(crate) struct Store {
    conn: Mutex<Connection>,
}

impl Store {
    /// Opens the database, making it if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let mut conn = Connection::open(path).map_err(Error::database("be opened"))?;
        conn.busy_timeout(BUSY_TIMEOUT)
            .map_err(Error::database("be set up"))?;
        conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
            .and_then(|()| conn.pragma_update(None, "synchronous", "FULL"))
            .and_then(|()| conn.pragma_update(None, "foreign_keys", "ON"))
            .map_err(Error::database("be set up"))?;
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Error::database("be locked"))?;
        let found: i64 = tx
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(Error::database("be read"))?;
        let steps: &[&str] = match found {
            0 => &[SCHEMA, SETTINGS, ROUTED],
            1 => &[SETTINGS, ROUTED],
            2 => &[ROUTED],
            VERSION => &[],
            found => {
                return Err(Error::LaterVersion {
                    path: path.to_owned(),
                    found,
                });
            }
        };
        for step in steps {
            tx.execute_batch(step).map_err(Error::database("be laid out"))?;
        }
        tx.pragma_update(None, "user_version", VERSION)
            .map_err(Error::database("be laid out"))?;
        tx.commit().map_err(Error::database("be laid out"))?;
        Ok(Self {
            conn: Mutex::new(conn),
        })
    }

    pub(crate) fn read<T>(&self, f: impl FnOnce(&Connection) -> T) -> T {
        f(&self.lock())
    }

    /// Runs one transaction: all of it happens, or on any error none.
    pub(crate) fn write<T, E: From<Error>>(
        &self,
        f: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut conn = self.lock();
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Error::database("be locked for writing"))?;
        let value = f(&tx)?;
        tx.commit().map_err(Error::database("commit"))?;
        Ok(value)
    }

    pub(crate) fn list<T>(
        &self,
        what: &'static str,
        query: &str,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        self.read(|conn| {
            conn.prepare(query)?
                .query_map([], row)?
                .collect::<rusqlite::Result<_>>()
        })
        .map_err(Error::database(what))
    }

    /// A panic within a transaction rolled it back, so that the connection behind a poisoned lock is sound.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The serial number of the next certificate: the time, or one more than the last.
pub(crate) fn next_serial(tx: &Transaction<'_>, now: WallMillis) -> Result<u64, Error> {
    tx.query_row(
        "UPDATE grid SET last_serial = max(last_serial + 1, ?1) RETURNING last_serial",
        [sql(now.0)],
        |row| row.get::<_, i64>(0),
    )
    .map(i64::unsigned_abs)
    .map_err(Error::database("draw a serial number"))
}

/// A number as the database keeps it. Times and serials stay below 2^63 for another 292 million years.
pub(crate) fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn millis(row: &Row<'_>, index: usize) -> rusqlite::Result<WallMillis> {
    row.get::<_, i64>(index)
        .map(|millis| WallMillis(millis.unsigned_abs()))
}

pub(crate) fn name<N>(row: &Row<'_>, index: usize) -> rusqlite::Result<N>
where
    N: FromStr,
    N::Err: std::error::Error + Send + Sync + 'static,
{
    row.get::<_, String>(index)?
        .parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error)))
}

pub(crate) fn roles(row: &Row<'_>, index: usize) -> rusqlite::Result<Roles> {
    let bits: u8 = row.get(index)?;
    Roles::from_bits(bits).ok_or(rusqlite::Error::IntegralValueOutOfRange(index, bits.into()))
}

/// Values as the database keeps a few of them: their texts, with commas between.
pub(crate) fn joined(values: &[impl ToString]) -> String {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    texts.join(",")
}

pub(crate) fn list<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<Vec<T>>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let joined: String = row.get(index)?;
    let texts = joined.split(',').filter(|text| !text.is_empty());
    texts
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error)))
}
