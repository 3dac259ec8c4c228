//! Making versions, and whom each is for.

use std::collections::BTreeSet;

use aerie_types::WallMillis;

use super::{Context, Identity, Member, Provided, PublishedMember, Source};
use crate::cluster::{ProvidedRole, RequiredRole, Workspace};
use crate::names::{DataName, Interface, MemberName, RoleName, SetName};

impl Provided {
    /// The identity that plays a role: of the interface named, else the first.
    pub(super) fn playing(&self, interface: Option<&Interface>) -> Option<&Identity> {
        match interface {
            Some(_) => self
                .identities
                .iter()
                .find(|identity| identity.interface.as_ref() == interface),
            None => self.identities.first(),
        }
    }
}

impl Context {
    /// Publishes what has changed, once nobody is waited for.
    pub(super) fn settle(&mut self, at: WallMillis) {
        let first = self.published.version == 0;
        if self.open || self.pending > 0 || (self.is_clean() && !first) {
            return;
        }
        let version = self.published.version + 1;
        let mut changed = first;
        for name in std::mem::take(&mut self.dirty_members) {
            changed |= self.publish_member(&name, version);
        }
        for name in std::mem::take(&mut self.dirty_data) {
            let content = self.data.get(&name).cloned();
            changed |= self.publish_data(&name, Source::creator(), content, version);
        }
        if changed {
            self.published.version = version;
            self.published.times.push(at);
        }
    }

    /// Brings what is published of a member to what it is now. False if that is the same.
    fn publish_member(&mut self, name: &MemberName, version: u32) -> bool {
        let now = self.members.get(name).and_then(|member| {
            let provided = member.provided()?.clone();
            Some((provided, member.set.clone()))
        });
        let old = self.published.members.get(name).map(|old| old.provided.clone());
        if old.as_ref() == now.as_ref().map(|(provided, _)| provided) {
            return false;
        }
        if old.as_ref().map(|old| &old.identities) != now.as_ref().map(|(now, _)| &now.identities) {
            self.published.identities_changed = version;
        }
        let mut roles: Vec<(RoleName, Identity)> = Vec::new();
        let mut blobs: BTreeSet<DataName> = old.into_iter().flat_map(|old| old.data.into_keys()).collect();
        if let Some((provided, set)) = &now {
            let played = |role: &ProvidedRole| {
                let identity = provided.playing(role.interface.as_ref())?;
                Some((role.name.clone(), identity.clone()))
            };
            let of_set = self
                .set(set)
                .map(|set| set.provides.roles.iter().filter_map(played).collect());
            roles = of_set.unwrap_or_default();
            blobs.extend(provided.data.keys().cloned());
        }
        let kept: BTreeSet<&RoleName> = roles.iter().map(|(role, _)| role).collect();
        for (role, part) in &mut self.published.roles {
            if !kept.contains(role) && part.value.remove(name).is_some() {
                part.changed = version;
            }
        }
        for (role, identity) in roles {
            let part = self.published.roles.entry(role).or_default();
            if part.value.get(name) != Some(&identity) {
                part.value.insert(name.clone(), identity);
                part.changed = version;
            }
        }
        for blob in blobs {
            let content = now
                .as_ref()
                .and_then(|(provided, _)| provided.data.get(&blob).cloned());
            self.publish_data(&blob, Source::member(name), content, version);
        }
        match now {
            Some((provided, _)) => {
                let joined = self.published.members.get(name).map_or(version, |old| old.joined);
                let member = PublishedMember { provided, joined };
                self.published.members.insert(name.clone(), member);
            }
            None => {
                self.published.members.remove(name);
            }
        }
        true
    }

    fn publish_data(&mut self, name: &DataName, from: Source, content: Option<String>, version: u32) -> bool {
        let part = self.published.data.entry(name.clone()).or_default();
        if part.value.get(&from) == content.as_ref() {
            return false;
        }
        match content {
            Some(content) => part.value.insert(from, content),
            None => part.value.remove(&from),
        };
        part.changed = version;
        true
    }

    /// The newest version that has news for a member; 0 if there is none for it yet.
    pub(super) fn version_for(&self, name: &MemberName, member: &Member) -> u32 {
        let (Some(published), Some(set)) = (self.published.members.get(name), self.set_of(member)) else {
            return 0;
        };
        // Somebody else may have had the name before.
        if member.provided() != Some(&published.provided) {
            return 0;
        }
        let roles = set
            .requires
            .roles
            .iter()
            .filter_map(|role| self.published.roles.get(&role.name));
        let data = set
            .requires
            .data
            .iter()
            .filter_map(|data| self.published.data.get(&data.name));
        let identities = if set.requires.identity {
            self.published.identities_changed
        } else {
            0
        };
        roles
            .map(|part| part.changed)
            .chain(data.map(|part| part.changed))
            .chain([published.joined, identities])
            .max()
            .unwrap_or(0)
    }

    /// What a member requires and nobody has brought to the newest version.
    pub(super) fn missing_roles(&self, member: &Member) -> Vec<Missing> {
        let Some(set) = self.set_of(member) else {
            return Vec::new();
        };
        let roles = set.requires.roles.iter().filter(|role| {
            let part = self.published.roles.get(&role.name);
            part.is_none_or(|part| part.value.is_empty())
        });
        let data = set.requires.data.iter().filter(|data| {
            let part = self.published.data.get(&data.name);
            part.is_none_or(|part| part.value.is_empty())
        });
        roles
            .map(|role| Missing::Role(role.name.clone()))
            .chain(data.map(|data| Missing::Data(data.name.clone())))
            .collect()
    }

    /// The sets that require a role, with how they do.
    pub(super) fn requirers(&self, role: &RoleName) -> impl Iterator<Item = (&SetName, &RequiredRole)> {
        self.cluster.workspaces.iter().flat_map(move |set| {
            let required = set
                .requires
                .roles
                .iter()
                .filter(move |required| required.name == *role);
            required.map(move |required| (&set.name, required))
        })
    }

    /// The sets that provide what is missing.
    pub(super) fn providers(&self, missing: &Missing) -> impl Iterator<Item = &Workspace> {
        self.cluster.workspaces.iter().filter(move |set| match missing {
            Missing::Role(role) => set.provides.roles.iter().any(|provided| provided.name == *role),
            Missing::Data(data) => set.provides.data.contains(data),
        })
    }
}

/// Something required that nobody has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    Role(RoleName),
    Data(DataName),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Role(name) => write!(f, "role {name}"),
            Self::Data(name) => write!(f, "data {name}"),
        }
    }
}
