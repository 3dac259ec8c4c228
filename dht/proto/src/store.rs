//! What must survive: the edge to the disk, and its twin in memory.
//!
//! The core encodes its rows itself, so that a store is a map of byte strings with one promise: when
//! [`Store::persist`] returns, all of the changes survive a power failure, or none of them was made.

use std::collections::BTreeMap;

use crate::StoreError;

/// A part of the persisted state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// What this witness granted, by key.
    Grants,
    /// Valid certificates it has seen, by key.
    Certificates,
    /// Members known, by peer id.
    Members,
    /// Single values, by name.
    Meta,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 4] = [Self::Grants, Self::Certificates, Self::Members, Self::Meta];

    /// The table's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grants => "grants",
            Self::Certificates => "certificates",
            Self::Members => "members",
            Self::Meta => "meta",
        }
    }
}

/// One change. `value` is `None` where the row is removed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// Where.
    pub table: Table,
    /// Which row.
    pub key: Vec<u8>,
    /// Its new contents.
    pub value: Option<Vec<u8>>,
}

/// A table's rows: keys and values.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// The edge to the disk.
pub trait Store {
    /// Reads a table, in the order of its keys.
    ///
    /// # Errors
    /// [`StoreError`] with the reason.
    fn load(&mut self, table: Table) -> Result<Rows, StoreError>;

    /// Makes all of the changes durable, or none.
    ///
    /// # Errors
    /// [`StoreError`] with the reason; then nothing was changed.
    fn persist(&mut self, changes: &[Change]) -> Result<(), StoreError>;
}

/// The twin in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct MemoryStore {
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    /// While set, every write fails, as on a full disk.
    pub broken: bool,
}

impl Store for MemoryStore {
    fn load(&mut self, table: Table) -> Result<Rows, StoreError> {
        let rows = self.rows.iter().filter(|((of, _), _)| *of == table);
        Ok(rows
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }

    fn persist(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if self.broken {
            return Err(StoreError("the store is broken".to_owned()));
        }
        for Change { table, key, value } in changes {
            match value {
                Some(value) => self.rows.insert((*table, key.clone()), value.clone()),
                None => self.rows.remove(&(*table, key.clone())),
            };
        }
        Ok(())
    }
}
