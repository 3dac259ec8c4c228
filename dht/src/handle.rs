//! What the caller holds: commands in, states and answers out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aerie_dht_proto::limits::Timings;
use aerie_dht_proto::{
    AcquireRequest, Event, Found, Keys, Kind, Now, Register, SetView, Stats, addr_key, name_key, prefix_key,
};
use aerie_types::{
    AddressPool, GridId, Key, NodeName, PeerId, VirtualAddr, VirtualPrefix, VirtualRange, WallMillis,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::driver::Driver;
use crate::{Error, SqliteStore, Transport};

/// Commands that wait for the register. It handles one in microseconds, or in milliseconds where it has to be synced.
const COMMANDS: usize = 1024;

/// Events kept for a slow listener.
const EVENTS: usize = 256;

/// How long a clean leave may take; witnesses that are not reached learn of it when the lease ends.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a register is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The grid.
    pub grid: GridId,
    /// The grid's virtual addresses.
    pub pool: AddressPool,
    /// The names of the witnesses in strict mode; none without it.
    pub witnesses: Vec<NodeName>,
    /// This node's name, as its credential has it.
    pub name: NodeName,
    /// This node founds the grid. For the first start of the grid's first node.
    pub founder: bool,
    /// The database's file.
    pub store: PathBuf,
    /// The address to claim, and no other.
    pub fixed: Option<VirtualAddr>,
    /// When things happen; the defaults are the design's.
    pub timings: Timings,
}

impl Config {
    /// A configuration with the design's times and without a fixed address.
    #[must_use]
    pub fn new(
        grid: GridId,
        range: VirtualRange,
        name: NodeName,
        founder: bool,
        store: impl Into<PathBuf>,
    ) -> Self {
        Self {
            grid,
            pool: range.into(),
            witnesses: Vec::new(),
            name,
            founder,
            store: store.into(),
            fixed: None,
            timings: Timings::default(),
        }
    }
}

/// How it stands with this node's lease of an address, or of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseState<T = VirtualAddr> {
    /// Nothing was asked for, or all was given back.
    Idle,
    /// It is being claimed.
    Waiting {
        /// Why that takes time, and what helps.
        reason: String,
    },
    /// It is held.
    Held {
        /// The address, or the prefix.
        leased: T,
        /// The name, which is leased with it.
        name: NodeName,
        /// How many witnesses signed its certificate.
        receipts: usize,
        /// Until when the certificates are valid. It moves on with each renewal; what is leased is kept beyond it
        /// while no quorum can be reached and nobody else shows a valid certificate.
        until: Instant,
        /// Its certificate with its witnesses' credentials, encoded.
        certificate: Arc<Vec<u8>>,
        /// The hash of the certificate, by which peers know it.
        digest: Key,
    },
    /// The claim has failed: none is free, or the fixed one is taken.
    Failed {
        /// Why, and what helps.
        reason: String,
    },
    /// It was lost to another holder (then another is being claimed), or this node is a copy (then not).
    Lost {
        /// Why, and what helps.
        reason: String,
        /// Whether this node is the copy of another one; then nothing more is claimed.
        is_copy: bool,
    },
}

impl<T> LeaseState<T> {
    /// The same state with what is leased as `narrow` has it; `None` where it has none.
    pub(crate) fn of<U>(self, narrow: impl FnOnce(T) -> Option<U>) -> Option<LeaseState<U>> {
        Some(match self {
            Self::Idle => LeaseState::Idle,
            Self::Waiting { reason } => LeaseState::Waiting { reason },
            Self::Failed { reason } => LeaseState::Failed { reason },
            Self::Lost { reason, is_copy } => LeaseState::Lost { reason, is_copy },
            Self::Held {
                leased,
                name,
                receipts,
                until,
                certificate,
                digest,
            } => LeaseState::Held {
                leased: narrow(leased)?,
                name,
                receipts,
                until,
                certificate,
                digest,
            },
        })
    }
}

/// Starts registers.
pub struct Dht;

impl Dht {
    /// Opens the database and starts the register in a thread of its own. Must be called within a tokio runtime, on
    /// which the transport's futures will run. The register ends when the last handle is dropped.
    ///
    /// # Errors
    /// [`Error`] where the database cannot be opened or read, or the thread not be started.
    pub fn start(
        config: Config,
        transport: Arc<dyn Transport>,
        keys: impl Keys + Send + 'static,
    ) -> Result<Handle, Error> {
        let mut proto = aerie_dht_proto::Config::new(config.grid, config.pool.range());
        proto.pool = config.pool;
        proto.witnesses = config.witnesses;
        proto.founder = config.founder;
        proto.timings = config.timings.clone();
        let store = SqliteStore::open(&config.store)?;
        let store_failure = store.failure();
        let me = keys.me();
        let register = Register::new(proto, keys, store, &mut rand::rng(), now())?;
        let (commands, commands_in) = mpsc::channel(COMMANDS);
        let (lease_out, lease) = watch::channel(LeaseState::Idle);
        let (prefix_out, prefix) = watch::channel(LeaseState::Idle);
        let (events, _) = broadcast::channel(EVENTS);
        let sets = Arc::new(Sets::default());
        let runtime = tokio::runtime::Handle::current();
        let driver = Driver {
            register,
            transport,
            commands: commands.downgrade(),
            lease: lease_out,
            prefix: prefix_out,
            events: events.clone(),
            sets: Arc::clone(&sets),
            runtime: runtime.clone(),
            answers: BTreeMap::new(),
            look_ups: BTreeMap::new(),
            leaving: Vec::new(),
            requests: 0,
        };
        let thread = std::thread::Builder::new().name("aerie-register".to_owned());
        thread
            .spawn(move || driver.run(commands_in))
            .map_err(Error::Thread)?;
        Ok(Handle {
            me,
            grid: config.grid,
            name: config.name,
            fixed: config.fixed,
            commands,
            lease,
            prefix,
            events,
            sets,
            runtime,
            store_failure,
        })
    }
}

/// The views of watched sets.
pub(crate) type Sets = Mutex<BTreeMap<String, watch::Sender<Vec<SetView>>>>;

/// The present moment by this machine's clocks.
pub(crate) fn now() -> Now {
    Now {
        instant: Instant::now(),
        wall: WallMillis::from(std::time::SystemTime::now()),
    }
}

pub(crate) enum Command {
    Serve {
        from: PeerId,
        bytes: Vec<u8>,
        reply: oneshot::Sender<Vec<u8>>,
    },
    Input(aerie_dht_proto::Input),
    Acquire(AcquireRequest),
    LookUp(Key, oneshot::Sender<Option<Found>>),
    Publish {
        set: String,
        value: Vec<u8>,
        reply: oneshot::Sender<Result<(), aerie_dht_proto::PublishError>>,
    },
    Withdraw(String),
    Watch(String),
    Forget(PeerId),
    Release(Kind, oneshot::Sender<()>),
    ReleaseAll(oneshot::Sender<()>),
    Stats(oneshot::Sender<Stats>),
    Shutdown(oneshot::Sender<()>),
}

/// Talks to a running register. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    me: PeerId,
    grid: GridId,
    name: NodeName,
    fixed: Option<VirtualAddr>,
    commands: mpsc::Sender<Command>,
    lease: watch::Receiver<LeaseState>,
    prefix: watch::Receiver<LeaseState<VirtualPrefix>>,
    events: broadcast::Sender<Event>,
    sets: Arc<Sets>,
    runtime: tokio::runtime::Handle,
    store_failure: watch::Receiver<Option<String>>,
}

impl Handle {
    /// This node.
    #[must_use]
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// Answers a request that a member sent, by the connection's word.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn serve(&self, from: PeerId, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Serve { from, bytes, reply }).await?;
        answer.await.map_err(|_| Error::Closed)
    }

    /// Takes a gossiped message, whose author's signature was checked.
    pub async fn gossip(&self, from: PeerId, bytes: Vec<u8>) {
        self.input(aerie_dht_proto::Input::Gossip { from, bytes }).await;
    }

    /// An admitted member is connected.
    pub async fn member_up(&self, peer: PeerId) {
        self.input(aerie_dht_proto::Input::MemberUp { peer }).await;
    }

    /// A member's last connection has closed.
    pub async fn member_down(&self, peer: PeerId) {
        self.input(aerie_dht_proto::Input::MemberDown { peer }).await;
    }

    /// A member was revoked or declared gone: it does not count in a small grid's quorum any more.
    pub async fn forget(&self, peer: PeerId) {
        let _ = self.send(Command::Forget(peer)).await;
    }

    /// Claims an address for the configured name, and keeps it renewed. [`Self::lease`] tells how that goes.
    pub async fn acquire(&self) {
        let request = AcquireRequest::addr(self.name.clone(), self.fixed);
        let _ = self.send(Command::Acquire(request)).await;
    }

    /// Claims a prefix beside the address, this one or any, and keeps it renewed. [`Self::prefix`] tells how that goes.
    pub async fn acquire_prefix(&self, fixed: Option<VirtualPrefix>) {
        let request = AcquireRequest::prefix(self.name.clone(), fixed);
        let _ = self.send(Command::Acquire(request)).await;
    }

    /// Claims an address for a name, this one or any, keeps it renewed, and waits until it is held.
    ///
    /// # Errors
    /// [`Error::Claim`] where it is refused for good, [`Error::Closed`].
    pub async fn acquire_as(&self, name: NodeName, fixed: Option<VirtualAddr>) -> Result<LeaseState, Error> {
        let mut lease = self.lease.clone();
        lease.mark_unchanged();
        self.send(Command::Acquire(AcquireRequest::addr(name, fixed)))
            .await?;
        loop {
            lease.changed().await.map_err(|_| Error::Closed)?;
            let state = lease.borrow_and_update().clone();
            match state {
                LeaseState::Held { .. } => return Ok(state),
                LeaseState::Failed { reason } | LeaseState::Lost { reason, .. } => {
                    return Err(Error::Claim(reason));
                }
                LeaseState::Idle | LeaseState::Waiting { .. } => {}
            }
        }
    }

    /// How it stands with the lease of this node's address, now and from now on.
    #[must_use]
    pub fn lease(&self) -> watch::Receiver<LeaseState> {
        self.lease.clone()
    }

    /// How it stands with the lease of this node's prefix, now and from now on.
    #[must_use]
    pub fn prefix(&self) -> watch::Receiver<LeaseState<VirtualPrefix>> {
        self.prefix.clone()
    }

    /// Everything that the register tells; what is missed by a slow listener is gone.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Who holds an address, proved by its certificate. `None` where nobody is known to.
    pub async fn look_up_addr(&self, addr: VirtualAddr) -> Option<Found> {
        self.look_up(addr_key(self.grid, addr)).await
    }

    /// Who has a name, and at which address.
    pub async fn look_up_name(&self, name: NodeName) -> Option<Found> {
        self.look_up(name_key(self.grid, &name)).await
    }

    /// Who holds a prefix, proved by its certificate.
    pub async fn look_up_prefix(&self, prefix: VirtualPrefix) -> Option<Found> {
        self.look_up(prefix_key(self.grid, prefix)).await
    }

    /// Publishes a value in a set in the place of the one before, and keeps it alive.
    ///
    /// # Errors
    /// [`Error::Publish`] where the set does not take it, [`Error::Closed`].
    pub async fn publish_set(&self, set: &str, value: Vec<u8>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let set = set.to_owned();
        self.send(Command::Publish { set, value, reply }).await?;
        Ok(answer.await.map_err(|_| Error::Closed)??)
    }

    /// Withdraws this node's entry of a set.
    pub async fn withdraw_set(&self, set: &str) {
        let _ = self.send(Command::Withdraw(set.to_owned())).await;
    }

    /// A set as it is known here, now and from now on.
    #[must_use]
    pub fn watch_set(&self, set: &str) -> watch::Receiver<Vec<SetView>> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(views) = sets.get(set) {
            return views.subscribe();
        }
        let (views, receiver) = watch::channel(Vec::new());
        sets.insert(set.to_owned(), views);
        drop(sets);
        let (handle, set) = (self.clone(), set.to_owned());
        self.runtime
            .spawn(async move { handle.send(Command::Watch(set)).await });
        receiver
    }

    /// Gives the address or the prefix back and stays a member, which claims no other until it is asked to; returns when
    /// the witnesses know, or after 3 s.
    pub async fn release(&self, kind: Kind) {
        self.leave(|done| Command::Release(kind, done)).await;
    }

    /// Gives everything back and tells the others that this node leaves; returns when they know, or after 3 s.
    pub async fn release_all(&self) {
        self.leave(Command::ReleaseAll).await;
    }

    async fn leave(&self, how: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, told) = oneshot::channel();
        if self.send(how(done)).await.is_ok() {
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, told).await;
        }
    }

    /// Ends the register as it stands, without giving anything back, and returns when its database is closed.
    pub async fn shutdown(&self) {
        let (ended, wait) = oneshot::channel();
        if self.send(Command::Shutdown(ended)).await.is_ok() {
            let _ = wait.await;
        }
    }

    /// Why the register's database could not be written at the last attempt: until it can be, this witness abstains.
    /// `None` when all is well.
    #[must_use]
    pub fn store_failure(&self) -> Option<String> {
        self.store_failure.borrow().clone()
    }

    /// What the register counted; `None` when it has ended.
    pub async fn stats(&self) -> Option<Stats> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Stats(reply)).await.ok()?;
        answer.await.ok()
    }

    async fn look_up(&self, key: Key) -> Option<Found> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::LookUp(key, reply)).await.ok()?;
        answer.await.ok().flatten()
    }

    async fn input(&self, input: aerie_dht_proto::Input) {
        let _ = self.send(Command::Input(input)).await;
    }

    async fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Closed)
    }
}
