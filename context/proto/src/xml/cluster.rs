//! The cluster document.
//!
//! ```text
//!  cluster ─ workspace+ ─┬ active? name? image quantity
//!                        ├ nic+ (wantlogin, interface)
//!                        ├ ctx ─┬ provides ─ identity+ (interface?), role* (interface), label*, data*
//!                        │      └ requires ─ identity?, role* (name hostname pubkey), data* (name)
//!                        └ deploy* ─ cloud image? quantity
//! ```
//!
//! `label` is the older name of a provided role. A required `data` with text brings the blob along.

use quick_xml::events::BytesStart;

use super::tree::{self, Element, Output};
use crate::cluster::{
    Cluster, Deploy, Nic, ProvidedIdentity, ProvidedRole, Provides, RequiredData, RequiredRole, Requires,
    Workspace,
};
use crate::error::DocumentError;
use crate::names::SetName;

/// Reads a cluster document. What only the whole shows is left to [`Cluster::check`].
///
/// # Errors
/// [`DocumentError`] with element and line.
pub fn read_cluster(text: &str) -> Result<Cluster, DocumentError> {
    cluster(&tree::read(text)?)
}

/// Writes a cluster document.
#[must_use]
pub fn write_cluster(cluster: &Cluster) -> String {
    let mut out = Output::new();
    put_cluster(&mut out, cluster);
    out.end()
}

pub(super) fn cluster(root: &Element) -> Result<Cluster, DocumentError> {
    if root.name != "cluster" {
        return Err(root.wrong("is not a cluster document; its first element is <cluster>"));
    }
    root.only(&[], &["workspace"])?;
    let workspaces = root
        .all("workspace")
        .enumerate()
        .map(|(index, element)| workspace(element, index))
        .collect::<Result<_, _>>()?;
    Ok(Cluster { workspaces })
}

fn workspace(element: &Element, index: usize) -> Result<Workspace, DocumentError> {
    element.only(
        &[],
        &["active", "name", "image", "quantity", "nic", "ctx", "deploy"],
    )?;
    let name = match element.optional("name")? {
        Some(name) => {
            name.only(&[], &[])?;
            name.value()?
        }
        None => {
            // Documents for one workspace often leave the name out.
            let text = format!("workspace-{}", index + 1);
            text.parse::<SetName>()
                .map_err(|error| element.wrong(error.to_string()))?
        }
    };
    let (provides, requires) = match element.optional("ctx")? {
        Some(ctx) => {
            ctx.only(&[], &["provides", "requires"])?;
            let provided = ctx.optional("provides")?.map(provides).transpose()?;
            let required = ctx.optional("requires")?.map(requires).transpose()?;
            (provided.unwrap_or_default(), required.unwrap_or_default())
        }
        None => (Provides::default(), Requires::default()),
    };
    Ok(Workspace {
        active: element
            .optional("active")?
            .map(Element::switch)
            .transpose()?
            .unwrap_or_default(),
        name,
        image: leaf(element, "image")?.unwrap_or_default(),
        quantity: quantity(element)?,
        nics: element.all("nic").map(nic).collect::<Result<_, _>>()?,
        provides,
        requires,
        deploys: element.all("deploy").map(deploy).collect::<Result<_, _>>()?,
        line: element.line(),
    })
}

fn leaf(element: &Element, name: &str) -> Result<Option<String>, DocumentError> {
    let Some(child) = element.optional(name)? else {
        return Ok(None);
    };
    child.only(&[], &[])?;
    Ok(Some(child.text().trim().to_owned()))
}

fn quantity(element: &Element) -> Result<u32, DocumentError> {
    match element.optional("quantity")? {
        Some(quantity) => {
            quantity.only(&[], &[])?;
            quantity.value()
        }
        None => Ok(1),
    }
}

fn nic(element: &Element) -> Result<Nic, DocumentError> {
    element.only(&["wantlogin", "interface"], &[])?;
    Ok(Nic {
        network: element.text().trim().to_owned(),
        interface: element.attribute("interface")?,
        wantlogin: element.flag("wantlogin")?,
    })
}

fn deploy(element: &Element) -> Result<Deploy, DocumentError> {
    element.only(&[], &["cloud", "image", "quantity"])?;
    Ok(Deploy {
        cloud: element.required("cloud")?.value()?,
        image: leaf(element, "image")?,
        quantity: quantity(element)?,
    })
}

fn provides(element: &Element) -> Result<Provides, DocumentError> {
    element.only(&[], &["identity", "role", "label", "data"])?;
    let mut provides = Provides::default();
    for identity in element.all("identity") {
        identity.only(&[], &["interface"])?;
        let interface = identity.optional("interface")?.map(Element::value).transpose()?;
        provides.identities.push(ProvidedIdentity { interface });
    }
    for role in element.all("role").chain(element.all("label")) {
        role.only(&["interface"], &[])?;
        provides.roles.push(ProvidedRole {
            name: role.value()?,
            interface: role.attribute("interface")?,
        });
    }
    for data in element.all("data") {
        data.only(&["name"], &[])?;
        if !data.text().trim().is_empty() {
            return Err(data.wrong("has a content; the member itself reports that, so give the name alone"));
        }
        provides
            .data
            .push(data.attribute("name")?.ok_or_else(|| data.wrong("lacks name="))?);
    }
    Ok(provides)
}

fn requires(element: &Element) -> Result<Requires, DocumentError> {
    element.only(&[], &["identity", "role", "data"])?;
    let mut requires = Requires {
        identity: element.all("identity").next().is_some(),
        ..Requires::default()
    };
    for identity in element.all("identity") {
        identity.only(&[], &[])?;
    }
    for role in element.all("role") {
        role.only(&["name", "hostname", "pubkey"], &[])?;
        requires.roles.push(RequiredRole {
            name: role.attribute("name")?.ok_or_else(|| role.wrong("lacks name="))?,
            hostname: role.flag("hostname")?,
            pubkey: role.flag("pubkey")?,
            line: role.line(),
        });
    }
    for data in element.all("data") {
        data.only(&["name"], &[])?;
        let text = data.text();
        requires.data.push(RequiredData {
            name: data.attribute("name")?.ok_or_else(|| data.wrong("lacks name="))?,
            content: (!text.trim().is_empty()).then(|| text.to_owned()),
            line: data.line(),
        });
    }
    Ok(requires)
}

pub(super) fn put_cluster(out: &mut Output, cluster: &Cluster) {
    out.nest(BytesStart::new("cluster"), |out| {
        for set in &cluster.workspaces {
            out.nest(BytesStart::new("workspace"), |out| put_workspace(out, set));
        }
    });
}

fn put_workspace(out: &mut Output, set: &Workspace) {
    if set.active {
        out.leaf("active", "true");
    }
    out.leaf("name", set.name.as_str());
    out.leaf("image", &set.image);
    out.leaf("quantity", &set.quantity.to_string());
    for nic in &set.nics {
        let mut start = BytesStart::new("nic");
        if nic.wantlogin {
            start.push_attribute(("wantlogin", "true"));
        }
        if let Some(interface) = &nic.interface {
            start.push_attribute(("interface", interface.as_str()));
        }
        out.text(start, &nic.network);
    }
    out.nest(BytesStart::new("ctx"), |out| {
        out.nest(BytesStart::new("provides"), |out| {
            put_provides(out, &set.provides)
        });
        out.nest(BytesStart::new("requires"), |out| {
            put_requires(out, &set.requires)
        });
    });
    for deploy in &set.deploys {
        out.nest(BytesStart::new("deploy"), |out| {
            out.leaf("cloud", &deploy.cloud);
            if let Some(image) = &deploy.image {
                out.leaf("image", image);
            }
            out.leaf("quantity", &deploy.quantity.to_string());
        });
    }
}

fn put_provides(out: &mut Output, provides: &Provides) {
    for identity in &provides.identities {
        match &identity.interface {
            Some(interface) => out.nest(BytesStart::new("identity"), |out| {
                out.leaf("interface", interface.as_str());
            }),
            None => out.empty(BytesStart::new("identity")),
        }
    }
    for role in &provides.roles {
        let mut start = BytesStart::new("role");
        if let Some(interface) = &role.interface {
            start.push_attribute(("interface", interface.as_str()));
        }
        out.text(start, role.name.as_str());
    }
    for data in &provides.data {
        out.empty(BytesStart::new("data").with_attributes([("name", data.as_str())]));
    }
}

fn put_requires(out: &mut Output, requires: &Requires) {
    if requires.identity {
        out.empty(BytesStart::new("identity"));
    }
    for role in &requires.roles {
        let mut start = BytesStart::new("role").with_attributes([("name", role.name.as_str())]);
        if role.hostname {
            start.push_attribute(("hostname", "true"));
        }
        if role.pubkey {
            start.push_attribute(("pubkey", "true"));
        }
        out.empty(start);
    }
    for data in &requires.data {
        let start = BytesStart::new("data").with_attributes([("name", data.name.as_str())]);
        match &data.content {
            Some(content) => out.text(start, content),
            None => out.empty(start),
        }
    }
}
