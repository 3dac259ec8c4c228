//! A store that is cheap to copy and to compare, and that can be made to break its promise.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use aerie_dht_proto::{Change, Rows, Store, StoreError, Table};

/// Rows by table and key.
type Contents = BTreeMap<(Table, Vec<u8>), Arc<[u8]>>;

/// A disk. A `lazy` one answers before it has written: what was granted or
/// proved since the last timeout is lost by a crash.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    rows: Arc<Contents>,
    /// The sum of the rows' hashes.
    digest: u64,
    unwritten: Vec<Change>,
    lazy: bool,
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub fn new(lazy: bool) -> Self {
        Self {
            lazy,
            ..Self::default()
        }
    }

    /// Writes what was only promised.
    pub fn sync(&mut self) {
        for change in std::mem::take(&mut self.unwritten) {
            self.write(&change);
        }
    }

    /// What a power failure leaves.
    #[must_use]
    pub fn after_crash(mut self) -> Self {
        self.unwritten.clear();
        self
    }

    fn write(&mut self, change: &Change) {
        let rows = Arc::make_mut(&mut self.rows);
        let key = (change.table, change.key.clone());
        let before = match &change.value {
            Some(value) => {
                self.digest = self.digest.wrapping_add(digest(&key, value));
                rows.insert(key.clone(), value.as_slice().into())
            }
            None => rows.remove(&key),
        };
        if let Some(before) = before {
            self.digest = self.digest.wrapping_sub(digest(&key, &before));
        }
    }
}

fn digest(key: &(Table, Vec<u8>), value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

impl Hash for Disk {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
        for change in &self.unwritten {
            (change.table, &change.key, &change.value).hash(state);
        }
    }
}

impl Store for Disk {
    fn load(&mut self, table: Table) -> Result<Rows, StoreError> {
        let rows = self.rows.iter().filter(|((of, _), _)| *of == table);
        Ok(rows
            .map(|((_, key), value)| (key.clone(), value.to_vec()))
            .collect())
    }

    fn persist(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        for change in changes {
            if self.lazy && matches!(change.table, Table::Grants | Table::Certificates) {
                self.unwritten.push(change.clone());
            } else {
                self.write(change);
            }
        }
        Ok(())
    }
}
