//! The state directory of a grid and its rules.

mod enrol;
mod issue;
mod revoke;
mod store;
mod tokens;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aerie_identity::{CLOCK_SKEW, GridCa, RevokedBy, ServerCertificate, SignedRevocations, Verifier};
use aerie_types::{
    AddressPool, GridId, GridName, GroupName, NodeName, PeerId, Roles, UserName, VirtualRange, WallMillis,
};
use rusqlite::{Connection, OptionalExtension, params};

use crate::Error;
use store::{Store, joined, list, millis, name, next_serial, sql};

pub use enrol::{Enrolled, IssuedUser, RENEWAL_GRACE, USER_LIFETIME};
pub use revoke::Target;
pub use tokens::{NewToken, TokenInfo, TokenRequest};

const DATABASE: &str = "portal.sqlite";

/// One grid's state directory, open.
///
/// All methods block for as long as a write to the disk takes; call them off the async threads. Times are
/// arguments, so that the caller's clock counts.
pub struct Portal {
    dir: PathBuf,
    ca: GridCa,
    /// Knows no revocations: those are asked of the database within each transaction.
    verifier: Verifier,
    store: Store,
}

/// What a grid is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GridInfo {
    /// Its name.
    pub name: GridName,
    /// Its id.
    pub id: GridId,
    /// The SHA-256 of its CA's certificate.
    pub ca_hash: [u8; 32],
    /// Its CA's certificate.
    pub ca_pem: String,
    /// Its virtual range.
    pub range: VirtualRange,
}

/// What is decided when a grid is created and the same for all of its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GridSettings {
    /// Its virtual addresses.
    pub pool: AddressPool,
    /// The names of the nodes that lease them, in strict mode: three to five. None for the rule of the closest.
    pub witnesses: Vec<NodeName>,
}

impl From<VirtualRange> for GridSettings {
    fn from(range: VirtualRange) -> Self {
        Self {
            pool: range.into(),
            witnesses: Vec::new(),
        }
    }
}

/// A user group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its name.
    pub name: GroupName,
    /// When it was added.
    pub created_at: WallMillis,
    /// How many nodes it has.
    pub nodes: u64,
    /// Whether it is revoked.
    pub revoked: bool,
}

/// A node that enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its name.
    pub name: NodeName,
    /// Its member id.
    pub peer: PeerId,
    /// Its owner.
    pub user: UserName,
    /// Its owner's group.
    pub group: GroupName,
    /// What it may do.
    pub roles: Roles,
    /// The serial number of its newest certificates.
    pub serial: u64,
    /// When it enrolled first.
    pub enrolled_at: WallMillis,
    /// When its newest certificates were issued.
    pub issued_at: WallMillis,
    /// When they end.
    pub not_after: WallMillis,
    /// Whether it, its user or its group is revoked.
    pub revoked: Option<RevokedBy>,
}

impl Portal {
    /// Makes a grid in a folder that holds none.
    ///
    /// # Errors
    /// [`Error::GridExists`], [`Error::Invalid`] for a wrong number of witnesses, or what the disk refuses.
    pub fn create_grid(
        dir: &Path,
        name: GridName,
        settings: impl Into<GridSettings>,
        now: WallMillis,
    ) -> Result<Self, Error> {
        let settings = settings.into();
        let range = settings.pool.range();
        let names: std::collections::BTreeSet<_> = settings.witnesses.iter().collect();
        if !names.is_empty() && !(3..=5).contains(&names.len()) || names.len() != settings.witnesses.len() {
            return Err(Error::Invalid {
                what: "the list of witnesses".to_owned(),
                reason: "name three to five nodes, each once, or none",
            });
        }
        let exists = |ca: &GridCa| Error::GridExists {
            dir: dir.to_owned(),
            name: ca.name().clone(),
        };
        let ca = match GridCa::load(dir)? {
            // A creation that was interrupted between the CA and the database is carried on.
            Some(ca) if *ca.name() == name && ca.range() == range => ca,
            Some(ca) => return Err(exists(&ca)),
            None => {
                let ca = GridCa::create(name, range, now)?;
                ca.save(dir)?;
                ca
            }
        };
        let portal = Self::over(dir, ca)?;
        if portal.found(&settings, now)? {
            Ok(portal)
        } else {
            Err(exists(&portal.ca))
        }
    }

    /// Opens a grid's folder, and warns in the log if this machine's clock went back since it was last used.
    ///
    /// # Errors
    /// [`Error::NoGrid`], [`Error::NoDatabase`], [`Error::MixedGrids`], or what the disk refuses.
    pub fn open(dir: &Path, now: WallMillis) -> Result<Self, Error> {
        let ca = GridCa::load(dir)?.ok_or_else(|| Error::NoGrid { dir: dir.to_owned() })?;
        // An empty database in the place of a lost one would give the names of members to others.
        if !dir.join(DATABASE).exists() {
            return Err(Error::NoDatabase {
                dir: dir.to_owned(),
                name: ca.name().clone(),
            });
        }
        let portal = Self::over(dir, ca)?;
        let Some((id, last)) = portal.store.read(founded)? else {
            return Err(Error::NoDatabase {
                dir: dir.to_owned(),
                name: portal.ca.name().clone(),
            });
        };
        if id != portal.ca.grid_id().to_string() {
            return Err(Error::MixedGrids { dir: dir.to_owned() });
        }
        let behind = last.since(now);
        if behind > CLOCK_SKEW {
            tracing::warn!(
                seconds = behind.as_secs(),
                "this machine's clock is behind the newest certificate issued here; check the clock"
            );
        }
        Ok(portal)
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the grid is.
    #[must_use]
    pub fn grid(&self) -> GridInfo {
        GridInfo {
            name: self.ca.name().clone(),
            id: self.ca.grid_id(),
            ca_hash: self.ca.ca_hash(),
            ca_pem: self.ca.ca_pem(),
            range: self.ca.range(),
        }
    }

    /// What its administrator decided for it.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn settings(&self) -> Result<GridSettings, Error> {
        const QUERY: &str = "SELECT reserved, excluded, witnesses, routed, block FROM grid";
        let (reserved, excluded, witnesses, routed, block) = self
            .store
            .read(|conn| {
                conn.query_row(QUERY, [], |row| {
                    let routed: Vec<_> = list(row, 3)?;
                    let block: u8 = row.get(4)?;
                    Ok((list(row, 0)?, list(row, 1)?, list(row, 2)?, routed, block))
                })
            })
            .map_err(Error::database("read the grid's settings"))?;
        let pool = AddressPool::new(self.ca.range(), reserved, excluded);
        let pool = match routed.first() {
            None => pool,
            Some(part) => pool.and_then(|pool| pool.with_routed(*part, block)),
        };
        let pool = pool.map_err(|_| Error::Invalid {
            what: "the grid's settings in the database".to_owned(),
            reason: "restore it from a backup",
        })?;
        Ok(GridSettings { pool, witnesses })
    }

    /// Adds a user group.
    ///
    /// # Errors
    /// [`Error::GroupExists`], or what the disk refuses.
    pub fn add_group(&self, group: &GroupName, now: WallMillis) -> Result<(), Error> {
        self.store.write(|tx| {
            let added = tx
                .execute(
                    "INSERT OR IGNORE INTO groups (name, created_at) VALUES (?1, ?2)",
                    params![group.as_str(), sql(now.0)],
                )
                .map_err(Error::database("add a group"))?;
            if added == 0 {
                return Err(Error::GroupExists(group.clone()));
            }
            Ok(())
        })
    }

    /// Every group, by name.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn list_groups(&self) -> Result<Vec<GroupInfo>, Error> {
        const QUERY: &str = "SELECT name, created_at,
            (SELECT count(*) FROM nodes WHERE nodes.grp = groups.name),
            EXISTS (SELECT 1 FROM revocations r WHERE r.kind = 'group' AND r.name = groups.name AND r.active)
            FROM groups ORDER BY name";
        self.store.list("list groups", QUERY, |row| {
            Ok(GroupInfo {
                name: name(row, 0)?,
                created_at: millis(row, 1)?,
                nodes: row.get::<_, i64>(2)?.unsigned_abs(),
                revoked: row.get(3)?,
            })
        })
    }

    /// Every node that ever enrolled, by name.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn list_nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        const QUERY: &str =
            "SELECT n.name, peer, user, grp, roles, serial, enrolled_at, issued_at, not_after,
            (SELECT r.kind FROM revocations r WHERE r.active AND (
                (r.kind = 'node' AND r.name = n.name) OR (r.kind = 'user' AND r.name = n.user)
                OR (r.kind = 'group' AND r.name = n.grp)) ORDER BY r.kind = 'node' DESC, r.kind DESC LIMIT 1),
            EXISTS (SELECT 1 FROM revocations r WHERE r.active AND r.kind = 'serial' AND r.name = n.serial)
            FROM nodes n ORDER BY n.name";
        self.store.list("list nodes", QUERY, |row| {
            let by: Option<String> = row.get(9)?;
            let serial_revoked: bool = row.get(10)?;
            Ok(NodeInfo {
                name: name(row, 0)?,
                peer: PeerId(row.get(1)?),
                user: name(row, 2)?,
                group: name(row, 3)?,
                roles: store::roles(row, 4)?,
                serial: row.get::<_, i64>(5)?.unsigned_abs(),
                enrolled_at: millis(row, 6)?,
                issued_at: millis(row, 7)?,
                not_after: millis(row, 8)?,
                revoked: match by.as_deref() {
                    Some("node") => Some(RevokedBy::Node),
                    Some("user") => Some(RevokedBy::User),
                    Some(_) => Some(RevokedBy::Group),
                    None => serial_revoked.then_some(RevokedBy::Serial),
                },
            })
        })
    }

    /// The newest signed revocation list. A grid has one from its first day.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn revocations(&self) -> Result<SignedRevocations, Error> {
        let bytes: Vec<u8> = self
            .store
            .read(|conn| conn.query_row("SELECT list FROM grid", [], |row| row.get(0)))
            .map_err(Error::database("read the revocation list"))?;
        Ok(SignedRevocations::decode(&bytes)?)
    }

    /// The newest signed revocation list, if its serial is beyond `after`.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn revocations_after(&self, after: u64) -> Result<Option<SignedRevocations>, Error> {
        let newest: u64 = self
            .store
            .read(|conn| conn.query_row("SELECT last_list FROM grid", [], |row| row.get::<_, i64>(0)))
            .map_err(Error::database("read the revocation list's serial"))?
            .unsigned_abs();
        (newest > after).then(|| self.revocations()).transpose()
    }

    /// Issues a TLS certificate for the portal's own server.
    ///
    /// # Errors
    /// [`aerie_identity::Error::Issue`] for a name that cannot stand in a certificate, or what the disk refuses.
    pub fn issue_server(
        &self,
        names: &[String],
        now: WallMillis,
        lifetime: Duration,
    ) -> Result<ServerCertificate, Error> {
        for name in names {
            if name.parse::<IpAddr>().is_err() && !is_dns_name(name) {
                return Err(Error::Invalid {
                    what: format!("the server's name '{name}'"),
                    reason: "write a DNS name or an IP address, without port",
                });
            }
        }
        let serial = self.store.write(|tx| next_serial(tx, now))?;
        Ok(self.ca.issue_server(names, serial, now, lifetime)?)
    }

    fn over(dir: &Path, ca: GridCa) -> Result<Self, Error> {
        Ok(Self {
            dir: dir.to_owned(),
            verifier: ca.verifier()?,
            store: Store::open(&dir.join(DATABASE))?,
            ca,
        })
    }

    /// Writes the one row that says whose database this is. `false` if it is there already.
    fn found(&self, settings: &GridSettings, now: WallMillis) -> Result<bool, Error> {
        self.store.write(|tx| {
            if founded(tx)?.is_some() {
                return Ok(false);
            }
            let routed = settings.pool.routed();
            let part: Vec<_> = routed.iter().map(|routed| routed.part()).collect();
            let block = routed.map_or(0, |routed| routed.block_len());
            tx.execute(
                "INSERT INTO grid (one, id, created_at, last_serial, last_list, list, reserved, excluded, witnesses,
                                   routed, block)
                 VALUES (1, ?1, ?2, 0, 0, x'', ?3, ?4, ?5, ?6, ?7)",
                params![
                    self.ca.grid_id().to_string(),
                    sql(now.0),
                    joined(settings.pool.reserved()),
                    joined(settings.pool.excluded()),
                    joined(&settings.witnesses),
                    joined(&part),
                    block,
                ],
            )
            .map_err(Error::database("write the grid's id"))?;
            self.sign_list(tx, now)?;
            Ok(true)
        })
    }
}

/// The grid that the database is of, and the last serial, which is the time of the last issue.
fn founded(conn: &Connection) -> Result<Option<(String, WallMillis)>, Error> {
    conn.query_row("SELECT id, last_serial FROM grid", [], |row| {
        Ok((row.get(0)?, millis(row, 1)?))
    })
    .optional()
    .map_err(Error::database("read the grid's id"))
}

impl std::fmt::Debug for Portal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Portal")
            .field("dir", &self.dir)
            .field("grid", &self.ca.grid_id())
            .finish_non_exhaustive()
    }
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
