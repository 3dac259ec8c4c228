//! The ways in which a guest ends.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::folder::{Folder, Phase};
use super::guest::{Guest, Reply, Stopping};
use super::launch::find;
use super::off_thread;
use crate::driver::{admit, how_it_ended};
use crate::{End, Error, Kind, Operation, State};

/// The longest that a guest is waited for: a clock does not reach as far as a [`Duration`].
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a guest's folder may take to be removed: a large memory is given back piece by piece.
const REMOVE: Duration = Duration::from_secs(60);

impl Guest {
    pub(super) async fn stop(&mut self, grace: Duration, reply: Reply<End>) {
        self.refresh().await;
        let state = self.state();
        match admit(self.id(), &state, Operation::Stop) {
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
            Ok(false) => {
                let _ = reply.send(Ok(how_it_ended(&state)));
                return;
            }
            Ok(true) => {}
        }
        let until = Instant::now() + grace.min(LONGEST);
        match &mut self.stopping {
            Some(stopping) => {
                stopping.until = stopping.until.min(until);
                stopping.replies.push(reply);
            }
            None => {
                let replies = vec![reply];
                self.stopping = Some(Stopping { until, replies });
            }
        }
        self.busy(Some(Operation::Stop));
        if grace.is_zero() || matches!(state, State::Unresponsive { .. }) {
            self.force().await;
            return;
        }
        let mut told = Ok(());
        if state == State::Paused {
            // One that stands still hears nothing.
            told = self.go_on().await;
        }
        if told.is_ok() {
            told = self.press().await;
        }
        if let Err(error) = told {
            tracing::warn!(guest = %self.id(), %error, "cannot press the power button");
        }
    }

    /// Presses the power button.
    pub(super) async fn press(&mut self) -> Result<(), Error> {
        self.command(Operation::Stop, "system_powerdown", None)
            .await
            .map(drop)
    }

    /// Ends a guest whose time to end itself is over.
    pub(super) async fn force(&mut self) {
        self.finish(End::Forced).await;
    }

    /// The guest is to be off.
    pub(super) async fn finish(&mut self, end: End) {
        if self.folder.is_suspended() {
            return self.end_suspended().await;
        }
        self.note_phase(Phase::Ended(end)).await;
        crate::crash::point("stop: noted");
        let id = self.id();
        if let Err(error) = self.end().await {
            self.unresponsive(error.to_string());
            self.answer_stop(Err(error));
            return;
        }
        self.shared.claims.release(id);
        self.set(State::Stopped(end));
        self.tell(Kind::Stopped(end));
        self.answer_stop(Ok(end));
    }

    /// Ends the guest's process in good order, if there is one. If it does not end it is kept hold of.
    pub(super) async fn end(&mut self) -> Result<(), Error> {
        let id = self.id();
        if self.link.is_none() {
            // One that was not found before may be now.
            self.link = find(id, &self.folder, &self.run).await?;
        }
        if let Some(link) = &mut self.link
            && let Err(error) = link.end(id).await
        {
            self.let_go_of_another(&error);
            return Err(error);
        }
        self.link = None;
        self.run.process = None;
        Ok(())
    }

    /// The guest has ended otherwise, or is to.
    pub(super) async fn crash(&mut self, why: String) {
        if self.folder.is_suspended() {
            return self.end_suspended().await;
        }
        self.note_phase(Phase::Crashed { why: why.clone() }).await;
        if let Err(error) = self.put_down().await {
            self.answer_stop(Err(error));
            return;
        }
        self.shared.claims.release(self.id());
        self.set(State::Crashed { why: why.clone() });
        self.tell(Kind::Crashed(why.clone()));
        let id = self.id();
        self.answer_stop(Err(Error::Ended { id, why }));
    }

    /// A guest whose memory is in a file is suspended, however its process ends: it has not run since.
    pub(super) async fn end_suspended(&mut self) {
        if self.link.is_none() {
            // One that was not found before may be now.
            match find(self.id(), &self.folder, &self.run).await {
                Ok(link) => self.link = link,
                Err(error) => {
                    self.unresponsive(error.to_string());
                    self.answer_stop(Err(error));
                    return;
                }
            }
        }
        if let Err(error) = self.put_down().await {
            self.answer_stop(Err(error));
            return;
        }
        self.clean().await;
        self.claim().await;
        self.set(State::Suspended);
        self.tell(Kind::Suspended);
        let refused = admit(self.id(), &State::Suspended, Operation::Stop);
        self.answer_stop(refused.map(|_| End::Forced));
    }

    /// Answers those who wait for the guest's end. An error itself goes to the first.
    fn answer_stop(&mut self, answer: Result<End, Error>) {
        let Some(stopping) = self.stopping.take() else {
            return;
        };
        self.busy(None);
        let id = self.id();
        let why = self.state().to_string();
        let mut error = None;
        let end = answer.map_err(|said| error = Some(said));
        for reply in stopping.replies {
            let answer = end.map_err(|()| {
                error
                    .take()
                    .unwrap_or_else(|| Error::Ended { id, why: why.clone() })
            });
            let _ = reply.send(answer);
        }
    }

    /// Ends the guest's process at once, if there is one. If it does not end it is kept hold of.
    pub(super) async fn put_down(&mut self) -> Result<(), Error> {
        let id = self.id();
        if let Some(link) = &mut self.link
            && let Err(error) = link.kill(id).await
        {
            self.let_go_of_another(&error);
            self.unresponsive(error.to_string());
            return Err(error);
        }
        self.link = None;
        self.run.process = None;
        Ok(())
    }

    /// A process that is not the guest's any more is not kept hold of: the guest's own is looked for again.
    pub(super) fn let_go_of_another(&mut self, error: &Error) {
        if matches!(error, Error::Unidentified { .. }) {
            self.link = None;
            self.run.process = None;
        }
    }

    pub(super) async fn destroy(&mut self) -> Result<(), Error> {
        let id = self.id();
        if self.link.is_none() {
            // One that was not found before may be now.
            self.link = find(id, &self.folder, &self.run).await?;
        }
        self.put_down().await?;
        crate::crash::point("destroy: ended");
        if let Err(error) = remove(&self.folder).await {
            if self.state().is_live() {
                let why = format!("it was ended to be destroyed, and is still known: {error}");
                self.note_phase(Phase::Crashed { why }).await;
                self.settle_off();
            }
            if self.folder.is_suspended() {
                self.set(State::Suspended);
            } else {
                self.shared.claims.release(id);
            }
            // It is off, and its next life is not to be stopped.
            let why = self.state().to_string();
            self.answer_stop(Err(Error::Ended { id, why }));
            return Err(error);
        }
        self.answer_stop(Err(Error::Destroyed { id }));
        self.shared.forget(id);
        self.tell(Kind::Destroyed);
        Ok(())
    }
}

/// Removes a guest's folder.
pub(super) async fn remove(folder: &Folder) -> Result<(), Error> {
    let (folder, path) = (folder.clone(), folder.path().to_owned());
    timeout(REMOVE, off_thread(move || folder.remove()))
        .await
        .unwrap_or_else(|_| Err(Error::file("remove", &path)(ErrorKind::TimedOut.into())))
}
