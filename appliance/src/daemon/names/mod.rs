//! Names of members and their addresses, as this node has learned them.
//!
//! Every name comes from a lease: a look-up by name or by address gives a certificate that binds node, name and
//! address. A resolver of the grid's domain answers on the node's own virtual address, and asks the register for what
//! is not known or was learned a while ago. Where systemd-resolved runs, it is told to ask that resolver ([`hook`]);
//! elsewhere what was learned is written into a block of the machine's hosts file.

mod hook;
mod known;
mod show;

pub(crate) use known::{Names, Target};
pub(crate) use show::{hosts_file, keep_names, learn_members};
