//! Errors of an edge in memory, as a kernel gives them: given on demand, and counted.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What makes an edge fail; its clones belong to the same edge.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    receive: Fault,
    send: Fault,
    failed_receives: usize,
}

/// So many calls fail with an error number.
#[derive(Debug, Default)]
struct Fault {
    errno: i32,
    count: usize,
}

impl Fault {
    fn check(&mut self) -> io::Result<()> {
        match self.count.checked_sub(1) {
            None => Ok(()),
            Some(rest) => {
                self.count = rest;
                Err(io::Error::from_raw_os_error(self.errno))
            }
        }
    }
}

impl Faults {
    /// So many reads fail with this error number; meanwhile the edge is ready, as one that has an error is.
    pub fn fail_receive(&self, errno: i32, count: usize) {
        self.state().receive = Fault { errno, count };
    }

    /// So many writes fail with this error number.
    pub fn fail_send(&self, errno: i32, count: usize) {
        self.state().send = Fault { errno, count };
    }

    /// How many reads have failed.
    #[must_use]
    pub fn failed_receives(&self) -> usize {
        self.state().failed_receives
    }

    /// Whether the next read fails. Others get their turn before the answer: who asks in a loop does not stop them.
    pub(super) async fn is_failing(&self) -> bool {
        let failing = self.state().receive.count > 0;
        if failing {
            tokio::task::yield_now().await;
        }
        failing
    }

    pub(super) fn receive(&self) -> io::Result<()> {
        let mut state = self.state();
        let result = state.receive.check();
        state.failed_receives += usize::from(result.is_err());
        result
    }

    pub(super) fn send(&self) -> io::Result<()> {
        self.state().send.check()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
