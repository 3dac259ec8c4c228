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
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::folder::{Folder, Hardware, Phase, Run};
use super::images::{Looks, Opened};
use super::launch::{Link, With, connect, launch};
use super::repeats::Repeats;
use super::{CONSOLE_KEPT, Shared, off_thread, probe};
use crate::driver::{admit, check_balloon};
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

/// That a guest is to be destroyed, as whatever is being done to it hears at once: for as long as somebody asks for it,
/// or the task has been asked and has not answered.
#[derive(Debug)]
pub(super) struct Abandon(watch::Sender<usize>);

impl Abandon {
    pub(super) fn new(wanted: &watch::Sender<usize>) -> Self {
        wanted.send_modify(|wanted| *wanted += 1);
        Self(wanted.clone())
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.send_modify(|wanted| *wanted -= 1);
    }
}

/// What a guest's task is asked.
#[derive(Debug)]
pub(super) enum Ask {
    Do(Operation, Reply<()>),
    Destroy(Abandon, Reply<()>),
    Stop(Duration, Reply<End>),
    Balloon(Mib, Reply<()>),
    Memory(Reply<Mib>),
}

/// A guest that was asked to switch itself off.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) until: Instant,
    pub(super) replies: Vec<Reply<End>>,
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
    pub(super) stopping: Option<Stopping>,
    /// Who removes the last memory that was used up.
    pub(super) removing: Option<JoinHandle<()>>,
    /// Had by whoever writes or removes a memory in the folder: however long a disk hangs, the next one waits.
    pub(super) memory: Arc<Semaphore>,
    /// Whoever looks at its images.
    pub(super) looks: Looks,
    /// Whether an image's file system has not said which file it is.
    pub(super) unseen: bool,
    /// Whether it ran or stood still when it was heard last.
    pub(super) heard_as: Option<State>,
    repeats: Repeats,
    status: watch::Sender<Status>,
    /// How many want it destroyed.
    pub(super) abandoned: watch::Receiver<usize>,
}

impl Guest {
    pub(super) fn new(
        shared: Arc<Shared>,
        definition: Arc<Definition>,
        folder: Folder,
        run: Run,
        abandoned: watch::Receiver<usize>,
    ) -> (Self, watch::Receiver<Status>) {
        let (status, watched) = watch::channel(Status {
            id: definition.id,
            name: definition.name.clone(),
            state: State::Defined,
            busy: None,
        });
        let guest = Self {
            memory: Arc::new(Semaphore::new(1)),
            looks: Looks::new(definition.id),
            unseen: false,
            heard_as: None,
            repeats: Repeats::default(),
            shared,
            definition,
            folder,
            run,
            link: None,
            stopping: None,
            removing: None,
            status,
            abandoned,
        };
        (guest, watched)
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

    pub(super) fn set(&mut self, state: State) {
        match state {
            State::Running | State::Paused => self.heard_as = Some(state.clone()),
            // It may be as it was.
            State::Unresponsive { .. } => {}
            _ => self.heard_as = None,
        }
        self.status.send_modify(|status| status.state = state);
    }

    pub(super) fn busy(&self, operation: Option<Operation>) {
        self.status.send_modify(|status| status.busy = operation);
    }

    pub(super) fn tell(&mut self, kind: Kind) {
        let left_out = match kind {
            // From here on it is another time.
            Kind::Started
            | Kind::Resumed
            | Kind::Stopped(_)
            | Kind::Crashed(_)
            | Kind::Suspended
            | Kind::Destroyed => self.repeats.all(),
            _ => Vec::new(),
        };
        for kind in left_out.into_iter().chain([kind]) {
            self.shared.tell(self.id(), kind);
        }
    }

    /// Tells what may happen in a loop: each time if it is seldom, and how often otherwise.
    fn tell_seldom(&mut self, kind: Kind) {
        if self.repeats.admit(&kind, Instant::now()) {
            self.tell(kind);
        }
    }

    pub(super) async fn write_phase(&mut self, phase: Phase) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.run.phase, phase);
        let (folder, run) = (self.folder.clone(), self.run.clone());
        let written = off_thread(move || folder.write_run(&run)).await;
        if written.is_err() {
            self.run.phase = before;
        }
        written
    }

    /// As [`Guest::write_phase`], of what has happened already: nobody is served by not going on.
    pub(super) async fn note_phase(&mut self, phase: Phase) {
        if let Err(error) = self.write_phase(phase.clone()).await {
            self.run.phase = phase;
            tracing::error!(guest = %self.id(), %error, "a restart of the driver will not know how the guest is");
        }
    }

    async fn ask(&mut self, ask: Ask) -> Flow {
        match ask {
            Ask::Destroy(abandon, reply) => {
                self.busy(Some(Operation::Destroy));
                let destroyed = self.destroy().await;
                self.busy(None);
                drop(abandon);
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
        if operation == Operation::Start && self.link.is_none() && self.folder.is_suspended() {
            // Whatever came in between: it must not run beside a memory that belongs to its disks as they are.
            self.claim().await;
            self.set(State::Suspended);
        }
        if !admit(self.id(), &self.state(), operation)? {
            return Ok(());
        }
        if operation == Operation::Suspend && self.stopping.is_some() {
            return Err(Error::Refused {
                id: self.id(),
                operation,
                state: self.state(),
                advice: "it is being stopped; wait until it has ended",
            });
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

    pub(super) async fn go_on(&mut self) -> Result<(), Error> {
        self.disown_memory().await?;
        self.command(Operation::Resume, "cont", None).await?;
        self.saw(RunState::Running).await;
        Ok(())
    }

    async fn start(&mut self) -> Result<(), Error> {
        let images = self.check_host().await?.files;
        let before = self.run.clone();
        let with = With {
            kind: self.shared.machine.kind.clone(),
            images,
            incoming: false,
        };
        let started = self.come_up(Phase::Starting, with).await;
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
            self.note_phase(self.run.phase.clone()).await;
            self.settle_off();
            self.shared.claims.release(self.id());
            return Err(error);
        }
        crate::crash::point("start: runs");
        self.note_phase(Phase::Live).await;
        self.set(State::Running);
        self.tell(Kind::Started);
        Ok(())
    }

    /// Whether the host can have the guest now, which then has its images: these, opened.
    pub(super) async fn check_host(&mut self) -> Result<Opened, Error> {
        let opened = self.looks.open(&self.definition).await?;
        let need = Mib(self.definition.memory.0.saturating_add(OVERHEAD.0));
        match probe::available_memory() {
            Some(available) if available < need => Err(Error::Memory {
                id: self.id(),
                need,
                available,
            }),
            _ => self.shared.claims.claim(self.id(), opened.images.clone()),
        }?;
        self.run.written = Some(opened.written());
        Ok(opened)
    }

    /// Starts QEMU; the guest stands still.
    pub(super) async fn come_up(&mut self, phase: Phase, with: With) -> Result<(), Error> {
        self.run.process = None;
        self.run.hardware = Some(Hardware {
            machine: with.kind.clone(),
            processor: self.shared.machine.processor(),
        });
        self.write_phase(phase).await?;
        crate::crash::point("launch: noted");
        let (shared, definition, folder) = (&self.shared, &self.definition, &self.folder);
        let launched = launch(shared, definition, folder, with, &mut self.link).await;
        // Written with what follows; until then `alive` says it.
        self.run.process = self.link.as_ref().map(|link| link.process.id().clone());
        launched
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
                    Event::Reset { by_guest: true } => self.tell_seldom(Kind::Reset),
                    Event::DiskError { device, stopped } => {
                        let path = self.image(&device);
                        self.tell_seldom(Kind::DiskFailed { path, stopped });
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
        let before = self.heard_as.clone();
        match seen {
            RunState::Running => {
                self.set(State::Running);
                if before == Some(State::Paused) {
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
                if before == Some(State::Running) {
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

    pub(super) fn unresponsive(&mut self, why: String) {
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
        for kind in self.repeats.due(Instant::now()) {
            self.tell(kind);
        }
        let logs = [
            (self.folder.console(), CONSOLE_KEPT),
            (self.folder.log(), LOG_KEPT),
        ];
        let trim = move || {
            logs.iter()
                .try_for_each(|(log, kept)| files::trim(log, *kept).map_err(Error::file("shorten", log)))
        };
        if let Err(error) = off_thread(trim).await {
            tracing::warn!(guest = %self.id(), %error, "a log is not kept short");
        }
        if self.unseen && (self.state().is_live() || self.state() == State::Suspended) {
            self.claim().await;
        }
        if self.stopping.is_some() && self.state() == State::Running {
            let _ = self.press().await;
        }
        match &self.link {
            Some(Link { client: None, .. }) => self.reconnect().await,
            Some(_) => self.refresh().await,
            // It could not be found; it may be now.
            None if self.state().is_live() => self.recover().await,
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
        self.settle_live().await;
    }

    /// The state of a guest that has no process, from what was noted.
    pub(super) fn settle_off(&mut self) {
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
