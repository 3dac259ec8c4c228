//! The task that owns the register.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aerie_dht_proto::{self as proto, Event, Found, Input, LeaseState, Output, Register, SendError, Time};
use aerie_types::{GridId, NodeName, PeerId, VirtualAddr, VirtualRange, WallMillis};
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::handle::{Handle, Status, Watched};
use crate::{Error, IdentityKeys, SqliteStore, Transport};

/// How many commands may wait; senders beyond wait themselves.
const COMMANDS: usize = 256;

/// How long the transport may take for one request; the register gives up at the same time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// How the register is started.
#[derive(Debug, Clone)]
pub struct Config {
    /// The grid.
    pub grid: GridId,
    /// The grid's range.
    pub range: VirtualRange,
    /// This node's name, as its credential has it.
    pub name: NodeName,
    /// An address that the node must have, instead of any.
    pub fixed: Option<VirtualAddr>,
    /// Whether the node founds the grid.
    pub founder: bool,
    /// The SQLite file.
    pub store_path: PathBuf,
}

type Reply<T> = oneshot::Sender<T>;

#[derive(Debug)]
pub(crate) enum Command {
    Serve {
        from: PeerId,
        bytes: Vec<u8>,
        reply: Reply<Vec<u8>>,
    },
    Gossip {
        from: PeerId,
        bytes: Vec<u8>,
    },
    MemberUp(PeerId),
    MemberDown(PeerId),
    Acquire(Reply<()>),
    LookUpAddr(VirtualAddr, Reply<Option<Found>>),
    LookUpName(NodeName, Reply<Option<Found>>),
    PublishSet {
        set: String,
        value: Vec<u8>,
        reply: Reply<Result<(), proto::Error>>,
    },
    WithdrawSet {
        set: String,
        reply: Reply<Result<(), proto::Error>>,
    },
    Refresh(String),
    ReleaseAll(Reply<()>),
    Status(Reply<Status>),
}

struct Driver {
    register: Register<SqliteStore>,
    transport: Arc<dyn Transport>,
    commands: mpsc::Receiver<Command>,
    lease: watch::Sender<LeaseState>,
    watched: Watched,
    /// Requests and searches under way; the register bounds how many.
    tasks: JoinSet<Input>,
    serving: BTreeMap<u64, Reply<Vec<u8>>>,
    looking: BTreeMap<u64, Reply<Option<Found>>>,
    leaving: Vec<Reply<()>>,
    next_request: u64,
}

pub(crate) fn start(
    config: Config,
    transport: Arc<dyn Transport>,
    keys: IdentityKeys,
) -> Result<Handle, Error> {
    let store = SqliteStore::open(&config.store_path)?;
    let core = proto::Config {
        grid: config.grid,
        me: keys.peer_id(),
        name: config.name,
        range: config.range,
        fixed: config.fixed,
        founder: config.founder,
    };
    let rng = Box::new(rand::make_rng::<StdRng>());
    let register = Register::new(core, Box::new(keys), store, rng, time())?;
    let (sender, commands) = mpsc::channel(COMMANDS);
    let (lease, lease_seen) = watch::channel(LeaseState::Idle);
    let watched = Watched::default();
    let driver = Driver {
        register,
        transport,
        commands,
        lease,
        watched: Arc::clone(&watched),
        tasks: JoinSet::new(),
        serving: BTreeMap::new(),
        looking: BTreeMap::new(),
        leaving: Vec::new(),
        next_request: 0,
    };
    tokio::spawn(driver.run());
    Ok(Handle {
        commands: sender,
        lease: lease_seen,
        watched,
    })
}

fn time() -> Time {
    Time {
        now: Instant::now(),
        wall: WallMillis::from(SystemTime::now()),
    }
}

impl Driver {
    async fn run(mut self) {
        loop {
            self.perform();
            let due = self.register.poll_timeout();
            let wake = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some(done) = self.tasks.join_next() => match done {
                    Ok(input) => self.register.handle(input, time()),
                    // The register's own time limit replaces the answer.
                    Err(error) => tracing::warn!(%error, "a request of the register was cut off"),
                },
                () = wake => self.register.handle_timeout(time()),
            }
        }
    }

    fn command(&mut self, command: Command) {
        let time = time();
        let register = &mut self.register;
        match command {
            Command::Serve { from, bytes, reply } => {
                self.next_request += 1;
                let id = self.next_request;
                self.serving.insert(id, reply);
                register.handle(Input::Request { from, id, bytes }, time);
            }
            Command::Gossip { from, bytes } => register.handle(Input::Gossip { from, bytes }, time),
            Command::MemberUp(peer) => register.handle(Input::MemberUp { peer }, time),
            Command::MemberDown(peer) => register.handle(Input::MemberDown { peer }, time),
            Command::Acquire(reply) => {
                register.acquire(time);
                answer(reply, ());
            }
            Command::LookUpAddr(addr, reply) => {
                let id = register.look_up_addr(addr, time);
                self.looking.insert(id, reply);
            }
            Command::LookUpName(name, reply) => {
                let id = register.look_up_name(&name, time);
                self.looking.insert(id, reply);
            }
            Command::PublishSet { set, value, reply } => {
                answer(reply, register.publish_set(&set, value, time))
            }
            Command::WithdrawSet { set, reply } => answer(reply, register.withdraw_set(&set, time)),
            Command::Refresh(set) => {
                register.refresh_set(&set, time);
                self.show_set(&set);
            }
            Command::ReleaseAll(reply) => {
                register.release_all(time);
                self.leaving.push(reply);
            }
            Command::Status(reply) => {
                let status = Status {
                    ready: register.is_ready(),
                    members_known: register.members_known(),
                    counters: register.counters(),
                };
                answer(reply, status);
            }
        }
    }

    /// Does all that the register wants done.
    fn perform(&mut self) {
        while let Some(output) = self.register.poll_output() {
            match output {
                Output::Answer { id, bytes } => {
                    if let Some(reply) = self.serving.remove(&id) {
                        answer(reply, bytes);
                    }
                }
                Output::Send { to, id, bytes } => {
                    let transport = Arc::clone(&self.transport);
                    self.tasks.spawn(async move {
                        let answer =
                            tokio::time::timeout(REQUEST_TIMEOUT, transport.request(to, bytes)).await;
                        let result = match answer {
                            Ok(Ok(bytes)) => Ok(bytes),
                            Ok(Err(error)) => {
                                tracing::debug!(%to, %error, "a register's request failed");
                                Err(SendError)
                            }
                            Err(_) => Err(SendError),
                        };
                        Input::Reply { id, result }
                    });
                }
                Output::Locate { query, key } => {
                    let transport = Arc::clone(&self.transport);
                    self.tasks.spawn(async move {
                        let found = tokio::time::timeout(REQUEST_TIMEOUT, transport.closest(key)).await;
                        Input::Located {
                            query,
                            peers: found.unwrap_or_default(),
                        }
                    });
                }
                Output::Gossip(bytes) => self.transport.publish(bytes),
                Output::Event(event) => self.event(event),
            }
        }
        if self.tasks.is_empty() {
            for reply in self.leaving.drain(..) {
                answer(reply, ());
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Lease(state) => {
                tracing::info!(?state, "the node's lease");
                self.lease.send_replace(state);
            }
            Event::SetChanged(set) => self.show_set(&set),
            Event::LookedUp { id, found } => {
                if let Some(reply) = self.looking.remove(&id) {
                    answer(reply, found);
                }
            }
        }
    }

    fn show_set(&self, set: &str) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watched.get(set) {
            let view = self.register.set(set);
            sender.send_if_modified(|old| {
                let changed = *old != view;
                *old = view;
                changed
            });
        }
    }
}

/// Answers a caller, who may have gone.
fn answer<T>(reply: Reply<T>, value: T) {
    let _ = reply.send(value);
}
