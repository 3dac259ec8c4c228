//! How nodes become members: the grid's database, the enrolment service over HTTPS, and its client.
//!
//! A grid's administrator keeps one *state directory*: the grid's CA, and a SQLite database with groups, join
//! tokens, nodes and revocations. [`Portal`] is that directory with its rules. The `aerie` command works on it
//! directly (create a grid, add a group, make a token, revoke), and [`Server`] opens the same directory to the
//! network; both may run at once, because every decision is made in one transaction on the database, so that a
//! revocation written by the command holds for the server's very next answer.
//!
//! ```text
//!  administrator: aerie grid create | group add | blob | revoke
//!        │ Portal                                   node: EnrolClient
//!        ▼                                             │ HTTPS, the CA pinned by its hash
//!  state directory ◄──────── Portal ◄──────── Server ◄─┘
//!  ca.pem ca.key portal.sqlite
//! ```
//!
//! A node enrols with a join token and a proof of its keys, and gets its certificates under a name that nobody
//! else has. Later it renews them with its own key alone, until it is revoked. Nothing secret travels to a server
//! before the server has shown a chain that ends in the CA whose hash the node's blob carries.
//!
//! Serial numbers, of certificates and of revocation lists, are the time of issue in milliseconds, or one more
//! than the last where that is not higher. They therefore go on rising when the database is restored from an older
//! backup, and members, who refuse a list that is older than theirs, do not ignore the restored portal.

mod blob;
mod client;
mod error;
mod server;
mod state;
mod wire;

pub use blob::{BlobParams, BlobRequest, check_url};
pub use client::{Attempt, ClientError, EnrolClient, Membership, UserCredential};
pub use error::{Denied, Error, Refusal};
pub use server::{Clock, ServeConfig, Server, system_clock};
pub use state::{
    Enrolled, GridInfo, GridSettings, GroupInfo, IssuedUser, NewToken, NodeInfo, Portal, RENEWAL_GRACE,
    Target, TokenInfo, TokenRequest, USER_LIFETIME,
};
