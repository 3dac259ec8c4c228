//! The enrolment service: HTTPS in front of a [`Portal`].
//!
//! It shows the chain [its certificate, the grid's CA], so that a client that knows only the CA's hash finds the CA
//! in the handshake. Its certificate is issued afresh at each start, and again when two thirds of its life are
//! over; its key exists in memory only.
//!
//! Every connection has a deadline for all that happens on it, an address has a limited number of connections and
//! of requests, and a request is small. What a request decides is decided by [`Portal`] in one transaction, on a
//! thread that may block.

mod guard;
mod handlers;
mod rate;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use aerie_types::WallMillis;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsAcceptor;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::{Error, Portal};
use guard::Guard;
use handlers::State;
use tls::Keeper;

/// How often the age of the server's certificate is looked at. Short against its life, long against the work.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(10 * 60);

/// How long a shutdown waits for answers that are under way.
const SHUTDOWN: Duration = Duration::from_secs(5);

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
    /// The DNS names and IP addresses by which nodes reach the server; the certificate is for these.
    pub names: Vec<String>,
    /// How long a server certificate lives.
    pub certificate_lifetime: Duration,
    /// The clock by which tokens and credentials are judged.
    pub clock: Clock,
}

impl ServeConfig {
    /// The usual values: certificates of 90 days, the machine's clock.
    #[must_use]
    pub fn new(listen: SocketAddr, names: Vec<String>) -> Self {
        Self {
            listen,
            names,
            certificate_lifetime: Duration::from_secs(90 * 24 * 3600),
            clock: system_clock(),
        }
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    local_addr: SocketAddr,
    handle: Handle<SocketAddr>,
    requests: Arc<AtomicU64>,
    serving: JoinHandle<std::io::Result<()>>,
    renewing: JoinHandle<()>,
}

impl Server {
    /// Listens, and serves in the background.
    ///
    /// # Errors
    /// [`Error::Listen`] if the address is taken, or what issuing the server's certificate gives.
    pub async fn start(portal: Arc<Portal>, config: ServeConfig) -> Result<Self, Error> {
        let listen_error = |source| Error::Listen {
            addr: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let local_addr = listener.local_addr().map_err(listen_error)?;
        let keeper = Keeper::new(
            Arc::clone(&portal),
            config.names,
            config.certificate_lifetime,
            (config.clock)(),
        )?;
        let requests = Arc::new(AtomicU64::new(0));
        let state = State::new(portal, Arc::clone(&config.clock), Arc::clone(&requests));
        let app = handlers::router(state).into_make_service_with_connect_info::<SocketAddr>();
        let acceptor = RustlsAcceptor::new(keeper.config()).acceptor(Guard::new());
        let handle = Handle::new();
        let mut server = axum_server::Server::<SocketAddr>::from_listener(listener)
            .handle(handle.clone())
            .http1_only()
            .acceptor(acceptor);
        // A node asks once; a connection kept open would only wait for its deadline.
        server.http_builder().http1().keep_alive(false);
        let serving = tokio::spawn(server.serve(app));
        let renewing = tokio::spawn(keep_certificate(keeper, config.clock));
        tracing::info!(%local_addr, "enrolment service is listening");
        Ok(Self {
            local_addr,
            handle,
            requests,
            serving,
            renewing,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many requests reached the application: those whose sender accepted the server's certificate.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
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
            Ok(Err(error)) => tracing::error!(%error, "enrolment service ended"),
            Err(error) => tracing::error!(%error, "enrolment service failed"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.renewing.abort();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

async fn keep_certificate(keeper: Keeper, clock: Clock) {
    let keeper = Arc::new(keeper);
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        let (keeper, now) = (Arc::clone(&keeper), clock());
        match tokio::task::spawn_blocking(move || keeper.refresh(now)).await {
            Ok(Ok(true)) => tracing::info!("server certificate re-issued"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::error!(%error, "server certificate not re-issued; trying again"),
            Err(error) => tracing::error!(%error, "server certificate not re-issued; trying again"),
        }
    }
}
