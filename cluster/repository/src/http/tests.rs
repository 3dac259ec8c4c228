//! A server and those who would have it for themselves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Server, ServerConfig};
use crate::limits::MAX_CONNECTIONS_OF_ONE;
use crate::store::{Config, Store};

/// Nothing here takes so long unless it never ends.
const NEVER: Duration = Duration::from_secs(10);

async fn server(config: ServerConfig) -> (TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(dir.path().join("store"))).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (dir, Server::start(listener, Arc::new(store), config).unwrap())
}

/// Whether the server answers, and does not close.
async fn answers(at: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = b"GET /v1/image/a HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut answer = [0; 12];
    stream.write_all(request).await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && &answer == b"HTTP/1.1 404"
}

#[tokio::test]
async fn whoever_begins_a_request_and_does_not_end_it_is_not_waited_for() {
    let (_dir, server) = server(ServerConfig {
        head: Duration::from_millis(50),
        ..ServerConfig::default()
    })
    .await;
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    stream.write_all(b"GET /v1/image/a HTTP/1.1\r\nho").await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(NEVER, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is waited for");
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_no_more() {
    let (_dir, server) = server(ServerConfig::default()).await;
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS_OF_ONE {
        open.push(TcpStream::connect(server.local_addr()).await.unwrap());
    }
    assert!(!answers(server.local_addr()).await);
    open.pop();
    let again = async {
        while !answers(server.local_addr()).await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(NEVER, again).await.unwrap();
}
