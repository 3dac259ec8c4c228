//! The journal on the disk.
//!
//! WAL with full synchronisation: what was written survives a power cut. Records have numbers without a gap, so that
//! one that is missing is noticed. One manager has the folder to itself: it holds a lock for as long as it lives.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aerie_cluster_manager_proto::{Entry, World};
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, TransactionBehavior, params};

use crate::Error;

const FILE: &str = "manager.sqlite";
const LOCK: &str = "lock";
const VERSION: i64 = 1;

/// How many records follow the last snapshot before another one takes their place: to read them back is a matter of a
/// second.
pub const MAX_RECORDS: i64 = 16_384;

/// The longest record in bytes that is read: a snapshot of all clusters that there may be.
const MAX_RECORD: i64 = 1 << 30;

const SCHEMA: &str = "
CREATE TABLE journal (
    number INTEGER PRIMARY KEY,
    entry TEXT NOT NULL
) STRICT;
";

#[derive(Debug)]
pub(crate) struct Journal {
    conn: Connection,
    path: PathBuf,
    /// The number of the last record.
    last: i64,
    /// The number of the first one that is kept.
    first: i64,
    _lock: Flock<File>,
}

impl Journal {
    /// Opens the journal of a folder, making both if they are not there.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(Error::file("make", dir))?;
        let open = |path: &Path| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(path)
                .map_err(Error::file("open", path))
        };
        let lock = open(&dir.join(LOCK))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Error::InUse { dir: dir.to_owned() })?;
        let path = dir.join(FILE);
        // SQLite gives its own mode to what it makes; its other files take that of the database.
        drop(open(&path)?);
        let mut conn = Connection::open(&path).map_err(Error::database("be opened"))?;
        conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
            .and_then(|()| conn.pragma_update(None, "synchronous", "FULL"))
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
            VERSION => {}
            found => return Err(Error::LaterVersion { path, found }),
        }
        tx.commit().map_err(Error::database("be laid out"))?;
        Ok(Self {
            conn,
            path,
            last: 0,
            first: 1,
            _lock: lock,
        })
    }

    /// What the journal makes; nothing where it is empty.
    pub(crate) fn replay(&mut self) -> Result<Option<World>, Error> {
        let mut world = World::default();
        let (mut first, mut last) = (None, None::<i64>);
        let damaged = |number, why: String| Error::Damaged {
            path: self.path.clone(),
            number,
            why,
        };
        let mut statement = self
            .conn
            .prepare("SELECT number, length(entry), entry FROM journal ORDER BY number")
            .map_err(Error::database("be read"))?;
        let mut rows = statement.query([]).map_err(Error::database("be read"))?;
        while let Some(row) = rows.next().map_err(Error::database("be read"))? {
            let number: i64 = row.get(0).map_err(Error::database("be read"))?;
            if let Some(before) = last
                && number != before + 1
            {
                return Err(damaged(before + 1, "it is missing".to_owned()));
            }
            let length: i64 = row.get(1).map_err(Error::database("be read"))?;
            if length > MAX_RECORD {
                return Err(damaged(number, format!("it has {length} bytes")));
            }
            let text: String = row.get(2).map_err(|error| damaged(number, error.to_string()))?;
            let entry: Entry =
                serde_json::from_str(&text).map_err(|error| damaged(number, error.to_string()))?;
            world
                .apply(&entry)
                .map_err(|corrupt| damaged(number, corrupt.to_string()))?;
            first.get_or_insert(number);
            last = Some(number);
        }
        self.first = first.unwrap_or(1);
        self.last = last.unwrap_or(0);
        Ok(last.is_some().then_some(world))
    }

    /// Writes records down, all or none.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut number = self.last;
        self.write(|tx| {
            let mut statement = tx.prepare_cached("INSERT INTO journal (number, entry) VALUES (?1, ?2)")?;
            for entry in entries {
                number += 1;
                statement.execute(params![number, text(entry)?])?;
            }
            Ok(())
        })?;
        self.last = number;
        Ok(())
    }

    /// Whether it has become so long that [`Self::compact`] should follow.
    pub(crate) fn is_long(&self) -> bool {
        self.last - self.first >= MAX_RECORDS
    }

    /// Puts one record in the place of all.
    pub(crate) fn compact(&mut self, snapshot: &Entry) -> Result<(), Error> {
        let number = self.last + 1;
        self.write(|tx| {
            tx.execute("DELETE FROM journal", [])?;
            tx.execute(
                "INSERT INTO journal (number, entry) VALUES (?1, ?2)",
                params![number, text(snapshot)?],
            )?;
            Ok(())
        })?;
        (self.first, self.last) = (number, number);
        Ok(())
    }

    fn write(
        &mut self,
        f: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), Error> {
        crate::crash::point("before a write");
        let tx = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Error::database("be locked for writing"))?;
        f(&tx).map_err(Error::database("write a record"))?;
        tx.commit().map_err(Error::database("commit"))?;
        crate::crash::point("after a write");
        Ok(())
    }
}

fn text(entry: &Entry) -> rusqlite::Result<String> {
    serde_json::to_string(entry).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
