use std::net::SocketAddr;
use std::path::PathBuf;

use aerie_identity::{Rejection, time_text};
use aerie_types::{GridId, GridName, GroupName, NodeName, UserName, WallMillis};

/// What can go wrong on the portal's own side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Keys, certificates or their files.
    #[error(transparent)]
    Identity(#[from] aerie_identity::Error),
    /// The database refused.
    #[error(
        "the portal's database could not {what}: {source}; check the disk's space and the folder's owner"
    )]
    Database {
        /// What was tried.
        what: &'static str,
        /// The database's reason.
        #[source]
        source: rusqlite::Error,
    },
    /// The database holds a value that this release never writes.
    #[error("the portal's database has a damaged {0}; restore it from a backup")]
    Corrupt(&'static str),
    /// The database is of a later release.
    #[error("{} was written by a later release of Aerie (version {found}); use that release", path.display())]
    LaterVersion {
        /// The database's file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// The folder holds no grid.
    #[error("{} holds no grid; make one with `aerie grid create`, or name the right folder with --dir", dir.display())]
    NoGrid {
        /// The state directory.
        dir: PathBuf,
    },
    /// The folder holds a grid already.
    #[error("{} holds the grid '{name}' already; name another folder with --dir for a second grid", dir.display())]
    GridExists {
        /// The state directory.
        dir: PathBuf,
        /// The grid in it.
        name: GridName,
    },
    /// The folder has a CA but no database.
    #[error(
        "{} has the CA of the grid '{name}' but no database; restore it from a backup. Only if no node ever \
         enrolled, run `aerie grid create` with the same name and range once more",
        dir.display()
    )]
    NoDatabase {
        /// The state directory.
        dir: PathBuf,
        /// The CA's grid.
        name: GridName,
    },
    /// CA and database in the folder are of different grids.
    #[error("the CA and the database in {} are of different grids; restore both from the same backup", dir.display())]
    MixedGrids {
        /// The state directory.
        dir: PathBuf,
    },
    /// A name that is not in the database.
    #[error("there is no {kind} '{name}'; {hint}")]
    Unknown {
        /// Group, token, node or user.
        kind: &'static str,
        /// The name.
        name: String,
        /// How to find the right one.
        hint: &'static str,
    },
    /// A group that is there already.
    #[error("the group '{0}' exists already")]
    GroupExists(GroupName),
    /// A token for somebody who is revoked.
    #[error(
        "the {kind} '{name}' is revoked and gets no tokens until it is reinstated; choose another {kind}"
    )]
    Revoked {
        /// Group or user.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A value out of its limits.
    #[error("{what} is not usable: {reason}")]
    Invalid {
        /// Which value.
        what: String,
        /// Why not, and what would be right.
        reason: &'static str,
    },
    /// The server cannot listen.
    #[error("cannot listen on {addr}: {source}; is another server running there?")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The TLS library refused the server's or the client's set-up.
    #[error("cannot set up TLS: {0}; this is a defect")]
    Tls(#[source] rustls::Error),
    /// The HTTP client could not be made.
    #[error("cannot set up the HTTP client: {0}; check the proxy variables of the environment")]
    Http(#[source] reqwest::Error),
}

impl Error {
    pub(crate) fn database(what: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Database { what, source }
    }
}

/// Why a request got nothing.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// A rule forbids it; the requester is told.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The portal failed; the requester may try again.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// The rule that forbids what a node asked for. The text goes to the node's owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The token's text is damaged.
    #[error("{0}")]
    TokenMalformed(String),
    /// The token begins with another grid's short id.
    #[error(
        "this token is of another grid ({token}); this portal serves the grid '{name}' ({}): \
         use the portal that the token came with, or ask for a token of this grid",
        grid.short()
    )]
    TokenOfOtherGrid {
        /// The short id in the token.
        token: String,
        /// This portal's grid.
        grid: GridId,
        /// Its name.
        name: GridName,
    },
    /// No token with this secret was ever made here.
    #[error("this token is not known to the portal; ask the grid's administrator for a new one")]
    TokenUnknown,
    /// An administrator withdrew the token.
    #[error("this token was withdrawn on {}; ask the grid's administrator for a new one", time_text(*.0))]
    TokenWithdrawn(WallMillis),
    /// The token's time is over.
    #[error("this token expired on {}; ask the grid's administrator for a new one", time_text(*.0))]
    TokenExpired(WallMillis),
    /// As many nodes as the token allows have enrolled with it.
    #[error("this token is used up: it was for {uses} {}; ask the grid's administrator for a new one", nodes(*uses))]
    TokenUsedUp {
        /// How many nodes it was for.
        uses: u32,
    },
    /// The wished name belongs to other keys, and no other name is wanted.
    #[error("the name '{0}' belongs to another node; choose another name, or let the portal add a suffix")]
    NameTaken(NodeName),
    /// The wished name is a role's word.
    #[error("the name '{0}' is the word of a role, which no node may have as its name; choose another name")]
    NameReserved(NodeName),
    /// The keys belong to a node of another name, and no other name is wanted.
    #[error(
        "these keys belong to the node '{0}' already; use that name, or remove the keys to enrol as a new node"
    )]
    KeysNamed(NodeName),
    /// The node is revoked.
    #[error(
        "the node '{0}' is revoked; ask the grid's administrator, and enrol again with new keys and a new token"
    )]
    NodeRevoked(NodeName),
    /// The user is revoked.
    #[error("the user '{0}' is revoked; ask the grid's administrator")]
    UserRevoked(UserName),
    /// The group is revoked.
    #[error("the group '{0}' is revoked; ask the grid's administrator")]
    GroupRevoked(GroupName),
    /// The credential shown with the request is not accepted.
    #[error("{0}")]
    Credential(#[from] Rejection),
    /// The credential expired too long ago to be renewed.
    #[error("the credential expired on {}, too long ago to be renewed; enrol again with a new token", time_text(*.0))]
    TooLate(WallMillis),
    /// The portal does not know the node.
    #[error("the portal has no node '{0}' with these keys; enrol again with a new token")]
    NodeUnknown(NodeName),
    /// The node's roles do not allow user credentials.
    #[error("the node '{0}' may not have user credentials; only nodes of role manager, submit or client may")]
    RoleForbids(NodeName),
    /// The node belongs to another user.
    #[error("the node '{node}' belongs to '{owner}' and may not ask for credentials of '{asked}'")]
    NotItsUser {
        /// The node.
        node: NodeName,
        /// Its user.
        owner: UserName,
        /// The user it asked for.
        asked: UserName,
    },
    /// The request does not prove what it must.
    #[error("{0}")]
    Request(String),
}

impl Refusal {
    /// A word for programs, stable across releases.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TokenMalformed(_) => "token-malformed",
            Self::TokenOfOtherGrid { .. } => "token-of-other-grid",
            Self::TokenUnknown => "token-unknown",
            Self::TokenWithdrawn(_) => "token-withdrawn",
            Self::TokenExpired(_) => "token-expired",
            Self::TokenUsedUp { .. } => "token-used-up",
            Self::NameTaken(_) => "name-taken",
            Self::NameReserved(_) => "name-reserved",
            Self::KeysNamed(_) => "keys-named",
            Self::NodeRevoked(_) => "node-revoked",
            Self::UserRevoked(_) => "user-revoked",
            Self::GroupRevoked(_) => "group-revoked",
            Self::Credential(_) => "credential-rejected",
            Self::TooLate(_) => "credential-too-old",
            Self::NodeUnknown(_) => "node-unknown",
            Self::RoleForbids(_) => "role-forbids",
            Self::NotItsUser { .. } => "not-its-user",
            Self::Request(_) => "bad-request",
        }
    }
}

fn nodes(uses: u32) -> &'static str {
    if uses == 1 { "node" } else { "nodes" }
}
