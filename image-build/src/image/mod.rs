//! Disks that boot into a grid.
//!
//! ```text
//!  manifest ──► packages ──► lock ──► .debs ──► root.tar ──► with files ──► disk ──► qcow2, vmdk, ova
//!  manifest     archive      lock     fetch     root         merge          disk     format
//!                 (apt)              (cache)  (mmdebstrap)                (mke2fs, GRUB)
//! ```
//!
//! A [`Manifest`] says what an image is: the suite, the kernel, packages, files, the size. From it apt chooses the
//! packages, each of which the [`Lock`] names with version and hash; a build with a lock fetches exactly those. They
//! become an archive of their own, from which mmdebstrap installs: nothing else can get in, and once they are in the
//! cache no network is needed. The root file system is a tar archive, which `mke2fs` turns into ext4 without a mount;
//! the partition table, the boot loader and the EFI system partition are written around it.
//!
//! Two builds of one lock give the same bytes. No program of the machine that builds has a say in them but
//! mmdebstrap, apt and dpkg: `mke2fs`, GRUB and `qemu-img` are Debian packages of the lock too, unpacked into the
//! cache and run from there. What is unique in a machine (its id, its keys) is made at its first boot.

mod archive;
mod build;
mod cache;
mod disk;
mod fetch;
mod format;
mod lock;
mod manifest;
mod merge;
mod process;
mod root;
mod sbom;
mod tools;
mod verify;

pub use archive::Mirrors;
pub use build::{Built, Event, Request, build, make_lock, verify};
pub use cache::Cache;
pub use lock::{Lock, Locked, Origin};
pub use manifest::{BUILT_IN, Content, File, Format, Kernel, Manifest};
pub use tools::{Tools, emulator};
