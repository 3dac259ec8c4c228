//! Ports of the router that lead to the overlay's, as the tunnel has one of its own.

use std::num::NonZeroU16;
use std::time::Duration;

use aerie_overlay::Multiaddr;
use aerie_vpn::{PortMapper, PortMapping, PortProtocol, RouterNonce};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long routers may take to take the ports back when this node ends.
const RELEASE: Duration = Duration::from_secs(3);

/// Keeps both ports until it is told to give them back.
pub(crate) struct OverlayPorts {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl OverlayPorts {
    /// Begins to ask for ports that lead to `port` of this host, for TCP and for QUIC, and tells the overlay of them.
    pub(crate) fn start(port: NonZeroU16, nonce: RouterNonce, overlay: aerie_overlay::Handle) -> Self {
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::Handle::current();
        let start = |protocol| PortMapper::start(protocol, port, nonce, &runtime);
        let ports = [start(PortProtocol::Tcp), start(PortProtocol::Udp)];
        Self {
            stop,
            task: tokio::spawn(keep(ports, overlay, stopped)),
        }
    }

    /// Gives the ports back, as far as the router takes them soon.
    pub(crate) async fn release(self) {
        // The task may have ended with the overlay.
        let _ = self.stop.send(());
        let _ = timeout(RELEASE, self.task).await;
    }
}

async fn keep(
    [mut tcp, mut quic]: [PortMapper; 2],
    overlay: aerie_overlay::Handle,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        tokio::select! {
            _ = tcp.changed() => {}
            _ = quic.changed() => {}
            _ = &mut stopped => break,
        }
        let addrs = [
            addr(&tcp.state(), |ip, port| format!("/{ip}/tcp/{port}")),
            addr(&quic.state(), |ip, port| format!("/{ip}/udp/{port}/quic-v1")),
        ];
        if overlay
            .set_mapped(addrs.into_iter().flatten().collect())
            .await
            .is_err()
        {
            break;
        }
    }
    tokio::join!(tcp.release(), quic.release());
}

fn addr(mapping: &PortMapping, text: impl Fn(String, u16) -> String) -> Option<Multiaddr> {
    let addr = mapping.addr()?;
    let family = if addr.is_ipv4() { "ip4" } else { "ip6" };
    text(format!("{family}/{}", addr.ip()), addr.port()).parse().ok()
}
