//! What only the whole of a description shows: ranges, doubles, names that nobody answers to, and limits.
//!
//! The pass goes through everything and collects. What it passes can be placed in principle and makes a context that
//! the broker accepts: its own check is asked last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use aerie_context_proto::{SetName, is_data, member_name};

use super::notes::Notes;
use super::{Description, Document, FileSystem, Network, Nic, Places, Workspace, import};
use crate::amount::{Bytes, Kind, Lifetime};
use crate::error::{Fault, Faults, Path, Severity};
use crate::limits::{
    MAX_COUNT, MAX_CPUS, MAX_DATA, MAX_DATA_BYTES, MAX_DATA_PER_MEMBER, MAX_DATA_TOTAL, MAX_DISK,
    MAX_LIFETIME, MAX_MEMBERS, MAX_MEMORY, MAX_NICS, MAX_PARTITIONS, MAX_ROLES, MAX_SETS,
};

/// What a grid allows and assumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The life-time of what names none; where there is no default, each description has to name one.
    pub default_lifetime: Option<Lifetime>,
    /// The longest life-time.
    pub max_lifetime: Lifetime,
}

impl Bounds {
    /// How long a description may live.
    #[must_use]
    pub fn lifetime(&self, description: &Description) -> Option<Lifetime> {
        description.lifetime.or(self.default_lifetime)
    }
}

impl Document {
    /// Checks what only the whole shows, and gives the warnings.
    ///
    /// # Errors
    /// [`Faults`]: everything that is wrong, each with its element and place, warnings among them.
    pub fn check(&self, bounds: &Bounds) -> Result<Vec<Fault>, Faults> {
        self.description.check_at(bounds, &self.places)
    }
}

impl Description {
    /// As [`Document::check`], of a description that was not read but made.
    ///
    /// # Errors
    /// [`Faults`], without places.
    pub fn check(&self, bounds: &Bounds) -> Result<Vec<Fault>, Faults> {
        self.check_at(bounds, &Places::default())
    }

    fn check_at(&self, bounds: &Bounds, places: &Places) -> Result<Vec<Fault>, Faults> {
        let mut notes = Notes::new(places);
        let sound = self.limits(&mut notes);
        self.check_lifetime(bounds, &mut notes);
        if sound {
            for (index, set) in self.workspaces.iter().enumerate() {
                set.check(&set_path(index), &mut notes);
            }
            self.names(&mut notes);
            self.addresses(&mut notes);
            self.providers(&mut notes);
            self.data(&mut notes);
            self.private_networks(&mut notes);
        }
        if notes
            .faults
            .iter()
            .all(|fault| fault.severity == Severity::Warning)
        {
            notes.faults.extend(import::broker_fault(&self.context_cluster()));
        }
        if notes.faults.iter().any(|fault| fault.severity == Severity::Error) {
            Err(Faults::new(notes.faults))
        } else {
            Ok(notes.faults)
        }
    }

    /// Whether the numbers of things are such that the rest can be looked at.
    fn limits(&self, notes: &mut Notes<'_>) -> bool {
        let top = Path::top();
        let sets = top.key("workspace");
        if self.workspaces.is_empty() {
            notes.error(&top, "has no workspace; describe one, below [[workspace]]");
        }
        let mut sound = notes.most(&sets, "sets", self.workspaces.len(), MAX_SETS);
        for (index, set) in self.workspaces.iter().enumerate() {
            let path = set_path(index);
            let (provides, requires) = (path.key("provides"), path.key("requires"));
            for (path, what, count, most) in [
                (path.key("nic"), "network interfaces", set.nics.len(), MAX_NICS),
                (
                    path.key("partition"),
                    "partitions",
                    set.partitions.len(),
                    MAX_PARTITIONS,
                ),
                (
                    provides.key("roles"),
                    "roles",
                    set.provides.roles.len(),
                    MAX_ROLES,
                ),
                (
                    provides.key("identities"),
                    "identities",
                    set.provides.identities.len(),
                    MAX_NICS,
                ),
                (
                    provides.key("data"),
                    "data blobs",
                    set.provides.data.len(),
                    MAX_DATA_PER_MEMBER,
                ),
                (
                    requires.key("roles"),
                    "roles",
                    set.requires.roles.len(),
                    MAX_ROLES,
                ),
                (
                    requires.key("data"),
                    "data blobs",
                    set.requires.data.len(),
                    MAX_DATA,
                ),
            ] {
                sound &= notes.most(&path, what, count, most);
            }
        }
        let members = self.count();
        if members > MAX_MEMBERS as u64 {
            let why = format!("has {members} members in all its sets; {MAX_MEMBERS} are allowed");
            notes.error(&sets, why);
        }
        sound
    }

    fn check_lifetime(&self, bounds: &Bounds, notes: &mut Notes<'_>) {
        let path = Path::top().key("lifetime");
        let most = bounds.max_lifetime.duration().min(MAX_LIFETIME);
        match self.lifetime {
            None if bounds.default_lifetime.is_none() => {
                let why =
                    "names no lifetime, and the grid has no default; write for example lifetime = \"12h\"";
                notes.error(&Path::top(), why);
            }
            None => {}
            Some(lifetime) if lifetime.duration() == Duration::ZERO => {
                notes.error(
                    &path,
                    "is zero; write how long the cluster may live, such as \"12h\"",
                );
            }
            Some(lifetime) if lifetime.duration() > most => {
                let most = humantime::format_duration(most);
                notes.error(&path, format!("is {lifetime}; the grid allows {most}"));
            }
            Some(_) => {}
        }
    }

    fn names(&self, notes: &mut Notes<'_>) {
        let names = self.workspaces.iter().enumerate();
        let names = names.map(|(index, set)| (set_path(index).key("name"), set.name.as_str()));
        notes.once("workspace", names);
        self.member_names(notes);
    }

    /// Members of different sets with the same name: two of `web` are `web-1` and `web-2`, as the only `web-1` is.
    fn member_names(&self, notes: &mut Notes<'_>) {
        if self.count() > MAX_MEMBERS as u64 {
            return;
        }
        let mut sets = BTreeSet::new();
        let mut members = BTreeMap::new();
        for (index, set) in self.workspaces.iter().enumerate() {
            // Of a second set of the same name the name is the fault.
            if !sets.insert(&set.name) {
                continue;
            }
            let mut told = false;
            for number in 1..=set.count {
                let name = member_name(&set.name, number, set.count);
                if let Some(other) = members.insert(name.clone(), &set.name)
                    && !told
                {
                    told = true;
                    let why = format!(
                        "would name a second member '{name}', which the set '{other}' has; choose another name"
                    );
                    notes.error(&set_path(index).key("name"), why);
                }
            }
        }
    }

    /// Fixed addresses: one of each in a network, and one of each hardware address at all.
    fn addresses(&self, notes: &mut Notes<'_>) {
        let mut addresses: BTreeMap<(&Network, IpAddr), &SetName> = BTreeMap::new();
        let mut macs = BTreeMap::new();
        for (path, set, nic) in self.nics() {
            if let Some(address) = nic.address
                && let Some(other) = addresses.insert((&nic.network, address), &set.name)
            {
                let why = format!("is {address}, which '{other}' has on {} already", nic.network);
                notes.error(&path.key("address"), why);
            }
            if let Some(mac) = nic.mac
                && let Some(other) = macs.insert(mac, &set.name)
            {
                let why = format!("is {mac}, which '{other}' has already; leave one of them out");
                notes.error(&path.key("mac"), why);
            }
        }
    }

    fn nics(&self) -> impl Iterator<Item = (Path, &Workspace, &Nic)> {
        let sets = self.workspaces.iter().enumerate();
        sets.flat_map(|(index, set)| {
            let path = set_path(index).key("nic");
            let nics = set.nics.iter().enumerate();
            nics.map(move |(index, nic)| (path.index(index), set, nic))
        })
    }

    /// What is required and nobody provides.
    fn providers(&self, notes: &mut Notes<'_>) {
        let living = || self.workspaces.iter().filter(|set| set.count > 0);
        let roles: BTreeSet<_> = living()
            .flat_map(|set| set.provides.roles.iter().map(|role| &role.name))
            .collect();
        let reported = living().flat_map(|set| &set.provides.data);
        let brought = self.workspaces.iter().flat_map(|set| &set.requires.data);
        let brought = brought
            .filter(|data| data.content.is_some())
            .map(|data| &data.name);
        let data: BTreeSet<_> = reported.chain(brought).collect();
        for (index, set) in self.workspaces.iter().enumerate() {
            let path = set_path(index).key("requires");
            let missing = set.requires.roles.iter().enumerate();
            for (index, role) in missing.filter(|(_, role)| !roles.contains(&role.name)) {
                let why = format!(
                    "requires the role '{}', which no workspace provides; add it to the 'provides' of one",
                    role.name
                );
                notes.error(&path.key("roles").index(index), why);
            }
            let missing = set.requires.data.iter().enumerate();
            for (index, blob) in missing.filter(|(_, blob)| !data.contains(&blob.name)) {
                let why = format!(
                    "requires the data '{}', which no workspace provides and no 'content' brings along",
                    blob.name
                );
                notes.error(&path.key("data").index(index), why);
            }
        }
    }

    /// The blobs that the document brings along.
    fn data(&self, notes: &mut Notes<'_>) {
        let mut found: BTreeMap<_, &str> = BTreeMap::new();
        for (index, set) in self.workspaces.iter().enumerate() {
            let path = set_path(index).key("requires").key("data");
            for (index, blob) in set.requires.data.iter().enumerate() {
                let Some(content) = &blob.content else { continue };
                let path = path.index(index).key("content");
                if content.len() > MAX_DATA_BYTES {
                    let why = format!("has {} bytes; {MAX_DATA_BYTES} are allowed", content.len());
                    notes.error(&path, why);
                }
                if !is_data(content) {
                    notes.error(&path, "has control characters; encode it, such as by base64");
                }
                if found
                    .insert(&blob.name, content)
                    .is_some_and(|other| other != content)
                {
                    let why = format!(
                        "differs from the content of '{}' above; name one otherwise",
                        blob.name
                    );
                    notes.error(&path, why);
                }
            }
        }
        let top = Path::top();
        notes.most(&top, "data blobs with their contents", found.len(), MAX_DATA);
        let bytes = found.values().map(|content| content.len()).sum();
        notes.most(&top, "bytes of data", bytes, MAX_DATA_TOTAL);
    }

    fn private_networks(&self, notes: &mut Notes<'_>) {
        let mut members: BTreeMap<&SetName, u64> = BTreeMap::new();
        for set in &self.workspaces {
            for network in set.private_networks() {
                *members.entry(network).or_default() += u64::from(set.count);
            }
        }
        for (path, _, nic) in self.nics().filter(|(_, set, _)| set.count > 0) {
            if let Network::Private { network } = &nic.network
                && members.get(network) == Some(&1)
            {
                let why =
                    format!("is on the private network '{network}' with nobody else; is a name misspelt?");
                notes.warning(&path.key("network"), why);
            }
        }
    }
}

impl Workspace {
    fn check(&self, path: &Path, notes: &mut Notes<'_>) {
        let count = path.key("count");
        if self.count == 0 {
            notes.error(&count, "is 0; write at least 1, or leave the workspace out");
        } else if self.count > MAX_COUNT {
            notes.error(&count, format!("is {}; {MAX_COUNT} are allowed", self.count));
        }
        self.check_resources(&path.key("resources"), notes);
        self.check_nics(&path.key("nic"), notes);
        self.check_partitions(&path.key("partition"), notes);
        self.check_context(path, notes);
    }

    fn check_resources(&self, path: &Path, notes: &mut Notes<'_>) {
        let resources = &self.resources;
        notes.range(
            &path.key("cpus"),
            Kind::Cpus,
            resources.cpus.into(),
            MAX_CPUS.into(),
        );
        notes.range(
            &path.key("memory"),
            Kind::Memory,
            resources.memory.into(),
            MAX_MEMORY.0,
        );
        notes.range(&path.key("disk"), Kind::Disk, resources.disk.into(), MAX_DISK.0);
    }

    fn check_nics(&self, path: &Path, notes: &mut Notes<'_>) {
        if self.nics.is_empty() {
            notes.warning(
                path,
                "is missing: nobody reaches these workspaces, nor do they reach anybody",
            );
        }
        let named = self.nics.iter().enumerate().filter_map(|(index, nic)| {
            let name = nic.interface.as_ref()?;
            Some((path.index(index).key("interface"), name.as_str()))
        });
        notes.once("interface", named);
        for (index, nic) in self.nics.iter().enumerate() {
            let path = path.index(index);
            let fixed = [("address", nic.address.is_some()), ("mac", nic.mac.is_some())];
            for (key, _) in fixed.into_iter().filter(|(_, fixed)| *fixed && self.count > 1) {
                let why = format!(
                    "is fixed for {} workspaces at once; describe as a set of its own the one that has it",
                    self.count
                );
                notes.error(&path.key(key), why);
            }
            if let Some(address) = nic.address
                && !can_be_had(address)
            {
                notes.error(
                    &path.key("address"),
                    format!("is {address}, which no machine can have"),
                );
            }
        }
    }

    fn check_partitions(&self, path: &Path, notes: &mut Notes<'_>) {
        let each = || self.partitions.iter().enumerate();
        notes.once(
            "partition",
            each().map(|(index, partition)| (path.index(index).key("name"), partition.name.as_str())),
        );
        let mounts = each().filter_map(|(index, partition)| {
            let mount = partition.mount.as_ref()?;
            Some((path.index(index).key("mount"), mount.as_str()))
        });
        notes.once("mount point", mounts);
        let mut sum = self.resources.disk.max.0;
        for (index, partition) in each() {
            let path = path.index(index);
            if partition.size == Bytes(0) {
                notes.error(
                    &path.key("size"),
                    "is 0 B; write how large it is to be, such as \"10 GiB\"",
                );
            }
            let mountable = !matches!(partition.filesystem, FileSystem::Swap | FileSystem::Raw);
            if partition.mount.is_some() && !mountable {
                let why = "is of a partition without a file system; leave it out, or choose \"ext4\"";
                notes.error(&path.key("mount"), why);
            }
            sum = sum.saturating_add(partition.size.0);
        }
        if self.resources.disk.max <= MAX_DISK && sum > MAX_DISK.0 {
            let why = format!(
                "are {} together with the disk; {MAX_DISK} are allowed",
                Bytes(sum)
            );
            notes.error(path, why);
        }
    }

    fn check_context(&self, path: &Path, notes: &mut Notes<'_>) {
        let provides = path.key("provides");
        let (identities, roles) = (provides.key("identities"), provides.key("roles"));
        let interface = |interface: &Option<_>| {
            interface
                .as_ref()
                .map_or("", |name: &aerie_context_proto::Interface| name.as_str())
                .to_owned()
        };
        let reported: Vec<_> = self
            .provides
            .identities
            .iter()
            .map(|identity| interface(&identity.interface))
            .collect();
        notes.once(
            "identity",
            indexed(&identities, reported.iter().map(String::as_str)),
        );
        notes.once(
            "provided role",
            indexed(&roles, self.provides.roles.iter().map(|role| role.name.as_str())),
        );
        notes.once(
            "provided data",
            indexed(
                &provides.key("data"),
                self.provides.data.iter().map(|data| data.as_str()),
            ),
        );
        let requires = path.key("requires");
        notes.once(
            "required role",
            indexed(
                &requires.key("roles"),
                self.requires.roles.iter().map(|role| role.name.as_str()),
            ),
        );
        notes.once(
            "required data",
            indexed(
                &requires.key("data"),
                self.requires.data.iter().map(|data| data.name.as_str()),
            ),
        );
        // Interfaces that are not named in the document may have any name in the guest.
        let named: Option<BTreeSet<&str>> = self
            .nics
            .iter()
            .map(|nic| nic.interface.as_ref().map(|name| name.as_str()))
            .collect();
        let known = |name: &str| {
            named
                .as_ref()
                .is_none_or(|names| names.is_empty() || names.contains(name))
        };
        for (index, identity) in self.provides.identities.iter().enumerate() {
            if let Some(name) = &identity.interface
                && !known(name.as_str())
            {
                let why = format!("is of the interface '{name}', which none of the workspace's NICs has");
                notes.error(&identities.index(index), why);
            }
        }
        for (index, role) in self.provides.roles.iter().enumerate() {
            if let Some(name) = &role.interface
                && !reported.iter().any(|identity| identity == name.as_str())
            {
                let why = format!(
                    "is played by the interface '{name}', whose identity is not provided; add \"{name}\" to \
                     'identities'"
                );
                notes.error(&roles.index(index), why);
            }
        }
    }
}

fn set_path(index: usize) -> Path {
    Path::top().key("workspace").index(index)
}

fn indexed<'a>(path: &Path, names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = (Path, &'a str)> {
    let path = path.clone();
    names
        .enumerate()
        .map(move |(index, name)| (path.index(index), name))
}

fn can_be_had(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !broadcast
}
