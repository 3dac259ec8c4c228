//! The rows of the store: read at the start, written before what they say is answered, removed when it has ended.

use aerie_types::{Key, PeerId, WallMillis};

use crate::lease::encode;
use crate::limits::REMEMBERED;
use crate::record::{GrantRow, Record, Seen, SeenRow};
use crate::register::{PURGE_EVERY, SAVE_EVERY};
use crate::store::{Change, Rows, Store, Table};
use crate::witness::{put, remove};
use crate::{Error, Keys, Now, Register, StoreError};

impl<S: Store, K: Keys> Register<S, K> {
    pub(crate) fn load_members(&mut self, rows: Rows, now: Now) -> Result<(), Error> {
        for (key, value) in rows {
            let peer: [u8; 32] = key.try_into().map_err(|_| row_error(Table::Members))?;
            let until: [u8; 8] = value.try_into().map_err(|_| row_error(Table::Members))?;
            let until = WallMillis(u64::from_be_bytes(until));
            let age = REMEMBERED.saturating_sub(until.since(now.wall));
            self.members.heard(PeerId(peer), age, now.instant);
        }
        Ok(())
    }

    pub(crate) fn load_records(&mut self, grants: Rows, certificates: Rows, now: Now) -> Result<(), Error> {
        for (key, value) in grants {
            let key = Key(key.try_into().map_err(|_| row_error(Table::Grants))?);
            let row: GrantRow = postcard::from_bytes(&value).map_err(|_| row_error(Table::Grants))?;
            let grant = row.into_grant(now);
            let home = key == grant.leased.home_key(self.config.grid, &grant.name);
            let record = self.records.entry(key).or_default();
            if home && grant.ttl > self.config.timings.first_ttl {
                record.lives_at(grant.holder, grant.leased, grant.until, grant.ttl);
            }
            record.grant = Some(grant);
        }
        for (key, value) in certificates {
            let key = Key(key.try_into().map_err(|_| row_error(Table::Certificates))?);
            let row: SeenRow = postcard::from_bytes(&value).map_err(|_| row_error(Table::Certificates))?;
            for credential in &row.proof.credentials {
                self.learn(credential, now);
            }
            let until = now.instant + row.rest(now.wall);
            let certificate = row.proof.certificate;
            let terms = &certificate.terms;
            let record = self.records.entry(key).or_default();
            if terms.is_home() && certificate.ttl() > self.config.timings.first_ttl {
                record.lives_at(terms.holder, terms.leased, until, certificate.ttl());
            }
            record.seen = Some(Seen { certificate, until });
        }
        Ok(())
    }

    /// A member counts from now on, also after a restart.
    pub(crate) fn save_member(&mut self, peer: PeerId, now: Now) {
        if !self.members.counts(peer) {
            return;
        }
        let until = now.wall.plus(REMEMBERED).0.to_be_bytes().to_vec();
        self.persist_soon(put(Table::Members, &peer.0, until));
    }

    /// Writes changes, and in the same transaction those that wait. Where both do not find room, the changes are tried
    /// alone.
    pub(crate) fn persist(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut all = std::mem::take(&mut self.unwritten);
        let waited = !all.is_empty();
        all.extend_from_slice(changes);
        let written = self.write(&all);
        if written.is_err() && waited {
            return self.write(changes);
        }
        written
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let result = self.store.persist(changes);
        if let Err(error) = &result {
            self.stats.store_failures += 1;
            tracing::warn!(%error, "the register's store cannot write; this witness abstains");
        }
        result
    }

    /// Writes a change at the end of the call at hand, or with what has to be written before: each transaction is
    /// synced. Nothing that an answer relies on may wait.
    pub(crate) fn persist_soon(&mut self, change: Change) {
        self.unwritten.push(change);
    }

    pub(crate) fn persist_meta(&mut self, name: &[u8], value: Option<&impl serde::Serialize>) {
        let change = match value {
            Some(value) => put(Table::Meta, name, encode(value)),
            None => remove(Table::Meta, name),
        };
        let _ = self.persist(&[change]);
    }

    /// A copy of what is known of a key, without what has ended.
    pub(crate) fn record(&mut self, key: Key, now: Now) -> Record {
        let mut record = self.records.get(&key).cloned().unwrap_or_default();
        let (grant, seen) = record.expire(now.instant);
        self.note_stale(key, grant, seen);
        record
    }

    pub(crate) fn note_stale(&mut self, key: Key, grant: bool, seen: bool) {
        if grant {
            self.stale.insert((Table::Grants, key));
        }
        if seen {
            self.stale.insert((Table::Certificates, key));
        }
    }

    pub(crate) fn purge(&mut self, now: Now) {
        self.purge_at = now.instant + PURGE_EVERY;
        let mut ended = Vec::new();
        self.records.retain(|key, record| {
            let (grant, seen) = record.expire(now.instant);
            ended.push((*key, grant, seen));
            !record.is_empty()
        });
        for (key, grant, seen) in ended {
            self.note_stale(key, grant, seen);
        }
        let stale = std::mem::take(&mut self.stale);
        let mut changes: Vec<Change> = stale
            .iter()
            .filter(|(table, key)| match self.records.get(key) {
                Some(record) if *table == Table::Grants => record.grant.is_none(),
                Some(record) => record.seen.is_none(),
                None => true,
            })
            .map(|(table, key)| remove(*table, &key.0))
            .collect();
        let gone = self.members.purge(now.instant);
        changes.extend(gone.iter().map(|peer| remove(Table::Members, &peer.0)));
        if self.save_at <= now.instant {
            self.save_at = now.instant + SAVE_EVERY;
            let until = now.wall.plus(REMEMBERED).0.to_be_bytes();
            let connected = self.members.connected().filter(|peer| self.members.counts(*peer));
            changes.extend(connected.map(|peer| put(Table::Members, &peer.0, until.to_vec())));
        }
        if self.persist(&changes).is_err() {
            self.stale.extend(stale);
        }
    }
}

pub(crate) fn row_error(table: Table) -> Error {
    Error::Row { table: table.name() }
}
