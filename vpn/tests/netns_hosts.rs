//! A hosts file that cannot be replaced, as in a container: it is a mount.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;

use aerie_vpn::names::{HostsFile, HostsLine};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

#[test]
fn a_hosts_file_that_is_a_mount_is_rewritten_in_place() {
    // This thread's own view of the mounts, which ends with it.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("hosts"), dir.path().join("hosts-outside"));
    fs::write(&outside, "127.0.0.1 localhost\n").unwrap();
    fs::write(&inside, "").unwrap();
    mount(Some(&outside), &inside, none, MsFlags::MS_BIND, none).unwrap();
    let inode = fs::metadata(&inside).unwrap().ino();
    let mut hosts = HostsFile::new(&inside, "ab12cd34");
    let addr = Ipv4Addr::new(100, 96, 0, 1).into();
    hosts
        .write(&[HostsLine {
            addr,
            names: vec!["w1.lab.grid".to_owned()],
        }])
        .unwrap();
    assert!(
        fs::read_to_string(&outside)
            .unwrap()
            .contains("100.96.0.1\tw1.lab.grid")
    );
    drop(hosts);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "127.0.0.1 localhost\n");
    assert_eq!(fs::metadata(&inside).unwrap().ino(), inode);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        2,
        "nothing is left beside it"
    );
    nix::mount::umount(&inside).unwrap();
}
