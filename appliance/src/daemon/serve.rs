//! The control socket's server.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::answer::answer;
use super::shared::Shared;
use crate::control::{MAX_REQUEST, Reply, Request};
use crate::error::Error;

/// Commands served at once, of root and of all others. A person and a few scripts ask at a time.
const MAX_CLIENTS: usize = 16;

/// How long a client may be served: a ping may take several seconds to find its path.
const SERVE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take to send its line.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The listening socket; its file goes when this is dropped.
pub(crate) struct Server {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens at `path`. A socket file left by a daemon that was killed is replaced; a living daemon's is not.
pub(crate) async fn listen(path: &Path, shared: Arc<Shared>) -> Result<Server, Error> {
    let failed = |source| Error::Control {
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(Error::AlreadyRunning {
            path: path.to_owned(),
        });
    }
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(failed(source)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // Anybody on the machine may read the status; what changes something is for root, judged per request.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    let task = tokio::spawn(accept(listener, shared));
    Ok(Server {
        path: path.to_owned(),
        task,
    })
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    // Root's own, so that no other user can keep root out.
    let roots = Arc::new(Semaphore::new(MAX_CLIENTS));
    let others = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
        let clients = if is_root { &roots } else { &others };
        let Ok(permit) = Arc::clone(clients).try_acquire_owned() else {
            tracing::debug!("too many control clients");
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            match tokio::time::timeout(SERVE_TIMEOUT, serve(stream, is_root, &shared)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a control client went away"),
                Err(_) => tracing::debug!("a control client took too long"),
            }
            drop(permit);
        });
    }
}

async fn serve(stream: UnixStream, is_root: bool, shared: &Shared) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut limited = BufReader::new(read).take(MAX_REQUEST as u64);
    tokio::time::timeout(READ_TIMEOUT, limited.read_line(&mut line)).await??;
    let reply = match serde_json::from_str::<Request>(&line) {
        Ok(request) if request.changes_state() && !is_root => Reply::Error {
            message: "this changes the node, so only root may ask for it; try sudo".to_owned(),
        },
        Ok(request) => answer(shared, request).await,
        Err(error) => Reply::Error {
            message: format!("request not understood ({error}); daemon and command may differ in version"),
        },
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    write.write_all(&text).await
}
