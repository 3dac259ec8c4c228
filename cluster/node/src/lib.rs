//! The node driver: guests on one host, from their definition to their end.
//!
//! A host of virtual clusters runs guests. What it can do with one is the trait [`NodeDriver`]; the state machine that
//! all drivers keep is drawn in [`state`]. [`qemu::QemuDriver`] runs guests under QEMU, by KVM where that works and
//! by emulation where it does not; [`fake::FakeDriver`] runs none and says it does, for tests of whatever stands above.
//! The driver is part of the process that uses it: there is no daemon behind it, and a guest belongs to nobody but its
//! folder. The process may be killed at any instruction; its guests run on, and the next driver on the folder finds
//! them again.
//!
//! Networks are not made here: a NIC is plugged into a TAP interface that is there.

mod crash;
mod definition;
mod driver;
mod error;
pub mod fake;
mod files;
mod process;
pub mod qemu;
mod qmp;
pub mod state;

#[cfg(test)]
mod conformance;

pub use definition::{
    Definition, Device, Disk, Format, GuestId, GuestName, Link, MAX_CPUS, MAX_DISKS, MAX_NICS, Mac, Mib, Nic,
};
pub use driver::{Console, Event, Host, Kind, MAX_CONSOLE_READ, NodeDriver, Status};
pub use error::{BadDefinition, Error};
pub use qmp::QmpError;
pub use state::{End, Operation, State};
