//! How messages travel between registers; implemented over the overlay by whoever starts the driver.

use std::future::Future;
use std::pin::Pin;

use aerie_types::{Key, PeerId};

/// A boxed future.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request that got no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no answer: {0}; the member may be gone, it is asked again later")]
pub struct TransportError(pub String);

/// Carries messages to admitted members.
pub trait Transport: Send + Sync + 'static {
    /// The members closest to a key, nearest first, without this node.
    fn closest(&self, key: Key) -> BoxFuture<'_, Vec<PeerId>>;

    /// Asks a member and waits for its answer.
    fn request(&self, to: PeerId, bytes: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>>;

    /// Spreads a message to all members.
    fn publish(&self, bytes: Vec<u8>);
}
