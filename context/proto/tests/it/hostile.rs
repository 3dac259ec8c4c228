//! Arbitrary bytes at every door.

use aerie_context_proto::{Cluster, HostKey, HostName, UserData, xml};
use proptest::prelude::*;

use crate::common::NFS;

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = xml::read_cluster(&text);
        let _ = xml::read_user_data(&text);
        let _ = Cluster::from_json(&text);
        let _ = serde_json::from_slice::<UserData>(&bytes);
        let _ = text.parse::<HostKey>();
        let _ = text.parse::<HostName>();
    }

    #[test]
    fn a_damaged_document_is_read_or_refused(
        at in 0..NFS.len(), length in 0usize..40, put in "[ -~<>&;\"'/=\\[\\]!]{0,12}",
    ) {
        let mut text = NFS.to_owned();
        text.replace_range(at..(at + length).min(NFS.len()), &put);
        if let Ok(cluster) = xml::read_cluster(&text) {
            let _ = cluster.check(false);
            // What was understood is written so that it is understood again.
            prop_assert_eq!(xml::read_cluster(&xml::write_cluster(&cluster)).unwrap(), cluster);
        }
    }

    #[test]
    fn data_survives_both_forms(content in "[ -~\\n\\t<>&äß→]{0,200}x") {
        let mut cluster = xml::read_cluster(NFS).unwrap();
        cluster.workspaces[0].requires.data.push(aerie_context_proto::RequiredData {
            name: "blob".parse().unwrap(),
            content: Some(content),
            line: aerie_context_proto::Line::default(),
        });
        prop_assert_eq!(&xml::read_cluster(&xml::write_cluster(&cluster)).unwrap(), &cluster);
        let json = serde_json::to_string(&cluster).unwrap();
        prop_assert_eq!(Cluster::from_json(&json).unwrap(), cluster);
    }
}
