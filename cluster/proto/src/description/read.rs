//! From a document's values to a description.

use aerie_context_proto::{
    Line, ProvidedIdentity, ProvidedRole, Provides, RequiredData, RequiredRole, Requires,
};

use super::table::{Found, Reader, Table};
use super::tree::{self, Lines, Node};
use super::{Description, Document, Needs, Network, Nic, Partition, VERSION, Version, Workspace};
use crate::error::{Fault, Faults, Path};
use crate::limits::{MAX_DATA, MAX_DATA_PER_MEMBER, MAX_NICS, MAX_PARTITIONS, MAX_ROLES, MAX_SETS};

const TOP: &[&str] = &[
    "version",
    "name",
    "target",
    "all_or_none",
    "lifetime",
    "workspace",
];
const WORKSPACE: &[&str] = &[
    "name",
    "count",
    "image",
    "resources",
    "nic",
    "partition",
    "provides",
    "requires",
];
const RESOURCES: &[&str] = &["cpus", "memory", "disk"];
const NIC: &[&str] = &[
    "kind",
    "network",
    "bridge",
    "interface",
    "address",
    "mac",
    "login",
];
const PARTITION: &[&str] = &["name", "size", "filesystem", "mount"];
const PROVIDES: &[&str] = &["identities", "roles", "data"];
const IDENTITY: &[&str] = &["interface"];
const PROVIDED_ROLE: &[&str] = &["name", "interface"];
const REQUIRES: &[&str] = &["identity", "roles", "data"];
const REQUIRED_ROLE: &[&str] = &["name", "hostname", "pubkey"];
const REQUIRED_DATA: &[&str] = &["name", "content"];

impl Document {
    /// Reads a description in TOML. What only the whole shows is left to [`Document::check`].
    ///
    /// # Errors
    /// [`Faults`]: all that is not understood, each with its element, line and column.
    pub fn from_toml(text: &str) -> Result<Self, Faults> {
        let lines = Lines::new(text);
        document(tree::from_toml(text, &lines), &lines)
    }

    /// Reads a description in JSON: the same schema.
    ///
    /// # Errors
    /// [`Faults`] as those of TOML.
    pub fn from_json(text: &str) -> Result<Self, Faults> {
        let lines = Lines::new(text);
        document(tree::from_json(text, &lines), &lines)
    }
}

fn document(root: Result<Node, Fault>, lines: &Lines<'_>) -> Result<Document, Faults> {
    let root = root.map_err(|fault| Faults::new(vec![fault]))?;
    let mut reader = Reader::new(lines);
    let description = description(&root, &mut reader);
    let places = reader.finish()?;
    match description {
        Some(description) => Ok(Document { description, places }),
        // Not reached: what is missing was noted. Refusing is right in any case.
        None => Err(Faults::new(vec![tree::broken(None, "is not understood")])),
    }
}

fn description(root: &Node, reader: &mut Reader<'_>) -> Option<Description> {
    let found = Found {
        path: Path::top(),
        node: root,
    };
    let top = reader.table(found, TOP)?;
    let version = top.need("version", "1", reader);
    let version_at = version.as_ref().map(|found| found.node.at);
    if let Some(number) = reader.count(version)
        && number != VERSION
    {
        let why = format!(
            "is {number}, and this program reads version {VERSION}; install the release that the document was \
             written for"
        );
        reader.note(version_at.unwrap_or_default(), &Path::top().key("version"), why);
    }
    let name = top.need("name", "\"a name\"", reader);
    let name = reader.parsed(name);
    let target = top.get("target", reader);
    let target = reader.parsed(target).unwrap_or_default();
    let all_or_none = top.get("all_or_none", reader);
    let all_or_none = reader.flag(all_or_none).unwrap_or(true);
    let lifetime = top.get("lifetime", reader);
    let lifetime = reader.parsed(lifetime);
    let sets = top.get("workspace", reader);
    let workspaces: Vec<_> = reader
        .list(sets, MAX_SETS)
        .into_iter()
        .map(|found| workspace(found, reader))
        .collect();
    Some(Description {
        version: Version,
        name: name?,
        target,
        all_or_none,
        lifetime,
        workspaces: workspaces.into_iter().collect::<Option<_>>()?,
    })
}

fn workspace(found: Found<'_>, reader: &mut Reader<'_>) -> Option<Workspace> {
    let table = reader.table(found, WORKSPACE)?;
    let name = table.need("name", "\"worker\"", reader);
    let name = reader.parsed(name);
    let count = table.get("count", reader);
    let count = match count {
        None => Some(1),
        some => reader.count(some),
    };
    let image = table.need("image", "\"debian@13\"", reader);
    let image = reader.parsed(image);
    let resources = table
        .need(
            "resources",
            "{ cpus = 1, memory = \"1 GiB\", disk = \"8 GiB\" }",
            reader,
        )
        .and_then(|found| needs(found, reader));
    let nics = table.get("nic", reader);
    let nics: Vec<_> = reader
        .list(nics, MAX_NICS)
        .into_iter()
        .map(|found| nic(found, reader))
        .collect();
    let partitions = table.get("partition", reader);
    let partitions: Vec<_> = reader
        .list(partitions, MAX_PARTITIONS)
        .into_iter()
        .map(|found| partition(found, reader))
        .collect();
    let provided = table.get("provides", reader);
    let required = table.get("requires", reader);
    let provided = provided.map_or_else(|| Some(Provides::default()), |found| provides(found, reader));
    let required = required.map_or_else(|| Some(Requires::default()), |found| requires(found, reader));
    Some(Workspace {
        name: name?,
        count: count?,
        image: image?,
        resources: resources?,
        nics: nics.into_iter().collect::<Option<_>>()?,
        partitions: partitions.into_iter().collect::<Option<_>>()?,
        provides: provided?,
        requires: required?,
    })
}

fn needs(found: Found<'_>, reader: &mut Reader<'_>) -> Option<Needs> {
    let table = reader.table(found, RESOURCES)?;
    let cpus = table.need("cpus", "2", reader);
    let cpus = reader.parsed_number(cpus);
    let memory = table.need("memory", "\"1 GiB..4 GiB\"", reader);
    let memory = reader.parsed(memory);
    let disk = table.need("disk", "\"8 GiB\"", reader);
    let disk = reader.parsed(disk);
    Some(Needs {
        cpus: cpus?,
        memory: memory?,
        disk: disk?,
    })
}

fn nic(found: Found<'_>, reader: &mut Reader<'_>) -> Option<Nic> {
    let table = reader.table(found, NIC)?;
    let network = network(&table, reader);
    let interface = table.get("interface", reader);
    let interface = optional(interface, |found| reader.parsed(found));
    let address = table.get("address", reader);
    let address = optional(address, |found| reader.parsed(found));
    let mac = table.get("mac", reader);
    let mac = optional(mac, |found| reader.parsed(found));
    let login = table.get("login", reader);
    let login = optional(login, |found| reader.flag(found));
    Some(Nic {
        network: network?,
        interface: interface?,
        address: address?,
        mac: mac?,
        login: login?.unwrap_or_default(),
    })
}

/// What a key that may be absent says; nothing where it is there and was not understood.
fn optional<'a, T>(
    found: Option<Found<'a>>,
    read: impl FnOnce(Option<Found<'a>>) -> Option<T>,
) -> Option<Option<T>> {
    match found {
        None => Some(None),
        some => read(some).map(Some),
    }
}

fn network(table: &Table<'_>, reader: &mut Reader<'_>) -> Option<Network> {
    let kind = table.need("kind", "\"overlay\"", reader)?;
    let at = kind.node.at;
    let (name, bridge) = (table.get("network", reader), table.get("bridge", reader));
    let path = kind.path.clone();
    let kind = reader.text(&kind)?;
    let mut superfluous = |found: &Option<Found<'_>>, belongs: &str| {
        if let Some(found) = found {
            reader.note(
                found.node.at,
                &found.path,
                format!(
                    "belongs to the kind \"{belongs}\" alone; this kind is \"{kind}\"",
                    kind = crate::error::shown(kind)
                ),
            );
        }
    };
    match kind {
        "overlay" => {
            superfluous(&name, "private");
            superfluous(&bridge, "bridge");
            Some(Network::Overlay)
        }
        "private" => {
            superfluous(&bridge, "bridge");
            if name.is_none() {
                table.need("network", "\"lan\"", reader);
            }
            let network = reader.parsed(name)?;
            Some(Network::Private { network })
        }
        "bridge" => {
            superfluous(&name, "private");
            if bridge.is_none() {
                table.need("bridge", "\"br0\"", reader);
            }
            let bridge = reader.parsed(bridge)?;
            Some(Network::Bridge { bridge })
        }
        other => {
            let why = format!(
                "is '{}'; write \"overlay\", \"private\" or \"bridge\"",
                crate::error::shown(other)
            );
            reader.note(at, &path, why);
            None
        }
    }
}

fn partition(found: Found<'_>, reader: &mut Reader<'_>) -> Option<Partition> {
    let table = reader.table(found, PARTITION)?;
    let name = table.need("name", "\"scratch\"", reader);
    let name = reader.parsed(name);
    let size = table.need("size", "\"10 GiB\"", reader);
    let size = reader.parsed(size);
    let filesystem = table.need("filesystem", "\"ext4\"", reader);
    let filesystem = reader.parsed(filesystem);
    let mount = table.get("mount", reader);
    let mount = optional(mount, |found| reader.parsed(found));
    Some(Partition {
        name: name?,
        size: size?,
        filesystem: filesystem?,
        mount: mount?,
    })
}

fn provides(found: Found<'_>, reader: &mut Reader<'_>) -> Option<Provides> {
    let table = reader.table(found, PROVIDES)?;
    let identities = table.get("identities", reader);
    let identities: Vec<_> = reader
        .list(identities, MAX_NICS)
        .into_iter()
        .map(|found| identity(found, reader))
        .collect();
    let roles = table.get("roles", reader);
    let roles: Vec<_> = reader
        .list(roles, MAX_ROLES)
        .into_iter()
        .map(|found| provided_role(found, reader))
        .collect();
    let data = table.get("data", reader);
    let data: Vec<_> = reader
        .list(data, MAX_DATA_PER_MEMBER)
        .into_iter()
        .map(|found| reader.parsed(Some(found)))
        .collect();
    Some(Provides {
        identities: identities.into_iter().collect::<Option<_>>()?,
        roles: roles.into_iter().collect::<Option<_>>()?,
        data: data.into_iter().collect::<Option<_>>()?,
    })
}

/// An identity is the name of its interface, or a table, which may be empty: `{}` is a member's only interface.
fn identity(found: Found<'_>, reader: &mut Reader<'_>) -> Option<ProvidedIdentity> {
    if found.is_text() {
        let interface = reader.parsed(Some(found))?;
        return Some(ProvidedIdentity {
            interface: Some(interface),
        });
    }
    let table = reader.table(found, IDENTITY)?;
    let interface = table.get("interface", reader);
    let interface = optional(interface, |found| reader.parsed(found))?;
    Some(ProvidedIdentity { interface })
}

/// A role is its name, or a table with more about it.
fn provided_role(found: Found<'_>, reader: &mut Reader<'_>) -> Option<ProvidedRole> {
    if found.is_text() {
        let name = reader.parsed(Some(found))?;
        return Some(ProvidedRole {
            name,
            interface: None,
        });
    }
    let table = reader.table(found, PROVIDED_ROLE)?;
    let name = table.need("name", "\"nfs-server\"", reader);
    let name = reader.parsed(name);
    let interface = table.get("interface", reader);
    let interface = optional(interface, |found| reader.parsed(found));
    Some(ProvidedRole {
        name: name?,
        interface: interface?,
    })
}

fn requires(found: Found<'_>, reader: &mut Reader<'_>) -> Option<Requires> {
    let table = reader.table(found, REQUIRES)?;
    let identity = table.get("identity", reader);
    let identity = optional(identity, |found| reader.flag(found));
    let roles = table.get("roles", reader);
    let roles: Vec<_> = reader
        .list(roles, MAX_ROLES)
        .into_iter()
        .map(|found| required_role(found, reader))
        .collect();
    let data = table.get("data", reader);
    let data: Vec<_> = reader
        .list(data, MAX_DATA)
        .into_iter()
        .map(|found| required_data(found, reader))
        .collect();
    Some(Requires {
        identity: identity?.unwrap_or_default(),
        roles: roles.into_iter().collect::<Option<_>>()?,
        data: data.into_iter().collect::<Option<_>>()?,
    })
}

fn required_role(found: Found<'_>, reader: &mut Reader<'_>) -> Option<RequiredRole> {
    if found.is_text() {
        let name = reader.parsed(Some(found))?;
        return Some(RequiredRole {
            name,
            hostname: false,
            pubkey: false,
            line: Line(None),
        });
    }
    let table = reader.table(found, REQUIRED_ROLE)?;
    let name = table.need("name", "\"nfs-server\"", reader);
    let name = reader.parsed(name);
    let hostname = table.get("hostname", reader);
    let hostname = optional(hostname, |found| reader.flag(found));
    let pubkey = table.get("pubkey", reader);
    let pubkey = optional(pubkey, |found| reader.flag(found));
    Some(RequiredRole {
        name: name?,
        hostname: hostname?.unwrap_or_default(),
        pubkey: pubkey?.unwrap_or_default(),
        line: Line(None),
    })
}

fn required_data(found: Found<'_>, reader: &mut Reader<'_>) -> Option<RequiredData> {
    if found.is_text() {
        let name = reader.parsed(Some(found))?;
        return Some(RequiredData {
            name,
            content: None,
            line: Line(None),
        });
    }
    let table = reader.table(found, REQUIRED_DATA)?;
    let name = table.need("name", "\"munge.key\"", reader);
    let name = reader.parsed(name);
    let content = table.get("content", reader);
    let content = optional(content, |found| found.and_then(|found| reader.text(&found)));
    Some(RequiredData {
        name: name?,
        content: content?.map(str::to_owned),
        line: Line(None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_DOCUMENT_BYTES, MAX_NICS, MAX_PARTITIONS, MAX_ROLES, MAX_SETS};

    fn list(count: usize, entry: impl Fn(usize) -> String) -> String {
        format!("[{}]", (0..count).map(entry).collect::<Vec<_>>().join(","))
    }

    /// Nothing is wrong with it, it has as many elements as may be, and it is one line as long as may be.
    fn faultless_line() -> String {
        let nics = list(MAX_NICS, |_| {
            r#"{"kind":"private","network":"lan","interface":"eth0","address":"10.0.0.1","login":true}"#
                .to_owned()
        });
        let partitions = list(MAX_PARTITIONS, |_| {
            r#"{"name":"data","size":"1 GiB","filesystem":"ext4","mount":"/data"}"#.to_owned()
        });
        let roles = list(MAX_ROLES, |index| format!("\"role{index}\""));
        let sets = list(MAX_SETS, |index| {
            format!(
                r#"{{"name":"w{index}","count":2,"image":"debian","resources":{{"cpus":1,"memory":"1 GiB","disk":"1 GiB"}},"nic":{nics},"partition":{partitions},"provides":{{"roles":{roles}}},"requires":{{"roles":{roles}}}}}"#
            )
        });
        let text = format!(r#""version":1,"name":"x","workspace":{sets}}}"#);
        let blanks = MAX_DOCUMENT_BYTES - text.len() - 1;
        format!("{{{}{text}", " ".repeat(blanks))
    }

    #[test]
    fn one_line_of_a_megabyte_costs_in_proportion_to_its_length() {
        let text = faultless_line();
        let lines = Lines::new(&text);
        let document = document(tree::from_json(&text, &lines), &lines).unwrap();
        assert!(document.places.0.len() > 10_000, "{}", document.places.0.len());
        let walked = lines.walked.get();
        assert!(walked < 8 * text.len(), "{walked} bytes for {}", text.len());
    }
}
