//! The one place where certificates are issued: a serial is drawn, the certificate made, its issue recorded.

use aerie_identity::{DEFAULT_LIFETIME, EnrolRequest, IssuedCredentials, Subject};
use aerie_types::{NodeName, WallMillis};
use rusqlite::{Transaction, params};

use super::Portal;
use super::store::{next_serial, sql};
use crate::Error;

impl Portal {
    pub(super) fn issue_node(
        &self,
        tx: &Transaction<'_>,
        request: &EnrolRequest,
        subject: &Subject,
        now: WallMillis,
    ) -> Result<IssuedCredentials, Error> {
        let serial = next_serial(tx, now)?;
        let issued = self.ca.issue(request, subject, serial, now, DEFAULT_LIFETIME)?;
        record(
            tx,
            serial,
            "node",
            subject.node.as_str(),
            &subject.node,
            now,
            issued.not_after,
        )?;
        Ok(issued)
    }
}

/// Keeps what was issued until it has expired, so that a serial can be traced to its holder.
pub(super) fn record(
    tx: &Transaction<'_>,
    serial: u64,
    kind: &str,
    name: &str,
    node: &NodeName,
    now: WallMillis,
    not_after: WallMillis,
) -> Result<(), Error> {
    let values = params![
        sql(serial),
        kind,
        name,
        node.as_str(),
        sql(now.0),
        sql(not_after.0)
    ];
    tx.execute(
        "INSERT INTO issued (serial, kind, name, node, issued_at, not_after) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        values,
    )
    .and_then(|_| tx.execute("DELETE FROM issued WHERE not_after < ?1", [sql(now.0)]))
    .map(drop)
    .map_err(Error::database("record what was issued"))
}
