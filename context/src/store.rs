//! The broker's database: the journal of each context, one record per change.
//!
//! WAL with full synchronisation: a record that was answered survives a power cut. A context that is destroyed leaves
//! a row behind, by which its agents are told so. One broker has the database to itself: it holds an exclusive lock
//! for as long as it lives.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aerie_context_proto::{ContextId, Fingerprint, Record, Secret};
use aerie_types::WallMillis;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, TransactionBehavior, params};

use crate::Error;

const FILE: &str = "contexts.sqlite";
const LOCK: &str = "lock";
const VERSION: i64 = 1;

/// Most destroyed contexts remembered. Agents of older ones learn that there is no such context.
pub(crate) const MAX_TOMBSTONES: usize = 10_000;

/// How long a journal becomes before one record takes its place: reading it back stays a matter of a second.
const MAX_RECORDS: i64 = 16_384;

const SCHEMA: &str = "
CREATE TABLE contexts (
    id TEXT PRIMARY KEY,
    certificate BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    secret BLOB,
    created_at INTEGER NOT NULL,
    destroyed_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE records (
    context TEXT NOT NULL REFERENCES contexts (id),
    number INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (context, number)
) STRICT, WITHOUT ROWID;
";

/// A context as it is kept.
pub(crate) struct Kept {
    pub(crate) id: ContextId,
    pub(crate) certificate: Vec<u8>,
    /// `None` of a context that was destroyed.
    pub(crate) live: Option<Live>,
}

pub(crate) struct Live {
    pub(crate) secret: Secret,
    pub(crate) records: Vec<Record>,
}

pub(crate) struct Store {
    conn: Mutex<Connection>,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the database of a folder, making it if it is not there.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| Error::File {
                path,
                why: error.to_string(),
            }
        };
        let open = |path: &Path| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(path)
                .map_err(io_error(path))
        };
        let lock = open(&dir.join(LOCK))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Error::InUse { dir: dir.to_owned() })?;
        let path = dir.join(FILE);
        // SQLite gives its own mode to what it makes; the journal's files take that of the database.
        drop(open(&path)?);
        let mut conn = Connection::open(&path).map_err(Error::database("be opened"))?;
        conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
            .and_then(|()| conn.pragma_update(None, "synchronous", "FULL"))
            .and_then(|()| conn.pragma_update(None, "foreign_keys", "ON"))
            // The keys of a context that was destroyed are not to stay in free pages.
            .and_then(|()| conn.pragma_update(None, "secure_delete", "ON"))
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
            conn: Mutex::new(conn),
            _lock: lock,
        })
    }

    /// Every context, those that were destroyed included.
    pub(crate) fn load(&self) -> Result<Vec<Kept>, Error> {
        let conn = self.lock();
        let mut contexts = conn
            .prepare("SELECT id, certificate, secret, destroyed_at IS NOT NULL FROM contexts ORDER BY id")
            .map_err(Error::database("list contexts"))?;
        let rows = contexts
            .query_map([], |row| {
                let id: String = row.get(0)?;
                Ok((id, row.get(1)?, row.get::<_, Option<Vec<u8>>>(2)?, row.get(3)?))
            })
            .and_then(Iterator::collect::<Result<Vec<(String, Vec<u8>, _, bool)>, _>>)
            .map_err(Error::database("list contexts"))?;
        let mut kept = Vec::new();
        for (text, certificate, secret, destroyed) in rows {
            let id: ContextId = text.parse().map_err(|error| Error::File {
                path: FILE.into(),
                why: format!("{error}"),
            })?;
            let live = match secret {
                Some(secret) if !destroyed => Some(Live {
                    secret: Secret::new(secret),
                    records: records(&conn, id)?,
                }),
                _ => None,
            };
            kept.push(Kept {
                id,
                certificate,
                live,
            });
        }
        Ok(kept)
    }

    /// Keeps a new context with its first record.
    pub(crate) fn create(
        &self,
        id: ContextId,
        certificate: &[u8],
        secret: &Secret,
        record: &Record,
        now: WallMillis,
    ) -> Result<(), Error> {
        let text = encode(id, record)?;
        self.write(|tx| {
            tx.execute(
                "INSERT INTO contexts (id, certificate, fingerprint, secret, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    id.to_string(),
                    certificate,
                    Fingerprint::of(certificate).0,
                    secret.expose(),
                    sql(now)
                ],
            )?;
            tx.execute(
                "INSERT INTO records (context, number, record) VALUES (?1, 1, ?2)",
                params![id.to_string(), text],
            )
        })?;
        Ok(())
    }

    /// Adds a record to a context's journal. True where the journal has become so long that [`Self::compact`] should
    /// follow.
    pub(crate) fn append(&self, id: ContextId, record: &Record) -> Result<bool, Error> {
        let text = encode(id, record)?;
        self.write(|tx| {
            let number: i64 = tx.query_row(
                "INSERT INTO records (context, number, record)
                 SELECT ?1, coalesce(max(number), 0) + 1, ?2 FROM records WHERE context = ?1
                 RETURNING number",
                params![id.to_string(), text],
                |row| row.get(0),
            )?;
            Ok(number % MAX_RECORDS == 0)
        })
    }

    /// Puts one record in the place of a whole journal.
    pub(crate) fn compact(&self, id: ContextId, snapshot: &Record) -> Result<(), Error> {
        let text = encode(id, snapshot)?;
        self.write(|tx| {
            tx.execute("DELETE FROM records WHERE context = ?1", [id.to_string()])?;
            tx.execute(
                "INSERT INTO records (context, number, record) VALUES (?1, 1, ?2)",
                params![id.to_string(), text],
            )
        })?;
        Ok(())
    }

    /// Forgets a context but for the fact that there was one.
    pub(crate) fn destroy(&self, id: ContextId, now: WallMillis) -> Result<(), Error> {
        self.write(|tx| {
            tx.execute("DELETE FROM records WHERE context = ?1", [id.to_string()])?;
            tx.execute(
                "UPDATE contexts SET secret = NULL, destroyed_at = ?2 WHERE id = ?1",
                params![id.to_string(), sql(now)],
            )?;
            tx.execute(
                "DELETE FROM contexts WHERE destroyed_at IS NOT NULL AND id NOT IN
                 (SELECT id FROM contexts WHERE destroyed_at IS NOT NULL ORDER BY destroyed_at DESC LIMIT ?1)",
                [MAX_TOMBSTONES as i64],
            )
        })?;
        Ok(())
    }

    /// Runs one transaction: all of it happens and is on the disk, or on any error none.
    fn write<T>(
        &self,
        f: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let mut conn = self.lock();
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Error::database("be locked for writing"))?;
        let value = f(&tx).map_err(Error::database("write a record"))?;
        tx.commit().map_err(Error::database("commit"))?;
        Ok(value)
    }

    /// A panic within a transaction rolled it back, so that the connection behind a poisoned lock is sound.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn records(conn: &Connection, id: ContextId) -> Result<Vec<Record>, Error> {
    let mut statement = conn
        .prepare_cached("SELECT record FROM records WHERE context = ?1 ORDER BY number")
        .map_err(Error::database("read a journal"))?;
    let texts = statement
        .query_map([id.to_string()], |row| row.get::<_, String>(0))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(Error::database("read a journal"))?;
    texts
        .iter()
        .map(|text| serde_json::from_str(text).map_err(|source| Error::Damaged { id, source }))
        .collect()
}

fn encode(id: ContextId, record: &Record) -> Result<String, Error> {
    serde_json::to_string(record).map_err(|source| Error::Damaged { id, source })
}

/// A time as the database keeps it.
fn sql(time: WallMillis) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use aerie_context_proto::{Command, Context, Creation, Settings, xml};

    use super::*;

    const NOW: WallMillis = WallMillis(1_900_000_000_000);

    fn context(store: &Store) -> Context {
        let cluster = "<cluster><workspace><name>a</name></workspace></cluster>";
        let creation = Creation {
            id: ContextId([1; 16]),
            cluster: xml::read_cluster(cluster).unwrap(),
            settings: Settings::default(),
            open: true,
        };
        let record = Context::create(creation, NOW).unwrap();
        let secret = Secret::new(vec![1]);
        store
            .create(ContextId([1; 16]), b"certificate", &secret, &record, NOW)
            .unwrap();
        Context::replay([record]).unwrap()
    }

    fn inject(store: &Store, context: &mut Context, name: &str) {
        let command = Command::Inject {
            name: name.parse().unwrap(),
            content: name.to_owned(),
        };
        let record = context.decide(command, NOW).unwrap().record.unwrap();
        store.append(context.id(), &record).unwrap();
        context.commit(record).unwrap();
    }

    fn loaded(store: &Store) -> (usize, Context) {
        let kept = store.load().unwrap().pop().unwrap();
        let records = kept.live.unwrap().records;
        (records.len(), Context::replay(records).unwrap())
    }

    #[test]
    fn a_long_journal_is_shortened_and_reads_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut context = context(&store);
        for name in ["x", "y", "z"] {
            inject(&store, &mut context, name);
        }
        assert_eq!(loaded(&store), (4, context.clone()));
        store.compact(context.id(), &context.snapshot()).unwrap();
        inject(&store, &mut context, "w");
        assert_eq!(loaded(&store), (2, context));
    }

    #[test]
    fn a_destroyed_context_leaves_neither_its_secret_nor_its_journal_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let context = context(&store);
        store.destroy(context.id(), NOW).unwrap();
        let kept = store.load().unwrap().pop().unwrap();
        assert!(kept.live.is_none() && kept.id == context.id());
        let rows: i64 = store
            .lock()
            .query_row("SELECT count(*) FROM records", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 0);
    }

    #[test]
    fn only_the_brokers_user_reads_the_database() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        context(&store);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", entry.file_name());
        }
    }

    #[test]
    fn a_record_that_cannot_be_written_is_not_there_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut context = context(&store);
        store.lock().execute_batch("PRAGMA query_only = 1").unwrap();
        let record = context.decide(Command::Close, NOW).unwrap().record.unwrap();
        let error = store.append(context.id(), &record).unwrap_err().to_string();
        assert!(error.contains("check the disk's space"), "{error}");
        store.lock().execute_batch("PRAGMA query_only = 0").unwrap();
        assert_eq!(loaded(&store).1, context);
        inject(&store, &mut context, "x");
    }
}
