use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::limits::MAX_FETCHES;
use crate::{Error, Pin, overlay};

const SIZE: usize = 3 << 20;

#[tokio::test]
async fn a_fetched_image_is_the_image_and_is_asked_for_once() {
    let origin = Origin::new().await;
    let bytes = disk(SIZE + 512, 1);
    let info = origin.put("lab/debian@13", &bytes);
    let (_dir, cache) = cache();
    let got = cache.fetch(&origin.fetch("lab/debian")).await.unwrap();
    assert_eq!(std::fs::read(&got.path).unwrap(), bytes);
    assert_eq!((got.digest, got.size), (info.digest, info.stored_size));
    let mode = std::fs::metadata(&got.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o400, "it may be written");
    assert_eq!(origin.server.sent(), info.stored_size);
    cache.fetch(&origin.fetch("lab/debian@13")).await.unwrap();
    assert_eq!(origin.server.sent(), info.stored_size);
    // By its digest it is had though nobody can be asked.
    let by_digest = origin.fetch(&format!("sha256:{}", info.digest));
    drop(origin);
    cache.fetch(&by_digest).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_that_want_an_image_at_once_fetch_it_once() {
    let origin = Origin::new().await;
    let info = origin.put("a@1", &disk(SIZE, 1));
    let (_dir, cache) = cache();
    let wanted: Vec<_> = (0..8)
        .map(|_| {
            let (cache, fetch) = (cache.clone(), origin.fetch("a"));
            tokio::spawn(async move { cache.fetch(&fetch).await.unwrap() })
        })
        .collect();
    for one in wanted {
        assert_eq!(one.await.unwrap().digest, info.digest);
    }
    assert_eq!(origin.server.sent(), info.stored_size);
}

#[tokio::test]
async fn progress_is_told_up_to_the_end() {
    let origin = Origin::new().await;
    let info = origin.put("a@1", &disk(SIZE, 1));
    let (_dir, cache) = cache();
    let fetching = cache.begin(&origin.fetch("a")).await.unwrap();
    let mut progress = fetching.progress().unwrap();
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        while progress.changed().await.is_ok() {
            seen.push(*progress.borrow_and_update());
        }
        seen
    });
    fetching.wait().await.unwrap();
    let seen = watching.await.unwrap();
    let last = seen.last().unwrap();
    assert_eq!((last.bytes, last.size), (info.stored_size, info.stored_size));
    assert_eq!((last.chunks, last.of), (12, 12));
    assert!(seen.is_sorted_by_key(|progress| progress.bytes));
}

#[tokio::test]
async fn an_image_that_is_not_in_the_repository_is_named_with_the_repository() {
    let origin = Origin::new().await;
    let (_dir, cache) = cache();
    let error = cache
        .fetch(&origin.fetch("debian@14"))
        .await
        .unwrap_err()
        .to_string();
    let addr = origin.server.local_addr();
    assert!(
        error.starts_with(&format!("there is no image debian@14 in {addr}")),
        "{error}"
    );
}

#[tokio::test]
async fn the_image_that_was_not_used_for_the_longest_time_makes_room_and_one_that_is_pinned_never() {
    let origin = Origin::new().await;
    let infos: Vec<_> = (0..3)
        .map(|seed| origin.put(&format!("a@{seed}"), &disk(1 << 20, seed)))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let config = CacheConfig {
        max_bytes: Some(2 << 20),
        ..config(dir.path())
    };
    let cache = Cache::open(config.clone()).unwrap();
    cache.fetch(&origin.fetch("a@0")).await.unwrap();
    cache.fetch(&origin.fetch("a@1")).await.unwrap();
    // Used again, it is not the oldest any more.
    cache.fetch(&origin.fetch("a@0")).await.unwrap();
    cache.fetch(&origin.fetch("a@2")).await.unwrap();
    let mut left = vec![infos[0].digest, infos[2].digest];
    left.sort();
    assert_eq!(cache.list(), left);
    // Pinned by guests, which outlive the process.
    for (image, holder) in [("a@0", "guest-1"), ("a@2", "guest-2")] {
        let fetch = Fetch {
            holder: Some(holder.to_owned()),
            ..origin.fetch(image)
        };
        cache.fetch(&fetch).await.unwrap();
    }
    drop(cache);
    let cache = Cache::open(config).unwrap();
    let error = cache.fetch(&origin.fetch("a@1")).await.unwrap_err();
    assert!(
        matches!(error, Error::CacheFull { held: 0x20_0000, .. }),
        "{error}"
    );
    assert!(!cache.remove(infos[0].digest).unwrap());
    cache.release(infos[0].digest, "guest-1").unwrap();
    let pin = Pin {
        digest: infos[2].digest,
        holder: "guest-2".to_owned(),
    };
    assert_eq!(cache.pins(), [pin]);
    cache.fetch(&origin.fetch("a@1")).await.unwrap();
    assert!(!cache.list().contains(&infos[0].digest));
    assert!(cache.remove(infos[1].digest).unwrap());
}

#[tokio::test]
async fn an_image_that_does_not_come_leaves_no_pin() {
    let origin = Origin::new().await;
    let info = origin.put("a@1", &disk(SIZE, 1));
    let path = origin.store.dir().join("images").join(info.digest.to_string());
    std::fs::remove_file(path).unwrap();
    let (_dir, cache) = cache();
    let fetch = Fetch {
        holder: Some("guest-1".to_owned()),
        ..origin.fetch("a")
    };
    let error = cache.fetch(&fetch).await.unwrap_err().to_string();
    assert!(error.contains("12 of 12 chunks are missing"), "{error}");
    assert_eq!(cache.pins(), []);
    let odd = Fetch {
        holder: Some("../x".to_owned()),
        ..origin.fetch("a")
    };
    assert!(matches!(cache.fetch(&odd).await, Err(Error::BadName { .. })));
}

#[tokio::test]
async fn a_cache_belongs_to_one_process() {
    let (dir, _cache) = cache();
    let error = Cache::open(config(dir.path())).unwrap_err().to_string();
    assert!(error.starts_with("another process uses the cache"), "{error}");
}

#[tokio::test]
async fn a_disk_made_on_a_cached_image_names_it() {
    let origin = Origin::new().await;
    origin.put("a@1", &disk(SIZE, 1));
    let (dir, cache) = cache();
    let got = cache.fetch(&origin.fetch("a")).await.unwrap();
    let path = dir.path().join("guest.qcow2");
    got.make_overlay(&path).unwrap();
    let backing = overlay::backing_of(&path).unwrap().unwrap();
    assert_eq!(backing.path, got.path.canonicalize().unwrap());
    assert!(got.make_overlay(&path).is_err(), "a disk is replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_fetch_together_take_most_of_it_from_each_other() {
    let origin = Origin::new().await;
    let info = origin.put("a@1", &disk(16 << 20, 1));
    let mut hosts = Vec::new();
    for _ in 0..4 {
        hosts.push(host().await);
    }
    // One has it already, and the repository tells the others.
    hosts[0].1.fetch(&origin.fetch("a")).await.unwrap();
    let sent = origin.server.sent();
    let rest: Vec<_> = hosts[1..]
        .iter()
        .map(|(_, cache, server)| {
            let (cache, mut fetch) = (cache.clone(), origin.fetch("a"));
            let known = hosts[0].2.local_addr();
            assert_ne!(known, server.local_addr());
            fetch.hosts.push(known);
            tokio::spawn(async move { cache.fetch(&fetch).await.unwrap() })
        })
        .collect();
    for one in rest {
        one.await.unwrap();
    }
    let by_hosts: u64 = hosts.iter().map(|(_, _, server)| server.sent()).sum();
    assert!(by_hosts > 0);
    let all = origin.server.sent() - sent + by_hosts;
    assert!(all >= 3 * info.stored_size, "{all}");
}

#[tokio::test]
async fn more_fetches_than_there_may_be_are_refused() {
    let origin = Origin::new().await;
    let (_dir, cache) = cache();
    // Nobody ends: there is nothing of the images but their manifests.
    for seed in 0..=MAX_FETCHES as u64 {
        let info = origin.put(&format!("a@{seed}"), &disk(1 << 16, seed));
        let path = origin.store.dir().join("images").join(info.digest.to_string());
        std::fs::remove_file(path).unwrap();
    }
    let mut begun = Vec::new();
    for seed in 0..MAX_FETCHES {
        begun.push(cache.begin(&origin.fetch(&format!("a@{seed}"))).await.unwrap());
    }
    let one_more = cache.begin(&origin.fetch(&format!("a@{MAX_FETCHES}"))).await;
    assert!(matches!(one_more, Err(Error::TooManyFetches)));
}
