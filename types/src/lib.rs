//! Ids, names, addresses, roles and time as every part of Aerie means them.
//!
//! Everything here is pure: plain values that are parsed once at the door and then trusted. No type in this
//! crate reads a clock, a file or a socket.

mod addr;
mod error;
mod id;
mod name;
mod pool;
mod prefix;
mod role;
mod time;
mod ula;

pub use addr::{UnderlayAddr, VirtualAddr, VirtualRange};
pub use error::ParseError;
pub use id::{GridId, Instance, Key, PeerId};
pub use name::{GridName, GroupName, NodeName, UserName};
pub use pool::{AddressPool, Routed};
pub use prefix::VirtualPrefix;
pub use role::{Role, Roles};
pub use time::WallMillis;
pub use ula::{Ula, VirtualNet};
