//! What can be wrong with a document, and why a request is refused.

use crate::cluster::Line;
use crate::names::{BadName, ContextId, DataName, Interface, MemberName, SetName};

/// Something wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// An element that cannot be used.
    #[error("{}{element} {why}", at(*line))]
    Wrong {
        /// Where it begins.
        line: Line,
        /// The element, and its name where it has one.
        element: String,
        /// Why, and what would be right.
        why: String,
    },
    /// More of something than is allowed.
    #[error("there are too many {what}; {limit} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// Something required that nobody provides.
    #[error(
        "{}workspace '{set}' requires the {kind} '{name}', which no workspace provides; add it to the <provides> of \
         one, or create the context open and add the provider before closing it",
        at(*line)
    )]
    NobodyProvides {
        /// Where it is required.
        line: Line,
        /// Role or data.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Who requires it.
        set: SetName,
    },
}

fn at(line: Line) -> String {
    line.0.map_or_else(String::new, |line| format!("line {line}: "))
}

impl DocumentError {
    pub(crate) fn at(line: Line, element: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Wrong {
            line,
            element: element.into(),
            why: why.into(),
        }
    }

    pub(crate) fn too_many(what: &'static str, limit: usize) -> Self {
        Self::TooMany { what, limit }
    }
}

/// Why a context does not do what it was asked to. None of these changes anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The document of a new context.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A value out of its limits.
    #[error("{what} is not usable: {why}")]
    Invalid {
        /// Which.
        what: &'static str,
        /// Why not, and what would be right.
        why: String,
    },
    /// The context is no more.
    #[error("the context {0} was destroyed; an agent of it has nothing more to do")]
    Destroyed(ContextId),
    /// A set that the context lacks.
    #[error("the context has no workspace '{0}'; its cluster document names those that it has")]
    UnknownSet(SetName),
    /// A member that the context lacks.
    #[error("the context has no member '{0}' (any more); it may have left or been removed")]
    UnknownMember(MemberName),
    /// The asker is not the member that it speaks for.
    #[error("'{0}' is another machine: a member speaks for itself alone")]
    NotYours(MemberName),
    /// The asker is a member already, under another name or in another set.
    #[error("this machine has reported as '{0}' already; it cannot be a second member")]
    AlreadyMember(MemberName),
    /// The member has reported something else before.
    #[error(
        "'{member}' has reported other {what} before; remove the member and expect a new one if the machine \
         was replaced"
    )]
    Differs {
        /// The member.
        member: MemberName,
        /// What differs.
        what: &'static str,
    },
    /// Somebody else has this address or host name.
    #[error("{what} {value} is of '{by}' already; two members cannot share it")]
    IdentityTaken {
        /// Address or host name.
        what: &'static str,
        /// Which.
        value: String,
        /// Whose it is.
        by: MemberName,
    },
    /// All members of the set have reported.
    #[error("all {quantity} members of '{set}' have reported; expect more with `aerie context expect`")]
    NoPlace {
        /// The set.
        set: SetName,
        /// How many it has.
        quantity: usize,
    },
    /// An interface whose identity the document asks for.
    #[error("'{set}' has to report the identity of {interface}, and did not")]
    InterfaceMissing {
        /// The set.
        set: SetName,
        /// The interface.
        interface: Interface,
    },
    /// No identity at all.
    #[error("'{0}' has to report at least one identity with an address, and did not")]
    IdentityMissing(SetName),
    /// A host name or host key that somebody requires.
    #[error("'{set}' has to report its {what}, because '{by}' requires it; the machine has none")]
    PartMissing {
        /// The set.
        set: SetName,
        /// Host name or SSH host key.
        what: &'static str,
        /// Who requires it.
        by: SetName,
    },
    /// A data blob that the document promises, or one that it does not.
    #[error("'{set}' {problem} the data '{name}'; report what its <provides> names and nothing else")]
    Data {
        /// The set.
        set: SetName,
        /// Which it is.
        problem: &'static str,
        /// The blob.
        name: DataName,
    },
    /// No more injections are accepted.
    #[error("the context accepts no more data: it was closed; members can still join and leave")]
    Closed,
    /// Nothing like this version was delivered to the member.
    #[error("'{member}' reports version {version} of the context, which it has not been given")]
    UnknownVersion {
        /// The member.
        member: MemberName,
        /// The version.
        version: u32,
    },
    /// A limit.
    #[error("the context would have more {what} than {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

impl Refusal {
    /// A short name for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Document(_) => "document",
            Self::Name(_) => "name",
            Self::Invalid { .. } => "invalid",
            Self::Destroyed(_) => "destroyed",
            Self::UnknownSet(_) => "unknown-workspace",
            Self::UnknownMember(_) => "unknown-member",
            Self::NotYours(_) => "not-yours",
            Self::AlreadyMember(_) => "already-member",
            Self::Differs { .. } => "differs",
            Self::IdentityTaken { .. } => "identity-taken",
            Self::NoPlace { .. } => "no-place",
            Self::InterfaceMissing { .. } => "interface-missing",
            Self::IdentityMissing(_) => "identity-missing",
            Self::PartMissing { .. } => "part-missing",
            Self::Data { .. } => "data",
            Self::Closed => "closed",
            Self::UnknownVersion { .. } => "unknown-version",
            Self::Limit { .. } => "limit",
        }
    }
}

/// A journal that does not replay: it was damaged, or is of a later release.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {index} of the context's journal cannot be replayed: {why}")]
pub struct Corrupt {
    /// Which record, counted from 0.
    pub index: usize,
    /// Why.
    pub why: &'static str,
}
