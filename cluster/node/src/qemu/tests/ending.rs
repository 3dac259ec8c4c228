//! Guests that end, and what is done to them meanwhile.

use std::fs;
use std::time::Duration;

use tokio::time::timeout;

use super::{Host, host, image};
use crate::conformance::{Bench, LIMIT, Program, next_of, started, state, until};
use crate::qemu::MAX_REQUESTS;
use crate::qemu::memory::Hang;
use crate::{End, Error, Kind, NodeDriver, State};

#[tokio::test]
#[ignore = "needs QEMU"]
async fn nothing_of_a_guest_is_left_when_it_is_destroyed() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    assert_eq!(bench.processes(id).len(), 1);
    let process = bench.processes(id)[0];
    bench.driver().destroy(id).await.unwrap();
    assert!(crate::process::Process::open(process).unwrap().is_none());
    let mut left: Vec<_> = fs::read_dir(&bench.config.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["lock"]);
    // The image is its owner's.
    assert!(image(bench.dir.path(), 1, Program::Counts).exists());
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_is_destroyed_while_it_is_given_time_to_stop() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Deaf).await;
    let mut events = bench.driver().events();
    let driver = bench.driver.as_ref().unwrap();
    let (stopped, ()) = tokio::join!(driver.stop(id, Duration::from_secs(3600)), async {
        until(&bench, id, "asked to stop", |_| {
            bench.driver().status(id).unwrap().busy.is_some()
        })
        .await;
        driver.destroy(id).await.unwrap();
    });
    assert!(matches!(stopped, Err(Error::Destroyed { .. })), "{stopped:?}");
    assert_eq!(next_of(&mut events, id).await, Kind::Destroyed);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_that_is_given_time_to_stop_is_not_suspended_meanwhile() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Deaf).await;
    let driver = bench.driver.as_ref().unwrap();
    let (stopped, suspended) = tokio::join!(driver.stop(id, Duration::from_secs(2)), async {
        while driver.status(id).unwrap().busy.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        driver.suspend(id).await
    });
    let error = suspended.unwrap_err().to_string();
    assert!(
        error.ends_with("which is running: it is being stopped; wait until it has ended"),
        "{error}"
    );
    assert_eq!(stopped.unwrap(), End::Forced);
    assert_eq!(state(&bench, id), State::Stopped(End::Forced));
    assert!(!bench.folder(id).suspended().exists());
    bench.driver().start(id).await.unwrap();
    bench.reopen().await;
    assert_eq!(state(&bench, id), State::Running);
    bench.driver().destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_with_a_memory_in_a_file_is_suspended_however_it_ends() {
    let mut bench = host().await;
    for (number, killed) in [(1, false), (2, true)] {
        let id = started(&mut bench, number, Program::Counts).await;
        bench.driver().pause(id).await.unwrap();
        // As when its memory was written, and its process did not end in time.
        fs::create_dir(bench.folder(id).suspended()).unwrap();
        let mut events = bench.driver().events();
        if killed {
            bench.kill(id);
        } else {
            let error = bench.driver().stop(id, Duration::ZERO).await.unwrap_err();
            assert!(error.to_string().contains("which is suspended: "), "{error}");
        }
        assert_eq!(next_of(&mut events, id).await, Kind::Suspended);
        assert_eq!(state(&bench, id), State::Suspended);
        assert_eq!(bench.driver().status(id).unwrap().busy, None);
        assert!(bench.processes(id).is_empty());
        let error = bench.driver().start(id).await.unwrap_err();
        assert!(error.to_string().contains("which is suspended: "), "{error}");
        // Its disk is still its own.
        let mut other = bench.guest(number + 10, Program::Counts);
        other.disks[0].path = image(bench.dir.path(), number, Program::Counts);
        bench.driver().define(other.clone()).await.unwrap();
        let error = bench.driver().start(other.id).await.unwrap_err();
        assert!(matches!(error, Error::ImageInUse { .. }), "{error}");
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_destroy_that_nobody_waits_for_any_more_interrupts_nothing() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let driver = bench.driver.as_ref().unwrap();
    let mut waiting: Vec<_> = (0..MAX_REQUESTS).map(|_| driver.memory(id)).collect();
    std::future::poll_fn(|context| {
        // The guest's task does not run meanwhile: there is no room for one more.
        for ask in &mut waiting {
            assert!(ask.as_mut().poll(context).is_pending());
        }
        assert!(driver.destroy(id).as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    for ask in waiting {
        ask.await.unwrap();
    }
    driver.suspend(id).await.unwrap();
    driver.restore(id).await.unwrap();
    assert_eq!(state(&bench, id), State::Running);

    // One that the task was asked for is done.
    let mut destroy = driver.destroy(id);
    std::future::poll_fn(|context| {
        assert!(destroy.as_mut().poll(context).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    drop(destroy);
    while driver.status(id).is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(bench.processes(id).is_empty());
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_destroy_that_fails_interrupts_nothing_afterwards() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    bench.driver().suspend(id).await.unwrap();
    // Its folder is not removed for one that is in the way and is none.
    let in_the_way = bench.config.dir.join(format!(".passing-{id}"));
    fs::write(&in_the_way, "").unwrap();
    bench.driver().destroy(id).await.unwrap_err();
    fs::remove_file(&in_the_way).unwrap();
    bench.driver().restore(id).await.unwrap();
    // One that ran does not any more, and is said not to.
    fs::write(&in_the_way, "").unwrap();
    bench.driver().destroy(id).await.unwrap_err();
    assert!(bench.processes(id).is_empty());
    let State::Crashed { why } = state(&bench, id) else {
        panic!("{:?}", state(&bench, id));
    };
    assert!(
        why.contains("it was ended to be destroyed, and is still known: cannot remove"),
        "{why}"
    );
    fs::remove_file(&in_the_way).unwrap();
    bench.driver().start(id).await.unwrap();
    bench.driver().destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_destroy_that_fails_ends_the_time_to_stop_and_lets_the_images_go() {
    const GRACE: Duration = Duration::from_secs(2);
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Deaf).await;
    let in_the_way = bench.config.dir.join(format!(".passing-{id}"));
    fs::write(&in_the_way, "").unwrap();
    let driver = bench.driver.as_ref().unwrap();
    let (stopped, ()) = tokio::join!(driver.stop(id, GRACE), async {
        while driver.status(id).unwrap().busy.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        driver.destroy(id).await.unwrap_err();
        fs::remove_file(&in_the_way).unwrap();
        // Its image is free for another one.
        let mut other = bench.guest(2, Program::Deaf);
        other.disks[0].path = image(bench.dir.path(), 1, Program::Deaf);
        driver.define(other.clone()).await.unwrap();
        driver.start(other.id).await.unwrap();
        driver.destroy(other.id).await.unwrap();
        driver.start(id).await.unwrap();
    });
    assert!(matches!(stopped, Err(Error::Ended { .. })), "{stopped:?}");
    assert_eq!(driver.status(id).unwrap().busy, None);
    tokio::time::sleep(GRACE).await;
    assert_eq!(state(&bench, id), State::Running);
    driver.destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_is_destroyed_while_the_disk_hangs_that_its_memory_is_written_to() {
    for hang in [Hang::Write, Hang::Sync] {
        let mut bench = Host::with(|config| config.disk_hangs = Some(hang)).await;
        let id = started(&mut bench, 1, Program::Counts).await;
        let other = started(&mut bench, 2, Program::Counts).await;
        let driver = bench.driver.as_ref().unwrap();
        let both = async {
            tokio::join!(driver.suspend(id), async {
                while !bench.folder(id).suspending().join("memory").exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                driver.pause(other).await.unwrap();
                driver.destroy(id).await
            })
        };
        let (suspended, destroyed) = timeout(LIMIT, both).await.expect("it is not waited for the disk");
        assert!(
            matches!(suspended, Err(Error::Destroyed { .. })),
            "{hang:?} {suspended:?}"
        );
        destroyed.unwrap();
        assert!(bench.processes(id).is_empty());
        assert!(!bench.folder(id).path().exists());
    }
}
