//! The cluster document: which sets of members there are, what they provide and what they require.
//!
//! One type for both forms, XML ([`crate::xml`]) and JSON (by serde). Names are checked when they are parsed;
//! [`Cluster::check`] then checks what only the whole document shows: limits, doubles, and roles that somebody
//! requires and nobody provides.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::DocumentError;
use crate::limits::{
    MAX_DATA, MAX_DATA_BYTES, MAX_DATA_PER_MEMBER, MAX_DATA_TOTAL, MAX_DEPLOYS, MAX_DOCUMENT_BYTES,
    MAX_INTERFACES, MAX_MEMBERS, MAX_ROLES, MAX_SETS, MAX_TEXT,
};
use crate::names::{DataName, Interface, MemberName, RoleName, SetName};

/// A line of a document, for messages. Two values that differ in it alone are equal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Line(pub Option<u32>);

impl PartialEq for Line {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Line {}

/// A cluster: one set of equal members or several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The sets, which Nimbus calls workspaces.
    pub workspaces: Vec<Workspace>,
}

/// A set of equal members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// In user-data: whether this is the set of the machine that reads it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub active: bool,
    /// The set's name, from which its members are named.
    pub name: SetName,
    /// The image; the broker only hands it on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// How many members are expected.
    #[serde(default = "one")]
    pub quantity: u32,
    /// Network interfaces; the broker only hands them on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// What a member contributes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub provides: Provides,
    /// What a member has to learn.
    #[serde(default, skip_serializing_if = "is_default")]
    pub requires: Requires,
    /// Where to deploy; the broker only hands it on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deploys: Vec<Deploy>,
    /// Where the set begins in its document.
    #[serde(skip)]
    pub line: Line,
}

/// A network interface of a set's members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The network that it is in.
    pub network: String,
    /// Its name in the member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Whether people log in here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wantlogin: bool,
}

/// What a member contributes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provides {
    /// An entry for each interface whose identity is reported; one without a name for a member's only interface.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<ProvidedIdentity>,
    /// Roles that it plays.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<ProvidedRole>,
    /// Data blobs that it reports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataName>,
}

/// An identity to report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvidedIdentity {
    /// Of which interface; of any where this is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
}

/// A role played.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvidedRole {
    /// The role.
    pub name: RoleName,
    /// The interface whose identity plays it; the first reported where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
}

/// What a member has to learn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Requires {
    /// Every member's identities.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub identity: bool,
    /// Who plays these roles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<RequiredRole>,
    /// These data blobs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<RequiredData>,
}

/// A role whose players have to be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequiredRole {
    /// The role.
    pub name: RoleName,
    /// With their host names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hostname: bool,
    /// With their SSH host keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pubkey: bool,
    /// Where it stands in its document.
    #[serde(skip)]
    pub line: Line,
}

/// A data blob that has to be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequiredData {
    /// The blob's name.
    pub name: DataName,
    /// The blob itself, where the document brings it along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Where it stands in its document.
    #[serde(skip)]
    pub line: Line,
}

/// A place to deploy members of a set at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// The cloud or grid.
    pub cloud: String,
    /// The image's name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How many.
    #[serde(default = "one")]
    pub quantity: u32,
}

fn one() -> u32 {
    1
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether a text can be a data blob: it has to pass through XML.
#[must_use]
pub fn is_data(text: &str) -> bool {
    text.chars()
        .all(|c| matches!(c, '\t' | '\n') || (!c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}')))
}

impl Cluster {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`DocumentError`] with the line.
    pub fn from_json(text: &str) -> Result<Self, DocumentError> {
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::too_many(
                "bytes in the document",
                MAX_DOCUMENT_BYTES,
            ));
        }
        serde_json::from_str(text).map_err(|error| {
            let line = u32::try_from(error.line()).ok();
            DocumentError::at(Line(line), "the document", format!("is not understood: {error}"))
        })
    }

    /// Checks what only the whole shows. An `open` cluster may get providers later.
    ///
    /// # Errors
    /// [`DocumentError`] with the element and, where it came from a document, the line.
    pub fn check(&self, open: bool) -> Result<(), DocumentError> {
        limit("workspaces", self.workspaces.len(), MAX_SETS)?;
        if self.workspaces.is_empty() {
            return Err(DocumentError::at(
                Line::default(),
                "the cluster",
                "has no workspace; describe at least one",
            ));
        }
        let members: u64 = self.workspaces.iter().map(|set| u64::from(set.quantity)).sum();
        limit(
            "members in the cluster",
            usize::try_from(members).unwrap_or(usize::MAX),
            MAX_MEMBERS,
        )?;
        let mut names = BTreeSet::new();
        for set in &self.workspaces {
            set.check()?;
            for name in (1..=set.quantity).map(|index| member_name(&set.name, index, set.quantity)) {
                if !names.insert(name.clone()) {
                    let why = format!("would name a second member '{name}'; choose another name");
                    return Err(set.wrong(why));
                }
            }
        }
        self.data()?;
        if open { Ok(()) } else { self.check_provided() }
    }

    /// The blobs that the document itself brings.
    pub(crate) fn data(&self) -> Result<BTreeMap<DataName, String>, DocumentError> {
        let mut found: BTreeMap<DataName, String> = BTreeMap::new();
        for data in self.workspaces.iter().flat_map(|set| &set.requires.data) {
            let Some(content) = &data.content else { continue };
            let wrong = |why: &str| DocumentError::at(data.line, format!("data '{}'", data.name), why);
            if content.len() > MAX_DATA_BYTES {
                return Err(wrong(&format!(
                    "has {} bytes; {MAX_DATA_BYTES} are allowed",
                    content.len()
                )));
            }
            if !is_data(content) {
                return Err(wrong("has control characters; encode it, such as by base64"));
            }
            if found.get(&data.name).is_some_and(|other| other != content) {
                return Err(wrong("has two different contents; name one of them otherwise"));
            }
            found.insert(data.name.clone(), content.clone());
        }
        limit("data blobs", found.len(), MAX_DATA)?;
        limit(
            "bytes of data",
            found.values().map(String::len).sum(),
            MAX_DATA_TOTAL,
        )?;
        Ok(found)
    }

    /// Names the first role or blob that somebody requires and nobody can provide.
    pub(crate) fn check_provided(&self) -> Result<(), DocumentError> {
        for set in &self.workspaces {
            if set.quantity == 0 {
                continue;
            }
            for role in &set.requires.roles {
                if !self.provides_role(&role.name) {
                    return Err(DocumentError::NobodyProvides {
                        line: role.line,
                        kind: "role",
                        name: role.name.to_string(),
                        set: set.name.clone(),
                    });
                }
            }
            if let Some(data) = set.requires.data.iter().find(|data| !self.brings(&data.name)) {
                return Err(DocumentError::NobodyProvides {
                    line: data.line,
                    kind: "data",
                    name: data.name.to_string(),
                    set: set.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn provides_role(&self, name: &RoleName) -> bool {
        let provides = |set: &Workspace| set.provides.roles.iter().any(|role| role.name == *name);
        self.workspaces
            .iter()
            .any(|set| set.quantity > 0 && provides(set))
    }

    fn brings(&self, name: &DataName) -> bool {
        self.workspaces.iter().any(|set| {
            (set.quantity > 0 && set.provides.data.contains(name))
                || set
                    .requires
                    .data
                    .iter()
                    .any(|data| data.name == *name && data.content.is_some())
        })
    }
}

impl Workspace {
    fn wrong(&self, why: impl Into<String>) -> DocumentError {
        DocumentError::at(self.line, format!("workspace '{}'", self.name), why)
    }

    fn check(&self) -> Result<(), DocumentError> {
        limit("interfaces of a workspace", self.nics.len(), MAX_INTERFACES)?;
        limit(
            "identities of a workspace",
            self.provides.identities.len(),
            MAX_INTERFACES,
        )?;
        limit(
            "provided roles of a workspace",
            self.provides.roles.len(),
            MAX_ROLES,
        )?;
        limit(
            "required roles of a workspace",
            self.requires.roles.len(),
            MAX_ROLES,
        )?;
        limit(
            "provided data of a workspace",
            self.provides.data.len(),
            MAX_DATA_PER_MEMBER,
        )?;
        limit("required data of a workspace", self.requires.data.len(), MAX_DATA)?;
        limit("places to deploy a workspace", self.deploys.len(), MAX_DEPLOYS)?;
        let texts = [&self.image]
            .into_iter()
            .chain(self.nics.iter().map(|nic| &nic.network))
            .chain(self.deploys.iter().map(|deploy| &deploy.cloud))
            .chain(self.deploys.iter().filter_map(|deploy| deploy.image.as_ref()));
        for text in texts {
            if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
                return Err(self.wrong(format!(
                    "has a text with control characters or of more than {MAX_TEXT} bytes"
                )));
            }
        }
        let interfaces = self
            .provides
            .identities
            .iter()
            .map(|identity| &identity.interface);
        self.once(
            "identity",
            interfaces.map(|name| name.as_ref().map_or("", Interface::as_str)),
        )?;
        self.once(
            "provided role",
            self.provides.roles.iter().map(|role| role.name.as_str()),
        )?;
        self.once(
            "required role",
            self.requires.roles.iter().map(|role| role.name.as_str()),
        )?;
        self.once("provided data", self.provides.data.iter().map(DataName::as_str))?;
        self.once(
            "required data",
            self.requires.data.iter().map(|data| data.name.as_str()),
        )?;
        for role in &self.provides.roles {
            let known = |identity: &ProvidedIdentity| identity.interface == role.interface;
            if let Some(interface) = &role.interface
                && !self.provides.identities.iter().any(known)
            {
                return Err(self.wrong(format!(
                    "provides the role '{}' by {interface} without an identity of that interface; add \
                     <identity><interface>{interface}</interface></identity>",
                    role.name
                )));
            }
        }
        Ok(())
    }

    fn once<'a>(&self, what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), DocumentError> {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                return Err(self.wrong(format!("has the {what} '{name}' twice; once is enough")));
            }
        }
        Ok(())
    }
}

/// The name of a set's member, counted from 1: the only one of a set has the set's name.
#[must_use]
pub fn member_name(set: &SetName, index: u32, quantity: u32) -> MemberName {
    let text = if quantity == 1 && index == 1 {
        set.to_string()
    } else {
        format!("{set}-{index}")
    };
    #[expect(
        clippy::expect_used,
        reason = "a set's name has at most 50 bytes and a number at most ten"
    )]
    text.parse().expect("a set's name and a number make a label")
}

fn limit(what: &'static str, found: usize, most: usize) -> Result<(), DocumentError> {
    if found > most {
        Err(DocumentError::too_many(what, most))
    } else {
        Ok(())
    }
}
