//! User-data: `<nimbusctx>` with the contact and the cluster.

use base64::Engine as _;
use quick_xml::events::BytesStart;

use super::cluster::{cluster, put_cluster};
use super::tree::{self, Element, Output};
use crate::contact::{Contact, UserData, check_url, decode};
use crate::error::DocumentError;

/// Reads user-data.
///
/// # Errors
/// [`DocumentError`] with element and line. It shows no secret.
pub fn read_user_data(text: &str) -> Result<UserData, DocumentError> {
    let root = tree::read(text)?;
    if root.name != "nimbusctx" {
        return Err(root.wrong("is no user-data of a context; its first element is <nimbusctx>"));
    }
    root.only(&[], &["contact", "member", "cluster"])?;
    Ok(UserData {
        contact: contact(root.required("contact")?)?,
        member: root.optional("member")?.map(Element::value).transpose()?,
        cluster: cluster(root.required("cluster")?)?,
    })
}

fn contact(element: &Element) -> Result<Contact, DocumentError> {
    element.only(
        &[],
        &["brokerURL", "contextID", "fingerprint", "certificate", "secret"],
    )?;
    let url = element.required("brokerURL")?;
    let broker_url = url.text().trim().to_owned();
    check_url(&broker_url).map_err(|error| url.wrong(format!("is not usable: {error}")))?;
    let certificate = element.required("certificate")?;
    Ok(Contact {
        broker_url,
        context: element.required("contextID")?.value()?,
        fingerprint: element.required("fingerprint")?.value()?,
        certificate: decode(certificate.text())
            .map_err(|error| certificate.wrong(format!("is not usable: {error}")))?,
        secret: element.required("secret")?.value()?,
    })
}

/// Writes user-data. It holds the context's secret.
#[must_use]
pub fn write_user_data(data: &UserData) -> String {
    let mut out = Output::new();
    out.nest(BytesStart::new("nimbusctx"), |out| {
        out.nest(BytesStart::new("contact"), |out| {
            let contact = &data.contact;
            out.leaf("brokerURL", &contact.broker_url);
            out.leaf("contextID", &contact.context.to_string());
            out.leaf("fingerprint", &contact.fingerprint.to_string());
            let engine = base64::engine::general_purpose::STANDARD;
            out.leaf("certificate", &engine.encode(&contact.certificate));
            out.leaf("secret", &contact.secret.to_text());
        });
        if let Some(member) = &data.member {
            out.leaf("member", member.as_str());
        }
        put_cluster(out, &data.cluster);
    });
    out.end()
}
