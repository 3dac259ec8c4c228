//! What a driver makes of a guest that another one left, at whatever instruction that was killed.
//!
//! | there is | and last was noted | so |
//! |---|---|---|
//! | `suspended/` | anything | the guest has not run since: a process of it is ended; suspended |
//! | a process | starting | it is told to run; running |
//! | a process | suspending | what was written is removed, it runs on if it ran |
//! | a process | restoring | its memory was used up: it runs on if it ran |
//! | a process | ended, crashed | the process is ended |
//! | a process | live | as QEMU says |
//! | no process | nothing | defined |
//! | no process | ended, crashed | that |
//! | no process | anything else | crashed, with the last that QEMU said |
//!
//! A process that does not answer is left alone, and dealt with as above as soon as it answers.

use super::folder::Phase;
use super::guest::Guest;
use super::launch::{connect, find};
use crate::{Operation, QmpError, State, files};

impl Guest {
    /// Finds out how the guest is.
    pub(super) async fn recover(&mut self) {
        let id = self.id();
        match find(id, &self.folder, &self.run).await {
            Ok(link) => self.link = link,
            Err(error) => {
                self.claim();
                self.unresponsive(error.to_string());
                return;
            }
        }
        if self.folder.is_suspended() {
            self.recover_suspended().await;
            return;
        }
        let Some(link) = &mut self.link else {
            self.recover_gone().await;
            return;
        };
        self.run.process = Some(link.process.id().clone());
        self.claim();
        match connect(&self.shared, id, &self.folder, self.shared.config.answer).await {
            Ok(client) => {
                if let Some(link) = &mut self.link {
                    link.client = Some(client);
                }
                self.settle_live().await;
            }
            Err(QmpError::Silent { .. }) | Err(QmpError::Garbage(_)) => {
                self.unresponsive("QEMU does not answer".to_owned());
            }
            // It may have ended in this moment.
            Err(error) => self.lost(error.to_string()).await,
        }
    }

    pub(super) fn claim(&self) {
        if let Err(error) = self.shared.claims.claim(&self.definition) {
            tracing::error!(guest = %self.id(), %error, "an image is used twice");
        }
    }

    async fn recover_suspended(&mut self) {
        self.claim();
        if self.put_down().await.is_err() {
            return;
        }
        self.clean().await;
        self.set(State::Suspended);
    }

    async fn recover_gone(&mut self) {
        self.clean().await;
        match self.run.phase {
            Phase::Defined | Phase::Ended(_) | Phase::Crashed { .. } => {}
            _ => {
                let log = files::last_lines(&self.folder.log());
                let said = if log.is_empty() { "nothing" } else { &log };
                let why = format!("it ended while no driver was there; QEMU said last: {said}");
                self.note_phase(Phase::Crashed { why });
            }
        }
        self.settle_off();
    }

    /// Deals with a guest that answers again, by what was noted last.
    pub(super) async fn settle_live(&mut self) {
        match self.run.phase.clone() {
            // A suspend, a stop or a crash whose process did not end in time.
            _ if self.folder.is_suspended() => return self.end_suspended().await,
            Phase::Ended(end) => return self.finish(end).await,
            Phase::Crashed { why } => return self.crash(why).await,
            Phase::Starting => self.run_on(Operation::Start, true).await,
            Phase::Suspending { ran } => {
                self.clean().await;
                self.run_on(Operation::Suspend, ran).await;
            }
            Phase::Restoring { ran } => {
                self.clean().await;
                self.run_on(Operation::Restore, ran).await;
            }
            Phase::Live | Phase::Defined => {}
        }
        // What it was before is not known any more.
        self.set(State::Paused);
        self.refresh().await;
        if self.state().is_live() && !matches!(self.state(), State::Unresponsive { .. }) {
            self.note_phase(Phase::Live);
        }
    }

    async fn run_on(&mut self, operation: Operation, ran: bool) {
        let done = match operation {
            Operation::Suspend => self.cancel_migration(ran).await,
            _ if ran => self.command(operation, "cont", None).await.map(drop),
            _ => Ok(()),
        };
        if let Err(error) = done {
            tracing::error!(guest = %self.id(), %error, "the guest does not run on");
        }
    }
}
