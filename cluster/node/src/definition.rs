//! What a guest is made of. Nothing in it is one hypervisor's own.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::BadDefinition;

/// Most disks of a guest, floppies and CD-ROMs among them: IDE has room for four CD-ROMs, a floppy controller for two.
pub const MAX_DISKS: usize = 16;

/// Most NICs of a guest.
pub const MAX_NICS: usize = 8;

/// Most processors of a guest.
pub const MAX_CPUS: u16 = 255;

const MAX_FLOPPIES: usize = 2;
const MAX_CDROMS: usize = 4;

/// The least memory of a guest: firmware needs some.
const MIN_MEMORY: Mib = Mib(1);

/// The longest name of a network interface, as the kernel has it.
const MAX_INTERFACE: usize = 15;

/// Who a guest is, for ever. The guest itself sees it as its machine's UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuestId(pub Uuid);

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for GuestId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// What people call a guest: up to 63 letters, digits and hyphens, as a host's name. Not necessarily unique.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestName(String);

impl GuestName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<GuestId> for GuestName {
    fn from(id: GuestId) -> Self {
        // Hexadecimal digits and hyphens.
        Self(id.to_string())
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> Self {
        name.0
    }
}

impl TryFrom<String> for GuestName {
    type Error = BadDefinition;

    fn try_from(name: String) -> Result<Self, BadDefinition> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if name.is_empty() || name.len() > 63 || !name.chars().all(allowed) || name.starts_with('-') {
            return Err(BadDefinition::Name(name));
        }
        Ok(Self(name))
    }
}

impl FromStr for GuestName {
    type Err = BadDefinition;

    fn from_str(name: &str) -> Result<Self, BadDefinition> {
        name.to_owned().try_into()
    }
}

/// An amount of memory in mebibytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mib(pub u32);

impl Mib {
    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }

    /// From bytes, rounded down.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Self {
        Self(u32::try_from(bytes >> 20).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// The form of a disk's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes.
    Raw,
    /// QEMU's own, which grows as it is written.
    Qcow2,
}

/// What a guest sees of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A hard disk, paravirtual.
    #[default]
    Disk,
    /// A CD-ROM, which is never written.
    Cdrom,
    /// A floppy.
    Floppy,
}

/// An image that a guest has. The driver opens it and never makes, grows or removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image's file, by its absolute path.
    pub path: PathBuf,
    /// Its form. Never guessed: a guest could write what looks like another.
    pub format: Format,
    /// What the guest sees.
    #[serde(default)]
    pub device: Device,
    /// Whether the guest cannot write it.
    #[serde(default)]
    pub read_only: bool,
}

impl Disk {
    /// Whether the guest writes it.
    #[must_use]
    pub fn writable(&self) -> bool {
        !self.read_only && self.device != Device::Cdrom
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = BadDefinition;

    fn try_from(text: String) -> Result<Self, BadDefinition> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2)
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| BadDefinition::Mac(text.clone()))?;
        }
        // The lowest bit of the first byte marks a group's address.
        if parts.next().is_some() || mac[0] & 1 == 1 || mac == [0; 6] {
            return Err(BadDefinition::Mac(text));
        }
        Ok(Self(mac))
    }
}

/// What a NIC is plugged into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Nothing.
    None,
    /// A TAP interface that is there, by its name.
    Tap(String),
}

/// A NIC of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its address.
    pub mac: Mac,
    /// What it is plugged into.
    pub link: Link,
}

/// A guest's hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Who it is.
    pub id: GuestId,
    /// What people call it.
    pub name: GuestName,
    /// Its memory.
    pub memory: Mib,
    /// Its processors.
    pub cpus: u16,
    /// Its disks. It starts from the first hard disk that it can start from, then from CD-ROMs, then from floppies.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Its NICs.
    #[serde(default)]
    pub nics: Vec<Nic>,
}

impl Definition {
    /// Whether a host could have such a guest, as far as can be told without looking at the host.
    ///
    /// # Errors
    /// [`BadDefinition`] says what is wrong.
    pub fn check(&self) -> Result<(), BadDefinition> {
        if self.memory < MIN_MEMORY {
            return Err(BadDefinition::Memory);
        }
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(BadDefinition::Cpus(self.cpus));
        }
        let count = |device| self.disks.iter().filter(|disk| disk.device == device).count();
        for (what, count, limit) in [
            ("disks", self.disks.len(), MAX_DISKS),
            ("floppies", count(Device::Floppy), MAX_FLOPPIES),
            ("CD-ROMs", count(Device::Cdrom), MAX_CDROMS),
            ("NICs", self.nics.len(), MAX_NICS),
        ] {
            if count > limit {
                return Err(BadDefinition::TooMany { what, limit });
            }
        }
        let mut paths = BTreeSet::new();
        for disk in &self.disks {
            check_path(&disk.path)?;
            if !paths.insert(&disk.path) {
                return Err(BadDefinition::Twice(disk.path.display().to_string()));
            }
        }
        let mut seen = BTreeSet::new();
        for nic in &self.nics {
            let tap = match &nic.link {
                Link::None => None,
                Link::Tap(name) => Some(check_interface(name)?),
            };
            for text in [Some(nic.mac.to_string()), tap.map(str::to_owned)]
                .into_iter()
                .flatten()
            {
                if !seen.insert(text.clone()) {
                    return Err(BadDefinition::Twice(text));
                }
            }
        }
        Ok(())
    }
}

fn check_path(path: &Path) -> Result<(), BadDefinition> {
    // The command line of a hypervisor and a definition are text.
    if !path.is_absolute() || path.to_str().is_none_or(|text| text.contains('\0')) {
        return Err(BadDefinition::Path(path.to_owned()));
    }
    Ok(())
}

fn check_interface(name: &str) -> Result<&str, BadDefinition> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty()
        || name.len() > MAX_INTERFACE
        || !name.chars().all(allowed)
        || matches!(name, "." | "..")
    {
        return Err(BadDefinition::Interface(name.to_owned()));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(change: impl FnOnce(&mut serde_json::Value)) -> Result<Definition, String> {
        let mut value = json!({
            "id": "7d444840-9dc0-11d1-b245-5ffdce74fad2",
            "name": "node-1",
            "memory": 192,
            "cpus": 1,
            "disks": [
                {"path": "/d/disk.qcow2", "format": "qcow2"},
                {"path": "/d/context.iso", "format": "raw", "device": "cdrom", "read_only": true},
            ],
            "nics": [{"mac": "52:54:00:12:34:56", "link": {"tap": "tap0"}}, {"mac": "52:54:00:12:34:57", "link": "none"}],
        });
        change(&mut value);
        let definition: Definition = serde_json::from_value(value).map_err(|error| error.to_string())?;
        definition.check().map_err(|error| error.to_string())?;
        Ok(definition)
    }

    #[test]
    fn a_definition_survives_its_file() {
        let definition = parse(|_| {}).unwrap();
        let text = serde_json::to_string(&definition).unwrap();
        assert_eq!(
            serde_json::from_str::<Definition>(&text).unwrap(),
            definition,
            "{text}"
        );
    }

    #[test]
    fn what_no_host_could_run_is_refused_with_what_is_wrong() {
        type Change = fn(&mut serde_json::Value);
        let cases: [(Change, &str); 11] = [
            (|v| v["memory"] = json!(0), "memory"),
            (|v| v["cpus"] = json!(0), "0 processors"),
            (|v| v["name"] = json!("a,b"), "'a,b'"),
            (|v| v["name"] = json!("-a"), "'-a'"),
            (|v| v["disks"][0]["path"] = json!("disk"), "absolute"),
            (
                |v| v["disks"][0]["path"] = json!("/d/context.iso"),
                "/d/context.iso is given twice",
            ),
            (|v| v["nics"][0]["mac"] = json!("53:54:00:12:34:56"), "group"),
            (
                |v| v["nics"][0]["mac"] = json!("52:54:00:12:34:57"),
                "52:54:00:12:34:57 is given twice",
            ),
            (
                |v| v["nics"][0]["mac"] = json!("52:54:00:12:34"),
                "52:54:00:12:34",
            ),
            (
                |v| v["nics"][0]["link"] = json!({"tap": "a,script=/bin/x"}),
                "a,script=/bin/x",
            ),
            (|v| v["colour"] = json!(1), "unknown field"),
        ];
        for (change, expected) in cases {
            let error = parse(change).unwrap_err();
            assert!(error.contains(expected), "{error} has no {expected}");
        }
    }
}
