//! The Noise IK handshake: two messages, after which both sides have keys and have seen each other's credential.
//!
//! ```text
//! initiator                                                   responder
//!   e, es, s, ss   {suites offered, credential}  ──────────►    credential checked, timestamp newer than the last
//!                                                ◄──────────    e, ee, se  {suite chosen, credential}
//!   credential checked, keys
//! ```
//!
//! The prologue binds the protocol version, the handshake suite, the grid, both tags of the path exchange and the
//! timestamp: an init cannot be replayed to another grid, another start of a member, or later. Random bytes come
//! from the caller's seed. The transport keys are the raw split, used with the bulk suite that was agreed.

use aerie_types::{GridId, PeerId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

use crate::Suite;
use crate::wire::{HANDSHAKE_SUITE, VERSION};

const NOISE: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const DOMAIN: &[u8] = b"aerie tunnel";

/// A credential of at most 700 bytes, with room for intermediates later.
const MAX_MESSAGE: usize = 4096;
/// Suites that an offer may name.
const MAX_SUITES: usize = 8;

/// What this node proves itself with.
#[derive(Clone)]
pub struct Identity {
    /// The grid.
    pub grid: GridId,
    /// This node.
    pub peer: PeerId,
    /// The X25519 private key whose public half stands in the credential.
    pub noise_secret: Zeroizing<[u8; 32]>,
    /// The credential, X.509 in DER.
    pub credential: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} in {})", self.peer.short(), self.grid)
    }
}

/// What both sides know of a handshake before it begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub(crate) initiator_tag: u64,
    pub(crate) responder_tag: u64,
    pub(crate) timestamp: u64,
}

impl Context {
    fn prologue(&self, grid: GridId) -> Vec<u8> {
        let mut bytes = DOMAIN.to_vec();
        bytes.extend([VERSION, HANDSHAKE_SUITE]);
        bytes.extend(grid.0);
        for number in [self.initiator_tag, self.responder_tag, self.timestamp] {
            bytes.extend(number.to_be_bytes());
        }
        bytes
    }
}

/// The keys of both directions.
pub(crate) struct Keys {
    pub(crate) send: Zeroizing<[u8; 32]>,
    pub(crate) receive: Zeroizing<[u8; 32]>,
    pub(crate) suite: Suite,
}

/// A finished handshake as one side sees it.
pub(crate) struct Finished {
    pub(crate) keys: Keys,
    /// The other side's credential, not yet checked.
    pub(crate) credential: Vec<u8>,
    /// The other side's Noise key, proved.
    pub(crate) noise_public: [u8; 32],
}

/// An initiator's handshake that waits for the response.
pub(crate) struct Initiated(snow::HandshakeState);

#[derive(Serialize, Deserialize)]
struct Offer<'a> {
    suites: Vec<u8>,
    #[serde(borrow)]
    credential: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct Answer<'a> {
    suite: u8,
    #[serde(borrow)]
    credential: &'a [u8],
}

/// Writes the first message.
pub(crate) fn initiate(
    identity: &Identity,
    remote: &[u8; 32],
    context: Context,
    suites: &[Suite],
    seed: [u8; 32],
) -> Result<(Initiated, Vec<u8>), snow::Error> {
    let prologue = context.prologue(identity.grid);
    let mut state = builder(seed)?
        .prologue(&prologue)?
        .local_private_key(&*identity.noise_secret)?
        .remote_public_key(remote)?
        .build_initiator()?;
    let offer = Offer {
        suites: suites.iter().map(|suite| *suite as u8).collect(),
        credential: &identity.credential,
    };
    let message = write(&mut state, &offer)?;
    Ok((Initiated(state), message))
}

/// A responder that has opened the first message and not yet answered.
pub(crate) struct Received {
    state: snow::HandshakeState,
    offered: Vec<Suite>,
    pub(crate) credential: Vec<u8>,
    pub(crate) noise_public: [u8; 32],
}

/// Opens the first message.
pub(crate) fn receive(
    identity: &Identity,
    context: Context,
    message: &[u8],
    seed: [u8; 32],
) -> Result<Received, snow::Error> {
    let prologue = context.prologue(identity.grid);
    let mut state = builder(seed)?
        .prologue(&prologue)?
        .local_private_key(&*identity.noise_secret)?
        .build_responder()?;
    let mut payload = [0; MAX_MESSAGE];
    let len = read(&mut state, message, &mut payload)?;
    let offer: Offer<'_> = postcard::from_bytes(&payload[..len]).map_err(|_| snow::Error::Input)?;
    let offered = offer
        .suites
        .iter()
        .take(MAX_SUITES)
        .filter_map(|byte| Suite::from_byte(*byte))
        .collect();
    let noise_public = remote_static(&state)?;
    Ok(Received {
        offered,
        credential: offer.credential.to_vec(),
        noise_public,
        state,
    })
}

impl Received {
    /// Writes the second message.
    pub(crate) fn answer(
        mut self,
        identity: &Identity,
        own: &[Suite],
    ) -> Result<(Keys, Vec<u8>), snow::Error> {
        let suite = Suite::choose(&self.offered, own).ok_or(snow::Error::Input)?;
        let answer = Answer {
            suite: suite as u8,
            credential: &identity.credential,
        };
        let message = write(&mut self.state, &answer)?;
        let (to_responder, to_initiator) = self.state.dangerously_get_raw_split();
        let keys = Keys {
            send: to_initiator.into(),
            receive: to_responder.into(),
            suite,
        };
        Ok((keys, message))
    }
}

impl Initiated {
    /// Opens the second message. On a forgery the handshake can go on with the true one.
    pub(crate) fn finish(&mut self, message: &[u8], own: &[Suite]) -> Result<Finished, snow::Error> {
        let mut payload = [0; MAX_MESSAGE];
        let len = read(&mut self.0, message, &mut payload)?;
        let answer: Answer<'_> = postcard::from_bytes(&payload[..len]).map_err(|_| snow::Error::Input)?;
        let suite = Suite::from_byte(answer.suite)
            .filter(|suite| own.contains(suite))
            .ok_or(snow::Error::Input)?;
        let noise_public = remote_static(&self.0)?;
        let (to_responder, to_initiator) = self.0.dangerously_get_raw_split();
        let keys = Keys {
            send: to_responder.into(),
            receive: to_initiator.into(),
            suite,
        };
        Ok(Finished {
            keys,
            credential: answer.credential.to_vec(),
            noise_public,
        })
    }
}

fn write(state: &mut snow::HandshakeState, payload: &impl Serialize) -> Result<Vec<u8>, snow::Error> {
    let payload = postcard::to_stdvec(payload).map_err(|_| snow::Error::Input)?;
    let mut message = vec![0; MAX_MESSAGE];
    let len = state.write_message(&payload, &mut message)?;
    message.truncate(len);
    Ok(message)
}

fn read(
    state: &mut snow::HandshakeState,
    message: &[u8],
    payload: &mut [u8; MAX_MESSAGE],
) -> Result<usize, snow::Error> {
    if message.len() > MAX_MESSAGE {
        return Err(snow::Error::Input);
    }
    state.read_message(message, payload)
}

fn remote_static(state: &snow::HandshakeState) -> Result<[u8; 32], snow::Error> {
    state
        .get_remote_static()
        .and_then(|key| key.try_into().ok())
        .ok_or(snow::Error::Dh)
}

fn builder<'a>(seed: [u8; 32]) -> Result<snow::Builder<'a>, snow::Error> {
    Ok(snow::Builder::with_resolver(
        NOISE.parse()?,
        Box::new(Seeded(seed)),
    ))
}

/// The default primitives with the caller's randomness.
struct Seeded([u8; 32]);

struct SeededRandom(StdRng);

impl Random for SeededRandom {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SeededRandom(StdRng::from_seed(self.0))))
    }

    fn resolve_dh(&self, choice: &snow::params::DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &snow::params::HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &snow::params::CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// The public half of a Noise private key.
///
/// # Errors
/// [`crate::Error::Handshake`] if the key is unusable.
pub fn noise_public(secret: &[u8; 32]) -> Result<[u8; 32], crate::Error> {
    let mut dh = DefaultResolver
        .resolve_dh(&snow::params::DHChoice::Curve25519)
        .ok_or(crate::Error::Handshake(snow::Error::Dh))?;
    dh.set(secret);
    dh.pubkey()
        .try_into()
        .map_err(|_| crate::Error::Handshake(snow::Error::Dh))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(byte: u8, grid: u8) -> Identity {
        Identity {
            grid: GridId([grid; 16]),
            peer: PeerId([byte; 32]),
            noise_secret: Zeroizing::new([byte; 32]),
            credential: vec![byte; 600],
        }
    }

    const CONTEXT: Context = Context {
        initiator_tag: 1,
        responder_tag: 2,
        timestamp: 3,
    };

    #[test]
    fn both_sides_end_with_the_same_keys_and_each_others_credential() {
        let (a, b) = (identity(1, 9), identity(2, 9));
        let own = Suite::preferred(true);
        let b_public = noise_public(&b.noise_secret).unwrap();
        let (mut initiated, first) = initiate(&a, &b_public, CONTEXT, &own, [3; 32]).unwrap();
        let received = receive(&b, CONTEXT, &first, [4; 32]).unwrap();
        assert_eq!(received.credential, a.credential);
        assert_eq!(received.noise_public, noise_public(&a.noise_secret).unwrap());
        let (b_keys, second) = received.answer(&b, &own).unwrap();
        assert!(
            initiated.finish(&vec![0; second.len()], &own).is_err(),
            "a forgery"
        );
        let finished = initiated.finish(&second, &own).unwrap();
        assert_eq!(finished.credential, b.credential);
        assert_eq!(finished.keys.send, b_keys.receive);
        assert_eq!(finished.keys.receive, b_keys.send);
        assert_ne!(finished.keys.send, b_keys.send);
        assert_eq!(
            (finished.keys.suite, b_keys.suite),
            (Suite::Aes256Gcm, Suite::Aes256Gcm)
        );
    }

    #[test]
    fn a_message_for_another_grid_time_or_exchange_does_not_open() {
        let a = identity(1, 9);
        let b_public = noise_public(&[2; 32]).unwrap();
        let (_, first) = initiate(&a, &b_public, CONTEXT, &Suite::preferred(true), [3; 32]).unwrap();
        assert!(receive(&identity(2, 8), CONTEXT, &first, [4; 32]).is_err());
        for context in [
            Context {
                initiator_tag: 7,
                ..CONTEXT
            },
            Context {
                responder_tag: 7,
                ..CONTEXT
            },
            Context {
                timestamp: 7,
                ..CONTEXT
            },
        ] {
            assert!(receive(&identity(2, 9), context, &first, [4; 32]).is_err());
        }
        assert!(receive(&identity(2, 9), CONTEXT, &first, [4; 32]).is_ok());
    }
}
