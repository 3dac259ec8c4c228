//! The broker behind HTTPS.
//!
//! Every connection has a deadline and carries one request, their number is bounded, and bodies are small. Who a
//! member is was proved in the handshake; see [`tls`].

mod handlers;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aerie_types::WallMillis;
use axum_server::Handle;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::{Broker, Error};
use handlers::{Failure, Shared};
use tls::Acceptor;

/// How long a shutdown waits for answers that are under way. Members that wait for news ask again.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// How often deadlines are looked at. They are of whole seconds.
const TICK: Duration = Duration::from_secs(1);

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> WallMillis + Send + Sync>;

/// The machine's own clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| WallMillis::from(SystemTime::now()))
}

/// How to serve.
#[derive(Clone)]
pub struct ServeConfig {
    /// Where to listen. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// The clock by which deadlines are judged.
    pub clock: Clock,
}

impl ServeConfig {
    /// The usual values: the machine's clock.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            clock: system_clock(),
        }
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    local_addr: SocketAddr,
    handle: Handle<SocketAddr>,
    serving: JoinHandle<std::io::Result<()>>,
    ticking: JoinHandle<()>,
}

impl Server {
    /// Listens, and serves in the background.
    ///
    /// # Errors
    /// [`Error::Listen`] if the address is taken.
    pub async fn start(broker: Arc<Broker>, config: ServeConfig) -> Result<Self, Error> {
        let listen_error = |source| Error::Listen {
            addr: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        Self::on(listener, broker, config.clock)
    }

    /// Serves at a socket that listens already, whose address the broker's URL may name.
    ///
    /// # Errors
    /// [`Error::Listen`] or [`Error::Tls`].
    pub fn on(listener: TcpListener, broker: Arc<Broker>, clock: Clock) -> Result<Self, Error> {
        let local_addr = listener.local_addr().map_err(|source| Error::Listen {
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            source,
        })?;
        let acceptor = Acceptor::new(tls::config(&broker)?);
        let shared = Shared::new(broker, clock);
        let app = handlers::router(shared.clone()).into_make_service();
        let handle = Handle::new();
        let mut server = axum_server::Server::<SocketAddr>::from_listener(listener)
            .handle(handle.clone())
            .http1_only()
            .acceptor(acceptor);
        // A member asks seldom, and each connection has a deadline.
        server.http_builder().http1().keep_alive(false);
        let serving = tokio::spawn(server.serve(app));
        let ticking = tokio::spawn(tick(shared));
        tracing::info!(%local_addr, "context broker is listening");
        Ok(Self {
            local_addr,
            handle,
            serving,
            ticking,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting, lets answers under way finish for a few seconds, and ends.
    pub async fn shutdown(mut self) {
        self.handle.graceful_shutdown(Some(SHUTDOWN));
        self.wait().await;
    }

    /// Waits until the server ends by itself, which it does only when its socket breaks.
    pub async fn wait(&mut self) {
        match (&mut self.serving).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "context broker ended"),
            Err(error) => tracing::error!(%error, "context broker failed"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.ticking.abort();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

/// Fails whom a deadline has passed for. One that could not be written to the disk is tried again at the next look.
async fn tick(shared: Shared) {
    loop {
        tokio::time::sleep(TICK).await;
        if let Err(Failure::Denied(error)) = shared.run(|broker, now| broker.tick(now)).await {
            tracing::error!(%error, "deadlines could not be written down; trying again");
        }
    }
}
