//! Ends of networks on a host.

use aerie_cluster_manager_proto::{Failure, GuestId, Spec};
use aerie_cluster_node::{Link, Mac, Nic};
use async_trait::async_trait;

/// What makes the ends of networks that guests are plugged into.
#[async_trait]
pub trait Networks: std::fmt::Debug + Send + Sync {
    /// Makes a guest's ends, and gives its NICs as its machine has them: the same each time.
    ///
    /// # Errors
    /// [`Failure`]
    async fn attach(&self, spec: &Spec) -> Result<Vec<Nic>, Failure>;

    /// Makes the ends again of a guest that was attached, where they are gone, as they are when its host was started
    /// anew.
    ///
    /// # Errors
    /// [`Failure`]
    async fn connect(&self, guest: GuestId) -> Result<(), Failure>;

    /// Removes a guest's ends. A guest that has none is no error.
    ///
    /// # Errors
    /// [`Failure`]
    async fn detach(&self, guest: GuestId) -> Result<(), Failure>;
}

/// No networks: NICs that are plugged into nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoNetworks;

#[async_trait]
impl Networks for NoNetworks {
    async fn attach(&self, spec: &Spec) -> Result<Vec<Nic>, Failure> {
        let nic = |(index, nic): (usize, &aerie_cluster_proto::description::Nic)| Nic {
            mac: Mac(nic
                .mac
                .map_or_else(|| address(spec.guest, index), |mac| mac.octets())),
            link: Link::None,
        };
        Ok(spec.nics.iter().enumerate().map(nic).collect())
    }

    async fn connect(&self, _guest: GuestId) -> Result<(), Failure> {
        Ok(())
    }

    async fn detach(&self, _guest: GuestId) -> Result<(), Failure> {
        Ok(())
    }
}

/// An address of a guest's own: locally administered, from the end of its number and the NIC's.
fn address(guest: GuestId, index: usize) -> [u8; 6] {
    let [.., a, b, c, d] = guest.0;
    let index = u8::try_from(index).unwrap_or(u8::MAX);
    [0x52, index, a, b, c, d]
}
