//! Descriptions of workspaces: what somebody wants to run, before anybody knows where.
//!
//! A description is an *aggregate* of *sets* of equal workspaces (seed 003, section III-A); one workspace alone is a
//! set of one. Each set says from which image its members start, what they need of a host, how they are connected,
//! which blank disks they have, and what they tell and ask each other through their context.
//!
//! ```text
//!  TOML ──┐                                ┌──► faults, each with its element, line and column
//!  JSON ──┼──► Document ──► check(bounds) ─┤
//!  XML  ──┘    (typed)                     └──► warnings alone: Description ──► members ──► placement
//!                                                                          └──► context_cluster ──► broker
//! ```
//!
//! Reading and checking are two passes, and both go on after a fault: a person mends all of them at once. Reading
//! refuses what has no meaning (a key that is not known, a name that is none); checking refuses what does not fit
//! together. TOML is the form for people and JSON the one for programs; the schema is one. `cluster.xml`, as Nimbus
//! had it, is taken in by [`Document::from_cluster_xml`]: it knows no resources, which are therefore given along.
//!
//! ```text
//!  version*  name*  target  all_or_none  lifetime
//!  workspace[]* ─┬ name*  count  image*
//!                ├ resources* ─ cpus*  memory*  disk*             a value or a range, "1 GiB..4 GiB"
//!                ├ nic[] ─ kind*  network | bridge  interface  address  mac  login
//!                ├ partition[] ─ name*  size*  filesystem*  mount
//!                ├ provides ─ identities[] (interface)  roles[] (name*  interface)  data[]
//!                └ requires ─ identity  roles[] (name*  hostname  pubkey)  data[] (name*  content)
//! ```
//!
//! Those with a star have to be there. An entry of `identities`, `roles` or of the data that is required may be its
//! name alone. [`limits`](crate::limits) has every bound.

mod check;
mod import;
mod members;
mod notes;
mod read;
mod table;
mod tree;
mod values;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use aerie_context_proto::{Interface, Provides, Requires, SetName};
use serde::{Deserialize, Serialize};

pub use check::Bounds;
pub use import::Import;
pub use values::{FileSystem, Image, Label, Mac, MountPoint};

use crate::amount::{Bytes, Lifetime, Range};
use crate::error::{BadValue, Path, Place};

/// The schema's version that this crate reads and writes.
pub const VERSION: u32 = 1;

/// A description as it was read, with the places of its elements.
#[derive(Debug, Clone)]
pub struct Document {
    /// What it says.
    pub description: Description,
    places: Places,
}

/// Where the elements of a document stand.
#[derive(Debug, Clone, Default)]
struct Places(BTreeMap<Path, Place>);

impl Places {
    /// The place of an element, or of the nearest that it is in.
    fn of(&self, path: &Path) -> Option<Place> {
        let mut path = path.clone();
        loop {
            if let Some(place) = self.0.get(&path) {
                return Some(*place);
            }
            path = path.parent()?;
        }
    }
}

/// What somebody wants to run: one set of equal workspaces or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The schema's version.
    pub version: Version,
    /// The cluster's name.
    pub name: SetName,
    /// The state to which it is brought, and in which it then stays until told otherwise.
    pub target: Target,
    /// Whether it is placed as a whole or not at all. Where it is not, members that find no place are left out.
    pub all_or_none: bool,
    /// How long it may live; the grid's default where this is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Lifetime>,
    /// The sets.
    #[serde(rename = "workspace")]
    pub workspaces: Vec<Workspace>,
}

/// The schema's version in a document: there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version;

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(VERSION)
    }
}

/// How far a deployment goes by itself (seed 001, section 2.3; seed 003, section III-C).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The images are on their hosts; nothing runs.
    Propagated,
    /// The members run.
    #[default]
    Started,
    /// The members are in memory and stand still.
    Paused,
}

impl FromStr for Target {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        Ok(match text {
            "propagated" => Self::Propagated,
            "started" => Self::Started,
            "paused" => Self::Paused,
            _ => {
                let rule = "write \"propagated\", \"started\" or \"paused\"";
                return Err(BadValue::new(text, "a target state", rule));
            }
        })
    }
}

/// A set of equal workspaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Workspace {
    /// The set's name, from which its members are named.
    pub name: SetName,
    /// How many there are.
    pub count: u32,
    /// What each starts from.
    pub image: Image,
    /// What each needs of its host.
    pub resources: Needs,
    /// Network interfaces, in the order in which the guest sees them.
    #[serde(rename = "nic", skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// Blank partitions, made new for each member and gone with it.
    #[serde(rename = "partition", skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<Partition>,
    /// What a member contributes to its context.
    #[serde(skip_serializing_if = "is_default")]
    pub provides: Provides,
    /// What a member has to learn from its context.
    #[serde(skip_serializing_if = "is_default")]
    pub requires: Requires,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What one workspace needs of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Needs {
    /// Virtual CPUs.
    pub cpus: Range<u32>,
    /// Memory.
    pub memory: Range<Bytes>,
    /// Disk for the image and what is written to it. Blank partitions come on top.
    pub disk: Range<Bytes>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// What it is connected to.
    #[serde(flatten)]
    pub network: Network,
    /// Its name in the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    /// Its address, where it is fixed; given by whoever runs the network otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its hardware address, where it is fixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Whether people log in here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub login: bool,
}

/// What an interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Network {
    /// The grid's virtual network, by a prefix that the host leases.
    Overlay,
    /// A network of this cluster alone, wherever its members are.
    Private {
        /// Its name within the cluster.
        network: SetName,
    },
    /// A bridge of the host.
    Bridge {
        /// Its name on the host.
        bridge: Interface,
    },
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlay => f.write_str("the overlay"),
            Self::Private { network } => write!(f, "the private network '{network}'"),
            Self::Bridge { bridge } => write!(f, "the bridge '{bridge}'"),
        }
    }
}

/// A blank partition: a disk beside the image's, labelled with its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its name, which is its file system's label: 11 letters and digits are the most that every kind takes.
    pub name: Label,
    /// How large it is.
    pub size: Bytes,
    /// What it is formatted with.
    pub filesystem: FileSystem,
    /// Where the guest mounts it, if it is to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<MountPoint>,
}
