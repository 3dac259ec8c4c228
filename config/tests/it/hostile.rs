//! Arbitrary and mutilated bytes: no decoder panics, and none gives more than its limits.

use aerie_config::{BootstrapAddr, Bundle, EnrolUrl, Form, MAX_FILES, MAX_TOTAL_BYTES, Spec};
use proptest::prelude::*;

use crate::common::{bundle, full};

fn open_every_way(bytes: &[u8]) {
    let _ = Form::sniff(bytes);
    for result in [
        Bundle::open(bytes),
        Bundle::from_floppy(bytes),
        Bundle::from_zip(bytes),
        Bundle::from_user_data(bytes),
    ] {
        match result {
            Ok(bundle) => {
                assert!(bundle.len() <= MAX_FILES && bundle.total_bytes() <= MAX_TOTAL_BYTES);
                let _ = bundle.spec();
            }
            Err(error) => assert!(error.to_string().len() < 4000, "{error}"),
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Spec::parse(text);
    }
}

/// Some places of the bytes overwritten, and perhaps an end cut off.
fn mutilated(bytes: Vec<u8>, within: usize) -> impl Strategy<Value = Vec<u8>> {
    let len = bytes.len();
    let wounds = prop::collection::vec((0..within.min(len), any::<u8>()), 1..40);
    (wounds, prop::option::weighted(0.2, 0..len)).prop_map(move |(wounds, cut)| {
        let mut bytes = bytes.clone();
        for (at, byte) in wounds {
            bytes[at] = byte;
        }
        bytes.truncate(cut.unwrap_or(len));
        bytes
    })
}

/// The parts of a floppy that say where things are: boot sector, tables, root directory.
const FLOPPY_HEAD: usize = 33 * 512;

/// Some hundred cases of each kind, or as many as `PROPTEST_CASES` says for a longer hunt.
fn cases() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(asked.unwrap_or(400))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        open_every_way(&bytes);
    }

    #[test]
    fn arbitrary_bytes_behind_a_known_head_do_no_harm(
        head in prop::sample::select(vec![&b"\x1f\x8b\x08\0"[..], b"PK\x03\x04", b"PK\x05\x06", b"\xeb<\x90", b"H4sI"]),
        tail in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        open_every_way(&[head, &tail].concat());
    }

    #[test]
    fn an_arbitrary_boot_sector_does_no_harm(mut boot in prop::collection::vec(any::<u8>(), 4096)) {
        boot[..3].copy_from_slice(b"\xeb\x3c\x90");
        boot[510..512].copy_from_slice(&[0x55, 0xaa]);
        open_every_way(&boot);
    }

    #[test]
    fn a_mutilated_floppy_does_no_harm(image in mutilated(bundle().to_floppy().unwrap(), FLOPPY_HEAD)) {
        open_every_way(&image);
    }

    #[test]
    fn a_floppy_with_a_mutilated_boot_sector_does_no_harm(image in mutilated(bundle().to_floppy().unwrap(), 64)) {
        open_every_way(&image);
    }

    #[test]
    fn a_mutilated_zip_does_no_harm(archive in mutilated(bundle().to_zip().unwrap(), usize::MAX)) {
        open_every_way(&archive);
    }

    #[test]
    fn a_mutilated_user_data_does_no_harm(data in mutilated(bundle().to_user_data().unwrap(), usize::MAX)) {
        open_every_way(&data);
    }

    #[test]
    fn a_mutilated_spec_does_no_harm(text in mutilated(full().into_bytes(), usize::MAX)) {
        open_every_way(&text);
        let _ = Spec::parse(&String::from_utf8_lossy(&text));
    }

    #[test]
    fn arbitrary_text_does_no_harm(text in "\\PC{0,300}") {
        let _ = Spec::parse(&text);
        let _ = Spec::parse(&format!("version = 1\n[node]\n{text}"));
        let _ = Spec::parse(&format!("version = 1\n[overlay]\nbootstrap = ['{text}']"));
        let _ = text.parse::<EnrolUrl>();
        let _ = format!("/{text}").parse::<BootstrapAddr>();
    }
}
