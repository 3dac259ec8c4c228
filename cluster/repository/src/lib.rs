//! The repository of images, and how images reach the hosts of virtual clusters.
//!
//! ```text
//!  put ──► Store ──► Server ─────► Cache ──► a file that a guest starts from
//!          images,    chunks         │ ▲
//!          names,     over HTTP      ▼ │ chunks of other hosts
//!          leases                  Server
//! ```
//!
//! A [`Store`] keeps images by the SHA-256 of their content, under names that people use. What an image consists of is
//! written down in its [`Manifest`]: the digest of each chunk, so that a chunk can be had from anybody and is known to
//! be right. A host has a [`Cache`]: [`Cache::fetch`] gives it an image's file, had from the repository and from all
//! other hosts that are fetching it at the same time or have done so before. Which chunk is asked of whom is decided by
//! [`swarm::Swarm`], which knows neither time nor network by itself; [`Server`] and [`Client`] are how one asks, over
//! whatever [`Transport`] there is.
//!
//! What is trusted is the repository's word for which manifest a name means. All else is proved by digests.

mod cache;
mod crash;
mod digest;
mod error;
mod files;
mod format;
mod http;
mod library;
pub mod limits;
mod manifest;
pub mod overlay;
mod store;
pub mod swarm;

pub use cache::{Cache, CacheConfig, Cached, Fetch, Fetching, Pin, Progress};
pub use digest::Digest;
pub use error::{BadContent, BadManifest, Error};
pub use format::Format;
pub use http::{Client, Connection, Plain, Server, ServerConfig, Stream, Transport};
pub use library::Library;
pub use manifest::{Manifest, ManifestId};
pub use store::{
    Begun, Boot, ClonedDisk, Collected, Config, Firmware, ImageInfo, Lease, Meta, Opened, Put, Store, Upload,
    Verified,
};
