//! What callers have of the manager.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aerie_cluster_manager_proto::{
    Answer, Caller, ClusterStatus, Command, Core, DryRun, EventsPage, HostStatus, ManagerId, Now, Refusal,
    Request, Settings,
};
use aerie_cluster_proto::ledger::{Quota, RequestId, Subject};
use aerie_context_proto::{HostName, MemberName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Error;
use crate::contexts::ContextService;
use crate::journal::Journal;
use crate::link::{Console, HostLink};
use crate::task::{Input, Task};

/// Most inputs that wait for the task; whoever brings more waits.
const MAX_INPUTS: usize = 1024;

/// Where and how a manager works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its folder: the journal, and the lock that keeps a second manager out.
    pub dir: PathBuf,
    /// How it works. Whether there are contexts follows from whether there is a service for them.
    pub settings: Settings,
}

/// The time, since the manager was opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(pub(crate) Instant);

impl Clock {
    pub(crate) fn now(self) -> Now {
        Now {
            wall: SystemTime::now().into(),
            mono: self.0.elapsed(),
        }
    }

    /// When so much time has passed since the manager was opened.
    pub(crate) fn at(self, mono: Duration) -> Instant {
        self.0 + mono
    }
}

/// Who can be asked about hosts.
pub(crate) type Links = Arc<RwLock<BTreeMap<HostName, Arc<dyn HostLink>>>>;

/// A manager: a folder, and a task that ends with [`Manager::close`]. Dropping it ends the task too, at some time.
///
/// Every call may be made again where its answer was lost: a request by its id, an operation and an extension by what
/// they lead to.
pub struct Manager {
    inputs: mpsc::Sender<Input>,
    state: watch::Receiver<Arc<Core>>,
    links: Links,
    clock: Clock,
    task: JoinHandle<()>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").finish_non_exhaustive()
    }
}

impl Manager {
    /// Opens a folder, making it if it is not there, and goes on with what is in its journal.
    ///
    /// # Errors
    /// [`Error::InUse`] if another manager has it; [`Error::Damaged`] names the record.
    pub async fn open(config: Config, contexts: Option<Arc<dyn ContextService>>) -> Result<Self, Error> {
        let clock = Clock(Instant::now());
        let mut settings = config.settings;
        settings.contexts = contexts.is_some();
        let dir = config.dir;
        let opened = tokio::task::spawn_blocking(move || {
            let mut journal = Journal::open(&dir)?;
            let core = match journal.replay()? {
                Some(world) => Core::resume(world, settings, clock.now()),
                None => {
                    let mut core = Core::begin(manager_id()?, settings, clock.now());
                    journal.append(&core.take_records()?)?;
                    core
                }
            };
            Ok::<_, Error>((journal, core))
        });
        let (journal, core) = opened.await.map_err(|_| Error::Closed)??;
        let links = Links::default();
        let (inputs, received) = mpsc::channel(MAX_INPUTS);
        let (published, state) = watch::channel(Arc::new(core.clone()));
        let task = Task {
            core,
            journal,
            contexts,
            links: Arc::clone(&links),
            clock,
            published,
            inputs: received,
            outcomes: inputs.downgrade(),
            running: BTreeMap::new(),
            late: Vec::new(),
            failing: false,
        };
        let task = tokio::spawn(task.run());
        Ok(Self {
            inputs,
            state,
            links,
            clock,
            task,
        })
    }

    /// Ends the manager once what it is told is done. What runs on hosts runs on.
    pub async fn close(self) {
        drop(self.inputs);
        let _ = self.task.await;
    }

    /// There is somebody to ask about a host from now on. The host is asked, and takes members once it has answered.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub async fn connect(&self, host: HostName, link: Arc<dyn HostLink>) -> Result<(), Error> {
        self.set_link(&host, Some(&link));
        self.send(Input::Connected(host, link)).await
    }

    /// There is nobody to ask about a host any more. It is suspected, and then lost.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub async fn disconnect(&self, host: HostName) -> Result<(), Error> {
        self.set_link(&host, None);
        self.send(Input::Disconnected(host)).await
    }

    /// Asks for a cluster: finds its place and holds it. The deployment is then under way.
    ///
    /// # Errors
    /// [`Error::Refused`] with what is missing; [`Error::Database`] where nothing was done either.
    pub async fn request(&self, caller: &Caller, request: Request) -> Result<Answer, Error> {
        self.command(caller, Command::Request(Box::new(request))).await
    }

    /// Does what it is told. The answer comes when it is durable; what it leads to is under way then.
    ///
    /// # Errors
    /// [`Error::Refused`]; [`Error::Database`] where nothing was done either.
    pub async fn command(&self, caller: &Caller, command: Command) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        let caller = caller.clone();
        self.send(Input::Command(Box::new((caller, command)), reply))
            .await?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Other quotas apply from now on, to what is asked for then. They are part of the configuration: the journal does
    /// not keep them.
    ///
    /// # Errors
    /// [`Error::Closed`]
    pub async fn set_quotas(&self, quotas: Vec<(Subject, Quota)>) -> Result<(), Error> {
        self.send(Input::Quotas(quotas)).await
    }

    /// What would come of a request, as things are.
    ///
    /// # Errors
    /// [`Refusal`] with what is missing.
    pub fn dry_run(&self, caller: &Caller, request: &Request) -> Result<DryRun, Refusal> {
        self.state().dry_run(caller, request, self.clock.now())
    }

    /// How a cluster is, of those that live and the last that have ended.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn status(&self, caller: &Caller, id: &RequestId) -> Result<ClusterStatus, Refusal> {
        self.state().status(caller, id)
    }

    /// All clusters that live and that the caller may see, without their members.
    #[must_use]
    pub fn list(&self, caller: &Caller) -> Vec<ClusterStatus> {
        self.state().list(caller)
    }

    /// All hosts.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostStatus> {
        self.state().hosts()
    }

    /// Events from a number on that the caller may see. They outlive the manager's process.
    #[must_use]
    pub fn events(&self, caller: &Caller, from: u64) -> EventsPage {
        self.state().events(caller, from)
    }

    /// As [`Manager::events`]; where there are none yet, waits until there are some, or for this long.
    pub async fn next_events(&self, caller: &Caller, from: u64, wait: Duration) -> EventsPage {
        let mut state = self.state.clone();
        let until = Instant::now() + wait;
        let mut from = from;
        loop {
            let page = state.borrow_and_update().events(caller, from);
            if !page.events.is_empty() || page.missed {
                return page;
            }
            from = page.next;
            if page.more {
                continue;
            }
            match tokio::time::timeout_at(until, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return page,
            }
        }
    }

    /// Waits until a cluster is as is wished, or gives its last status after this long.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn wait(
        &self,
        caller: &Caller,
        id: &RequestId,
        wait: Duration,
        is_so: impl Fn(&ClusterStatus) -> bool,
    ) -> Result<ClusterStatus, Refusal> {
        let mut state = self.state.clone();
        let until = Instant::now() + wait;
        loop {
            let status = state.borrow_and_update().status(caller, id)?;
            if is_so(&status) {
                return Ok(status);
            }
            match tokio::time::timeout_at(until, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Ok(status),
            }
        }
    }

    /// What a member wrote to its console, from this byte on.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn console(
        &self,
        caller: &Caller,
        id: &RequestId,
        member: &MemberName,
        from: u64,
    ) -> Result<Console, Error> {
        let status = self.status(caller, id)?;
        let found = status.members.iter().find(|found| found.name == *member);
        let unknown = || Refusal::UnknownMember {
            cluster: id.clone(),
            member: member.clone(),
        };
        let found = found.ok_or_else(unknown)?;
        let link = self
            .links
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&found.host)
            .cloned();
        let link = link.ok_or_else(|| Error::NotConnected(found.host.clone()))?;
        Ok(link.console(found.guest, from).await?)
    }

    fn set_link(&self, host: &HostName, link: Option<&Arc<dyn HostLink>>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        match link {
            Some(link) => drop(links.insert(host.clone(), Arc::clone(link))),
            None => drop(links.remove(host)),
        }
    }

    /// The last state that is durable.
    fn state(&self) -> Arc<Core> {
        Arc::clone(&self.state.borrow())
    }

    async fn send(&self, input: Input) -> Result<(), Error> {
        self.inputs.send(input).await.map_err(|_| Error::Closed)
    }
}

fn manager_id() -> Result<ManagerId, Error> {
    let mut id = [0; 7];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| Error::Random)?;
    Ok(ManagerId(id))
}
