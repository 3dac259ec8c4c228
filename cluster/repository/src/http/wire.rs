//! The paths of requests.

use std::fmt;

use aerie_cluster_proto::description::Image;

use crate::manifest::ManifestId;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    Image(Image),
    Manifest(ManifestId),
    Have(ManifestId),
    Chunk(ManifestId, u32),
    Announce(ManifestId, u16),
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(image) => write!(f, "/v1/image/{image}"),
            Self::Manifest(id) => write!(f, "/v1/manifest/{id}"),
            Self::Have(id) => write!(f, "/v1/have/{id}"),
            Self::Chunk(id, chunk) => write!(f, "/v1/chunk/{id}/{chunk}"),
            Self::Announce(id, port) => write!(f, "/v1/announce/{id}/{port}"),
        }
    }
}

impl Ask {
    pub(super) fn read(path: &str) -> Option<Self> {
        let (kind, rest) = path.strip_prefix("/v1/")?.split_once('/')?;
        let id = |text: &str| text.parse().ok().map(ManifestId);
        Some(match kind {
            "image" => Self::Image(rest.parse().ok()?),
            "manifest" => Self::Manifest(id(rest)?),
            "have" => Self::Have(id(rest)?),
            "chunk" => {
                let (manifest, chunk) = rest.split_once('/')?;
                Self::Chunk(id(manifest)?, chunk.parse().ok()?)
            }
            "announce" => {
                let (manifest, port) = rest.split_once('/')?;
                Self::Announce(id(manifest)?, port.parse().ok()?)
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use proptest::prelude::*;

    #[test]
    fn what_is_asked_is_read_back() {
        let id = ManifestId(Digest::of(b"x"));
        for ask in [
            Ask::Image("lab/nfs@2.1+b1".parse().unwrap()),
            Ask::Image(id.0.into()),
            Ask::Manifest(id),
            Ask::Have(id),
            Ask::Chunk(id, 7),
            Ask::Announce(id, 4242),
        ] {
            assert_eq!(Ask::read(&ask.to_string()), Some(ask));
        }
    }

    proptest! {
        #[test]
        fn no_path_is_a_panic(path in "(/v1/(image|manifest|have|chunk|announce))?/?.{0,80}") {
            let _ = Ask::read(&path);
        }
    }
}
