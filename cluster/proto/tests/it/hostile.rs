//! Arbitrary bytes, and documents that mean harm.

use aerie_cluster_proto::description::{Document, Import};
use aerie_cluster_proto::limits::{MAX_DOCUMENT_BYTES, MAX_FAULTS};
use proptest::prelude::*;

use crate::common::{BATCH, BOUNDS, DESK, NFS};

fn import() -> Import {
    Import::new("x".parse().unwrap())
}

#[test]
fn a_document_beyond_the_limit_is_not_read() {
    let text = " ".repeat(MAX_DOCUMENT_BYTES + 1);
    for refused in [
        Document::from_toml(&text).err(),
        Document::from_json(&text).err(),
        Document::from_cluster_xml(&text, &import()).err(),
    ] {
        assert!(refused.unwrap().to_string().contains("1048576"));
    }
}

#[test]
fn a_thousand_faults_are_counted_and_the_first_are_told() {
    let text = NFS.to_owned()
        + &(0..1000)
            .map(|index| format!("junk{index} = 1\n"))
            .collect::<String>();
    let faults = Document::from_toml(&text).unwrap_err();
    assert_eq!(
        (faults.listed.len(), faults.more),
        (MAX_FAULTS, 1000 - MAX_FAULTS)
    );
    assert!(faults.to_string().ends_with("and 950 more"));
}

#[test]
fn many_sets_and_long_lists_are_refused_before_they_are_looked_at() {
    let text = "version = 1\nname = \"x\"\n".to_owned() + &"[[workspace]]\n".repeat(50_000);
    let faults = Document::from_toml(&text).unwrap_err();
    assert_eq!(faults.listed.len(), 1, "{faults}");
    assert!(
        faults.to_string().contains("has 50000 entries; 64 are allowed"),
        "{faults}"
    );
    let roles = format!("roles = [{}]", "\"a\",".repeat(1000));
    let faults = Document::from_toml(&NFS.replace("roles = [\"nfsserver\"]", &roles)).unwrap_err();
    assert!(
        faults.to_string().contains("has 1000 entries; 32 are allowed"),
        "{faults}"
    );
}

#[test]
fn a_long_key_is_not_repeated_in_full_nor_its_control_characters() {
    let text = format!("\"{}\\u001b[31m\" = 1", "k".repeat(10_000));
    let message = Document::from_toml(&text).unwrap_err().to_string();
    assert!(message.len() < 1000 && !message.contains('\u{1b}'), "{message}");
}

#[test]
fn one_line_of_a_megabyte_with_faults_is_refused() {
    let zeros = "0,".repeat(200_000);
    let text = format!("{{\"workspace\": [{zeros}0]}}");
    assert!(Document::from_json(&text).is_err());
    let text = format!("workspace = [{zeros}]");
    assert!(Document::from_toml(&text).is_err());
    let keys: String = (0..60_000).map(|index| format!("\"k{index}\":0,")).collect();
    let text = format!("{{{keys}\"version\":1}}");
    assert_eq!(Document::from_json(&text).unwrap_err().listed.len(), MAX_FAULTS);
}

fn read_all(text: &str) {
    for document in [
        Document::from_toml(text).ok(),
        Document::from_json(text).ok(),
        Document::from_cluster_xml(text, &import())
            .ok()
            .map(|(document, _)| document),
    ]
    .into_iter()
    .flatten()
    {
        let _ = document.check(&BOUNDS);
        // What was understood is written so that it is understood again.
        let again = Document::from_toml(&document.description.to_toml())
            .unwrap()
            .description;
        assert_eq!(again, document.description);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        read_all(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_damaged_document_is_read_or_refused(
        which in 0..3usize, at in 0..10_000usize, length in 0usize..40, put in "[ -~\\n\\[\\]{}=.\"äß]{0,12}",
    ) {
        let text = [NFS, BATCH, DESK][which];
        let at = at % text.len();
        let mut text = text.to_owned();
        text.replace_range(at..(at + length).min(text.len()), &put);
        read_all(&text);
    }

    #[test]
    fn lines_in_any_order_are_read_or_refused(
        which in 0..3usize, moves in proptest::collection::vec((any::<usize>(), any::<usize>()), 1..6),
    ) {
        let mut lines: Vec<_> = [NFS, BATCH, DESK][which].lines().collect();
        for (one, other) in moves {
            let (one, other) = (one % lines.len(), other % lines.len());
            lines.swap(one, other);
        }
        read_all(&lines.join("\n"));
    }
}
