//! The one loop that owns the register, in a thread of its own, since every grant is synced to the disk before it is
//! answered.
//!
//! Order of the calls, in each turn: one command or the timeout goes into the core; then *all* of its outputs are
//! taken, of which requests and look-ups become tasks of the caller's runtime that come back as commands; then all of
//! its events are told. Nothing else touches the core.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use aerie_dht_proto::{
    Event, Found, HeldLease, Input, Keys, Kind, Leased, LostReason, Output, Register, SendError,
};
use aerie_types::VirtualPrefix;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::handle::{Command, LeaseState, Sets, now};
use crate::{SqliteStore, Transport};

pub(crate) struct Driver<K> {
    pub(crate) register: Register<SqliteStore, K>,
    pub(crate) transport: Arc<dyn Transport>,
    /// For the answers to this register's own requests; weak, so that the last handle ends the register.
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) lease: watch::Sender<LeaseState>,
    pub(crate) prefix: watch::Sender<LeaseState<VirtualPrefix>>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) sets: Arc<Sets>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) answers: BTreeMap<u64, oneshot::Sender<Vec<u8>>>,
    pub(crate) look_ups: BTreeMap<u64, oneshot::Sender<Option<Found>>>,
    pub(crate) leaving: Vec<oneshot::Sender<()>>,
    pub(crate) requests: u64,
}

impl<K: Keys> Driver<K> {
    pub(crate) fn run(self, commands: mpsc::Receiver<Command>) {
        match tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
        {
            Ok(runtime) => {
                // The register, and with it the database, is closed when this returns.
                if let Some(ended) = runtime.block_on(self.turn(commands)) {
                    let _ = ended.send(());
                }
            }
            Err(error) => tracing::error!(%error, "the register's timer cannot be made; the register ends"),
        }
    }

    /// Turns until the last handle is dropped, or one wants the end and to be told of it.
    async fn turn(mut self, mut commands: mpsc::Receiver<Command>) -> Option<oneshot::Sender<()>> {
        self.drain();
        loop {
            let due = self.register.poll_timeout().map(Instant::from_std);
            let timeout = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = timeout => self.register.handle_timeout(now()),
                command = commands.recv() => match command {
                    Some(Command::Shutdown(ended)) => return Some(ended),
                    Some(command) => self.command(command),
                    None => return None,
                },
            }
            self.drain();
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Serve { from, bytes, reply } => {
                let id = self.requests;
                self.requests += 1;
                self.answers.insert(id, reply);
                self.register
                    .handle_input(Input::Request { from, id, bytes }, now());
            }
            Command::Input(input) => self.register.handle_input(input, now()),
            Command::Acquire(request) => {
                let kind = request.want.kind();
                let reason = match kind {
                    Kind::Addr => "claiming an address".to_owned(),
                    Kind::Prefix => "claiming a prefix".to_owned(),
                };
                self.tell(kind, LeaseState::Waiting { reason });
                self.register.acquire(request, now());
            }
            Command::LookUp(key, reply) => {
                let id = self.register.look_up(key, now());
                self.look_ups.insert(id, reply);
            }
            Command::Publish { set, value, reply } => {
                // Who does not want to know any more is not told.
                let _ = reply.send(self.register.publish(&set, value, now()));
            }
            Command::Withdraw(set) => self.register.withdraw(&set, now()),
            Command::Watch(set) => {
                self.register.watch(&set, now());
                self.set_changed(&set);
            }
            Command::Forget(peer) => self.register.forget(peer, now()),
            Command::Release(kind, done) => {
                self.leaving.push(done);
                self.tell(kind, LeaseState::Idle);
                self.register.release(kind, now());
            }
            Command::ReleaseAll(done) => {
                self.leaving.push(done);
                for kind in Kind::ALL {
                    self.tell(kind, LeaseState::Idle);
                }
                self.register.release_all(now());
            }
            Command::Shutdown(ended) => drop(ended),
            Command::Stats(reply) => {
                let _ = reply.send(self.register.stats().clone());
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.register.poll_output() {
            self.output(output);
        }
        while let Some(event) = self.register.poll_event() {
            self.event(event);
        }
    }

    fn output(&mut self, output: Output) {
        let (transport, commands) = (Arc::clone(&self.transport), self.commands.clone());
        match output {
            Output::Answer { id, bytes } => {
                if let Some(reply) = self.answers.remove(&id) {
                    let _ = reply.send(bytes);
                }
            }
            Output::Send { to, id, bytes } => {
                self.runtime.spawn(async move {
                    let result = transport.request(to, bytes).await.map_err(|error| {
                        tracing::debug!(%error, peer = %to.short(), "a member did not answer");
                        SendError::Unreachable
                    });
                    come_back(&commands, Input::Reply { id, result }).await;
                });
            }
            Output::Locate { query, key } => {
                self.runtime.spawn(async move {
                    let peers = transport.closest(key).await;
                    come_back(&commands, Input::Located { query, peers }).await;
                });
            }
            Output::Gossip(bytes) => {
                self.runtime.spawn(async move { transport.publish(bytes) });
            }
        }
    }

    fn event(&mut self, event: Event) {
        tracing::debug!(?event, "register");
        match &event {
            Event::Waiting { kind, reason } => {
                let reason = reason.clone();
                self.tell(*kind, LeaseState::Waiting { reason });
            }
            Event::Held(lease) => {
                let receipts = lease.certificate.receipts.len();
                tracing::info!(leased = %lease.leased, receipts, "{} held", lease.leased.kind());
                self.held(lease);
            }
            Event::Renewed(lease) => self.held(lease),
            Event::Lost { kind, reason } => {
                let is_copy = matches!(reason, LostReason::Cloned);
                let reason = reason.to_string();
                self.tell(*kind, LeaseState::Lost { reason, is_copy });
            }
            Event::Failed { kind, failure } => {
                let reason = failure.to_string();
                self.tell(*kind, LeaseState::Failed { reason });
            }
            Event::CloneSeen { instance } => {
                tracing::warn!(%instance, "another copy of this node was started and refused; its disk was copied");
            }
            Event::LookedUp { id, found } => {
                if let Some(reply) = self.look_ups.remove(id) {
                    let _ = reply.send(found.clone());
                }
            }
            Event::SetChanged { set } => self.set_changed(set),
            Event::Left => {
                for done in self.leaving.drain(..) {
                    let _ = done.send(());
                }
            }
            Event::Ready => tracing::info!("this witness votes"),
        }
        // Nobody has to listen.
        let _ = self.events.send(event);
    }

    fn held(&mut self, lease: &HeldLease) {
        let kind = lease.leased.kind();
        let Some(proof) = self.register.proof(kind) else {
            return;
        };
        let state = LeaseState::Held {
            leased: lease.leased,
            name: lease.name.clone(),
            receipts: lease.certificate.receipts.len(),
            until: lease.until,
            certificate: Arc::new(proof.encode()),
            digest: lease.certificate.digest(),
        };
        self.tell(kind, state);
    }

    /// Shows the state of a lease to those who watch its kind.
    fn tell(&self, kind: Kind, state: LeaseState<Leased>) {
        match kind {
            Kind::Addr => {
                if let Some(state) = state.of(|leased| leased.addr()) {
                    self.lease.send_replace(state);
                }
            }
            Kind::Prefix => {
                if let Some(state) = state.of(|leased| leased.prefix()) {
                    self.prefix.send_replace(state);
                }
            }
        }
    }

    fn set_changed(&self, set: &str) {
        let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(views) = sets.get(set) {
            views.send_replace(self.register.set(set, now()));
        }
    }
}

async fn come_back(commands: &mpsc::WeakSender<Command>, input: Input) {
    if let Some(commands) = commands.upgrade() {
        // The register may have ended meanwhile.
        let _ = commands.send(Command::Input(input)).await;
    }
}
