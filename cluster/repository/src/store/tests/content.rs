use proptest::prelude::*;

use super::*;
use crate::format::inspect;
use crate::manifest::{Hashed, Manifest};
use crate::{BadContent, Format};

/// A qcow2 image of an empty disk, with its header changed.
fn qcow2(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let backing = crate::overlay::Backing {
        path: "/x".into(),
        format: Format::Raw,
    };
    crate::overlay::create(&path, &backing, 1 << 30).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[8..20].fill(0);
    change(&mut bytes);
    bytes
}

fn why(bytes: &[u8]) -> BadContent {
    let (_dir, store) = store();
    match put(&store, bytes, Some("a@1")) {
        Err(Error::Content { why, .. }) => {
            assert_eq!(store.list().unwrap(), []);
            assert_eq!(store.uploads().unwrap(), [], "what is no image is kept");
            assert!(files(&store, "staging").is_empty() && files(&store, "images").is_empty());
            why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_qcow2_image_is_kept_with_the_size_of_its_disk() {
    let (_dir, store) = store();
    let info = put(&store, &qcow2(|_| ()), Some("a@1")).unwrap();
    assert_eq!((info.format, info.virtual_size), (Format::Qcow2, 1 << 30));
    let packed = put(&store, &gzip(&qcow2(|_| ())), Some("b@1")).unwrap();
    assert_eq!(packed.digest, info.digest);
}

#[test]
fn a_qcow2_image_that_names_another_file_is_refused() {
    assert_eq!(why(&qcow2(|bytes| bytes[15] = 0x90)), BadContent::Backing);
    assert_eq!(why(&qcow2(|bytes| bytes[19] = 1)), BadContent::Backing);
    assert_eq!(why(&qcow2(|bytes| bytes[79] = 4)), BadContent::ExternalData);
    let extension = |bytes: &mut Vec<u8>| bytes[104..108].copy_from_slice(b"DATA");
    assert_eq!(why(&qcow2(extension)), BadContent::ExternalData);
    // Hidden by gzip, it is found all the same.
    assert_eq!(
        why(&gzip(&qcow2(|bytes| bytes[79] = 4))),
        BadContent::ExternalData
    );
}

#[test]
fn a_qcow2_image_of_an_absurd_size_is_refused() {
    assert_eq!(
        why(&qcow2(|bytes| bytes[24..32].fill(0xff))),
        BadContent::Disk(u64::MAX)
    );
    assert_eq!(why(&qcow2(|bytes| bytes[24..32].fill(0))), BadContent::Empty);
    let header = |at: std::ops::Range<usize>, value: u8| {
        let refused = why(&qcow2(|bytes| bytes[at].fill(value)));
        assert!(matches!(refused, BadContent::Header(_)), "{refused:?}");
    };
    header(4..8, 0x09);
    header(20..24, 0xff);
    // Encrypted.
    header(35..36, 1);
    // The L1 table: too short, too long, beyond the end, at no cluster.
    header(36..40, 0);
    header(36..40, 0xff);
    header(40..48, 0xff);
    header(46..48, 0x01);
    // The reference counts.
    header(48..56, 0xff);
    header(56..60, 0xff);
    header(60..64, 0xff);
    // Features that nobody knows, one that is damaged, and a header of no length.
    header(72..73, 0x80);
    header(79..80, 2);
    header(100..104, 0);
    let outside = why(&qcow2(|bytes| bytes[3 * 65536..3 * 65536 + 8].fill(0x7f)));
    assert!(matches!(outside, BadContent::Header(_)), "{outside:?}");
    let cut = why(&qcow2(|bytes| bytes.truncate(70)));
    assert!(matches!(cut, BadContent::Header(_)), "{cut:?}");
}

#[test]
fn an_unknown_format_is_named() {
    let mut vmdk = disk(9, 1);
    vmdk[..4].copy_from_slice(b"KDMV");
    assert_eq!(why(&vmdk), BadContent::Kind("a VMDK image"));
    assert_eq!(
        why(b"# Disk DescriptorFile"),
        BadContent::Kind("a VMDK descriptor")
    );
    assert_eq!(
        why(&gzip(&gzip(&disk(9, 1)))),
        BadContent::Kind("packed by gzip twice")
    );
    assert_eq!(why(b"hello"), BadContent::NoDisk(5));
    let shown = why(&vmdk).to_string();
    assert!(shown.contains("qemu-img convert"), "{shown}");
}

#[test]
fn a_raw_image_that_begins_as_a_qcow2_image_is_refused() {
    let (_dir, store) = store();
    let bytes = qcow2(|_| ());
    let mut said = announce(&bytes, Some("a@1"));
    said.format = Some(Format::Raw);
    store.begin(&said, NOW).unwrap();
    store.append(said.sent, 0, &mut &bytes[..], NOW).unwrap();
    let error = store.finish(said.sent, NOW).unwrap_err().to_string();
    assert!(
        error.starts_with("a@1 is not taken as an image: it is said to be raw and is qcow2"),
        "{error}"
    );
}

#[test]
fn a_gzip_bomb_is_unpacked_no_further_than_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        max_bytes: Some(1 << 20),
        ..config(dir.path())
    };
    let store = Store::open(config).unwrap();
    let bomb = gzip(&vec![0; 64 << 20]);
    assert!(bomb.len() < 1 << 20);
    let error = put(&store, &bomb, Some("a@1")).unwrap_err();
    assert!(matches!(error, Error::Quota { limit: 0x10_0000, .. }), "{error}");
    assert!(files(&store, "staging").is_empty() && store.list().unwrap().is_empty());
}

#[test]
fn zeros_that_are_unpacked_take_no_disk() {
    use std::os::unix::fs::MetadataExt as _;
    let (_dir, store) = store();
    let info = put(&store, &gzip(&vec![0; 32 << 20]), Some("a@1")).unwrap();
    let meta = std::fs::metadata(store.get(&image("a")).unwrap().path).unwrap();
    assert_eq!((meta.len(), info.stored_size), (32 << 20, 32 << 20));
    assert!(meta.blocks() * 512 < 1 << 20);
}

#[test]
fn a_packed_image_that_is_cut_short_is_refused() {
    let packed = gzip(&disk(900, 1));
    let refused = why(&packed[..packed.len() - 9]);
    assert!(matches!(refused, BadContent::Packed(_)), "{refused:?}");
}

#[test]
fn an_upload_that_ended_early_says_where_to_go_on() {
    let (_dir, store) = store();
    let bytes = disk(9, 1);
    let upload = announce(&bytes, Some("a@1"));
    store.begin(&upload, NOW).unwrap();
    store.append(upload.sent, 0, &mut &bytes[..1000], NOW).unwrap();
    let error = store.finish(upload.sent, NOW).unwrap_err().to_string();
    assert!(
        error.contains("has 1000 of 4608 bytes; continue it at byte 1000"),
        "{error}"
    );
    let error = store.append(upload.sent, 0, &mut &bytes[..], NOW).unwrap_err();
    assert!(matches!(error, Error::WrongOffset { have: 1000, .. }), "{error}");
    let mut long = bytes.clone();
    long.push(0);
    let error = store
        .append(upload.sent, 1000, &mut &long[1000..], NOW)
        .unwrap_err();
    assert!(matches!(error, Error::WrongOffset { .. }), "{error}");
    let begun = store.begin(&upload, NOW).unwrap();
    let Begun::At(at) = begun else {
        panic!("{begun:?}");
    };
    store
        .append(upload.sent, at, &mut &bytes[usize::try_from(at).unwrap()..], NOW)
        .unwrap();
    store.finish(upload.sent, NOW).unwrap();
}

#[test]
fn what_has_another_digest_than_announced_is_forgotten() {
    let (_dir, store) = store();
    for bytes in [disk(9, 1), gzip(&disk(9, 1))] {
        let upload = announce(&bytes, Some("a@1"));
        store.begin(&upload, NOW).unwrap();
        let mut damaged = bytes.clone();
        damaged[20] ^= 1;
        store.append(upload.sent, 0, &mut &damaged[..], NOW).unwrap();
        let error = store.finish(upload.sent, NOW).unwrap_err();
        assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
        assert_eq!(store.begin(&upload, NOW).unwrap(), Begun::At(0));
        store.give_up(upload.sent).unwrap();
        assert_eq!(store.list().unwrap(), []);
    }
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_sent_with_how_much_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.max_bytes = Some(100_000);
    let store = Store::open(config.clone()).unwrap();
    put(&store, &disk(100, 1), Some("a@1")).unwrap();
    let error = put(&store, &disk(100, 2), Some("b@1")).unwrap_err().to_string();
    assert!(
        error.contains("may have 100000 bytes and has 51200, so that 51200 more"),
        "{error}"
    );
    config.max_bytes = None;
    config.keep_free = u64::MAX;
    let store = Store::open(config).unwrap();
    let error = put(&store, &disk(100, 3), Some("b@1")).unwrap_err().to_string();
    assert!(error.contains("51200 bytes are needed and 0 are free"), "{error}");
    let mut huge = announce(&disk(1, 1), None);
    huge.size = u64::MAX;
    assert!(matches!(store.begin(&huge, NOW), Err(Error::Content { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), head in 0..4_u8) {
        let mut bytes = bytes;
        let magic: &[u8] = match head {
            0 => b"QFI\xfb\0\0\0\x03",
            1 => b"QFI\xfb\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10",
            2 => b"AERIEMF\x01",
            _ => b"",
        };
        bytes.splice(..0, magic.iter().copied());
        let _ = Manifest::decode(&bytes);
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        let _ = inspect(&file, "it", None);
    }

    #[test]
    fn a_manifest_is_read_back(sectors in 1_u32..5000, flipped in 0_usize..64, bit in 0_u8..8) {
        let file = tempfile::tempfile().unwrap();
        let length = u64::from(sectors) * 512;
        file.set_len(length).unwrap();
        let inspected = inspect(&file, "it", None).unwrap();
        let manifest = Hashed::of(&file, length).unwrap().manifest(inspected);
        let (id, mut bytes) = (manifest.id(), manifest.encode());
        prop_assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        bytes[flipped] ^= 1 << bit;
        if let Ok(other) = Manifest::decode(&bytes) {
            prop_assert_ne!(other.id(), id);
        }
        bytes.push(0);
        prop_assert!(Manifest::decode(&bytes).is_err());
    }
}
