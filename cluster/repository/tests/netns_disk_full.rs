//! A store on a small disk that becomes full. The disk is a tmpfs in a mount namespace of the test's own, which needs
//! root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use aerie_cluster_repository::{Begun, Config, Digest, Error, Meta, Put, Store};
use aerie_types::WallMillis;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const NOW: WallMillis = WallMillis(1_900_000_000_000);

#[test]
fn a_full_disk_is_said_with_how_much_is_needed_and_the_upload_goes_on_when_there_is_room() {
    // The namespace is this thread's alone, and goes with it.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=16m"),
    )
    .unwrap();
    let store = Store::open(Config {
        keep_free: 0,
        ..Config::new(dir.path().join("store"))
    })
    .unwrap();
    let bytes = vec![7; 8 << 20];
    let put = Put {
        sent: Digest::of(&bytes),
        size: bytes.len() as u64,
        name: Some("a@1".parse().unwrap()),
        format: None,
        meta: Meta::default(),
    };
    let large = Put {
        size: 1 << 30,
        ..put.clone()
    };
    let error = store.begin(&large, NOW).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoSpace {
                need: 0x4000_0000,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(store.begin(&put, NOW).unwrap(), Begun::At(0));
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![1; 12 << 20]).unwrap();
    let error = store.append(put.sent, 0, &mut &bytes[..], NOW).unwrap_err();
    let Error::NoSpace { need, free, .. } = &error else {
        panic!("{error}");
    };
    assert!(*need > 0 && *free < *need, "{error}");
    assert!(store.list().unwrap().is_empty());
    // Where it can be known, it is said before anything is sent.
    assert!(matches!(store.begin(&put, NOW), Err(Error::NoSpace { .. })));
    std::fs::remove_file(filler).unwrap();
    let Begun::At(at) = store.begin(&put, NOW).unwrap() else {
        panic!("it is there");
    };
    assert!(at > 0, "what had come is lost");
    let rest = &bytes[usize::try_from(at).unwrap()..];
    store.append(put.sent, at, &mut &rest[..], NOW).unwrap();
    store.finish(put.sent, NOW).unwrap();
    assert!(store.verify(&"a".parse().unwrap()).unwrap().is_sound());
}
