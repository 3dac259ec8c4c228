//! The task of one guest. It alone changes the guest.
//!
//! It does one thing after the other, in the order that they come: what it is asked, what QEMU says, the end of the
//! process, the end of a guest's time to stop, and a look every some seconds. What it believes of a guest's state is
//! QEMU's own run state, asked for before each operation and after each event; events are hints.
//!
//! An operation that changes what a restart would find writes that to `run.json` before it does it. Pausing and
//! resuming change nothing there: QEMU itself knows.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::folder::{Folder, Hardware, Phase, Run};
use super::launch::{Link, connect, launch};
use super::memory::{self, Failure};
use super::{CONSOLE_KEPT, Shared, images};
use crate::driver::{admit, check_balloon, how_it_ended};
use crate::qmp::{Event, RunState};
use crate::{Definition, End, Error, GuestId, Kind, Mib, Operation, QmpError, State, Status, files};

/// How often a guest is looked at that does nothing: whether it answers, and how long its logs are. A guest that stops
/// is told again, since one that just starts does not hear its power button.
const TICK: Duration = Duration::from_secs(5);

/// How long an unresponsive guest may take to answer when it is looked at; it is looked at again.
const GLANCE: Duration = Duration::from_millis(500);

/// How long a process may live on whose connection has ended.
const LAST_BREATH: Duration = Duration::from_secs(2);

/// How much memory QEMU takes besides the guest's.
const OVERHEAD: Mib = Mib(32);

/// How much of QEMU's own log is kept in bytes.
const LOG_KEPT: u64 = 1 << 20;

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a guest's task is asked.
#[derive(Debug)]
pub(super) enum Ask {
    Do(Operation, Reply<()>),
    Stop(Duration, Reply<End>),
    Balloon(Mib, Reply<()>),
    Memory(Reply<Mib>),
}

/// A guest that was asked to switch itself off.
#[derive(Debug)]
struct Stopping {
    until: Instant,
    replies: Vec<Reply<End>>,
}

/// Whether the task goes on.
#[derive(Debug, PartialEq, Eq)]
enum Flow {
    On,
    End,
}

/// What was heard of a QEMU.
enum Heard {
    Event(Event),
    Lost(QmpError),
    Ended,
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) shared: Arc<Shared>,
    pub(super) definition: Arc<Definition>,
    pub(super) folder: Folder,
    pub(super) run: Run,
    /// The guest's QEMU. `None` if there is none, or none can be found.
    pub(super) link: Option<Link>,
    stopping: Option<Stopping>,
    status: watch::Sender<Status>,
    abandoned: watch::Receiver<bool>,
}

impl Guest {
    pub(super) fn new(
        shared: Arc<Shared>,
        definition: Arc<Definition>,
        folder: Folder,
        abandoned: watch::Receiver<bool>,
    ) -> Result<(Self, watch::Receiver<Status>), Error> {
        let (status, watched) = watch::channel(Status {
            id: definition.id,
            name: definition.name.clone(),
            state: State::Defined,
            busy: None,
        });
        let run = folder.read_run()?;
        let guest = Self {
            shared,
            definition,
            folder,
            run,
            link: None,
            stopping: None,
            status,
            abandoned,
        };
        Ok((guest, watched))
    }

    /// Does what it is asked until nobody is left to ask.
    pub(super) async fn serve(mut self, mut asked: mpsc::Receiver<Ask>, ready: oneshot::Sender<()>) {
        self.recover().await;
        let _ = ready.send(());
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once.
        tick.tick().await;
        loop {
            tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => if self.ask(ask).await == Flow::End { return },
                    None => return,
                },
                heard = hear(&mut self.link) => self.heard(heard).await,
                () = grace(&self.stopping) => self.force().await,
                _ = tick.tick() => self.look().await,
            }
        }
    }

    pub(super) fn id(&self) -> GuestId {
        self.definition.id
    }

    pub(super) fn state(&self) -> State {
        self.status.borrow().state.clone()
    }

    pub(super) fn set(&self, state: State) {
        self.status.send_modify(|status| status.state = state);
    }

    fn busy(&self, operation: Option<Operation>) {
        self.status.send_modify(|status| status.busy = operation);
    }

    fn tell(&self, kind: Kind) {
        self.shared.tell(self.id(), kind);
    }

    pub(super) fn write_phase(&mut self, phase: Phase) -> Result<(), Error> {
        self.run.phase = phase;
        self.folder.write_run(&self.run)
    }

    /// As [`Guest::write_phase`], of what has happened already: nobody is served by not going on.
    pub(super) fn note_phase(&mut self, phase: Phase) {
        if let Err(error) = self.write_phase(phase) {
            tracing::error!(guest = %self.id(), %error, "a restart of the driver will not know how the guest is");
        }
    }

    async fn ask(&mut self, ask: Ask) -> Flow {
        match ask {
            Ask::Do(Operation::Destroy, reply) => {
                self.busy(Some(Operation::Destroy));
                let destroyed = self.destroy().await;
                self.busy(None);
                let flow = if destroyed.is_ok() { Flow::End } else { Flow::On };
                let _ = reply.send(destroyed);
                return flow;
            }
            Ask::Do(operation, reply) => {
                let done = self.perform(operation).await;
                let _ = reply.send(done);
            }
            Ask::Stop(grace, reply) => self.stop(grace, reply).await,
            Ask::Balloon(memory, reply) => {
                let done = match check_balloon(self.id(), &self.definition, memory) {
                    Ok(()) => self.set_memory(memory).await,
                    Err(error) => Err(error),
                };
                let _ = reply.send(done);
            }
            Ask::Memory(reply) => {
                let memory = self.get_memory().await;
                let _ = reply.send(memory);
            }
        }
        Flow::On
    }

    async fn perform(&mut self, operation: Operation) -> Result<(), Error> {
        self.refresh().await;
        if !admit(self.id(), &self.state(), operation)? {
            return Ok(());
        }
        let before = self.status.borrow().busy;
        self.busy(Some(operation));
        let done = match operation {
            Operation::Start => self.start().await,
            Operation::Pause => self.halt().await,
            Operation::Resume => self.go_on().await,
            Operation::Suspend => self.suspend().await,
            Operation::Restore => self.restore().await,
            // They have more to say, and come by other ways.
            Operation::Stop | Operation::Balloon | Operation::Destroy => Ok(()),
        };
        self.busy(before);
        done
    }

    /// Gives a command to the guest's QEMU.
    pub(super) async fn command(
        &mut self,
        operation: Operation,
        command: &'static str,
        arguments: Option<serde_json::Value>,
    ) -> Result<serde_json::Value, Error> {
        let id = self.id();
        let answer = match self.link.as_mut().and_then(|link| link.client.as_mut()) {
            Some(client) => client.run(command, arguments).await,
            None => Err(QmpError::Garbage("there is no connection")),
        };
        match answer {
            Ok(value) => Ok(value),
            Err(source) => {
                if source.is_silence() {
                    self.lost(source.to_string()).await;
                }
                Err(Error::Monitor {
                    id,
                    operation,
                    source,
                })
            }
        }
    }

    async fn halt(&mut self) -> Result<(), Error> {
        self.command(Operation::Pause, "stop", None).await?;
        self.saw(RunState::Paused).await;
        Ok(())
    }

    async fn go_on(&mut self) -> Result<(), Error> {
        self.command(Operation::Resume, "cont", None).await?;
        self.saw(RunState::Running).await;
        Ok(())
    }

    async fn start(&mut self) -> Result<(), Error> {
        self.check_host()?;
        self.shared.claims.claim(&self.definition)?;
        let before = self.run.clone();
        let kind = self.shared.machine.kind.clone();
        let started = self.come_up(Phase::Starting, &kind, false).await;
        let started = match started {
            Ok(()) => {
                crate::crash::point("start: up");
                self.command(Operation::Start, "cont", None).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            self.put_down().await?;
            self.run = before;
            self.note_phase(self.run.phase.clone());
            self.settle_off();
            self.shared.claims.release(self.id());
            return Err(error);
        }
        crate::crash::point("start: runs");
        self.note_phase(Phase::Live);
        self.set(State::Running);
        self.tell(Kind::Started);
        Ok(())
    }

    /// Whether the host can have the guest now.
    fn check_host(&self) -> Result<(), Error> {
        images::check(&self.definition)?;
        let need = Mib(self.definition.memory.0.saturating_add(OVERHEAD.0));
        match available_memory() {
            Some(available) if available < need => Err(Error::Memory {
                id: self.id(),
                need,
                available,
            }),
            _ => Ok(()),
        }
    }

    /// Starts QEMU; the guest stands still.
    async fn come_up(&mut self, phase: Phase, kind: &str, incoming: bool) -> Result<(), Error> {
        self.run.process = None;
        self.run.hardware = Some(Hardware {
            machine: kind.to_owned(),
            processor: self.shared.machine.processor(),
        });
        self.write_phase(phase)?;
        crate::crash::point("launch: noted");
        let link = launch(&self.shared, &self.definition, &self.folder, kind, incoming).await?;
        // Written with what follows; until then `alive` says it.
        self.run.process = Some(link.process.id().clone());
        self.link = Some(link);
        Ok(())
    }

    async fn suspend(&mut self) -> Result<(), Error> {
        let id = self.id();
        let ran = self.state() == State::Running;
        self.write_phase(Phase::Suspending { ran })?;
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
        let client = self
            .link
            .as_mut()
            .and_then(|link| link.client.as_mut())
            .ok_or_else(lost)?;
        let hardware = self.run.hardware.clone().ok_or_else(lost)?;
        if ran {
            client.run("stop", None).await?;
        }
        crate::crash::point("suspend: stopped");
        let (bytes, disks) = memory::write(
            client,
            &self.shared,
            &self.definition,
            &self.folder,
            &mut self.abandoned,
        )
        .await?;
        let manifest = super::folder::Manifest::new(hardware, bytes, ran, disks);
        self.folder
            .commit_suspended(&manifest)
            .map_err(|error| Failure::Why(error.to_string()))
    }

    /// Lets the guest be as it was before it was to be suspended.
    async fn give_up_suspending(&mut self, ran: bool, failure: Failure) -> Error {
        let id = self.id();
        if let Err(error) = self.folder.clean() {
            tracing::error!(guest = %id, %error, "a part of a memory was not removed");
        }
        if matches!(failure, Failure::Abandoned) {
            return Error::Destroyed { id };
        }
        let connected = match &failure {
            Failure::Monitor(error) => !error.is_silence(),
            _ => true,
        };
        if !connected {
            self.lost(failure.to_string()).await;
        } else {
            if let Err(error) = self.cancel_migration(ran).await {
                return error;
            }
            self.refresh().await;
            if self.state().is_live() {
                self.note_phase(Phase::Live);
            }
        }
        if let State::Crashed { why } = self.state() {
            return Error::Ended { id, why };
        }
        Error::Suspend {
            id,
            why: failure.to_string(),
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

    async fn restore(&mut self) -> Result<(), Error> {
        let id = self.id();
        let cannot = |why: String| Error::Restore { id, why };
        let manifest = self.folder.manifest()?;
        let (hardware, now) = (&manifest.hardware, &self.shared.machine);
        if hardware.processor != now.processor() {
            return Err(cannot(format!(
                "its processor was '{}', and here is '{}'; restore it on a host like the first",
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
        self.check_host()?;
        self.shared.claims.claim(&self.definition)?;
        let disks = images::stamps(&self.definition).map_err(|error| cannot(error.to_string()))?;
        if let Some(path) = images::changed(&manifest.disks, &disks) {
            return Err(cannot(format!(
                "{} was changed since it was suspended, and its memory does not fit any more; put the image of then \
                 back, or destroy the guest",
                path.display()
            )));
        }
        let ran = manifest.ran;
        let restored = self.read_memory(&manifest).await;
        if let Err(error) = restored {
            let said = match self.link {
                Some(_) => files::last_lines(&self.folder.log()),
                None => String::new(),
            };
            self.put_down().await?;
            return Err(match error {
                Failure::Abandoned => Error::Destroyed { id },
                error if said.is_empty() => cannot(error.to_string()),
                error => cannot(format!("{error}; QEMU said last: {said}")),
            });
        }
        crate::crash::point("restore: used up");
        self.set(State::Paused);
        if ran {
            self.command(Operation::Restore, "cont", None).await?;
            self.set(State::Running);
        }
        crate::crash::point("restore: runs");
        self.note_phase(Phase::Live);
        self.tell(Kind::Restored);
        if let Err(error) = self.folder.clean() {
            tracing::warn!(guest = %id, %error, "a memory that is used up was not removed");
        }
        Ok(())
    }

    async fn read_memory(&mut self, manifest: &super::folder::Manifest) -> Result<(), Failure> {
        let why = |error: Error| Failure::Why(error.to_string());
        self.come_up(
            Phase::Restoring { ran: manifest.ran },
            &manifest.hardware.machine,
            true,
        )
        .await
        .map_err(why)?;
        let client = self.link.as_mut().and_then(|link| link.client.as_mut());
        let client = client.ok_or_else(|| Failure::Why("there is no connection".to_owned()))?;
        memory::read(client, &self.folder, manifest, &mut self.abandoned).await?;
        crate::crash::point("restore: read");
        // From here on the guest may run, and this memory never again.
        self.folder.use_up_suspended().map_err(why)
    }

    async fn stop(&mut self, grace: Duration, reply: Reply<End>) {
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
        let until = Instant::now() + grace;
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
    async fn press(&mut self) -> Result<(), Error> {
        self.command(Operation::Stop, "system_powerdown", None)
            .await
            .map(drop)
    }

    /// Ends a guest whose time to end itself is over.
    async fn force(&mut self) {
        self.finish(End::Forced).await;
    }

    /// The guest is to be off.
    pub(super) async fn finish(&mut self, end: End) {
        self.note_phase(Phase::Ended(end));
        crate::crash::point("stop: noted");
        let id = self.id();
        if let Some(link) = &mut self.link
            && let Err(error) = link.end(id).await
        {
            self.unresponsive(error.to_string());
            self.answer_stop(Err(error));
            return;
        }
        self.link = None;
        self.shared.claims.release(id);
        self.set(State::Stopped(end));
        self.tell(Kind::Stopped(end));
        self.answer_stop(Ok(end));
    }

    /// The guest has ended otherwise, or is to.
    pub(super) async fn crash(&mut self, why: String) {
        self.note_phase(Phase::Crashed { why: why.clone() });
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
            self.unresponsive(error.to_string());
            return Err(error);
        }
        self.link = None;
        self.run.process = None;
        Ok(())
    }

    async fn destroy(&mut self) -> Result<(), Error> {
        let id = self.id();
        if self.link.is_none() {
            // One that was not found before may be now.
            self.link = super::launch::find(id, &self.folder, &self.run).await?;
        }
        self.put_down().await?;
        crate::crash::point("destroy: ended");
        self.folder.remove()?;
        self.shared.claims.release(id);
        self.shared.guests().remove(&id);
        self.answer_stop(Err(Error::Destroyed { id }));
        self.tell(Kind::Destroyed);
        Ok(())
    }

    async fn set_memory(&mut self, memory: Mib) -> Result<(), Error> {
        self.refresh().await;
        admit(self.id(), &self.state(), Operation::Balloon)?;
        let arguments = json!({ "value": memory.bytes() });
        self.command(Operation::Balloon, "balloon", Some(arguments))
            .await
            .map(drop)
    }

    async fn get_memory(&mut self) -> Result<Mib, Error> {
        self.refresh().await;
        admit(self.id(), &self.state(), Operation::Balloon)?;
        let said = self.command(Operation::Balloon, "query-balloon", None).await?;
        Ok(Mib::from_bytes(said["actual"].as_u64().unwrap_or(0)))
    }

    async fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Event(event) => {
                match event {
                    Event::Reset { by_guest: true } => self.tell(Kind::Reset),
                    Event::DiskError { device, stopped } => {
                        let path = self.image(&device);
                        self.tell(Kind::DiskFailed { path, stopped });
                    }
                    _ => {}
                }
                self.refresh().await;
            }
            Heard::Lost(error) => self.lost(error.to_string()).await,
            Heard::Ended => self.gone().await,
        }
    }

    /// The image that QEMU means.
    fn image(&self, node: &str) -> String {
        let disks = self.definition.disks.iter().enumerate();
        let mut named = disks.filter(|(number, _)| super::arguments::node_name(*number) == node);
        named
            .next()
            .map_or_else(|| node.to_owned(), |(_, disk)| disk.path.display().to_string())
    }

    /// Looks how the guest is.
    pub(super) async fn refresh(&mut self) {
        let Some(client) = self.link.as_mut().and_then(|link| link.client.as_mut()) else {
            return;
        };
        match client.run_state().await {
            Ok(state) => self.saw(state).await,
            Err(error) => self.lost(error.to_string()).await,
        }
    }

    async fn saw(&mut self, seen: RunState) {
        let before = self.state();
        match seen {
            RunState::Running => {
                self.set(State::Running);
                if before == State::Paused {
                    self.tell(Kind::Resumed);
                }
            }
            RunState::Shutdown => {
                let end = if self.stopping.is_some() {
                    End::Asked
                } else {
                    End::Itself
                };
                self.finish(end).await;
            }
            RunState::GuestPanicked => {
                self.tell(Kind::Panicked);
                self.crash("its kernel panicked".to_owned()).await;
            }
            RunState::InternalError => {
                let log = files::last_lines(&self.folder.log());
                self.crash(format!("QEMU cannot go on with it: {log}")).await;
            }
            RunState::Prelaunch
            | RunState::Inmigrate
            | RunState::Paused
            | RunState::Postmigrate
            | RunState::IoError => {
                self.set(State::Paused);
                if before == State::Running {
                    self.tell(Kind::Paused);
                }
            }
            RunState::Other => {}
        }
    }

    /// The connection is of no use any more.
    pub(super) async fn lost(&mut self, why: String) {
        let Some(link) = &mut self.link else {
            return;
        };
        link.client = None;
        if timeout(LAST_BREATH, link.process.ended()).await.is_ok() {
            self.gone().await;
            return;
        }
        self.unresponsive(why);
    }

    pub(super) fn unresponsive(&self, why: String) {
        if !matches!(self.state(), State::Unresponsive { .. }) {
            self.tell(Kind::Unresponsive(why.clone()));
        }
        self.set(State::Unresponsive { why });
    }

    /// The process has ended, and should not have.
    async fn gone(&mut self) {
        let Some(mut link) = self.link.take() else {
            return;
        };
        let why = link.obituary(&self.folder).await;
        self.crash(why).await;
    }

    async fn look(&mut self) {
        for (log, kept) in [
            (self.folder.console(), CONSOLE_KEPT),
            (self.folder.log(), LOG_KEPT),
        ] {
            if let Err(error) = files::trim(&log, kept) {
                tracing::warn!(log = %log.display(), %error, "a log is not kept short");
            }
        }
        if self.stopping.is_some() && self.state() == State::Running {
            let _ = self.press().await;
        }
        match &self.link {
            Some(Link { client: None, .. }) => self.reconnect().await,
            Some(_) => self.refresh().await,
            None => {}
        }
    }

    async fn reconnect(&mut self) {
        let id = self.id();
        let Ok(client) = connect(&self.shared, id, &self.folder, GLANCE).await else {
            return;
        };
        if let Some(link) = &mut self.link {
            link.client = Some(client);
        }
        self.tell(Kind::Responsive);
        self.settle_live().await;
    }

    /// The state of a guest that has no process, from what was noted.
    pub(super) fn settle_off(&self) {
        self.set(match &self.run.phase {
            Phase::Ended(end) => State::Stopped(*end),
            Phase::Crashed { why } => State::Crashed { why: why.clone() },
            _ => State::Defined,
        });
    }
}

/// Hears what comes next of a QEMU.
async fn hear(link: &mut Option<Link>) -> Heard {
    let Some(link) = link else {
        return std::future::pending().await;
    };
    let Some(client) = &mut link.client else {
        link.process.ended().await;
        return Heard::Ended;
    };
    tokio::select! {
        biased;
        event = client.event() => event.map_or_else(Heard::Lost, Heard::Event),
        () = link.process.ended() => Heard::Ended,
    }
}

async fn grace(stopping: &Option<Stopping>) {
    match stopping {
        Some(stopping) => sleep_until(stopping.until).await,
        None => std::future::pending().await,
    }
}

/// How much memory programs can have without others having to give theirs up (proc(5)).
fn available_memory() -> Option<Mib> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(Mib::from_bytes(kilobytes << 10))
}
