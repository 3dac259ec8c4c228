//! Images that somebody else has, or that are not there.

use super::{Host, by_script, host, image};
use crate::conformance::{Bench, Program, counts_beyond, started, state};
use crate::{Error, State};

#[tokio::test]
#[ignore = "needs QEMU"]
async fn an_image_that_is_missing_or_in_use_is_named() {
    let mut bench = host().await;
    let first = started(&mut bench, 1, Program::Counts).await;
    let mut second = bench.guest(2, Program::Counts);
    second.disks[0].path = image(bench.dir.path(), 1, Program::Counts);
    bench.driver().define(second.clone()).await.unwrap();
    let error = bench.driver().start(second.id).await.unwrap_err().to_string();
    assert!(
        error.contains("disk-1.img") && error.contains(&format!("guest {first} has it")),
        "{error}"
    );
    assert_eq!(state(&bench, second.id), State::Defined);
    // A suspended guest's disk is in use too, also after a restart.
    bench.driver().suspend(first).await.unwrap();
    bench.reopen().await;
    let error = bench.driver().start(second.id).await.unwrap_err();
    assert!(matches!(error, Error::ImageInUse { .. }), "{error}");
    bench.driver().destroy(first).await.unwrap();
    bench.driver().start(second.id).await.unwrap();

    let mut third = bench.guest(3, Program::Counts);
    third.disks[0].path = bench.dir.path().join("nowhere.img");
    bench.driver().define(third.clone()).await.unwrap();
    let error = bench.driver().start(third.id).await.unwrap_err().to_string();
    assert!(error.contains("nowhere.img: No such file"), "{error}");

    // By a program that is not a guest of this driver.
    let mut other = host().await;
    let mut fourth = other.guest(4, Program::Counts);
    fourth.disks[0].path = image(bench.dir.path(), 1, Program::Counts);
    other.driver().define(fourth.clone()).await.unwrap();
    let error = other.driver().start(fourth.id).await.unwrap_err();
    assert!(
        matches!(&error, Error::ImageLocked { said, .. } if said.contains("/disk-1.img")),
        "{error}"
    );
    assert_eq!(state(&other, fourth.id), State::Defined);
    other.reopen().await;
    assert_eq!(state(&other, fourth.id), State::Defined);
}

/// A guest is suspended, another program takes its disk, and lets it go again; `blind` if QEMU writes no log, so that
/// its answer alone says it.
async fn restored_while_another_has_the_disk(paused: bool, blind: bool) {
    let mut bench = Host::with(|config| {
        if blind {
            by_script(config, "", "2>/dev/null");
        }
    })
    .await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id, 1).await;
    if paused {
        bench.driver().pause(id).await.unwrap();
    }
    bench.driver().suspend(id).await.unwrap();
    let other = host().await;
    let mut has_it = other.guest(2, Program::Deaf);
    has_it.disks[0].path = image(bench.dir.path(), 1, Program::Counts);
    other.driver().define(has_it.clone()).await.unwrap();
    other.driver().start(has_it.id).await.unwrap();
    for _ in 0..2 {
        let error = bench.driver().restore(id).await.unwrap_err();
        assert!(matches!(error, Error::ImageLocked { .. }), "{error}");
        assert_eq!(state(&bench, id), State::Suspended);
        assert!(bench.folder(id).suspended().exists());
        assert!(bench.processes(id).is_empty());
    }
    bench.reopen().await;
    assert_eq!(state(&bench, id), State::Suspended);
    other.driver().destroy(has_it.id).await.unwrap();
    bench.driver().restore(id).await.unwrap();
    if paused {
        assert_eq!(state(&bench, id), State::Paused);
        bench.driver().resume(id).await.unwrap();
    }
    counts_beyond(bench.driver(), id, count).await;
    let text = bench.driver().console(id, 0).await.unwrap().text();
    assert_eq!(text.matches("count 00000001").count(), 1, "{text}");
    bench.driver().destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_memory_is_kept_while_another_program_has_the_disk() {
    for paused in [false, true] {
        restored_while_another_has_the_disk(paused, false).await;
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_memory_is_given_back_from_which_nothing_was_run() {
    restored_while_another_has_the_disk(false, true).await;
}
