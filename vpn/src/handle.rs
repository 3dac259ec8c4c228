//! How the rest of the daemon speaks with the driver.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use aerie_types::{PeerId, UnderlayAddr, VirtualAddr};
use aerie_vpn_proto::{
    Counters, Mapping, NetworkStatus, PathKind, PathStatus, PeerStatus, RelayInfo, RemotePeer,
};
use tokio::sync::{mpsc, oneshot};

use crate::io::Offloads;
use crate::io::mapping::PortMapping;
use crate::{Error, NoIpv6, PingError};

/// What the driver asks and tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Who holds this address? To be answered by [`Handle::resolved`], with `None` if nobody does.
    Resolve(VirtualAddr),
    /// Carry these bytes to a member; there they go to [`Handle::signal`].
    Signal {
        /// To whom.
        to: PeerId,
        /// What.
        bytes: Vec<u8>,
    },
    /// Packets to a peer take another way.
    PathChanged {
        /// The peer.
        peer: PeerId,
        /// The way now.
        path: PathKind,
        /// Why it is not direct.
        why: Option<String>,
    },
}

/// A ping's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// Round trip inside the tunnel.
    pub rtt: Duration,
    /// The way that was taken.
    pub path: PathKind,
}

/// The virtual network as a whole.
#[derive(Debug, Clone)]
pub struct Status {
    /// The interface.
    pub interface: String,
    /// The node's address.
    pub addr: VirtualAddr,
    /// The node's IPv6 address, or why there is none.
    pub addr6: Result<Ipv6Addr, NoIpv6>,
    /// The data socket's port.
    pub port: u16,
    /// The interface's MTU in bytes.
    pub mtu: u16,
    /// What the NAT in front of this host does.
    pub nat: Mapping,
    /// How this host looks from outside.
    pub reflexive: BTreeSet<UnderlayAddr>,
    /// Whether the router gives this host a port; `None` where it is not asked.
    pub port_mapping: Option<PortMapping>,
    /// Counters since the start.
    pub counters: Counters,
    /// Sessions relayed for others.
    pub relayed_sessions: usize,
    /// What the kernel was found to do for the driver.
    pub offloads: Offloads,
    /// The TCP port at which members are taken over TLS that UDP does not reach, or why none are; `None` where this
    /// node is not to take any.
    pub tls: Option<Result<u16, String>>,
}

pub(crate) enum Command {
    Resolved(VirtualAddr, Option<RemotePeer>),
    Signal(PeerId, Vec<u8>),
    SetRelays(Vec<RelayInfo>),
    SetGroup(Option<Vec<VirtualAddr>>),
    SetCredential(Vec<u8>),
    Revoke(PeerId),
    Readdress(VirtualAddr, oneshot::Sender<Result<(), Error>>),
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    Path(PeerId, oneshot::Sender<Option<PathStatus>>),
    CheckNetwork(Vec<PeerId>),
    Network(oneshot::Sender<NetworkStatus>),
    Status(oneshot::Sender<Status>),
    Ping(VirtualAddr, oneshot::Sender<Result<Pong, String>>),
    Shutdown(oneshot::Sender<()>),
}

/// A handle to a running driver. Once the driver has ended, what is told to it is dropped and what is asked of it
/// is answered with nothing or [`Error::Down`].
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    pub(crate) fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }

    /// The answer to [`Event::Resolve`]; may be given unasked when a lease is known to have changed hands.
    pub async fn resolved(&self, addr: VirtualAddr, remote: Option<RemotePeer>) {
        self.tell(Command::Resolved(addr, remote)).await;
    }

    /// A signal that a member has sent, as the overlay proved.
    pub async fn signal(&self, from: PeerId, bytes: Vec<u8>) {
        self.tell(Command::Signal(from, bytes)).await;
    }

    /// The members that relay; they also tell this host how it looks from outside. Replaces the last list.
    pub async fn set_relays(&self, relays: Vec<RelayInfo>) {
        self.tell(Command::SetRelays(relays)).await;
    }

    /// The members with whom multicast and broadcast are exchanged; `None` for none of it, as it is at first. Replaces
    /// the last list.
    pub async fn set_group(&self, members: Option<Vec<VirtualAddr>>) {
        self.tell(Command::SetGroup(members)).await;
    }

    /// This node's credential after a renewal, X.509 in DER.
    pub async fn set_credential(&self, der: Vec<u8>) {
        self.tell(Command::SetCredential(der)).await;
    }

    /// Cuts a member off now. The credential check has to refuse it from then on.
    pub async fn revoke(&self, peer: PeerId) {
        self.tell(Command::Revoke(peer)).await;
    }

    /// Gives the interface another address of the range.
    ///
    /// # Errors
    /// [`Error::Protocol`] outside the range, [`Error::Readdress`], [`Error::Down`].
    pub async fn readdress(&self, addr: VirtualAddr) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Readdress(addr, answer)).await;
        answered.await.map_err(|_| Error::Down)?
    }

    /// Every peer as it is now; empty when the driver has ended.
    pub async fn peers(&self) -> Vec<PeerStatus> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Peers(answer)).await;
        answered.await.unwrap_or_default()
    }

    /// Everything about the way to one peer; `None` if nothing has gone to it lately, or the driver has ended.
    pub async fn path(&self, peer: PeerId) -> Option<PathStatus> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Path(peer, answer)).await;
        answered.await.ok().flatten()
    }

    /// Begins a new look at the network in front of this host: see [`Handle::network`]. `strangers`: members to which
    /// nothing was sent for minutes, of whom some are asked to send something here.
    pub async fn check_network(&self, strangers: Vec<PeerId>) {
        self.tell(Command::CheckNetwork(strangers)).await;
    }

    /// How the network in front of this host looks, as far as it is known.
    ///
    /// # Errors
    /// [`Error::Down`].
    pub async fn network(&self) -> Result<NetworkStatus, Error> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Network(answer)).await;
        answered.await.map_err(|_| Error::Down)
    }

    /// The virtual network as a whole.
    ///
    /// # Errors
    /// [`Error::Down`].
    pub async fn status(&self) -> Result<Status, Error> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Status(answer)).await;
        answered.await.map_err(|_| Error::Down)
    }

    /// Measures the round trip to a member inside the tunnel, opening it if need be. At most ten seconds.
    ///
    /// # Errors
    /// [`PingError::Unreachable`] with the reason, or [`PingError::Down`].
    pub async fn ping(&self, addr: VirtualAddr) -> Result<Pong, PingError> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Ping(addr, answer)).await;
        answered
            .await
            .map_err(|_| Error::Down)?
            .map_err(PingError::Unreachable)
    }

    /// Ends the driver and removes the interface. Returns when that is done.
    pub async fn shutdown(&self) {
        let (done, ended) = oneshot::channel();
        self.tell(Command::Shutdown(done)).await;
        // An error means that the driver had ended already.
        let _ = ended.await;
    }

    async fn tell(&self, command: Command) {
        // A closed channel means that the driver has ended; whoever waits for an answer sees that.
        let _ = self.commands.send(command).await;
    }
}
