//! Noise with admission, for TCP and relayed circuits.

use std::pin::Pin;
use std::sync::Arc;

use aerie_types::GridId;
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::identity::Keypair;
use libp2p::noise;

use super::{AdmissionError, Gate, Refusal, Rejected, exchange};
use crate::peer::from_libp2p;

/// The name under which the upgrade is negotiated. A stock libp2p peer offers `/noise` and goes no further.
pub const PROTOCOL: &str = "/aerie/noise/1";

/// What both sides mix into the handshake, so that it fails between members of different grids.
#[must_use]
pub fn prologue(grid: GridId) -> Vec<u8> {
    let mut prologue = b"aerie overlay admission 1\0".to_vec();
    prologue.extend_from_slice(&grid.0);
    prologue
}

/// A security upgrade: the Noise handshake of libp2p, then the exchange of credentials.
#[derive(Clone)]
pub struct Secured {
    noise: noise::Config,
    gate: Arc<Gate>,
}

impl Secured {
    /// The upgrade of one grid.
    ///
    /// # Errors
    /// If the Noise library cannot sign its static key with the identity.
    pub fn new(keypair: &Keypair, grid: GridId, gate: Arc<Gate>) -> Result<Self, noise::Error> {
        Ok(Self {
            noise: noise::Config::new(keypair)?.with_prologue(prologue(grid)),
            gate,
        })
    }
}

impl UpgradeInfo for Secured {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

type Upgraded<T> = (libp2p::PeerId, noise::Output<T>);
type UpgradeFuture<T> = Pin<Box<dyn Future<Output = Result<Upgraded<T>, AdmissionError>> + Send>>;

impl<T> InboundConnectionUpgrade<T> for Secured
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = Upgraded<T>;
    type Error = AdmissionError;
    type Future = UpgradeFuture<T>;

    fn upgrade_inbound(self, socket: T, info: Self::Info) -> Self::Future {
        Box::pin(async move {
            let upgraded = self.noise.upgrade_inbound(socket, info).await?;
            admit(&self.gate, upgraded).await
        })
    }
}

impl<T> OutboundConnectionUpgrade<T> for Secured
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = Upgraded<T>;
    type Error = AdmissionError;
    type Future = UpgradeFuture<T>;

    fn upgrade_outbound(self, socket: T, info: Self::Info) -> Self::Future {
        Box::pin(async move {
            let upgraded = self.noise.upgrade_outbound(socket, info).await?;
            admit(&self.gate, upgraded).await
        })
    }
}

async fn admit<T>(gate: &Gate, (peer, mut stream): Upgraded<T>) -> Result<Upgraded<T>, AdmissionError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(remote) = from_libp2p(&peer) else {
        gate.counters().refused(&Refusal::KeyMismatch);
        return Err(Rejected {
            peer: None,
            reason: Refusal::KeyMismatch,
        }
        .into());
    };
    exchange(gate, &mut stream, remote).await?;
    Ok((peer, stream))
}
