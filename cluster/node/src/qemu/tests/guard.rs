//! Guests end with the test that has them, however that ends.
//!
//! A guest outlives its driver, which is what it is for; and so those of a test that is killed would run on. Beside each
//! test there is therefore this program once more, that runs the one test which is no test ([`the_guard`]): it hears
//! when the test has ended, since then nobody has the other end of its input any more, and ends what is left.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use super::Host;
use crate::conformance::{LIMIT, Program, counts_beyond, started};
use crate::files;
use crate::process::{Process, that_hold};

/// Whose guests the guard ends.
const GUARDED: &str = "AERIE_NODE_GUARDED";
/// Where the test to be killed has its guests.
const DIR: &str = "AERIE_NODE_KILLED";
/// What it says when it has one.
const UP: &str = "the guest is up";

/// Ends the guests of a folder when it is dropped, or its process has ended.
pub(super) struct Guard(Child);

impl Guard {
    pub(super) fn over(dir: &Path) -> Self {
        let child = ourselves("the_guard")
            .env(GUARDED, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Who ends the test ends its group.
            .process_group(0)
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn ourselves(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("qemu::tests::guard::{test}")])
        .args(["--ignored", "--nocapture"]);
    command
}

/// Has this process end with the one that made it.
pub(super) fn die_with_parent() {
    // SAFETY: the call takes numbers and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

#[tokio::test]
#[ignore = "is run by other tests"]
async fn the_guard() {
    let Ok(dir) = std::env::var(GUARDED) else {
        return;
    };
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let until = Instant::now() + LIMIT;
    while end_all(Path::new(&dir)) > 0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends the guests of a folder; returns how many there may still be.
fn end_all(dir: &Path) -> usize {
    let mut left = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let alive = entry.path().join("alive");
        if !alive.exists() || matches!(files::lock(&alive), Ok(Some(_))) {
            continue;
        }
        left += 1;
        for pid in that_hold(&alive) {
            if let Ok(Some(process)) = Process::open(pid)
                && process.holds(&alive)
            {
                process.kill();
            }
        }
    }
    left
}

#[tokio::test]
#[ignore = "is run by other tests"]
async fn the_test_that_is_killed() {
    let Ok(dir) = std::env::var(DIR) else {
        return;
    };
    die_with_parent();
    let mut bench = Host::with(|config| config.dir = Path::new(&dir).join("guests")).await;
    let id = started(&mut bench, 1, Program::Deaf).await;
    counts_beyond(bench.driver.as_ref().unwrap(), id, 0).await;
    println!("{UP}");
    std::future::pending().await
}

#[tokio::test]
#[ignore = "needs QEMU"]
async fn the_guests_of_a_test_that_is_killed_end_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::from(ourselves("the_test_that_is_killed"));
    let mut child = command
        .env(DIR, dir.path())
        // What it leaves behind goes with this test's own.
        .env("TMPDIR", dir.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(line) = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap() {
        if line.contains(UP) {
            break;
        }
    }
    let alive = dir
        .path()
        .join("guests")
        .join(crate::conformance::id(1).to_string())
        .join("alive");
    let holders = that_hold(&alive);
    assert_eq!(holders.len(), 1, "{holders:?}");
    let guest = Process::open(holders[0]).unwrap().unwrap();
    child.kill().await.unwrap();
    timeout(LIMIT, guest.ended()).await.unwrap();
}
