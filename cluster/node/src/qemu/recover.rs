//! What a driver makes of a guest that another one left, at whatever instruction that was killed.
//!
//! | there is | and last was noted | so |
//! |---|---|---|
//! | anything | what cannot be read | nothing is done; damaged ([`super::damaged`]) |
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
//! A process that does not answer is left alone, and dealt with as above as soon as it answers. One that is not there
//! any more when it is looked for again has ended meanwhile, which is told.

use super::folder::Phase;
use super::guest::Guest;
use super::images;
use super::launch::{connect, find};
use crate::{Kind, Operation, QmpError, State, files};

impl Guest {
    /// Finds out how the guest is.
    pub(super) async fn recover(&mut self) {
        let id = self.id();
        match find(id, &self.folder, &self.run).await {
            Ok(link) => self.link = link,
            Err(error) => {
                self.claim().await;
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
        self.claim().await;
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

    /// The guest has its images.
    pub(super) async fn claim(&mut self) {
        let (images, answered) = self.looks.identify(images::of(&self.definition)).await;
        // By their names alone they are not known under others.
        self.unseen = !answered;
        if let Err(error) = self.shared.claims.note(self.id(), images) {
            tracing::error!(guest = %self.id(), %error, "an image is used twice");
        }
    }

    async fn recover_suspended(&mut self) {
        if self.state().is_live() {
            // It was there, and could not be told apart.
            return self.end_suspended().await;
        }
        self.claim().await;
        if self.put_down().await.is_err() {
            return;
        }
        self.clean().await;
        self.set(State::Suspended);
    }

    async fn recover_gone(&mut self) {
        self.clean().await;
        let phase = self.run.phase.clone();
        if self.state().is_live() {
            // It was there, and could not be told apart.
            return match phase {
                Phase::Ended(end) => self.finish(end).await,
                Phase::Crashed { why } => self.crash(why).await,
                _ => self.crash(self.last_words("QEMU is gone")).await,
            };
        }
        match phase {
            Phase::Defined | Phase::Ended(_) | Phase::Crashed { .. } => {}
            _ => {
                let why = self.last_words("it ended while no driver was there");
                self.note_phase(Phase::Crashed { why }).await;
            }
        }
        self.settle_off();
    }

    fn last_words(&self, ended: &str) -> String {
        let log = files::last_lines(&self.folder.log());
        let said = if log.is_empty() { "nothing" } else { &log };
        format!("{ended}; QEMU said last: {said}")
    }

    /// Deals with a guest that answers again, by what was noted last.
    pub(super) async fn settle_live(&mut self) {
        if matches!(self.state(), State::Unresponsive { .. }) {
            self.tell(Kind::Responsive);
        }
        match self.run.phase.clone() {
            // A suspend, a stop or a crash whose process did not end in time.
            _ if self.folder.is_suspended() => return self.end_suspended().await,
            Phase::Ended(end) => return self.finish(end).await,
            Phase::Crashed { why } => return self.crash(why).await,
            Phase::Starting => self.run_on(Operation::Start, true).await,
            Phase::Suspending { ran } => self.run_on(Operation::Suspend, ran).await,
            Phase::Restoring { ran } => self.run_on(Operation::Restore, ran).await,
            Phase::Live | Phase::Defined => {}
        }
        // As it was when it was heard last, if it was: what has changed since is told.
        let heard = self.heard_as.clone();
        self.set(heard.clone().unwrap_or(State::Paused));
        self.heard_as = heard;
        self.refresh().await;
        if matches!(self.run.phase, Phase::Suspending { .. } | Phase::Restoring { .. }) {
            // Only now: a disk that hangs would have the guest stand still meanwhile.
            self.clean().await;
        }
        if self.state().is_live() && !matches!(self.state(), State::Unresponsive { .. }) {
            self.note_phase(Phase::Live).await;
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
