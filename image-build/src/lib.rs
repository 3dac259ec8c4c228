//! What people install: Debian packages, and disks that boot into a grid.

mod error;
pub mod image;
pub mod package;

pub use error::Error;
