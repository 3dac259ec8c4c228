//! What the caller holds: commands in, events out.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use aerie_identity::{Credential, Verifier};
use aerie_types::{GridId, Key, PeerId};
use libp2p::Multiaddr;
use tokio::sync::{mpsc, oneshot, watch};

use crate::admission::{Gate, Gatekeeper, IdentityGate, Refusal};
use crate::config::{COMMAND_QUEUE, Config, EVENT_QUEUE, MAX_MESSAGE};
use crate::driver::Driver;
use crate::error::{Error, RequestError};
use crate::peer::from_libp2p;
use crate::stats::{Counters, Stats};
use crate::swarm;

/// A protocol of requests and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// The register's requests.
    Dht,
    /// The tunnel's signals.
    Signal,
    /// Facts that members tell each other.
    Control,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Dht, Self::Signal, Self::Control];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Dht => "dht",
            Self::Signal => "signal",
            Self::Control => "control",
        }
    }
}

/// A subject of messages to all members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Changes of sets.
    Sets,
    /// Revocation lists.
    Revocations,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 2] = [Self::Sets, Self::Revocations];

    pub(crate) fn name(self, grid: GridId) -> String {
        let word = match self {
            Self::Sets => "sets",
            Self::Revocations => "revocations",
        };
        format!("/aerie/{grid}/{word}/1")
    }
}

/// What happens in the overlay.
#[derive(Debug)]
pub enum Event {
    /// The first connection of a member has been established.
    MemberUp {
        /// The member.
        peer: PeerId,
        /// The credential by which it was admitted.
        credential: Arc<Credential>,
    },
    /// The last connection of a member has closed.
    MemberDown {
        /// The member.
        peer: PeerId,
    },
    /// A connected member shows a newer credential.
    MemberRenewed {
        /// The member.
        peer: PeerId,
        /// The new credential.
        credential: Arc<Credential>,
    },
    /// A member asks something. Dropping `reply` tells it that there is no answer.
    Request {
        /// Who asks.
        from: PeerId,
        /// By which protocol.
        protocol: Protocol,
        /// The request.
        bytes: Vec<u8>,
        /// Where the answer goes.
        reply: oneshot::Sender<Vec<u8>>,
    },
    /// A message to all. Its author signed it, and is not always connected to this node; the contents must prove
    /// themselves.
    Gossip {
        /// The subject.
        topic: Topic,
        /// The author, by the key that signed.
        from: PeerId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// The node can be reached at a further address: its own, or one through a relay.
    Listening {
        /// The address.
        addr: Multiaddr,
    },
    /// Somebody was not admitted, did not admit this node, or was expelled. Reported as far as the queue has room.
    Refused {
        /// Where it connected from, or was dialled, as far as known.
        remote: Option<Multiaddr>,
        /// Who it is, if it proved a key.
        peer: Option<PeerId>,
        /// Why.
        reason: Refusal,
    },
}

/// A connected member.
#[derive(Debug, Clone)]
pub struct Member {
    /// The member.
    pub peer: PeerId,
    /// Its credential, the newest that it showed.
    pub credential: Arc<Credential>,
    /// Its connections, oldest first.
    pub connections: Vec<ConnectionInfo>,
    /// The round-trip time of the last probe.
    pub rtt: Option<Duration>,
}

impl Member {
    /// Whether every connection to the member goes through a relay.
    #[must_use]
    pub fn is_relayed(&self) -> bool {
        self.connections.iter().all(|connection| connection.relayed)
    }
}

/// A connection of a member.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// The other end.
    pub remote: Multiaddr,
    /// Whether it goes through a relay.
    pub relayed: bool,
    /// When it was established.
    pub since: Instant,
}

/// Starts overlays.
pub struct Overlay;

impl Overlay {
    /// Starts the overlay of a real grid: shows the newest credential of `own`, judges others by `verifier`.
    ///
    /// Call [`Handle::recheck`] after the verifier's revocations changed. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Setup`] or [`Error::Listen`].
    pub fn spawn(
        config: Config,
        own: watch::Receiver<Arc<Vec<u8>>>,
        verifier: Arc<RwLock<Verifier>>,
    ) -> Result<(Handle, mpsc::Receiver<Event>), Error> {
        let keeper = Arc::new(IdentityGate::new(verifier, own.clone()));
        Self::spawn_with(config, keeper, Some(own))
    }

    /// Starts an overlay with a gatekeeper of the caller's. A change of `renewed` says that its own credential is new.
    ///
    /// # Errors
    /// [`Error::Setup`] or [`Error::Listen`].
    pub fn spawn_with(
        config: Config,
        keeper: Arc<dyn Gatekeeper>,
        renewed: Option<watch::Receiver<Arc<Vec<u8>>>>,
    ) -> Result<(Handle, mpsc::Receiver<Event>), Error> {
        let counters = Arc::new(Counters::default());
        let gate = Gate::counting(keeper, Arc::clone(&counters));
        let local = from_libp2p(&config.keypair.public().to_peer_id()).ok_or_else(|| Error::Setup {
            what: "identity",
            reason: "the node's key is not Ed25519".to_owned(),
        })?;
        let swarm = swarm::build(&config, &gate)?;
        let (commands, commands_in) = mpsc::channel(COMMAND_QUEUE);
        let (events, events_out) = mpsc::channel(EVENT_QUEUE);
        let patience = config.request_timeout + REQUEST_MARGIN;
        let driver = Driver::new(
            config,
            local,
            swarm,
            Arc::clone(&gate),
            commands_in,
            events,
            renewed,
        )?;
        tokio::spawn(driver.run());
        let handle = Handle {
            local,
            commands,
            gate,
            counters,
            patience,
        };
        Ok((handle, events_out))
    }
}

/// Talks to a running overlay. The overlay ends when it is shut down or the last handle is dropped.
#[derive(Clone)]
pub struct Handle {
    local: PeerId,
    commands: mpsc::Sender<Command>,
    gate: Arc<Gate>,
    counters: Arc<Counters>,
    patience: Duration,
}

pub(crate) enum Command {
    Closest(Key, oneshot::Sender<Vec<PeerId>>),
    Request {
        to: PeerId,
        protocol: Protocol,
        bytes: Vec<u8>,
        reply: oneshot::Sender<Result<Vec<u8>, RequestError>>,
    },
    Publish(Topic, Vec<u8>),
    Members(oneshot::Sender<Vec<Member>>),
    Disconnect(PeerId),
    Recheck(oneshot::Sender<Vec<PeerId>>),
    Dial(Multiaddr),
    Mapped(Vec<Multiaddr>),
    ListenAddrs(oneshot::Sender<Vec<Multiaddr>>),
    KnownAddrs(oneshot::Sender<Vec<(PeerId, Vec<Multiaddr>)>>),
    Shutdown(oneshot::Sender<()>),
}

impl Handle {
    /// This node's own id.
    #[must_use]
    pub fn local_peer(&self) -> PeerId {
        self.local
    }

    /// The members closest to the key's position, nearest first, at most 20; never this node itself.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn closest(&self, key: Key) -> Result<Vec<PeerId>, Error> {
        self.ask(|reply| Command::Closest(key, reply)).await
    }

    /// Asks a member something. Finds and dials it if it is not connected.
    ///
    /// # Errors
    /// [`RequestError`] with what happened.
    pub async fn request(
        &self,
        to: PeerId,
        protocol: Protocol,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, RequestError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(RequestError::TooLarge {
                length: bytes.len(),
                limit: MAX_MESSAGE,
            });
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Request {
            to,
            protocol,
            bytes,
            reply,
        };
        let asking = async {
            self.commands
                .send(command)
                .await
                .map_err(|_| RequestError::Closed)?;
            answer.await.unwrap_or(Err(RequestError::Closed))
        };
        tokio::time::timeout(self.patience, asking)
            .await
            .unwrap_or(Err(RequestError::Timeout))
    }

    /// Sends a message to all members. Waits for nobody; a message for which there is nobody yet is kept for 30 s.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Busy`] or [`Error::Closed`].
    pub fn publish(&self, topic: Topic, bytes: Vec<u8>) -> Result<(), Error> {
        if bytes.len() > MAX_MESSAGE - GOSSIP_OVERHEAD {
            return Err(Error::TooLarge {
                length: bytes.len(),
                limit: MAX_MESSAGE - GOSSIP_OVERHEAD,
            });
        }
        self.commands
            .try_send(Command::Publish(topic, bytes))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Error::Busy,
                mpsc::error::TrySendError::Closed(_) => Error::Closed,
            })
    }

    /// The connected members, in the order of their ids.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        self.ask(Command::Members).await
    }

    /// The newest admitted credential of a member that is connected or was lately.
    #[must_use]
    pub fn credential(&self, peer: PeerId) -> Option<Arc<Credential>> {
        self.gate.credential(peer)
    }

    /// Closes all connections of a member. It may connect again.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn disconnect(&self, peer: PeerId) -> Result<(), Error> {
        self.commands
            .send(Command::Disconnect(peer))
            .await
            .map_err(|_| Error::Closed)
    }

    /// Judges every connected member again and cuts off those who no longer belong, whom it names. To be called when
    /// the revocation list changed; expiry is looked after every half minute without it.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn recheck(&self) -> Result<Vec<PeerId>, Error> {
        self.ask(Command::Recheck).await
    }

    /// Dials an address, as if it were a bootstrap address.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn dial(&self, addr: Multiaddr) -> Result<(), Error> {
        self.commands
            .send(Command::Dial(addr))
            .await
            .map_err(|_| Error::Closed)
    }

    /// Tells which addresses are ports of routers that lead to this node, instead of those that were told before.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn set_mapped(&self, addrs: Vec<Multiaddr>) -> Result<(), Error> {
        self.commands
            .send(Command::Mapped(addrs))
            .await
            .map_err(|_| Error::Closed)
    }

    /// Where this node can be reached: its own addresses and those through relays.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn listen_addrs(&self) -> Result<Vec<Multiaddr>, Error> {
        self.ask(Command::ListenAddrs).await
    }

    /// Members and the addresses at which they were met, to be kept for [`Config::known`] of the next start.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn known_addrs(&self) -> Result<Vec<(PeerId, Vec<Multiaddr>)>, Error> {
        self.ask(Command::KnownAddrs).await
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counters.snapshot()
    }

    /// Closes all connections in order and ends the overlay. Returns when it has ended.
    pub async fn shutdown(&self) {
        let _ = self.ask(Command::Shutdown).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

/// By how much a handle outwaits the driver, which has the better reason to give.
const REQUEST_MARGIN: Duration = Duration::from_millis(500);

/// What gossip adds to a message: author, signature, key, sequence number, topic.
const GOSSIP_OVERHEAD: usize = 1024;
