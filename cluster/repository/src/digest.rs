//! SHA-256 of what is stored.

use std::fmt;
use std::fs::File;
use std::io;
use std::str::FromStr;

use aerie_cluster_proto::description::Image;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::format::At;
use crate::{Error, files};

/// The SHA-256 of some bytes. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of a file, from its first byte to its last.
    pub(crate) fn of_file(file: &File) -> io::Result<Self> {
        let (mut input, mut buffer, mut hasher) = (At(file, 0), files::buffer(), Sha256::new());
        loop {
            let read = files::fill(&mut input, &mut buffer)?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                return Ok(Self::finish(hasher));
            };
            hasher.update(bytes);
        }
    }

    pub(crate) fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| Error::BadDigest {
            shown: text.chars().take(64).flat_map(char::escape_debug).collect(),
        })?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl From<Digest> for Image {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest.0)
    }
}
