//! A host that is killed while it fetches, and the next one on its folder.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::Signal;

use super::*;
use crate::crash::NUMBER;

const DIR: &str = "AERIE_REPOSITORY_DIR";
const ORIGIN: &str = "AERIE_REPOSITORY_ORIGIN";

/// Chunks of the image.
const CHUNKS: u32 = 8;

#[tokio::test]
#[ignore = "is run by other tests"]
async fn the_host_that_is_killed() {
    let (Ok(dir), Ok(origin)) = (std::env::var(DIR), std::env::var(ORIGIN)) else {
        return;
    };
    let cache = Cache::open(config(Path::new(&dir))).unwrap();
    let fetch = Fetch {
        image: "a".parse().unwrap(),
        origin: origin.parse().unwrap(),
        hosts: Vec::new(),
        holder: Some("guest-1".to_owned()),
    };
    cache.fetch(&fetch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_fetches_it_goes_on_with_what_it_had() {
    let origin = Origin::new().await;
    let bytes = disk((CHUNKS as usize) * (256 << 10), 1);
    let info = origin.put("a@1", &bytes);
    for place in 1..100 {
        let dir = tempfile::tempdir().unwrap();
        let output = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::tests::killed::the_host_that_is_killed"])
            .args(["--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .env(ORIGIN, origin.server.local_addr().to_string())
            .env(NUMBER, place.to_string())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let ended = output.status.success();
        assert!(
            ended || output.status.signal() == Some(Signal::SIGKILL as i32),
            "{said}"
        );
        let partial = dir.path().join("cache/partial").join(info.digest.to_string());
        if let Ok(meta) = std::fs::metadata(partial) {
            let mode = meta.permissions().mode();
            assert_eq!(mode & 0o200, 0o200, "place {place}: it cannot be gone on with");
        }
        let before = origin.server.sent();
        let cache = Cache::open(config(dir.path())).unwrap();
        let whole = !cache.list().is_empty();
        assert!(!ended || whole);
        let got = cache.fetch(&origin.fetch("a")).await.unwrap();
        assert_eq!(std::fs::read(&got.path).unwrap(), bytes, "place {place}");
        // The first place is the first chunk: each place before the last one is a chunk more that is there.
        let written = u64::from(place).min(CHUNKS.into());
        let again = (origin.server.sent() - before) / (256 << 10);
        assert!(
            again <= u64::from(CHUNKS) - written,
            "place {place}: {again} chunks came again"
        );
        assert_eq!(cache.pins()[0].digest, info.digest);
        if ended {
            assert!(place > CHUNKS);
            return;
        }
    }
    panic!("it does not end");
}
