//! `systemctl reload aerie`, or SIGHUP: what would be looked at again in a while is looked at now.
//!
//! - A daemon that has no configuration searches for one.
//! - HTCondor's configuration is written again where somebody changed it, and the pool is asked for this node.
//! - A configuration that differs from the one in force is told of. It is taken at the next start: which grid a
//!   daemon serves, and with which address, never changes under its feet.

use tokio::signal::unix::{SignalKind, signal};

use super::shared::Shared;
use super::{notify, source};
use crate::cli::UpArgs;

/// Reloads at each signal, for ever.
pub(crate) async fn on_signals(args: &UpArgs, shared: &Shared) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else {
        tracing::warn!("cannot wait for SIGHUP; this daemon is not reloaded, only restarted");
        return std::future::pending().await;
    };
    while hangups.recv().await.is_some() {
        notify::reloading();
        tracing::info!("told to look again");
        shared.ask_to_reload();
        if let Some(node) = shared.node() {
            source::compare(args, &node.spec).await;
        }
        notify::reloaded();
    }
    std::future::pending().await
}
