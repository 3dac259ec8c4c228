//! A guest's memory in a file, and back: the order in which either becomes true.
//!
//! Suspending writes the memory beside, and one rename makes it the guest's; only then is QEMU ended. Restoring takes
//! it away by one rename; only then does the guest run. So there is a `suspended/` exactly while the guest has not run
//! since, whenever the driver is killed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::arguments::named;
use super::folder::{Manifest, Phase};
use super::guest::Guest;
use super::images::{Opened, Stamp};
use super::launch::{With, names_a_lock};
use super::memory::{self, Failure};
use super::{images, off_thread};
use crate::qmp::RunState;
use crate::{Error, Kind, Operation, QmpError, State, files};

/// How long a memory waits for what is still done with an earlier one.
const TURN: Duration = Duration::from_secs(10);

/// How long a part of a memory may take to be removed.
const CLEAN: Duration = Duration::from_secs(60);

impl Guest {
    pub(super) async fn suspend(&mut self) -> Result<(), Error> {
        let id = self.id();
        let ran = self.state() == State::Running;
        self.write_phase(Phase::Suspending { ran }).await?;
        crate::crash::point("suspend: noted");
        let written = self.write_memory(ran).await;
        if let Err(failure) = written {
            return Err(self.give_up_suspending(ran, failure).await);
        }
        crate::crash::point("suspend: committed");
        // All is on the disk, and the guest's own disks are closed.
        let ended = match &mut self.link {
            Some(link) => link.end(id).await,
            None => Ok(()),
        };
        if let Err(error) = ended {
            self.let_go_of_another(&error);
            self.unresponsive(error.to_string());
            return Err(error);
        }
        self.link = None;
        self.run.process = None;
        self.set(State::Suspended);
        self.tell(Kind::Suspended);
        Ok(())
    }

    async fn write_memory(&mut self, ran: bool) -> Result<(), Failure> {
        let lost = || Failure::Why("there is no connection".to_owned());
        let unknown = || {
            Failure::Why(
                "it is not noted any more what machine it was started as; stop it instead".to_owned(),
            )
        };
        let client = self
            .link
            .as_mut()
            .and_then(|link| link.client.as_mut())
            .ok_or_else(lost)?;
        let hardware = self.run.hardware.clone().ok_or_else(unknown)?;
        match client.run_state().await? {
            RunState::Running => drop(client.run("stop", None).await?),
            // Its memory has been written once and was not wanted then. QEMU has let go of the disks and refuses to do so
            // again: it takes them back when the guest goes on, if only for a moment.
            RunState::Postmigrate => {
                client.run("cont", None).await?;
                client.run("stop", None).await?;
            }
            _ => {}
        }
        crate::crash::point("suspend: stopped");
        // It may have switched itself off just before.
        if matches!(
            client.run_state().await?,
            RunState::Shutdown | RunState::GuestPanicked | RunState::InternalError
        ) {
            return Err(Failure::Why("it has just ended".to_owned()));
        }
        let turn = timeout(TURN, Arc::clone(&self.memory).acquire_owned());
        let Ok(Ok(turn)) = memory::unless_given_up(&mut self.abandoned, turn).await? else {
            return Err(Failure::Why(
                "the disk still hangs that another memory was written to; look at it".to_owned(),
            ));
        };
        let bytes = memory::write(client, &self.shared, &self.folder, turn, &mut self.abandoned).await?;
        // QEMU writes the disks no more until it is told to go on.
        let settled = self.looks.settle(&self.definition, self.run.written.as_deref());
        let disks = memory::unless_given_up(&mut self.abandoned, settled)
            .await?
            .map_err(|error| Failure::Why(error.to_string()))?;
        let manifest = Manifest::new(hardware, bytes, ran, disks);
        let folder = self.folder.clone();
        // Not to be given up: a memory that became the guest's later would be one of another moment.
        off_thread(move || folder.commit_suspended(&manifest))
            .await
            .map_err(|error| Failure::Why(error.to_string()))
    }

    /// Lets the guest be as it was before it was to be suspended.
    async fn give_up_suspending(&mut self, ran: bool, failure: Failure) -> Error {
        let id = self.id();
        if matches!(failure, Failure::Abandoned) {
            // What was written goes with all else of it.
            return Error::Destroyed { id };
        }
        let gone_on = self.go_on_unsuspended(ran, &failure).await;
        // Only now: a disk that hangs would have the guest stand still meanwhile.
        self.clean().await;
        if let Err(error) = gone_on {
            return error;
        }
        if self.link.is_some()
            && self.state().is_live()
            && !matches!(self.state(), State::Unresponsive { .. })
        {
            self.note_phase(Phase::Live).await;
        }
        if let State::Crashed { why } = self.state() {
            return Error::Ended { id, why };
        }
        Error::Suspend {
            id,
            why: failure.to_string(),
        }
    }

    /// Has the guest run again if it ran, as far as it is still heard.
    async fn go_on_unsuspended(&mut self, ran: bool, failure: &Failure) -> Result<(), Error> {
        if matches!(failure, Failure::Monitor(error) if error.is_silence()) {
            self.lost(failure.to_string()).await;
            return Ok(());
        }
        if let Err(error) = self.disown_memory().await {
            // It must not run while there is a memory of it.
            self.refresh().await;
            return Err(error);
        }
        self.cancel_migration(ran).await?;
        self.refresh().await;
        Ok(())
    }

    /// A guest that is to run has no memory in a file: one whose folder got its name, and could not be made durable
    /// there, is not wanted.
    pub(super) async fn disown_memory(&self) -> Result<(), Error> {
        if !self.folder.is_suspended() {
            return Ok(());
        }
        let folder = self.folder.clone();
        off_thread(move || folder.use_up_suspended()).await
    }

    /// Removes what no memory is restored from. Where the disk hangs that is left to later.
    pub(super) async fn clean(&mut self) {
        let (shared, folder) = (Arc::clone(&self.shared), self.folder.clone());
        let memory = Arc::clone(&self.memory);
        let cleaned = timeout(CLEAN, async {
            let turn = memory.acquire_owned().await;
            memory::before_cleaning(&shared, &folder).await;
            off_thread(move || {
                let cleaned = folder.clean();
                drop(turn);
                cleaned
            })
            .await
        });
        match memory::unless_given_up(&mut self.abandoned, cleaned).await {
            Ok(Ok(Ok(()))) | Err(_) => {}
            Ok(Ok(Err(error))) => {
                tracing::warn!(guest = %self.id(), %error, "a part of a memory was not removed");
            }
            Ok(Err(_)) => {
                tracing::warn!(guest = %self.id(), "a part of a memory was not removed; its disk hangs");
            }
        }
    }

    /// Gives up a migration, and lets the guest run on if it ran.
    pub(super) async fn cancel_migration(&mut self, ran: bool) -> Result<(), Error> {
        if let Some(client) = self.link.as_mut().and_then(|link| link.client.as_mut())
            && let Err(source) = memory::cancel(client).await
        {
            self.lost(source.to_string()).await;
            return Err(Error::Monitor {
                id: self.id(),
                operation: Operation::Suspend,
                source,
            });
        }
        if ran {
            self.command(Operation::Suspend, "cont", None).await?;
        }
        Ok(())
    }

    pub(super) async fn restore(&mut self) -> Result<(), Error> {
        let id = self.id();
        let cannot = |why: String| Error::Restore { id, why };
        let folder = self.folder.clone();
        let manifest = off_thread(move || folder.manifest()).await?;
        let (hardware, now) = (&manifest.hardware, &self.shared.machine);
        if !now.fits(&hardware.processor) {
            return Err(cannot(format!(
                "its processor was '{}', and here is '{}'; restore it on a host like the first, with the same kernel",
                hardware.processor,
                now.processor()
            )));
        }
        if !now.has(&hardware.machine) {
            return Err(cannot(format!(
                "its machine was '{}', which the QEMU of this host does not have; install an earlier one",
                hardware.machine
            )));
        }
        let images = self.check_host().await?;
        if let Some(why) = does_not_fit(&manifest, &images.stamps) {
            return Err(cannot(why));
        }
        let ran = manifest.ran;
        let restored = self.read_memory(&manifest, images).await;
        if let Err(error) = restored {
            let said = match self.link {
                Some(_) => named(&files::last_lines(&self.folder.log()), &self.definition),
                None => String::new(),
            };
            self.put_down().await?;
            return Err(match error {
                Failure::Abandoned => Error::Destroyed { id },
                Failure::Locked => Error::ImageLocked { id, said },
                error if said.is_empty() => cannot(error.to_string()),
                error => cannot(format!("{error}; QEMU said last: {said}")),
            });
        }
        crate::crash::point("restore: used up");
        self.set(State::Paused);
        if ran {
            if let Err(error) = self.command(Operation::Restore, "cont", None).await {
                return Err(self.give_up_restoring(error).await);
            }
            self.set(State::Running);
        }
        crate::crash::point("restore: runs");
        self.note_phase(Phase::Live).await;
        self.tell(Kind::Restored);
        // It takes a while, for which nobody has to wait; what is not removed now is by the next driver.
        let folder = self.folder.clone();
        self.removing = Some(tokio::task::spawn_blocking(move || {
            let _ = folder.remove_used();
        }));
        Ok(())
    }

    /// The guest's memory was used up, and QEMU did not let the guest run.
    async fn give_up_restoring(&mut self, error: Error) -> Error {
        let id = self.id();
        // One that refused has run nothing. Of one that was not heard that is not known.
        let Error::Monitor {
            source: QmpError::Refused { .. },
            ..
        } = &error
        else {
            return error;
        };
        let folder = self.folder.clone();
        if let Err(kept) = off_thread(move || folder.give_back_used()).await {
            // It stands still, and can be resumed.
            tracing::error!(guest = %id, %kept, "a memory is not given back");
            self.note_phase(Phase::Live).await;
            return error;
        }
        let said = files::last_lines(&self.folder.log());
        if let Err(error) = self.put_down().await {
            return error;
        }
        self.set(State::Suspended);
        if names_a_lock(&said) || names_a_lock(&error.to_string()) {
            return Error::ImageLocked {
                id,
                said: error.to_string(),
            };
        }
        Error::Restore {
            id,
            why: error.to_string(),
        }
    }

    async fn read_memory(&mut self, manifest: &Manifest, images: Opened) -> Result<(), Failure> {
        let why = |error: Error| Failure::Why(error.to_string());
        let with = With {
            kind: manifest.hardware.machine.clone(),
            images: images.files.clone(),
            incoming: true,
        };
        self.come_up(Phase::Restoring { ran: manifest.ran }, with)
            .await
            .map_err(why)?;
        let client = self.link.as_mut().and_then(|link| link.client.as_mut());
        let client = client.ok_or_else(|| Failure::Why("there is no connection".to_owned()))?;
        memory::read(client, &self.folder, manifest, &mut self.abandoned).await?;
        crate::crash::point("restore: read");
        // QEMU takes the disks when all has arrived. Where it cannot it says so in its log, and all the same that it is
        // done; a guest that ran then hears it again as it is to run on. A QEMU that says it otherwise lets one that
        // stood still be restored, to be refused when it is resumed.
        if names_a_lock(&files::last_lines(&self.folder.log())) {
            return Err(Failure::Locked);
        }
        // Nobody had locked the images until then.
        let again = self.looks.again(&images);
        let again = memory::unless_given_up(&mut self.abandoned, again)
            .await?
            .map_err(why)?;
        if let Some(why) = does_not_fit(manifest, &again) {
            return Err(Failure::Why(why));
        }
        // What an earlier memory left would be taken for this one.
        if let Some(removing) = &mut self.removing {
            let _ = memory::unless_given_up(&mut self.abandoned, removing).await?;
        }
        self.removing = None;
        // From here on the guest may run, and this memory never again.
        let folder = self.folder.clone();
        off_thread(move || folder.use_up_suspended()).await.map_err(why)
    }
}

/// Why a memory does not fit the guest's images, if it does not.
fn does_not_fit(manifest: &Manifest, now: &[Stamp]) -> Option<String> {
    let path = images::changed(&manifest.disks, now)?;
    Some(format!(
        "{} was changed since it was suspended, and its memory does not fit any more; put the image of then back, or \
         destroy the guest",
        path.display()
    ))
}
