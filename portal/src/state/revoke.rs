//! Revocations: who is shut out, and the signed list that tells every member.
//!
//! A row is *active* while the portal refuses to issue anything to whom it names. It stands in the signed list, with
//! the last serial that existed when it was made, for as long as a certificate up to that serial can still be valid;
//! reinstating somebody ends the refusal but leaves the entry, so that old certificates stay revoked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aerie_identity::{DEFAULT_LIFETIME, MAX_REVOCATIONS, RevocationList, RevokedBy, SignedRevocations};
use aerie_types::{GroupName, NodeName, UserName, WallMillis};
use rusqlite::{OptionalExtension, Transaction, params};

use super::Portal;
use super::store::sql;
use crate::Error;

/// Entries leave the list when everything they revoke has expired, with a day for skewed clocks.
const RETENTION: Duration = Duration::from_secs(DEFAULT_LIFETIME.as_secs() + 24 * 3600);

/// What is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One node.
    Node(NodeName),
    /// Every node of a user.
    User(UserName),
    /// Every node of a group.
    Group(GroupName),
    /// The certificates of one serial number alone. Their holder cannot renew with them, but may enrol again.
    Serial(u64),
}

impl Target {
    fn kind(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::User(_) => "user",
            Self::Group(_) => "group",
            Self::Serial(_) => "serial",
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Node(name) => name.to_string(),
            Self::User(name) => name.to_string(),
            Self::Group(name) => name.to_string(),
            Self::Serial(serial) => serial.to_string(),
        }
    }
}

impl Portal {
    /// Revokes, and signs the list that says so. The caller spreads the list; a running server hands it out at once.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is nothing by that name, or what the disk refuses.
    pub fn revoke(&self, target: &Target, now: WallMillis) -> Result<SignedRevocations, Error> {
        let (kind, name) = (target.kind(), target.name());
        self.store.write(|tx| {
            if !exists(tx, target)? {
                return Err(unknown(target));
            }
            tx.execute(
                "INSERT INTO revocations (kind, name, upto, at, active)
                 VALUES (?1, ?2, (SELECT last_serial FROM grid), ?3, 1)
                 ON CONFLICT DO UPDATE SET upto = excluded.upto, at = excluded.at, active = 1",
                params![kind, name, sql(now.0)],
            )
            .map_err(Error::database("store a revocation"))?;
            self.sign_list(tx, now)
        })
    }

    /// Lets a revoked node, user or group be issued certificates again. What was revoked stays revoked: the nodes
    /// enrol anew.
    ///
    /// # Errors
    /// [`Error::Unknown`] if it is not revoked, or what the disk refuses.
    pub fn reinstate(&self, target: &Target) -> Result<(), Error> {
        self.store.write(|tx| {
            let changed = tx
                .execute(
                    "UPDATE revocations SET active = 0 WHERE kind = ?1 AND name = ?2 AND active",
                    params![target.kind(), target.name()],
                )
                .map_err(Error::database("end a revocation"))?;
            if changed == 0 {
                Err(unknown(target))
            } else {
                Ok(())
            }
        })
    }

    /// Builds and signs the list of this moment and makes it the newest.
    pub(super) fn sign_list(
        &self,
        tx: &Transaction<'_>,
        now: WallMillis,
    ) -> Result<SignedRevocations, Error> {
        let serial: i64 = tx
            .query_row(
                "UPDATE grid SET last_list = max(last_list + 1, ?1) RETURNING last_list",
                [sql(now.0)],
                |row| row.get(0),
            )
            .map_err(Error::database("draw a list's serial"))?;
        let mut list = RevocationList::empty(self.ca.grid_id(), serial.unsigned_abs(), now);
        list.serials = entries(tx, "serial", now)?.into_keys().collect::<BTreeSet<u64>>();
        list.nodes = entries(tx, "node", now)?;
        list.users = entries(tx, "user", now)?;
        list.groups = entries(tx, "group", now)?;
        let signed = self.ca.sign_revocations(&list)?;
        tx.execute("UPDATE grid SET list = ?1", [signed.encode()])
            .map_err(Error::database("store the revocation list"))?;
        Ok(signed)
    }
}

/// Whether nothing may be issued in this name.
pub(super) fn is_blocked(tx: &Transaction<'_>, kind: &str, name: &str) -> Result<bool, Error> {
    tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM revocations WHERE kind = ?1 AND name = ?2 AND active)",
        [kind, name],
        |row| row.get(0),
    )
    .map_err(Error::database("look for a revocation"))
}

/// Which entry revokes a certificate of this serial.
pub(super) fn revoked_by(
    tx: &Transaction<'_>,
    credential: &aerie_identity::Credential,
) -> Result<Option<RevokedBy>, Error> {
    let serial = credential.serial.to_string();
    let names = [
        (RevokedBy::Serial, "serial", serial.as_str()),
        (RevokedBy::Node, "node", credential.node.as_str()),
        (RevokedBy::User, "user", credential.user.as_str()),
        (RevokedBy::Group, "group", credential.group.as_str()),
    ];
    for (by, kind, name) in names {
        let revoked: bool = tx
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM revocations WHERE kind = ?1 AND name = ?2 AND upto >= ?3)",
                params![kind, name, sql(credential.serial)],
                |row| row.get(0),
            )
            .map_err(Error::database("look for a revocation"))?;
        if revoked {
            return Ok(Some(by));
        }
    }
    Ok(None)
}

fn entries<N>(tx: &Transaction<'_>, kind: &str, now: WallMillis) -> Result<BTreeMap<N, u64>, Error>
where
    N: std::str::FromStr + Ord,
{
    let since = now.0.saturating_sub(RETENTION.as_millis() as u64);
    let rows: Vec<(String, i64)> = tx
        // One more than a list may have: too many entries are an error when the list is signed, never left out.
        .prepare("SELECT name, upto FROM revocations WHERE kind = ?1 AND at > ?2 ORDER BY at DESC LIMIT ?3")
        .and_then(|mut statement| {
            statement
                .query_map(params![kind, sql(since), MAX_REVOCATIONS as i64 + 1], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?
                .collect()
        })
        .map_err(Error::database("read revocations"))?;
    rows.into_iter()
        .map(|(name, upto)| match name.parse() {
            Ok(name) => Ok((name, upto.unsigned_abs())),
            Err(_) => Err(Error::Corrupt("revocation")),
        })
        .collect()
}

fn exists(tx: &Transaction<'_>, target: &Target) -> Result<bool, Error> {
    let query = match target {
        Target::Node(_) => "SELECT 1 FROM nodes WHERE name = ?1",
        Target::User(_) => {
            "SELECT 1 FROM nodes WHERE user = ?1 UNION SELECT 1 FROM tokens WHERE user = ?1 LIMIT 1"
        }
        Target::Group(_) => "SELECT 1 FROM groups WHERE name = ?1",
        Target::Serial(_) => "SELECT 1 FROM issued WHERE serial = CAST(?1 AS INTEGER)",
    };
    let found: Option<i64> = tx
        .query_row(query, [target.name()], |row| row.get(0))
        .optional()
        .map_err(Error::database("look for what is revoked"))?;
    Ok(found.is_some())
}

fn unknown(target: &Target) -> Error {
    Error::Unknown {
        kind: match target {
            Target::Node(_) => "node",
            Target::User(_) => "user",
            Target::Group(_) => "group",
            Target::Serial(_) => "serial number",
        },
        name: target.name(),
        hint: match target {
            Target::Group(_) => "`aerie grid group list` shows the groups",
            _ => "`aerie grid nodes` shows nodes, users and serial numbers",
        },
    }
}
