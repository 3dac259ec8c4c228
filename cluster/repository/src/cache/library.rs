//! What others may have of a cache: whole images, and what has come of those that are being fetched.

use std::sync::Arc;

use aerie_cluster_proto::description::Image;

use super::Cache;
use super::job::Job;
use crate::manifest::{Manifest, ManifestId};
use crate::store::ImageInfo;
use crate::swarm::Bitfield;
use crate::{Digest, Error, Library, files};

impl Cache {
    fn job(&self, id: ManifestId) -> Option<Arc<Job>> {
        self.0.state().jobs.values().find(|job| job.id == id).cloned()
    }

    fn whole(&self, id: ManifestId) -> Option<Digest> {
        let state = self.0.state();
        let mut whole = state.entries.iter().filter(|(_, entry)| entry.whole);
        whole
            .find(|(_, entry)| entry.manifest == id)
            .map(|(digest, _)| *digest)
    }
}

impl Library for Cache {
    /// None: what a name means is for the repository to say.
    fn find(&self, _image: &Image) -> Result<Option<ImageInfo>, Error> {
        Ok(None)
    }

    fn manifest(&self, id: ManifestId) -> Result<Option<Arc<Manifest>>, Error> {
        if let Some(job) = self.job(id) {
            return Ok(Some(Arc::clone(&job.manifest)));
        }
        match self.whole(id) {
            Some(digest) => self.0.manifests.get(id, || self.0.folder.read_manifest(digest)),
            None => Ok(None),
        }
    }

    fn have(&self, id: ManifestId) -> Result<Option<Bitfield>, Error> {
        if let Some(job) = self.job(id) {
            return Ok(Some(job.have().clone()));
        }
        let manifest = Library::manifest(self, id)?;
        Ok(manifest.map(|manifest| Bitfield::full(manifest.chunks())))
    }

    fn chunk(&self, id: ManifestId, chunk: u32) -> Result<Option<Vec<u8>>, Error> {
        let folder = &self.0.folder;
        if let Some(job) = self.job(id) {
            let (Some((at, length)), true) = (job.manifest.place(chunk), job.have().has(chunk)) else {
                return Ok(None);
            };
            if let Some(bytes) = files::read_part(&folder.partial(job.manifest.digest()), at, length)? {
                return Ok(Some(bytes));
            }
            // It has become whole meanwhile.
        }
        let Some(manifest) = Library::manifest(self, id)? else {
            return Ok(None);
        };
        match manifest.place(chunk) {
            Some((at, length)) => files::read_part(&folder.image(manifest.digest()), at, length),
            None => Ok(None),
        }
    }
}
