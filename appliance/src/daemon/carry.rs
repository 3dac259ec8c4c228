//! Messages between the parts. The register (`dht`) and the tunnel (`vpn`) speak to members and know nothing of
//! libp2p; here they are given the overlay to speak through.
//!
//! ```text
//!  dht ──request──► overlay(dht)      vpn ──signal──► overlay(signal)      trust ──► overlay(gossip, control)
//!      ◄─answer───                        ◄─signal───                            ◄──
//!      ──gossip───► overlay(sets)         ──resolve─► dht look-up
//! ```

use std::sync::Arc;
use std::time::Duration;

use aerie_dht::{Transport, TransportError};
use aerie_identity::Credential;
use aerie_overlay::{Event, Protocol, Topic};
use aerie_types::{Key, PeerId, Role};
use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};

use super::node::Node;
use super::trust;
use super::wire::{self, Ask, Tell};

/// Requests of members served at once. A member asks a few at a time; what is over waits in the overlay's queue.
const MAX_SERVED: usize = 64;

/// Look-ups and signals of the tunnel under way at once. A burst of new destinations waits its turn.
const MAX_CARRIED: usize = 256;

/// How soon a member whose facts are not known is asked again, at first and at most.
const MEET_AGAIN: Duration = Duration::from_secs(1);
const MEET_SELDOM: Duration = Duration::from_secs(60);

/// Carries the register's messages over the overlay.
pub(crate) struct OverlayTransport(pub(crate) aerie_overlay::Handle);

impl Transport for OverlayTransport {
    fn closest(&self, key: Key) -> BoxFuture<'_, Vec<PeerId>> {
        Box::pin(async move { self.0.closest(key).await.unwrap_or_default() })
    }

    fn request(&self, to: PeerId, bytes: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            self.0
                .request(to, Protocol::Dht, bytes)
                .await
                .map_err(|error| TransportError::new(error.to_string()))
        })
    }

    fn publish(&self, bytes: Vec<u8>) {
        if let Err(error) = self.0.publish(Topic::Sets, bytes) {
            tracing::debug!(%error, "a change of a set was not passed on; its publisher repeats it");
        }
    }
}

/// Carries events of the overlay to the parts that they are for, until the overlay ends.
pub(crate) async fn overlay_events(node: Arc<Node>, mut events: mpsc::Receiver<Event>) {
    let served = Arc::new(Semaphore::new(MAX_SERVED));
    while let Some(event) = events.recv().await {
        match event {
            Event::MemberUp { peer, credential } => {
                tracing::debug!(node = %credential.node, "member up");
                node.dht.member_up(peer).await;
                node.member_came.notify_one();
                tokio::spawn(meet(Arc::clone(&node), peer, credential));
            }
            Event::MemberDown { peer } => {
                node.dht.member_down(peer).await;
                node.forget_relay(peer).await;
                node.member_gone.notify_one();
            }
            Event::MemberRenewed { credential, .. } => {
                tracing::debug!(node = %credential.node, "a member renewed its credential");
            }
            Event::Request {
                from,
                protocol,
                bytes,
                reply,
            } => {
                let Ok(permit) = Arc::clone(&served).acquire_owned().await else {
                    return;
                };
                let node = Arc::clone(&node);
                tokio::spawn(async move {
                    if let Some(answer) = serve(&node, from, protocol, bytes).await {
                        // The asker may have gone away meanwhile.
                        let _ = reply.send(answer);
                    }
                    drop(permit);
                });
            }
            Event::Gossip {
                topic: Topic::Sets,
                from,
                bytes,
            } => node.dht.gossip(from, bytes).await,
            Event::Gossip {
                topic: Topic::Revocations,
                bytes,
                ..
            } => {
                if let Err(error) = trust::apply(&node, &bytes).await {
                    tracing::debug!(error, "a revocation list was refused");
                }
            }
            Event::Refused { remote, reason, .. } => tracing::debug!(?remote, %reason, "refused a peer"),
            Event::Listening { addr } => tracing::debug!(%addr, "reachable"),
        }
    }
}

async fn serve(node: &Node, from: PeerId, protocol: Protocol, bytes: Vec<u8>) -> Option<Vec<u8>> {
    match protocol {
        Protocol::Dht => node.dht.serve(from, bytes).await.ok(),
        Protocol::Signal => {
            node.vpn()?.signal(from, bytes).await;
            Some(Vec::new())
        }
        Protocol::Control => {
            let tell = match wire::decode(&bytes)? {
                Ask::Facts => Tell::Facts(node.facts()),
                Ask::Revocations => Tell::Revocations(node.trust.encoded()),
            };
            Some(wire::encode(&tell))
        }
    }
}

/// Exchanges facts with a member that has just come up, and learns its name. A relay is asked until it has said where
/// its tunnel listens: right after its start it has none yet.
async fn meet(node: Arc<Node>, peer: PeerId, credential: Arc<Credential>) {
    let mut pause = MEET_AGAIN;
    loop {
        if let Some(Tell::Facts(facts)) = node.ask(peer, &Ask::Facts).await {
            if facts.revocations > node.trust.serial()
                && let Some(Tell::Revocations(list)) = node.ask(peer, &Ask::Revocations).await
                && let Err(error) = trust::apply(&node, &list).await
            {
                tracing::debug!(error, node = %credential.node, "a member's revocation list was refused");
            }
            let relays = facts.relays && credential.roles.contains(Role::Relay);
            if !relays || (facts.data_port != 0 && node.learn_relay(peer, &facts).await) {
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MEET_SELDOM);
        if node.overlay.credential(peer).is_none() {
            // Gone; it is met again when it comes back.
            return;
        }
    }
}

/// Carries events of the tunnel to the register and to the overlay, until the tunnel ends.
pub(crate) async fn vpn_events(node: Arc<Node>, mut events: mpsc::Receiver<aerie_vpn::Event>) {
    let carried = Arc::new(Semaphore::new(MAX_CARRIED));
    while let Some(event) = events.recv().await {
        let Ok(permit) = Arc::clone(&carried).acquire_owned().await else {
            return;
        };
        let node = Arc::clone(&node);
        match event {
            aerie_vpn::Event::Resolve(addr) => {
                tokio::spawn(async move {
                    let found = node.resolve(addr).await;
                    if let Some(vpn) = node.vpn() {
                        vpn.resolved(addr, found).await;
                    }
                    drop(permit);
                });
            }
            aerie_vpn::Event::Signal { to, bytes } => {
                tokio::spawn(async move {
                    // The path agent sends its signals again; one that is lost costs a retry.
                    if let Err(error) = node.overlay.request(to, Protocol::Signal, bytes).await {
                        tracing::debug!(%error, peer = %to.short(), "a signal was not delivered");
                    }
                    drop(permit);
                });
            }
            aerie_vpn::Event::PathChanged { peer, path, why } => {
                let name = node
                    .overlay
                    .credential(peer)
                    .map(|credential| credential.node.to_string());
                tracing::info!(node = name.unwrap_or_else(|| peer.short()), %path, why, "path changed");
            }
        }
    }
    node.tunnel_ended.notify_one();
}
