//! What goes wrong around a guest.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Host, image};
use crate::conformance::{Bench, LIMIT, Program, counted, counts_beyond, id, next_of, started, state, until};
use crate::qemu::{Acceleration, MAX_REQUESTS, QemuDriver};
use crate::{Disk, End, Error, Kind, Link, Mac, Mib, Nic, NodeDriver, State};

async fn host() -> Host {
    Host::with(|_| {}).await
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_disk_that_is_full_stops_no_guest_and_keeps_nothing() {
    let mut bench = Host::with(|config| config.disk_full_after = Some(100_000)).await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let before = counts_beyond(bench.driver(), id, 1).await;
    for paused in [false, true] {
        if paused {
            bench.driver().pause(id).await.unwrap();
        }
        let error = bench.driver().suspend(id).await.unwrap_err().to_string();
        assert!(
            error.contains("goes on as before") && error.contains("No space left on device"),
            "{error}"
        );
        assert!(error.ends_with("make room on the disk"), "{error}");
        assert!(!bench.folder(id).suspending().exists());
        assert!(!bench.folder(id).suspended().exists());
        let expected = if paused { State::Paused } else { State::Running };
        assert_eq!(state(&bench, id), expected);
    }
    bench.driver().resume(id).await.unwrap();
    let now = counted(bench.driver(), id).await;
    counts_beyond(bench.driver(), id, now.max(before)).await;
    // With room it is done, by the same QEMU.
    bench.close().await;
    bench.config.disk_full_after = None;
    bench.open().await;
    let now = counts_beyond(bench.driver(), id, now).await;
    bench.driver().suspend(id).await.unwrap();
    bench.driver().restore(id).await.unwrap();
    counts_beyond(bench.driver(), id, now).await;
    bench.driver().destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_memory_that_could_not_be_made_durable_goes_before_the_guest_runs() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id, 1).await;
    bench.driver().pause(id).await.unwrap();
    // As it is left when the folder has its name and the disk then fails.
    fs::create_dir(bench.folder(id).suspended()).unwrap();
    bench.driver().resume(id).await.unwrap();
    assert!(!bench.folder(id).suspended().exists());
    bench.reopen().await;
    assert_eq!(state(&bench, id), State::Running);
    counts_beyond(bench.driver(), id, count).await;
    bench.driver().destroy(id).await.unwrap();
}

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
async fn a_memory_that_does_not_fit_its_disk_is_never_run() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id, 1).await;
    bench.driver().suspend(id).await.unwrap();
    let disk = image(bench.dir.path(), 1, Program::Counts);
    let (bytes, then) = (fs::read(&disk).unwrap(), fs::metadata(&disk).unwrap());
    fs::write(&disk, &bytes).unwrap();
    let error = bench.driver().restore(id).await.unwrap_err().to_string();
    assert!(
        error.contains("disk-1.img was changed since it was suspended"),
        "{error}"
    );
    assert_eq!(state(&bench, id), State::Suspended);
    // As it was again.
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.set_modified(then.modified().unwrap()).unwrap();

    // A memory that was cut is none.
    let memory = super::Folder::memory(&bench.folder(id).suspended());
    let whole = fs::read(&memory).unwrap();
    fs::write(&memory, &whole[..whole.len() - 1]).unwrap();
    let error = bench.driver().restore(id).await.unwrap_err().to_string();
    assert!(error.contains("bytes and should have"), "{error}");
    // One that is damaged is QEMU's to find.
    let mut damaged = whole.clone();
    damaged[..64].fill(0xff);
    fs::write(&memory, &damaged).unwrap();
    let error = bench.driver().restore(id).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("guest {id} is not restored and still suspended")),
        "{error}"
    );
    assert_eq!(state(&bench, id), State::Suspended);
    assert!(bench.processes(id).is_empty());
    fs::write(&memory, &whole).unwrap();
    bench.driver().restore(id).await.unwrap();
    counts_beyond(bench.driver(), id, count).await;
    bench.driver().destroy(id).await.unwrap();
}

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
    assert!(matches!(error, Error::ImageLocked { .. }), "{error}");
    assert_eq!(state(&other, fourth.id), State::Defined);
    other.reopen().await;
    assert_eq!(state(&other, fourth.id), State::Defined);
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_that_cannot_be_started_is_as_before_and_says_why() {
    let bench = host().await;
    let mut definition = bench.guest(1, Program::Counts);
    definition.nics.push(Nic {
        mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
        link: Link::Tap("../x".to_owned()),
    });
    assert!(matches!(
        bench.driver().define(definition.clone()).await,
        Err(Error::Definition(_))
    ));
    // A disk that is no qcow2 image.
    definition.nics.clear();
    definition.disks[0].format = crate::Format::Qcow2;
    bench.driver().define(definition.clone()).await.unwrap();
    let error = bench.driver().start(definition.id).await.unwrap_err().to_string();
    assert!(error.contains("it is no qcow2 image"), "{error}");

    let mut large = bench.guest(2, Program::Counts);
    large.memory = Mib(u32::MAX);
    bench.driver().define(large.clone()).await.unwrap();
    let error = bench.driver().start(large.id).await.unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{error}");

    // What QEMU alone knows: there is no such interface, or it may not be had.
    let mut many = bench.guest(3, Program::Counts);
    many.nics.push(Nic {
        mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
        // There is the loopback interface everywhere, and it is no TAP.
        link: Link::Tap("lo".to_owned()),
    });
    bench.driver().define(many.clone()).await.unwrap();
    let error = bench.driver().start(many.id).await.unwrap_err();
    assert!(
        matches!(&error, Error::Start { said, .. } if said.contains("lo")),
        "{error}"
    );
    assert_eq!(state(&bench, many.id), State::Defined);
    assert!(bench.processes(many.id).is_empty());
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn kvm_is_used_where_a_guest_runs_by_it_and_nowhere_else() {
    let mut bench = Host::with(|config| config.acceleration = Acceleration::Probe).await;
    let probed = bench.driver().host();
    assert!(probed.hypervisor.starts_with("QEMU "), "{probed:?}");
    bench.close().await;
    bench.config.acceleration = Acceleration::Kvm;
    match QemuDriver::open(bench.config.clone()).await {
        Ok(_) => assert_eq!(probed.acceleration, "KVM"),
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("KVM does not work here: "), "{error}");
            println!("{error}");
            assert_eq!(probed.acceleration, "none (emulated by TCG)");
        }
    }
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_with_all_kinds_of_hardware_starts_from_its_disk() {
    let bench = host().await;
    let mut definition = bench.guest(1, Program::Counts);
    let disk = |number, device, read_only| Disk {
        path: image(bench.dir.path(), number, Program::SwitchesOff),
        format: crate::Format::Raw,
        device,
        read_only,
    };
    definition.disks.insert(0, disk(11, crate::Device::Floppy, false));
    definition.disks.insert(0, disk(12, crate::Device::Cdrom, true));
    definition.disks.push(disk(13, crate::Device::Disk, true));
    definition.nics.push(Nic {
        mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
        link: Link::None,
    });
    definition.cpus = 2;
    let id = definition.id;
    // A floppy has a floppy's size.
    let floppy = fs::File::options()
        .write(true)
        .open(&definition.disks[1].path)
        .unwrap();
    floppy.set_len(1_474_560).unwrap();
    bench.driver().define(definition).await.unwrap();
    bench.driver().start(id).await.unwrap();
    let count = counts_beyond(bench.driver(), id, 4).await;
    bench.driver().suspend(id).await.unwrap();
    bench.driver().restore(id).await.unwrap();
    counts_beyond(bench.driver(), id, count).await;
    bench.driver().destroy(id).await.unwrap();
}

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
async fn a_guest_is_not_started_beside_a_memory_of_it() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    bench.driver().stop(id, Duration::ZERO).await.unwrap();
    fs::create_dir(bench.folder(id).suspended()).unwrap();
    let error = bench.driver().start(id).await.unwrap_err();
    assert!(error.to_string().contains("which is suspended: "), "{error}");
    assert_eq!(state(&bench, id), State::Suspended);
    assert!(bench.processes(id).is_empty());
}

/// A guest is suspended, another program takes its disk, and lets it go again; `blind` if QEMU writes no log, so that
/// its answer alone says it.
async fn restored_while_another_has_the_disk(paused: bool, blind: bool) {
    let mut bench = Host::with(|config| {
        if blind {
            let program = config.dir.with_file_name("qemu");
            let script = format!(
                "#!/bin/sh\nexec {} \"$@\" 2>/dev/null\n",
                config.program.display()
            );
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
            config.program = program;
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

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_process_that_cannot_be_watched_is_ended() {
    let mut bench = Host::with(|config| config.unwatchable = true).await;
    let definition = bench.guest(1, Program::Counts);
    let id = definition.id;
    bench.driver().define(definition).await.unwrap();
    for _ in 0..2 {
        let error = bench.driver().start(id).await.unwrap_err();
        assert!(matches!(error, Error::File { what: "watch", .. }), "{error}");
        assert!(bench.processes(id).is_empty());
        assert_eq!(state(&bench, id), State::Defined);
    }
    bench.close().await;
    bench.config.unwatchable = false;
    bench.open().await;
    bench.driver().start(id).await.unwrap();
    let count = counts_beyond(bench.driver(), id, 1).await;
    bench.driver().suspend(id).await.unwrap();
    bench.close().await;
    bench.config.unwatchable = true;
    bench.open().await;
    let error = bench.driver().restore(id).await.unwrap_err();
    assert!(error.to_string().contains("cannot watch"), "{error}");
    assert!(bench.processes(id).is_empty());
    bench.close().await;
    bench.config.unwatchable = false;
    bench.open().await;
    bench.driver().restore(id).await.unwrap();
    counts_beyond(bench.driver(), id, count).await;
    bench.driver().destroy(id).await.unwrap();
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
    bench.driver().destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_long_path_is_no_obstacle() {
    let bench = Host::with(|config| config.dir = config.dir.join("x".repeat(200)).join("a, b")).await;
    let id = id(1);
    bench
        .driver()
        .define(bench.guest(1, Program::Counts))
        .await
        .unwrap();
    bench.driver().start(id).await.unwrap();
    counts_beyond(bench.driver(), id, 1).await;
    bench.driver().destroy(id).await.unwrap();
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
