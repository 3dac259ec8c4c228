//! Admission on the first substream of a QUIC connection.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::AsyncWriteExt;
use futures::future::poll_fn;
use libp2p::core::muxing::StreamMuxer;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::quic;

use super::{AdmissionError, Gate, Refusal, Rejected, exchange};
use crate::peer::from_libp2p;

/// How long the first substream may take to appear.
const FIRST_STREAM_TIMEOUT: Duration = Duration::from_secs(8);

/// Exchanges credentials before the connection is handed to the swarm.
pub(crate) async fn admit(
    gate: Arc<Gate>,
    (peer, mut connection): (libp2p::PeerId, quic::Connection),
    point: ConnectedPoint,
) -> Result<(libp2p::PeerId, quic::Connection), AdmissionError> {
    // Under hole punching the dialler can be the QUIC server, which `ConnectedPoint::is_dialer` does not tell.
    let opens = matches!(
        point,
        ConnectedPoint::Dialer {
            role_override: Endpoint::Dialer,
            ..
        }
    );
    let remote = from_libp2p(&peer);
    let rejected = |reason: Refusal| {
        gate.counters().refused(&reason);
        AdmissionError::Rejected(Rejected { peer: remote, reason })
    };
    let Some(remote) = remote else {
        return Err(rejected(Refusal::KeyMismatch));
    };
    let first = poll_fn(|cx| {
        let connection = Pin::new(&mut connection);
        if opens {
            connection.poll_outbound(cx)
        } else {
            connection.poll_inbound(cx)
        }
    });
    let mut stream = match tokio::time::timeout(FIRST_STREAM_TIMEOUT, first).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(rejected(Refusal::Broken(error.to_string()))),
        Err(_) => return Err(rejected(Refusal::Stalled)),
    };
    exchange(&gate, &mut stream, remote).await?;
    // Both verdicts have been read, so a stream that does not close cleanly loses nothing.
    let _ = stream.close().await;
    Ok((peer, connection))
}
