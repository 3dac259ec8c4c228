//! A driver that is killed between any two of its steps, and the next one.
//!
//! The driver to be killed is this test's program once more, that runs the one test which is no test
//! ([`the_driver_that_is_killed`]) with the place and the operation in its environment.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::guard::die_with_parent;
use super::{Host, config, definition};
use crate::conformance::{Bench, LIMIT, Program, counted, counts_beyond, id, state};
use crate::qemu::QemuDriver;
use crate::{NodeDriver, State, crash};

/// Whose guests the driver to be killed has.
const DIR: &str = "AERIE_NODE_DIR";
/// What it does.
const OPERATION: &str = "AERIE_NODE_OPERATION";
/// Where it is killed ([`crate::crash::point`]).
const PLACE: &str = "AERIE_NODE_CRASH";
/// The operation of one that is to be killed while it is opened.
const OPEN: &str = "open";
/// What one says that has been.
const OPENED: &str = "the driver is open";

#[tokio::test]
#[ignore = "is run by other tests"]
async fn the_driver_that_is_killed() {
    let (Ok(dir), Ok(operation)) = (std::env::var(DIR), std::env::var(OPERATION)) else {
        return;
    };
    die_with_parent();
    let dir = Path::new(&dir);
    if operation == OPEN {
        crash::arm();
    }
    let driver = QemuDriver::open(config(dir)).await.unwrap();
    println!("{OPENED}");
    crash::arm();
    let id = id(1);
    let done = match operation.as_str() {
        "define" => driver.define(definition(dir, 1, Program::Counts)).await,
        "start" => driver.start(id).await,
        "suspend" => driver.suspend(id).await,
        "restore" => driver.restore(id).await,
        "stop" => driver.stop(id, Duration::ZERO).await.map(drop),
        "destroy" => driver.destroy(id).await,
        other => panic!("what is '{other}'?"),
    };
    panic!("it was not killed: {done:?}");
}

/// Has a driver killed there while it does this.
async fn killed(bench: &mut Host, operation: &str, place: &str) {
    bench.close().await;
    let output = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "qemu::tests::crashes::the_driver_that_is_killed"])
        .args(["--ignored", "--nocapture"])
        .env(DIR, bench.dir.path())
        .env(OPERATION, operation)
        .env(PLACE, place)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    assert_eq!(
        output.status.signal(),
        Some(Signal::SIGKILL as i32),
        "{operation} was not killed at '{place}': {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let opened = String::from_utf8_lossy(&output.stdout).contains(OPENED);
    assert_eq!(opened, operation != OPEN, "'{place}' is not where it was killed");
    bench.open().await;
}

/// The guest is there once, runs, and has not begun anew since it counted to this.
async fn runs_on(bench: &Host, count: u64) {
    assert_eq!(state(bench, id(1)), State::Running);
    assert_eq!(bench.processes(id(1)).len(), 1);
    counts_beyond(bench.driver(), id(1), count).await;
    let text = bench.driver().console(id(1), 0).await.unwrap().text();
    assert_eq!(text.matches("count 00000001").count(), 1, "{text}");
    nothing_is_left_over(bench).await;
}

async fn is_off(bench: &Host) {
    assert!(bench.processes(id(1)).is_empty());
    nothing_is_left_over(bench).await;
}

async fn nothing_is_left_over(bench: &Host) {
    let folder = bench.folder(id(1));
    assert!(!folder.suspending().exists());
    let until = Instant::now() + LIMIT;
    while folder.path().join("used").exists() {
        // It is removed while nobody waits.
        assert!(Instant::now() < until, "what is used up is not removed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let suspended = state(bench, id(1)) == State::Suspended;
    assert_eq!(folder.suspended().exists(), suspended);
}

async fn running() -> (Host, u64) {
    let mut bench = Host::with(|_| {}).await;
    crate::conformance::started(&mut bench, 1, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id(1), 1).await;
    (bench, count)
}

async fn defined() -> Host {
    let bench = Host::with(|_| {}).await;
    bench
        .driver()
        .define(bench.guest(1, Program::Counts))
        .await
        .unwrap();
    bench
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn killed_while_it_defines_it_knows_no_half_guest() {
    for place in ["file written", "define: written"] {
        let mut bench = Host::with(|_| {}).await;
        killed(&mut bench, "define", place).await;
        assert_eq!(bench.driver().list(), [], "{place}");
        bench
            .driver()
            .define(bench.guest(1, Program::Counts))
            .await
            .unwrap();
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn killed_while_it_finds_a_guest_the_next_one_finds_it_too() {
    let (mut bench, count) = running().await;
    killed(&mut bench, OPEN, "file written").await;
    runs_on(&bench, count).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn killed_while_it_starts_a_guest_it_has_one_or_none() {
    for place in ["file written", "launch: noted"] {
        let mut bench = defined().await;
        killed(&mut bench, "start", place).await;
        is_off(&bench).await;
        bench.driver().start(id(1)).await.unwrap();
        runs_on(&bench, 0).await;
    }
    for place in ["launch: spawned", "start: up", "start: runs"] {
        let mut bench = defined().await;
        killed(&mut bench, "start", place).await;
        runs_on(&bench, 0).await;
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn killed_while_it_suspends_a_guest_the_guest_runs_on_or_is_suspended() {
    for place in [
        "file written",
        "suspend: noted",
        "suspend: stopped",
        "suspend: begun",
        "suspend: all read",
        "suspend: written",
    ] {
        let (mut bench, count) = running().await;
        killed(&mut bench, "suspend", place).await;
        runs_on(&bench, count).await;
        // It can still be suspended.
        bench.driver().suspend(id(1)).await.unwrap();
        is_off(&bench).await;
        let count = counted(bench.driver(), id(1)).await;
        bench.driver().restore(id(1)).await.unwrap();
        runs_on(&bench, count).await;
    }
    let (mut bench, _) = running().await;
    killed(&mut bench, "suspend", "suspend: committed").await;
    assert_eq!(state(&bench, id(1)), State::Suspended);
    is_off(&bench).await;
    let count = counted(bench.driver(), id(1)).await;
    bench.driver().restore(id(1)).await.unwrap();
    runs_on(&bench, count).await;
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn killed_while_it_suspends_a_paused_guest_the_guest_stays_paused() {
    for place in ["suspend: begun", "suspend: all read", "suspend: written"] {
        let (mut bench, _) = running().await;
        bench.driver().pause(id(1)).await.unwrap();
        let count = counted(bench.driver(), id(1)).await;
        killed(&mut bench, "suspend", place).await;
        assert_eq!(state(&bench, id(1)), State::Paused, "{place}");
        nothing_is_left_over(&bench).await;
        assert_eq!(counted(bench.driver(), id(1)).await, count);
        // QEMU has let go of the disks at one of the places, and is to do so again.
        bench.driver().suspend(id(1)).await.unwrap();
        is_off(&bench).await;
        bench.driver().restore(id(1)).await.unwrap();
        assert_eq!(state(&bench, id(1)), State::Paused, "{place}");
        bench.driver().resume(id(1)).await.unwrap();
        runs_on(&bench, count).await;
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn killed_while_it_restores_a_guest_the_memory_is_whole_or_used_up() {
    for place in [
        "file written",
        "launch: noted",
        "launch: spawned",
        "restore: begun",
        "restore: read",
    ] {
        let (mut bench, count) = running().await;
        bench.driver().suspend(id(1)).await.unwrap();
        killed(&mut bench, "restore", place).await;
        assert_eq!(state(&bench, id(1)), State::Suspended, "{place}");
        is_off(&bench).await;
        bench.driver().restore(id(1)).await.unwrap();
        runs_on(&bench, count).await;
    }
    for place in ["restore: used up", "restore: runs"] {
        let (mut bench, count) = running().await;
        bench.driver().suspend(id(1)).await.unwrap();
        killed(&mut bench, "restore", place).await;
        runs_on(&bench, count).await;
        assert!(bench.driver().restore(id(1)).await.is_err());
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn killed_while_it_ends_a_guest_the_guest_ends() {
    let (mut bench, _) = running().await;
    killed(&mut bench, "stop", "stop: noted").await;
    assert_eq!(state(&bench, id(1)), State::Stopped(crate::End::Forced));
    is_off(&bench).await;

    bench.driver().start(id(1)).await.unwrap();
    killed(&mut bench, "destroy", "destroy: ended").await;
    is_off(&bench).await;
    killed(&mut bench, "destroy", "destroy: renamed").await;
    assert_eq!(bench.driver().list(), []);
    let names: Vec<_> = std::fs::read_dir(&bench.config.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["lock"]);
}
