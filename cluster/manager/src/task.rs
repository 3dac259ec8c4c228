//! The one task that owns the core and the journal.
//!
//! In each turn: take what has come, up to a bound; on a thread that may block, give all of it to a copy of the core
//! and write the copy's records in one transaction; then put the copy in the core's place, publish it, answer, and
//! begin the effects. Several inputs thus share one write to the disk, which is why the time for a member does not
//! grow with the cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use aerie_cluster_manager_proto::{
    Answer, Caller, Command, Core, Effect, Entry, Failure, OpId, Outcome, Record, Refusal,
};
use aerie_cluster_proto::ledger::{Quota, Subject};
use aerie_context_proto::HostName;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

use crate::Error;
use crate::contexts::ContextService;
use crate::journal::Journal;
use crate::link::HostLink;
use crate::manager::{Clock, Links};

/// Most inputs that are taken in one turn: as many as a cluster of the largest size answers with.
const MAX_TURN: usize = 1024;

/// How long is waited after the disk refused, before what hosts answered is taken in again.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// Most inputs that are kept while the disk refuses; whoever has more to say waits. What is under way on hosts at a
/// time is less than this.
const MAX_LATE: usize = 64 * MAX_TURN;

/// What comes to the task.
pub(crate) enum Input {
    /// A command that the disk did not take, to be refused.
    Unwritten(oneshot::Sender<Result<Answer, Error>>),
    Command(Box<(Caller, Command)>, oneshot::Sender<Result<Answer, Error>>),
    Connected(HostName, Arc<dyn HostLink>),
    Disconnected(HostName),
    Quotas(Vec<(Subject, Quota)>),
    Changed(HostName),
    Outcome(OpId, Box<Outcome>),
}

/// Whom to give which answer once the records are durable.
type Replies = Vec<(oneshot::Sender<Result<Answer, Error>>, Result<Answer, Refusal>)>;

pub(crate) struct Task {
    pub(crate) core: Core,
    pub(crate) journal: Journal,
    pub(crate) contexts: Option<Arc<dyn ContextService>>,
    pub(crate) links: Links,
    pub(crate) clock: Clock,
    pub(crate) published: watch::Sender<Arc<Core>>,
    pub(crate) inputs: mpsc::Receiver<Input>,
    pub(crate) outcomes: mpsc::WeakSender<Input>,
    /// The effects under way.
    pub(crate) running: BTreeMap<OpId, AbortHandle>,
    /// What hosts answered while the disk refused.
    pub(crate) late: Vec<Input>,
    pub(crate) failing: bool,
}

/// What a turn came to.
enum Turn {
    Done(Box<Core>, Replies),
    /// The disk or the core refused: these did not happen.
    Refused(Vec<Input>, Error),
}

impl Task {
    pub(crate) async fn run(mut self) {
        let mut watchers: BTreeMap<HostName, JoinHandle<()>> = BTreeMap::new();
        let mut turn = Vec::new();
        loop {
            if self.failing {
                tokio::time::sleep(DISK_PAUSE).await;
                if !self.receive(&mut turn) {
                    break;
                }
            } else {
                let wake = self.core.next(self.clock.now());
                tokio::select! {
                    biased;
                    count = self.inputs.recv_many(&mut turn, MAX_TURN) => {
                        if count == 0 {
                            break;
                        }
                    }
                    () = tokio::time::sleep_until(self.clock.at(wake)) => {}
                }
            }
            for input in &turn {
                match input {
                    Input::Connected(host, link) => {
                        let watcher =
                            tokio::spawn(watch_host(host.clone(), Arc::clone(link), self.outcomes.clone()));
                        if let Some(before) = watchers.insert(host.clone(), watcher) {
                            before.abort();
                        }
                    }
                    Input::Disconnected(host) => {
                        if let Some(before) = watchers.remove(host) {
                            before.abort();
                        }
                    }
                    Input::Outcome(op, _) => drop(self.running.remove(op)),
                    _ => {}
                }
            }
            let mut inputs = std::mem::take(&mut self.late);
            inputs.append(&mut turn);
            match self.turn(inputs).await {
                Ok(task) => self = task,
                Err(running) => return end(watchers, running).await,
            }
        }
        end(watchers, self.running).await;
    }

    /// What has come meanwhile, as far as it can be kept. Whether there is anybody yet who may say something.
    fn receive(&mut self, turn: &mut Vec<Input>) -> bool {
        while turn.len() < MAX_TURN && self.late.len() + turn.len() < MAX_LATE {
            match self.inputs.try_recv() {
                Ok(input) => turn.push(input),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !turn.is_empty(),
            }
        }
        !turn.is_empty() || !self.inputs.is_closed()
    }

    /// One turn; or what is under way, where nothing can be decided any more.
    pub(crate) async fn turn(mut self, inputs: Vec<Input>) -> Result<Self, BTreeMap<OpId, AbortHandle>> {
        let clock = self.clock;
        let (mut core, mut journal) = (self.core.clone(), self.journal);
        let done = tokio::task::spawn_blocking(move || {
            let turn = write(core.clone(), &mut journal, inputs, clock);
            if let Turn::Done(next, _) = &turn {
                core = next.as_ref().clone();
            }
            (core, journal, turn)
        });
        let (core, journal, turn) = match done.await {
            Ok(done) => done,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(
                        "the manager has ended by a defect of its own, with nothing of its last turn done; report this \
                         with the manager's log, and open it again"
                    );
                }
                return Err(self.running);
            }
        };
        (self.core, self.journal) = (core, journal);
        match turn {
            Turn::Done(_, replies) => {
                self.failing = false;
                let effects = self.core.take_effects();
                self.published.send_replace(Arc::new(self.core.clone()));
                for (reply, answer) in replies {
                    // Whoever went away does not hear it.
                    let _ = reply.send(answer.map_err(Error::from));
                }
                for effect in effects {
                    self.begin(effect);
                }
            }
            Turn::Refused(inputs, error) => {
                if !self.failing {
                    tracing::error!(%error, "nothing is done until it can be written down");
                }
                self.failing = true;
                self.refuse(inputs, &error);
            }
        }
        Ok(self)
    }

    /// Commands did not happen, and say so. What hosts answered has happened, and is taken in again; where it is what the
    /// core cannot take in, it is dropped, and the hosts are asked anew.
    fn refuse(&mut self, inputs: Vec<Input>, error: &Error) {
        let mut reason = Some(match error {
            Error::Database { what, source } => Error::Database {
                what,
                source: rusqlite::Error::SqliteFailure(
                    source
                        .sqlite_error()
                        .copied()
                        .unwrap_or(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR)),
                    Some(source.to_string()),
                ),
            },
            Error::Defect(corrupt) => Error::Defect(corrupt.clone()),
            _ => Error::Closed,
        });
        let defect = matches!(error, Error::Defect(_));
        for input in inputs {
            match input {
                // It is asked anew in any case.
                Input::Changed(_) => {}
                Input::Outcome(..) if defect => {}
                Input::Connected(host, _) if defect => self.core.connect(host, self.clock.now()),
                Input::Disconnected(host) if defect => self.core.disconnect(&host),
                Input::Quotas(quotas) if defect => self.core.set_quotas(quotas),
                Input::Unwritten(reply) | Input::Command(_, reply) => {
                    let error = reason.take().unwrap_or(Error::Database {
                        what: "write a record",
                        source: rusqlite::Error::InvalidQuery,
                    });
                    let _ = reply.send(Err(error));
                }
                fact => self.late.push(fact),
            }
        }
        if defect {
            self.core.doubt(self.clock.now());
        }
    }

    fn link(&self, host: &HostName) -> Option<Arc<dyn HostLink>> {
        self.links
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(host)
            .cloned()
    }

    /// Carries an effect out, beside everything else. The core bounds how many there are.
    fn begin(&mut self, effect: Effect) {
        let nobody = |host: &HostName| Failure::unreachable(format!("host '{host}' is not connected"));
        let no_contexts = || Failure::refused("there is no context broker; configure one");
        match effect {
            Effect::Forget(op) => {
                if let Some(running) = self.running.remove(&op) {
                    running.abort();
                }
            }
            Effect::Ask { op, host } => {
                let link = self.link(&host);
                self.spawn(op, async move {
                    Outcome::Inventory(match link {
                        Some(link) => link.inventory().await,
                        None => Err(nobody(&host)),
                    })
                });
            }
            Effect::Perform { op, host, work } => {
                let link = self.link(&host);
                self.spawn(op, async move {
                    crate::crash::point("before a step");
                    let done = match link {
                        Some(link) => link.perform(work).await,
                        None => Err(nobody(&host)),
                    };
                    crate::crash::point("after a step");
                    Outcome::Performed(done)
                });
            }
            Effect::Deliver {
                op,
                host,
                guest,
                context,
                set,
                member,
            } => {
                let (link, contexts) = (self.link(&host), self.contexts.clone());
                self.spawn(op, async move {
                    let deliver = async {
                        let contexts = contexts.ok_or_else(no_contexts)?;
                        let user_data = contexts.user_data(context, set, member).await?;
                        let link = link.ok_or_else(|| nobody(&host))?;
                        link.deliver(guest, &user_data).await?;
                        Ok(None)
                    };
                    Outcome::Performed(deliver.await)
                });
            }
            Effect::MakeContext {
                op,
                context,
                document,
                absent,
            } => {
                let contexts = self.contexts.clone();
                self.spawn(op, async move {
                    Outcome::Context(match contexts {
                        Some(contexts) => contexts.create(context, *document, absent).await,
                        None => Err(no_contexts()),
                    })
                });
            }
            Effect::RemoveContext { op, context } => {
                let contexts = self.contexts.clone();
                self.spawn(op, async move {
                    Outcome::Context(match contexts {
                        Some(contexts) => contexts.remove(context).await,
                        // Whoever took the broker away took its contexts along.
                        None => Ok(()),
                    })
                });
            }
            Effect::Look { op, context } => {
                let contexts = self.contexts.clone();
                self.spawn(op, async move {
                    Outcome::Looked(match contexts {
                        Some(contexts) => contexts.reports(context).await,
                        None => Err(no_contexts()),
                    })
                });
            }
        }
    }

    fn spawn(&mut self, op: OpId, work: impl Future<Output = Outcome> + Send + 'static) {
        let outcomes = self.outcomes.clone();
        let task = tokio::spawn(async move {
            let outcome = Box::new(work.await);
            if let Some(outcomes) = outcomes.upgrade() {
                let _ = outcomes.send(Input::Outcome(op, outcome)).await;
            }
        });
        self.running.insert(op, task.abort_handle());
    }
}

/// Ends what is under way.
async fn end(watchers: BTreeMap<HostName, JoinHandle<()>>, running: BTreeMap<OpId, AbortHandle>) {
    for (_, watcher) in watchers {
        watcher.abort();
        let _ = watcher.await;
    }
    for (_, effect) in running {
        effect.abort();
    }
}

/// Gives inputs to a copy of the core and writes down what comes of them.
fn write(mut next: Core, journal: &mut Journal, inputs: Vec<Input>, clock: Clock) -> Turn {
    let now = clock.now();
    let mut replies = Replies::new();
    let mut kept = Vec::new();
    for input in inputs {
        match input {
            Input::Command(asked, reply) => {
                let (caller, command) = *asked;
                let answer = next.command(&caller, command, now);
                replies.push((reply, answer));
                continue;
            }
            Input::Unwritten(_) => {}
            Input::Connected(ref host, _) => next.connect(host.clone(), now),
            Input::Disconnected(ref host) => next.disconnect(host),
            Input::Quotas(ref quotas) => next.set_quotas(quotas.clone()),
            Input::Changed(ref host) => next.changed(host, now),
            Input::Outcome(op, ref outcome) => next.outcome(op, outcome.as_ref().clone(), now),
        }
        kept.push(input);
    }
    next.tick(now);
    next.settle(now);
    let written = next
        .take_records()
        .map_err(Error::from)
        .and_then(|records| journal.append(&records));
    if let Err(error) = written {
        // Those that were refused stay refused by their own reason.
        for (reply, answer) in replies {
            match answer {
                Err(refusal) => drop(reply.send(Err(refusal.into()))),
                Ok(_) => kept.push(Input::Unwritten(reply)),
            }
        }
        return Turn::Refused(kept, error);
    }
    if journal.is_long() {
        let record = Record::Snapshot(Box::new(next.world().snapshot()));
        let at = now.wall;
        if let Err(error) = journal.compact(&Entry { at, record }) {
            // The records themselves are kept; the next time will do.
            tracing::error!(%error, "a long journal was not shortened");
        }
    }
    Turn::Done(Box::new(next), replies)
}

/// Tells the task when something may have changed on a host.
async fn watch_host(host: HostName, link: Arc<dyn HostLink>, inputs: mpsc::WeakSender<Input>) {
    loop {
        link.changed().await;
        let Some(inputs) = inputs.upgrade() else {
            return;
        };
        if inputs.send(Input::Changed(host.clone())).await.is_err() {
            return;
        }
    }
}
