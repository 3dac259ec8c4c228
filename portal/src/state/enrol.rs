//! What nodes ask for: to become a member, to stay one, and credentials for their users.
//!
//! Each request is one transaction: token, name, serial and record change together or not at all. An answer that
//! was lost on its way is simply asked for again: the same keys with the same token get the same name, and that
//! does not count as another use of the token.

use std::collections::BTreeSet;
use std::time::Duration;

use aerie_identity::{
    Credential, EnrolRequest, IssuedCredentials, JoinToken, Rejection, RenewRequest, RevokedBy,
    SignedRevocations, Subject, UserRequest,
};
use aerie_types::{GroupName, NodeName, PeerId, Role, Roles, UserName, WallMillis};
use rusqlite::{OptionalExtension, Transaction, params};

use super::Portal;
use super::issue::record;
use super::revoke::{is_blocked, revoked_by};
use super::store::{millis, name, next_serial, roles, sql};
use crate::{Denied, Error, Refusal};

/// For how long after its end a credential can still be renewed: a machine that was off for a holiday.
pub const RENEWAL_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a user credential lives: a working day and the night's jobs.
pub const USER_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The suffixes tried for a name that is taken, from `-2` on.
const MAX_SUFFIX: u32 = 99_999;

/// Names that no node gets: a certificate's identity is `name@role.<grid>.grid` and a local account's is
/// `account@<node>.<grid>.grid`, and neither must pass for the other. Nor does any get a name that every machine has
/// for itself.
const RESERVED: [&str; 9] = [
    "manager",
    "submit",
    "worker",
    "client",
    "relay",
    "user",
    "localhost",
    "broadcasthost",
    "wpad",
];

/// Whether no node gets this name. The Grid Appliance's names, `C` and nine digits, are those of addresses.
fn is_reserved(name: &str) -> bool {
    let of_an_address = name
        .strip_prefix('c')
        .is_some_and(|digits| digits.len() == 9 && digits.bytes().all(|byte| byte.is_ascii_digit()));
    RESERVED.contains(&name) || name.starts_with("ip6-") || of_an_address
}

/// The room that the longest suffix takes: a hyphen and five digits.
const SUFFIX_ROOM: usize = 6;

/// What a node gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The name it has now.
    pub node: NodeName,
    /// Its certificates.
    pub credentials: IssuedCredentials,
    /// The newest revocation list.
    pub revocations: SignedRevocations,
}

/// What a local user of a node gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedUser {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The CA's certificate, PEM.
    pub ca_pem: String,
    /// When the certificate ends.
    pub not_after: WallMillis,
}

impl Portal {
    /// Makes the requester a member by a join token.
    ///
    /// # Errors
    /// [`Denied::Refused`] with the rule, [`Denied::Failed`] with the defect.
    pub fn enrol(
        &self,
        token: &JoinToken,
        request: &EnrolRequest,
        now: WallMillis,
    ) -> Result<Enrolled, Denied> {
        let grid = self.ca.grid_id();
        if !token.is_of(grid) {
            return Err(Denied::Refused(Refusal::TokenOfOtherGrid {
                token: token.grid_short().to_owned(),
                grid,
                name: self.ca.name().clone(),
            }));
        }
        request
            .verify(grid)
            .map_err(|error| Refusal::Request(error.to_string()))?;
        let hash = token.hash();
        let (node, credentials) = self.store.write(|tx| {
            let known = node_of(tx, &request.peer)?;
            let again = known.as_ref().is_some_and(|node| node.token == hash);
            let grant = Grant::of_token(tx, &hash, again, now)?;
            refuse_blocked(tx, &grant.user, &grant.group)?;
            let node = match known {
                Some(known) => {
                    if is_blocked(tx, "node", known.name.as_str())? {
                        return Err(Denied::Refused(Refusal::NodeRevoked(known.name)));
                    }
                    if request.exact && request.node != known.name {
                        return Err(Denied::Refused(Refusal::KeysNamed(known.name)));
                    }
                    known.name
                }
                None => free_name(tx, &request.node, request.exact)?,
            };
            if !again {
                tx.execute(
                    "UPDATE tokens SET uses_left = uses_left - 1 WHERE hash = ?1",
                    [hash],
                )
                .map_err(Error::database("count a use of a token"))?;
            }
            let subject = grant.subject(node);
            let issued = self.issue_node(tx, request, &subject, now)?;
            store_node(tx, request, &subject, &hash, &issued, now)?;
            Ok((subject.node, issued))
        })?;
        tracing::info!(%node, peer = %request.peer, serial = credentials.serial, "node enrolled");
        self.enrolled(node, credentials)
    }

    /// Issues a member new certificates under its old name, proved by its current credential.
    ///
    /// User, group and roles are those that the database has for the node, whatever the old credential says.
    ///
    /// # Errors
    /// [`Denied::Refused`] with the rule, [`Denied::Failed`] with the defect.
    pub fn renew(&self, request: &RenewRequest, now: WallMillis) -> Result<Enrolled, Denied> {
        let current = self
            .verifier
            .verify_with_grace(&request.credential, now, RENEWAL_GRACE)
            .map_err(|rejection| match rejection {
                Rejection::Expired { not_after, .. } => Refusal::TooLate(not_after),
                other => Refusal::Credential(other),
            })?;
        request
            .verify(&current)
            .map_err(|error| Refusal::Request(error.to_string()))?;
        let credentials = self.store.write(|tx| {
            let subject = member(tx, &current)?;
            let issued = self.issue_node(tx, &request.enrol, &subject, now)?;
            let changed = tx
                .execute(
                    "UPDATE nodes SET serial = ?2, issued_at = ?3, not_after = ?4 WHERE name = ?1",
                    params![
                        subject.node.as_str(),
                        sql(issued.serial),
                        sql(now.0),
                        sql(issued.not_after.0)
                    ],
                )
                .map_err(Error::database("store a renewal"))?;
            debug_assert_eq!(changed, 1, "the node was read in this transaction");
            Ok::<_, Denied>(issued)
        })?;
        tracing::info!(node = %current.node, serial = credentials.serial, "credentials renewed");
        self.enrolled(current.node, credentials)
    }

    /// Issues a short-lived certificate for the node's own user, for HTCondor's tools.
    ///
    /// # Errors
    /// [`Denied::Refused`] with the rule, [`Denied::Failed`] with the defect.
    pub fn issue_user(&self, request: &UserRequest, now: WallMillis) -> Result<IssuedUser, Denied> {
        let current = self
            .verifier
            .verify(&request.credential, now)
            .map_err(Refusal::Credential)?;
        request
            .verify(&current)
            .map_err(|error| Refusal::Request(error.to_string()))?;
        let certificate_pem = self.store.write(|tx| {
            let subject = member(tx, &current)?;
            if ![Role::Manager, Role::Submit, Role::Client]
                .iter()
                .any(|role| subject.roles.contains(*role))
            {
                return Err(Denied::Refused(Refusal::RoleForbids(subject.node)));
            }
            if request.user != subject.user {
                return Err(Denied::Refused(Refusal::NotItsUser {
                    node: subject.node,
                    owner: subject.user,
                    asked: request.user.clone(),
                }));
            }
            let serial = next_serial(tx, now)?;
            let end = now.plus(USER_LIFETIME);
            let pem = self
                .ca
                .issue_user(request, serial, now, USER_LIFETIME)
                .map_err(Error::from)?;
            record(tx, serial, "user", request.user.as_str(), &subject.node, now, end)?;
            Ok(pem)
        })?;
        Ok(IssuedUser {
            certificate_pem,
            ca_pem: self.ca.ca_pem(),
            not_after: now.plus(USER_LIFETIME),
        })
    }

    fn enrolled(&self, node: NodeName, credentials: IssuedCredentials) -> Result<Enrolled, Denied> {
        Ok(Enrolled {
            node,
            credentials,
            revocations: self.revocations()?,
        })
    }
}

/// What a token grants.
struct Grant {
    group: GroupName,
    roles: Roles,
    user: UserName,
}

impl Grant {
    /// Reads a token and applies its rules. `again`: the requester enrolled with it before.
    fn of_token(tx: &Transaction<'_>, hash: &[u8; 32], again: bool, now: WallMillis) -> Result<Self, Denied> {
        const QUERY: &str = "SELECT grp, roles, user, expires_at, uses, uses_left, withdrawn_at
            FROM tokens WHERE hash = ?1";
        let row = tx
            .query_row(QUERY, [hash], |row| {
                let grant = Self {
                    group: name(row, 0)?,
                    roles: roles(row, 1)?,
                    user: name(row, 2)?,
                };
                let (uses, left): (u32, u32) = (row.get(4)?, row.get(5)?);
                Ok((grant, millis(row, 3)?, uses, left, row.get::<_, Option<i64>>(6)?))
            })
            .optional()
            .map_err(Error::database("look for a token"))?;
        let Some((grant, expires_at, uses, left, withdrawn)) = row else {
            return Err(Refusal::TokenUnknown.into());
        };
        if let Some(at) = withdrawn {
            return Err(Refusal::TokenWithdrawn(WallMillis(at.unsigned_abs())).into());
        }
        if now >= expires_at {
            return Err(Refusal::TokenExpired(expires_at).into());
        }
        if left == 0 && !again {
            return Err(Refusal::TokenUsedUp { uses }.into());
        }
        Ok(grant)
    }

    fn subject(self, node: NodeName) -> Subject {
        Subject {
            node,
            user: self.user,
            group: self.group,
            roles: self.roles,
        }
    }
}

/// A node as the database has it.
struct Known {
    name: NodeName,
    token: [u8; 32],
}

fn node_of(tx: &Transaction<'_>, peer: &PeerId) -> Result<Option<Known>, Error> {
    tx.query_row("SELECT name, token FROM nodes WHERE peer = ?1", [peer.0], |row| {
        Ok(Known {
            name: name(row, 0)?,
            token: row.get(1)?,
        })
    })
    .optional()
    .map_err(Error::database("look for a node"))
}

/// The node of a verified credential, if nothing forbids to issue it more.
fn member(tx: &Transaction<'_>, current: &Credential) -> Result<Subject, Denied> {
    if let Some(by) = revoked_by(tx, current)? {
        return Err(Denied::Refused(match by {
            RevokedBy::Node => Refusal::NodeRevoked(current.node.clone()),
            RevokedBy::User => Refusal::UserRevoked(current.user.clone()),
            RevokedBy::Group => Refusal::GroupRevoked(current.group.clone()),
            RevokedBy::Serial => Refusal::Credential(Rejection::Revoked {
                node: current.node.clone(),
                serial: current.serial,
                by,
            }),
        }));
    }
    let subject = tx
        .query_row(
            "SELECT name, user, grp, roles FROM nodes WHERE name = ?1 AND peer = ?2",
            params![current.node.as_str(), current.peer.0],
            |row| {
                Ok(Subject {
                    node: name(row, 0)?,
                    user: name(row, 1)?,
                    group: name(row, 2)?,
                    roles: roles(row, 3)?,
                })
            },
        )
        .optional()
        .map_err(Error::database("look for a node"))?
        .ok_or_else(|| Refusal::NodeUnknown(current.node.clone()))?;
    if is_blocked(tx, "node", subject.node.as_str())? {
        return Err(Refusal::NodeRevoked(subject.node).into());
    }
    refuse_blocked(tx, &subject.user, &subject.group)?;
    Ok(subject)
}

fn refuse_blocked(tx: &Transaction<'_>, user: &UserName, group: &GroupName) -> Result<(), Denied> {
    if is_blocked(tx, "user", user.as_str())? {
        return Err(Refusal::UserRevoked(user.clone()).into());
    }
    if is_blocked(tx, "group", group.as_str())? {
        return Err(Refusal::GroupRevoked(group.clone()).into());
    }
    Ok(())
}

/// The wished name, or where it is taken or reserved and another will do, the wished name with the first free suffix.
fn free_name(tx: &Transaction<'_>, wish: &NodeName, exact: bool) -> Result<NodeName, Denied> {
    // Names are of lower-case letters, digits and hyphens, so that none of GLOB's own characters can occur.
    let taken: BTreeSet<String> = tx
        .prepare("SELECT name FROM nodes WHERE name = ?1 OR name GLOB ?2")
        .and_then(|mut statement| {
            let stem: String = wish.as_str().chars().take(NodeName::MAX - SUFFIX_ROOM).collect();
            // Candidates are cut later and trimmed alike, so that all of them begin with this.
            let pattern = format!("{}*", stem.trim_end_matches('-'));
            statement
                .query_map([wish.as_str(), &pattern], |row| row.get(0))?
                .collect()
        })
        .map_err(Error::database("look for a name"))?;
    let reserved = is_reserved(wish.as_str());
    if !reserved && !taken.contains(wish.as_str()) {
        return Ok(wish.clone());
    }
    if exact && reserved {
        return Err(Refusal::NameReserved(wish.clone()).into());
    }
    if exact {
        return Err(Refusal::NameTaken(wish.clone()).into());
    }
    (2..=MAX_SUFFIX)
        .map(|number| {
            let suffix = format!("-{number}");
            let stem: String = wish.as_str().chars().take(NodeName::MAX - suffix.len()).collect();
            format!("{}{suffix}", stem.trim_end_matches('-'))
        })
        .find(|name| !taken.contains(name) && !is_reserved(name))
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| Refusal::NameTaken(wish.clone()).into())
}

fn store_node(
    tx: &Transaction<'_>,
    request: &EnrolRequest,
    subject: &Subject,
    token: &[u8; 32],
    issued: &IssuedCredentials,
    now: WallMillis,
) -> Result<(), Error> {
    let changed = tx
        .execute(
        "INSERT INTO nodes (name, peer, user, grp, roles, token, serial, enrolled_at, issued_at, not_after)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8, ?9)
         ON CONFLICT (name) DO UPDATE SET user = excluded.user, grp = excluded.grp, roles = excluded.roles,
            token = excluded.token, serial = excluded.serial, issued_at = excluded.issued_at,
            not_after = excluded.not_after WHERE nodes.peer = excluded.peer",
        params![
            subject.node.as_str(),
            request.peer.0,
            subject.user.as_str(),
            subject.group.as_str(),
            subject.roles.bits(),
            token,
            sql(issued.serial),
            sql(now.0),
            sql(issued.not_after.0)
        ],
    )
    .map_err(Error::database("store a node"))?;
    // A name never passes to other keys.
    if changed == 1 {
        Ok(())
    } else {
        Err(Error::Corrupt("node"))
    }
}
