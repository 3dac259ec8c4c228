//! What a guest is told about itself, as a disc: for guests on no network of ours, and for those that look at their
//! discs first.
//!
//! A disc says what the metadata service says, and is made when the guest is defined: what changes later is on the
//! network alone.

mod iso;

use aerie_cluster_node::Mac;
use serde_json::json;

use crate::plan::{Facts, MAX_KEYS, MAX_USER_DATA};
use crate::{BadDisc, PortId};

/// What a guest looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscKind {
    /// OpenStack's: a volume labelled `config-2`.
    Config2,
    /// cloud-init's own: a volume labelled `cidata`.
    NoCloud,
}

/// The image of a CD-ROM (ISO 9660 with Joliet) for the guest of a NIC, which takes its address by DHCP.
///
/// # Errors
/// [`BadDisc`] where the facts do not fit.
pub fn disc(kind: DiscKind, id: PortId, mac: Mac, facts: &Facts) -> Result<Vec<u8>, BadDisc> {
    let user_data = facts.user_data.as_ref().map(|data| data.bytes());
    if user_data.is_some_and(|data| data.len() > MAX_USER_DATA) || facts.public_keys.len() > MAX_KEYS {
        return Err(BadDisc::Facts);
    }
    let hostname = facts.hostname.as_str();
    let uuid = id.guest.to_string();
    match kind {
        DiscKind::Config2 => {
            let keys: serde_json::Map<_, _> = facts
                .public_keys
                .iter()
                .enumerate()
                .map(|(n, key)| (format!("aerie-{n}"), json!(key)))
                .collect();
            let meta = json!({
                "uuid": uuid, "name": hostname, "hostname": hostname, "launch_index": 0, "public_keys": keys,
            });
            let network = json!({
                "links": [{ "id": "link0", "type": "phy", "ethernet_mac_address": mac.to_string() }],
                "networks": [{ "id": "network0", "link": "link0", "type": "ipv4_dhcp" }],
                "services": [],
            });
            let (meta, network) = (meta.to_string(), network.to_string());
            let mut files = vec![
                ("openstack/latest/meta_data.json", meta.as_bytes()),
                ("openstack/latest/network_data.json", network.as_bytes()),
            ];
            files.extend(user_data.map(|data| ("openstack/latest/user_data", data)));
            iso::volume("config-2", &files)
        }
        DiscKind::NoCloud => {
            // JSON is YAML.
            let meta =
                json!({ "instance-id": uuid, "local-hostname": hostname, "public-keys": facts.public_keys });
            let meta = meta.to_string();
            // Without user-data there has to be an empty one.
            let files = [
                ("meta-data", meta.as_bytes()),
                ("user-data", user_data.unwrap_or_default()),
            ];
            iso::volume("cidata", &files)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::UserData;
    use crate::plan::tests::{facts, port_id};

    #[test]
    fn both_kinds_have_their_label_and_the_facts() {
        for (kind, label) in [(DiscKind::Config2, "config-2"), (DiscKind::NoCloud, "cidata")] {
            let image = disc(kind, port_id(1), port_id(1).mac(), &facts()).unwrap();
            let text = String::from_utf8_lossy(&image);
            assert!(image[16 * 2048 + 40..].starts_with(label.as_bytes()));
            for part in ["hello", "node-1", "ssh-ed25519 AAAA me"] {
                assert!(text.contains(part), "{part}");
            }
        }
    }

    #[test]
    fn user_data_beyond_the_limit_is_refused() {
        let mut facts = facts();
        facts.user_data = Some(UserData::new(vec![0; MAX_USER_DATA + 1]));
        let error = disc(DiscKind::NoCloud, port_id(1), port_id(1).mac(), &facts).unwrap_err();
        assert!(error.to_string().contains("65,536"), "{error}");
    }
}
