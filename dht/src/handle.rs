//! What the rest of the node holds of the register.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use aerie_dht_proto::{Counters, Found, LeaseState, SetView};
use aerie_types::{NodeName, PeerId, VirtualAddr};
use tokio::sync::{mpsc, oneshot, watch};

use crate::driver::{self, Command, Config};
use crate::{Error, IdentityKeys, Transport};

/// The sets that somebody watches; only code of this node adds to it.
pub(crate) type Watched = Arc<Mutex<BTreeMap<String, watch::Sender<Vec<SetView>>>>>;

/// Starts the register.
#[derive(Debug)]
pub struct Dht;

impl Dht {
    /// Opens the store and starts the driver on the present tokio runtime. It ends with the last handle.
    ///
    /// # Errors
    /// [`Error::Open`] or [`Error::Register`] if the store cannot be used.
    pub fn start(config: Config, transport: Arc<dyn Transport>, keys: IdentityKeys) -> Result<Handle, Error> {
        driver::start(config, transport, keys)
    }
}

/// A running register. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) lease: watch::Receiver<LeaseState>,
    pub(crate) watched: Watched,
}

impl Handle {
    /// Answers a request of an admitted member.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the driver has ended.
    pub async fn serve(&self, from: PeerId, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.ask(|reply| Command::Serve { from, bytes, reply }).await
    }

    /// Takes a message that was spread to all.
    pub async fn gossip(&self, from: PeerId, bytes: Vec<u8>) {
        self.tell(Command::Gossip { from, bytes }).await;
    }

    /// Notes that a member is connected.
    pub async fn member_up(&self, peer: PeerId) {
        self.tell(Command::MemberUp(peer)).await;
    }

    /// Notes that a member is no longer connected.
    pub async fn member_down(&self, peer: PeerId) {
        self.tell(Command::MemberDown(peer)).await;
    }

    /// Begins to claim an address and the name, and keeps both. Again: no effect.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the driver has ended.
    pub async fn acquire(&self) -> Result<(), Error> {
        self.ask(Command::Acquire).await
    }

    /// How the node's lease stands, now and later.
    #[must_use]
    pub fn lease(&self) -> watch::Receiver<LeaseState> {
        self.lease.clone()
    }

    /// Who has this address?
    ///
    /// # Errors
    /// [`Error::Stopped`] if the driver has ended.
    pub async fn look_up_addr(&self, addr: VirtualAddr) -> Result<Option<Found>, Error> {
        self.ask(|reply| Command::LookUpAddr(addr, reply)).await
    }

    /// Who has this name?
    ///
    /// # Errors
    /// [`Error::Stopped`] if the driver has ended.
    pub async fn look_up_name(&self, name: NodeName) -> Result<Option<Found>, Error> {
        self.ask(|reply| Command::LookUpName(name, reply)).await
    }

    /// Publishes this node's entry in a set, and announces it again until it is withdrawn.
    ///
    /// # Errors
    /// [`Error::Register`] if it is not acceptable or this node has not the role for it.
    pub async fn publish_set(&self, set: &str, value: Vec<u8>) -> Result<(), Error> {
        let set = set.to_owned();
        Ok(self
            .ask(|reply| Command::PublishSet { set, value, reply })
            .await??)
    }

    /// Takes this node's entry back.
    ///
    /// # Errors
    /// [`Error::Register`] if that cannot be signed.
    pub async fn withdraw_set(&self, set: &str) -> Result<(), Error> {
        let set = set.to_owned();
        Ok(self.ask(|reply| Command::WithdrawSet { set, reply }).await??)
    }

    /// The entries of a set, now and later.
    #[must_use]
    pub fn watch_set(&self, set: &str) -> watch::Receiver<Vec<SetView>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = watched
            .entry(set.to_owned())
            .or_insert_with(|| watch::Sender::new(Vec::new()));
        let receiver = sender.subscribe();
        // A full queue loses this question only; changes are told all the same.
        let _ = self.commands.try_send(Command::Refresh(set.to_owned()));
        receiver
    }

    /// Gives the lease back and waits until the witnesses were told, for a clean leave.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the driver has ended.
    pub async fn release_all(&self) -> Result<(), Error> {
        self.ask(Command::ReleaseAll).await
    }

    /// Whether this node grants claims, how many members it knows, and what it counted.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the driver has ended.
    pub async fn status(&self) -> Result<Status, Error> {
        self.ask(Command::Status).await
    }

    async fn tell(&self, command: Command) {
        if self.commands.send(command).await.is_err() {
            tracing::debug!("the register has stopped; an input is dropped");
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }
}

/// How the register stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Whether this node grants claims.
    pub ready: bool,
    /// How many members are known, this node included.
    pub members_known: usize,
    /// What was counted.
    pub counters: Counters,
}
