//! Admission on the first substreams of a QUIC connection.
//!
//! Each side opens one substream, on which it sends, and accepts one, on which it receives. Who is the client of the
//! QUIC connection therefore does not matter. That is more than tidiness: under hole punching both sides dial, and
//! which of them is the client depends on the role that the swarm assigned, on the use of ports, and on how the
//! transport combines the two; a wrong guess would let both wait for the other's substream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::poll_fn;
use futures::{AsyncRead, AsyncWrite, AsyncWriteExt};
use libp2p::core::muxing::StreamMuxer;
use libp2p::quic;

use super::{AdmissionError, Gate, Refusal, Rejected, exchange};
use crate::peer::from_libp2p;

/// How long opening the substream may take. The handshake is over, so this waits for nothing but the other's limits.
const OPEN_TIMEOUT: Duration = Duration::from_secs(8);

/// Exchanges credentials before the connection is handed to the swarm.
pub(crate) async fn admit(
    gate: Arc<Gate>,
    (peer, mut connection): (libp2p::PeerId, quic::Connection),
) -> Result<(libp2p::PeerId, quic::Connection), AdmissionError> {
    let remote = from_libp2p(&peer);
    let rejected = |reason: Refusal| {
        gate.counters().refused(&reason);
        AdmissionError::Rejected(Rejected { peer: remote, reason })
    };
    let Some(remote) = remote else {
        return Err(rejected(Refusal::KeyMismatch));
    };
    let open = poll_fn(|cx| Pin::new(&mut connection).poll_outbound(cx));
    let outbound = match tokio::time::timeout(OPEN_TIMEOUT, open).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(rejected(Refusal::Broken(error.to_string()))),
        Err(_) => return Err(rejected(Refusal::Stalled)),
    };
    let mut pair = Pair {
        connection: &mut connection,
        outbound,
        inbound: None,
    };
    exchange(&gate, &mut pair, remote).await?;
    // Both verdicts have been read, so a stream that does not close cleanly loses nothing.
    let _ = pair.outbound.close().await;
    Ok((peer, connection))
}

/// Writes on the substream that this side opened, reads from the first one that the other side opens.
struct Pair<'a> {
    connection: &'a mut quic::Connection,
    outbound: quic::Stream,
    inbound: Option<quic::Stream>,
}

impl AsyncRead for Pair<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(inbound) = &mut self.inbound {
                return Pin::new(inbound).poll_read(cx, buffer);
            }
            let accepted = ready!(Pin::new(&mut *self.connection).poll_inbound(cx));
            self.inbound = Some(accepted.map_err(io::Error::other)?);
        }
    }
}

impl AsyncWrite for Pair<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.outbound).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outbound).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outbound).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use aerie_identity::{Credential, DEFAULT_LIFETIME, EnrolRequest, GridCa, NodeKeys, Subject, Verifier};
    use aerie_types::{Role, WallMillis};
    use futures::StreamExt;
    use futures::future::try_join;
    use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
    use libp2p::core::{Endpoint, Transport};
    use libp2p::identity::Keypair;
    use libp2p::multiaddr::Protocol;
    use libp2p::{Multiaddr, PeerId};

    use super::*;
    use crate::admission::Gatekeeper;

    const NOW: WallMillis = WallMillis(1_900_000_000_000);

    struct Keeper(Verifier, Vec<u8>);

    impl Gatekeeper for Keeper {
        fn admit(&self, der: &[u8]) -> Result<Arc<Credential>, Refusal> {
            Ok(Arc::new(self.0.verify(der, NOW)?))
        }

        fn own(&self) -> Arc<[u8]> {
            Arc::from(self.1.as_slice())
        }
    }

    type Admitting = Boxed<(PeerId, quic::Connection)>;

    async fn listening(ca: &GridCa, name: &str) -> (Admitting, Multiaddr) {
        let keys = NodeKeys::generate().unwrap();
        let request = EnrolRequest::create(&keys, ca.grid_id(), name.parse().unwrap(), false).unwrap();
        let subject = Subject {
            node: name.parse().unwrap(),
            user: "alice".parse().unwrap(),
            group: "physics".parse().unwrap(),
            roles: Role::Worker.into(),
        };
        let issued = ca.issue(&request, &subject, 1, NOW, DEFAULT_LIFETIME).unwrap();
        let gate = Gate::new(Arc::new(Keeper(ca.verifier().unwrap(), issued.overlay_der)));
        let keypair = Keypair::ed25519_from_bytes(&mut keys.overlay_seed()[..]).unwrap();
        let mut transport = quic::tokio::Transport::new(quic::Config::new(&keypair))
            .and_then(move |output, _| Box::pin(admit(gate, output)))
            .boxed();
        let any = "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap();
        transport.listen_on(ListenerId::next(), any).unwrap();
        match transport.next().await.unwrap() {
            TransportEvent::NewAddress { listen_addr, .. } => {
                let id = Protocol::P2p(keypair.public().to_peer_id());
                (transport, listen_addr.with(id))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Keeps a transport going and what connects to it.
    fn serve(mut transport: Admitting) {
        tokio::spawn(async move {
            while let Some(event) = transport.next().await {
                if let Some((upgrade, _)) = event.into_incoming() {
                    tokio::spawn(async move {
                        let _connection = upgrade.await;
                        std::future::pending::<()>().await;
                    });
                }
            }
        });
    }

    #[tokio::test]
    async fn admission_passes_whatever_role_hole_punching_gave_to_the_two_diallers() {
        let ca = GridCa::create("chem".parse().unwrap(), "100.96.0.0/11".parse().unwrap(), NOW).unwrap();
        // With `Reuse`, as the swarm's hole punching dials, both become clients; with `New`, one becomes the server.
        for port_use in [PortUse::Reuse, PortUse::New] {
            let (mut a, a_addr) = listening(&ca, "a").await;
            let (mut b, b_addr) = listening(&ca, "b").await;
            let opts = |role, port_use| DialOpts { role, port_use };
            let as_listener = a.dial(b_addr, opts(Endpoint::Listener, port_use)).unwrap();
            let as_dialer = b.dial(a_addr, opts(Endpoint::Dialer, PortUse::Reuse)).unwrap();
            serve(a);
            serve(b);
            let ((seen_by_a, _), (seen_by_b, _)) = try_join(as_listener, as_dialer).await.unwrap();
            assert_ne!(seen_by_a, seen_by_b);
        }
    }
}
