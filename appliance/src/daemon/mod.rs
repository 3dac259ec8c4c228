//! The daemon: brings a machine into its grid, stage by stage, and keeps it there.
//!
//! ```text
//!  source ─► host ─► certificate ─► overlay ─► address ─► tunnel ─► names ─► managers ─► pool
//!    │        │          │             │          │
//!    └────────┴──────────┴─────────────┴──────────┴── each waits for what it lacks, says so, and tries again
//! ```
//!
//! [`join::join`] walks the line once. What has to stay true afterwards is kept by a task each: credentials are renewed,
//! revocations applied, the lease renewed and the tunnel re-addressed, names learned, HTCondor reconfigured. When
//! the daemon ends, HTCondor and its jobs go on; `aerie leave` ends them and gives the address back.

mod address;
mod answer;
mod carry;
mod diagnose;
mod enrol;
mod host;
mod join;
mod known;
mod names;
mod node;
mod notify;
mod pool;
mod ports;
mod programs;
mod reload;
mod serve;
mod shared;
mod source;
mod trust;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::UpArgs;
use crate::error::Error;
use shared::Shared;

/// How long parts may take to end before the daemon ends anyway.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Runs until a signal, or until somebody asks the node to leave.
pub(crate) async fn run(args: UpArgs) -> Result<(), Error> {
    let shared = Arc::new(Shared::new());
    let watchdog = tokio::spawn(notify::keep(Arc::clone(&shared)));
    let ended = tokio::select! {
        ended = join::join(&args, &shared) => ended,
        () = reload::on_signals(&args, &shared) => Ok(()),
        () = stopped() => Ok(()),
    };
    watchdog.abort();
    if let Some(node) = shared.node()
        && tokio::time::timeout(SHUTDOWN, node.shutdown()).await.is_err()
    {
        tracing::warn!("parts of the node did not end in time");
    }
    ended
}

/// Completes when the daemon is told to stop.
async fn stopped() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("cannot wait for signals; only 'aerie leave' or SIGKILL ends this daemon");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop"),
        _ = interrupt.recv() => tracing::info!("interrupted"),
    }
}
