//! What travels between broker, members and creators, as JSON over HTTPS.
//!
//! | request | by | body | answer |
//! |---|---|---|---|
//! | `POST /ctx/` | creator | cluster document, XML or JSON; query [`CreateQuery`] | [`Created`] |
//! | `GET /ctx/` | creator | | list of [`crate::Status`] without members |
//! | `GET /ctx/ID` | creator, member | | [`crate::Status`] |
//! | `DELETE /ctx/ID` | creator | | |
//! | `GET /ctx/ID/contact` | creator | | [`Contact`] |
//! | `GET /ctx/ID/user-data/SET?member=NAME` | creator | | [`crate::UserData`] |
//! | `POST /ctx/ID/close` | creator | | |
//! | `PUT /ctx/ID/data/NAME` | creator | the blob | |
//! | `PUT /ctx/ID/sets/SET` | creator | [`Quantity`] | [`Members`] |
//! | `POST /ctx/ID/members` | member | [`Report`] | [`Registered`] |
//! | `GET /ctx/ID/members/NAME?after=V&wait=S` | member | | [`crate::View`]; 204 where there is no news |
//! | `POST /ctx/ID/members/NAME/exit` | member | [`crate::Exit`] | [`ExitAnswer`] |
//! | `DELETE /ctx/ID/members/NAME` | creator, member | | |
//! | `GET /health` | anybody | | the broker's version |
//!
//! A request that fails is answered with [`ErrorAnswer`]. A member may have its view as XML too (`Accept:
//! application/xml`).
//!
//! A creator shows the broker's token (`Authorization: Bearer`), a member the context's certificate in the TLS
//! handshake and, once it has reported, its instance in the header [`INSTANCE_HEADER`].

use serde::{Deserialize, Serialize};

use crate::contact::Contact;
use crate::names::{ContextId, MemberName, SetName};
use crate::state::{Provided, Verdict};

/// The header in which a member shows its instance.
pub const INSTANCE_HEADER: &str = "x-aerie-instance";

/// The longest that a broker keeps a member waiting for news, in seconds. Shorter than what middle boxes cut.
pub const MAX_WAIT_SECS: u64 = 50;

/// Longest report or exit report in bytes.
pub const MAX_REPORT_BYTES: usize = 512 * 1024;

/// Longest answer in bytes that a member reads: the data of a context twice (JSON escapes) and its identities.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// How to create a context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateQuery {
    /// Whether data and providers are still to be added.
    pub open: bool,
    /// See [`crate::Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_secs: Option<u64>,
    /// See [`crate::Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_secs: Option<u64>,
    /// See [`crate::Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// See [`crate::Settings`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_secs: Option<u64>,
}

/// A context that was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// Its id.
    pub id: ContextId,
    /// What its members need. It holds the context's secret.
    pub contact: Contact,
    /// The members that are expected.
    pub members: Vec<MemberName>,
}

/// What a member reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Which member it is, where it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<MemberName>,
    /// Of which set it is.
    pub set: SetName,
    /// What it contributes.
    pub provided: Provided,
}

/// The member that the reporter is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its name.
    pub member: MemberName,
}

/// How many members a set is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantity {
    /// In all.
    pub quantity: u32,
}

/// The members of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Their names.
    pub members: Vec<MemberName>,
}

/// What a member does after its exit report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum ExitAnswer {
    /// Wait for the next version.
    Accepted,
    /// Try the same version again.
    Retry {
        /// After so many milliseconds.
        after_millis: u64,
    },
    /// No attempt is left: wait for the next version.
    GivenUp,
    /// There is news already.
    Superseded,
}

impl From<Verdict> for ExitAnswer {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accepted => Self::Accepted,
            Verdict::Retry { after } => Self::Retry {
                after_millis: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
            },
            Verdict::GivenUp => Self::GivenUp,
            Verdict::Superseded => Self::Superseded,
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// For programs: the refusal's code, or the server's own.
    pub code: String,
    /// For people.
    pub message: String,
}
