//! A process that is killed between any two of its steps, and the next one.
//!
//! The process to be killed is this test's program once more, that runs the one test which is no test
//! ([`the_process_that_is_killed`]) with the operation and the number of the place in its environment. Every place is
//! tried, until the process comes to its end.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use nix::sys::signal::Signal;

use super::*;
use crate::crash::NUMBER;

const DIR: &str = "AERIE_REPOSITORY_DIR";
const OPERATION: &str = "AERIE_REPOSITORY_OPERATION";

/// More places than any operation has.
const MAX_PLACES: u32 = 100;

fn bytes(operation: &str) -> Vec<u8> {
    match operation {
        "put packed" => gzip(&disk(2000, 1)),
        _ => disk(2000, 1),
    }
}

#[test]
#[ignore = "is run by other tests"]
fn the_process_that_is_killed() {
    let (Ok(dir), Ok(operation)) = (std::env::var(DIR), std::env::var(OPERATION)) else {
        return;
    };
    let store = Store::open(config(Path::new(&dir))).unwrap();
    match operation.as_str() {
        "put" | "put packed" => drop(put(&store, &bytes(&operation), Some("a@1")).unwrap()),
        "clone" => drop(store.clone_image(&image("a"), "disk", NOW).unwrap()),
        "collect" => drop(store.collect(false, WallMillis(NOW.0 + DAY)).unwrap()),
        "verify" => drop(store.verify(&image("a")).unwrap()),
        other => panic!("what is '{other}'?"),
    }
}

/// True if the process was killed, and did not come to its end before that place.
fn killed(dir: &Path, operation: &str, place: u32) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::crashes::the_process_that_is_killed"])
        .args(["--ignored", "--nocapture"])
        .env(DIR, dir)
        .env(OPERATION, operation)
        .env(NUMBER, place.to_string())
        .output()
        .unwrap();
    if output.status.success() {
        return false;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.signal(),
        Some(Signal::SIGKILL as i32),
        "{operation}: {said}"
    );
    true
}

/// Does the operation in a new store again and again, killed at each of its places in turn.
fn at_each_place(operation: &str, prepare: impl Fn(&Store), check: impl Fn(&Store, u32)) {
    for place in 1..MAX_PLACES {
        let (dir, store) = store();
        prepare(&store);
        drop(store);
        let was_killed = killed(dir.path(), operation, place);
        check(&Store::open(config(dir.path())).unwrap(), place);
        if !was_killed {
            assert!(place > 2, "{operation} passes no place");
            return;
        }
    }
    panic!("{operation} does not end");
}

/// There is nothing under any name that is not whole, and nothing that stays for ever.
fn is_sound(store: &Store) {
    for info in store.list().unwrap() {
        assert!(store.verify(&info.digest.into()).unwrap().is_sound());
    }
    store.collect(false, WallMillis(NOW.0 + 30 * DAY)).unwrap();
    let images = store.list().unwrap().len();
    assert_eq!(files(store, "images").len(), images);
    assert_eq!(files(store, "clones").len(), store.clones().unwrap().len());
    for folder in ["staging", "uploads", "quarantine"] {
        assert_eq!(files(store, folder), [""; 0], "in {folder}");
    }
}

#[test]
fn killed_while_it_puts_an_image_the_image_is_there_whole_or_not_and_the_upload_goes_on() {
    for operation in ["put", "put packed"] {
        at_each_place(
            operation,
            |_| (),
            |store, place| {
                let there = store.find(&image("a@1")).is_ok();
                if there {
                    assert_eq!(content(store, "a@1"), disk(2000, 1), "{operation}, place {place}");
                }
                // What was written before the kill is not sent again.
                let sent = bytes(operation);
                let begun = store.begin(&announce(&sent, Some("a@1")), NOW).unwrap();
                match begun {
                    Begun::Present(_) => assert!(there, "{operation}, place {place}"),
                    Begun::At(at) => {
                        let have = store.uploads().unwrap()[0].have;
                        assert_eq!(at, have, "{operation}, place {place}");
                    }
                }
                put(store, &sent, Some("a@1")).unwrap();
                assert_eq!(content(store, "a@1"), disk(2000, 1));
                is_sound(store);
            },
        );
    }
}

#[test]
fn killed_while_it_collects_nothing_that_is_needed_is_gone() {
    let prepare = |store: &Store| {
        put(store, &disk(9, 1), Some("a@1")).unwrap();
        put(store, &disk(9, 2), None).unwrap();
        put(store, &disk(9, 3), None).unwrap();
    };
    at_each_place("collect", prepare, |store, _| {
        assert_eq!(content(store, "a"), disk(9, 1));
        for info in store.list().unwrap() {
            assert!(
                store.verify(&info.digest.into()).unwrap().is_sound(),
                "an image without its file"
            );
        }
        is_sound(store);
        assert_eq!(store.list().unwrap().len(), 1);
    });
}

#[test]
fn killed_while_it_clones_there_is_a_whole_clone_or_none() {
    let prepare = |store: &Store| drop(put(store, &disk(9, 1), Some("a@1")).unwrap());
    at_each_place("clone", prepare, |store, _| {
        if store.clones().unwrap().is_empty() {
            store.clone_image(&image("a"), "disk", NOW).unwrap();
        }
        let clone = store.clones().unwrap().remove(0);
        assert!(crate::overlay::backing_of(&clone.path).unwrap().is_some());
        is_sound(store);
    });
}

#[test]
fn killed_while_it_takes_a_damaged_image_out_of_use_the_image_is_still_known_to_be_damaged() {
    let prepare = |store: &Store| {
        let info = put(store, &disk(9, 1), Some("a@1")).unwrap();
        let path = store.dir().join("images").join(info.digest.to_string());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, disk(9, 2)).unwrap();
    };
    at_each_place("verify", prepare, |store, _| {
        assert!(!store.verify(&image("a")).unwrap().is_sound());
        assert!(matches!(store.get(&image("a")), Err(Error::Quarantined { .. })));
        put(store, &disk(9, 1), None).unwrap();
        is_sound(store);
        assert_eq!(content(store, "a"), disk(9, 1));
    });
}
