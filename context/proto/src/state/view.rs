//! What a member is given.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Context, Identity};
use crate::error::Refusal;
use crate::names::{ContextId, DataName, HostKey, HostName, InstanceHash, MemberName, RoleName};

/// A member's template, filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The context.
    pub context: ContextId,
    /// The member whose view this is.
    pub member: MemberName,
    /// The version, counted from 1; it rises when something changes for this member.
    pub version: u32,
    /// The roles that it plays itself.
    pub provides: Vec<RoleName>,
    /// All members' identities, where it requires them.
    #[serde(default)]
    pub identities: Vec<(MemberName, Identity)>,
    /// Who plays the roles that it requires.
    #[serde(default)]
    pub roles: BTreeMap<RoleName, Vec<Player>>,
    /// The data blobs that it requires; several of one name where several members bring it.
    #[serde(default)]
    pub data: BTreeMap<DataName, Vec<Blob>>,
    /// What it requires and nobody has brought, such as `role nfs-server`. A member that misses something cannot be
    /// configured by this version.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// A member that plays a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Player {
    /// Which member.
    pub member: MemberName,
    /// The address by which it plays the role.
    pub ip: IpAddr,
    /// Its host name, where that is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<HostName>,
    /// Its SSH host key, where that is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pubkey: Option<HostKey>,
}

/// A data blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// The member that brought it; the context's creator where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<MemberName>,
    /// The blob.
    pub content: String,
}

/// What a member finds when it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retrieved {
    /// News.
    View(Box<View>),
    /// Nothing newer than it has.
    Wait,
}

impl Context {
    /// What there is for a member that has the version `after` (0 for none).
    ///
    /// # Errors
    /// [`Refusal`] if the asker is not the member, or the context is no more.
    pub fn retrieve(
        &self,
        name: &MemberName,
        instance: InstanceHash,
        after: u32,
    ) -> Result<Retrieved, Refusal> {
        if self.destroyed {
            return Err(Refusal::Destroyed(self.id));
        }
        let member = self.theirs(name, instance)?;
        let version = self.version_for(name, member);
        if version <= after {
            return Ok(Retrieved::Wait);
        }
        let Some(set) = self.set_of(member) else {
            return Err(Refusal::UnknownSet(member.set.clone()));
        };
        let identities = if set.requires.identity {
            let members = self.published.members.iter();
            members
                .flat_map(|(name, member)| {
                    let identities = member.provided.identities.iter();
                    identities.map(move |identity| (name.clone(), identity.clone()))
                })
                .collect()
        } else {
            Vec::new()
        };
        let roles = set.requires.roles.iter().map(|required| {
            let players = self.published.roles.get(&required.name);
            let players = players.into_iter().flat_map(|part| &part.value);
            let players = players.map(|(member, identity)| Player {
                member: member.clone(),
                ip: identity.ip,
                hostname: identity.hostname.clone().filter(|_| required.hostname),
                pubkey: identity.pubkey.clone().filter(|_| required.pubkey),
            });
            (required.name.clone(), players.collect())
        });
        let data = set.requires.data.iter().map(|required| {
            let blobs = self.published.data.get(&required.name);
            let blobs = blobs.into_iter().flat_map(|part| &part.value);
            let blobs = blobs.map(|(from, content)| Blob {
                from: from.0.parse().ok(),
                content: content.clone(),
            });
            (required.name.clone(), blobs.collect())
        });
        Ok(Retrieved::View(Box::new(View {
            context: self.id,
            member: name.clone(),
            version,
            provides: set.provides.roles.iter().map(|role| role.name.clone()).collect(),
            identities,
            roles: roles.collect(),
            data: data.collect(),
            missing: self
                .missing_roles(member)
                .iter()
                .map(ToString::to_string)
                .collect(),
        })))
    }
}
