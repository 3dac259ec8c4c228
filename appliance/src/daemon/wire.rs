//! The `control` protocol between members: small facts that no other part carries.
//!
//! One request, one answer, over the overlay, so that both ends are admitted members. Postcard after a version
//! byte; anything else is answered by nothing and counted by the overlay as a failed request.

use serde::{Deserialize, Serialize};

/// Version of the control protocol's messages.
const VERSION: u8 = 2;

/// The longest message, in bytes: the longest revocation list, and the frame around it.
pub(crate) const MAX_MESSAGE: usize = aerie_identity::MAX_SIGNED_REVOCATIONS + 64;

/// What a member asks another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// What a member should know of its neighbour; sent when they meet.
    Facts,
    /// The newest signed revocation list.
    Revocations,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Tell {
    Facts(Facts),
    /// The encoded list; empty if the member has none.
    Revocations(Vec<u8>),
}

/// A member's facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// UDP port of the tunnel's socket.
    pub(crate) data_port: u16,
    /// TCP port at which it takes members over TLS that UDP does not reach; 0 if it does not.
    pub(crate) tls_port: u16,
    /// Serial of the newest revocation list it has; 0 for none.
    pub(crate) revocations: u64,
    /// Whether it forwards datagrams for other members.
    pub(crate) relays: bool,
}

pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Postcard fails on types that it cannot know the length of; ours have none of those.
    let mut bytes = vec![VERSION];
    bytes.extend(postcard::to_stdvec(message).unwrap_or_default());
    bytes
}

pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    if bytes.len() > MAX_MESSAGE {
        return None;
    }
    match bytes.split_first()? {
        (&VERSION, body) => postcard::from_bytes(body).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_and_foreign_versions_do_not() {
        let facts = Tell::Facts(Facts {
            data_port: 4242,
            tls_port: 443,
            revocations: 7,
            relays: true,
        });
        let mut bytes = encode(&facts);
        assert_eq!(decode::<Tell>(&bytes), Some(facts));
        bytes[0] = 9;
        assert_eq!(decode::<Tell>(&bytes), None);
        assert_eq!(decode::<Tell>(&[]), None);
    }
}
