//! The names of a grid's nodes on this host.
//!
//! Every node is `<node>.<grid>.grid` and, by the Grid Appliance's own scheme, `C` and nine digits under the same
//! domain, which spells its IPv4 address and has no other. [`Resolver`] answers for them from a [`NameSource`]; [`HostsFile`] shows them to programs that know
//! no other resolver than the system's.

mod hosts_file;
mod query;
mod resolver;

use std::net::Ipv4Addr;

use aerie_types::{NodeName, VirtualAddr};
use futures::future::BoxFuture;

pub use hosts_file::{HostsFile, HostsLine};
pub use resolver::Resolver;

/// Where answers come from.
pub trait NameSource: Send + Sync + 'static {
    /// The address of a node.
    fn by_name(&self, name: NodeName) -> BoxFuture<'_, Option<VirtualAddr>>;
    /// The node that holds an address.
    fn by_addr(&self, addr: VirtualAddr) -> BoxFuture<'_, Option<NodeName>>;
}

/// The address in a name of the Grid Appliance's scheme: `C` and three numbers of three digits, the last octets.
/// The first octets are the range's.
fn appliance_addr(label: &str, range: aerie_types::VirtualRange) -> Option<VirtualAddr> {
    let digits = label.strip_prefix(['C', 'c'])?;
    if digits.len() != 9 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let octet = |at: usize| digits.get(at..at + 3)?.parse::<u8>().ok();
    let [first, ..] = range.net().network().octets();
    let addr = VirtualAddr::from(Ipv4Addr::new(first, octet(0)?, octet(3)?, octet(6)?));
    range.contains(addr).then_some(addr)
}
