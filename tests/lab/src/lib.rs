//! A lab in network namespaces: an internet, sites behind real NATs, and nodes that are Debian 13 machines with
//! the real HTCondor, as far as a machine can be had without a kernel of its own.
//!
//! ```no_run
//! use aerie_lab::{Lab, Nat, Place};
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::builder("two-sites").bind("target/debug/aerie", "/usr/bin/aerie").start()?;
//! let home = lab.site("home", Nat::PortRestricted)?;
//! let worker = lab.node("w1", &home)?;
//! let server = lab.node("server", Place::Internet)?;
//! worker.run("alice", &["ping", "-c1", &server.addr().to_string()])?;
//! # Ok(()) }
//! ```
//!
//! Everything needs root. Nothing is made outside the lab's own namespaces but a folder below
//! [`state::run_dir`]; dropping the [`Lab`] removes all of it, and if its process dies the kernel does (the next
//! lab then deletes the folder). Several labs can run side by side: they share no name and no address.
//!
//! - [`network`], [`nat`]: the internet, the routers and what they do to packets
//! - [`node`], [`service`]: machines, disks and what runs on them
//! - [`guest`]: machines with a kernel of their own, under emulation, from the image that people build
//! - [`metadata`]: a cloud's metadata service
//! - [`grid`]: a whole grid, built through the `aerie` command
//! - [`campus`]: the grid of the demonstration; [`matrix`]: every kind of NAT against every other
//! - [`pool`]: HTCondor jobs as a person submits them
//! - [`rootfs`], [`mirror`], [`cache`]: the root file systems, built once
//! - [`chroot`]: a machine that is only a root file system, to install packages on
//! - [`state`]: what is written down of each lab, and the removal of what a crash left
//! - [`wait`]: waiting for something with a message that tells why it did not come

pub mod cache;
pub mod campus;
mod cgroup;
pub mod chroot;
pub mod grid;
pub mod guest;
mod lab;
mod line;
pub mod matrix;
pub mod metadata;
pub mod mirror;
pub mod nat;
pub mod netns;
pub mod network;
pub mod node;
pub mod pool;
pub mod portmap;
pub mod process;
pub mod rootfs;
pub mod service;
pub mod state;
pub mod wait;

pub use lab::{Builder, Host, Lab, Place, Site, enter_command};
pub use line::Quality;
pub use nat::Nat;
pub use node::{Node, Output};
pub use service::Service;
