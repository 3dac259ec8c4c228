//! What can be served to others: a repository's images, or what a host has fetched.

use std::sync::Arc;

use aerie_cluster_proto::description::Image;

use crate::Error;
use crate::manifest::{Manifest, ManifestId};
use crate::store::ImageInfo;
use crate::swarm::Bitfield;

/// Something with images in it. All calls may block on the disk.
pub trait Library: Send + Sync + 'static {
    /// The image that is meant. Hosts know none by name.
    ///
    /// # Errors
    /// When it cannot be looked up, or is damaged.
    fn find(&self, image: &Image) -> Result<Option<ImageInfo>, Error>;

    /// A manifest.
    ///
    /// # Errors
    /// When it cannot be read.
    fn manifest(&self, id: ManifestId) -> Result<Option<Arc<Manifest>>, Error>;

    /// Which chunks of an image are here.
    ///
    /// # Errors
    /// When that cannot be looked up.
    fn have(&self, id: ManifestId) -> Result<Option<Bitfield>, Error>;

    /// A chunk, if it is here. Whoever gets it compares it with its digest.
    ///
    /// # Errors
    /// When it cannot be read.
    fn chunk(&self, id: ManifestId, chunk: u32) -> Result<Option<Vec<u8>>, Error>;
}
