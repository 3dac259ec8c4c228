//! Keys of simulated members: hashes in the place of signatures, so that thousands of members cost little.
//!
//! Nobody in the simulator forges, so that a signature has only to tell signers and messages apart.

use aerie_dht_proto::{Keys, Member, NotMember, Signature};
use aerie_types::{NodeName, PeerId, Role, Roles, WallMillis};

/// The first byte of a credential.
const MARK: u8 = b'c';

/// The keys of one member.
#[derive(Debug, Clone)]
pub struct SimKeys {
    me: PeerId,
    credential: Vec<u8>,
}

impl SimKeys {
    /// Member number `index`.
    #[must_use]
    pub fn new(index: usize, roles: Roles) -> Self {
        let me = peer(index);
        let mut credential = vec![MARK, roles.bits()];
        credential.extend_from_slice(&me.0);
        credential.extend_from_slice(name(index).as_str().as_bytes());
        Self { me, credential }
    }
}

/// The id of member number `index`.
#[must_use]
pub fn peer(index: usize) -> PeerId {
    let mut id = [0; 32];
    let mut word = index as u64;
    for chunk in id.chunks_mut(8) {
        word = mix(word.wrapping_add(0x9e37_79b9_7f4a_7c15));
        chunk.copy_from_slice(&word.to_be_bytes());
    }
    PeerId(id)
}

/// The name of member number `index`.
#[must_use]
#[expect(clippy::expect_used, reason = "a letter and digits make a name")]
pub fn name(index: usize) -> NodeName {
    format!("n{index}").parse().expect("a letter and digits")
}

impl Keys for SimKeys {
    fn me(&self) -> PeerId {
        self.me
    }

    fn credential(&self) -> Vec<u8> {
        self.credential.clone()
    }

    fn sign(&self, message: &[u8]) -> Signature {
        signature(self.me, message)
    }

    fn verify(&self, peer: PeerId, message: &[u8], given: &Signature) -> bool {
        signature(peer, message) == *given
    }

    fn member(&self, credential: &[u8], _wall: WallMillis) -> Result<Member, NotMember> {
        let wrong = || NotMember("it is no simulated credential".to_owned());
        let [MARK, roles, rest @ ..] = credential else {
            return Err(wrong());
        };
        let (peer, node) = rest.split_at_checked(32).ok_or_else(wrong)?;
        let node = std::str::from_utf8(node).ok().and_then(|node| node.parse().ok());
        Ok(Member {
            peer: PeerId(peer.try_into().map_err(|_| wrong())?),
            node: node.ok_or_else(wrong)?,
            group: "lab".parse().map_err(|_| wrong())?,
            roles: Roles::from_bits(*roles).ok_or_else(wrong)?,
        })
    }
}

/// What most members of a simulated grid may do.
#[must_use]
pub fn worker() -> Roles {
    Roles::from(Role::Worker)
}

/// A hash of 64 bits that spreads well and is fast without optimisation.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for chunk in part.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            state = mix(state ^ u64::from_be_bytes(word));
        }
        state = mix(state ^ part.len() as u64);
    }
    state
}

fn signature(peer: PeerId, message: &[u8]) -> Signature {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&hash(&[&peer.0, message]).to_be_bytes());
    bytes.into()
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
