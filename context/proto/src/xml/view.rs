//! A member's filled template, as the paper shows it.

use quick_xml::events::BytesStart;

use super::tree::Output;
use crate::state::View;

/// Writes what a member required, filled in.
///
/// ```text
///  <requires version="1">
///    <identity><ip>10.0.0.1</ip><hostname>server</hostname></identity>
///    <role name="nfsserver">10.0.0.1</role>
///  </requires>
/// ```
#[must_use]
pub fn write_view(view: &View) -> String {
    let mut out = Output::new();
    let version = view.version.to_string();
    let attributes = [("version", version.as_str()), ("member", view.member.as_str())];
    out.nest(BytesStart::new("requires").with_attributes(attributes), |out| {
        for (member, identity) in &view.identities {
            let start = BytesStart::new("identity").with_attributes([("member", member.as_str())]);
            out.nest(start, |out| {
                if let Some(interface) = &identity.interface {
                    out.leaf("interface", interface.as_str());
                }
                out.leaf("ip", &identity.ip.to_string());
                if let Some(hostname) = &identity.hostname {
                    out.leaf("hostname", hostname.as_str());
                }
                if let Some(pubkey) = &identity.pubkey {
                    out.leaf("pubkey", pubkey.as_str());
                }
            });
        }
        for (role, players) in &view.roles {
            for player in players {
                let mut start = BytesStart::new("role").with_attributes([("name", role.as_str())]);
                if let Some(hostname) = &player.hostname {
                    start.push_attribute(("hostname", hostname.as_str()));
                }
                if let Some(pubkey) = &player.pubkey {
                    start.push_attribute(("pubkey", pubkey.as_str()));
                }
                out.text(start, &player.ip.to_string());
            }
        }
        for (name, blobs) in &view.data {
            for blob in blobs {
                let mut start = BytesStart::new("data").with_attributes([("name", name.as_str())]);
                if let Some(from) = &blob.from {
                    start.push_attribute(("from", from.as_str()));
                }
                out.text(start, &blob.content);
            }
        }
    });
    out.end()
}
