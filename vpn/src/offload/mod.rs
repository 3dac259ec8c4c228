//! Super-packets: what lets one system call move 64 KiB instead of one packet.
//!
//! A TUN device with `IFF_VNET_HDR` puts a small header before each packet ([`header`]). By it the kernel hands
//! over a run of segments of one flow as one packet, with the transport's checksum still to be made, and takes
//! the same from us. On the wire of the tunnel there are only complete packets, each with its checksum: every
//! datagram stands alone, and an end without offload speaks with one that has it.
//!
//! ```text
//! TUN ──super-packet──► split ──packets──► seal ──► runs for UDP_SEGMENT
//! TUN ◄─super-packet── coalesce ◄─packets── open ◄── runs from UDP_GRO
//! ```
//!
//! - [`layout`]: where the headers of a packet are
//! - [`checksum`]: the Internet checksum, fast
//! - [`split`]: a super-packet into packets
//! - [`coalesce`]: packets of one batch into super-packets
//!
//! All of it is about bytes alone: no device, no system call.

pub(crate) mod checksum;
pub(crate) mod coalesce;
pub(crate) mod header;
pub(crate) mod layout;
pub(crate) mod split;

#[cfg(test)]
mod tests;
