//! The manager's whole view of one host.

use std::fmt;

use aerie_cluster_manager_proto::{Failure, GuestId, GuestState, Inventory, Work};
use async_trait::async_trait;

pub use aerie_cluster_node::Console;

/// A host, wherever it is.
///
/// What is asked of one guest is done in the order in which it is asked, one after the other; [`Work::Destroy`] alone
/// interrupts. The future that waits may be dropped at any time: what was asked goes on, and may be asked again.
#[async_trait]
pub trait HostLink: fmt::Debug + Send + Sync {
    /// What the host has, and every guest of which there is anything.
    ///
    /// # Errors
    /// [`Failure`]; the host counts as silent then.
    async fn inventory(&self) -> Result<Inventory, Failure>;

    /// Does one thing. See [`Work`] for what each promises. Returns how the guest is then; nothing where there is no
    /// machine.
    ///
    /// # Errors
    /// [`Failure`] says whether to try again.
    async fn perform(&self, work: Work) -> Result<Option<GuestState>, Failure>;

    /// Gives a guest what it is told at its start, before it is defined. It holds secrets.
    ///
    /// # Errors
    /// [`Failure`] says whether to try again.
    async fn deliver(&self, guest: GuestId, user_data: &[u8]) -> Result<(), Failure>;

    /// What a guest wrote to its console, from this byte on.
    ///
    /// # Errors
    /// [`Failure`]
    async fn console(&self, guest: GuestId, from: u64) -> Result<Console, Failure>;

    /// Returns when something may have changed on the host since this was called last. It is a hint: the manager asks
    /// for the inventory from time to time without it, so that a host may never return from here.
    async fn changed(&self) {
        std::future::pending().await
    }
}
