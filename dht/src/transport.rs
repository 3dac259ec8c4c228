//! The edge to the overlay, and its twin in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aerie_types::{Key, PeerId};
use futures::future::BoxFuture;

use crate::Handle;

/// Members that a look-up returns.
const CLOSEST: usize = 20;

/// Why a member did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(String);

impl TransportError {
    /// An error with its reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// How the register reaches other members.
pub trait Transport: Send + Sync + 'static {
    /// The members closest to a key's position, nearest first, without this node.
    fn closest(&self, key: Key) -> BoxFuture<'_, Vec<PeerId>>;

    /// Asks a member.
    fn request(&self, to: PeerId, bytes: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>>;

    /// Tells all members. Waits for nobody.
    fn publish(&self, bytes: Vec<u8>);
}

/// The twin in memory: registers of one process that reach each other.
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Mutex<BTreeMap<PeerId, Vec<Handle>>>>);

impl MemoryNetwork {
    /// The transport of a member, which reaches those that were connected.
    #[must_use]
    pub fn transport(&self, me: PeerId) -> Arc<dyn Transport> {
        Arc::new(MemoryTransport {
            network: self.clone(),
            me,
        })
    }

    /// Connects a member with all that are connected. A second one with the same id is a copy of the first: requests
    /// go to the newest, gossip to both.
    pub async fn connect(&self, peer: PeerId, handle: &Handle) {
        let others: Vec<_> = self.others(peer);
        self.members().entry(peer).or_default().push(handle.clone());
        for (other, handles) in others {
            handle.member_up(other).await;
            for other in handles {
                other.member_up(peer).await;
            }
        }
    }

    /// Cuts a member off.
    pub async fn disconnect(&self, peer: PeerId) {
        self.members().remove(&peer);
        for (_, handles) in self.others(peer) {
            for other in handles {
                other.member_down(peer).await;
            }
        }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<PeerId, Vec<Handle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self, me: PeerId) -> Vec<(PeerId, Vec<Handle>)> {
        let members = self.members();
        members
            .iter()
            .filter(|(peer, _)| **peer != me)
            .map(|(peer, handles)| (*peer, handles.clone()))
            .collect()
    }
}

struct MemoryTransport {
    network: MemoryNetwork,
    me: PeerId,
}

impl Transport for MemoryTransport {
    fn closest(&self, key: Key) -> BoxFuture<'_, Vec<PeerId>> {
        let position = key.position();
        let mut peers: Vec<PeerId> = self
            .network
            .others(self.me)
            .into_iter()
            .map(|(peer, _)| peer)
            .collect();
        peers.sort_by_cached_key(|peer| peer.position().distance(&position));
        peers.truncate(CLOSEST);
        Box::pin(async move { peers })
    }

    fn request(&self, to: PeerId, bytes: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let handle = self
            .network
            .members()
            .get(&to)
            .and_then(|handles| handles.last().cloned());
        let me = self.me;
        Box::pin(async move {
            let handle = handle.ok_or_else(|| TransportError::new("not connected"))?;
            let answer = handle.serve(me, bytes).await;
            answer.map_err(|error| TransportError::new(error.to_string()))
        })
    }

    fn publish(&self, bytes: Vec<u8>) {
        for (_, handles) in self.network.others(self.me) {
            for handle in handles {
                let (bytes, me) = (bytes.clone(), self.me);
                tokio::spawn(async move { handle.gossip(me, bytes).await });
            }
        }
    }
}
