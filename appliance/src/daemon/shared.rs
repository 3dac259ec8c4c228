//! What the daemon's tasks share: the stages, and the handles of the parts that are up.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use aerie_types::GridId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::node::Node;
use crate::status::{Stage, State, Tracker};

/// Shared by the reconcile loop, the control socket and the watchers.
pub(crate) struct Shared {
    started: Instant,
    tracker: Mutex<Tracker>,
    node: OnceLock<Arc<Node>>,
    grid: OnceLock<GridId>,
    leave: watch::Sender<bool>,
    /// Counts how often the daemon was told to look again.
    reloads: watch::Sender<u64>,
    /// The task that owns HTCondor.
    pool: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            tracker: Mutex::new(Tracker::new()),
            node: OnceLock::new(),
            grid: OnceLock::new(),
            leave: watch::Sender::new(false),
            reloads: watch::Sender::new(0),
            pool: Mutex::new(None),
        }
    }

    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        // A report is a plain value: one left by a panicked task is still the best that is known.
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a stage and logs it where it changed.
    pub(crate) fn stage(
        &self,
        stage: Stage,
        state: State,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let (reason, hint) = (reason.into(), hint.into());
        let changed = self
            .tracker()
            .set(stage, state, reason.clone(), hint.clone(), self.started.elapsed());
        if !changed {
            return;
        }
        let stage = stage.as_str();
        match state {
            State::Done | State::Off => tracing::info!(stage, "{reason}"),
            State::Waiting => tracing::info!(stage, hint, "waiting: {reason}"),
            State::Failed => tracing::warn!(stage, hint, "failed: {reason}"),
        }
    }

    pub(crate) fn done(&self, stage: Stage, reason: impl Into<String>) {
        self.stage(stage, State::Done, reason, "");
    }

    pub(crate) fn waiting(&self, stage: Stage, reason: impl Into<String>, hint: impl Into<String>) {
        self.stage(stage, State::Waiting, reason, hint);
    }

    pub(crate) fn failed(&self, stage: Stage, reason: impl Into<String>, hint: impl Into<String>) {
        self.stage(stage, State::Failed, reason, hint);
    }

    pub(crate) fn off(&self, stage: Stage, reason: impl Into<String>) {
        self.stage(stage, State::Off, reason, "");
    }

    pub(crate) fn with_tracker<T>(&self, read: impl FnOnce(&Tracker) -> T) -> T {
        read(&self.tracker())
    }

    /// The running node, once the overlay is up.
    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.node.get()
    }

    /// Publishes the running node; there is one in a daemon's life.
    pub(crate) fn set_node(&self, node: Arc<Node>) {
        self.node.get_or_init(|| node);
    }

    /// The grid that this daemon serves, once it has a configuration.
    pub(crate) fn grid(&self) -> Option<GridId> {
        self.grid.get().copied()
    }

    /// Publishes the grid; there is one in a daemon's life.
    pub(crate) fn set_grid(&self, grid: GridId) {
        self.grid.get_or_init(|| grid);
    }

    pub(crate) fn set_pool(&self, task: JoinHandle<()>) {
        self.pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(task);
    }

    /// The task that owns HTCondor, to be waited for.
    pub(crate) fn take_pool(&self) -> Option<JoinHandle<()>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn ask_to_leave(&self) {
        self.leave.send_replace(true);
    }

    /// Wakes what looks at the world outside the daemon.
    pub(crate) fn ask_to_reload(&self) {
        self.reloads.send_modify(|count| *count += 1);
    }

    /// Changes whenever the daemon is told to look again.
    pub(crate) fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.subscribe()
    }

    /// Completes when somebody asked the daemon to leave its grid.
    pub(crate) async fn leave_asked(&self) {
        // The sender lives as long as `self`, so that waiting cannot fail.
        let _ = self.leave.subscribe().wait_for(|asked| *asked).await;
    }

    pub(crate) fn is_leaving(&self) -> bool {
        *self.leave.borrow()
    }
}
