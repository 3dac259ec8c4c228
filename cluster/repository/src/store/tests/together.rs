//! Several that put the same content at one time.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::limits::UPLOAD_LIVE;

/// Which file an upload has.
fn inode(store: &Store, sent: Digest) -> u64 {
    std::fs::metadata(store.part("uploads", sent)).unwrap().ino()
}

#[test]
fn an_upload_that_somebody_writes_is_neither_replaced_nor_removed() {
    let (dir, store) = store();
    let other = Store::open(config(dir.path())).unwrap();
    let bytes = disk(9, 1);
    let upload = announce(&bytes, Some("a@1"));
    store.begin(&upload, NOW).unwrap();
    let first = inode(&store, upload.sent);
    let working = store.idle(upload.sent).unwrap().unwrap();
    // The index does not speak of it any more, as after a collection.
    let index = rusqlite::Connection::open(store.dir().join("index.sqlite")).unwrap();
    index.execute("DELETE FROM uploads", []).unwrap();
    assert!(matches!(other.begin(&upload, NOW), Err(Error::UploadBusy { .. })));
    assert_eq!(inode(&store, upload.sent), first);
    drop(working);
    // Nor when the image is there.
    put(&store, &bytes, Some("a@1")).unwrap();
    std::fs::write(store.part("uploads", upload.sent), &bytes[..100]).unwrap();
    let working = store.idle(upload.sent).unwrap().unwrap();
    assert!(matches!(other.begin(&upload, NOW), Ok(Begun::Present(_))));
    assert_eq!(files(&store, "uploads").len(), 1);
    drop(working);
    assert!(matches!(other.begin(&upload, NOW), Ok(Begun::Present(_))));
    assert_eq!(files(&store, "uploads"), [""; 0]);
}

#[test]
fn an_upload_under_way_is_not_begun_again_with_another_size() {
    let (_dir, store) = store();
    let bytes = disk(9, 1);
    let upload = announce(&bytes, Some("a@1"));
    store.begin(&upload, NOW).unwrap();
    store.append(upload.sent, 0, &mut &bytes[..100], NOW).unwrap();
    let mut wrong = upload.clone();
    wrong.size = 512;
    let error = store.begin(&wrong, NOW).unwrap_err().to_string();
    assert!(
        error.contains("is under way with 4608 bytes and was announced with 512"),
        "{error}"
    );
    assert_eq!(store.begin(&upload, NOW).unwrap(), Begun::At(100));
    // Whoever announced a wrong size and went away keeps nobody out.
    let later = NOW.plus(UPLOAD_LIVE);
    assert_eq!(store.begin(&wrong, later).unwrap(), Begun::At(0));
}

#[test]
fn what_becomes_an_image_is_the_file_that_was_read() {
    let (_dir, store) = store();
    let bytes = disk(9, 1);
    let upload = announce(&bytes, Some("a@1"));
    store.begin(&upload, NOW).unwrap();
    store.append(upload.sent, 0, &mut &bytes[..], NOW).unwrap();
    let taken = store.take(upload.sent).unwrap();
    let path = store.part("uploads", upload.sent);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, disk(9, 2)).unwrap();
    let made = store.make(&taken, &store.part("staging", upload.sent), NOW);
    assert!(matches!(made, Err(Error::NoUpload { .. })), "{made:?}");
    assert_eq!(store.list().unwrap(), []);
}

#[test]
fn two_that_put_the_same_under_two_names_both_have_their_names() {
    let (dir, store) = store();
    let bytes = disk(9, 1);
    let path = dir.path().join("disk");
    std::fs::write(&path, &bytes).unwrap();
    let other = announce(&bytes, Some("b@1"));
    // The other begins after the first did, and before this has sent anything.
    let mut begun = false;
    let mut begins = |_, _| {
        if !std::mem::replace(&mut begun, true) {
            assert_eq!(store.begin(&other, NOW).unwrap(), Begun::At(0));
        }
    };
    let meta = Meta::default();
    let info = store
        .put_file(&path, Some(&image("a@1")), None, &meta, NOW, &mut begins)
        .unwrap();
    assert_eq!(info.names, [image("b@1"), image("a@1")]);
}

#[test]
fn whoever_puts_the_same_and_is_slower_has_its_name_all_the_same() {
    let (dir, store) = store();
    let bytes = disk(9, 1);
    let path = dir.path().join("disk");
    std::fs::write(&path, &bytes).unwrap();
    let mut faster = |_, _| drop(put(&store, &bytes, Some("b@1")).unwrap());
    let meta = Meta::default();
    let info = store
        .put_file(&path, Some(&image("a")), None, &meta, NOW, &mut faster)
        .unwrap();
    assert_eq!(info.names, [image("b@1"), image("a@1")]);
}
