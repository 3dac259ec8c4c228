//! What an image consists of, so that any part of it can be had from anybody.
//!
//! A manifest has the digest of the whole, its size and format, the size of a chunk and the digest of each. It is
//! itself known by its digest: who has that from somebody trusted takes the manifest from anybody, and then each chunk
//! from anybody. The same content gives the same manifest everywhere.
//!
//! ```text
//!  0   8  "AERIEMF" and the version, 1
//!  8  32  SHA-256 of the image
//! 40   8  size of the image in bytes
//! 48   8  size of its disk in bytes
//! 56   4  size of a chunk in bytes; the last one may be shorter
//! 60   1  format: 0 raw, 1 qcow2
//! 61   3  zeros
//! 64  32  SHA-256 of each chunk
//! ```
//!
//! Numbers have their most significant byte first.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::BadManifest;
use crate::format::{At, Inspected};
use crate::limits::{MAX_CHUNK, MAX_CHUNKS, MAX_STORED, MAX_VIRTUAL, MIN_CHUNK, WANTED_CHUNKS};
use crate::{Digest, Error, Format, files};

const MAGIC: &[u8; 8] = b"AERIEMF\x01";
pub(crate) const HEADER: usize = 64;

/// The smallest chunk that is made, in bytes. Smaller ones are read.
const SMALLEST: u64 = 256 << 10;

/// A manifest by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ManifestId(pub Digest);

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an image consists of.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    digest: Digest,
    size: u64,
    virtual_size: u64,
    format: Format,
    chunk_size: u32,
    chunks: Vec<[u8; 32]>,
}

impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Manifest({} of {} chunks)", self.digest, self.chunks.len())
    }
}

impl Manifest {
    /// SHA-256 of the image.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Size of the image as it is stored, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Size of its disk, in bytes.
    #[must_use]
    pub const fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Its format.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Size of a chunk in bytes. The last one may be shorter.
    #[must_use]
    pub const fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.chunks.len()).unwrap_or(u32::MAX)
    }

    /// Where a chunk is in the image: its first byte, and how many there are. `None` if there is no such chunk.
    #[must_use]
    pub fn place(&self, chunk: u32) -> Option<(u64, usize)> {
        if chunk >= self.chunks() {
            return None;
        }
        let start = u64::from(chunk) * u64::from(self.chunk_size);
        let length = u64::from(self.chunk_size).min(self.size - start);
        Some((start, usize::try_from(length).ok()?))
    }

    /// Whether these bytes are the chunk.
    #[must_use]
    pub fn is_chunk(&self, chunk: u32, bytes: &[u8]) -> bool {
        let wanted = usize::try_from(chunk).ok().and_then(|at| self.chunks.get(at));
        wanted.is_some_and(|wanted| *wanted == Digest::of(bytes).0)
    }

    /// Its digest.
    #[must_use]
    pub fn id(&self) -> ManifestId {
        ManifestId(Digest::of(&self.encode()))
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 32 * self.chunks.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.digest.0);
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&self.virtual_size.to_be_bytes());
        bytes.extend_from_slice(&self.chunk_size.to_be_bytes());
        let format = match self.format {
            Format::Raw => 0,
            Format::Qcow2 => 1,
        };
        bytes.extend_from_slice(&[format, 0, 0, 0]);
        bytes.extend_from_slice(self.chunks.as_flattened());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`BadManifest`] if it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadManifest> {
        let (head, digests) = bytes
            .split_first_chunk::<HEADER>()
            .filter(|(head, _)| head.starts_with(MAGIC))
            .ok_or(BadManifest::Magic)?;
        let number = |at: usize, length: usize| {
            let bytes = head.get(at..at + length).unwrap_or_default();
            bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let mut digest = [0; 32];
        digest.copy_from_slice(head.get(8..40).ok_or(BadManifest::Magic)?);
        let (size, virtual_size) = (number(40, 8), number(48, 8));
        if size == 0 || size > MAX_STORED {
            return Err(BadManifest::Bounds("size"));
        }
        if virtual_size == 0 || virtual_size > MAX_VIRTUAL {
            return Err(BadManifest::Bounds("disk"));
        }
        let chunk_size = u32::try_from(number(56, 4)).unwrap_or(u32::MAX);
        if !(MIN_CHUNK..=MAX_CHUNK).contains(&chunk_size) || !chunk_size.is_power_of_two() {
            return Err(BadManifest::Bounds("chunk"));
        }
        let format = match number(60, 4) {
            0 => Format::Raw,
            0x0100_0000 => Format::Qcow2,
            _ => return Err(BadManifest::Bounds("format")),
        };
        let (chunks, rest) = digests.as_chunks::<32>();
        let wanted = size.div_ceil(u64::from(chunk_size));
        if wanted > u64::from(MAX_CHUNKS) || wanted != chunks.len() as u64 || !rest.is_empty() {
            return Err(BadManifest::Length);
        }
        Ok(Self {
            digest: Digest(digest),
            size,
            virtual_size,
            format,
            chunk_size,
            chunks: chunks.to_vec(),
        })
    }
}

/// How many manifests are kept in memory: some MiB at most, for what many hosts fetch at one time.
const RECENT: usize = 8;

/// The manifests that were asked for last.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<BTreeMap<ManifestId, Arc<Manifest>>>);

impl Recent {
    /// The manifest, from memory or from where it is read.
    pub(crate) fn get(
        &self,
        id: ManifestId,
        read: impl FnOnce() -> Result<Option<Manifest>, Error>,
    ) -> Result<Option<Arc<Manifest>>, Error> {
        let known = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(manifest) = read()?.map(Arc::new) else {
            return Ok(None);
        };
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= RECENT {
            recent.clear();
        }
        recent.insert(id, Arc::clone(&manifest));
        Ok(Some(manifest))
    }

    /// Forgets one whose image is gone.
    pub(crate) fn forget(&self, id: ManifestId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// The digests of a file, which is read once.
pub(crate) struct Hashed {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    chunk_size: u32,
    chunks: Vec<[u8; 32]>,
}

impl Hashed {
    /// Reads a file of so many bytes; what it has beyond them, or does not have, shows in [`Self::size`].
    pub(crate) fn of(file: &File, size: u64) -> io::Result<Self> {
        let chunk_size = chunk_size(size);
        let (mut whole, mut chunks, mut read) = (Sha256::new(), Vec::new(), 0);
        let mut input = At(file, 0);
        let mut buffer = vec![0; usize::try_from(chunk_size).unwrap_or(0)];
        while chunks.len() <= MAX_CHUNKS as usize {
            let length = files::fill(&mut input, &mut buffer)?;
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            whole.update(bytes);
            chunks.push(Digest::of(bytes).0);
            read += length as u64;
        }
        Ok(Self {
            digest: Digest::finish(whole),
            size: read,
            chunk_size,
            chunks,
        })
    }

    pub(crate) fn manifest(self, inspected: Inspected) -> Manifest {
        Manifest {
            digest: self.digest,
            size: self.size,
            virtual_size: inspected.virtual_size,
            format: inspected.format,
            chunk_size: self.chunk_size,
            chunks: self.chunks,
        }
    }
}

/// The size of the chunks of an image, in bytes: a power of two that gives [`WANTED_CHUNKS`] or somewhat more.
fn chunk_size(size: u64) -> u32 {
    let wanted = (size / WANTED_CHUNKS).clamp(SMALLEST, u64::from(MAX_CHUNK));
    u32::try_from(1_u64 << wanted.ilog2()).unwrap_or(MAX_CHUNK)
}
