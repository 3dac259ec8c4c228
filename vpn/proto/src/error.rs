//! What a caller of the core can do wrong. What the network does wrong is a counted drop.

use aerie_types::{PeerId, VirtualAddr};

/// An error of a call, never of a packet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("the tunnel's configuration is unusable: {reason}")]
    Config {
        /// What is wrong and what would be right.
        reason: &'static str,
    },
    /// The node's own virtual address is outside the grid's range.
    #[error("the address {addr} is outside the grid's range {range}; lease an address of the range")]
    OutsideRange {
        /// The address.
        addr: VirtualAddr,
        /// The range.
        range: aerie_types::VirtualRange,
    },
    /// A signal that is no signal of this version.
    #[error(
        "a signal from member {} cannot be read ({reason}); the member may run another version of Aerie",
        from.short()
    )]
    Signal {
        /// Who sent it.
        from: PeerId,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The cryptographic library refused its input.
    #[error("the Noise handshake could not be prepared; the node's noise key is damaged, so enrol again")]
    Handshake(#[source] snow::Error),
}
