use std::sync::atomic::{AtomicU32, Ordering};

use aerie_cluster_proto::description::Image;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::manifest::{Manifest, ManifestId};
use crate::swarm::Bitfield;
use crate::{Digest, Error};

const SIZE: usize = 3 << 20;

/// A library that says it has everything, and gives what it wants.
struct Odd {
    store: Arc<Store>,
    /// What becomes of a chunk. `None`: it is not there after all.
    chunk: fn(Vec<u8>) -> Option<Vec<u8>>,
    asked: Arc<AtomicU32>,
}

impl Library for Odd {
    fn find(&self, image: &Image) -> Result<Option<ImageInfo>, Error> {
        Library::find(self.store.as_ref(), image)
    }

    fn manifest(&self, id: ManifestId) -> Result<Option<Arc<Manifest>>, Error> {
        Library::manifest(self.store.as_ref(), id)
    }

    fn have(&self, id: ManifestId) -> Result<Option<Bitfield>, Error> {
        self.store.have(id)
    }

    fn chunk(&self, id: ManifestId, chunk: u32) -> Result<Option<Vec<u8>>, Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(self.store.chunk(id, chunk)?.and_then(self.chunk))
    }
}

/// A repository that gives no chunk before another host was asked for one.
struct Gated(Arc<Store>, Arc<AtomicU32>);

impl Library for Gated {
    fn find(&self, image: &Image) -> Result<Option<ImageInfo>, Error> {
        Library::find(self.0.as_ref(), image)
    }

    fn manifest(&self, id: ManifestId) -> Result<Option<Arc<Manifest>>, Error> {
        Library::manifest(self.0.as_ref(), id)
    }

    fn have(&self, id: ManifestId) -> Result<Option<Bitfield>, Error> {
        self.0.have(id)
    }

    fn chunk(&self, id: ManifestId, chunk: u32) -> Result<Option<Vec<u8>>, Error> {
        match self.1.load(Ordering::SeqCst) {
            0 => Ok(None),
            _ => self.0.chunk(id, chunk),
        }
    }
}

/// Fetches with a host beside the origin that counts what it is asked; how many hosts were dropped.
async fn fetch_with(origin: &Origin, host: SocketAddr, asked: &Arc<AtomicU32>, bytes: &[u8]) -> usize {
    let gated = Gated(Arc::clone(&origin.store), Arc::clone(asked));
    let gated = serve(Arc::new(gated)).await;
    let (_dir, cache) = cache();
    let fetch = Fetch {
        hosts: vec![host],
        origin: gated.local_addr(),
        ..origin.fetch("a")
    };
    let fetching = cache.begin(&fetch).await.unwrap();
    let progress = fetching.progress().unwrap();
    let got = fetching.wait().await.unwrap();
    assert_eq!(std::fs::read(&got.path).unwrap(), bytes);
    assert!(asked.load(Ordering::SeqCst) > 0);
    let last = *progress.borrow();
    last.dropped
}

/// Fetches beside a host that gives such chunks; how often it was asked, and how many hosts were dropped.
async fn beside(chunk: fn(Vec<u8>) -> Option<Vec<u8>>) -> (u32, usize) {
    let origin = Origin::new().await;
    let bytes = disk(SIZE, 1);
    origin.put("a@1", &bytes);
    let asked = Arc::new(AtomicU32::new(0));
    let odd = Odd {
        store: Arc::clone(&origin.store),
        chunk,
        asked: Arc::clone(&asked),
    };
    let odd = serve(Arc::new(odd)).await;
    let dropped = fetch_with(&origin, odd.local_addr(), &asked, &bytes).await;
    (asked.load(Ordering::SeqCst), dropped)
}

#[tokio::test]
async fn a_host_that_sends_a_wrong_chunk_is_dropped_and_the_image_comes() {
    let flip = |mut bytes: Vec<u8>| {
        bytes[7] ^= 1;
        Some(bytes)
    };
    let (asked, dropped) = beside(flip).await;
    assert!(
        asked <= 2 && dropped == 1,
        "it was asked {asked} times, and {dropped} were dropped"
    );
}

#[tokio::test]
async fn a_host_that_sends_part_of_a_chunk_or_none_or_too_much_does_no_harm() {
    let (_, dropped) = beside(|bytes| Some(bytes[..1000].to_vec())).await;
    assert_eq!(dropped, 1);
    beside(|_| None).await;
    beside(|bytes| Some([bytes.clone(), bytes].concat())).await;
}

/// A host that says it has everything and gives nothing: it answers what it has, and never sends a chunk's body.
async fn stalling(chunks: u32, asked: Arc<AtomicU32>) -> SocketAddr {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut request).await {
                    let have = Bitfield::full(chunks);
                    let bytes = have.as_bytes();
                    if !String::from_utf8_lossy(&request[..read]).contains("/v1/have/") {
                        // It begins, and that is all.
                        asked.fetch_add(1, Ordering::SeqCst);
                        let _ = stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 262144\r\n\r\nxyz")
                            .await;
                        std::future::pending::<()>().await;
                    }
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len());
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(bytes).await;
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_host_that_says_it_has_everything_and_gives_nothing_does_not_keep_the_image_from_coming() {
    let origin = Origin::new().await;
    let bytes = disk(8 << 20, 1);
    let info = origin.put("a@1", &bytes);
    let manifest = origin.store.manifest(&info.digest.into()).unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let host = stalling(manifest.chunks(), Arc::clone(&asked)).await;
    fetch_with(&origin, host, &asked, &bytes).await;
    // Nobody waits for it with more than it may have at a time.
    assert!(asked.load(Ordering::SeqCst) <= 4, "it was asked {asked:?} times");
}

#[tokio::test]
async fn a_repository_whose_disk_is_damaged_is_named_and_what_came_is_kept() {
    let origin = Origin::new().await;
    let bytes = disk(SIZE, 1);
    let info = origin.put("a@1", &bytes);
    let path = origin.store.dir().join("images").join(info.digest.to_string());
    let mut damaged = bytes.clone();
    damaged[2_000_000] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &damaged).unwrap();
    let (_dir, cache) = cache();
    let error = cache.fetch(&origin.fetch("a")).await.unwrap_err().to_string();
    let addr = origin.server.local_addr();
    assert!(
        error.contains(&format!("{addr}: sent something else as chunk 7")),
        "{error}"
    );
    assert_eq!(cache.list(), []);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    cache.fetch(&origin.fetch("a")).await.unwrap();
}

/// A repository that says one digest and has the manifest of another image.
struct Mixed(Arc<Store>, Digest);

impl Library for Mixed {
    fn find(&self, image: &Image) -> Result<Option<ImageInfo>, Error> {
        let found = Library::find(self.0.as_ref(), image)?;
        Ok(found.map(|info| ImageInfo {
            digest: self.1,
            ..info
        }))
    }

    fn manifest(&self, id: ManifestId) -> Result<Option<Arc<Manifest>>, Error> {
        Library::manifest(self.0.as_ref(), id)
    }

    fn have(&self, id: ManifestId) -> Result<Option<Bitfield>, Error> {
        self.0.have(id)
    }

    fn chunk(&self, id: ManifestId, chunk: u32) -> Result<Option<Vec<u8>>, Error> {
        self.0.chunk(id, chunk)
    }
}

#[tokio::test]
async fn a_manifest_of_another_image_is_refused() {
    let origin = Origin::new().await;
    let info = origin.put("a@1", &disk(SIZE, 1));
    let wanted = Digest::of(b"another");
    let mixed = serve(Arc::new(Mixed(Arc::clone(&origin.store), wanted))).await;
    let (_dir, cache) = cache();
    let mut fetch = origin.fetch("a");
    fetch.origin = mixed.local_addr();
    let error = cache.fetch(&fetch).await.unwrap_err();
    assert!(
        matches!(error, Error::WrongDigest { expected, found, .. } if expected == wanted && found == info.digest),
        "{error}"
    );
    fetch.image = info.digest.into();
    let error = cache.fetch(&fetch).await.unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
}

#[tokio::test]
async fn an_image_whose_manifest_says_another_disk_is_not_kept() {
    let origin = Origin::new().await;
    let info = origin.put("a@1", &disk(SIZE, 1));
    let manifest = origin.store.manifest(&info.digest.into()).unwrap();
    let mut bytes = manifest.encode();
    // The size of the disk.
    bytes[48..56].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    let forged = Manifest::decode(&bytes).unwrap();
    let index = rusqlite::Connection::open(origin.store.dir().join("index.sqlite")).unwrap();
    index
        .execute(
            "UPDATE images SET manifest = ?1, manifest_id = ?2",
            rusqlite::params![bytes, forged.id().0.0],
        )
        .unwrap();
    let (_dir, cache) = cache();
    let error = cache.fetch(&origin.fetch("a")).await.unwrap_err().to_string();
    assert!(
        error.contains("says a disk of 1099511627776 bytes and it is one of 3145728"),
        "{error}"
    );
    assert_eq!(cache.list(), []);
}

#[tokio::test]
async fn a_repository_that_cannot_be_reached_is_said() {
    let (listener, addr) = listener().await;
    drop(listener);
    let (_dir, cache) = cache();
    let fetch = Fetch {
        image: "a".parse().unwrap(),
        origin: addr,
        hosts: Vec::new(),
        holder: None,
    };
    let error = cache.fetch(&fetch).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{addr} cannot be asked for an image: ")),
        "{error}"
    );
}
