//! Registers that believe everything.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries; helpers of tests fail the test"
)]

use std::time::Instant;

use aerie_dht_proto::{Config, Keys, Member, MemoryStore, NotMember, Now, Register, Signature};
use aerie_types::{GridId, PeerId, Role, WallMillis};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Signs nothing and believes everything, so that hostile bytes get as far as they can.
#[derive(Clone)]
pub struct Credulous(pub PeerId);

impl Keys for Credulous {
    fn me(&self) -> PeerId {
        self.0
    }

    fn credential(&self) -> Vec<u8> {
        self.0.0.to_vec()
    }

    fn sign(&self, _message: &[u8]) -> Signature {
        [0; 64].into()
    }

    fn verify(&self, _peer: PeerId, _message: &[u8], _signature: &Signature) -> bool {
        true
    }

    fn member(&self, credential: &[u8], _wall: WallMillis) -> Result<Member, NotMember> {
        let peer = credential
            .try_into()
            .map_err(|_| NotMember("32 bytes".to_owned()))?;
        Ok(Member {
            peer: PeerId(peer),
            node: "w1".parse().unwrap(),
            group: "chem".parse().unwrap(),
            roles: Role::Worker.into(),
        })
    }
}

pub fn now() -> Now {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test needs some instant to count from"
    )]
    let instant = Instant::now();
    Now {
        instant,
        wall: WallMillis(1_800_000_000_000),
    }
}

pub fn register(id: u8, founder: bool, now: Now) -> Register<MemoryStore, Credulous> {
    let mut config = Config::new(GridId([1; 16]), "10.0.0.0/24".parse().unwrap());
    config.founder = founder;
    let mut rng = ChaCha8Rng::seed_from_u64(id.into());
    let keys = Credulous(PeerId([id; 32]));
    Register::new(config, keys, MemoryStore::default(), &mut rng, now).unwrap()
}
