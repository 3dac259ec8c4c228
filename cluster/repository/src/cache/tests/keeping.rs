//! What a cache keeps, whatever happens to its files and whoever wants something else.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::limits::MAX_CHUNK;
use crate::manifest::{HEADER, Hashed, Manifest};
use crate::{Digest, Error};

const SIZE: usize = 1 << 20;

/// A cache with an image that a guest uses.
async fn pinned(origin: &Origin) -> (TempDir, Digest) {
    let info = origin.put("a@1", &disk(SIZE, 1));
    let (dir, cache) = cache();
    cache.fetch(&held(origin)).await.unwrap();
    (dir, info.digest)
}

fn held(origin: &Origin) -> Fetch {
    Fetch {
        holder: Some("guest-1".to_owned()),
        ..origin.fetch("a")
    }
}

fn file(dir: &TempDir, folder: &str, digest: Digest) -> std::path::PathBuf {
    dir.path().join("cache").join(folder).join(digest.to_string())
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_now_costs_no_image() {
    let origin = Origin::new().await;
    let (dir, digest) = pinned(&origin).await;
    let manifest = file(&dir, "manifests", digest);
    std::fs::remove_file(&manifest).unwrap();
    // Not absent, and not to be opened.
    std::os::unix::fs::symlink(&manifest, &manifest).unwrap();
    let error = Cache::open(config(dir.path())).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    assert!(file(&dir, "images", digest).exists());
}

#[tokio::test]
async fn a_pinned_image_without_a_good_manifest_is_kept_and_said_until_nobody_uses_it() {
    let origin = Origin::new().await;
    for damage in [
        |path: &Path| std::fs::write(path, "?").unwrap(),
        |path: &Path| std::fs::remove_file(path).unwrap(),
    ] {
        let (dir, digest) = pinned(&origin).await;
        damage(&file(&dir, "manifests", digest));
        let cache = Cache::open(config(dir.path())).unwrap();
        let image = file(&dir, "images", digest);
        let by_digest = origin.fetch(&format!("sha256:{digest}"));
        for fetch in [held(&origin), by_digest] {
            let error = cache.fetch(&fetch).await.unwrap_err();
            assert!(
                matches!(&error, Error::Damaged { path, .. } if *path == image),
                "{error}"
            );
        }
        assert!(image.exists());
        assert_eq!(cache.pins().len(), 1);
        cache.release(digest, "guest-1").unwrap();
        cache.fetch(&held(&origin)).await.unwrap();
    }
}

#[tokio::test]
async fn a_pinned_image_of_another_length_is_kept() {
    let origin = Origin::new().await;
    let (dir, digest) = pinned(&origin).await;
    let image = file(&dir, "images", digest);
    let cut = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    cut.set_len(512).unwrap();
    let cache = Cache::open(config(dir.path())).unwrap();
    assert!(image.exists());
    assert!(matches!(cache.cached(digest), Err(Error::Damaged { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_begin_at_one_instant_have_one_fetch() {
    /// Two that are faster than each other now and then.
    const ROUNDS: u64 = 400;
    let (listener, origin) = listener().await;
    for seed in 0..ROUNDS {
        let (_dir, cache) = cache();
        let source = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&source, &disk(512, seed), 0).unwrap();
        let fetch = Fetch {
            image: "a".parse().unwrap(),
            origin,
            hosts: Vec::new(),
            holder: None,
        };
        let ready = Arc::new(AtomicUsize::new(0));
        let begun = [(); 2].map(|()| {
            let inspected = crate::format::inspect(&source, "it", None).unwrap();
            let manifest = Hashed::of(&source, 512).unwrap().manifest(inspected);
            let (cache, fetch, ready) = (cache.clone(), fetch.clone(), Arc::clone(&ready));
            tokio::task::spawn_blocking(move || {
                let id = manifest.id();
                ready.fetch_add(1, Ordering::SeqCst);
                // A barrier would wake one after the other.
                while ready.load(Ordering::SeqCst) < 2 {
                    std::hint::spin_loop();
                }
                cache.start(&fetch, id, manifest).unwrap().job.unwrap()
            })
        });
        let mut jobs = Vec::new();
        for one in begun {
            jobs.push(one.await.unwrap());
        }
        assert!(Arc::ptr_eq(&jobs[0], &jobs[1]), "two fetches in round {seed}");
    }
    drop(listener);
}

#[tokio::test]
async fn nothing_is_evicted_for_an_image_that_does_not_fit() {
    let origin = Origin::new().await;
    for (name, size) in [("a@1", SIZE), ("b@1", SIZE), ("large@1", 3 * SIZE)] {
        origin.put(name, &disk(size, size as u64 + u64::from(name.as_bytes()[0])));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = CacheConfig {
        max_bytes: Some(2 * SIZE as u64),
        ..config(dir.path())
    };
    let cache = Cache::open(config.clone()).unwrap();
    cache.fetch(&origin.fetch("a@1")).await.unwrap();
    cache.fetch(&origin.fetch("b@1")).await.unwrap();
    let error = cache.fetch(&origin.fetch("large@1")).await.unwrap_err();
    assert!(matches!(error, Error::CacheFull { held: 0, .. }), "{error}");
    assert_eq!(cache.list().len(), 2);
    // Nor where it is the disk that has no room.
    drop(cache);
    (config.max_bytes, config.keep_free) = (None, u64::MAX);
    let cache = Cache::open(config).unwrap();
    let error = cache.fetch(&origin.fetch("large@1")).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert_eq!(cache.list().len(), 2);
}

/// What an image of so many bytes consists of, of which there is nothing.
fn manifest(size: u64, salt: u8) -> Manifest {
    let source = tempfile::tempfile().unwrap();
    source.set_len(512).unwrap();
    let inspected = crate::format::inspect(&source, "it", None).unwrap();
    let mut bytes = Hashed::of(&source, 512).unwrap().manifest(inspected).encode();
    bytes[8..40].fill(salt);
    bytes[40..48].copy_from_slice(&size.to_be_bytes());
    bytes[56..60].copy_from_slice(&MAX_CHUNK.to_be_bytes());
    let chunks = usize::try_from(size.div_ceil(MAX_CHUNK.into())).unwrap();
    bytes.resize(HEADER + 32 * chunks, salt);
    Manifest::decode(&bytes).unwrap()
}

#[tokio::test]
async fn what_is_being_fetched_has_its_room_before_others() {
    /// So much of the disk is used here, or what there is.
    const MOST: u64 = 100 << 30;
    let dir = tempfile::tempdir().unwrap();
    let free = crate::files::free(dir.path()).unwrap();
    let config = CacheConfig {
        keep_free: free.saturating_sub(MOST),
        ..config(dir.path())
    };
    let cache = Cache::open(config).unwrap();
    let (_listener, origin) = listener().await;
    let fetch = Fetch {
        image: "a".parse().unwrap(),
        origin,
        hosts: Vec::new(),
        holder: None,
    };
    // Either fits, and both do not.
    let size = free.min(MOST) / 10 * 6;
    let [first, second] = [1, 2].map(|salt| {
        let manifest = manifest(size, salt);
        cache.start(&fetch, manifest.id(), manifest)
    });
    first.unwrap();
    let error = second.unwrap_err();
    assert!(
        matches!(error, Error::NoSpace { need, free, .. } if need == size && free < size),
        "{error}"
    );
}
