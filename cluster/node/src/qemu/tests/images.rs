//! Images that somebody else has, or that are not there.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Host, by_script, host, image};
use crate::conformance::{Bench, Program, counts_beyond, started, state};
use crate::qemu::images::LOOK;
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

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_has_the_image_that_was_looked_at_and_not_what_has_its_name_then() {
    // Another file takes the image's name just before QEMU begins.
    let mut bench = Host::with(|config| {
        let disk = config.dir.with_file_name("disk-1.img");
        let swap = format!(
            "case \"$*\" in *-incoming*) mv {0} {0}.looked-at; mv {0}.other {0};; esac",
            disk.display()
        );
        by_script(config, &swap, "");
    })
    .await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id, 0).await;
    bench.driver().suspend(id).await.unwrap();
    let disk = image(bench.dir.path(), 1, Program::Counts);
    fs::write(disk.with_extension("img.other"), vec![0; 1 << 20]).unwrap();
    bench.driver().restore(id).await.unwrap();
    counts_beyond(bench.driver(), id, count).await;
    let process = bench.processes(id)[0];
    let open: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    assert!(
        open.contains(&disk.with_extension("img.looked-at")) && !open.contains(&disk),
        "{open:?}"
    );
    bench.driver().destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_guest_whose_image_was_replaced_is_not_suspended_with_the_other_one() {
    let mut bench = host().await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id, 0).await;
    let disk = image(bench.dir.path(), 1, Program::Counts);
    let (other, had) = (disk.with_extension("other"), disk.with_extension("had"));
    fs::copy(&disk, &other).unwrap();
    fs::rename(&disk, &had).unwrap();
    fs::rename(&other, &disk).unwrap();
    for _ in 0..2 {
        let error = bench.driver().suspend(id).await.unwrap_err().to_string();
        assert!(error.contains("disk-1.img: it was replaced"), "{error}");
        assert_eq!(state(&bench, id), State::Running);
        assert!(!bench.folder(id).suspended().exists());
        // The next driver knows it too.
        bench.reopen().await;
    }
    let count = counts_beyond(bench.driver(), id, count).await;
    fs::rename(&had, &disk).unwrap();
    bench.driver().suspend(id).await.unwrap();
    bench.driver().restore(id).await.unwrap();
    counts_beyond(bench.driver(), id, count).await;
    bench.driver().destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_disk_that_is_written_while_the_memory_is_read_is_not_run_on() {
    // Somebody writes it just before QEMU begins, when it has been looked at.
    let mut bench = Host::with(|config| {
        let disk = config.dir.with_file_name("disk-1.img").display().to_string();
        let write = format!("case \"$*\" in *-incoming*) [ ! -e {disk}.write ] || touch {disk};; esac");
        by_script(config, &write, "");
    })
    .await;
    let id = started(&mut bench, 1, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id, 0).await;
    bench.driver().suspend(id).await.unwrap();
    let disk = image(bench.dir.path(), 1, Program::Counts);
    let then = fs::metadata(&disk).unwrap().modified().unwrap();
    let write = disk.with_extension("img.write");
    fs::write(&write, "").unwrap();
    let error = bench.driver().restore(id).await.unwrap_err().to_string();
    assert!(error.contains("disk-1.img was changed"), "{error}");
    assert_eq!(state(&bench, id), State::Suspended);
    assert!(bench.processes(id).is_empty());
    fs::remove_file(&write).unwrap();
    let file = File::options().write(true).open(&disk).unwrap();
    file.set_modified(then).unwrap();
    bench.driver().restore(id).await.unwrap();
    counts_beyond(bench.driver(), id, count).await;
    bench.driver().destroy(id).await.unwrap();
}

/// An image of the first cluster's content, in the form qcow2 (QEMU's docs/interop/qcow2.txt), version 3.
fn qcow2(content: &[u8], bytes: u64) -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    const COPIED: u64 = 1 << 63;
    let mut image = vec![0; 6 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    // The header, the table of reference counts, these, both levels of the table of clusters, and the one.
    let at = |cluster: usize| (cluster * CLUSTER) as u64;
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16_u32.to_be_bytes());
    put(24, &bytes.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &at(3).to_be_bytes());
    put(48, &at(1).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &at(2).to_be_bytes());
    for cluster in 0..6 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    put(3 * CLUSTER, &(at(4) | COPIED).to_be_bytes());
    put(4 * CLUSTER, &(at(5) | COPIED).to_be_bytes());
    put(5 * CLUSTER, content);
    image
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn a_qcow2_image_is_not_changed_by_being_taken_for_a_memory() {
    let bench = host().await;
    let mut definition = bench.guest(1, Program::Writes);
    let disk = &mut definition.disks[0];
    disk.format = crate::Format::Qcow2;
    fs::write(
        &disk.path,
        qcow2(&super::program::boot_sector(Program::Writes), 1 << 20),
    )
    .unwrap();
    let (id, path) = (definition.id, disk.path.clone());
    bench.driver().define(definition).await.unwrap();
    bench.driver().start(id).await.unwrap();
    let mut count = counts_beyond(bench.driver(), id, 1).await;
    assert!(fs::metadata(&path).unwrap().len() > 6 << 16, "it is written");
    for _ in 0..2 {
        bench.driver().suspend(id).await.unwrap();
        bench.driver().restore(id).await.unwrap();
        count = counts_beyond(bench.driver(), id, count).await;
    }
    bench.driver().destroy(id).await.unwrap();
}

/// A file system whose server never says anything, for as long as this is there.
struct Silent {
    at: PathBuf,
    _server: File,
}

impl Silent {
    /// `None` for one who may not mount.
    fn over(at: &Path) -> Option<Self> {
        let server = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let none = None::<&str>;
        let mounted = mount(none, at, Some("fuse"), MsFlags::empty(), Some(options.as_str()));
        if let Err(error) = mounted {
            println!("nothing is shown, since one may not mount here: {error}");
            return None;
        }
        let at = at.to_owned();
        Some(Self { at, _server: server })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Whoever waits is let go when the server is.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
#[ignore = "needs QEMU and root"]
async fn an_image_on_a_server_that_hangs_is_named_and_stops_no_other_guest() {
    let mut bench = host().await;
    let srv = bench.dir.path().join("srv");
    fs::create_dir(&srv).unwrap();
    let Some(_silent) = Silent::over(&srv) else {
        return;
    };
    let other = started(&mut bench, 1, Program::Counts).await;
    let mut definition = bench.guest(2, Program::Counts);
    definition.disks[0].path = srv.join("disk.img");
    let id = definition.id;
    bench.driver().define(definition).await.unwrap();
    let began = Instant::now();
    let (driver, beside) = (bench.driver(), bench.guest(3, Program::Counts));
    let (refused, ()) = tokio::join!(driver.start(id), async {
        for _ in 0..3 {
            driver.pause(other).await.unwrap();
            driver.resume(other).await.unwrap();
        }
        // One that wants images too.
        let id = beside.id;
        driver.define(beside).await.unwrap();
        driver.start(id).await.unwrap();
        assert!(began.elapsed() < LOOK, "nobody waits for another's image");
    });
    let error = refused.unwrap_err().to_string();
    assert!(
        error.contains("srv/disk.img: its file system has not answered for 10 s"),
        "{error}"
    );
    assert_eq!(state(&bench, id), State::Defined);
    let again = Instant::now();
    assert!(matches!(driver.start(id).await, Err(Error::ImageSilent { .. })));
    assert!(again.elapsed() < LOOK, "the first look has not come back");
    driver.destroy(id).await.unwrap();
}

#[tokio::test]
#[ignore = "needs QEMU and root"]
async fn a_guest_whose_server_hangs_is_found_and_keeps_its_images() {
    let mut bench = host().await;
    let srv = bench.dir.path().join("srv");
    fs::create_dir(&srv).unwrap();
    let mut definition = bench.guest(1, Program::Counts);
    definition.disks[0].path = image(&srv, 1, Program::Counts);
    let id = definition.id;
    bench.driver().define(definition.clone()).await.unwrap();
    bench.driver().start(id).await.unwrap();
    let other = started(&mut bench, 2, Program::Counts).await;
    let count = counts_beyond(bench.driver(), id, 0).await;
    bench.close().await;
    let Some(silent) = Silent::over(&srv) else {
        return;
    };
    bench.open().await;
    assert_eq!(state(&bench, id), State::Running);
    assert_eq!(state(&bench, other), State::Running);
    counts_beyond(bench.driver(), id, count).await;
    drop(silent);
    // Under another name it is known once the server has answered.
    let link = bench.dir.path().join("link.img");
    fs::hard_link(&definition.disks[0].path, &link).unwrap();
    let mut second = bench.guest(3, Program::Counts);
    second.disks[0].path = link;
    bench.driver().define(second.clone()).await.unwrap();
    loop {
        match bench.driver().start(second.id).await.unwrap_err() {
            Error::ImageInUse { by, .. } => break assert_eq!(by, id),
            // By its QEMU alone.
            Error::ImageLocked { .. } => tokio::time::sleep(Duration::from_millis(100)).await,
            error => panic!("{error}"),
        }
    }
}
