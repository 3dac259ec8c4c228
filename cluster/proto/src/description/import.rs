//! Nimbus's cluster document as a description.
//!
//! `cluster.xml` names images and networks and says nothing of resources, life-time or states: what it lacks is given
//! along. Its `<deploy>`, which sends parts of a set to clouds by name, has no counterpart: it is a warning, and the
//! whole set is taken.

use std::collections::BTreeMap;

use aerie_context_proto::{Cluster, DocumentError, Line, SetName, xml};

use super::{Description, Document, Needs, Network, Nic, Places, Target, Version, Workspace};
use crate::amount::{Bytes, Lifetime, Range};
use crate::error::{Fault, Faults, Path, Place, Severity};

/// What a cluster document does not say.
#[derive(Debug, Clone)]
pub struct Import {
    /// The cluster's name.
    pub name: SetName,
    /// What each workspace needs.
    pub resources: Needs,
    /// How long the cluster may live; the grid's default where this is absent.
    pub lifetime: Option<Lifetime>,
    /// What its networks are, by their names. One that is not listed is private to the cluster.
    pub networks: BTreeMap<String, Network>,
}

impl Import {
    /// With this name: one CPU, 1 GiB of memory and 8 GiB of disk each; `public` is the overlay.
    #[must_use]
    pub fn new(name: SetName) -> Self {
        Self {
            name,
            resources: Needs {
                cpus: Range::exactly(1),
                memory: Range::exactly(Bytes::gib(1)),
                disk: Range::exactly(Bytes::gib(8)),
            },
            lifetime: None,
            networks: BTreeMap::from([("public".to_owned(), Network::Overlay)]),
        }
    }
}

impl Document {
    /// Reads a cluster document in XML, as Nimbus had it, and says what of it was left out.
    ///
    /// # Errors
    /// [`Faults`] with element and line. What is not XML, or has an unknown element, is the first fault alone.
    pub fn from_cluster_xml(text: &str, import: &Import) -> Result<(Self, Vec<Fault>), Faults> {
        let cluster = xml::read_cluster(text).map_err(|error| Faults::new(vec![fault(error)]))?;
        let mut faults = Vec::new();
        let mut places = BTreeMap::new();
        let mut workspaces = Vec::new();
        for (index, set) in cluster.workspaces.iter().enumerate() {
            if let Some(at) = place(set.line) {
                places.insert(Path::top().key("workspace").index(index), at);
            }
            workspaces.extend(workspace(set, import, &mut faults));
        }
        if faults.iter().any(|fault| fault.severity == Severity::Error) {
            return Err(Faults::new(faults));
        }
        let description = Description {
            version: Version,
            name: import.name.clone(),
            target: Target::default(),
            all_or_none: true,
            lifetime: import.lifetime,
            workspaces,
        };
        let places = Places(places);
        Ok((Self { description, places }, faults))
    }
}

fn place(line: Line) -> Option<Place> {
    line.0.map(|line| Place { line, column: None })
}

pub(super) fn fault(error: DocumentError) -> Fault {
    let (line, element, why) = match error {
        DocumentError::Wrong { line, element, why } => (line, element, why),
        DocumentError::NobodyProvides { line, .. } => {
            let why = format!("is not complete: {}", without_line(&error, line));
            (line, "the cluster".to_owned(), why)
        }
        DocumentError::TooMany { what, limit } => (
            Line(None),
            "the document".to_owned(),
            format!("has too many {what}; {limit} are allowed"),
        ),
    };
    Fault {
        severity: Severity::Error,
        at: place(line),
        element,
        why,
    }
}

fn without_line(error: &DocumentError, line: Line) -> String {
    let text = error.to_string();
    match line.0 {
        Some(line) => text.replacen(&format!("line {line}: "), "", 1),
        None => text,
    }
}

fn workspace(
    set: &aerie_context_proto::Workspace,
    import: &Import,
    faults: &mut Vec<Fault>,
) -> Option<Workspace> {
    let mut note = |severity, element: &str, why: String| {
        faults.push(Fault {
            severity,
            at: place(set.line),
            element: format!("<{element}> of the workspace '{}'", set.name),
            why,
        });
    };
    let image = match set.image.parse() {
        Ok(image) => Some(image),
        Err(error) => {
            note(Severity::Error, "image", format!("is not understood: {error}"));
            None
        }
    };
    if !set.deploys.is_empty() {
        let why = "is left out: hosts are found by what they have, and all members are taken here";
        note(Severity::Warning, "deploy", why.to_owned());
    }
    let mut nics = Vec::new();
    for nic in &set.nics {
        let network = match import.networks.get(&nic.network) {
            Some(network) => network.clone(),
            None => match nic.network.parse() {
                Ok(network) => Network::Private { network },
                Err(_) => {
                    let shown = crate::error::shown(&nic.network);
                    let why =
                        format!("names the network '{shown}'; say what it is, as it is no host name either");
                    note(Severity::Error, "nic", why);
                    continue;
                }
            },
        };
        nics.push(Nic {
            network,
            interface: nic.interface.clone(),
            address: None,
            mac: None,
            login: nic.wantlogin,
        });
    }
    Some(Workspace {
        name: set.name.clone(),
        count: set.quantity,
        image: image?,
        resources: import.resources,
        nics,
        partitions: Vec::new(),
        provides: set.provides.clone(),
        requires: set.requires.clone(),
    })
}

/// What the context broker would say of a description's cluster.
pub(super) fn broker_fault(cluster: &Cluster) -> Option<Fault> {
    cluster.check(false).err().map(fault)
}
