//! What the rest of the node holds of the tunnel.

use std::time::Duration;

use aerie_types::{GridId, PeerId, VirtualAddr, VirtualRange};
use aerie_vpn_proto::{CredentialCheck, PathKind, PeerStatus, RelayInfo, RemotePeer};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::driver::{self, Command};
use crate::Error;

/// The inner MTU where none is configured: leaves room for a relay's header on a path of 1500 bytes.
pub(crate) const DEFAULT_MTU: u16 = 1380;

/// How a tunnel is to run.
#[derive(Debug)]
pub struct VpnConfig {
    /// The interface's name.
    pub interface: String,
    /// This node's virtual address.
    pub addr: VirtualAddr,
    /// The grid's range, which becomes the interface's route.
    pub range: VirtualRange,
    /// The interface's MTU in bytes.
    pub mtu: Option<u16>,
    /// UDP port of the data socket; 0 for any.
    pub port: u16,
    /// The grid.
    pub grid: GridId,
    /// This node.
    pub me: PeerId,
    /// The X25519 private key of its credential.
    pub noise_secret: Zeroizing<[u8; 32]>,
    /// Its credential (DER).
    pub credential: Vec<u8>,
    /// Whether it forwards datagrams for other members.
    pub relay: bool,
}

/// What the tunnel asks of its caller, or tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Who holds this address? To be answered by [`Handle::resolved`].
    Resolve(VirtualAddr),
    /// Carry these bytes to a member, authenticated.
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

/// Starts tunnels.
#[derive(Debug)]
pub struct Vpn;

impl Vpn {
    /// Makes the interface, opens the data socket and starts the driver on the present tokio runtime.
    ///
    /// # Errors
    /// [`Error::Tun`], [`Error::Socket`] or [`Error::Core`], each with what to do.
    pub async fn start(
        config: VpnConfig,
        check: Box<dyn CredentialCheck>,
    ) -> Result<(Handle, mpsc::Receiver<Event>), Error> {
        driver::start(config, check)
    }
}

/// A running tunnel. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) port: u16,
}

impl Handle {
    /// UDP port of the data socket.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        self.port
    }

    /// The answer to [`Event::Resolve`].
    pub async fn resolved(&self, addr: VirtualAddr, remote: Option<RemotePeer>) {
        self.tell(Command::Resolved(addr, remote)).await;
    }

    /// A signal that a member sent over the authenticated overlay.
    pub async fn signal(&self, from: PeerId, bytes: Vec<u8>) {
        self.tell(Command::Signal(from, bytes)).await;
    }

    /// The members that relay datagrams, as far as they are known.
    pub async fn set_relays(&self, relays: Vec<RelayInfo>) {
        self.tell(Command::Relays(relays)).await;
    }

    /// A renewed credential of this node.
    pub async fn set_credential(&self, der: Vec<u8>) {
        self.tell(Command::Credential(der)).await;
    }

    /// Cuts a member off at once.
    pub async fn revoke(&self, peer: PeerId) {
        self.tell(Command::Revoke(peer)).await;
    }

    /// Moves this node to another virtual address.
    ///
    /// # Errors
    /// [`Error::Tun`] if the interface refuses it; [`Error::Core`] if it lies outside of the range.
    pub async fn readdress(&self, addr: VirtualAddr) -> Result<(), Error> {
        self.ask(|reply| Command::Readdress(addr, reply)).await?
    }

    /// Every peer as it is now; none once the tunnel has ended.
    pub async fn peers(&self) -> Vec<PeerStatus> {
        self.ask(Command::Peers).await.unwrap_or_default()
    }

    /// One round trip inside the tunnel, with the way that it took.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] with the reason.
    pub async fn ping(&self, addr: VirtualAddr) -> Result<(Duration, PathKind), Error> {
        self.ask(|reply| Command::Ping(addr, reply)).await?
    }

    /// Ends the tunnel and removes its interface.
    pub async fn shutdown(&self) {
        // An end that has happened already is what was asked for.
        let _ = self.ask(Command::Shutdown).await;
    }

    async fn tell(&self, command: Command) {
        if self.commands.send(command).await.is_err() {
            tracing::debug!("the tunnel has ended; an input is dropped");
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)
    }
}
