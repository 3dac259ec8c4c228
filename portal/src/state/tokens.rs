use std::time::Duration;

use aerie_identity::JoinToken;
use aerie_types::{GroupName, Role, Roles, UserName, WallMillis};
use rusqlite::{OptionalExtension, params};

use super::Portal;
use super::store::{millis, name, roles, sql};
use crate::Error;

/// The longest life of a token: a lab's installation medium is remade once a year.
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

/// What a new token is to allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// The group of the nodes that enrol with it.
    pub group: GroupName,
    /// Their roles.
    pub roles: Roles,
    /// Their owner.
    pub user: UserName,
    /// How long it is valid; at most a year.
    pub ttl: Duration,
    /// How many nodes may enrol with it.
    pub uses: u32,
}

/// A token that was just made. Its secret is nowhere else.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// The token itself.
    pub token: JoinToken,
    /// What lists call it.
    pub id: String,
    /// When it ends.
    pub expires_at: WallMillis,
}

/// What is known about a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// What lists call it: eight hexadecimal digits.
    pub id: String,
    /// The group of the nodes that enrol with it.
    pub group: GroupName,
    /// Their roles.
    pub roles: Roles,
    /// Their owner.
    pub user: UserName,
    /// When it was made.
    pub created_at: WallMillis,
    /// When it ends.
    pub expires_at: WallMillis,
    /// How many nodes it was made for.
    pub uses: u32,
    /// How many of those are left.
    pub uses_left: u32,
    /// When it was withdrawn, if it was.
    pub withdrawn_at: Option<WallMillis>,
}

impl Portal {
    /// Makes a join token.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a group that was not added, [`Error::Revoked`] for a revoked group or user,
    /// [`Error::Invalid`] for roles, life or uses out of their limits, or what the disk refuses.
    pub fn create_token(&self, request: &TokenRequest, now: WallMillis) -> Result<NewToken, Error> {
        check(request)?;
        let token = JoinToken::generate(self.ca.grid_id())?;
        let hash = token.hash();
        let id = hex::encode(&hash[..4]);
        let expires_at = now.plus(request.ttl);
        self.store.write(|tx| {
            let (group, user) = (request.group.as_str(), request.user.as_str());
            let known: Option<i64> = tx
                .query_row("SELECT 1 FROM groups WHERE name = ?1", [group], |row| row.get(0))
                .optional()
                .map_err(Error::database("look for a group"))?;
            if known.is_none() {
                return Err(Error::Unknown {
                    kind: "group",
                    name: group.to_owned(),
                    hint: "`aerie grid group list` shows the groups, `aerie grid group add` adds one",
                });
            }
            for (kind, name) in [("group", group), ("user", user)] {
                if super::revoke::is_blocked(tx, kind, name)? {
                    return Err(Error::Revoked {
                        kind,
                        name: name.to_owned(),
                    });
                }
            }
            tx.execute(
                "INSERT INTO tokens (hash, id, grp, roles, user, created_at, expires_at, uses, uses_left)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
                params![
                    hash,
                    id,
                    group,
                    request.roles.bits(),
                    user,
                    sql(now.0),
                    sql(expires_at.0),
                    request.uses
                ],
            )
            .map_err(Error::database("store a token"))?;
            Ok(())
        })?;
        Ok(NewToken {
            token,
            id,
            expires_at,
        })
    }

    /// Every token, the newest first.
    ///
    /// # Errors
    /// What the database refuses.
    pub fn list_tokens(&self) -> Result<Vec<TokenInfo>, Error> {
        const QUERY: &str =
            "SELECT id, grp, roles, user, created_at, expires_at, uses, uses_left, withdrawn_at
            FROM tokens ORDER BY created_at DESC, id";
        self.store.list("list tokens", QUERY, |row| {
            Ok(TokenInfo {
                id: row.get(0)?,
                group: name(row, 1)?,
                roles: roles(row, 2)?,
                user: name(row, 3)?,
                created_at: millis(row, 4)?,
                expires_at: millis(row, 5)?,
                uses: row.get(6)?,
                uses_left: row.get(7)?,
                withdrawn_at: row
                    .get::<_, Option<i64>>(8)?
                    .map(|at| WallMillis(at.unsigned_abs())),
            })
        })
    }

    /// Withdraws a token by its id, so that no further node enrols with it.
    ///
    /// # Errors
    /// [`Error::Unknown`], or what the disk refuses.
    pub fn withdraw_token(&self, id: &str, now: WallMillis) -> Result<(), Error> {
        self.store.write(|tx| {
            let changed = tx
                .execute(
                    "UPDATE tokens SET withdrawn_at = coalesce(withdrawn_at, ?2) WHERE id = ?1",
                    params![id, sql(now.0)],
                )
                .map_err(Error::database("withdraw a token"))?;
            if changed == 0 {
                return Err(Error::Unknown {
                    kind: "token",
                    name: id.to_owned(),
                    hint: "a token's id has eight hexadecimal digits",
                });
            }
            Ok(())
        })
    }
}

fn check(request: &TokenRequest) -> Result<(), Error> {
    let invalid = |what: &str, reason| {
        Err(Error::Invalid {
            what: what.to_owned(),
            reason,
        })
    };
    if request.roles.is_empty() {
        return invalid(
            "the list of roles",
            "name at least one of manager, submit, worker, client, relay",
        );
    }
    if request.roles.contains(Role::Client) && request.roles.contains(Role::Worker) {
        return invalid(
            "the list of roles",
            "a client has HTCondor's tools only; leave out worker or client",
        );
    }
    if request.uses == 0 {
        return invalid("the number of uses", "a token is for at least one node");
    }
    if request.ttl.is_zero() || request.ttl > MAX_TTL {
        return invalid("the token's life", "it must be between one second and 366 days");
    }
    Ok(())
}
