//! What others may have of a store.

use std::sync::Arc;

use aerie_cluster_proto::description::Image;

use super::{ImageInfo, Store, index};
use crate::library::Library;
use crate::manifest::{Manifest, ManifestId};
use crate::swarm::Bitfield;
use crate::{Error, files};

impl Library for Store {
    fn find(&self, image: &Image) -> Result<Option<ImageInfo>, Error> {
        match Self::find(self, image) {
            Ok(info) if info.damaged => Err(Error::Quarantined { digest: info.digest }),
            Ok(info) => Ok(Some(info)),
            Err(Error::NoImage { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn manifest(&self, id: ManifestId) -> Result<Option<Arc<Manifest>>, Error> {
        self.manifests.get(id, || {
            let found = self
                .index
                .read("read a manifest", |tx| index::manifest(tx, "manifest_id", id.0))?;
            let Some((bytes, false)) = found else {
                return Ok(None);
            };
            let manifest = Manifest::decode(&bytes).map_err(|why| Error::Manifest {
                from: "the index".to_owned(),
                why,
            })?;
            Ok(Some(manifest))
        })
    }

    fn have(&self, id: ManifestId) -> Result<Option<Bitfield>, Error> {
        let manifest = Library::manifest(self, id)?;
        Ok(manifest.map(|manifest| Bitfield::full(manifest.chunks())))
    }

    fn chunk(&self, id: ManifestId, chunk: u32) -> Result<Option<Vec<u8>>, Error> {
        let Some(manifest) = Library::manifest(self, id)? else {
            return Ok(None);
        };
        let Some((at, length)) = manifest.place(chunk) else {
            return Ok(None);
        };
        let path = self.image_path(manifest.digest());
        // It may have been collected, or taken out of use, since its manifest was read.
        files::read_part(&path, at, length)
    }
}
