//! What the service manager is told: readiness, reloads, a line of status, and signs of life.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use super::shared::Shared;
use crate::status::State;

/// How often the status is told where no watchdog asks for more.
const EVERY: Duration = Duration::from_secs(5);

/// Tells systemd about this daemon for as long as it runs. Without systemd nothing is sent.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut every = EVERY;
    if let Some(watchdog) = sd_notify::watchdog_enabled() {
        every = every.min(watchdog / 2);
    }
    // The daemon serves as soon as it runs: a node that waits for its portal is not a failed start.
    tell(&[NotifyState::Ready]);
    loop {
        let line = status_line(&shared);
        tell(&[NotifyState::Status(&line), NotifyState::Watchdog]);
        tokio::time::sleep(every).await;
    }
}

/// Says that a reload has begun. The service manager waits for [`reloaded`] from now on.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock to tell the service manager of"),
    }
}

/// Says that a reload has ended.
pub(crate) fn reloaded() {
    tell(&[NotifyState::Ready]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

fn status_line(shared: &Shared) -> String {
    shared.with_tracker(|tracker| {
        tracker
            .reports()
            .into_iter()
            .find(|report| !matches!(report.state, State::Done | State::Off))
            .map_or_else(
                || "ready".to_owned(),
                |report| format!("{}: {}", report.stage.as_str(), report.reason),
            )
    })
}
