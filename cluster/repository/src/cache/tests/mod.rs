//! Hosts that fetch over the loopback interface, some from sources that are no good.

mod faults;
mod fetching;
mod keeping;
mod killed;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aerie_types::WallMillis;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{Cache, CacheConfig, Fetch};
use crate::store::{Config, Meta, Store};
use crate::swarm::Limits;
use crate::{ImageInfo, Library, Server, ServerConfig};

const NOW: WallMillis = WallMillis(1_900_000_000_000);

/// A disk of so many bytes, which do not repeat.
fn disk(bytes: usize, seed: u64) -> Vec<u8> {
    use rand::{Rng as _, SeedableRng as _};
    let mut disk = vec![0; bytes];
    rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut disk);
    disk
}

/// A repository with images in it, served.
struct Origin {
    dir: TempDir,
    store: Arc<Store>,
    server: Server,
}

impl Origin {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            keep_free: 0,
            ..Config::new(dir.path().join("store"))
        };
        let store = Arc::new(Store::open(config).unwrap());
        let server = serve(Arc::clone(&store) as Arc<dyn Library>).await;
        Self { dir, store, server }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> ImageInfo {
        let path = self.dir.path().join("disk");
        std::fs::write(&path, bytes).unwrap();
        let name = name.parse().unwrap();
        self.store
            .put_file(&path, Some(&name), None, &Meta::default(), NOW, &mut |_, _| ())
            .unwrap()
    }

    fn fetch(&self, image: &str) -> Fetch {
        Fetch {
            image: image.parse().unwrap(),
            origin: self.server.local_addr(),
            hosts: Vec::new(),
            holder: None,
        }
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

async fn serve(library: Arc<dyn Library>) -> Server {
    let (listener, _) = listener().await;
    Server::start(listener, library, ServerConfig::default()).unwrap()
}

fn config(dir: &Path) -> CacheConfig {
    CacheConfig {
        keep_free: 0,
        patience: Duration::from_secs(2),
        limits: Limits {
            stall: Duration::from_millis(600),
            quiet: Duration::from_millis(200),
            late: Duration::from_millis(200),
            ..Limits::default()
        },
        ..CacheConfig::new(dir.join("cache"))
    }
}

fn cache() -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(dir.path())).unwrap();
    (dir, cache)
}

/// A host whose cache is served.
async fn host() -> (TempDir, Cache, Server) {
    let dir = tempfile::tempdir().unwrap();
    let (listener, addr) = listener().await;
    let mut config = config(dir.path());
    config.port = addr.port();
    let cache = Cache::open(config).unwrap();
    let server = Server::start(listener, Arc::new(cache.clone()), ServerConfig::default()).unwrap();
    (dir, cache, server)
}
