//! Revocation on this node: the newest list, kept on disk, applied to every live connection and tunnel.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use aerie_identity::{SignedRevocations, Verifier};
use aerie_overlay::Topic;
use aerie_types::PeerId;
use tokio::sync::watch;

use super::node::Node;
use super::shared::Shared;
use crate::status::Stage;

/// The verifier that all parts share, and where its list is kept.
#[derive(Clone)]
pub(crate) struct Trust {
    verifier: Arc<RwLock<Verifier>>,
    path: PathBuf,
    /// Whether the newest list is not on the disk yet.
    unsaved: Arc<AtomicBool>,
    /// Serial of the newest list, for who waits for news.
    news: watch::Sender<u64>,
}

impl Trust {
    /// Takes the list that was kept, if any. A file that does not verify is reported and left out: the next
    /// member or the enrolment service has a good one.
    pub(crate) fn load(mut verifier: Verifier, path: PathBuf) -> Self {
        match std::fs::read(&path) {
            Ok(bytes) => {
                let applied = SignedRevocations::decode(&bytes)
                    .map_err(|error| error.to_string())
                    .and_then(|list| verifier.apply(list).map_err(|error| error.to_string()));
                if let Err(error) = applied {
                    tracing::warn!(%error, path = %path.display(), "the kept revocation list is not usable");
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, path = %path.display(), "cannot read the revocation list"),
        }
        Self {
            news: watch::Sender::new(verifier.revocation_serial()),
            verifier: Arc::new(RwLock::new(verifier)),
            path,
            unsaved: Arc::default(),
        }
    }

    pub(crate) fn verifier(&self) -> Arc<RwLock<Verifier>> {
        Arc::clone(&self.verifier)
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Verifier) -> T) -> T {
        look(&self.verifier.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serial of the newest list; 0 for none.
    pub(crate) fn serial(&self) -> u64 {
        self.read(|verifier| verifier.revocation_serial())
    }

    /// The newest list, encoded; empty for none.
    pub(crate) fn encoded(&self) -> Vec<u8> {
        self.read(|verifier| {
            verifier
                .revocations()
                .map(SignedRevocations::encode)
                .unwrap_or_default()
        })
    }

    /// Takes a list from anywhere. `Ok(true)` if it is newer than the one before. That it could not be written does
    /// not keep it from being applied; it is written with the next one, and fetched again after a restart.
    fn take(&self, bytes: &[u8]) -> Result<bool, String> {
        let list = SignedRevocations::decode(bytes).map_err(|error| error.to_string())?;
        let newer = {
            let mut verifier = self.verifier.write().unwrap_or_else(PoisonError::into_inner);
            verifier.apply(list).map_err(|error| error.to_string())?
        };
        if newer || self.unsaved.load(Ordering::Relaxed) {
            let written = aerie_identity::files::write_atomic(&self.path, &self.encoded(), 0o644);
            if let Err(error) = &written {
                tracing::warn!(%error, path = %self.path.display(), "the revocation list is applied but not kept");
            }
            self.unsaved.store(written.is_err(), Ordering::Relaxed);
        }
        if newer {
            self.news.send_replace(self.serial());
        }
        Ok(newer)
    }
}

/// Takes a signed list, cuts whom it names, and passes it on. Returns whether it was news.
pub(crate) async fn apply(node: &Node, bytes: &[u8]) -> Result<bool, String> {
    if !node.trust.take(bytes)? {
        return Ok(false);
    }
    tracing::info!(serial = node.trust.serial(), "new revocation list");
    let is_revoked = |credential: &_| node.trust.read(|verifier| verifier.is_revoked(credential));
    let members = node.overlay.members().await.unwrap_or_default();
    let revoked = members
        .iter()
        .filter(|member| is_revoked(&member.credential))
        .map(|member| member.peer);
    let mut cut: BTreeSet<PeerId> = revoked.collect();
    for peer in &cut {
        node.dht.forget(*peer).await;
    }
    // A tunnel may outlive its member's connection. Who is in good standing builds it up again at once.
    let unproved = |peer: &PeerId| {
        let credential = node.overlay.credential(*peer);
        credential.is_none_or(|credential| is_revoked(&credential))
    };
    cut.extend(
        node.tunnel_peers()
            .await
            .into_iter()
            .map(|tunnel| tunnel.peer)
            .filter(unproved),
    );
    if let Some(vpn) = node.vpn() {
        for peer in cut {
            tracing::info!(peer = %peer.short(), "its tunnel is cut");
            vpn.revoke(peer).await;
        }
    }
    if let Err(error) = node.overlay.publish(Topic::Revocations, bytes.to_vec()) {
        tracing::warn!(%error, "the list was not passed on");
    }
    node.overlay.recheck().await.map_err(|error| error.to_string())?;
    Ok(true)
}

/// Waits until this node itself is revoked; then takes its tunnel down and says so.
pub(crate) async fn watch_self(node: Arc<Node>, shared: Arc<Shared>) {
    let mut news = node.trust.news.subscribe();
    loop {
        news.mark_unchanged();
        let credential = node.credential.borrow().clone();
        if node.trust.read(|verifier| verifier.is_revoked(&credential)) {
            tracing::error!(node = %credential.node, "this node is revoked");
            if let Some(vpn) = node.take_vpn() {
                vpn.shutdown().await;
            }
            shared.failed(Stage::Tunnel, "down: this node is revoked", "");
            return shared.failed(
                Stage::Certificate,
                format!("the grid's administrator has revoked {}, or its user or group", credential.node),
                "no member talks to this node any more; ask the administrator, and when it is let in again, stop this \
                 daemon and start it with a fresh blob",
            );
        }
        if news.changed().await.is_err() {
            return;
        }
    }
}
