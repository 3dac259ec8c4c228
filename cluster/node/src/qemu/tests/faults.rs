//! What goes wrong around a guest.

use std::fs;
use std::time::Duration;

use tokio::time::timeout;

use super::{Host, by_script, host, image};
use crate::conformance::{Bench, Program, counted, counts_beyond, id, started, state};
use crate::qemu::folder::Folder;
use crate::qemu::memory::Hang;
use crate::qemu::{Acceleration, QemuDriver};
use crate::{Disk, Error, Link, Mac, Mib, Nic, NodeDriver as _, State};

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
    let memory = Folder::memory(&bench.folder(id).suspended());
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
async fn a_qemu_without_a_sandbox_runs_guests_without_one() {
    let refuse = "case \"$*\" in *-sandbox*) echo '-sandbox support is not enabled in this QEMU binary' >&2; exit 1;; esac";
    let mut bench = Host::with(|config| by_script(config, refuse, "")).await;
    let id = started(&mut bench, 1, Program::Counts).await;
    counts_beyond(bench.driver(), id, 0).await;
    let with = host().await;
    let line = |bench: &Host, id| {
        let process = bench.processes(id)[0];
        fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap()
    };
    assert!(!line(&bench, id).contains("-sandbox"));
    let other = with.guest(2, Program::Counts);
    let id = other.id;
    with.driver().define(other).await.unwrap();
    with.driver().start(id).await.unwrap();
    assert!(line(&with, id).contains("spawn=deny"));
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_does_not_stand_still_until_what_is_left_of_its_memory_is_removed() {
    const SOON: Duration = Duration::from_secs(10);
    let mut bench = Host::with(|config| {
        config.disk_full_after = Some(100_000);
        config.disk_hangs = Some(Hang::Clean);
    })
    .await;
    let id = started(&mut bench, 1, Program::Counts).await;
    counts_beyond(bench.driver(), id, 0).await;
    let driver = bench.driver.as_ref().unwrap();
    let goes_on = async {
        while !bench.folder(id).suspending().join("memory").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // It stands still for its memory.
        let count = counted(driver, id).await;
        counts_beyond(driver, id, count).await
    };
    let (suspended, count) = tokio::join!(driver.suspend(id), async {
        let count = timeout(SOON, goes_on).await.expect("it goes on");
        assert!(bench.folder(id).suspending().exists());
        // Which the removal is given up for.
        driver.destroy(id).await.unwrap();
        count
    });
    assert!(count > 0 && suspended.is_err(), "{suspended:?}");

    // So it is when the next driver finds it.
    let id = started(&mut bench, 2, Program::Counts).await;
    counts_beyond(bench.driver(), id, 0).await;
    bench.driver().pause(id).await.unwrap();
    bench.close().await;
    fs::create_dir(bench.folder(id).suspending()).unwrap();
    let noted = bench.folder(id).path().join("run.json");
    let mut run: serde_json::Value = serde_json::from_slice(&fs::read(&noted).unwrap()).unwrap();
    run["phase"] = serde_json::json!({ "suspending": { "ran": true } });
    fs::write(&noted, run.to_string()).unwrap();
    let console = bench.folder(id).console();
    let written = || fs::metadata(&console).unwrap().len();
    let before = written();
    let goes_on = async {
        while written() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        opened = QemuDriver::open(bench.config.clone()) => panic!("what is left was removed: {:?}", opened.err()),
        gone_on = timeout(SOON, goes_on) => gone_on.expect("it goes on"),
    }
}
