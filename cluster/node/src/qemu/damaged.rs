//! A guest of which what is kept cannot be read.
//!
//! The other guests of the host do not care. This one is left as it is: nothing is removed, and a QEMU of it runs on;
//! its images stay its own as far as they are known, since it may write them. All that can be done is to destroy it, or
//! to mend its files and to open the driver again.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::Shared;
use super::ending::remove;
use super::folder::{Damage, Folder};
use super::guest::Ask;
use super::images::Looks;
use super::launch::{Link, find};
use crate::driver::admit;
use crate::{Error, GuestId, GuestName, Kind, Operation, State, Status};

/// The task of a damaged guest.
#[derive(Debug)]
pub(super) struct Damaged {
    shared: Arc<Shared>,
    id: GuestId,
    folder: Folder,
    damage: Box<Damage>,
    /// Its QEMU, if one is found.
    link: Option<Link>,
    status: watch::Sender<Status>,
}

impl Damaged {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: GuestId,
        folder: Folder,
        damage: Box<Damage>,
    ) -> (Self, watch::Receiver<Status>) {
        let name = match &damage.definition {
            Some(definition) => definition.name.clone(),
            None => GuestName::from(id),
        };
        let state = State::Damaged {
            why: damage.why.clone(),
            live: false,
        };
        let busy = None;
        let (status, watched) = watch::channel(Status {
            id,
            name,
            state,
            busy,
        });
        let damaged = Self {
            shared,
            id,
            folder,
            damage,
            link: None,
            status,
        };
        (damaged, watched)
    }

    /// Refuses all but to be destroyed.
    pub(super) async fn serve(mut self, mut asked: mpsc::Receiver<Ask>, ready: oneshot::Sender<()>) {
        tracing::error!(guest = %self.id, why = %self.damage.why, "a guest is damaged and left as it is");
        self.claim().await;
        match self.find().await {
            Ok(()) => self.set(self.link.is_some(), None),
            // Something has it.
            Err(error) => self.set(true, Some(error)),
        }
        let _ = ready.send(());
        loop {
            tokio::select! {
                ask = asked.recv() => match ask {
                    Some(Ask::Destroy(abandon, reply)) => {
                        self.busy(Some(Operation::Destroy));
                        let destroyed = self.destroy().await;
                        self.busy(None);
                        drop(abandon);
                        let gone = destroyed.is_ok();
                        let _ = reply.send(destroyed);
                        if gone {
                            return;
                        }
                    }
                    Some(ask) => self.refuse(ask),
                    None => return,
                },
                () = ended(&self.link) => {
                    self.link = None;
                    self.set(false, None);
                }
            }
        }
    }

    async fn claim(&self) {
        let (images, _) = Looks::new(self.id).identify(self.damage.images.clone()).await;
        if let Err(error) = self.shared.claims.note(self.id, images) {
            tracing::error!(guest = %self.id, %error, "an image is used twice");
        }
    }

    async fn find(&mut self) -> Result<(), Error> {
        self.link = find(self.id, &self.folder, &self.damage.run).await?;
        Ok(())
    }

    fn set(&self, live: bool, besides: Option<Error>) {
        let mut why = self.damage.why.clone();
        if let Some(error) = besides {
            why = format!("{why}; {error}");
        }
        self.status
            .send_modify(|status| status.state = State::Damaged { why, live });
    }

    fn busy(&self, operation: Option<Operation>) {
        self.status.send_modify(|status| status.busy = operation);
    }

    fn refuse(&self, ask: Ask) {
        let state = self.status.borrow().state.clone();
        let refused = |operation| match admit(self.id, &state, operation) {
            Err(error) => error,
            Ok(_) => Error::Closed,
        };
        match ask {
            Ask::Do(operation, reply) => drop(reply.send(Err(refused(operation)))),
            Ask::Stop(_, reply) => drop(reply.send(Err(refused(Operation::Stop)))),
            Ask::Balloon(_, reply) => drop(reply.send(Err(refused(Operation::Balloon)))),
            Ask::Memory(reply) => drop(reply.send(Err(refused(Operation::Balloon)))),
            Ask::Destroy(_, reply) => drop(reply.send(Err(refused(Operation::Destroy)))),
        }
    }

    async fn destroy(&mut self) -> Result<(), Error> {
        if self.link.is_none() {
            // One that was not found before may be now.
            self.find().await?;
        }
        if let Some(link) = &mut self.link {
            link.kill(self.id).await?;
        }
        self.link = None;
        self.set(false, None);
        remove(&self.folder).await?;
        self.shared.forget(self.id);
        self.shared.tell(self.id, Kind::Destroyed);
        Ok(())
    }
}

async fn ended(link: &Option<Link>) {
    match link {
        Some(link) => link.process.ended().await,
        None => std::future::pending().await,
    }
}
