use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::*;
use crate::limits::{UNNAMED_KEPT, UPLOAD_KEPT};
use crate::overlay;
use crate::{Format, ManifestId};

fn later(duration: Duration) -> WallMillis {
    NOW.plus(duration)
}

#[test]
fn an_image_is_had_back_under_its_name_and_its_digest_from_any_byte_on() {
    let (_dir, store) = store();
    let bytes = disk(3000, 1);
    let info = put(&store, &bytes, Some("lab/debian@13")).unwrap();
    assert_eq!(info.digest, Digest::of(&bytes));
    assert_eq!(
        (info.format, info.virtual_size),
        (Format::Raw, bytes.len() as u64)
    );
    assert_eq!(content(&store, "lab/debian"), bytes);
    assert_eq!(content(&store, &format!("sha256:{}", info.digest)), bytes);
    let mut rest = Vec::new();
    let opened = store.get(&image("lab/debian@13")).unwrap();
    assert_eq!(opened.copy_from(1_000_000, &mut rest).unwrap(), rest.len() as u64);
    assert_eq!(rest, bytes[1_000_000..]);
    let manifest = store.manifest(&image("lab/debian")).unwrap();
    assert_eq!(manifest.id(), info.manifest);
    assert_eq!(store.list().unwrap(), [info]);
}

#[test]
fn a_name_without_a_version_is_the_image_that_was_named_last() {
    let (_dir, store) = store();
    let (one, two) = (disk(1, 1), disk(1, 2));
    let first = put(&store, &one, Some("debian")).unwrap();
    assert_eq!(first.names, [image("debian@1")]);
    put(&store, &two, Some("debian")).unwrap();
    assert_eq!(content(&store, "debian"), two);
    assert_eq!(content(&store, "debian@1"), one);
    // The newest already, so that it gets no other number.
    assert_eq!(
        put(&store, &two, Some("debian")).unwrap().names,
        [image("debian@2")]
    );
    store.untag(&image("debian@2")).unwrap();
    assert_eq!(content(&store, "debian"), one);
}

#[test]
fn an_image_that_is_not_there_is_named() {
    let (_dir, store) = store();
    for text in ["debian", "debian@13", &format!("sha256:{}", "0a".repeat(32))] {
        let error = store.get(&image(text)).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("there is no image {text} in /")),
            "{error}"
        );
    }
    assert!(matches!(store.untag(&image("a@1")), Err(Error::NoImage { .. })));
    assert!(matches!(store.verify(&image("a")), Err(Error::NoImage { .. })));
}

#[test]
fn a_name_is_of_one_image_until_it_is_taken_away() {
    let (_dir, store) = store();
    let first = put(&store, &disk(1, 1), Some("debian@13")).unwrap();
    let other = disk(1, 2);
    let error = put(&store, &other, Some("debian@13")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("debian@13 is of another image, {}", first.digest)),
        "{error}"
    );
    // It was refused before anything was sent.
    assert_eq!(store.uploads().unwrap(), []);
    let other = put(&store, &other, None).unwrap();
    let clash = store.tag(&other.digest.into(), &image("debian@13"));
    assert!(matches!(clash, Err(Error::NameTaken { .. })));
    store.untag(&image("debian@13")).unwrap();
    store.tag(&other.digest.into(), &image("debian@13")).unwrap();
    assert_eq!(store.find(&image("debian@13")).unwrap().digest, other.digest);
    let digest: Image = other.digest.into();
    assert!(matches!(store.tag(&digest, &digest), Err(Error::NoName(_))));
}

#[test]
fn a_name_that_was_taken_during_the_upload_is_refused_and_the_upload_is_kept_for_another_name() {
    let (_dir, store) = store();
    let bytes = disk(9, 1);
    let mut late = announce(&bytes, Some("debian@13"));
    assert_eq!(store.begin(&late, NOW).unwrap(), Begun::At(0));
    put(&store, &disk(9, 2), Some("debian@13")).unwrap();
    store.append(late.sent, 0, &mut &bytes[..], NOW).unwrap();
    assert!(matches!(
        store.finish(late.sent, NOW),
        Err(Error::NameTaken { .. })
    ));
    late.name = Some(image("debian@14"));
    assert_eq!(store.begin(&late, NOW).unwrap(), Begun::At(bytes.len() as u64));
    store.finish(late.sent, NOW).unwrap();
    assert_eq!(content(&store, "debian@14"), bytes);
}

#[test]
fn an_upload_goes_on_at_the_byte_and_one_that_is_there_is_not_sent() {
    let (_dir, store) = store();
    let bytes = disk(100, 1);
    let first = announce(&bytes, Some("a@1"));
    store.begin(&first, NOW).unwrap();
    assert_eq!(store.append(first.sent, 0, &mut &bytes[..777], NOW).unwrap(), 777);
    let again = Store::open(super::config(_dir.path())).unwrap();
    assert_eq!(again.begin(&first, NOW).unwrap(), Begun::At(777));
    again.append(first.sent, 777, &mut &bytes[777..], NOW).unwrap();
    again.finish(first.sent, NOW).unwrap();
    let second = announce(&bytes, Some("b@1"));
    assert!(matches!(store.begin(&second, NOW).unwrap(), Begun::Present(_)));
    assert_eq!(content(&store, "b"), bytes);
    assert_eq!(files(&store, "uploads"), [""; 0]);
    assert_eq!(files(&store, "staging"), [""; 0]);
}

#[test]
fn what_is_leased_cloned_named_or_new_is_not_collected_and_all_else_is() {
    let (_dir, store) = store();
    let infos: Vec<_> = (0..4)
        .map(|salt| put(&store, &disk(9, salt), None).unwrap())
        .collect();
    let digests: Vec<_> = infos.iter().map(|info| info.digest).collect();
    store.tag(&digests[0].into(), &image("a@1")).unwrap();
    store.lease(&digests[1].into(), "guest-7", NOW).unwrap();
    store.clone_image(&digests[2].into(), "disk-7", NOW).unwrap();
    let soon = later(UNNAMED_KEPT - Duration::from_secs(1));
    assert_eq!(store.collect(false, soon).unwrap(), Default::default());
    let dry = store.collect(true, later(UNNAMED_KEPT)).unwrap();
    assert_eq!(
        (&dry.images[..], dry.bytes),
        (&digests[3..], infos[3].stored_size)
    );
    assert_eq!(store.list().unwrap().len(), 4, "a dry run removed something");
    assert_eq!(store.collect(false, later(UNNAMED_KEPT)).unwrap(), dry);
    assert_eq!(files(&store, "images").len(), 3);
    // With the last that holds each, they go.
    store.untag(&image("a@1")).unwrap();
    store.release(digests[1], "guest-7").unwrap();
    store.remove_clone("disk-7").unwrap();
    assert_eq!(store.collect(false, later(UNNAMED_KEPT)).unwrap().images.len(), 3);
    assert_eq!(files(&store, "images"), [""; 0]);
    assert_eq!(files(&store, "clones"), [""; 0]);
}

#[test]
fn what_is_put_again_has_its_hour_again() {
    let (_dir, store) = store();
    let bytes = disk(9, 1);
    let info = put(&store, &bytes, None).unwrap();
    let soon = later(UNNAMED_KEPT - Duration::from_secs(1));
    // It is there, and is not sent.
    let again = store.begin(&announce(&bytes, None), soon).unwrap();
    assert!(matches!(again, Begun::Present(_)));
    assert_eq!(
        store.collect(false, later(UNNAMED_KEPT)).unwrap(),
        Default::default()
    );
    // It was damaged, and is sent.
    let path = store.dir().join("images").join(info.digest.to_string());
    std::fs::remove_file(path).unwrap();
    assert!(!store.verify(&info.digest.into()).unwrap().is_sound());
    let (much_later, upload) = (later(Duration::from_millis(DAY)), announce(&bytes, None));
    store.begin(&upload, much_later).unwrap();
    store.append(upload.sent, 0, &mut &bytes[..], much_later).unwrap();
    store.finish(upload.sent, much_later).unwrap();
    let last = |after| WallMillis(much_later.0).plus(after);
    let soon = last(UNNAMED_KEPT - Duration::from_secs(1));
    assert_eq!(store.collect(false, soon).unwrap().images, []);
    assert_eq!(
        store.collect(false, last(UNNAMED_KEPT)).unwrap().images,
        [info.digest]
    );
}

#[test]
fn an_index_of_the_first_version_keeps_its_images_and_their_hour() {
    let (dir, store) = store();
    let info = put(&store, &disk(9, 1), None).unwrap();
    let index = rusqlite::Connection::open(store.dir().join("index.sqlite")).unwrap();
    drop(store);
    index
        .execute_batch("ALTER TABLE images DROP COLUMN put_at; PRAGMA user_version = 1")
        .unwrap();
    let store = Store::open(super::config(dir.path())).unwrap();
    let soon = later(UNNAMED_KEPT - Duration::from_secs(1));
    assert_eq!(store.collect(false, soon).unwrap(), Default::default());
    assert_eq!(
        store.collect(false, later(UNNAMED_KEPT)).unwrap().images,
        [info.digest]
    );
}

#[test]
fn an_upload_under_way_is_not_collected_and_one_that_nobody_continues_is() {
    let (_dir, store) = store();
    let bytes = disk(9, 1);
    let upload = announce(&bytes, None);
    store.begin(&upload, NOW).unwrap();
    store.append(upload.sent, 0, &mut &bytes[..100], NOW).unwrap();
    let soon = later(UPLOAD_KEPT - Duration::from_secs(1));
    assert_eq!(store.collect(false, soon).unwrap(), Default::default());
    let working = store.idle(upload.sent).unwrap().unwrap();
    assert_eq!(
        store.collect(false, later(UPLOAD_KEPT)).unwrap(),
        Default::default()
    );
    drop(working);
    assert_eq!(
        store.collect(false, later(UPLOAD_KEPT)).unwrap().uploads,
        [upload.sent]
    );
    assert!(store.uploads().unwrap().is_empty() && files(&store, "uploads").is_empty());
    assert!(matches!(
        store.finish(upload.sent, NOW),
        Err(Error::NoUpload { .. })
    ));
}

#[test]
fn files_that_the_index_does_not_know_are_collected() {
    let (_dir, store) = store();
    put(&store, &disk(9, 1), Some("a@1")).unwrap();
    let stray = Digest::of(b"stray").to_string();
    for place in ["images", "quarantine", "staging", "uploads", "clones"] {
        std::fs::write(store.dir().join(place).join(&stray), "12345").unwrap();
    }
    let dry = store.collect(true, NOW).unwrap();
    assert_eq!((dry.left_over.len(), dry.bytes), (5, 25));
    assert_eq!(store.collect(false, NOW).unwrap(), dry);
    assert_eq!(store.collect(false, NOW).unwrap(), Default::default());
    assert_eq!(content(&store, "a"), disk(9, 1));
}

#[test]
fn a_lease_is_there_until_it_is_released_or_broken_whoever_has_crashed() {
    let (dir, store) = store();
    let info = put(&store, &disk(9, 1), Some("a@1")).unwrap();
    let lease = store.lease(&image("a"), "guest-7", NOW).unwrap();
    // Whoever asks again has what it had.
    assert_eq!(
        store.lease(&image("a"), "guest-7", later(UNNAMED_KEPT)).unwrap(),
        lease
    );
    store.lease(&image("a"), "guest-8", NOW).unwrap();
    drop(store);
    let store = Store::open(super::config(dir.path())).unwrap();
    assert_eq!(store.leases().unwrap().len(), 2);
    store.release(info.digest, "guest-7").unwrap();
    let error = store.release(info.digest, "guest-7").unwrap_err().to_string();
    assert!(error.contains("guest-7 holds no lease"), "{error}");
    assert_eq!(store.leases().unwrap()[0].holder, "guest-8");
    assert!(matches!(
        store.lease(&image("a"), "x\n\0", NOW),
        Err(Error::BadText { .. })
    ));
}

#[test]
fn a_damaged_image_is_said_with_its_chunk_and_taken_out_of_use_until_it_is_put_again() {
    let (_dir, store) = store();
    let bytes = disk(4000, 1);
    let info = put(&store, &bytes, Some("a@1")).unwrap();
    assert!(store.verify(&image("a")).unwrap().is_sound());
    let path = store.dir().join("images").join(info.digest.to_string());
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_at(b"x", 300_000).unwrap();
    let found = store.verify(&image("a")).unwrap();
    assert_eq!((found.damaged, &found.listed[..]), (1, &[1][..]));
    assert_eq!(found.chunk_size, 256 << 10);
    assert!(found.path.starts_with(store.dir().join("quarantine")) && found.path.exists());
    for refused in [
        store.get(&image("a")).map(drop),
        store.lease(&image("a"), "x", NOW).map(drop),
        store.clone_image(&image("a"), "x", NOW).map(drop),
    ] {
        assert!(matches!(refused, Err(Error::Quarantined { .. })));
    }
    // What is served is not served.
    assert!(crate::Library::manifest(&store, info.manifest).unwrap().is_none());
    assert_eq!(
        store.verify(&image("a")).unwrap(),
        found,
        "it is looked at where it is now"
    );
    put(&store, &bytes, None).unwrap();
    assert!(store.verify(&image("a")).unwrap().is_sound());
    assert_eq!(content(&store, "a"), bytes);
    store.collect(false, NOW).unwrap();
    assert_eq!(files(&store, "quarantine"), [""; 0]);
}

#[test]
fn a_cut_or_lost_file_is_damage() {
    let (_dir, store) = store();
    let info = put(&store, &disk(4000, 1), Some("a@1")).unwrap();
    let path = store.dir().join("images").join(info.digest.to_string());
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(600_000)
        .unwrap();
    assert_eq!(store.verify(&image("a")).unwrap().damaged, 6);
    let other = put(&store, &disk(10, 2), Some("b@1")).unwrap();
    std::fs::remove_file(store.dir().join("images").join(other.digest.to_string())).unwrap();
    assert_eq!(store.verify(&image("b")).unwrap().damaged, 1);
    assert!(store.find(&image("b")).unwrap().damaged);
}

#[test]
fn a_clone_names_the_image_that_it_is_built_on_and_takes_up_next_to_nothing() {
    let (_dir, store) = store();
    let info = put(&store, &disk(40_000, 1), Some("a@1")).unwrap();
    let clone = store.clone_image(&image("a"), "disk-7", NOW).unwrap();
    let backing = overlay::backing_of(&clone.path).unwrap().unwrap();
    assert_eq!(
        backing.path,
        store.get(&image("a")).unwrap().path.canonicalize().unwrap()
    );
    assert_eq!((backing.format, clone.image), (Format::Raw, info.digest));
    assert!(std::fs::metadata(&clone.path).unwrap().len() <= 256 << 10);
    let error = store
        .clone_image(&image("a"), "disk-7", NOW)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("there is a clone disk-7"), "{error}");
    for name in ["", "../x", ".x", "a/b"] {
        assert!(matches!(
            store.clone_image(&image("a"), name, NOW),
            Err(Error::BadName { .. })
        ));
    }
    assert_eq!(store.clones().unwrap().len(), 1);
    // It never becomes an image, for it names another file.
    let bytes = std::fs::read(&clone.path).unwrap();
    let error = put(&store, &bytes, Some("evil@1")).unwrap_err().to_string();
    assert!(error.contains("on top of another image"), "{error}");
    store.remove_clone("disk-7").unwrap();
    assert!(matches!(store.remove_clone("disk-7"), Err(Error::NoClone { .. })));
}

#[test]
fn two_stores_on_one_folder_see_each_others_images_and_lose_none() {
    let (dir, store) = store();
    let writers = (0..4_u8).map(|writer| {
        let config = super::config(dir.path());
        std::thread::spawn(move || {
            let store = Store::open(config).unwrap();
            for salt in 0..5 {
                let name = format!("w{writer}@{salt}");
                put(&store, &disk(9, writer * 16 + salt), Some(&name)).unwrap();
                store.collect(false, later(Duration::from_millis(DAY))).unwrap();
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(store.list().unwrap().len(), 20);
    for info in store.list().unwrap() {
        assert!(store.verify(&info.digest.into()).unwrap().is_sound());
    }
}

#[test]
fn an_upload_is_written_by_one_at_a_time() {
    let (dir, store) = store();
    let bytes = disk(9, 1);
    let upload = announce(&bytes, None);
    store.begin(&upload, NOW).unwrap();
    let _working = store.idle(upload.sent).unwrap().unwrap();
    let other = Store::open(super::config(dir.path())).unwrap();
    for refused in [
        other.begin(&upload, NOW).map(drop),
        other.append(upload.sent, 0, &mut &bytes[..], NOW).map(drop),
        other.finish(upload.sent, NOW).map(drop),
        other.give_up(upload.sent),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("is being continued by somebody else"), "{error}");
    }
}

#[test]
fn what_was_not_durable_before_a_power_cut_is_sent_again() {
    let (_dir, store) = store();
    let bytes = disk(100, 1);
    let upload = announce(&bytes, None);
    store.begin(&upload, NOW).unwrap();
    store.append(upload.sent, 0, &mut &bytes[..1000], NOW).unwrap();
    // Bytes that came after the last moment at which all was durable, in another run of the machine.
    let path = store.dir().join("uploads").join(upload.sent.to_string());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_at(&[0; 500], 1000).unwrap();
    assert_eq!(store.begin(&upload, NOW).unwrap(), Begun::At(1500));
    let index = rusqlite::Connection::open(store.dir().join("index.sqlite")).unwrap();
    index
        .execute("UPDATE uploads SET boot_id = 'another', durable = 1000", [])
        .unwrap();
    assert_eq!(store.begin(&upload, NOW).unwrap(), Begun::At(1000));
}

#[test]
fn the_same_content_gives_the_same_manifest_in_every_store() {
    let (_one, first) = store();
    let (_two, second) = store();
    let bytes = disk(5000, 3);
    let packed = put(&first, &gzip(&bytes), Some("a@1")).unwrap();
    let plain = put(&second, &bytes, Some("b@1")).unwrap();
    assert_eq!((packed.digest, packed.manifest), (plain.digest, plain.manifest));
    assert_ne!(packed.manifest, ManifestId(packed.digest));
    assert_eq!(content(&first, "a"), bytes);
}
