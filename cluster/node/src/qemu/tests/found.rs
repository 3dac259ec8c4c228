//! What a driver finds that begins.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Host, host, image};
use crate::conformance::{Bench, LIMIT, Program, counts_beyond, next_of, started, state, until};
use crate::{End, Error, Kind, State, files};

#[tokio::test]
#[ignore = "needs QEMU"]
async fn what_ends_while_no_driver_is_there_is_told_apart() {
    let mut bench = host().await;
    let off = started(&mut bench, 1, Program::Counts).await;
    let dead = started(&mut bench, 2, Program::Counts).await;
    for id in [off, dead] {
        counts_beyond(bench.driver(), id, 1).await;
    }
    bench.close().await;
    // Its power button is pressed by somebody else.
    let folder = bench.folder(off);
    let mut client = crate::qmp::Client::connect(&folder.socket(), LIMIT, LIMIT)
        .await
        .unwrap();
    client.run("system_powerdown", None).await.unwrap();
    while !matches!(client.event().await.unwrap(), crate::qmp::Event::Shutdown { .. }) {}
    drop(client);
    bench.signal(dead, Signal::SIGKILL);
    tokio::task::yield_now().await;
    bench.open().await;
    assert_eq!(state(&bench, off), State::Stopped(End::Itself));
    assert!(bench.processes(off).is_empty());
    let State::Crashed { why } = state(&bench, dead) else {
        panic!("{:?}", state(&bench, dead));
    };
    assert!(why.starts_with("it ended while no driver was there"), "{why}");
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_that_hangs_when_its_driver_comes_back_keeps_no_other_waiting() {
    let mut bench = Host::with(|config| config.answer = Duration::from_millis(500)).await;
    let hangs = started(&mut bench, 1, Program::Counts).await;
    let runs = started(&mut bench, 2, Program::Counts).await;
    let count = counts_beyond(bench.driver(), hangs, 1).await;
    bench.close().await;
    bench.hang(hangs);
    bench.open().await;
    assert!(matches!(state(&bench, hangs), State::Unresponsive { .. }));
    assert_eq!(state(&bench, runs), State::Running);
    bench.recover(hangs);
    until(&bench, hangs, "running", |state| *state == State::Running).await;
    counts_beyond(bench.driver(), hangs, count).await;
    // It is put down by force.
    bench.hang(hangs);
    bench.driver().destroy(hangs).await.unwrap();
    assert!(bench.processes(hangs).is_empty());
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_process_that_has_the_number_of_a_guest_that_is_gone_is_left_alone() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    bench.close().await;
    bench.signal(id, Signal::SIGKILL);
    let mut stranger = tokio::process::Command::new("sleep")
        .arg("600")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let number = stranger.id().unwrap();
    fs::write(bench.folder(id).pid(), format!("{number}\n")).unwrap();
    let run = bench.folder(id).path().join("run.json");
    let mut noted: Value = serde_json::from_slice(&fs::read(&run).unwrap()).unwrap();
    noted["process"]["pid"] = number.into();
    fs::write(&run, noted.to_string()).unwrap();
    bench.open().await;
    assert!(matches!(state(&bench, id), State::Crashed { .. }));
    bench.driver().start(id).await.unwrap();
    assert_eq!(bench.processes(id).len(), 1);
    bench.driver().destroy(id).await.unwrap();
    assert!(stranger.try_wait().unwrap().is_none());
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_is_found_without_the_notes_of_its_process() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id, 1).await;
    bench.close().await;
    fs::remove_file(bench.folder(id).pid()).unwrap();
    let run = bench.folder(id).path().join("run.json");
    let mut noted: Value = serde_json::from_slice(&fs::read(&run).unwrap()).unwrap();
    noted["process"] = Value::Null;
    fs::write(&run, noted.to_string()).unwrap();
    bench.open().await;
    assert_eq!(state(&bench, id), State::Running);
    counts_beyond(bench.driver(), id, count).await;
    bench.driver().destroy(id).await.unwrap();
    assert!(bench.processes(id).is_empty());
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_program_that_reads_the_folder_is_not_taken_for_the_guest() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    bench.close().await;
    // As a backup does, and with the number that is noted.
    let mut reader = tokio::process::Command::new("sleep")
        .arg("600")
        .stdin(fs::File::open(bench.folder(id).alive()).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    fs::write(bench.folder(id).pid(), reader.id().unwrap().to_string()).unwrap();
    let run = bench.folder(id).path().join("run.json");
    let mut noted: Value = serde_json::from_slice(&fs::read(&run).unwrap()).unwrap();
    noted["process"] = Value::Null;
    fs::write(&run, noted.to_string()).unwrap();
    // QEMU cannot be asked who it is.
    bench.hang(id);
    bench.config.answer = Duration::from_millis(500);
    bench.open().await;
    assert!(matches!(state(&bench, id), State::Unresponsive { .. }));
    bench.driver().destroy(id).await.unwrap();
    assert!(bench.processes(id).is_empty());
    assert!(reader.try_wait().unwrap().is_none(), "it only reads");
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_that_could_not_be_told_apart_and_has_ended_is_told_and_lets_its_images_go() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    bench.close().await;
    bench.kill(id);
    let alive = bench.folder(id).alive();
    // This program holds the guest, and is not looked at.
    let held = loop {
        if let Some(held) = files::lock(&alive).unwrap() {
            break held;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    bench.open().await;
    let State::Unresponsive { why } = state(&bench, id) else {
        panic!("{:?}", state(&bench, id));
    };
    assert!(why.contains("it is seen that it holds the lock"), "{why}");
    let mut events = bench.driver().events();
    let mut other = bench.guest(2, Program::Counts);
    other.disks[0].path = image(bench.dir.path(), 1, Program::Counts);
    bench.driver().define(other.clone()).await.unwrap();
    let error = bench.driver().start(other.id).await.unwrap_err();
    assert!(matches!(error, Error::ImageInUse { .. }), "{error}");
    drop(held);
    let Kind::Crashed(why) = next_of(&mut events, id).await else {
        panic!("it has not crashed");
    };
    assert_eq!(state(&bench, id), State::Crashed { why });
    bench.driver().start(other.id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_damaged_guest_keeps_its_process_and_its_images_until_it_is_destroyed_or_mended() {
    let mut bench = host().await;
    let unread = started(&mut bench, 1, Program::Counts).await;
    let later = started(&mut bench, 2, Program::Counts).await;
    let count = counts_beyond(bench.driver(), later, 0).await;
    bench.close().await;
    // One by another release, one with a line that is none.
    let file = bench.folder(unread).path().join("definition.json");
    let mut definition: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    definition["colour"] = "red".into();
    fs::write(&file, definition.to_string()).unwrap();
    let run = bench.folder(later).path().join("run.json");
    let noted = fs::read(&run).unwrap();
    fs::write(&run, "{\"version\": 2}").unwrap();
    bench.open().await;
    for (id, expected) in [
        (unread, "definition.json is damaged: unknown field `colour`"),
        (later, "run.json is damaged: it is of version 2"),
    ] {
        let found = state(&bench, id);
        assert!(
            matches!(&found, State::Damaged { why, live: true } if why.contains(expected)),
            "{found:?}"
        );
        assert_eq!(bench.processes(id).len(), 1);
        let mut other = bench.guest(10 + id.0.as_u128(), Program::Counts);
        other.disks[0].path = image(bench.dir.path(), id.0.as_u128(), Program::Counts);
        bench.driver().define(other.clone()).await.unwrap();
        let error = bench.driver().start(other.id).await.unwrap_err();
        assert!(matches!(error, Error::ImageInUse { .. }), "{error}");
        bench.driver().destroy(other.id).await.unwrap();
    }
    bench.driver().destroy(unread).await.unwrap();
    assert!(bench.processes(unread).is_empty() && !bench.folder(unread).path().exists());
    // The other one is mended, and was nothing but left alone.
    bench.close().await;
    fs::write(&run, noted).unwrap();
    bench.open().await;
    assert_eq!(state(&bench, later), State::Running);
    counts_beyond(bench.driver(), later, count).await;
    // One whose process ends is seen to.
    bench.damage(later).await;
    bench.kill(later);
    until(&bench, later, "gone", |state| {
        matches!(state, State::Damaged { live: false, .. })
    })
    .await;
    bench.driver().destroy(later).await.unwrap();
}
