//! A manager whose process is killed, and the next one.
//!
//! The manager to be killed is this test's program once more, that runs the one test which is no test
//! ([`the_manager_that_is_killed`]) with the place in its environment. Its guests end with it, as they do when a host
//! goes down with its manager; their disks stay.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;

use aerie_cluster_manager_proto::{MemberState, Operation};
use aerie_cluster_node::fake::FakeHost;
use nix::sys::signal::Signal;

use super::{LIMIT, ada, id, is_empty, manager, operate, request, wait};

/// Whose folder the manager to be killed has.
const DIR: &str = "AERIE_MANAGER_DIR";
/// Where it is killed ([`crate::crash::point`]).
const PLACE: &str = "AERIE_MANAGER_CRASH";

#[tokio::test]
#[ignore = "is run by other tests"]
async fn the_manager_that_is_killed() {
    let Ok(dir) = std::env::var(DIR) else {
        return;
    };
    let manager = manager(Path::new(&dir), &FakeHost::default()).await;
    let _ = manager.request(&ada(), request("c", 3, "debian")).await;
    let _ = manager.wait(&ada(), &id("c"), LIMIT, |status| status.ended).await;
}

#[tokio::test]
async fn a_manager_killed_by_the_kernel_leaves_nobody_stuck_and_no_disk_behind() {
    for place in [
        "before a write:3",
        "after a write:3",
        "before a step:2",
        "after a step:5",
        "after a write:6",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let output = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::kills::the_manager_that_is_killed"])
            .args(["--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .env(PLACE, place)
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        assert_eq!(
            output.status.signal(),
            Some(Signal::SIGKILL as i32),
            "it was not killed at '{place}': {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let manager = manager(dir.path(), &FakeHost::default()).await;
        // Whoever had no answer asks again.
        manager.request(&ada(), request("c", 3, "debian")).await.unwrap();
        wait(&manager, "c", |status| {
            let states = status.members.iter().map(|member| member.state);
            states
                .into_iter()
                .all(|state| matches!(state, MemberState::Started | MemberState::Corrupted))
        })
        .await;
        let undeploy = Operation::Undeploy { save: None };
        manager.command(&ada(), operate("c", undeploy)).await.unwrap();
        wait(&manager, "c", |status| status.ended).await;
        assert!(is_empty(&dir.path().join("disks")), "{place}");
    }
}
