//! Debian packages.
//!
//! ```text
//!  program, man pages, completions ─┐
//!  packaging/ (units, scripts)     ─┴─► manifest ─► dpkg-deb ─► .deb ─► repository
//!                                       contents    deb                 apt-ftparchive, gpg
//! ```
//!
//! A [`Package`] is data: files with their modes, what it depends on, what runs at its installation. [`Inputs`] makes
//! the manifests of both packages, [`write()`] a file of each, and
//! [`publish()`] a repository of the files. The same inputs give the same bytes: nothing of the
//! machine that builds, and no time but the given [`Stamp`], gets in.

mod contents;
mod deb;
mod manifest;
mod program;
mod repository;

pub use contents::{Completions, Inputs};
pub use deb::{Compression, write};
pub use manifest::{Content, ControlFile, Entry, Package, Stamp};
pub use program::inputs;
pub use repository::{Signer, publish};
